"""IP packets on their way out: headers, fragmentation, link-layer addressing.

Theory of operation
-------------------
A caller holds a `Route`; the Route holds the neighbour, the neighbour the finished MACs. So the common packet costs one
`Struct.pack` for Ethernet and IP headers together and one append to the interface's queue, for a superframe of
64 KiB as for an ACK. Everything else (unresolved neighbours, fragments, our copies of broadcasts) branches off.

The IPv4 header checksum is arithmetic on numbers we have at hand: the words of a header are ver/ihl/tos, total length,
identification, flags, ttl/protocol and the addresses, whose sum the Route keeps.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.ip.route import Route, RouteKind
from stack.ip.template import HeaderTemplate
from stack.link.device import NEEDS_CSUM, Buffer, TxFrame
from stack.link.neighbour import Neighbour, NeighbourState
from stack.link.offload import segment
from stack.wire import ethernet, ipv4, ipv6
from stack.wire.checksum import sum_parts
from stack.wire.ipoptions import first_hop, is_strict, milliseconds, recorded, routed

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer

#: MACs (blank while unresolved), ethertype; then the IPv4 header's ten fields
_FRAME4: Final = struct.Struct("!12sHBBHHHBBH4s4s")
#: MACs, ethertype; then the IPv6 header's six
_FRAME6: Final = struct.Struct("!12sHIHBB16s16s")
#: Looking a member up in its enum costs more than the comparison.
_UNICAST: Final = RouteKind.UNICAST
_LOCAL: Final = RouteKind.LOCAL
_MULTICAST: Final = RouteKind.MULTICAST
_BLANK_MACS: Final = bytes(12)
_START4: Final = 34  # bytes: Ethernet header and IPv4 header
_START6: Final = 54  # bytes: Ethernet header and IPv6 header
_MAX4: Final = ipv4.MAX_TOTAL_LENGTH - ipv4.HEADER_LENGTH


class IpOutput:
    """The sending half of one network namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._secret = ip.scheduler.rng.getrandbits(64)
        self._idents = [ip.scheduler.rng.getrandbits(16) for _ in range(256)]
        self._ident6 = ip.scheduler.rng.getrandbits(32)

    def send(
        self,
        route: Route,
        src: bytes,
        dst: bytes,
        proto: int,
        parts: tuple[Buffer, ...],
        length: int,
        *,
        ttl: int = 64,
        tos: int = 0,
        dont_fragment: bool = True,
        csum_start_offset: int | None = None,
        gso_type: int = 0,
        gso_size: int = 0,
        header_length: int = 0,
        loop: bool = True,
        flow: int = 0,
        options: bytes = b"",
    ) -> None:
        """Send the transport datagram made of `parts` (`length` bytes together); it leaves at the end of the turn.

        `csum_start_offset`: offset in ``parts[0]`` of a checksum field that holds the pseudo-header's partial sum and
        is to be finished by the link; None: nothing is to be done. `gso_type`/`gso_size`/`header_length` (of the
        transport header) make it a superframe. Without `dont_fragment` it is cut into fragments if it must.
        Without `loop` our own sockets get no copy of a multicast. `flow` is an IPv6 flow label, `options` are IPv4
        options, padded to whole words; a source route among them names the hosts on the way, `route` leads to the
        first of those, and `dst` is the last.
        Raises NetError: EMSGSIZE (too long), ENETDOWN, EHOSTUNREACH (a strict route's first host is beyond a gateway).
        """
        iface = route.iface
        if not iface.up:
            raise NetError(errno.ENETDOWN)
        neighbour = route.neighbour
        if neighbour is None or neighbour.header is None:
            neighbour = self.neighbour(route)
        if options:
            self._send_with_options(
                route, src, dst, proto, parts, length, ttl, tos, dont_fragment, csum_start_offset, loop, options,
                gso_type, gso_size, header_length,
            )  # fmt: skip
            return
        if len(dst) == 4:
            total = length + 20
            if (total > route.mtu and not gso_type) or total > 65535:
                self._fragment4(route, src, dst, proto, parts, length, ttl, tos, dont_fragment, csum_start_offset, loop)
                return
            if dont_fragment:
                ident = 0  # RFC 6864 4.1: an atomic datagram's means nothing
                flags = ipv4.FLAG_DF
            else:
                pieces = -(-(length - header_length) // gso_size) if gso_type else 1
                ident = self._next_ident(src, dst, proto, pieces)
                flags = 0
            addresses = route.address_sum
            if src != route.src or dst != route.dst:
                addresses = int.from_bytes(src, "big") + int.from_bytes(dst, "big")
            first = _FRAME4.pack(
                neighbour.header or _BLANK_MACS,
                0x0800,
                0x45,
                tos,
                total,
                ident,
                flags,
                ttl,
                proto,
                (0x4500 + tos + total + ident + flags + (ttl << 8) + proto + addresses) % 0xFFFF ^ 0xFFFF,
                src,
                dst,
            )
            start = _START4
        else:
            if (length + 40 > route.mtu and not gso_type) or length > 65535:
                self._fragment6(route, src, dst, proto, parts, length, ttl, tos, dont_fragment, csum_start_offset, loop)
                return
            total = length + 40
            first = _FRAME6.pack(
                neighbour.header or _BLANK_MACS, 0x86DD, 0x60000000 | tos << 20 | flow, length, proto, ttl, src, dst
            )
            start = _START6
        frame: TxFrame
        if csum_start_offset is None:
            frame = ((first, *parts), 0, 0, 0, 0, 0, 0)
        else:
            frame = (
                (first, *parts),
                NEEDS_CSUM,
                gso_type,
                start + header_length,
                gso_size,
                start,
                csum_start_offset,
            )
        if neighbour.header is None:
            iface.send_unresolved(neighbour, frame, total + 14)
        else:
            iface.enqueue(frame, total + 14)
        kind = route.kind
        if kind is not _UNICAST and kind is not _LOCAL and (loop or kind is not _MULTICAST):
            self._copy_to_us(route, frame, total + 14)

    def template(
        self, route: Route, src: bytes, dst: bytes, proto: int, first: bytes, *, ttl: int, tos: int
    ) -> HeaderTemplate | None:
        """What packets of a flow have in common (see there), `first` being the first bytes of the transport's header.

        None where `send` does more than write headers: an unresolved neighbour, a broadcast or multicast.
        """
        neighbour = route.neighbour
        if neighbour is None or neighbour.header is None or not route.iface.up:
            return None
        if route.kind is not _UNICAST and route.kind is not _LOCAL:
            return None
        return HeaderTemplate(route, neighbour, neighbour.header, src, dst, proto, ttl, tos, first)

    def send_whole(self, route: Route, datagram: bytes, *, loop: bool = True) -> None:
        """Send a packet that has its IP header already. Raises NetError: EMSGSIZE (nothing is cut here), ENETDOWN."""
        if not route.iface.up:
            raise NetError(errno.ENETDOWN)
        if len(datagram) > route.iface.mtu:
            raise NetError(errno.EMSGSIZE)
        ethertype = b"\x08\x00" if len(route.dst) == 4 else b"\x86\xdd"
        self._send_piece(route, _BLANK_MACS + ethertype, memoryview(datagram), loop)

    def ident(self, src: bytes, dst: bytes, proto: int) -> int:
        """An identification other than 0, for somebody who writes IPv4 headers."""
        return self._next_ident(src, dst, proto) or self._next_ident(src, dst, proto)

    def neighbour(self, route: Route) -> Neighbour:
        """The link-layer side of `route`, looked up again if the cache has buried the one it knew."""
        neighbour = route.neighbour
        if neighbour is None or neighbour.state == NeighbourState.DEAD:
            iface = route.iface
            hop = route.next_hop
            if iface.loopback or iface.noarp:
                neighbour = iface.neighbours.fixed(hop, iface.mac)
            elif route.kind == RouteKind.BROADCAST:
                neighbour = iface.neighbours.fixed(hop, ethernet.BROADCAST)
            elif route.kind == RouteKind.MULTICAST:
                mac = ethernet.multicast_mac4(hop) if len(hop) == 4 else ethernet.multicast_mac6(hop)
                neighbour = iface.neighbours.fixed(hop, mac)
            else:
                neighbour = iface.neighbours.lookup(hop)
            route.neighbour = neighbour
        if neighbour.header is None:
            neighbour.resolve()
        return neighbour

    def _next_ident(self, src: bytes, dst: bytes, proto: int, count: int = 1) -> int:
        """Identification of a datagram that may be cut: unique per (src, dst, protocol) as long as 16 bits allow.

        The first of `count` that follow each other, for what a device makes so many datagrams of.
        """
        idents = self._idents
        bucket = hash((self._secret, src, dst, proto)) & 0xFF
        first = idents[bucket] + 1 & 0xFFFF
        idents[bucket] = first + count - 1 & 0xFFFF
        return first

    def _copy_to_us(self, route: Route, frame: TxFrame, length: int) -> None:
        """Broadcasts reach our own sockets too (IF-13), multicasts if we are in the group: through `lo`."""
        ip = self._ip
        if ip.loopback.up and not route.iface.loopback and route.dst in ip.local:
            parts, *facts = frame
            # Where a source MAC would be stands the interface it left through, which sockets are told.
            first = ethernet.NULL_MAC + route.iface.index.to_bytes(6, "big") + bytes(parts[0][12:])
            ip.loopback.enqueue(((first, *parts[1:]), *facts), length)  # type: ignore[arg-type]  # same arity

    def _send_with_options(
        self,
        route: Route,
        src: bytes,
        dst: bytes,
        proto: int,
        parts: tuple[Buffer, ...],
        length: int,
        ttl: int,
        tos: int,
        dont_fragment: bool,
        csum_start_offset: int | None,
        loop: bool,
        options: bytes,
        gso_type: int,
        gso_size: int,
        header_length: int,
    ) -> None:
        """IPv4 with options: rare, so checksums are finished and superframes cut here. Fragments carry all of them,
        which is allowed for those without the copied flag, too (RFC 791 3.1 asks only that copied ones be in each).
        """
        hop = first_hop(options)
        if hop is not None:
            if is_strict(options) and route.next_hop != hop:
                raise NetError(errno.EHOSTUNREACH)
            options = routed(options, dst)
            dst = hop
        scheduler = self._ip.scheduler
        options = recorded(options, src, milliseconds(scheduler.now + scheduler.epoch))
        overhead = ipv4.HEADER_LENGTH + len(options)
        if length + overhead > 65535 or (dont_fragment and length + overhead > route.mtu and not gso_type):
            raise NetError(errno.EMSGSIZE)
        if gso_type and csum_start_offset is not None:
            flags = ipv4.FLAG_DF if dont_fragment else 0
            ident = 0 if dont_fragment else self._next_ident(src, dst, proto, -(-length // gso_size))
            first = _with_options(src, dst, proto, length + overhead, ident, flags, ttl, tos, options)
            start = len(first)
            whole = ((first, *parts), NEEDS_CSUM, gso_type, start + header_length, gso_size, start, csum_start_offset)
            for pieces, *_ in segment(whole):
                frame = b"".join(pieces)
                self._send_piece(route, frame[:start], memoryview(frame)[start:], loop)
            return
        data = memoryview(_finished(parts, csum_start_offset))
        step = length or 1 if length + overhead <= route.mtu else (route.mtu - overhead) & ~7
        ident = 0 if dont_fragment else self._next_ident(src, dst, proto)
        for offset in range(0, max(length, 1), step):
            piece = data[offset : offset + step]
            flags = (ipv4.FLAG_DF if dont_fragment else 0) | (ipv4.FLAG_MF if offset + step < length else 0)
            fragment = flags | offset >> 3
            head = _with_options(src, dst, proto, len(piece) + overhead, ident, fragment, ttl, tos, options)
            self._send_piece(route, head, piece, loop)

    # --- fragments ------------------------------------------------------------------------------------------------

    def _fragment4(
        self,
        route: Route,
        src: bytes,
        dst: bytes,
        proto: int,
        parts: tuple[Buffer, ...],
        length: int,
        ttl: int,
        tos: int,
        dont_fragment: bool,
        csum_start_offset: int | None,
        loop: bool,
    ) -> None:
        """RFC 791 3.2, "an example fragmentation procedure"."""
        if dont_fragment or length > _MAX4:
            raise NetError(errno.EMSGSIZE)
        data = memoryview(_finished(parts, csum_start_offset))
        step = (route.mtu - ipv4.HEADER_LENGTH) & ~7
        ident = self._next_ident(src, dst, proto)
        for offset in range(0, length, step):
            piece = data[offset : offset + step]
            more = offset + step < length
            fragment = offset >> 3 | (ipv4.FLAG_MF if more else 0)
            header = ipv4.Ipv4Header(src, dst, proto, len(piece) + 20, ident, fragment, ttl, tos).emit()
            self._send_piece(route, _BLANK_MACS + b"\x08\x00" + header, piece, loop)

    def _fragment6(
        self,
        route: Route,
        src: bytes,
        dst: bytes,
        proto: int,
        parts: tuple[Buffer, ...],
        length: int,
        hop_limit: int,
        traffic_class: int,
        dont_fragment: bool,
        csum_start_offset: int | None,
        loop: bool,
    ) -> None:
        """RFC 8200 4.5; only the source of a packet may do this."""
        if dont_fragment or length > ipv6.MAX_PAYLOAD_LENGTH:
            raise NetError(errno.EMSGSIZE)
        data = memoryview(_finished(parts, csum_start_offset))
        step = (route.mtu - ipv6.HEADER_LENGTH - ipv6.FRAGMENT_HEADER_LENGTH) & ~7
        self._ident6 = (self._ident6 + 1) & 0xFFFFFFFF
        for offset in range(0, length, step):
            piece = data[offset : offset + step]
            more = offset + step < length
            fragment = ipv6.FragmentHeader(proto, offset, more, self._ident6).emit()
            header = ipv6.Ipv6Header(
                src, dst, ipv6.FRAGMENT_HEADER, len(fragment) + len(piece), hop_limit, traffic_class
            ).emit()
            self._send_piece(route, _BLANK_MACS + b"\x86\xdd" + header + fragment, piece, loop)

    def _send_piece(self, route: Route, head: bytes, piece: memoryview, loop: bool) -> None:
        frame: TxFrame = ((head, piece), 0, 0, 0, 0, 0, 0)
        length = len(head) + len(piece)
        route.iface.send_unresolved(self.neighbour(route), frame, length)
        if route.kind not in (_UNICAST, _LOCAL) and (loop or route.kind is not _MULTICAST):
            self._copy_to_us(route, frame, length)


def _with_options(
    src: bytes, dst: bytes, proto: int, total: int, ident: int, fragment: int, ttl: int, tos: int, options: bytes
) -> bytes:
    """Blank MACs, ethertype and an IPv4 header with options."""
    header = ipv4.Ipv4Header(src, dst, proto, total, ident, fragment, ttl, tos, options)
    return _BLANK_MACS + b"\x08\x00" + header.emit()


def _finished(parts: tuple[Buffer, ...], csum_start_offset: int | None) -> bytes:
    """The whole transport datagram with its checksum complete: fragments leave nothing for a device to finish."""
    whole = b"".join(parts)
    if csum_start_offset is None:
        return whole
    value = sum_parts((whole,)) ^ 0xFFFF or 0xFFFF  # RFC 768: computed zero is sent as all ones
    return whole[:csum_start_offset] + value.to_bytes(2, "big") + whole[csum_start_offset + 2 :]
