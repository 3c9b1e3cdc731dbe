"""The host's vsock to itself: CID 1, and CID 2 from this side (row VS-20; Linux's vsock_loopback).

Which transport Linux takes for CID 2 depends on who connects: a guest's goes to its host, a host's goes nowhere else.
Whatever the destination, the source is CID 1, as there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from stack.scheduler import Scheduler
from stack.vsock.transport import VsockRx, VsockTx
from stack.wire.vsock import CID_LOCAL

LIMIT: Final = 1024  # packets on their way; the sender keeps the rest


class Loopback:
    """A `VsockTransport` whose guest is this host. Nobody polls it: what is sent arrives as deferred work."""

    def __init__(self, scheduler: Scheduler, deliver: Callable[[], None]) -> None:
        """`deliver` has what was sent handled; it asks `receive` for it."""
        self.guest_cid = CID_LOCAL
        self.carrier = True
        self.generation = 0
        self.stream = self.seqpacket = True
        self.partial = 0
        self.on_change: Callable[[], None] | None = None
        self._deliver = deliver
        self._scheduler = scheduler
        self._packets: deque[VsockRx] = deque()

    def receive(self, budget: int) -> Sequence[VsockRx]:
        packets = self._packets
        return [packets.popleft() for _ in range(min(budget, len(packets)))]

    def transmit(self, burst: Sequence[VsockTx]) -> int:
        packets = self._packets
        accepted = burst[: LIMIT - len(packets)]
        packets.extend((CID_LOCAL, *packet[1:9], memoryview(packet[9])) for packet in accepted)
        self._scheduler.defer(self._deliver)
        return len(accepted)

    def suppress(self) -> None:
        pass

    def arm(self) -> bool:
        return bool(self._packets)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.carrier = False
