"""What stands in for a connection where a whole one would be too much: before the handshake ends, after the last FIN.

Linux calls them minisocks. `request.Request` is a half-open connection in the SYN queue, `timewait.TimeWait` one in
TIME-WAIT. Each is a few hundred bytes where a `Connection` is thousands, so a flood of them is affordable. They are
found by their 4-tuple as connections are (`Demux.minisocks`), and answer on the spot with single segments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, NetError
from stack.scheduler import NS_PER_MS
from stack.tcp.options import DEFAULT_TTL
from stack.tcp.output import PLAIN, PLAIN_LENGTH
from stack.tcp.seqnum import MASK
from stack.wire.checksum import pseudo_sum
from stack.wire.ipoptions import first_hop
from stack.wire.tcp import CHECKSUM_OFFSET, PROTO, HeaderOptions

if TYPE_CHECKING:
    from stack.ip.packet import IcmpError
    from stack.tcp.demux import Key
    from stack.tcp.layer import TcpLayer
    from stack.tcp.mib import Mib
    from stack.tcp.segment import Segment

UNCUT: Final = 48  # bytes of segment: with the IPv4 header 68, which every link passes (RFC 791 section 3.2)
ANSWER_INTERVAL: Final = 500 * NS_PER_MS  # ns between answers to bare out-of-window segments; tcp_invalid_ratelimit


class Minisock:
    """`key` as in `Demux`. Subclasses are entered into `Demux.minisocks` by whoever makes them."""

    __slots__ = ("deadline", "key", "layer", "next_answer", "oif")

    def __init__(self, layer: TcpLayer, key: Key, oif: int) -> None:
        self.layer = layer
        self.key = key
        self.oif = oif  #: index of the interface it is tied to, 0: any
        self.deadline = 0  #: when its table does something about it, ns
        self.next_answer = 0  #: no bare out-of-window segment is answered before, ns

    def segment(self, seg: Segment) -> None:
        """A segment for this 4-tuple."""
        raise NotImplementedError

    def icmp_error(self, error: IcmpError, seq: int) -> None:
        """Something sent from here with sequence number `seq` did not arrive."""

    @property
    def local(self) -> tuple[bytes, int]:
        return self.key[1], self.key[2] & 0xFFFF

    @property
    def remote(self) -> tuple[bytes, int]:
        return self.key[0], self.key[2] >> 16 & 0xFFFF

    def may_answer(self, seg: Segment, skipped: Mib) -> bool:
        """Whether an out-of-window segment is answered: bare ones at most twice a second, against ACK loops."""
        if seg.payload and not seg.is_bare_syn:
            return True
        now = self.layer.scheduler.now
        if now < self.next_answer:
            self.layer.mib.count(skipped)
            return False
        self.next_answer = now + ANSWER_INTERVAL
        return True


def send_single(
    layer: TcpLayer,
    key: Key,
    oif: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: HeaderOptions | None = None,
    *,
    ttl: int = DEFAULT_TTL,
    tos: int = 0,
    whole: bool = True,
    ip_options: bytes = b"",
) -> bool:
    """One segment without data, for which there is no connection; sequence numbers wrap here. False: no way there.

    `whole`: with DF; without, what passes uncut everywhere still has it, as Linux's SYN|ACKs.
    """
    remote, local, ports = key
    tail = b"" if options is None else options.emit()
    total = PLAIN_LENGTH + len(tail)
    header = PLAIN.pack(
        (ports & 0xFFFF) << 16 | ports >> 16 & 0xFFFF,
        seq & MASK,
        ack & MASK,
        (total << 10) | flags,
        window,
        pseudo_sum(local, remote, PROTO, total),
        0,
    )
    try:
        route = layer.ip.route(first_hop(ip_options) or remote, src=local, oif=oif)
        layer.ip.output(
            route,
            local,
            remote,
            PROTO,
            (header + tail,),
            total,
            ttl=ttl,
            tos=tos,
            dont_fragment=whole or total + len(ip_options) <= UNCUT,
            options=ip_options,
            csum_start_offset=CHECKSUM_OFFSET,
            header_length=total,
        )
    except NetError:
        layer.drops.count(DropReason.NO_ROUTE)
        return False
    layer.stats.segments_out += 1
    return True
