"""The interface `lo`: besides frames it carries what their sender noted on them (SO_MARK, SO_PRIORITY).

Marks and priorities are no part of a packet. They go by no wire, but a receiver on the same host is told of them if it
asks (SO_RCVMARK, SO_RCVPRIORITY), because Linux's buffers take them along. Here they are in the offload flags of a
frame above the eight bits that devices know, on `lo` and nowhere else.
"""

from __future__ import annotations

from typing import Final

from stack.iface.interface import Interface

#: A frame's flags from here on are its note: the mark in the lower 32 bits, the priority above.
NOTE_SHIFT: Final = 8
_WORD: Final = 0xFFFFFFFF


def note_of(mark: int, priority: int) -> int:
    """The two as one number, 0 for neither."""
    return mark & _WORD | (priority & _WORD) << 32


def mark_and_priority(note: int) -> tuple[int, int]:
    """What `note_of` was given, both as unsigned."""
    return note & _WORD, note >> 32


class LoopbackInterface(Interface):
    """`lo` of a network namespace."""

    @property
    def fresh(self) -> int:
        """How many frames were queued in this turn so far."""
        return len(self._queue)

    def annotate(self, start: int, note: int) -> None:
        """Put `note` on the frames queued since `fresh` was `start`."""
        queue = self._queue
        for index in range(start, len(queue)):
            parts, flags, *facts = queue[index]
            queue[index] = (parts, flags | note << NOTE_SHIFT, *facts)  # type: ignore[assignment]  # same arity
