"""Calls to the guest that can wait, for what we put into its receive ring (docs/decisions/0042).

What it is told of at once is the rule. Who ends a conversation does not wait for an answer in it, and who is in the
middle of a bulk transfer has more to send than what is acknowledged: an interrupt for either costs the guest more than
it brings. For these the call is owed: it comes with the next one, after so many looks for work in vain, or before we
sleep. What leaves while nobody looks (a program closes a socket, and everybody else is asleep) is told of at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vhost_user._vring import lib

from .virtqueue import OWED_LOOKS

if TYPE_CHECKING:
    from .virtqueue import Virtqueue

#: A call for an acknowledgment in a bulk transfer is owed for so many looks in vain: 0.1 ms to 0.2 ms.
ACK_LOOKS: Final = OWED_LOOKS // 2
#: Who has sent so many bytes in one burst sends faster than we read, and soon waits for an acknowledgment. A guest
#: under TCG, whom an interrupt costs most, has sent a few superframes by then.
FLOOD: Final = 256 << 10
#: Of a TCP segment: where its checksum and its flags are; two of these.
_TCP_CHECKSUM: Final = 16
_TCP_FLAGS: Final = 13
_FIN: Final = 1
_ACK: Final = 16


def patience(header: bytes | bytearray | memoryview, start: int, offset: int, heard: int) -> int:
    """For how many looks in vain the guest may be left unaware of a frame that is headers alone; 0: for none.

    The frame's checksum belongs at `start` + `offset` of it; the last burst from the guest was of `heard` bytes.
    """
    if offset != _TCP_CHECKSUM:
        return 0
    flags = header[start + _TCP_FLAGS]
    if flags & _FIN:
        return OWED_LOOKS
    return ACK_LOOKS if flags == _ACK and lib.VNET_BULK <= heard < FLOOD else 0


class OwedCall:
    """Which ring may owe its guest a call, and for how many looks in vain."""

    __slots__ = ("_each", "_ring", "looking")

    def __init__(self) -> None:
        self.looking = False  #: somebody looks for work, so there will be looks in vain, or he is about to sleep
        self._ring: Virtqueue | None = None
        self._each = 1  # what a look in vain counts

    def note(self, ring: Virtqueue, looks: int) -> None:
        """`ring` is about to owe a call for `looks`."""
        self._ring = ring
        self._each = OWED_LOOKS // looks

    def look(self) -> None:
        """One more was in vain."""
        if self._ring is not None:
            self._ring.elapse(self._each)

    def settle(self) -> None:
        """Nothing is owed from here on."""
        if self._ring is not None:
            self._ring.elapse(OWED_LOOKS)
            self._ring = None
