"""Packets for others: a namespace as the guests' router (RFC 1812 5, RFC 8200, RFC 8504 5.3).

Theory of operation
-------------------
Off unless asked for, as on Linux (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding): `Forwarding.set` switches a
family for every interface, those to come included, or for one. What counts is the interface a packet came in through.

A packet passes as it came: its header is copied and patched (TTL and header checksum, or hop limit), the rest is a
view of the frame it arrived in, and the offload facts go along. A superframe stays one: it is cut at the edge of the
out-link, by `stack.link.offload`, if that device does not segment; and if its segments would not fit the out-link, its
sender hears so as it would have for each of them (RFC 1191; IPv6 routers never fragment). IPv4 without DF is cut here:
first into segments, then into fragments.

Redirects are never sent. Link-local addresses, multicasts and what came as a link-layer broadcast stay on their link.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, NetError
from stack.ip.packet import IpPacket, PacketKind
from stack.ip.route import Route, RouteKind
from stack.ip.source_route import passed
from stack.link.device import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, TxFrame
from stack.link.offload import OffloadError, segment
from stack.wire import icmp, icmpv6, ipv4, ipv6, tcp, udp
from stack.wire.checksum import adjust, partial_sum, pseudo_sum
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH
from stack.wire.ipoptions import SSRR

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer

_U16: Final = struct.Struct("!H")
_FIELDS4: Final = struct.Struct("!BBHHHBB2x4s4s")
_CHECKSUM_OFFSET: Final = {tcp.PROTO: 16, udp.PROTO: udp.CHECKSUM_OFFSET}
_CWR: Final = 0x80  # among TCP's flags
_BLANK4: Final = bytes(12) + b"\x08\x00"
_BLANK6: Final = bytes(12) + b"\x86\xdd"

#: What a sender is told when routing ends in this errno; else that the net is unreachable.
_ERRORS4: Final = {
    errno.EHOSTUNREACH: (icmp.UNREACHABLE, icmp.HOST_UNREACHABLE),
    errno.EACCES: (icmp.UNREACHABLE, icmp.ADMINISTRATIVELY_PROHIBITED),
}


class Forwarding:
    """The routing half of one network namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._drops = ip.drops
        self._everywhere = {4: False, 6: False}
        self._exceptions: dict[tuple[int, int], bool] = {}  # (version, ifindex) -> switched by hand
        self.active4: set[int] = set()  #: indexes of the interfaces whose IPv4 packets are passed on
        self.active6: set[int] = set()
        self.forwarded4 = 0  #: packets passed on, a superframe counting as one
        self.forwarded6 = 0

    def set(self, on: bool, *, version: int = 0, iface: Interface | None = None) -> None:
        """Switch forwarding for IPv4 (4), IPv6 (6) or both (0), of `iface` or everywhere, which ends exceptions."""
        for each in (4, 6) if not version else (version,):
            if iface is None:
                self._everywhere[each] = on
                self._exceptions = {key: value for key, value in self._exceptions.items() if key[0] != each}
            else:
                self._exceptions[each, iface.index] = on
        self.refresh()
        self._ip.refresh()  # a router is in the all-routers group

    def is_on(self, version: int, iface: Interface | None = None) -> bool:
        """What `iface`, or an interface added now, does."""
        default = self._everywhere[version]
        return default if iface is None else self._exceptions.get((version, iface.index), default)

    def refresh(self) -> None:
        """Interfaces came or went."""
        interfaces = [iface for iface in self._ip.interfaces.values() if not iface.loopback]
        self.active4 = {iface.index for iface in interfaces if self.is_on(4, iface)}
        self.active6 = {iface.index for iface in interfaces if self.is_on(6, iface)}
        known = self._ip.interfaces
        self._exceptions = {key: value for key, value in self._exceptions.items() if key[1] in known}

    # --- IPv4 ---------------------------------------------------------------------------------------------------

    def forward4(
        self,
        iface: Interface,
        frame: memoryview,
        link_kind: int,
        flags: int,
        gso_size: int,
        *,
        hop: tuple[bytes, int, int] | None = None,
    ) -> None:
        """A frame whose IPv4 header was found good and whose destination is not ours; or whose source route names
        `hop` next: its address, where in the header the option begins, the slot there.
        """
        start = ETHERNET_LENGTH
        first, tos, total, _, fragment, ttl, proto, src, dst = _FIELDS4.unpack_from(frame, start)
        header_length = (first & 0x0F) * 4
        ip = self._ip
        addressed, dst = dst, dst if hop is None else hop[0]
        if link_kind or ipv4.is_multicast(dst) or dst[0] in (0, 127) or dst[0] >= 240:
            self._drops.count(DropReason.NOT_FOR_US)
            return
        if not ipv4.may_be_source(src) or src in ip.local:
            self._drops.count(DropReason.MARTIAN_SOURCE)
            return
        if _is_link_local4(src) or _is_link_local4(dst):  # RFC 3927 7
            self._drops.count(DropReason.NOT_FOR_US)
            return
        packet = IpPacket(
            4,
            src,
            addressed,
            proto,
            ttl,
            tos,
            frame[start + header_length : start + total],
            True,
            gso_size,
            iface,
            frame,
            start,
            header_length,
            total,
            PacketKind.UNICAST,
        )
        if header_length > ipv4.HEADER_LENGTH and ip.alerts.takes(packet):
            return
        if ttl <= 1:
            self._drops.count(DropReason.TTL_EXCEEDED)
            ip.icmp4.send_error(packet, icmp.TIME_EXCEEDED, icmp.TTL_EXCEEDED)
            return
        try:
            route = ip.route(dst)
        except NetError as error:
            self._drops.count(DropReason.NO_ROUTE)
            kind, code = _ERRORS4.get(error.errno, (icmp.UNREACHABLE, icmp.NET_UNREACHABLE))
            if error.errno != errno.EINVAL:  # a black hole swallows
                ip.icmp4.send_error(packet, kind, code)
            return
        if route.kind is not RouteKind.UNICAST or not route.iface.up:
            self._drops.count(DropReason.NOT_FOR_US)
            return
        header = bytearray(frame[start : start + header_length])
        if hop is not None:
            if header[hop[1]] == SSRR and route.next_hop != dst:
                self._drops.count(DropReason.NO_ROUTE)
                ip.icmp4.send_error(packet, icmp.UNREACHABLE, icmp.SOURCE_ROUTE_FAILED)
                return
            passed(header, *hop, route.src)
        header[8] = ttl - 1
        check = _U16.unpack_from(header, 10)[0]
        _U16.pack_into(header, 10, adjust(check, ttl << 8 | proto, (ttl - 1) << 8 | proto))
        if header_length > ipv4.HEADER_LENGTH:
            record_route(header, route.src)
        facts = self._facts(packet, bytes(header), flags, ETHERNET_LENGTH + header_length, fragment)
        if facts is None:
            return
        mtu = min(route.iface.mtu, ipv4.MAX_TOTAL_LENGTH)
        if _largest(packet, header_length) > mtu:
            if fragment & ipv4.FLAG_DF:
                self._drops.count(DropReason.TOO_LONG)
                ip.icmp4.send_error(packet, icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, mtu)
                return
            self._send_fragments(route, facts, mtu)
        else:
            self._send(route, facts, ETHERNET_LENGTH + total)
        self.forwarded4 += 1

    def _send_fragments(self, route: Route, frame: TxFrame, mtu: int) -> None:
        """RFC 791 3.2; a superframe's segments one by one, a fragment into smaller ones."""
        try:
            pieces = segment(frame)
        except OffloadError:
            self._drops.count(DropReason.BAD_HEADER)
            return
        for parts, *_ in pieces:
            whole = memoryview(b"".join(parts))
            header_length = (whole[ETHERNET_LENGTH] & 0x0F) * 4
            header = whole[ETHERNET_LENGTH : ETHERNET_LENGTH + header_length]
            body = whole[ETHERNET_LENGTH + header_length :]
            if header_length + len(body) <= mtu:
                self._send(route, ((whole,), 0, 0, 0, 0, 0, 0), len(whole))
                continue
            for datagram in fragments4(header, body, mtu):
                self._send(route, ((_BLANK4 + datagram,), 0, 0, 0, 0, 0, 0), ETHERNET_LENGTH + len(datagram))

    # --- IPv6 ---------------------------------------------------------------------------------------------------

    def forward6(self, iface: Interface, frame: memoryview, link_kind: int, flags: int, gso_size: int) -> None:
        """A frame whose IPv6 header was found good and whose destination is not ours."""
        start = ETHERNET_LENGTH
        first, length, proto, hop_limit, src, dst = ipv6.HEADER.unpack_from(frame, start)
        ip = self._ip
        if link_kind or ipv6.is_multicast(dst) or dst in (ipv6.LOOPBACK, ipv6.ANY):
            self._drops.count(DropReason.NOT_FOR_US)
            return
        if ipv6.is_multicast(src) or src in (ipv6.LOOPBACK, ipv6.ANY) or src in ip.local:
            self._drops.count(DropReason.MARTIAN_SOURCE)
            return
        total = ipv6.HEADER_LENGTH + length
        header_length = ipv6.HEADER_LENGTH
        packet = IpPacket(
            6,
            src,
            dst,
            proto,
            hop_limit,
            first >> 20 & 0xFF,
            frame[start + header_length : start + total],
            True,
            gso_size,
            iface,
            frame,
            start,
            header_length,
            total,
            PacketKind.UNICAST,
        )
        if ipv6.is_link_local(dst):
            self._drops.count(DropReason.NOT_FOR_US)
            return
        if ipv6.is_link_local(src):  # RFC 4291 2.5.6, RFC 4443 3.1
            self._drops.count(DropReason.NOT_FOR_US)
            ip.icmp6.send_error(packet, icmpv6.UNREACHABLE, icmpv6.BEYOND_SCOPE)
            return
        if hop_limit <= 1:
            self._drops.count(DropReason.TTL_EXCEEDED)
            ip.icmp6.send_error(packet, icmpv6.TIME_EXCEEDED, icmpv6.HOP_LIMIT_EXCEEDED)
            return
        if proto == ipv6.HOP_BY_HOP and not ip.input6.hop_by_hop_acceptable(packet):
            return
        try:
            route = ip.route(dst)
        except NetError as error:
            self._drops.count(DropReason.NO_ROUTE)
            if error.errno != errno.EINVAL:
                code = icmpv6.ADMINISTRATIVELY_PROHIBITED if error.errno == errno.EACCES else icmpv6.NO_ROUTE
                ip.icmp6.send_error(packet, icmpv6.UNREACHABLE, code)
            return
        if route.kind is not RouteKind.UNICAST or not route.iface.up:
            self._drops.count(DropReason.NOT_FOR_US)
            return
        transport = start + header_length
        if proto in (ipv6.HOP_BY_HOP, ipv6.ROUTING, ipv6.DESTINATION_OPTIONS) and (flags & NEEDS_CSUM or gso_size):
            transport, packet.proto = ipv6.transport_offset(frame[start : start + total])
            transport += start
        header = bytearray(frame[start:transport])
        header[7] = hop_limit - 1
        facts = self._facts(packet, bytes(header), flags, transport, 0)
        if facts is None:
            return
        mtu = ip.mtu6(route.iface)
        if _largest(packet, transport - start) > mtu:
            self._drops.count(DropReason.TOO_LONG)
            ip.icmp6.send_error(packet, icmpv6.PACKET_TOO_BIG, 0, mtu, even_multicast=True)
            return
        self._send(route, facts, ETHERNET_LENGTH + total)
        self.forwarded6 += 1

    # --- both ---------------------------------------------------------------------------------------------------

    def _facts(self, packet: IpPacket, header: bytes, flags: int, transport: int, fragment: int) -> TxFrame | None:
        """The frame to send: `header` in front of what follows byte `transport` of the frame, offload facts kept.

        None, counted, if they contradict the packet.
        """
        blank = _BLANK4 if packet.version == 4 else _BLANK6
        rest = packet.frame[transport : packet.start + packet.total_length]
        gso_size = packet.gso_size
        if not gso_size and not flags & NEEDS_CSUM:
            return (blank + header, rest), 0, 0, 0, 0, 0, 0
        offset = _CHECKSUM_OFFSET.get(packet.proto)
        if offset is None or len(rest) < offset + 2 or fragment & ipv4.FRAGMENT_MASK:
            self._drops.count(DropReason.BAD_HEADER)
            return None
        if not gso_size:
            return (blank + header, rest), NEEDS_CSUM, 0, 0, 0, transport, offset
        if packet.proto == udp.PROTO:
            gso_type, header_length = GSO_UDP_L4, udp.HEADER_LENGTH
        else:
            header_length = (rest[12] >> 4) * 4 if len(rest) > 13 else 0
            gso_type = GSO_TCPV4 if packet.version == 4 else GSO_TCPV6
            if len(rest) > 13 and rest[13] & _CWR:
                gso_type |= GSO_ECN
        if not flags & NEEDS_CSUM:
            # Joined by a device that verified the segments' checksums: cutting starts from the pseudo-header's sum.
            partial = pseudo_sum(packet.src, packet.dst, packet.proto, len(rest))
            rest = memoryview(bytes(rest[:offset]) + _U16.pack(partial) + bytes(rest[offset + 2 :]))
        return (blank + header, rest), NEEDS_CSUM, gso_type, transport + header_length, gso_size, transport, offset

    def _send(self, route: Route, frame: TxFrame, length: int) -> None:
        route.iface.send_unresolved(self._ip.neighbour(route), frame, length)


