"""When what waits to be read came: of connections whose user asks for it (SO_TIMESTAMP and its likes)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.tcp.receiver import Receiver

#: Moments kept apart; when so many are unread the newest stands for what follows, as it does in Linux for segments
#: that were put together.
MOST: Final = 1024


class ReceiveTimes:
    """A list of (end, when) by sequence number, from the moment it was asked for."""

    __slots__ = ("_marks", "_receiver", "_since")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._since = receiver.rcv_nxt
        self._marks: deque[tuple[int, int]] = deque()

    def note(self, end: int, now: int) -> None:
        """What goes up to `end` came at `now`, ns."""
        marks = self._marks
        if len(marks) >= MOST:
            self._forget()
        if marks and (marks[-1][1] == now or len(marks) >= MOST):
            marks[-1] = end, now
        else:
            marks.append((end, now))

    def before(self, seq: int) -> int | None:
        """When the byte before `seq` came, ns; None if that is not known."""
        if seq <= self._since:
            return None
        when = next((moment for end, moment in self._marks if end >= seq), None)
        self._forget()
        return when

    def _forget(self) -> None:
        """What has been read is of no interest, but for the segment it ended with."""
        marks = self._marks
        read = self._receiver.read_seq
        while marks and marks[0][0] < read:
            marks.popleft()
