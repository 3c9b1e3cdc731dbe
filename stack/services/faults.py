"""Faults on demand: how a service misbehaves towards its clients, for tests of what they make of it.

Every service has a `faults`. What is injected is tried in order against each request; the first that matches happens,
as often as it was asked for. A fault drops the request, delays the answer, or alters it: the answer is made as always
and then handed to `alter`, which returns another, or None for none.

    dns.faults.inject(drop=True, times=2)                       # the client must ask three times
    dhcp.faults.nak(times=1)
    advertiser.faults.inject(alter=lambda request, answer: ...)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from stack.scheduler import NS_PER_S, Scheduler, Timer

Q = TypeVar("Q")
A = TypeVar("A")

#: Answers held back at a time; more are sent at once.
MAX_DELAYED: Final = 256


@dataclass(eq=False, slots=True)
class Fault(Generic[Q, A]):
    """One thing that goes wrong. `happened` counts."""

    when: Callable[[Q], bool]
    times: int | None  #: how often yet; None: until it is removed
    drop: bool
    delay: int  #: ns
    alter: Callable[[Q, A], A | None] | None
    happened: int = 0


class Faults(Generic[Q, A]):
    """Those of one service: requests are of type `Q`, answers of type `A`."""

    def __init__(self) -> None:
        self._faults: list[Fault[Q, A]] = []

    def inject(
        self,
        *,
        drop: bool = False,
        delay: float = 0.0,
        alter: Callable[[Q, A], A | None] | None = None,
        times: int | None = None,
        when: Callable[[Q], bool] = lambda _: True,
    ) -> Fault[Q, A]:
        """From now on, for the next `times` requests that `when` is true of. `delay` in seconds.

        `when` and `alter` run with the Network's lock held: they must not wait, and their exceptions are yours. Raises
        ValueError for a fault that would do nothing, or a negative number.
        """
        if not drop and not delay and alter is None:
            raise ValueError("a fault drops, delays or alters")
        if delay < 0 or (times is not None and times < 1):
            raise ValueError("a delay is not negative, and times is at least 1")
        fault = Fault(when, times, drop, int(delay * NS_PER_S), alter)
        self._faults.append(fault)
        return fault

    def remove(self, fault: Fault[Q, A]) -> None:
        """Not any more. One that is used up is no error."""
        if fault in self._faults:
            self._faults.remove(fault)

    def clear(self) -> None:
        """All is well again."""
        self._faults.clear()

    def take(self, request: Q) -> Fault[Q, A] | None:
        """What happens to `request`; called by the service, once for each."""
        for fault in self._faults:
            if fault.when(request):
                fault.happened += 1
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                return fault
        return None


class Later:
    """Answers that go out later. `close` forgets them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._timers: set[Timer] = set()

    def call(self, delay: int, action: Callable[[], None]) -> None:
        """`action` after `delay` ns; at once for none, and when too many wait."""
        if not delay or len(self._timers) >= MAX_DELAYED:
            action()
            return

        def due() -> None:
            self._timers.discard(timer)
            action()

        timer = self._scheduler.timer(due)
        self._timers.add(timer)
        timer.arm_in(delay)

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
