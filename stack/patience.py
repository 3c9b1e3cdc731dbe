"""How long whoever polls a Network keeps looking before it sleeps. Reads no clock: what was measured is passed in.

Theory of operation
-------------------
Waking a halted core costs about 50 us, so after traffic it pays to keep looking for a while - if it outlasts the wait.
Hence a spin is the longest allowed or none at all. How long waits take is learnt from those that ended.

And it pays only on a core nobody else wants. A guest is three threads: its CPU, QEMU's main loop, which turns our
calls into interrupts, and we. On two cores the main loop gets none while we spin; a spinner has used up its share
when the message comes and is preempted just then, whereas a sleeper is let in at once. Whether somebody wants the core
shows in the spin itself: it took longer than it cost CPU time. Then the next waits are slept through, twice as many
each time it is found again, up to `MAX_ABSTAIN`; a spin that was left alone halves that.
"""

from __future__ import annotations

from typing import Final

from stack.scheduler import NS_PER_US

#: The longest wait worth spinning for, ns.
MAX_SPIN: Final = 200 * NS_PER_US
#: A spin that lost more than this to others (ns) was on a core they want.
STOLEN: Final = 15 * NS_PER_US
#: Waits to sleep through after such a spin.
MIN_ABSTAIN: Final = 8
MAX_ABSTAIN: Final = 1024


class Patience:
    """`window` before a wait, `spun` after spinning in it, `learn` when it is over."""

    __slots__ = ("_abstain", "_left", "_typical")

    def __init__(self) -> None:
        self._typical = MAX_SPIN // 4
        self._abstain = MIN_ABSTAIN  # waits to sleep through when a core turns out to be wanted
        self._left = 0  # of these

    def window(self) -> int:
        """Nanoseconds to look for."""
        return 0 if self._left or 2 * self._typical >= 3 * MAX_SPIN else MAX_SPIN

    def spun(self, wall: int, cpu: int) -> None:
        """A spin is over that took `wall` ns, of which the thread ran for `cpu` ns."""
        if wall - cpu > STOLEN:
            self._left = self._abstain
            self._abstain = min(2 * self._abstain, MAX_ABSTAIN)
        elif self._abstain > MIN_ABSTAIN:
            self._abstain //= 2

    def learn(self, waited: int) -> None:
        """A wait took `waited` ns. One long pause counts little: it is capped before it is averaged.

        A wait that was slept through includes the time a halted core takes to wake: `window` allows for half as much
        again before it gives spinning up.
        """
        if self._left:
            self._left -= 1
        self._typical += (min(waited, 4 * MAX_SPIN) - self._typical) >> 3
