"""A host configures itself from what routers say (RFC 4862 5.5, RFC 4861 6.3, RFC 8106).

Off unless `enable` was called for an interface. Then routers are solicited until one answers (RFC 7559: 4 s, doubling
up to an hour), and of each advertisement is taken, with the lifetimes it gives:

* a default route by way of the sender (metric 1024, as Linux),
* a route to each on-link prefix, and an address in each autonomous one of 64 bits, tested for duplicates,
* the link's MTU, reachable time and retransmission time,
* name servers and search domains, kept for whoever resolves names.

A host that forwards is a router: it ignores advertisements (Linux: accept_ra 1). What a liar can make us keep is
bounded: so many routers, prefixes, servers and domains for each interface, the rest is a counted drop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from stack.errors import DropReason, NetError
from stack.iface.address import IFA_DEPRECATED, IFA_F_NOPREFIXROUTE, InterfaceAddress, network_of
from stack.ip.route import RouteEntry
from stack.link.neighbour import BASE_REACHABLE_TIME, RETRANS_TIME
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.wire import icmpv6, router
from stack.wire.error import WireError
from stack.wire.ethernet import ETHERTYPE_IPV6, multicast_mac6
from stack.wire.ipv6 import ALL_ROUTERS, ANY, ICMPV6, MIN_MTU, Ipv6Header, is_link_local, link_local_from_mac

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IpPacket
    from stack.scheduler import Timer

FIRST_SOLICITATION: Final = 4 * NS_PER_S  # RFC 7559 2: IRT
MAX_SOLICITATION: Final = 3600 * NS_PER_S  # RFC 7559 2: MRT
MAX_DELAY: Final = NS_PER_S  # RFC 4861 10: MAX_RTR_SOLICITATION_DELAY
TWO_HOURS: Final = 7200 * NS_PER_S  # RFC 4862 5.5.3 e
MAX_ROUTERS: Final = 8
MAX_PREFIXES: Final = 16
MAX_NAMES: Final = 16
PROTOCOL_KERNEL: Final = 2  # RTPROT_KERNEL
PROTOCOL_RA: Final = 9  # RTPROT_RA
PROTOCOL_ADDRESS: Final = 2  # IFAPROT_KERNEL_RA
METRIC_PREFIX: Final = 256  # IP6_RT_PRIO_ADDRCONF
METRIC_DEFAULT: Final = 1024  # IP6_RT_PRIO_USER, also for routes from advertisements
_PREFIX_LENGTH: Final = 64  # 128 less the length of an interface identifier (RFC 2464 4)


K = TypeVar("K")


class Owner(Protocol):
    """The namespace: every change of addresses and routes is made there."""

    def give_address(self, iface: Interface, address: InterfaceAddress, *, detect_duplicates: bool = False) -> None: ...
    def remove_address(self, iface: Interface, address: bytes) -> None: ...
    def put_route(self, entry: RouteEntry, how: str = "") -> None: ...
    def remove_route(self, entry: RouteEntry) -> None: ...


class LinkConfiguration:
    """What one interface learned. Expiries in ns of the Scheduler's clock, None for never."""

    def __init__(self, iface: Interface, timer: Timer, solicit: Timer) -> None:
        self.iface = iface
        self.timer = timer
        self.solicit = solicit
        self.interval = 0  #: until the next solicitation, ns
        self.routers: dict[bytes, tuple[int | None, RouteEntry]] = {}
        self.prefixes: dict[tuple[bytes, int], tuple[int | None, RouteEntry]] = {}
        self.name_servers: dict[bytes, int | None] = {}
        self.search_domains: dict[str, int | None] = {}
        self.hop_limit = 64
        self.mtu = 0
        self.managed = False  #: routers say that DHCPv6 gives addresses
        self.other = False


