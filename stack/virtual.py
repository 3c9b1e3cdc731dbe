"""Blocking calls in virtual time, for a Network with a clock that can be moved (`stack.testing.clock.ManualClock`).

There is nothing to wait for: the calling thread runs the world itself, turn after turn, and moves the clock from one
deadline to the next, until its call is ready or due. A whole afternoon of time-outs passes in milliseconds, and the
same way every time. A second thread that blocks would make the order of things depend on the scheduler of the real
world, so it is an error; so is a call that nothing will ever end.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from stack.errors import NetError
from stack.network import closed_error
from stack.scheduler import NS_PER_S
from stack.socket.base import AGAIN, Again, Timeout
from stack.socket.poll import ALWAYS, Pollee

if TYPE_CHECKING:
    from stack.network import Network

T = TypeVar("T")

#: A call that is still blocked after this long, ns, never ends.
HORIZON: Final = 7 * 24 * 3600 * NS_PER_S


class _Flag:
    """The observer of a call that runs the world itself."""

    __slots__ = ("events", "ready")

    def __init__(self, events: int, ready: bool) -> None:
        self.events = events
        self.ready = ready

    def update(self, bits: int) -> None:
        if bits & self.events:
            self.ready = True


class VirtualRunner:
    """Blocking in virtual time: the world is run, deadline by deadline, until the call is ready or due."""

    def __init__(
        self,
        network: Network,
        clock: Callable[[], int],
        advance_to: Callable[[int], None],
        thread: Callable[[], int],
    ) -> None:
        """`advance_to` moves `clock`; `thread` tells one calling thread from another."""
        self.network = network
        self.clock = clock
        self._advance_to = advance_to
        self._thread = thread
        self._blocked: int | None = None  # the thread that is inside

    def attend(self) -> None:
        """Whoever blocks runs the world."""

    def glance(self, *_: object) -> Again:
        """Time does not pass while somebody looks."""
        return AGAIN

    def block_on(
        self, pollee: Pollee, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        me = self._thread()
        if self._blocked not in (None, me):
            raise RuntimeError(
                "a second thread would block in a Network that runs in virtual time; "
                "use one thread, or a Network with the real clock"
            )
        network = self.network
        with network.lock:
            self._blocked = me
            flag = _Flag(events | ALWAYS, ready=True)
            pollee.observe(flag)
            try:
                return self._run(flag, timeout, attempt, args)
            finally:
                pollee.forget(flag)
                self._blocked = None

    def _run(
        self, flag: _Flag, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        network = self.network
        scheduler = network.scheduler
        start = now = self.clock()
        deadline = start + (HORIZON if timeout is None else timeout)
        while True:
            if network.closed:
                raise closed_error()
            if flag.ready:
                flag.ready = False
                scheduler.now = now
                try:
                    result = attempt(*args)
                finally:
                    network.finish()
                if result is not AGAIN:
                    return result
            if network.turn(now, network.events()) or flag.ready:
                continue
            if network.hot and network.arm():
                continue
            due = scheduler.next_deadline()
            if timeout is None and (due is None or due > deadline):
                raise NetError(errno.EDEADLK, self._deadlock(due))
            if due is None or due > deadline:
                self._advance_to(deadline)
                return AGAIN
            now = max(due, now)
            self._advance_to(now)

    @staticmethod
    def _deadlock(due: int | None) -> str:
        why = "nothing else is going to happen" if due is None else f"nothing came of {HORIZON // NS_PER_S} seconds"
        return f"this call would block for ever: {why} in virtual time"

    @property
    def occupied(self) -> bool:
        return False  # with one thread, nobody can be inside while another closes

    def nudge(self) -> None:
        """Nobody sleeps in virtual time."""

    def rouse(self) -> None:
        """Nor is anybody parked."""

    def start(self) -> None:
        """The world moves only when somebody blocks or polls."""

    def stop(self) -> None:
        """Nothing was started."""
