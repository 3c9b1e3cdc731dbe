"""A clock that moves only when it is told to: hand it to `Network(clock=...)` to run a network in virtual time."""

from __future__ import annotations

from stack.scheduler import NS_PER_S


class ManualClock:
    """Nanoseconds that stand still. Calling it reads it, as one calls `time.monotonic_ns`."""

    __slots__ = ("_now",)

    def __init__(self, now: int = NS_PER_S) -> None:
        """`now`: the first reading, in ns. Not 0, so that "never" and "at the start" differ."""
        self._now = now

    def __call__(self) -> int:
        return self._now

    def advance(self, delay: int) -> None:
        """Move on by `delay` ns, not negative. Nothing happens until the Network is polled."""
        self.advance_to(self._now + delay)

    def advance_to(self, now: int) -> None:
        """Move on to `now`. Raises ValueError for going back."""
        if now < self._now:
            raise ValueError(f"a clock cannot go back from {self._now} to {now} ns")
        self._now = now
