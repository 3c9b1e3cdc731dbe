"""`PacketLayer`: who listens to whole frames in one network namespace.

Theory of operation
-------------------
A tap stands on each interface that a packet socket listens on, and on no other: an interface without taps pays one test
of an empty list per burst. Frames are seen where Linux shows them (dev_queue_xmit_nit, __netif_receive_skb_core):
outgoing ones as they are handed to the device, superframes whole if the device takes them so; incoming ones before
VLANs and bridges take theirs, the outermost VLAN tag taken off and told beside.

Our devices bring every frame of the wire. What a network card would filter out is not shown: frames to other hosts
unless the interface is promiscuous or a port of a bridge, frames to groups that nobody here joined. `Filter` is that
filter; memberships (PACKET_ADD_MEMBERSHIP, IFF_PROMISC, IP's own groups) open it. `lo` and links made by kind (veth,
dummy...) have no such filter, as on Linux.

Interfaces come, go, and go down by the namespace's record of changes, which is read at the end of the turn.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.iface.changes import ChangeKind
from stack.link.device import RxFrame, TxFrame
from stack.packet.endpoint import PacketEndpoint
from stack.packet.sighting import (
    ETH_P_ALL,
    FIRST_ETHERTYPE,
    PACKET_BROADCAST,
    PACKET_HOST,
    PACKET_MULTICAST,
    PACKET_OTHERHOST,
    VLAN_TAGS,
    incoming,
    outgoing,
)
from stack.wire import ethernet

if TYPE_CHECKING:
    from stack.iface.changes import ChangeLog
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer
    from stack.scheduler import Scheduler

_MACS: Final = 12  # bytes
_DESTINATION: Final = struct.Struct("!6s6xH")  # destination, ethertype
_DOWN: Final = ("down", "closing")


class Filter:
    """Which frames a network card in the interface's place would let through."""

    def __init__(self, iface: Interface, ip: IpLayer) -> None:
        self._iface = iface
        self._ip = ip
        self._no_card = iface.loopback or bool(iface.kind)
        self._generation = -1
        self._groups: frozenset[bytes] = frozenset()

    def kind(self, dst: bytes) -> int:
        """PACKET_* of a frame to `dst`; -1: it is not let through."""
        iface = self._iface
        if dst == iface.mac:
            return PACKET_HOST
        if dst == ethernet.BROADCAST:
            return PACKET_BROADCAST
        open_ = self._no_card or iface.promiscuous or iface.master is not None or dst in iface.link_addresses
        if dst[0] & 1:
            return PACKET_MULTICAST if open_ or iface.all_multicast or dst in self._joined() else -1
        return PACKET_OTHERHOST if open_ or any(upper.mac == dst for upper in iface.uppers) else -1

    def _joined(self) -> frozenset[bytes]:
        """The hardware addresses of IP's groups here."""
        ip = self._ip
        if ip.generation != self._generation:
            self._generation = ip.generation
            groups = [*ip.standing_groups, *(g for width in (4, 16) for g, _ in ip.groups.of(self._iface, width))]
            self._groups = frozenset(
                ethernet.multicast_mac4(g) if len(g) == 4 else ethernet.multicast_mac6(g) for g in groups
            )
        return self._groups


