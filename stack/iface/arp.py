"""ARP of one interface: answers for its addresses, feeds its neighbour cache, asks on the cache's behalf (IF-08)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.errors import DropReason
from stack.iface.acd import ConflictDetection
from stack.wire import arp, ethernet
from stack.wire.error import WireError
from stack.wire.ipv4 import may_be_source

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.link.neighbour import Neighbour


class Arp:
    """RFC 826 with the checks of RFC 5227 and Linux's defaults (arp_ignore 0 within one interface, arp_accept 0)."""

    __slots__ = ("_iface", "conflicts")

    def __init__(self, iface: Interface) -> None:
        self._iface = iface
        self.conflicts = ConflictDetection(iface)

    def receive(self, iface: Interface, frame: memoryview, _kind: int, _flags: int, _gso_size: int) -> None:
        """One ARP frame; the signature is that of every ethertype's handler."""
        try:
            message = arp.parse(frame[ethernet.HEADER_LENGTH :])
        except WireError:
            iface.drops.count(DropReason.BAD_MESSAGE)
            return
        sender = message.sender_ip
        self.conflicts.heard(message)
        ours = iface.answers_for(message.target_ip)
        probe = not any(sender)  # RFC 5227 2.1.1: "who has", asked by one that has no address yet
        if not probe:
            if not may_be_source(sender) or iface.has_address(sender):
                # Nobody else may claim our address; RFC 5227 2.4 lets a host keep it and ignore the claim.
                iface.drops.count(DropReason.MARTIAN_SOURCE)
                return
            self._learn(message, ours=ours)
        if ours and message.operation == arp.REQUEST:
            reply = arp.ArpMessage(arp.REPLY, iface.mac, message.target_ip, message.sender_mac, sender)
            iface.send_frame(message.sender_mac, ethernet.ETHERTYPE_ARP, reply.emit())

    def _learn(self, message: arp.ArpMessage, *, ours: bool) -> None:
        neighbours = self._iface.neighbours
        entry = neighbours.get(message.sender_ip)
        if entry is None:
            if not ours or message.operation != arp.REQUEST:
                return  # an answer nobody asked for, or a conversation of others
            entry = neighbours.lookup(message.sender_ip)
        # Only a reply to us confirms that we can reach the sender and it us (RFC 4861 7.3.1).
        entry.update(message.sender_mac, solicited=ours and message.operation == arp.REPLY)

    def solicit(self, entry: Neighbour) -> None:
        """Ask for `entry`: everybody, or the one MAC it had."""
        iface = self._iface
        source = iface.source_for(entry.address)
        if source is None:
            return  # no address of ours to be answered at; the entry times out
        request = arp.ArpMessage(arp.REQUEST, iface.mac, source, ethernet.NULL_MAC, entry.address)
        iface.send_frame(entry.mac or ethernet.BROADCAST, ethernet.ETHERTYPE_ARP, request.emit())

    def announce(self, address: bytes) -> None:
        """Tell everybody our MAC for `address` (RFC 5227 2.3: a request for our own address)."""
        iface = self._iface
        message = arp.ArpMessage(arp.REQUEST, iface.mac, address, ethernet.NULL_MAC, address)
        iface.send_frame(ethernet.BROADCAST, ethernet.ETHERTYPE_ARP, message.emit())

    def probe(self, address: bytes) -> None:
        """Ask whether anybody has `address`, from none (RFC 5227 2.1.1)."""
        iface = self._iface
        message = arp.ArpMessage(arp.REQUEST, iface.mac, bytes(4), ethernet.NULL_MAC, address)
        iface.send_frame(ethernet.BROADCAST, ethernet.ETHERTYPE_ARP, message.emit())
