"""One received segment, as the state ladders look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.wire.tcp import ACK, FIN, RST, SYN, HeaderOptions, flag_letters

if TYPE_CHECKING:
    from stack.ip.packet import IpPacket


class Segment:
    """Made for every segment that the fast path of `TcpLayer.input` does not take.

    ``seq`` and ``ack`` are wire values until the connection replaced them by endless ones (see `seqnum`).
    """

    __slots__ = ("ack", "bare", "flags", "gso_size", "options", "packet", "payload", "seq", "window")

    def __init__(
        self,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        payload: memoryview,
        options: HeaderOptions,
        packet: IpPacket,
    ) -> None:
        self.seq = seq  #: SEG.SEQ
        self.ack = ack  #: SEG.ACK
        self.flags = flags
        self.window = window  #: SEG.WND, as sent: unscaled 16 bits
        self.payload = payload
        self.options = options
        self.packet = packet
        self.gso_size = packet.gso_size
        #: as it arrived: nothing but an ACK (the ladder trims `payload` and `flags` later)
        self.bare = not payload and not flags & (SYN | FIN)

    @property
    def length(self) -> int:
        """SEG.LEN: payload bytes, and one each for SYN and FIN."""
        flags = self.flags
        return len(self.payload) + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)

    @property
    def end(self) -> int:
        """The sequence number after its last one."""
        return self.seq + self.length

    @property
    def is_bare_syn(self) -> bool:
        return self.flags & (SYN | ACK | RST) == SYN

    def __repr__(self) -> str:
        return f"Segment({flag_letters(self.flags)} seq={self.seq} ack={self.ack} length={self.length})"
