"""Urgent data: RFC 9293 section 3.8.5 on the wire, as RFC 6093 found it in use, and "out of band" as Linux shows it.

Theory of operation
-------------------
The protocol knows no out-of-band data, only a pointer into the stream. Everybody reads it as "one past the urgent
byte" (RFC 6093 section 3.1; Linux with tcp_stdurg = 0), and sockets make the last byte before it special: at most one
is kept, it is taken by MSG_OOB and left out of the stream, unless SO_OOBINLINE; a read never runs across it.

One `Urgent` per connection that ever met urgent data, in either direction; `Pcb.urgent` is None for all others, and
header prediction is off only while a byte is announced and not there yet.

Sending, `dress` marks every segment that begins before the end of the urgent data, cutting superframes into segments
up to there: no device would move the pointer along.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from stack.tcp.seqnum import unwrap
from stack.wire.tcp import ACK, URG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.tcp.pcb import Pcb
    from stack.tcp.segment import Segment

_POINTER: Final = slice(18, 20)  # of the header
_SEQ: Final = slice(4, 8)
FARTHEST: Final = 0xFFFF  # what a pointer can say


class UrgentByte(IntEnum):
    """What became of the urgent byte (Linux TCP_URG_*)."""

    NONE = 0  #: there is none, or the stream was read beyond it
    AWAITED = 1  #: announced, not arrived
    HELD = 2  #: arrived, to be had by MSG_OOB
    TAKEN = 3


class Urgent:
    __slots__ = ("byte", "end", "seq", "state")

    def __init__(self, end: int) -> None:
        self.end = end  #: SND.UP: one past the last urgent byte we send; urgent mode while it is not acknowledged
        self.state = UrgentByte.NONE
        self.seq = 0  #: sequence number of the peer's urgent byte
        self.byte = 0

    # --- receiving -----------------------------------------------------------------------------------------------

    def announce(self, connection: Pcb, seq: int) -> None:
        """The peer's urgent byte has sequence number `seq`; older and repeated news changes nothing."""
        receiver = connection.receiver
        at = receiver.read_seq
        if seq < max(at, receiver.rcv_nxt) or (self.state and seq <= self.seq):
            return
        if self.state and self.seq == at and not connection.options.oob_inline and receiver.queue.length:
            receiver.queue.discard(1)  # an unread urgent byte next in line never becomes ordinary data
        self.state = UrgentByte.AWAITED
        self.seq = seq
        connection.predict()
        connection.event = True

    def catch(self, connection: Pcb, seg: Segment) -> None:
        """Take the byte that was announced, if `seg` holds it."""
        at = self.seq - seg.seq
        if 0 <= at < len(seg.payload):
            self.byte = seg.payload[at]
            self.state = UrgentByte.HELD
            connection.predict()
            connection.event = True

    def at_mark(self, connection: Pcb) -> bool:
        """The urgent byte is next to be read, or was before it was taken (SIOCATMARK)."""
        return bool(self.state) and self.seq == connection.receiver.read_seq

    def bound(self, connection: Pcb, limit: int, offset: int = 0) -> tuple[int, int]:
        """What a read of `limit` bytes from `offset` on may take: (bytes to skip, bytes to read)."""
        if self.state:
            ahead = self.seq - connection.receiver.read_seq - offset
            if ahead == 0:
                if not connection.options.oob_inline:
                    return 1, limit
            elif 0 < ahead < limit:
                return 0, ahead
        return 0, limit

    def was_read(self, connection: Pcb) -> None:
        """The stream was read; beyond the urgent byte that is history."""
        if self.state and connection.receiver.read_seq > self.seq:
            self.state = UrgentByte.NONE
            connection.predict()

    # --- sending -------------------------------------------------------------------------------------------------

    def dress(
        self, connection: Pcb, plan: Sequence[tuple[int, int, int]], mss: int, *, fresh: bool
    ) -> Sequence[tuple[int, int, int]]:
        """`plan` (sequence number, bytes, flags) with URG where it belongs. `fresh`: new data."""
        end = self.end
        sender = connection.sender
        if end <= sender.snd_una:
            return plan
        sent = 0 if fresh else sender.snd_nxt
        dressed: list[tuple[int, int, int]] = []
        for seq, length, flags in plan:
            while length > mss and seq < end:
                dressed.append((seq, mss, ACK | self._flag(seq, sent)))
                seq += mss
                length -= mss
            dressed.append((seq, length, flags | self._flag(seq, sent)))
        return dressed

    def _flag(self, seq: int, sent: int) -> int:
        # As Linux: what is sent again is silent if the farthest pointer would be to something that has been sent.
        reach = seq + FARTHEST
        return URG if seq < self.end and (self.end <= reach or reach > sent) else 0

    def pointer(self, seq: int) -> int:
        """The pointer field of a segment with URG that begins at `seq`."""
        return min(self.end - seq, FARTHEST)

    def worth_probing(self, una: int) -> bool:
        """Whether a probe at SND.UNA can tell of it: the peer should know though its window is closed."""
        return una < self.end <= una + FARTHEST


def check(connection: Pcb, seg: Segment) -> None:
    """Sixth, check the URG bit (RFC 9293 section 3.10.7.4), for a segment in the window that has it, or may bring the
    byte that an earlier one announced.
    """
    urgent = connection.urgent
    if seg.flags & URG:
        if urgent is None:
            urgent = connection.urgent = Urgent(connection.sender.snd_una)
        header = seg.packet.payload
        seq = unwrap(int.from_bytes(header[_SEQ], "big"), connection.receiver.rcv_nxt)
        urgent.announce(connection, seq + max(int.from_bytes(header[_POINTER], "big") - 1, 0))
    if urgent is not None and urgent.state is UrgentByte.AWAITED:
        urgent.catch(connection, seg)
