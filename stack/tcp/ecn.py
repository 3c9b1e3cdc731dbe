"""Explicit Congestion Notification (RFC 3168): marks instead of drops.

One `Ecn` per connection whose handshake agreed on it; without, `Pcb.ecn` is None and nothing costs anything. It is two
independent halves: as receiver of data it echoes CE marks (ECE) until the sender says it has reduced (CWR); as sender
it reduces once per window for an echo, and says so with the next new data. New data alone is sent as ECN-capable, never
retransmissions, bare ACKs or probes (section 6.1.4 to 6.1.6). By how much is reduced is the algorithm's matter (RFC
8511).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stack.wire.tcp import ACK, CWR, ECE, RST, SYN

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb
    from stack.tcp.segment import Segment

ECT0: Final = 2  # the codepoint for ECN-capable senders, RFC 3168 section 5
CE: Final = 3
ECN_MASK: Final = 3  # of the TOS byte or traffic class

OFF: Final = 0  # values of TcpConfig.ecn, as Linux's tcp_ecn
ASK: Final = 1
ANSWER: Final = 2


class Ecn:
    __slots__ = ("ce_bytes", "cwr_due", "echo", "marked", "reduced_until")

    def __init__(self, iss: int) -> None:
        self.echo = False  #: CE arrived, CWR not yet: our ACKs carry ECE
        self.cwr_due = False  #: the next new data carries CWR
        self.reduced_until = iss  #: no second reduction before this is acknowledged
        self.marked = 0  #: segments received with CE
        self.ce_bytes = 0  #: bytes acknowledged together with ECE

    def arrived(self, seg: Segment) -> None:
        """A segment inside the window: section 6.1.3."""
        if seg.flags & CWR:
            self.echo = False
        if seg.packet.tos & ECN_MASK == CE and seg.length:
            self.echo = True
            self.marked += 1

    def echoed(self, connection: Pcb, acked: int) -> None:
        """An ACK with ECE: section 6.1.2."""
        sender = connection.sender
        self.ce_bytes += acked
        if sender.snd_una <= self.reduced_until:
            return
        self.reduced_until = sender.snd_max
        self.cwr_due = True
        if not sender.recovery.phase:
            sender.congestion.on_loss(sender.flight, connection.scheduler.now, ecn=True)
            sender.recovery.on_marked()

    def dress(
        self, plan: Sequence[tuple[int, int, int]], mss: int, *, fresh: bool
    ) -> tuple[Sequence[tuple[int, int, int]], int]:
        """The flags of segments about to leave, and their codepoint. `fresh`: new data."""
        if self.echo:
            plan = [(seq, length, flags if flags & RST else flags | ECE) for seq, length, flags in plan]
        if not fresh or not plan[0][1]:
            return plan, 0
        if self.cwr_due:
            # On one segment, not on all of a superframe: whatever cuts it up need not know how to do that with CWR.
            self.cwr_due = False
            seq, length, flags = plan[0]
            first = min(length, mss)
            rest = [(seq + first, length - first, flags)] if length > first else []
            plan = [(seq, first, (flags & (ACK | ECE) if rest else flags) | CWR), *rest, *plan[1:]]
        return plan, ECT0


def agreed(seg: Segment, mode: int) -> bool:
    """Whether the peer's SYN or SYN|ACK completes the agreement (section 6.1.1). `mode`: TcpConfig.ecn."""
    bits = seg.flags & (ECE | CWR)
    if seg.flags & ACK:
        return mode == ASK and bits == ECE  # both bits: a peer that merely reflects what it does not know
    return mode != OFF and bits == ECE | CWR


def syn_flags(connection: Pcb, flags: int) -> int:
    """ECE and CWR for our SYN or SYN|ACK."""
    if flags & ACK:
        return ECE if connection.ecn is not None else 0
    if flags & SYN and connection.layer.config.ecn == ASK and not connection.sender.retries:
        return ECE | CWR
    return 0  # section 6.1.1.1: the SYN again without, some middleboxes drop it otherwise