def fragments4(header: memoryview, body: memoryview, mtu: int) -> list[bytes]:
    """An IPv4 datagram, or a fragment of one, cut to `mtu` bytes (RFC 791 3.2). Checksummed, `body` complete."""
    fragment = _U16.unpack_from(header, 6)[0]
    base, last = fragment & ipv4.OFFSET_MASK, not fragment & ipv4.FLAG_MF
    first_header, other_header = bytes(header), bytes(header[:20]) + copied_options(bytes(header[20:]))
    result = []
    offset = 0
    while offset < len(body):
        head = bytearray(other_header if offset else first_header)
        head[0] = 0x40 | len(head) // 4
        step = (mtu - len(head)) & ~7
        if step <= 0:
            return []
        piece = body[offset : offset + step]
        more = offset + len(piece) < len(body) or not last
        _U16.pack_into(head, 2, len(head) + len(piece))
        _U16.pack_into(head, 6, (base + (offset >> 3)) | (ipv4.FLAG_MF if more else 0))
        _U16.pack_into(head, 10, 0)
        _U16.pack_into(head, 10, partial_sum(head) ^ 0xFFFF)
        result.append(bytes(head) + bytes(piece))
        offset += len(piece)
    return result


def copied_options(options: bytes) -> bytes:
    """The options that every fragment carries: those with the copy bit (RFC 791 3.1), padded."""
    kept = bytearray()
    at = 0
    while at < len(options) and options[at] != ipv4.OPTION_END:
        length = 1 if options[at] == ipv4.OPTION_NOP else max(2, options[at + 1]) if at + 1 < len(options) else 1
        if options[at] & 0x80:
            kept += options[at : at + length]
        at += length
    return bytes(kept) + bytes(-len(kept) % 4)


