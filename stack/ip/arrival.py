"""Through which interface a packet counts as having come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.ip.packet import IpPacket, PacketKind
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer


class Arrivals:
    """Of one namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._owners: dict[bytes, int] = {}  # address -> index of its interface, of one generation:
        self._generation = 0

    def of(self, packet: IpPacket) -> int:
        """The index of the interface.

        What one of our own sockets sent comes through `lo`, but counts as having come through the interface that has
        the address it is for, as on Linux; to a group or to everybody, through the one it left by, which `IpOutput`
        tells where a source MAC would be.
        """
        iface = packet.iface
        if not iface.loopback:
            return iface.index
        if packet.kind is PacketKind.UNICAST:
            return self.owner(packet.dst)
        if packet.start == ETHERNET_LENGTH:
            index = int.from_bytes(packet.frame[6:12], "big")
            if index in self._ip.interfaces:
                return index
        return iface.index

    def owner(self, address: bytes) -> int:
        """Index of the interface that has `address`; that of `lo` for loopback addresses and others."""
        ip = self._ip
        if self._generation != ip.generation:
            interfaces = reversed(ip.interfaces.values())
            self._owners = {each.address: iface.index for iface in interfaces for each in iface.addresses}
            self._generation = ip.generation
        return self._owners.get(address, ip.loopback.index)