class Autoconfiguration:
    """The interfaces of one namespace that configure themselves."""

    def __init__(self, ip: IpLayer, owner: Owner) -> None:
        self._ip = ip
        self._owner = owner
        self._scheduler = ip.scheduler
        self.links: dict[int, LinkConfiguration] = {}  #: by index of the interface

    def enable(self, iface: Interface) -> LinkConfiguration:
        """Solicit routers and believe them. Again: the same."""
        link = self.links.get(iface.index)
        if link is None:
            scheduler = self._scheduler
            link = LinkConfiguration(
                iface, scheduler.timer(lambda: self._expire(iface)), scheduler.timer(lambda: self._solicit(iface))
            )
            self.links[iface.index] = link
            link.interval = FIRST_SOLICITATION
            link.solicit.arm_in(int(MAX_DELAY * scheduler.rng.random()))
        return link

    def disable(self, iface: Interface, *, keep: bool = False) -> None:
        """Stop, and, unless `keep` (the interface goes anyway), give up what was learned."""
        link = self.links.pop(iface.index, None)
        if link is None:
            return
        link.timer.cancel()
        link.solicit.cancel()
        self._ip.set_mtu6(iface, None)
        if keep:
            return
        for _, entry in (*link.routers.values(), *link.prefixes.values()):
            self._forget(entry)
        for address in [each for each in iface.addresses if each.autoconfigured]:
            self._owner.remove_address(iface, address.address)

    def went(self, iface: Interface, *, up: bool) -> None:
        """A link went up: solicit. Down: its routes and addresses are gone."""
        link = self.links.get(iface.index)
        if link is None:
            return
        link.routers.clear()
        link.prefixes.clear()
        link.timer.cancel()
        link.solicit.cancel()
        if up:
            link.interval = FIRST_SOLICITATION
            link.solicit.arm_in(int(MAX_DELAY * self._scheduler.rng.random()))

    def receive(self, packet: IpPacket, message: icmpv6.Icmpv6Message) -> None:
        """One router advertisement, its ICMPv6 checksum verified."""
        iface = packet.iface
        link = self.links.get(iface.index)
        if link is None or iface.index in self._ip.forwarding.active6:
            return
        try:
            said = router.parse_advertisement(message, packet.src, packet.ttl)
        except WireError:
            self._ip.drops.count(DropReason.BAD_MESSAGE)
            return
        if said.source_mac is not None:
            entry = iface.neighbours.lookup(packet.src)
            entry.update(said.source_mac, solicited=False)
            entry.is_router = True
        self._parameters(link, said)
        self._router(link, packet.src, said.lifetime)
        for prefix in said.prefixes:
            if is_link_local(prefix.prefix) or prefix.prefix[0] == 0xFF:
                continue
            if prefix.on_link:
                self._on_link(link, prefix)
            if prefix.autonomous:
                self._autonomous(link, prefix)
        for lifetime, addresses in said.rdnss:
            for address in addresses:
                self._keep(link.name_servers, address, lifetime)
        for lifetime, names in said.dnssl:
            for name in names:
                self._keep(link.search_domains, name, lifetime)
        if said.lifetime:
            link.solicit.cancel()  # RFC 7559 2.1: a router that will do was found
        self._schedule(link)

    # --- pieces of an advertisement -------------------------------------------------------------------------------

    def _parameters(self, link: LinkConfiguration, said: router.RouterAdvertisement) -> None:
        """RFC 4861 6.3.4."""
        link.managed, link.other = said.managed, said.other
        link.hop_limit = said.hop_limit or link.hop_limit
        neighbours = link.iface.neighbours
        if 0 < said.reachable <= 3_600_000:  # RFC 4861 6.2.1: an hour at most
            neighbours.base_reachable_time = said.reachable * NS_PER_MS
        if said.retransmit:
            neighbours.retrans_time = min(max(said.retransmit * NS_PER_MS, RETRANS_TIME // 100), BASE_REACHABLE_TIME)
        if said.mtu and said.mtu != link.mtu and MIN_MTU <= said.mtu <= link.iface.mtu:
            link.mtu = said.mtu
            self._ip.set_mtu6(link.iface, said.mtu)

    def _router(self, link: LinkConfiguration, address: bytes, lifetime: int) -> None:
        known = link.routers.get(address)
        if not lifetime:
            if known is not None:
                del link.routers[address]
                self._forget(known[1])
            return
        if known is None:
            if len(link.routers) >= MAX_ROUTERS:
                self._ip.drops.count(DropReason.TOO_MANY)
                return
            entry = RouteEntry(ANY, 0, link.iface, gateway=address, metric=METRIC_DEFAULT, protocol=PROTOCOL_RA)
            self._install(entry)
        else:
            entry = known[1]
        link.routers[address] = (self._scheduler.now + lifetime * NS_PER_S, entry)

    def _on_link(self, link: LinkConfiguration, prefix: router.PrefixInformation) -> None:
        network = network_of(prefix.prefix, prefix.length)
        key = (network, prefix.length)
        known = link.prefixes.get(key)
        if not prefix.valid:
            if known is not None:
                del link.prefixes[key]
                self._forget(known[1])
            return
        if known is None:
            if len(link.prefixes) >= MAX_PREFIXES:
                self._ip.drops.count(DropReason.TOO_MANY)
                return
            entry = RouteEntry(network, prefix.length, link.iface, metric=METRIC_PREFIX, protocol=PROTOCOL_KERNEL)
            self._install(entry)
        else:
            entry = known[1]
        link.prefixes[key] = (self._until(prefix.valid), entry)

    def _autonomous(self, link: LinkConfiguration, prefix: router.PrefixInformation) -> None:
        """RFC 4862 5.5.3."""
        if prefix.preferred > prefix.valid or prefix.length != _PREFIX_LENGTH:
            self._ip.drops.count(DropReason.BAD_MESSAGE)
            return
        iface = link.iface
        address = prefix.prefix[:8] + link_local_from_mac(iface.mac)[8:]
        known = next((each for each in iface.addresses if each.address == address), None)
        if known is None:
            if not prefix.valid:
                return
            if sum(each.autoconfigured for each in iface.addresses) >= MAX_PREFIXES:
                self._ip.drops.count(DropReason.TOO_MANY)
                return
            fresh = InterfaceAddress(
                address, prefix.length, flags=IFA_F_NOPREFIXROUTE, autoconfigured=True, protocol=PROTOCOL_ADDRESS
            )
            fresh.valid_until = self._until(prefix.valid)
            fresh.preferred_until = self._until(prefix.preferred)
            self._owner.give_address(iface, fresh, detect_duplicates=True)
            known = fresh
        elif not known.autoconfigured:
            return
        else:
            now = self._scheduler.now
            until = self._until(prefix.valid)
            left = None if known.valid_until is None else known.valid_until - now
            if until is None or until - now > TWO_HOURS or (left is not None and until - now > left):
                known.valid_until = until
            elif left is None or left > TWO_HOURS:
                known.valid_until = now + TWO_HOURS  # an unauthenticated sender cannot take the address away at once
            known.preferred_until = self._until(prefix.preferred)
        self._deprecate(known)

    def _keep(self, table: dict[K, int | None], name: K, lifetime: int) -> None:
        if not lifetime:
            table.pop(name, None)
        elif name in table or len(table) < MAX_NAMES:
            table[name] = self._until(lifetime)
        else:
            self._ip.drops.count(DropReason.TOO_MANY)

    # --- lifetimes ------------------------------------------------------------------------------------------------

    def _until(self, lifetime: int) -> int | None:
        return None if lifetime == router.INFINITE else self._scheduler.now + lifetime * NS_PER_S

    def _deprecate(self, address: InterfaceAddress) -> None:
        """Its flag follows its preferred lifetime."""
        until = address.preferred_until
        old = address.flags & IFA_DEPRECATED
        over = until is not None and until <= self._scheduler.now
        address.flags = address.flags & ~IFA_DEPRECATED | (IFA_DEPRECATED if over else 0)
        if old != address.flags & IFA_DEPRECATED:
            self._ip.invalidate()

    def _schedule(self, link: LinkConfiguration) -> None:
        now = self._scheduler.now
        ends: list[int | None] = [end for end, _ in (*link.routers.values(), *link.prefixes.values())]
        ends += [*link.name_servers.values(), *link.search_domains.values()]
        for each in link.iface.addresses:
            if each.autoconfigured:
                ends += [each.valid_until, None if each.flags & IFA_DEPRECATED else each.preferred_until]
        due = [max(end, now) for end in ends if end is not None]
        if due:
            link.timer.arm(min(due))
        else:
            link.timer.cancel()

    def _expire(self, iface: Interface) -> None:
        link = self.links[iface.index]
        now = self._scheduler.now

        for entry in (*_take_over(link.routers, now), *_take_over(link.prefixes, now)):
            self._forget(entry)
        for key in [key for key, end in link.name_servers.items() if _over(end, now)]:
            del link.name_servers[key]
        for name in [name for name, end in link.search_domains.items() if _over(end, now)]:
            del link.search_domains[name]
        for address in [each for each in iface.addresses if each.autoconfigured]:
            if _over(address.valid_until, now):
                self._owner.remove_address(iface, address.address)
            else:
                self._deprecate(address)
        if not link.routers and not link.solicit.armed:
            link.interval = FIRST_SOLICITATION
            link.solicit.arm(now)
        self._schedule(link)

    def _install(self, entry: RouteEntry) -> None:
        try:
            self._owner.put_route(entry)
        except NetError:
            self._ip.drops.count(DropReason.TOO_MANY)  # a route like it was made by hand: that one stays

    def _forget(self, entry: RouteEntry) -> None:
        try:
            self._owner.remove_route(entry)
        except NetError:
            return  # taken away by hand, or with the interface's addresses

    # --- solicitations --------------------------------------------------------------------------------------------

    def _solicit(self, iface: Interface) -> None:
        link = self.links[iface.index]
        jitter = 0.9 + 0.2 * self._scheduler.rng.random()  # RFC 7559 2
        link.solicit.arm_in(int(link.interval * jitter))
        if not (iface.up and iface.carrier):
            return
        link.interval = min(link.interval * 2, MAX_SOLICITATION)
        source = next(
            (
                each.address
                for each in iface.addresses
                if len(each.address) == 16 and each.usable and is_link_local(each.address)
            ),
            None,
        )
        mac = iface.mac if source is not None else None
        message = router.emit_solicitation(mac, source or ANY, ALL_ROUTERS)
        header = Ipv6Header(source or ANY, ALL_ROUTERS, ICMPV6, len(message), icmpv6.ND_HOP_LIMIT)
        iface.send_frame(multicast_mac6(ALL_ROUTERS), ETHERTYPE_IPV6, header.emit() + message)


def _over(end: int | None, now: int) -> bool:
    return end is not None and end <= now


def _take_over(routes: dict[K, tuple[int | None, RouteEntry]], now: int) -> list[RouteEntry]:
    """The routes whose lifetime is over, taken out."""
    return [routes.pop(key)[1] for key in [key for key, (end, _) in routes.items() if _over(end, now)]]
