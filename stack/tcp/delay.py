"""TCP_TX_DELAY: everything a connection sends leaves so much later, in order, as if the way to the device were longer.

It stands between a connection and the IP layer; a connection without the option talks to that directly. What was
measured (round trips) and what follows from it includes the delay, as on Linux.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.tcp.layer import TcpLayer


class DelayLine:
    """In place of an `IpLayer` for what `output` asks of one."""

    __slots__ = ("_layer", "_queue", "_timer", "delay")

    def __init__(self, layer: TcpLayer, delay: int) -> None:
        self.delay = delay  #: ns; a change is for what comes later
        self._layer = layer
        self._queue: deque[tuple[int, tuple[Any, ...], dict[str, Any] | None]] = deque()
        self._timer = layer.scheduler.timer(self._due)

    @property
    def generation(self) -> int:
        return self._layer.ip.generation

    def output(self, *packet: Any, **facts: Any) -> None:
        due = self._layer.scheduler.now + self.delay
        if self._queue:
            due = max(due, self._queue[-1][0])
        else:
            self._timer.arm(due)
        self._queue.append((due, packet, facts))

    def then(self, call: Callable[[], None]) -> None:
        """`call` when what was sent last has left, at once if nothing waits."""
        if self._queue:
            self._queue.append((self._queue[-1][0], (call,), None))
        else:
            call()

    def _due(self) -> None:
        queue = self._queue
        layer = self._layer
        while queue and queue[0][0] <= layer.scheduler.now:
            _, packet, facts = queue.popleft()
            if facts is None:
                packet[0]()
                continue
            try:
                layer.ip.output(*packet, **facts)
            except NetError:
                layer.drops.count("output-failed")
        if queue:
            self._timer.arm(queue[0][0])
