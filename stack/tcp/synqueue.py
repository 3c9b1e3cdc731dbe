"""The half-open connections of a namespace and the one timer they share.

Every request times out a second after its SYN|ACK, then after two, four, ...: all requests of one level wait equally
long, so each level is a queue in the order of deadlines, and one timer looks at the heads. Which listener a request
belongs to decides how patient we are (`Listener.expired`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.tcp.mib import Mib

if TYPE_CHECKING:
    from stack.tcp.layer import TcpLayer
    from stack.tcp.listener import Listener
    from stack.tcp.request import Request


class SynQueue:
    __slots__ = ("_layer", "_levels", "_timer")

    def __init__(self, layer: TcpLayer) -> None:
        self._layer = layer
        self._levels: list[dict[Request, None]] = []  # dicts as ordered sets
        self._timer = layer.scheduler.timer(self._expire)

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    def of(self, listener: Listener) -> list[Request]:
        """The requests of one listener. Takes time in proportion to all there are."""
        return [request for level in self._levels for request in level if request.listener is listener]

    def add(self, request: Request) -> None:
        """A new one; its SYN|ACK is about to leave."""
        listener = request.listener
        listener.pending += 1
        listener.young += 1
        self._layer.demux.minisocks[request.key] = request
        self._wait(request)

    def restart(self, request: Request) -> None:
        """Its SYN|ACK left anew for another reason: the time-out starts from the beginning."""
        del self._levels[request.level][request]
        self._wait(request)

    def drop(self, request: Request) -> None:
        """It is no more, one way or the other."""
        if request.opening is not None:
            request.opening.close()
        del self._levels[request.level][request]
        minisocks = self._layer.demux.minisocks
        if minisocks.get(request.key) is request:
            del minisocks[request.key]
        listener = request.listener
        listener.pending -= 1
        if not request.level:
            listener.young -= 1

    def fail(self, request: Request) -> None:
        """As `drop`: the handshake has failed."""
        self._layer.mib.count(Mib.ATTEMPT_FAILS)
        self.drop(request)

    def _wait(self, request: Request) -> None:
        levels = self._levels
        while len(levels) <= request.level:
            levels.append({})
        levels[request.level][request] = None
        request.deadline = self._layer.scheduler.now + request.timeout
        timer = self._timer
        if timer.deadline is None or request.deadline < timer.deadline:
            timer.arm(request.deadline)

    def _expire(self) -> None:
        now = self._layer.scheduler.now
        due: list[Request] = []
        for level in self._levels:
            for request in level:
                if request.deadline > now:
                    break
                due.append(request)
        for request in due:
            self._layer.mib.count(Mib.TIMEOUTS)
            if request.listener.expired(request):
                self.fail(request)
                continue
            del self._levels[request.level][request]
            if not request.level:
                request.listener.young -= 1
            request.level += 1
            self._wait(request)
        heads = [next(iter(level)).deadline for level in self._levels if level]
        if heads:
            self._timer.arm(min(heads))
