"""ICMP for IPv4: answers echo requests, sends errors at a bounded rate, hands errors about our packets to transports.

RFC 792, RFC 1122 3.2.2 and 4.1.3; row IF-10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, Drops, NetError
from stack.ip.errormap import classify4
from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.ip.pmtu import plateau_below
from stack.ip.source_route import answer_options
from stack.wire import icmp
from stack.wire.error import WireError
from stack.wire.ipoptions import first_hop
from stack.wire.ipv4 import HEADER, HEADER_LENGTH, MIN_MTU, OFFSET_MASK, PROTO_ICMP

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer

#: An error message quotes as much as fits into what every host must accept (RFC 1812 4.3.2.3).
MAX_ERROR_PACKET: Final = 576

#: Called with (sender's address, sequence, data) for each reply to an echo we sent.
EchoHandler = Callable[[bytes, int, bytes], None]


class Icmp4:
    """ICMP of one network namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self.messages = Drops()  #: in and out by type, named as in /proc/net/snmp
        self._echo_handlers: dict[int, EchoHandler] = {}

    def receive(self, packet: IpPacket) -> None:
        """One packet with protocol 1."""
        drops = self._ip.drops
        try:
            message = icmp.parse(packet.payload)
        except WireError:
            drops.count(DropReason.BAD_MESSAGE)
            return
        self.messages.count(f"IcmpMsgInType{message.type}")
        if message.type == icmp.ECHO_REQUEST:
            self._echo(packet, message)
        elif message.type == icmp.ECHO_REPLY:
            handler = self._echo_handlers.get(message.info >> 16)
            if handler is not None:
                handler(packet.src, message.info & 0xFFFF, bytes(message.data))
            elif self._ip.pings:
                self._ip.pings.replied(packet, message.info >> 16)
        elif message.type in icmp.ERROR_TYPES:
            self._error(packet, message)

    def _echo(self, packet: IpPacket, message: icmp.IcmpMessage) -> None:
        """RFC 1122 3.2.2.6, records and source routes included; not for broadcasts (Linux: icmp_echo_ignore_broadcasts
        1).
        """
        if packet.kind is not PacketKind.UNICAST:
            return
        reply = icmp.IcmpMessage(icmp.ECHO_REPLY, 0, message.info, message.data).emit()
        self._send(packet.dst, packet.src, reply, tos=packet.tos, options=answer_options(self._ip, packet))

    def listen_echo(self, ident: int, handler: EchoHandler | None) -> None:
        """Have replies to echoes with identifier `ident` handed to `handler`; None: no longer."""
        if handler is None:
            self._echo_handlers.pop(ident, None)
        else:
            self._echo_handlers[ident] = handler

    def send_echo(self, dst: bytes, ident: int, sequence: int, data: bytes, *, src: bytes | None = None) -> None:
        """Send one echo request. Raises NetError if there is no way to `dst`."""
        message = icmp.IcmpMessage(icmp.ECHO_REQUEST, 0, ident << 16 | sequence, data).emit()
        route = self._ip.route(dst, src=src)
        self._ip.output(route, route.src, route.dst, PROTO_ICMP, (message,), len(message), dont_fragment=False)

    def echo_failed(self, error: IcmpError) -> None:
        """An error about a packet with protocol 1: if it was an echo of ours, its path MTU is believed."""
        payload = error.payload
        if len(payload) < icmp.HEADER_LENGTH or payload[0] != icmp.ECHO_REQUEST:
            return
        ident = payload[4] << 8 | payload[5]
        ours = ident in self._echo_handlers or (bool(self._ip.pings) and self._ip.pings.failed(error, ident))
        if error.mtu and ours:
            self._ip.update_path_mtu(error.remote, error.mtu)

    def _error(self, packet: IpPacket, message: icmp.IcmpMessage) -> None:
        """An error about a packet we are said to have sent: find its transport."""
        outcome = classify4(message.type, message.code)
        quoted = memoryview(message.data)
        if outcome is None:
            return
        if len(quoted) < HEADER_LENGTH + 8:
            self._ip.drops.count(DropReason.BAD_MESSAGE)
            return
        # The quotation may be cut and its total length may be anything: only the header proper is read.
        first, _, total_length, _, fragment, _, proto, _, src, dst = HEADER.unpack_from(quoted)
        header_length = (first & 0x0F) * 4
        if first >> 4 != 4 or header_length < HEADER_LENGTH or len(quoted) < header_length + 8:
            self._ip.drops.count(DropReason.BAD_MESSAGE)
            return
        if fragment & OFFSET_MASK or self._ip.local.get(src) is not PacketKind.UNICAST:
            return
        errno, hard = outcome
        mtu = 0
        if message.type == icmp.UNREACHABLE and message.code == icmp.FRAGMENTATION_NEEDED:
            # RFC 1191 5: a router that does not say leaves us to guess from the length of what did not fit.
            mtu = max(message.info & 0xFFFF or plateau_below(total_length), MIN_MTU)
        error = IcmpError(
            version=4,
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
            payload=quoted[header_length:],
            header=header_length,
            described=(message.info >> 16 & 0xFF) * 4 if message.type in icmp.EXTENSIBLE else 0,
        )
        self._ip.deliver_error(error)

    def send_error(self, packet: IpPacket, kind: int, code: int, info: int = 0) -> None:
        """Tell `packet`'s sender what is wrong with it, unless RFC 1122 3.2.2 or the rate limit forbid it."""
        ip = self._ip
        src = packet.src
        if packet.kind is not PacketKind.UNICAST or not any(src) or src[0] >= 224 or src in ip.broadcasts:
            return
        header = packet.header
        if (header[6] << 8 | header[7]) & OFFSET_MASK:
            return  # not about a fragment other than the first
        if packet.proto == PROTO_ICMP and (not packet.payload or packet.payload[0] in icmp.ERROR_TYPES):
            return
        if not packet.iface.loopback and not ip.icmp_limit.allow(src):
            ip.drops.count(DropReason.RATE_LIMITED)
            return
        options = answer_options(ip, packet)
        quoted = packet.datagram[: MAX_ERROR_PACKET - HEADER_LENGTH - len(options) - icmp.HEADER_LENGTH]
        # RFC 1812 4.3.2.5: precedence of the offending packet, at least "internetwork control".
        # About a packet passed on: from the address that leads back to its sender, as Linux by default.
        own = packet.dst if ip.is_own_unicast(packet.dst) else None
        tos = packet.tos & 0x1E | 0xC0
        self._send(own, src, icmp.IcmpMessage(kind, code, info, quoted).emit(), tos=tos, options=options)

    def _send(self, src: bytes | None, dst: bytes, message: bytes, *, tos: int, options: bytes) -> None:
        ip = self._ip
        length = len(message)
        try:
            route = ip.route(first_hop(options) or dst, src=src)
            ip.output(
                route, route.src, dst, PROTO_ICMP, (message,), length, tos=tos, dont_fragment=False, options=options
            )
        except NetError:
            ip.drops.count(DropReason.NO_ROUTE)
        else:
            self.messages.count(f"IcmpMsgOutType{message[0]}")
