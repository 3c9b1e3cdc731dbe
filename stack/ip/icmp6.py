"""ICMPv6: answers echo requests, sends errors at a bounded rate, hands errors to transports (RFC 4443)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stack.errors import DropReason, Drops, NetError
from stack.ip.errormap import classify6
from stack.ip.icmp4 import EchoHandler
from stack.ip.ndp import Ndp
from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.wire import icmpv6, mld
from stack.wire.error import WireError
from stack.wire.ipv6 import (
    FRAGMENT_HEADER,
    HEADER,
    HEADER_LENGTH,
    ICMPV6,
    MIN_MTU,
    is_link_local,
    parse_fragment,
    walk_extensions,
)

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer


class Icmp6:
    """ICMPv6 of one network namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self.messages = Drops()  #: in and out by type, named as in /proc/net/snmp6
        self._echo_handlers: dict[int, EchoHandler] = {}
        self.ndp = Ndp(ip)
        #: Get router advertisements; and, by index of the interface, solicitations.
        self.on_advertisement: Callable[[IpPacket, icmpv6.Icmpv6Message], None] | None = None
        self.on_solicitation: dict[int, Callable[[IpPacket, icmpv6.Icmpv6Message], None]] = {}

    def receive(self, packet: IpPacket) -> None:
        """One packet with protocol 58."""
        drops = self._ip.drops
        try:
            message = icmpv6.parse(packet.payload, packet.src, packet.dst)
        except WireError:
            drops.count(DropReason.BAD_MESSAGE)
            return
        kind = message.type
        self.messages.count(f"Icmp6InType{kind}")
        if kind == icmpv6.ECHO_REQUEST:
            self._echo(packet, message)
        elif kind == icmpv6.ECHO_REPLY:
            handler = self._echo_handlers.get(message.info >> 16)
            if handler is not None:
                handler(packet.src, message.info & 0xFFFF, bytes(message.data))
            elif self._ip.pings:
                self._ip.pings.replied(packet, message.info >> 16)
        elif kind in (icmpv6.NEIGHBOUR_SOLICITATION, icmpv6.NEIGHBOUR_ADVERTISEMENT):
            self.ndp.receive(packet, message)
        elif kind == icmpv6.ROUTER_ADVERTISEMENT:
            if self.on_advertisement is not None:
                self.on_advertisement(packet, message)
        elif kind == icmpv6.ROUTER_SOLICITATION:
            router = self.on_solicitation.get(packet.iface.index)
            if router is not None:
                router(packet, message)
        elif kind in mld.TYPES:
            self._ip.mld.receive(packet, message)
        elif kind < icmpv6.FIRST_INFORMATIONAL:
            self._error(packet, message)

    def _echo(self, packet: IpPacket, message: icmpv6.Icmpv6Message) -> None:
        """RFC 4443 4.2: also for multicast, then from an address of the interface."""
        src: bytes | None = packet.dst
        if packet.kind is not PacketKind.UNICAST:
            src = packet.iface.source_for(packet.src)
        if src is None or not any(packet.src):
            return
        reply = icmpv6.Icmpv6Message(icmpv6.ECHO_REPLY, 0, message.info, message.data).emit(src, packet.src)
        self._send(packet, src, reply)

    def listen_echo(self, ident: int, handler: EchoHandler | None) -> None:
        """Have replies to echoes with identifier `ident` handed to `handler`; None: no longer."""
        if handler is None:
            self._echo_handlers.pop(ident, None)
        else:
            self._echo_handlers[ident] = handler

    def send_echo(
        self, dst: bytes, ident: int, sequence: int, data: bytes, *, src: bytes | None = None, oif: int = 0
    ) -> None:
        """Send one echo request. Raises NetError if there is no way to `dst`."""
        route = self._ip.route(dst, src=src, oif=oif)
        message = icmpv6.Icmpv6Message(icmpv6.ECHO_REQUEST, 0, ident << 16 | sequence, data)
        whole = message.emit(route.src, route.dst)
        self._ip.output(route, route.src, route.dst, ICMPV6, (whole,), len(whole), dont_fragment=False)

    def echo_failed(self, error: IcmpError) -> None:
        """An error about a packet with protocol 58: if it was an echo of ours, its path MTU is believed."""
        payload = error.payload
        if len(payload) < icmpv6.HEADER_LENGTH or payload[0] != icmpv6.ECHO_REQUEST:
            return
        ident = payload[4] << 8 | payload[5]
        ours = ident in self._echo_handlers or (bool(self._ip.pings) and self._ip.pings.failed(error, ident))
        if error.mtu and ours:
            self._ip.update_path_mtu(error.remote, error.mtu)

    def _error(self, packet: IpPacket, message: icmpv6.Icmpv6Message) -> None:
        """An error about a packet we are said to have sent: find its transport."""
        ip = self._ip
        outcome = classify6(message.type, message.code)
        quoted = memoryview(message.data)
        if outcome is None:
            return
        try:
            if len(quoted) < HEADER_LENGTH:
                raise WireError("quotation cut short")
            first, _, next_header, _, src, dst = HEADER.unpack_from(quoted)
            if first >> 28 != 6:
                raise WireError("quotation is not IPv6")
            chain = walk_extensions(next_header, quoted[HEADER_LENGTH:])
            payload = quoted[HEADER_LENGTH + chain.offset :]
            proto = chain.next_header
            if proto == FRAGMENT_HEADER:
                fragment, payload = parse_fragment(payload)
                proto = fragment.next_header
                if fragment.offset:
                    return
            if len(payload) < 8:
                raise WireError("quotation cut short")
        except WireError:
            ip.drops.count(DropReason.BAD_MESSAGE)
            return
        if ip.local.get(src) is not PacketKind.UNICAST:
            return
        errno, hard = outcome
        mtu = max(message.info, MIN_MTU) if message.type == icmpv6.PACKET_TOO_BIG else 0
        error = IcmpError(
            version=6,
            type=message.type,
            code=message.code,
            errno=errno,
            hard=hard,
            mtu=mtu,
            info=message.info,
            src=packet.src,
            local=src,
            remote=dst,
            proto=proto,
            payload=payload,
            header=len(quoted) - len(payload),
            described=(message.info >> 24) * 8 if message.type in icmpv6.EXTENSIBLE else 0,
        )
        ip.deliver_error(error)

    def send_error(
        self, packet: IpPacket, kind: int, code: int, info: int = 0, *, even_multicast: bool = False
    ) -> None:
        """Tell `packet`'s sender what is wrong with it, unless RFC 4443 2.4 or the rate limit forbid it."""
        ip = self._ip
        src = packet.src
        unicast = packet.kind is PacketKind.UNICAST
        if not any(src) or src[0] == 0xFF or not (unicast or even_multicast):
            return
        if packet.proto == ICMPV6 and (not packet.payload or packet.payload[0] < icmpv6.FIRST_INFORMATIONAL):
            return
        if not packet.iface.loopback and not ip.icmp_limit.allow(src):
            ip.drops.count(DropReason.RATE_LIMITED)
            return
        own = packet.dst if unicast else packet.iface.source_for(src)
        if own is not None and not ip.is_own_unicast(own):  # a packet passed on: the address that leads back
            try:
                own = ip.route(src, oif=packet.iface.index if is_link_local(src) else 0).src
            except NetError:
                own = None
        if own is None:
            return
        quoted = packet.datagram[: MIN_MTU - HEADER_LENGTH - icmpv6.HEADER_LENGTH]
        self._send(packet, own, icmpv6.Icmpv6Message(kind, code, info, quoted).emit(own, src))

    def _send(self, packet: IpPacket, src: bytes, message: bytes) -> None:
        ip = self._ip
        try:
            route = ip.route(packet.src, src=src, oif=packet.iface.index if is_link_local(packet.src) else 0)
            ip.output(route, src, packet.src, ICMPV6, (message,), len(message), dont_fragment=False)
        except NetError:
            ip.drops.count(DropReason.NO_ROUTE)
        else:
            self.messages.count(f"Icmp6OutType{message[0]}")
