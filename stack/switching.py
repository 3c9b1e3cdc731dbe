"""How long a compute-bound Python thread may keep the interpreter to itself while this process serves a network.

Theory of operation
-------------------
CPython hands the GIL over on request after `sys.getswitchinterval()`, 5 ms by default. Beside a compute-bound thread,
whoever polls a Network waits that long whenever it comes back from a sleep and has to take the GIL anew: a round trip
of microseconds takes milliseconds. A shorter interval helps then, and only then; among threads that all use the Network
it makes things worse, because they are torn from each other's work (measurements in
docs/decisions/0002-switch-interval.md). So the interval is left alone until there is evidence, and given back when the
evidence is gone.

Evidence is a stretch of time (`WINDOW`) in which the process's *other* threads used a good part of a core without
calling into the Network much: computing, not waiting for us. It costs three clock readings per stretch. The interval
is the interpreter's, so one `SwitchInterval` serves all Networks of the process.

Like everything but the runner this file reads no clock: readings are passed in.
"""

from __future__ import annotations

import sys
from typing import Final

from stack.scheduler import NS_PER_MS, NS_PER_S

#: Seconds; measured to give a flood its fair share and a round trip the least delay.
SHORT: Final = 100e-6
#: How long a stretch is looked at, ns.
WINDOW: Final = 50 * NS_PER_MS
#: A stretch is over, whatever was seen, if nobody looked for this long, ns.
STALE: Final = 1 * NS_PER_S
#: Share of a core that others must have used. Low, because on a busy machine a thread gets no more.
BUSY_SHARE: Final = 0.2
#: Socket calls a second above which the others count as users of the Network, not as computing.
BUSY_CALLS: Final = 2000


class SwitchInterval:
    """Shortens the interpreter's switch interval while it pays. Call `look` now and then, `restore` at the end."""

    __slots__ = ("_before", "_calls", "_looker", "_others", "_since")

    def __init__(self) -> None:
        self._before: float | None = None  # what we found, while ours is in force
        self._since = 0
        self._others = 0
        self._calls = 0
        self._looker = 0

    @property
    def shortened(self) -> bool:
        return self._before is not None

    def due(self, now: int) -> bool:
        """Whether a stretch is complete, so that it is worth reading the CPU clocks for `look`."""
        return now - self._since >= WINDOW

    def look(self, now: int, looker: int, others: int, calls: int) -> None:
        """`now` (ns), who looks, CPU time used by all threads but him so far (ns), socket calls made so far."""
        span = now - self._since
        if span < STALE and looker == self._looker:
            busy = others - self._others >= BUSY_SHARE * span
            using = (calls - self._calls) * NS_PER_S >= BUSY_CALLS * span
            if busy and not using:
                self._shorten()
            else:
                self.restore()
        self._since, self._looker, self._others, self._calls = now, looker, others, calls

    def _shorten(self) -> None:
        current = sys.getswitchinterval()
        if self._before is None and current > SHORT:
            self._before = current
            sys.setswitchinterval(SHORT)

    def restore(self) -> None:
        """Give back what was found, unless somebody else has changed it meanwhile. Idempotent."""
        before, self._before = self._before, None
        if before is not None and abs(sys.getswitchinterval() - SHORT) < 1e-6:
            sys.setswitchinterval(before)
