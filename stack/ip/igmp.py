"""IGMP of one namespace: the messages of `stack.ip.report` over IPv4 (RFC 3376, RFC 2236)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.errors import DropReason
from stack.ip.packet import IpPacket
from stack.ip.report import Reporter
from stack.wire import igmp
from stack.wire.error import WireError
from stack.wire.ethernet import ETHERTYPE_IPV4, multicast_mac4
from stack.wire.igmp import Record
from stack.wire.ipv4 import ALL_SYSTEMS, ANY, Ipv4Header

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer

_TOS = 0xC0  # RFC 3376 4: internetwork control
_HEADERS = 24 + 8  # bytes of IPv4 header with router alert, and of a report before its records


class Igmp:
    """Receives queries, and sends what the reporter says."""

    width = 4

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self.reporter = Reporter(ip.scheduler, ip.groups, self)

    def receive(self, packet: IpPacket) -> None:
        """One packet with protocol 2."""
        try:
            kind, group, query = igmp.parse(packet.payload)
            if packet.ttl != 1:
                raise WireError("IGMP from beyond the link")
        except WireError:
            self._ip.drops.count(DropReason.BAD_MESSAGE)
            return
        if packet.iface.loopback or packet.src in self._ip.local:
            return
        if query is not None:
            self.reporter.query(packet.iface, query, old=query.version == 2)
        elif kind == igmp.V2_REPORT:
            self.reporter.heard_report(packet.iface, group)

    def silent(self, group: bytes) -> bool:
        return group == ALL_SYSTEMS

    def further(self, _iface: Interface) -> list[bytes]:
        return []

    def report(self, iface: Interface, records: list[Record]) -> None:
        for each in split(records, iface.mtu - _HEADERS):
            self._send(iface, igmp.V3_ROUTERS, igmp.emit_report(each))

    def old_report(self, iface: Interface, group: bytes) -> None:
        self._send(iface, group, igmp.emit(igmp.V2_REPORT, group))

    def old_leave(self, iface: Interface, group: bytes) -> None:
        self._send(iface, igmp.ALL_ROUTERS, igmp.emit(igmp.V2_LEAVE, group))

    def _send(self, iface: Interface, dst: bytes, message: bytes) -> None:
        source = next((each.address for each in iface.addresses if len(each.address) == 4 and each.usable), ANY)
        header = Ipv4Header(
            source, dst, igmp.PROTO, 24 + len(message), ttl=1, tos=_TOS, fragment=0x4000, options=igmp.ROUTER_ALERT
        )
        iface.send_frame(multicast_mac4(dst), ETHERTYPE_IPV4, header.emit() + message)


def split(records: list[Record], room: int) -> list[list[Record]]:
    """Records in portions that fit `room` bytes each; a record's sources are divided if they must (RFC 3376 4.2.16)."""
    portions: list[list[Record]] = []
    used = room + 1
    for record in records:
        width = len(record.group)
        most = max((room - 4 - width) // width, 1)
        pieces = [record.sources[at : at + most] for at in range(0, max(len(record.sources), 1), most)]
        for sources in pieces:
            size = 4 + width + width * len(sources)
            if used + size > room:
                portions.append([])
                used = 0
            portions[-1].append(Record(record.type, record.group, sources))
            used += size
    return portions
