"""`IpLayer`: IPv4 and IPv6 of one network namespace, as transports and the namespace see it.

Theory of operation
-------------------
The layer owns what both directions need: the interfaces, which addresses are ours, the routing tables, who handles
which protocol, the port tables. The work is done by its parts: `Ipv4Input`, `Ipv6Input`, `NextHops`, `IpOutput`,
`Icmp4`, `Icmp6`.

Anything that may change where a packet goes (an address, a route, a link, a path MTU) bumps ``generation``. A caller
keeps the `Route` it got and compares ``route.generation`` with ``ip.generation`` before each use: one integer
comparison instead of a lookup.

Delivery follows the weak host model, as Linux does: a packet for any of our addresses is ours, whichever interface it
came in through; packets to our own addresses go through `lo`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.errors import Drops, NetError
from stack.iface.address import broadcast_of
from stack.iface.loopback import LoopbackInterface
from stack.ip.alert import AlertTable
from stack.ip.arrival import Arrivals
from stack.ip.forward import Forwarding
from stack.ip.groups import MAX_MEMBERSHIPS, Groups, Membership
from stack.ip.icmp4 import Icmp4
from stack.ip.icmp6 import Icmp6
from stack.ip.igmp import Igmp
from stack.ip.input4 import Ipv4Input
from stack.ip.input6 import Ipv6Input
from stack.ip.mld import Mld
from stack.ip.nexthop import NextHops, is_group
from stack.ip.output import IpOutput
from stack.ip.packet import IcmpError, IpPacket, PacketHandler, PacketKind
from stack.ip.ping import PingTable
from stack.ip.pmtu import MAX_ENTRIES as MAX_PATH_MTUS
from stack.ip.pmtu import PathMtus
from stack.ip.policy import RoutingPolicy
from stack.ip.ports import PortTable
from stack.ip.ratelimit import MAX_PEERS, IcmpRateLimit
from stack.ip.raw import RawTable
from stack.ip.route import Route, RouteEntry, RouteKind
from stack.ip.source import SourceSelection
from stack.ip.source_route import SourceRoutes
from stack.ip.undelivered import Undelivered
from stack.wire import icmp, icmpv6, igmp, ipv4, ipv6
from stack.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH

if TYPE_CHECKING:
    from stack.iface.hooks import FrameHandler
    from stack.iface.interface import Interface
    from stack.scheduler import Scheduler

MAX_CACHED_ROUTES: Final = 4096
MIN_PATH_MTU: Final = 552  # Linux: net.ipv4.route.min_pmtu; nobody talks us into smaller packets


class IpLayer:
    """One per `NetNamespace`. Addresses are 4 or 16 raw bytes, which also tells the family."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.generation = 1  #: bumped by whatever may change a route
        self.drops = Drops()
        self._cookie = self._cookies = 0
        self.interfaces: dict[int, Interface] = {}  #: by index
        self.loopback: LoopbackInterface  # the first interface added
        #: Every address a packet may have to be ours, and as what. Broadcasts of IPv4 also stand in `broadcasts`.
        self.local: dict[bytes, PacketKind] = {}
        self.broadcasts: set[bytes] = set()
        self.routes4 = RoutingPolicy(4, self.interfaces)
        self.routes6 = RoutingPolicy(16, self.interfaces)
        self.handlers4: dict[int, PacketHandler] = {}
        self.handlers6: dict[int, PacketHandler] = {}
        self._error_handlers: dict[int, Callable[[IcmpError], None]] = {}
        #: Local ports in use, by protocol number.
        self.ports = {
            proto: PortTable(scheduler.rng, is_local=self.is_local) for proto in (ipv4.PROTO_TCP, ipv4.PROTO_UDP)
        }
        self.groups = Groups(self.refresh)  #: memberships of multicast groups
        self._joined: dict[tuple[bytes, int], list[Membership]] = {}
        self.standing_groups: set[bytes] = set()  #: those we are in by being what we are
        self._cache: dict[tuple[bytes, bytes | None, int, int], Route] = {}
        self._path_mtus = PathMtus(scheduler, self.invalidate)
        self._determine = NextHops(self, self._path_mtus).determine
        self._mtu6: dict[int, int] = {}  # by ifindex: what a router advertised, less than the link's own
        self.forwarding = Forwarding(self)
        self.source_routes = SourceRoutes(self)
        self.source_selection = SourceSelection()
        self.icmp_limit = IcmpRateLimit(scheduler)
        self.icmp4 = Icmp4(self)
        self.icmp6 = Icmp6(self)
        self.input4 = Ipv4Input(self)
        self._entry4: FrameHandler = self.input4.receive  # where interfaces but `lo` hand over frames
        self.input6 = Ipv6Input(self)
        #: Send a transport datagram: see `IpOutput.send`. An attribute, because a call saved is worth it here.
        output = IpOutput(self)
        self.output = output.send
        #: For flows that send much, see `IpOutput.template`.
        self.template = output.template
        #: Send a packet with its IP header: see `IpOutput.send_whole`.
        self.output_whole = output.send_whole
        #: An identification for a header somebody else writes.
        self.ident4 = output.ident
        #: The link-layer side of a Route, see `IpOutput.neighbour`.
        self.neighbour = output.neighbour
        #: Through which interface a packet counts as having come, and which has an address: see `Arrivals`.
        arrivals = Arrivals(self)
        self.arrival = arrivals.of
        self.owner = arrivals.owner
        self._undelivered = Undelivered(self).tell
        self.igmp = Igmp(self)
        self.mld = Mld(self)
        self.raw = RawTable(self)  #: who wants copies of the packets of a protocol
        self.alerts = AlertTable(self)  #: who gets packets on their way through us that ask for it
        self.pings = PingTable(scheduler.rng)  #: who holds which echo identifier
        self._error_handlers[ipv4.PROTO_ICMP] = self.icmp4.echo_failed
        self._error_handlers[ipv6.ICMPV6] = self.icmp6.echo_failed
        self.handlers4[igmp.PROTO] = self.igmp.receive
        self.handlers4[ipv4.PROTO_ICMP] = self.icmp4.receive
        self.handlers6[ipv6.ICMPV6] = self.icmp6.receive

    # --- for transports -----------------------------------------------------------------------------------------

    def register(self, proto: int, handler: PacketHandler, on_error: Callable[[IcmpError], None]) -> None:
        """Hand packets of `proto`, of both families, to `handler`, and errors about packets we sent to `on_error`."""
        self.raw.place(proto, handler)
        self._error_handlers[proto] = on_error

    def divert4(self, receive: FrameHandler) -> None:
        """Have interfaces, but `lo`, hand IPv4 frames to `receive`, which leaves the rest to `input4`."""
        self._entry4 = receive
        for iface in self.interfaces.values():
            if not iface.loopback:
                iface.handlers[ETHERTYPE_IPV4] = receive

    def route(self, dst: bytes, *, src: bytes | None = None, oif: int = 0, mark: int = 0) -> Route:
        """Where packets to `dst` go, from `src` if that is settled, through interface `oif` if not 0; `mark` is what
        the sender is marked with, for rules that ask.

        The unspecified address stands for the loopback address, as on Linux. Raises NetError: ENETUNREACH (no route),
        EHOSTUNREACH, EACCES, EINVAL (a route says so), EADDRNOTAVAIL (no address to send from), ENODEV (no such oif).
        """
        key = (dst, src, oif, mark)
        route = self._cache.get(key)
        if route is None or route.generation != self.generation:
            if len(self._cache) >= MAX_CACHED_ROUTES:
                self._cache.clear()
            route = self._cache[key] = self._determine(dst, src, oif, mark)
        return route

    def preferred_source(self, dst: bytes, temporary: bool | None, *, oif: int = 0, mark: int = 0) -> bytes | None:
        """The address to send to `dst` from, for who prefers temporary ones, or others; None: leave it to the route."""
        if temporary is None or len(dst) != 16:
            return None
        route = self.route(dst, oif=oif, mark=mark)
        if route.kind is RouteKind.LOCAL:
            return None
        return self.source_selection.select6(route.dst, route.iface, self.interfaces.values(), temporary=temporary)

    def mtu_for(self, route: Route) -> int:
        """Largest IP packet towards the route's destination, bytes."""
        return route.mtu

    def offloads_for(self, route: Route) -> tuple[int, int]:
        """(what the link takes over, largest transport datagram of one superframe in bytes, its header included).

        Superframes may be handed down in any case: a link without TSO has them cut in software.
        """
        iface = route.iface
        if len(route.dst) == 4:
            header, limit, tso = 20, 65515, iface.tso4
        else:
            header, limit, tso = 40, 65535, iface.tso6
        if tso:
            limit = min(limit, iface.max_superframe - ETHERNET_LENGTH - header)
        return iface.offloads, limit

    def confirm(self, route: Route) -> None:
        """The transport made progress towards the route's destination: its next hop is alive (RFC 4861 7.3.1)."""
        neighbour = route.neighbour
        if neighbour is not None:
            neighbour.confirm()

    def update_path_mtu(self, dst: bytes, mtu: int) -> None:
        """Believe an ICMP error's MTU for `dst`. For transports, once they recognised the quoted packet as theirs."""
        minimum = MIN_PATH_MTU if len(dst) == 4 else ipv6.MIN_MTU
        mtu = max(mtu, minimum)
        if mtu < self.route(dst).mtu:
            self._path_mtus.set(dst, mtu)

    def path_mtu(self, dst: bytes) -> int:
        """Largest packet towards `dst` as far as known, bytes. Raises NetError as `route`."""
        return self.route(dst).mtu

    def set_path_mtu(self, dst: bytes, mtu: int | None) -> None:
        """For a transport that found out by packets of its own (RFC 4821, RFC 8899): up or down, within what the link
        and the protocol allow; None: believe the link again. What is set ages like what ICMP says."""
        if mtu is None:
            self._path_mtus.forget(dst)
            return
        self._path_mtus.set(dst, max(mtu, MIN_PATH_MTU if len(dst) == 4 else ipv6.MIN_MTU))

    def mtu6(self, iface: Interface) -> int:
        """Largest IPv6 packet on the link, bytes: an advertised MTU may be below the link's own (RFC 4861 6.3.4)."""
        return min(iface.mtu, self._mtu6.get(iface.index, iface.mtu))

    def set_mtu6(self, iface: Interface, mtu: int | None) -> None:
        """What a router advertises; None: the link's own."""
        if mtu is None or not ipv6.MIN_MTU <= mtu <= iface.mtu:
            self._mtu6.pop(iface.index, None)
        else:
            self._mtu6[iface.index] = mtu
        self.invalidate()

    def send_port_unreachable(self, packet: IpPacket) -> None:
        """Nobody has the port (RFC 1122 4.1.3.1, RFC 4443 3.1)."""
        if packet.version == 4:
            self.icmp4.send_error(packet, icmp.UNREACHABLE, icmp.PORT_UNREACHABLE)
        else:
            self.icmp6.send_error(packet, icmpv6.UNREACHABLE, icmpv6.PORT_UNREACHABLE)

    def deliver_error(self, error: IcmpError) -> None:
        """Hand an error to the transport it is about."""
        if self.raw:
            self.raw.failed(error)
        handler = self._error_handlers.get(error.proto)
        if handler is not None:
            handler(error)

    def is_local(self, address: bytes) -> bool:
        """May a socket bind to `address`? Ours, a broadcast address or group of ours, or in 127/8."""
        if len(address) == 4 and ipv4.is_loopback(address):
            return True
        return address in self.local or address in self.broadcasts or is_group(address)

    def is_own_unicast(self, address: bytes) -> bool:
        """Is `address` one that packets from us carry as source?"""
        if len(address) == 4 and ipv4.is_loopback(address):
            return True
        return self.local.get(address) is PacketKind.UNICAST

    @property
    def cookie(self) -> int:
        """This namespace's own number (SO_NETNS_COOKIE)."""
        if not self._cookie:
            self._cookie = self.scheduler.rng.getrandbits(32) | 1
        return self._cookie

    def new_cookie(self) -> int:
        """A number for a socket that no other socket has (SO_COOKIE): the upper half is the namespace's."""
        self._cookies += 1
        return self.cookie << 32 | self._cookies

    def limits(self) -> dict[str, tuple[int, int]]:
        """(in use, most there can be) of everything a flood from outside could fill, by name."""
        caches = [iface.neighbours for iface in self.interfaces.values()]
        return {
            "reassembly4-bytes": (self.input4.reassembler.memory, self.input4.reassembler.memory_limit),
            "reassembly6-bytes": (self.input6.reassembler.memory, self.input6.reassembler.memory_limit),
            "neighbours": (sum(map(len, caches)), sum(cache.max_entries for cache in caches)),
            "path-mtus": (len(self._path_mtus), MAX_PATH_MTUS),
            "group-memberships": (len(self.groups), MAX_MEMBERSHIPS),
            "icmp-error-peers": (len(self.icmp_limit), MAX_PEERS),
        }

    # --- for the namespace --------------------------------------------------------------------------------------

    def add_interface(self, iface: Interface) -> None:
        """The first one is `lo`."""
        if not self.interfaces:
            assert isinstance(iface, LoopbackInterface)
            self.loopback = iface
        self.interfaces[iface.index] = iface
        iface.handlers[ETHERTYPE_IPV4] = self.input4.receive if iface.loopback else self._entry4
        iface.handlers[ETHERTYPE_IPV6] = self.input6.receive
        iface.solicit6 = self.icmp6.ndp.solicit
        iface.on_unreachable = self._undelivered
        iface.on_link_change = self._link_changed
        self.refresh()

    def remove_interface(self, iface: Interface) -> list[RouteEntry]:
        """Forget an interface; returns the routes that went with it."""
        del self.interfaces[iface.index]
        gone = [entry for table in (self.routes4, self.routes6) for entry in table if entry.uses(iface)]
        for entry in gone:
            self.remove_route(entry)
        self.igmp.reporter.forget(iface)
        self.mld.reporter.forget(iface)
        self.groups.forget(iface)
        self._joined = {key: joined for key, joined in self._joined.items() if key[1] != iface.index}
        self.icmp6.on_solicitation.pop(iface.index, None)
        self.icmp6.ndp.routers.discard(iface.index)
        iface.on_unreachable = iface.on_link_change = iface.solicit6 = None
        self.refresh()
        return gone

    def table(self, address: bytes) -> RoutingPolicy:
        """The routes of the address's family."""
        return self.routes4 if len(address) == 4 else self.routes6

    def add_route(self, entry: RouteEntry) -> bool:
        """False if the same line is there already."""
        added = self.table(entry.network).add(entry)
        self.invalidate()
        return added

    def remove_route(self, entry: RouteEntry) -> bool:
        """False if it is not there."""
        removed = self.table(entry.network).remove(entry)
        self.invalidate()
        return removed

    def join_group(self, group: bytes, iface: Interface) -> None:
        """Receive packets to `group` from everybody (leave as often as joined). See `Groups.join` for filters."""
        self._joined.setdefault((group, iface.index), []).append(self.groups.join(group, iface))

    def leave_group(self, group: bytes, iface: Interface) -> None:
        """Raises NetError(EADDRNOTAVAIL) if nobody joined."""
        joined = self._joined.get((group, iface.index))
        if not joined:
            raise NetError(errno.EADDRNOTAVAIL)
        joined.pop().leave()

    def accepts_group(self, group: bytes, iface: Interface, src: bytes) -> bool:
        """Is a packet of `src` to `group` for us, on this interface?"""
        return group in self.standing_groups or self.groups.accepts(group, iface, src)

    def refresh(self) -> None:
        """Addresses or interfaces changed: work out anew which destinations are ours."""
        local: dict[bytes, PacketKind] = {
            ipv4.LIMITED_BROADCAST: PacketKind.BROADCAST,
            ipv4.ALL_SYSTEMS: PacketKind.MULTICAST,
            ipv6.ALL_NODES: PacketKind.MULTICAST,
        }
        self.forwarding.refresh()
        if self.forwarding.active6:
            local[ipv6.ALL_ROUTERS] = PacketKind.MULTICAST
        unicasts: list[bytes] = []
        for iface in self.interfaces.values():
            for each in iface.addresses:
                if each.usable:
                    unicasts.append(each.address)
                if len(each.address) == 16:
                    local[ipv6.solicited_node(each.address)] = PacketKind.MULTICAST
                elif iface.loopback:
                    last = broadcast_of(each.address, each.prefix_length)
                    if last is not None:  # 127.255.255.255 is a broadcast on Linux, though lo's address names none
                        local[last] = PacketKind.BROADCAST
                elif each.broadcast is not None:
                    local[each.broadcast] = PacketKind.BROADCAST
                    local[each.network] = PacketKind.BROADCAST  # RFC 1122 3.3.6: the old form, all zeros
        self.standing_groups = {group for group, kind in local.items() if kind is PacketKind.MULTICAST}
        for group in self.groups:
            local[group] = PacketKind.MULTICAST
        for address in unicasts:
            local[address] = PacketKind.UNICAST
        self.local.clear()  # the parts hold on to this very dict
        self.local.update(local)
        self.broadcasts.clear()
        self.broadcasts.update(address for address, kind in local.items() if kind is PacketKind.BROADCAST)
        self.invalidate()

    def invalidate(self) -> None:
        """Every Route handed out is to be asked for again."""
        self.generation += 1
        self._cache.clear()

    def _link_changed(self, _iface: Interface, _what: str) -> None:
        self.invalidate()
