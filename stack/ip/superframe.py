"""The packets a received superframe stands for, for those who must see them one by one.

Most need not: TCP takes the whole, UDP queues it as one. But an ICMP error quotes a packet that somebody sent, and a
raw socket is shown what was on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final

from stack.ip.packet import IpPacket
from stack.link.device import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM
from stack.link.offload import OffloadError, segment
from stack.wire import tcp, udp
from stack.wire.checksum import pseudo_sum

if TYPE_CHECKING:
    from stack.link.device import TxFrame

_U16: Final = Struct("!H")
_TCP_CHECKSUM: Final = 16


def packets_of(packet: IpPacket) -> Sequence[IpPacket]:
    """`packet` cut as its sender would have cut it, checksums complete; itself if it is no superframe."""
    if not packet.gso_size:
        return (packet,)
    try:
        pieces = segment(_superframe(packet))
    except OffloadError:
        return (packet,)
    return [_piece(packet, piece) for piece in pieces]


def _superframe(packet: IpPacket) -> TxFrame:
    """The frame it came in, facts and partial checksum as a sender leaves them."""
    transport = packet.start + packet.header_length
    frame = bytearray(packet.frame[: packet.start + packet.total_length])
    if packet.proto == udp.PROTO:
        gso_type, offset = GSO_UDP_L4, udp.CHECKSUM_OFFSET
    else:
        gso_type, offset = GSO_TCPV4 if packet.version == 4 else GSO_TCPV6, _TCP_CHECKSUM
    if len(packet.payload) < (udp.HEADER_LENGTH if packet.proto == udp.PROTO else tcp.HEADER_LENGTH):
        raise OffloadError("no whole transport header")
    partial = pseudo_sum(packet.src, packet.dst, packet.proto, len(packet.payload))
    _U16.pack_into(frame, transport + offset, partial)
    return (bytes(frame),), NEEDS_CSUM, gso_type, 0, packet.gso_size, transport, offset


def _piece(packet: IpPacket, piece: TxFrame) -> IpPacket:
    frame = memoryview(b"".join(piece[0]))
    start, header_length = packet.start, packet.header_length
    return IpPacket(
        packet.version,
        packet.src,
        packet.dst,
        packet.proto,
        packet.ttl,
        packet.tos,
        frame[start + header_length :],
        True,
        0,
        packet.iface,
        frame,
        start,
        header_length,
        len(frame) - start,
        packet.kind,
    )
