"""IPv6 from frame to transport: checks, extension headers, local delivery, reassembly (RFC 8200; row IF-12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stack.errors import DropReason
from stack.iface.loopback import NOTE_SHIFT
from stack.ip.input4 import transport_checksum_ok
from stack.ip.packet import IpPacket, NotedPacket, PacketKind, ReassembledPacket
from stack.ip.reassembly import TIMEOUT6, Partial, Reassembler
from stack.wire import icmpv6, mld
from stack.wire.error import WireError
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH
from stack.wire.ipv4 import PROTO_TCP, PROTO_UDP
from stack.wire.ipv6 import (
    DESTINATION_OPTIONS,
    FRAGMENT_HEADER,
    FRAGMENT_HEADER_LENGTH,
    HEADER,
    HEADER_LENGTH,
    HOP_BY_HOP,
    ICMPV6,
    LOOPBACK,
    MAX_PAYLOAD_LENGTH,
    NO_NEXT_HEADER,
    ROUTING,
    is_mapped,
    parse_fragment,
    walk_extensions,
    walk_options,
)

if TYPE_CHECKING:
    from stack.iface.hooks import Taker
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer

_EXTENSIONS: Final = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION_OPTIONS})
_PAYLOAD_START: Final = ETHERNET_LENGTH + HEADER_LENGTH
_UNICAST: Final = PacketKind.UNICAST
_MULTICAST: Final = PacketKind.MULTICAST
#: NEEDS_CSUM | DATA_VALID
_TRUSTED: Final = 3
#: Bytes of the transport headers that a first fragment must hold.
_TRANSPORT_HEADERS: Final = {PROTO_TCP: 20, PROTO_UDP: 8, ICMPV6: 4}


class Ipv6Input:
    """The receiving half of IPv6 in one network namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._local = ip.local
        self._handlers = ip.handlers6
        self._drops = ip.drops
        self.reassembler = Reassembler(ip.scheduler, ip.drops, self._reassembly_timeout, timeout=TIMEOUT6, bury=True)

    def receive(self, iface: Interface, frame: memoryview, link_kind: int, flags: int, gso_size: int) -> Taker | None:
        """One Ethernet frame of type 0x86dd. Returns who took it, if the transport says so."""
        available = len(frame) - _PAYLOAD_START
        if available < 0:
            self._drops.count(DropReason.TOO_SHORT)
            return None
        first, length, proto, hop_limit, src, dst = HEADER.unpack_from(frame, ETHERNET_LENGTH)
        if first >> 28 != 6:
            self._drops.count(DropReason.BAD_HEADER)
            return None
        if length > available:
            self._drops.count(DropReason.TRUNCATED)
            return None
        kind = self._local.get(dst)
        if kind is None:
            if iface.index in self._ip.forwarding.active6:
                self._ip.forwarding.forward6(iface, frame, link_kind, flags, gso_size)
                return None
            self._drops.count(DropReason.NOT_FOR_US)
            return None
        if kind is _MULTICAST and proto not in _EXTENSIONS and not self._ip.accepts_group(dst, iface, src):
            self._drops.count(DropReason.NOT_FOR_US)
            return None
        if src[0] == 0xFF or (not iface.loopback and self._martian(src, dst)):
            self._drops.count(DropReason.MARTIAN_SOURCE)
            return None
        if link_kind and kind is _UNICAST:
            kind = _MULTICAST
        header_length = HEADER_LENGTH
        if proto in _EXTENSIONS:
            end = _PAYLOAD_START + length
            self._extensions(iface, frame, ETHERNET_LENGTH, end, kind, flags, gso_size)
            return None
        payload = frame[_PAYLOAD_START : _PAYLOAD_START + length]
        packet = IpPacket(
            6,
            src,
            dst,
            proto,
            hop_limit,
            first >> 20 & 0xFF,
            payload,
            flags & _TRUSTED != 0 or transport_checksum_ok(src, dst, proto, payload),
            gso_size,
            iface,
            frame,
            ETHERNET_LENGTH,
            header_length,
            header_length + length,
            kind,
        )
        if flags >> NOTE_SHIFT:
            packet = NotedPacket.of(packet, flags >> NOTE_SHIFT)
        handler = self._handlers.get(proto)
        if handler is None:
            self.unknown_protocol(packet, 6)
            return None
        return handler(packet)

    def _martian(self, src: bytes, dst: bytes) -> bool:
        """Addresses that cannot come in over a wire: ::1, our own, IPv4-mapped ones (RFC 4291 2.5)."""
        return LOOPBACK in (src, dst) or src in self._local or is_mapped(src) or is_mapped(dst)

    def _extensions(
        self,
        iface: Interface,
        frame: memoryview,
        start: int,
        end: int,
        kind: PacketKind,
        flags: int,
        gso_size: int,
        largest: int = 0,
    ) -> None:
        """Walk the extension headers of the packet at ``frame[start:end]`` and deliver what they lead to. `largest`: of
        one that came in fragments.
        """
        first, _, next_header, hop_limit, src, dst = HEADER.unpack_from(frame, start)
        body = start + HEADER_LENGTH
        try:
            chain = walk_extensions(next_header, frame[body:end])
        except WireError:
            self._drops.count(DropReason.BAD_HEADER)
            return
        if chain.discard:
            self._drops.count(DropReason.BAD_HEADER)
            return
        packet = (ReassembledPacket if largest else IpPacket)(
            6,
            src,
            dst,
            chain.next_header,
            hop_limit,
            first >> 20 & 0xFF,
            frame[body + chain.offset : end],
            flags & _TRUSTED != 0,
            gso_size,
            iface,
            frame,
            start,
            HEADER_LENGTH + chain.offset,
            end - start,
            kind,
        )
        if isinstance(packet, ReassembledPacket):
            packet.largest = largest
        if chain.problem >= 0:
            self._drops.count(DropReason.BAD_HEADER)
            self._ip.icmp6.send_error(
                packet,
                icmpv6.PARAMETER_PROBLEM,
                chain.problem_code,
                HEADER_LENGTH + chain.problem,
                even_multicast=chain.problem_code == 2 and chain.even_multicast,
            )
        elif chain.next_header == FRAGMENT_HEADER:
            self._fragment(packet, HEADER_LENGTH + chain.pointer)
        else:
            if not packet.csum_ok:
                packet.csum_ok = transport_checksum_ok(src, dst, packet.proto, packet.payload)
            self._deliver(packet, HEADER_LENGTH + chain.pointer)

    def hop_by_hop_acceptable(self, packet: IpPacket) -> bool:
        """The one extension header a router looks at (RFC 8200 4.3). False: dropped, counted, the sender told."""
        data = packet.payload
        try:
            if len(data) < 8 or (data[1] + 1) * 8 > len(data):
                raise WireError("hop-by-hop header cut short")
            problem, discard = walk_options(data, 2, (data[1] + 1) * 8)
        except WireError:
            problem, discard = -1, True
        if problem >= 0:
            multicast_too = data[problem] >> 6 == 2
            self._ip.icmp6.send_error(
                packet,
                icmpv6.PARAMETER_PROBLEM,
                icmpv6.UNKNOWN_OPTION,
                HEADER_LENGTH + problem,
                even_multicast=multicast_too,
            )
        if discard or problem >= 0:
            self._drops.count(DropReason.BAD_HEADER)
            return False
        return True

    def _deliver(self, packet: IpPacket, pointer: int) -> None:
        # MLD passes: a query for a group comes from a router, whatever sources the group is joined for.
        group = packet.dst[0] == 0xFF and not _is_mld(packet)
        if group and not self._ip.accepts_group(packet.dst, packet.iface, packet.src):
            self._drops.count(DropReason.NOT_FOR_US)
            return
        handler = self._handlers.get(packet.proto)
        if handler is None:
            self.unknown_protocol(packet, pointer)
        else:
            handler(packet)

    def unknown_protocol(self, packet: IpPacket, pointer: int) -> None:
        """RFC 8200 4: parameter problem, pointing at the next-header value we do not know."""
        if packet.proto == NO_NEXT_HEADER:
            return
        self._drops.count(DropReason.UNKNOWN_PROTOCOL)
        self._ip.icmp6.send_error(packet, icmpv6.PARAMETER_PROBLEM, icmpv6.UNKNOWN_NEXT_HEADER, pointer)

    def _fragment(self, packet: IpPacket, pointer: int) -> None:
        """`packet`'s payload begins with a fragment header; `pointer` is where the header chain names it."""
        try:
            fragment, data = parse_fragment(packet.payload)
        except WireError:
            self._drops.count(DropReason.FRAGMENT_BAD)
            return
        if fragment.next_header == FRAGMENT_HEADER:
            self._drops.count(DropReason.FRAGMENT_BAD)
            return
        prefix = bytearray(packet.header)
        prefix[pointer] = fragment.next_header
        if not fragment.offset and not fragment.more:
            self._deliver_whole(packet, bytes(prefix), bytes(data))  # RFC 6946: an atomic fragment stands alone
            return
        limit = MAX_PAYLOAD_LENGTH - (packet.header_length - HEADER_LENGTH)
        if fragment.more and len(data) % 8:  # RFC 8200 4.5: pointing at the payload length
            self._drops.count(DropReason.FRAGMENT_BAD)
            self._ip.icmp6.send_error(packet, icmpv6.PARAMETER_PROBLEM, icmpv6.ERRONEOUS_FIELD, 4)
            return
        if fragment.offset + len(data) > limit:  # RFC 8200 4.5: pointing at the fragment offset
            self._drops.count(DropReason.FRAGMENT_BAD)
            self._ip.icmp6.send_error(
                packet, icmpv6.PARAMETER_PROBLEM, icmpv6.ERRONEOUS_FIELD, packet.header_length + 2
            )
            return
        if not fragment.offset and not self._whole_chain(fragment.next_header, data):
            self._drops.count(DropReason.FRAGMENT_BAD)
            self._ip.icmp6.send_error(packet, icmpv6.PARAMETER_PROBLEM, icmpv6.INCOMPLETE_CHAIN, 0)
            return
        size = packet.total_length
        if not fragment.offset:
            quoted = packet.datagram[: packet.header_length + FRAGMENT_HEADER_LENGTH + 8]
            context: Any = (packet, bytes(prefix), bytes(quoted))
            # Keep what identifies the packet, not the frame it came in.
            packet.frame = memoryview(context[2])
            packet.start = 0
            packet.total_length = len(context[2])
            packet.payload = packet.frame[packet.header_length :]
        else:
            context = None
        key = (packet.src, packet.dst, -1, fragment.ident)
        whole = self.reassembler.add(key, fragment.offset, fragment.more, data, context, limit, size)
        if whole is not None:
            payload, (first, first_prefix, _) = whole
            self._deliver_whole(first, first_prefix, payload, self.reassembler.largest)

    @staticmethod
    def _whole_chain(next_header: int, data: memoryview) -> bool:
        """RFC 7112: does a first fragment hold all headers, the transport's included?"""
        try:
            chain = walk_extensions(next_header, data)
        except WireError:
            return False
        return len(data) - chain.offset >= _TRANSPORT_HEADERS.get(chain.next_header, 0)

    def _deliver_whole(self, packet: IpPacket, prefix: bytes, data: bytes, largest: int = 0) -> None:
        """A reassembled packet: `prefix` is the header chain without the fragment header."""
        length = len(prefix) - HEADER_LENGTH + len(data)
        if length > MAX_PAYLOAD_LENGTH:
            self._drops.count(DropReason.FRAGMENT_BAD)
            return
        datagram = memoryview(prefix[:4] + length.to_bytes(2, "big") + prefix[6:] + data)
        self._extensions(packet.iface, datagram, 0, len(datagram), packet.kind, 0, 0, largest)

    def _reassembly_timeout(self, partial: Partial) -> None:
        """RFC 8200 4.5: time exceeded, if the first fragment had arrived."""
        if partial.context is not None:
            packet: IpPacket = partial.context[0]
            self._ip.icmp6.send_error(packet, icmpv6.TIME_EXCEEDED, icmpv6.REASSEMBLY_EXCEEDED)


def _is_mld(packet: IpPacket) -> bool:
    return packet.proto == ICMPV6 and len(packet.payload) > 0 and packet.payload[0] in mld.TYPES