class InterfaceTap:
    """The endpoints that listen on one interface; satisfies `stack.iface.hooks.Tap`."""

    def __init__(self, iface: Interface, ip: IpLayer) -> None:
        self.iface = iface
        self.endpoints: list[PacketEndpoint] = []
        self._everything = False  # somebody wants to see what goes out
        #: Ethertypes somebody may want: those asked for, and tags, behind which they may be. None: all of them.
        self._wanted: frozenset[int] | None = None
        self._ip = ip
        self._filter = Filter(iface, ip)

    def set(self, endpoints: list[PacketEndpoint]) -> None:
        self.endpoints = endpoints
        self._everything = any(each.protocol == ETH_P_ALL and not each.ignore_outgoing for each in endpoints)
        protocols = {each.protocol for each in endpoints}
        plain = all(protocol >= FIRST_ETHERTYPE for protocol in protocols)
        self._wanted = frozenset(protocols | VLAN_TAGS) if plain else None

    def received(self, burst: Sequence[RxFrame]) -> None:
        iface = self.iface
        if not iface.up:
            return
        kind_of = self._filter.kind
        wanted = self._wanted
        for frame in burst:
            view = frame[0]
            if len(view) < ethernet.HEADER_LENGTH or (iface.loopback and self._is_copy(view)):
                continue
            dst, ethertype = _DESTINATION.unpack_from(view)
            if wanted is not None and ethertype not in wanted:
                continue
            kind = kind_of(dst)
            sighting = incoming(iface, frame, kind) if kind >= 0 else None
            if sighting is not None:
                for endpoint in self.endpoints:
                    endpoint.offer(sighting)

    def transmitted(self, burst: Sequence[TxFrame]) -> None:
        if not self._everything:
            return
        for frame in burst:
            sighting = outgoing(self.iface, frame)
            if sighting is not None and not (self.iface.loopback and self._is_copy(sighting.frame)):
                for endpoint in self.endpoints:
                    endpoint.offer(sighting)

    def _is_copy(self, frame: memoryview) -> bool:
        """On `lo`: what our own IP gets back of what it sent to a group or to everybody, which no wire ever sees.

        `IpOutput` writes the index of the interface it left through where a source MAC would be.
        """
        macs = frame[:_MACS]
        return bytes(macs[:10]) == bytes(10) and int.from_bytes(macs[10:], "big") in self._ip.interfaces


class PacketLayer:
    """Packet sockets of one network namespace."""

    def __init__(self, scheduler: Scheduler, ip: IpLayer, changes: ChangeLog) -> None:
        self._scheduler = scheduler
        self._ip = ip
        self._changes = changes
        self._endpoints: list[PacketEndpoint] = []
        self._taps: dict[int, InterfaceTap] = {}  # by ifindex
        self._cursor = 0
        self._asked = False
        self.random = partial(scheduler.rng.getrandbits, 32)

    def open(self, *, headers: bool) -> PacketEndpoint:
        """One more endpoint, which sees nothing before it is told what."""
        if not self._endpoints:
            self._cursor = self._changes.end
            self._changes.observers.append(self._changed)
        endpoint = PacketEndpoint(self, headers=headers)
        self._endpoints.append(endpoint)
        return endpoint

    @property
    def now(self) -> int:
        """The Network's clock, ns."""
        return self._scheduler.now

    def find(self, ifindex: int) -> Interface | None:
        return self._ip.interfaces.get(ifindex)

    def interface(self, ifindex: int) -> Interface:
        """Raises NetError(ENODEV)."""
        iface = self.find(ifindex)
        if iface is None:
            raise NetError(errno.ENODEV)
        return iface

    def rebind(self) -> None:
        """An endpoint listens to something else, or not any more: put the taps where they are needed."""
        interfaces = self._ip.interfaces
        for index, tap in list(self._taps.items()):
            if interfaces.get(index) is not tap.iface:
                tap.iface.taps.remove(tap)
                del self._taps[index]
        for index, iface in interfaces.items():
            wanted = [each for each in self._endpoints if each.protocol and each.ifindex in (0, index)]
            present = self._taps.get(index)
            if wanted:
                if present is None:
                    present = self._taps[index] = InterfaceTap(iface, self._ip)
                    iface.taps.append(present)
                present.set(wanted)
            elif present is not None:
                iface.taps.remove(present)
                del self._taps[index]

    def forget(self, endpoint: PacketEndpoint) -> None:
        """Called by a closing endpoint."""
        self._endpoints.remove(endpoint)
        self.rebind()
        if not self._endpoints:
            self._changes.observers.remove(self._changed)

    def _changed(self) -> None:
        if not self._asked:
            self._asked = True
            self._scheduler.defer(self._follow)

    def _follow(self) -> None:
        """Read what happened to interfaces: sockets bound to one that went down are told (ENETDOWN)."""
        self._asked = False
        records, _ = self._changes.since(self._cursor)
        self._cursor = self._changes.end
        self.rebind()
        for record in records:
            gone = record.kind is ChangeKind.DEL_LINK
            if gone or (record.kind is ChangeKind.NEW_LINK and record.detail in _DOWN):
                for endpoint in tuple(self._endpoints):
                    if endpoint.ifindex == record.ifindex:
                        self._lost(endpoint, gone=gone)

    def _lost(self, endpoint: PacketEndpoint, *, gone: bool) -> None:
        if gone:
            endpoint.ifindex = -1
        elif endpoint.protocol:
            endpoint.fail(errno.ENETDOWN)
