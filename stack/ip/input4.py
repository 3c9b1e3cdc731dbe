"""IPv4 from frame to transport: checks, local delivery, reassembly (RFC 791, RFC 1122 3.2; row IF-09).

The common packet (no options, no fragment, unicast to us) passes `receive` alone; everything else branches off.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from stack.errors import DropReason
from stack.iface.loopback import NOTE_SHIFT
from stack.ip.packet import IpPacket, NotedPacket, PacketKind, ReassembledPacket
from stack.ip.reassembly import TIMEOUT4, Partial, Reassembler
from stack.wire import icmp, igmp
from stack.wire.checksum import checksum, partial_sum, pseudo_sum
from stack.wire.error import WireError
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH
from stack.wire.ipv4 import (
    FLAG_MF,
    FRAGMENT_MASK,
    HEADER_LENGTH,
    MAX_TOTAL_LENGTH,
    OFFSET_MASK,
    PROTO_TCP,
    PROTO_UDP,
    has_source_route,
    is_loopback,
)

if TYPE_CHECKING:
    from stack.iface.hooks import Taker
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer

#: version and IHL, TOS, total length, identification, flags and offset, TTL, protocol, source, destination
_FIELDS: Final = struct.Struct("!BBHHHBB2x4s4s")
#: The 20 bytes of a header as three numbers, for their sum: both 64-bit words count as they are modulo 0xFFFF.
_WORDS: Final = struct.Struct(f"!{ETHERNET_LENGTH}xQQI")
_HEADER_END: Final = ETHERNET_LENGTH + HEADER_LENGTH
_DESTINATION: Final = ETHERNET_LENGTH + 16
_UNICAST: Final = PacketKind.UNICAST
_MULTICAST: Final = PacketKind.MULTICAST
#: By how the link addressed the frame, for our unicast address inside it.
_BY_LINK: Final = (PacketKind.UNICAST, PacketKind.BROADCAST, PacketKind.MULTICAST)
#: NEEDS_CSUM | DATA_VALID
_TRUSTED: Final = 3


class Ipv4Input:
    """The receiving half of IPv4 in one network namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._local = ip.local
        self._handlers = ip.handlers4
        self._drops = ip.drops
        self.reassembler = Reassembler(ip.scheduler, ip.drops, self._reassembly_timeout, timeout=TIMEOUT4)

    def receive(self, iface: Interface, frame: memoryview, link_kind: int, flags: int, gso_size: int) -> Taker | None:
        """One Ethernet frame of type 0x0800. Returns who took it, if the transport says so."""
        available = len(frame) - ETHERNET_LENGTH
        if available < HEADER_LENGTH:
            self._drops.count(DropReason.TOO_SHORT)
            return None
        first, tos, total, _, fragment, ttl, proto, src, dst = _FIELDS.unpack_from(frame, ETHERNET_LENGTH)
        if first == 0x45:
            header_length = HEADER_LENGTH
            start = _HEADER_END
            one, two, three = _WORDS.unpack_from(frame)
            header_sum = one + two + three
        else:
            header_length = (first & 0x0F) * 4
            start = ETHERNET_LENGTH + header_length
            if first >> 4 != 4 or header_length < HEADER_LENGTH or header_length > available:
                self._drops.count(DropReason.BAD_HEADER)
                return None
            header_sum = int.from_bytes(frame[ETHERNET_LENGTH:start], "big")
        if total > available or total < header_length:
            self._drops.count(DropReason.TRUNCATED)
            return None
        if header_sum % 0xFFFF:  # see stack.wire.checksum
            self._drops.count(DropReason.BAD_CHECKSUM)
            return None
        if first != 0x45:
            onward = self._by_options(iface, frame, start, link_kind, flags, gso_size)
            if onward is None:
                return None
            frame = onward
            dst = bytes(frame[_DESTINATION : _DESTINATION + 4])
        kind = self._local.get(dst)
        if kind is None:
            if not (iface.loopback and is_loopback(dst)):
                self._for_others(iface, frame, dst, link_kind, flags, gso_size)
                return None
            kind = _UNICAST
        elif kind is _MULTICAST and proto != igmp.PROTO and not self._ip.accepts_group(dst, iface, src):
            # IGMP itself passes: a query for a group comes from a router, whatever sources the group is joined for.
            self._drops.count(DropReason.NOT_FOR_US)
            return None
        if not iface.loopback:
            lead = src[0]
            suspicious = lead >= 224 or lead == 127 or lead == 0 or dst[0] == 127 or src in self._local
            if suspicious and self._martian(src, dst, kind):
                return None
            if link_kind and kind is _UNICAST:
                kind = _BY_LINK[link_kind]
        if fragment & FRAGMENT_MASK:
            self._fragment(iface, frame, kind, header_length, total)
            return None
        payload = frame[start : ETHERNET_LENGTH + total]
        packet = IpPacket(
            4,
            src,
            dst,
            proto,
            ttl,
            tos,
            payload,
            flags & _TRUSTED != 0 or transport_checksum_ok(src, dst, proto, payload),
            gso_size,
            iface,
            frame,
            ETHERNET_LENGTH,
            header_length,
            total,
            kind,
        )
        if flags >> NOTE_SHIFT:
            packet = NotedPacket.of(packet, flags >> NOTE_SHIFT)
        return self._handlers.get(proto, self.unknown_protocol)(packet)

    def _for_others(
        self, iface: Interface, frame: memoryview, dst: bytes, link_kind: int, flags: int, gso_size: int
    ) -> None:
        """As a host: what is for others is not forwarded (RFC 1122 3.3.4)."""
        if iface.index in self._ip.forwarding.active4:
            self._ip.forwarding.forward4(iface, frame, link_kind, flags, gso_size)
        else:
            self._drops.count(DropReason.MARTIAN_DESTINATION if is_loopback(dst) else DropReason.NOT_FOR_US)

    def _by_options(
        self, iface: Interface, frame: memoryview, end: int, link_kind: int, flags: int, gso_size: int
    ) -> memoryview | None:
        """The frame, its options (up to byte `end`) found good and a source route in them followed; None: dropped."""
        try:
            if not has_source_route(frame[_HEADER_END:end]):
                return frame
        except WireError:
            self._drops.count(DropReason.BAD_HEADER)
            return None
        return self._ip.source_routes.arrived(iface, frame, link_kind, flags, gso_size)

    def _martian(self, src: bytes, dst: bytes, kind: PacketKind) -> bool:
        """Count and refuse addresses that cannot come in over a wire."""
        if is_loopback(dst):
            self._drops.count(DropReason.MARTIAN_DESTINATION)
        elif any(src) or kind is _UNICAST:
            self._drops.count(DropReason.MARTIAN_SOURCE)
        else:
            return False  # 0.0.0.0 is how a host without an address asks everybody for one (RFC 1122 3.2.1.3)
        return True

    def unknown_protocol(self, packet: IpPacket) -> None:
        """Nobody wants it, and its sender may know (RFC 1122 3.2.2.1)."""
        self._drops.count(DropReason.UNKNOWN_PROTOCOL)
        self._ip.icmp4.send_error(packet, icmp.UNREACHABLE, icmp.PROTOCOL_UNREACHABLE)

    def _fragment(self, iface: Interface, frame: memoryview, kind: PacketKind, header_length: int, total: int) -> None:
        packet = self.whole(iface, frame, kind, header_length, total)
        if packet is None:
            return
        handler = self._handlers.get(packet.proto)
        if handler is None:
            self.unknown_protocol(packet)
        else:
            handler(packet)

    def whole(
        self, iface: Interface, frame: memoryview, kind: PacketKind, header_length: int, total: int
    ) -> IpPacket | None:
        """Take the fragment in `frame`; the packet if it was the last one missing."""
        start = ETHERNET_LENGTH
        _, _, _, ident, fragment, _, proto, src, dst = _FIELDS.unpack_from(frame, start)
        offset = (fragment & OFFSET_MASK) * 8
        body = frame[start + header_length : start + total]
        context = None if offset else (iface, kind, bytes(frame[start : start + header_length]), bytes(body[:8]))
        whole = self.reassembler.add(
            (src, dst, proto, ident),
            offset,
            fragment & FLAG_MF != 0,
            body,
            context,
            MAX_TOTAL_LENGTH - header_length,
            total,
        )
        if whole is None:
            return None
        payload, (first_iface, first_kind, header, _) = whole
        if len(header) + len(payload) > MAX_TOTAL_LENGTH:
            self._drops.count(DropReason.FRAGMENT_BAD)
            return None
        return self._put_together(first_iface, first_kind, header, payload)

    def _put_together(self, iface: Interface, kind: PacketKind, header: bytes, data: bytes) -> IpPacket:
        """A reassembled datagram: the first fragment's header, as if it had come in one piece."""
        total = len(header) + len(data)
        patched = bytearray(header)
        struct.pack_into("!H", patched, 2, total)
        struct.pack_into("!H", patched, 6, 0)
        struct.pack_into("!H", patched, 10, 0)
        struct.pack_into("!H", patched, 10, partial_sum(patched) ^ 0xFFFF)
        datagram = memoryview(bytes(patched) + data)
        _, tos, _, _, _, ttl, proto, src, dst = _FIELDS.unpack_from(datagram)
        payload = datagram[len(header) :]
        packet = ReassembledPacket(
            4,
            src,
            dst,
            proto,
            ttl,
            tos,
            payload,
            transport_checksum_ok(src, dst, proto, payload),
            0,
            iface,
            datagram,
            0,
            len(header),
            total,
            kind,
        )
        packet.largest = self.reassembler.largest
        return packet

    def _reassembly_timeout(self, partial: Partial) -> None:
        """RFC 792: time exceeded, if the fragment with the transport header had arrived (RFC 1122 3.3.2)."""
        context: Any = partial.context
        if context is None:
            return
        iface, kind, header, quoted = context
        datagram = memoryview(header + quoted)
        _, tos, _, _, _, ttl, proto, src, dst = _FIELDS.unpack_from(datagram)
        packet = IpPacket(
            4,
            src,
            dst,
            proto,
            ttl,
            tos,
            datagram[len(header) :],
            True,
            0,
            iface,
            datagram,
            0,
            len(header),
            len(datagram),
            kind,
        )
        self._ip.icmp4.send_error(packet, icmp.TIME_EXCEEDED, icmp.REASSEMBLY_EXCEEDED)


def transport_checksum_ok(src: bytes, dst: bytes, proto: int, payload: memoryview) -> bool:
    """Sum the TCP or UDP checksum of a packet nobody vouches for; True for protocols that bring their own checks."""
    if proto == PROTO_UDP:
        if len(payload) < 8:
            return True  # too short for a header: the transport says so
        if not payload[6] and not payload[7]:
            return len(src) == 4  # RFC 768: none was made; RFC 8200 8.1: not allowed in IPv6
        length = payload[4] << 8 | payload[5]
        payload = payload[:length]  # RFC 768: the UDP length may be shorter than the datagram's
    elif proto != PROTO_TCP:
        return True
    return checksum(payload, pseudo_sum(src, dst, proto, len(payload))) == 0
