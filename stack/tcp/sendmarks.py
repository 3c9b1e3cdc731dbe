"""What a user wants to be told of the bytes it writes: that they left, that the peer has them, that nobody holds them.

Theory of operation
-------------------
A send that asks for time stamps (SO_TIMESTAMPING) leaves a `Mark` behind its last byte; one by MSG_ZEROCOPY a number.
`Sender.marks` is None while there are none, which is nearly always: one test per burst sent and per ACK is what others
pay. The one who asked is a `Watcher`; what it makes of it is the socket's business.

As on Linux a buffer has one mark. What is written behind a mark that has not left yet moves it, if it goes into the
same superframe and the mark's send did not end the record (MSG_EOR); what is sent again is told of again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Protocol

from stack.tcp.receiver import MAX_WINDOW_FIELD
from stack.tcp.seqnum import MASK
from stack.wire.tcp import HeaderOptions, TcpHeader

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb

#: Marks kept; when there are more, the newest stands for those that follow.
MOST: Final = 4096


class Mark:
    """One send's, by sequence numbers: behind its last byte, and where the piece begins that this byte left in."""

    __slots__ = ("apart", "begin", "end", "kinds", "length", "seq")

    def __init__(self, begin: int, end: int, kinds: int, *, apart: bool) -> None:
        self.begin = begin  #: of the buffer it goes into, as far as we can tell
        self.end = end
        self.kinds = kinds  #: what was asked for; the watcher's business
        self.apart = apart  #: nothing is put behind it
        self.seq = end
        self.length = 0


_END: Final = attrgetter("end")


class Watcher(Protocol):
    """Who asked. Lock held, in the middle of a turn."""

    def left(self, mark: Mark, flags: int) -> None:
        """Its byte goes out now, in a segment with these `flags`."""

    def acknowledged(self, mark: Mark) -> None:
        """The peer has it. The bytes are still in the queue."""

    def freed(self, first: int, last: int, *, copied: bool) -> None:
        """Nobody looks any more at the memory of the sends of these numbers. `copied`: somebody did."""


class SendMarks:
    """The marks of one connection."""

    __slots__ = ("_connection", "_copies", "_stamps", "_watcher")

    def __init__(self, connection: Pcb, watcher: Watcher) -> None:
        self._connection = connection
        self._watcher = watcher
        self._stamps: list[Mark] = []  # by `end`
        self._copies: deque[tuple[int, int, int, int]] = deque()  # begin, end, first and last number

    def stamp(self, taken: int, kinds: int, *, apart: bool) -> None:
        """The send that put the last `taken` bytes into the queue asks for time stamps."""
        sender = self._connection.sender
        end = sender.queue.end
        begin = end - taken
        last = self._stamps[-1] if self._stamps else None
        if last is not None and (self._joins(last, end) or len(self._stamps) >= MOST):
            last.end = last.seq = end
            last.kinds |= kinds
            last.apart = apart
        else:
            begin += (taken - 1) // sender.superframe * sender.superframe
            self._stamps.append(Mark(begin, end, kinds, apart=apart))
        self._connection.usual = False
        sender.marks = self

    def _joins(self, last: Mark, end: int) -> bool:
        """Whether what ends at `end` goes into the buffer that `last` is in."""
        sender = self._connection.sender
        return not last.apart and last.end > sender.snd_max and end - last.begin <= sender.superframe

    def lend(self, taken: int, number: int) -> None:
        """The send that put the last `taken` bytes into the queue is zero-copy send `number`."""
        sender = self._connection.sender
        end = sender.queue.end
        copies = self._copies
        if copies and copies[-1][1] > sender.snd_max:
            copies[-1] = copies[-1][0], end, copies[-1][2], number
        else:
            copies.append((end - taken, end, number, number))
        self._connection.usual = False
        sender.marks = self

    def left(self, plan: Sequence[tuple[int, int, int]]) -> None:
        """These pieces (sequence number, payload bytes, flags) go out now, for the first time or again."""
        stamps = self._stamps
        for seq, length, flags in plan:
            if not length:
                continue
            for index in range(bisect_right(stamps, seq, key=_END), len(stamps)):
                mark = stamps[index]
                if mark.end > seq + length:
                    break
                mark.seq, mark.length = seq, length
                self._watcher.left(mark, flags)

    def acknowledged(self, ack: int) -> None:
        """The peer has what is before `ack`; the queue still does, too."""
        done = bisect_right(self._stamps, ack, key=_END)
        for mark in self._stamps[:done]:
            self._watcher.acknowledged(mark)
        del self._stamps[:done]
        while self._copies and self._copies[0][1] <= ack:
            _, _, first, last = self._copies.popleft()
            self._watcher.freed(first, last, copied=True)
        if not self._stamps and not self._copies:
            self._connection.sender.marks = None

    def ended(self) -> None:
        """The connection is over: what was not sent or not acknowledged is dropped."""
        self._stamps.clear()
        while self._copies:
            begin, _, first, last = self._copies.popleft()
            self._watcher.freed(first, last, copied=begin < self._connection.sender.snd_max)
        self._connection.sender.marks = None


def payload(connection: Pcb, mark: Mark) -> bytes:
    """Of the piece that `mark` left in, what is not acknowledged yet."""
    sender = connection.sender
    start = max(mark.seq, sender.snd_una)
    length = mark.seq + mark.length - start
    return b"".join(sender.queue.slice(start, length)) if length > 0 else b""


def segment(connection: Pcb, mark: Mark, flags: int) -> bytes:
    """The segment that `mark` leaves in, its checksum for the device to finish."""
    receiver = connection.receiver
    options = HeaderOptions()
    if connection.timestamps:
        options.timestamps = connection.timestamp(), receiver.ts_recent
    header = TcpHeader(
        connection.local[1],
        connection.remote[1],
        mark.seq & MASK,
        receiver.last_ack_sent & MASK,
        flags,
        min(receiver.rcv_adv - receiver.last_ack_sent >> receiver.shift, MAX_WINDOW_FIELD),
        options=options,
    )
    data = payload(connection, mark)
    check = connection.pseudo + len(data) + len(header.emit())
    header.checksum = (check & 0xFFFF) + (check >> 16)
    return header.emit() + data
