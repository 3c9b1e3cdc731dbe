"""Neighbour discovery for hosts: solicitations and advertisements (RFC 4861 7.2), feeding the interface's cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.errors import DropReason
from stack.ip.dad import DuplicateDetection
from stack.wire import icmpv6
from stack.wire.error import WireError
from stack.wire.ethernet import ETHERTYPE_IPV6, multicast_mac6
from stack.wire.ipv6 import ALL_NODES, ICMPV6, Ipv6Header, solicited_node

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IpPacket
    from stack.link.neighbour import Neighbour


class Ndp:
    """Answers solicitations for our addresses, believes advertisements, solicits on behalf of neighbour caches."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self.duplicates = DuplicateDetection(ip.scheduler)
        self.routers: set[int] = set()  #: indexes of interfaces on which we advertise ourselves as a router

    def receive(self, packet: IpPacket, message: icmpv6.Icmpv6Message) -> None:
        """One NS or NA, its ICMPv6 checksum verified."""
        iface = packet.iface
        if iface.loopback:
            return
        try:
            neighbour = icmpv6.parse_neighbour(message, packet.src, packet.dst, packet.ttl)
        except WireError:
            self._ip.drops.count(DropReason.BAD_MESSAGE)
            return
        if message.type == icmpv6.NEIGHBOUR_SOLICITATION:
            self._solicited(iface, packet, neighbour)
        else:
            self._advertised(iface, neighbour)

    def _solicited(self, iface: Interface, packet: IpPacket, message: icmpv6.NeighbourMessage) -> None:
        """RFC 4861 7.2.3 and 7.2.4."""
        if not any(packet.src) and self.duplicates.solicited(iface, message.target, message.nonce):
            return
        if not iface.answers_for(message.target):
            return
        flags = icmpv6.NA_OVERRIDE
        if iface.index in self.routers or iface.index in self._ip.forwarding.active6:
            flags |= icmpv6.NA_ROUTER
        if not any(packet.src):
            # Somebody probes for an address of ours: all nodes are told whose it is.
            self._send(iface, multicast_mac6(ALL_NODES), message.target, ALL_NODES, message.target, flags)
            return
        if message.link_address is not None:
            iface.neighbours.lookup(packet.src).update(message.link_address, solicited=False)
            mac = message.link_address
        else:
            entry = iface.neighbours.get(packet.src)
            if entry is None or entry.mac is None:
                return  # a unicast probe from a neighbour we never heard of: it will ask all nodes next
            mac = entry.mac
        self._send(iface, mac, message.target, packet.src, message.target, flags | icmpv6.NA_SOLICITED)

    def _advertised(self, iface: Interface, message: icmpv6.NeighbourMessage) -> None:
        """RFC 4861 7.2.5: only what we have an entry for."""
        if self.duplicates.advertised(iface, message.target):
            return
        entry = iface.neighbours.get(message.target)
        if entry is None:
            return
        entry.is_router = bool(message.flags & icmpv6.NA_ROUTER)
        solicited = bool(message.flags & icmpv6.NA_SOLICITED)
        if message.link_address is not None:
            override = bool(message.flags & icmpv6.NA_OVERRIDE)
            entry.update(message.link_address, solicited=solicited, override=override)
        elif solicited:
            entry.confirm()  # an answer to a unicast probe may leave the option out

    def solicit(self, iface: Interface, entry: Neighbour) -> None:
        """Ask for `entry`: its solicited-node group, or the one MAC it had."""
        source = iface.source_for(entry.address)
        if source is None:
            return
        group = solicited_node(entry.address)
        dst, mac = (group, multicast_mac6(group)) if entry.mac is None else (entry.address, entry.mac)
        message = icmpv6.emit_neighbour(icmpv6.NEIGHBOUR_SOLICITATION, entry.address, iface.mac, 0, source, dst)
        self._frame(iface, mac, source, dst, message)

    def announce(self, iface: Interface, address: bytes) -> None:
        """Tell everybody our MAC for `address`, unasked (RFC 4861 7.2.6; Linux: ndisc_notify)."""
        router = iface.index in self.routers or iface.index in self._ip.forwarding.active6
        flags = icmpv6.NA_OVERRIDE | (icmpv6.NA_ROUTER if router else 0)
        self._send(iface, multicast_mac6(ALL_NODES), address, ALL_NODES, address, flags)

    def _send(self, iface: Interface, mac: bytes, src: bytes, dst: bytes, target: bytes, flags: int) -> None:
        message = icmpv6.emit_neighbour(icmpv6.NEIGHBOUR_ADVERTISEMENT, target, iface.mac, flags, src, dst)
        self._frame(iface, mac, src, dst, message)

    def _frame(self, iface: Interface, mac: bytes, src: bytes, dst: bytes, message: bytes) -> None:
        """Neighbour discovery goes out without asking the routing table or the cache it serves."""
        header = Ipv6Header(src, dst, ICMPV6, len(message), icmpv6.ND_HOP_LIMIT)
        iface.send_frame(mac, ETHERTYPE_IPV6, header.emit() + message)
