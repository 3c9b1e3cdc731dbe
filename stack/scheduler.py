"""Time, randomness and deferred work, handed to every layer of a Network.

Theory of operation
-------------------
Protocol code here is sans-IO: it never reads a clock, draws a random number or waits. Everything joined together
in one `stack.network.Network` shares one `Scheduler`, which carries

* ``now``: nanoseconds of a monotonic clock, set once per turn by the Network and constant during it;
* ``epoch``: what to add to ``now`` for the nanoseconds since 1970 that time stamps tell; 0 in virtual time;
* ``rng``: the only source of randomness (ports, ISNs, jitter), so that a seed reproduces a run exactly;
* a heap of `Timer` objects. Re-arming a timer is the commonest operation (an RTO moves with every ACK), so the
  heap is lazy: a timer keeps its true deadline in an attribute and at most one live heap entry. Moving the
  deadline later costs one attribute store; the entry is re-queued when it comes up early.
* ``defer(callback)``: work to be done once at the end of the current turn, however often it is asked for. It is how
  a burst of forty segments is answered by one ACK and one transmit call.

None of it locks: whoever calls holds the Network's lock (or owns the only thread).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, Protocol

NS_PER_US: Final = 1_000
NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000


class Randomness(Protocol):
    """The part of `random.Random` that protocols use; `random.SystemRandom` and a seeded `Random` both fit."""

    def random(self) -> float: ...
    def getrandbits(self, k: int, /) -> int: ...
    def randrange(self, start: int, stop: int, /) -> int: ...


class Timer:
    """A deadline and what to do then. Owned by one protocol object, re-armed for as long as that lives."""

    __slots__ = ("_scheduler", "callback", "deadline", "entry")

    def __init__(self, scheduler: Scheduler, callback: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self.callback = callback
        self.deadline: int | None = None  #: absolute nanoseconds, None while not armed
        self.entry: int | None = None  #: deadline of its live heap entry; the Scheduler's business

    def arm(self, deadline: int) -> None:
        """Fire at `deadline` (absolute ns), replacing an earlier arming."""
        self.deadline = deadline
        if self.entry is None or deadline < self.entry:
            self.entry = deadline
            self._scheduler.push(deadline, self)

    def arm_in(self, delay: int) -> None:
        """Fire `delay` ns after the current turn's time."""
        self.arm(self._scheduler.now + delay)

    def cancel(self) -> None:
        """Not to fire any more. Idempotent; the heap entry is dropped when it comes up."""
        self.deadline = None

    @property
    def armed(self) -> bool:
        return self.deadline is not None


class Scheduler:
    """One per Network: ``now``, ``rng``, timers, and work deferred to the end of a turn."""

    __slots__ = ("_sequence", "deferred", "epoch", "heap", "now", "rng", "sole")

    def __init__(self, *, rng: Randomness, now: int = 0) -> None:
        self.now = now
        self.epoch = 0
        self.rng = rng
        self.heap: list[tuple[int, int, Timer]] = []  #: (deadline, order of arming, timer); some superseded
        self._sequence = 0
        self.deferred: dict[Callable[[], None], None] = {}  #: asked for, in this order
        self.sole = False  #: while deferred work runs: nothing else was asked for when it began

    def timer(self, callback: Callable[[], None]) -> Timer:
        return Timer(self, callback)

    def push(self, deadline: int, timer: Timer) -> None:
        """Queue a heap entry; called by `Timer` alone."""
        self._sequence += 1
        heapq.heappush(self.heap, (deadline, self._sequence, timer))

    def run_timers(self) -> int:
        """Fire every timer due at ``now``; returns how many. A callback that re-arms into the past runs next turn."""
        heap = self.heap
        now = self.now
        fired: list[Timer] = []
        while heap and heap[0][0] <= now:
            entry_deadline, _, timer = heapq.heappop(heap)
            if timer.entry != entry_deadline:
                continue  # superseded by an earlier entry
            timer.entry = None
            deadline = timer.deadline
            if deadline is None:
                continue
            if deadline > now:  # moved later since: re-queue at its true place
                timer.entry = deadline
                self.push(deadline, timer)
                continue
            fired.append(timer)
        for timer in fired:
            # An earlier callback of this turn may have cancelled or moved it.
            if timer.deadline is not None and timer.deadline <= now:
                timer.deadline = None
                timer.callback()
        return len(fired)

    def next_deadline(self) -> int | None:
        """When the earliest armed timer is due (absolute ns), or None. Drops dead heap entries on the way."""
        heap = self.heap
        while heap:
            entry_deadline, _, timer = heap[0]
            if timer.entry == entry_deadline and timer.deadline == entry_deadline:
                return entry_deadline
            heapq.heappop(heap)
            if timer.entry == entry_deadline:
                timer.entry = None
                if timer.deadline is not None:
                    timer.entry = timer.deadline
                    self.push(timer.deadline, timer)
        return None

    def defer(self, callback: Callable[[], None]) -> None:
        """Call `callback` once at the end of this turn. Asking again before then changes nothing.

        Pass the same bound-method object each time (bound methods compare equal, so `self.flush` does).
        """
        self.deferred[callback] = None

    def run_deferred(self) -> int:
        """Run deferred work in the order it was first asked for, including what it defers itself."""
        count = 0
        deferred = self.deferred
        while deferred:
            if len(deferred) == 1:
                self.sole = True
                deferred.popitem()[0]()
                count += 1
                continue
            batch = tuple(deferred)
            deferred.clear()
            self.sole = False
            for callback in batch:
                callback()
            count += len(batch)
        self.sole = False
        return count

    @property
    def has_deferred(self) -> bool:
        return bool(self.deferred)