def record_route(header: bytearray, address: bytes) -> None:
    """Write `address` into a record-route option with room (RFC 791 3.1, RFC 1812 5.3.13.5), checksum included."""
    at = ipv4.HEADER_LENGTH
    while at < len(header) and header[at] != ipv4.OPTION_END:
        if header[at] == ipv4.OPTION_NOP:
            at += 1
            continue
        if at + 1 >= len(header) or header[at + 1] < 2 or at + header[at + 1] > len(header):
            return
        length = header[at + 1]
        if header[at] == ipv4.OPTION_RECORD_ROUTE and length >= 3:
            pointer = header[at + 2]
            if pointer >= 4 and pointer + 3 <= length:
                header[at + pointer - 1 : at + pointer + 3] = address
                header[at + 2] = pointer + 4
                _U16.pack_into(header, 10, 0)
                _U16.pack_into(header, 10, partial_sum(header) ^ 0xFFFF)
            return
        at += length


def _largest(packet: IpPacket, header_length: int) -> int:
    """Bytes of the largest packet on the wire that `packet` stands for, `header_length` those of its IP header(s)."""
    if not packet.gso_size:
        return packet.total_length
    rest = packet.frame[packet.start + header_length :]
    transport = udp.HEADER_LENGTH if packet.proto == udp.PROTO else (rest[12] >> 4) * 4
    return min(header_length + transport + packet.gso_size, packet.total_length)


def _is_link_local4(address: bytes) -> bool:
    return address[0] == 169 and address[1] == 254
