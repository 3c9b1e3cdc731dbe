"""MLD of one namespace: the messages of `stack.ip.report` over IPv6 (RFC 3810, RFC 2710)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.errors import DropReason
from stack.ip.igmp import split
from stack.ip.packet import IpPacket
from stack.ip.report import Reporter
from stack.wire import mld
from stack.wire.error import WireError
from stack.wire.ethernet import ETHERTYPE_IPV6, multicast_mac6
from stack.wire.icmpv6 import Icmpv6Message
from stack.wire.igmp import Record
from stack.wire.ipv6 import (
    ALL_NODES,
    ALL_ROUTERS,
    ANY,
    HEADER_LENGTH,
    HOP_BY_HOP,
    SOLICITED_NODE_PREFIX,
    Ipv6Header,
    is_link_local,
    solicited_node,
)

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer

_HEADERS = HEADER_LENGTH + len(mld.ROUTER_ALERT) + 8


class Mld:
    """Receives queries, and sends what the reporter says."""

    width = 16

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self.reporter = Reporter(ip.scheduler, ip.groups, self)

    def receive(self, packet: IpPacket, message: Icmpv6Message) -> None:
        """One ICMPv6 message of MLD, its checksum verified. RFC 3810 6.2: from this link, marked for routers."""
        try:
            if packet.ttl != 1 or not is_link_local(packet.src) or packet.header_length == HEADER_LENGTH:
                raise WireError("MLD from beyond the link")
            query = mld.parse_query(message) if message.type == mld.QUERY else None
            group = mld.parse_group(message) if message.type == mld.V1_REPORT else b""
        except WireError:
            self._ip.drops.count(DropReason.BAD_MESSAGE)
            return
        if packet.iface.loopback or packet.src in self._ip.local:
            return
        if query is not None:
            self.reporter.query(packet.iface, query, old=query.version == 1)
        elif group:
            self.reporter.heard_report(packet.iface, group)

    def silent(self, group: bytes) -> bool:
        # RFC 3810 6: nor what stays on this node (scopes 0 and 1).
        return group == ALL_NODES or group[1] & 0x0F < 2 or group.startswith(SOLICITED_NODE_PREFIX)

    def further(self, iface: Interface) -> list[bytes]:
        return list({solicited_node(each.address): None for each in iface.addresses if len(each.address) == 16})

    def report(self, iface: Interface, records: list[Record]) -> None:
        source = self._source(iface)
        for each in split(records, iface.mtu - _HEADERS):
            self._send(iface, source, mld.V2_ROUTERS, mld.emit_report(each, source, mld.V2_ROUTERS))

    def old_report(self, iface: Interface, group: bytes) -> None:
        source = self._source(iface)
        self._send(iface, source, group, mld.emit(mld.V1_REPORT, group, source, group))

    def old_leave(self, iface: Interface, group: bytes) -> None:
        source = self._source(iface)
        self._send(iface, source, ALL_ROUTERS, mld.emit(mld.V1_DONE, group, source, ALL_ROUTERS))

    @staticmethod
    def _source(iface: Interface) -> bytes:
        """A link-local address, or none while there is none that was tested (RFC 3590)."""
        addresses = (each for each in iface.addresses if len(each.address) == 16 and each.usable)
        return next((each.address for each in addresses if is_link_local(each.address)), ANY)

    @staticmethod
    def _send(iface: Interface, source: bytes, dst: bytes, message: bytes) -> None:
        header = Ipv6Header(source, dst, HOP_BY_HOP, len(mld.ROUTER_ALERT) + len(message), hop_limit=1)
        iface.send_frame(multicast_mac6(dst), ETHERTYPE_IPV6, header.emit() + mld.ROUTER_ALERT + message)
