"""A router that says so: router advertisements on one interface (RFC 4861 6.2, RFC 8106).

Solicitations are answered, each host for itself after a random part of half a second, or all together if many ask;
everybody is told from time to time, more often at first. What is advertised follows the interface: its MTU, and the
/64 prefixes of its addresses unless the configuration names others. On `close` hosts are told to look elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv6Address
from typing import Final

from stack.errors import DropReason
from stack.iface.interface import Interface
from stack.ip.packet import IpPacket
from stack.netns import NetNamespace
from stack.scheduler import NS_PER_S
from stack.services.faults import Faults, Later
from stack.wire import icmpv6, router
from stack.wire.error import WireError
from stack.wire.ethernet import ETHERTYPE_IPV6, multicast_mac6
from stack.wire.ipv6 import ALL_NODES, ALL_ROUTERS, ICMPV6, Ipv6Header, is_link_local
from stack.wire.router import PrefixInformation, RouterAdvertisement

# RFC 4861 6.2.1 and 10; all ns.
MAX_INTERVAL: Final = 600 * NS_PER_S
INITIAL_COUNT: Final = 3
INITIAL_INTERVAL: Final = 16 * NS_PER_S
MIN_DELAY_BETWEEN: Final = 3 * NS_PER_S
MAX_REPLY_DELAY: Final = NS_PER_S // 2
#: Hosts waiting for an answer of their own; beyond it everybody is told at once.
MAX_WAITING: Final = 64
_PREFIX_LENGTH: Final = 64


@dataclass(slots=True)
class RouterConfig:
    """What to advertise. Lifetimes in seconds."""

    lifetime: int = 1800  #: as default router, 0..9000; 0: only prefixes and names are offered
    prefixes: Sequence[PrefixInformation] | None = None  #: None: those of the interface's addresses
    mtu: int | None = None  #: None: the interface's, if it is not the usual 1500; 0: none
    name_servers: Sequence[str] = ()
    search_domains: Sequence[str] = ()
    name_lifetime: int | None = None  #: None: three times the interval (RFC 8106 5.1)
    managed: bool = False  #: hosts get addresses by DHCPv6
    other: bool = False  #: hosts get other configuration by DHCPv6
    hop_limit: int = 64
    reachable: int = 0  #: ms
    retransmit: int = 0  #: ms
    interval: int = field(default=MAX_INTERVAL)  #: longest time between advertisements, ns, 4..1800 s
    reply_delay: int = field(default=MAX_REPLY_DELAY)  #: longest delay of an answer, ns

    def __post_init__(self) -> None:
        """Raises ValueError for what RFC 4861 6.2.1 does not allow."""
        if not 4 * NS_PER_S <= self.interval <= 1800 * NS_PER_S:
            raise ValueError(f"an interval of 4 to 1800 seconds is needed, not of {self.interval / NS_PER_S} s")
        if self.lifetime and not self.interval <= self.lifetime * NS_PER_S <= 9000 * NS_PER_S:
            raise ValueError(f"a router's lifetime is 0 or from the interval to 9000 seconds, not {self.lifetime}")
        for prefix in self.prefixes or ():
            if len(prefix.prefix) != 16 or not 0 <= prefix.length <= 128 or prefix.preferred > prefix.valid:
                raise ValueError(f"not a prefix with lifetimes to advertise: {prefix}")
        for name in self.search_domains:
            router.encode_name(name)
        for text in self.name_servers:
            IPv6Address(text)


class RouterAdvertiser:
    """Advertises on `interface` (of `netns`, or its name) until `close`. Called with the Network's lock held.

    Packets are not passed on by it: see `NetNamespace.set_forwarding`.
    """

    def __init__(self, netns: NetNamespace, interface: Interface | str, config: RouterConfig | None = None) -> None:
        """Raises ValueError for an interface without a link-local address or with an advertiser already."""
        self.interface = netns.interface(interface) if isinstance(interface, str) else interface
        self.config = config or RouterConfig()
        self._ip = netns.ip
        self._scheduler = netns.scheduler
        self._initial = INITIAL_COUNT
        self._last_multicast = -MIN_DELAY_BETWEEN
        self._waiting: dict[bytes, bytes | None] = {}  # source address -> MAC
        self._periodic = netns.scheduler.timer(self._advertise_all)
        self._reply = netns.scheduler.timer(self._answer)
        self._closed = False
        self._managed = self._other = False
        self._later = Later(netns.scheduler)
        #: What goes wrong on purpose; a request is the address an advertisement goes to, that of all nodes included.
        self.faults: Faults[bytes, RouterAdvertisement] = Faults()
        self.sent = 0  #: advertisements
        iface = self.interface
        if self._source() is None:
            raise ValueError(f"{iface.name} has no link-local address to advertise from")
        if iface.index in self._ip.icmp6.on_solicitation:
            raise ValueError(f"there is a router advertiser on {iface.name} already")
        self._ip.icmp6.on_solicitation[iface.index] = self._solicited
        self._ip.icmp6.ndp.routers.add(iface.index)
        self._ip.join_group(ALL_ROUTERS, iface)
        iface.watchers.append(self._link_changed)
        self._advertise_all()

    def close(self) -> None:
        """Tell everybody that this router is none any more (RFC 4861 6.2.5). Idempotent."""
        if self._closed:
            return
        self._closed = True
        iface = self.interface
        self._periodic.cancel()
        self._reply.cancel()
        self._later.close()
        if iface.index not in self._ip.interfaces:
            return  # gone before us, and its groups with it
        self._send(ALL_NODES, multicast_mac6(ALL_NODES), lifetime=0)
        iface.flush()
        iface.watchers.remove(self._link_changed)
        del self._ip.icmp6.on_solicitation[iface.index]
        self._ip.icmp6.ndp.routers.discard(iface.index)
        self._ip.leave_group(ALL_ROUTERS, iface)

    def announce_dhcp6(self, *, managed: bool, other: bool) -> None:
        """A DHCPv6 server has come, or gone: hosts are to know soon. `RouterConfig` may say so all the same."""
        if (managed, other) != (self._managed, self._other):
            self._managed, self._other = managed, other
            if not self._closed:
                self._soon()

    def advertisement(self) -> RouterAdvertisement:
        """What is advertised now."""
        config, iface = self.config, self.interface
        mtu = config.mtu
        if mtu is None:
            mtu = iface.mtu if iface.mtu != 1500 else 0
        name_lifetime = config.name_lifetime
        if name_lifetime is None:
            name_lifetime = 3 * config.interval // NS_PER_S
        prefixes = config.prefixes
        if prefixes is None:
            networks = {
                each.network: None
                for each in iface.addresses
                if len(each.address) == 16 and each.prefix_length == _PREFIX_LENGTH and not is_link_local(each.address)
            }
            prefixes = [PrefixInformation(network, _PREFIX_LENGTH) for network in networks]
        servers = [IPv6Address(text).packed for text in config.name_servers]
        return RouterAdvertisement(
            config.hop_limit,
            config.managed or self._managed,
            config.other or self._other,
            config.lifetime,
            config.reachable,
            config.retransmit,
            iface.mac,
            mtu,
            list(prefixes),
            [(name_lifetime, servers)] if servers else [],
            [(name_lifetime, list(config.search_domains))] if config.search_domains else [],
        )

    def _solicited(self, packet: IpPacket, message: icmpv6.Icmpv6Message) -> None:
        try:
            mac = router.parse_solicitation(message, packet.src, packet.ttl)
        except WireError:
            self._ip.drops.count(DropReason.BAD_MESSAGE)
            return
        if any(packet.src):
            if mac is not None:
                self.interface.neighbours.lookup(packet.src).update(mac, solicited=False)
            if len(self._waiting) < MAX_WAITING:
                self._waiting[packet.src] = mac
            else:
                self._waiting[ALL_NODES] = None
        else:
            self._waiting[ALL_NODES] = None
        if not self._reply.armed:
            self._reply.arm_in(int(self.config.reply_delay * self._scheduler.rng.random()))

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if ALL_NODES in waiting:
            # RFC 4861 6.2.6: to everybody no oftener than every three seconds.
            earliest = self._last_multicast + MIN_DELAY_BETWEEN
            if earliest > self._scheduler.now:
                self._periodic.arm(earliest)
            else:
                self._advertise_all()
        for address, mac in waiting.items():
            if address == ALL_NODES:
                continue
            entry = self.interface.neighbours.get(address)
            known = mac or (entry.mac if entry is not None else None)
            if known is not None:
                self._send(address, known)
            else:
                self._periodic.arm(max(self._last_multicast + MIN_DELAY_BETWEEN, self._scheduler.now))

    def _advertise_all(self) -> None:
        self._last_multicast = self._scheduler.now
        self._send(ALL_NODES, multicast_mac6(ALL_NODES))
        longest = self.config.interval
        delay = longest // 3 + int((longest - longest // 3) * self._scheduler.rng.random())
        if self._initial > 0:
            self._initial -= 1
            delay = min(delay, INITIAL_INTERVAL)
        self._periodic.arm_in(delay)

    def _link_changed(self, _iface: Interface, _what: str) -> None:
        """Up again, another MTU or MAC: hosts are to know soon."""
        self._soon()

    def _soon(self) -> None:
        self._initial = INITIAL_COUNT
        self._periodic.arm(max(self._last_multicast + MIN_DELAY_BETWEEN, self._scheduler.now))

    def _source(self) -> bytes | None:
        addresses = (each for each in self.interface.addresses if len(each.address) == 16 and each.usable)
        return next((each.address for each in addresses if is_link_local(each.address)), None)

    def _send(self, dst: bytes, mac: bytes, *, lifetime: int | None = None) -> None:
        source = self._source()
        if source is None or not self.interface.up:
            return
        said = self.advertisement()
        if lifetime is not None:
            said.lifetime = lifetime
        fault = self.faults.take(dst)
        if fault is not None:
            altered = None if fault.drop else said if fault.alter is None else fault.alter(dst, said)
            if altered is None:
                self._ip.drops.count("fault")
                return
            if fault.delay:
                self._later.call(fault.delay, partial(self._emit, source, dst, mac, altered))
                return
            said = altered
        self._emit(source, dst, mac, said)

    def _emit(self, source: bytes, dst: bytes, mac: bytes, said: RouterAdvertisement) -> None:
        message = said.emit(source, dst)
        header = Ipv6Header(source, dst, ICMPV6, len(message), icmpv6.ND_HOP_LIMIT)
        self.interface.send_frame(mac, ETHERTYPE_IPV6, header.emit() + message)
        self.sent += 1
