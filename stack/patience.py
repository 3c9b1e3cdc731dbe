"""How long whoever polls a Network keeps looking before it sleeps. Reads no clock: what was measured is passed in.

Theory of operation
-------------------
Waking a halted core costs about 50 us, so after traffic it may pay to keep looking for a while. It may also make things
worse. A guest is three threads: its CPU, QEMU's main loop, which turns our calls into interrupts, and we; where they
and whatever else runs share two cores, a spinner keeps from its core just who would send what it waits for. Nothing
that can be seen from inside tells one case from the other: spins are preempted in both.

So it is tried. Waits come in blocks of `BLOCK`. Most go by the favourite, spinning or sleeping; now and then a block
goes by the other, and if its waits were shorter, that one is the favourite from then on. The longer a favourite has
held out, the more blocks pass before the next trial, up to `LONGEST`; after a change the next trial follows soon.
Spinning costs a core, so it must win clearly: sleeping is preferred where waits are as long, which is so where they are
much longer than any spin (all count as `MAX_WAIT` then).
"""

from __future__ import annotations

from typing import Final

from stack.scheduler import NS_PER_US

#: The longest spin, ns: longer than a guest under TCG takes from our answer to its next question (180 to 300 us), or we
#: would fall asleep just before it comes.
MAX_SPIN: Final = 500 * NS_PER_US
#: What a longer wait counts as, ns: one pause must not outweigh all other waits of a block.
MAX_WAIT: Final = 4 * MAX_SPIN
#: Waits that are compared with as many others.
BLOCK: Final = 32
#: Blocks between two trials, at most.
LONGEST: Final = 32


class Patience:
    """`window` before a wait, `learn` when it is over."""

    __slots__ = ("_blocks", "_favourite", "_hold", "_left", "_spins", "_standard", "_total")

    def __init__(self) -> None:
        self._favourite = self._spins = True  # spinning; what is done in this block
        self._left = BLOCK  # waits to come in this block
        self._total = 0  # ns waited in it
        self._standard = 0  # ns waited in the favourite's last block
        self._hold = 1  # blocks from one trial to the next
        self._blocks = 1  # blocks left until then

    def window(self) -> int:
        """Nanoseconds to look for."""
        return MAX_SPIN if self._spins else 0

    def learn(self, waited: int) -> None:
        """A wait took `waited` ns."""
        self._total += min(waited, MAX_WAIT)
        self._left -= 1
        if not self._left:
            self._compare()

    def _compare(self) -> None:
        """A block is over."""
        total, self._total, self._left = self._total, 0, BLOCK
        favourite = self._favourite
        if self._spins is favourite:
            self._standard = total
            self._blocks -= 1
            if not self._blocks:
                self._spins = not favourite
            return
        spun, slept = (self._standard, total) if favourite else (total, self._standard)
        best = spun < slept - slept // 16
        if best is favourite:
            self._hold = min(2 * self._hold, LONGEST)
        else:
            self._favourite, self._hold = best, 1
        self._spins, self._blocks = best, self._hold
