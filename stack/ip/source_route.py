"""Packets that say themselves which hosts they pass: loose and strict source routes (RFC 791 3.1, RFC 1812 5.2.4.1).

Theory of operation
-------------------
Refused unless asked for, as on Linux: `SourceRoutes.set` is net.ipv4.conf.all.accept_source_route, and with an
interface the one of that interface, which may only forbid (1 at first). A packet addressed to us whose route is not at
its end goes to the next host named. If that is us again it is as if it had been addressed so from the beginning; else
it is forwarded, where its interface forwards: the host takes the place of the destination, and its slot of the option
gets the address we send from. What is addressed to others passes like any packet, unless its route is strict.

Answers go back the way the question came, `answer_options`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.errors import DropReason
from stack.ip.packet import IpPacket, PacketKind
from stack.wire import icmp
from stack.wire.checksum import checksum
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH
from stack.wire.ipoptions import SSRR, echoed, milliseconds, recorded, source_route
from stack.wire.ipv4 import HEADER_LENGTH, may_be_source

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer

_DESTINATION: Final = 16  # offset in the header


class SourceRoutes:
    """What one network namespace does with them."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._drops = ip.drops
        self._everywhere = False
        self._refusing: set[int] = set()  # indexes of interfaces

    def set(self, on: bool, *, iface: Interface | None = None) -> None:
        """Take packets with a source route, or refuse them; of `iface` only: where they are taken at all."""
        if iface is None:
            self._everywhere = on
        elif on:
            self._refusing.discard(iface.index)
        else:
            self._refusing.add(iface.index)

    def taken(self, iface: Interface) -> bool:
        """Are such packets taken that come in through `iface`?"""
        return self._everywhere and iface.index not in self._refusing

    def arrived(
        self, iface: Interface, frame: memoryview, link_kind: int, flags: int, gso_size: int
    ) -> memoryview | None:
        """A frame whose IPv4 header is good and has a source route. What to go on with, None: nothing."""
        if not self.taken(iface):
            self._drops.count(DropReason.SOURCE_ROUTE)
            return None
        end = ETHERNET_LENGTH + (frame[ETHERNET_LENGTH] & 0x0F) * 4
        header = bytearray(frame[ETHERNET_LENGTH:end])
        found = source_route(header[HEADER_LENGTH:])
        if found is None or header[HEADER_LENGTH + found + 2] < 4:
            self._drops.count(DropReason.BAD_HEADER)
            return None
        at = HEADER_LENGTH + found
        kind = self._ip.local.get(bytes(header[_DESTINATION : _DESTINATION + 4]))
        if kind is None:
            if header[at] == SSRR and not iface.loopback:
                self._problem(iface, frame, header, _DESTINATION)
                return None
            return frame
        if kind is not PacketKind.UNICAST or link_kind:
            self._drops.count(DropReason.SOURCE_ROUTE)
            return None
        length = header[at + 1]
        for pointer in range(header[at + 2], length + 1, 4):
            if pointer + 3 > length:
                self._problem(iface, frame, header, at + 2)
                return None
            hop = bytes(header[at + pointer - 1 : at + pointer + 3])
            if iface.loopback or not may_be_source(hop):  # from ourselves: no way in for what comes from us
                self._drops.count(DropReason.MARTIAN_DESTINATION)
                return None
            if self._ip.local.get(hop) is not PacketKind.UNICAST:
                if iface.index in self._ip.forwarding.active4:
                    self._ip.forwarding.forward4(iface, frame, link_kind, flags, gso_size, hop=(hop, at, pointer))
                else:
                    self._drops.count(DropReason.NOT_FOR_US)
                return None
            header[_DESTINATION : _DESTINATION + 4] = hop
        _sum_up(header)
        return memoryview(bytes(frame[:ETHERNET_LENGTH]) + bytes(header) + bytes(frame[end:]))

    def _problem(self, iface: Interface, frame: memoryview, header: bytearray, at: int) -> None:
        """Parameter problem: byte `at` of the header."""
        self._drops.count(DropReason.BAD_HEADER)
        total = int.from_bytes(header[2:4], "big")
        payload = frame[ETHERNET_LENGTH + len(header) : ETHERNET_LENGTH + total]
        src, dst = bytes(header[12:16]), bytes(header[16:20])
        packet = IpPacket(
            4,
            src,
            dst,
            header[9],
            header[8],
            header[1],
            payload,
            True,
            0,
            iface,
            frame,
            ETHERNET_LENGTH,
            len(header),
            total,
            PacketKind.UNICAST,
        )
        self._ip.icmp4.send_error(packet, icmp.PARAMETER_PROBLEM, 0, at << 24)


def passed(header: bytearray, hop: bytes, at: int, pointer: int, address: bytes) -> None:
    """Send `header` on to `hop`, which stands in slot `pointer` of the option at `at`: `address` takes its place."""
    header[_DESTINATION : _DESTINATION + 4] = hop
    header[at + pointer - 1 : at + pointer + 3] = address
    header[at + 2] = pointer + 4
    _sum_up(header)


def answer_options(ip: IpLayer, packet: IpPacket) -> bytes:
    """The options of an answer to `packet`: its records with ours in them, and its way backwards."""
    header = packet.header
    if len(packet.dst) != 4 or len(header) <= HEADER_LENGTH:
        return b""
    options = bytes(header[HEADER_LENGTH:])
    if ip.local.get(packet.dst) is PacketKind.UNICAST:
        scheduler = ip.scheduler
        options = recorded(options, packet.dst, milliseconds(scheduler.now + scheduler.epoch))
    return echoed(options, packet.src)


def _sum_up(header: bytearray) -> None:
    header[10:12] = bytes(2)
    header[10:12] = checksum(header).to_bytes(2, "big")
