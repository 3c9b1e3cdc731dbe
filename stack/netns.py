"""One network namespace: interfaces, addresses, routes, ports, and the transports on top of them.

Every change to links, addresses and routes is made here, or, for what a device or a neighbour does by itself, recorded
in the same `ChangeLog`, so that those above can tell others.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from stack.credentials import INIT_USER_NS, UserNamespace
from stack.errors import DropReason, NetError
from stack.iface.address import (
    IFA_F_NOPREFIXROUTE,
    IFA_F_SECONDARY,
    SCOPE_HOST,
    SCOPE_LINK,
    InterfaceAddress,
    broadcast_of,
    network_of,
    parse_address,
    parse_prefix,
)
from stack.iface.changes import ChangeKind, ChangeLog
from stack.iface.interface import Interface
from stack.ip.autoconf import Autoconfiguration
from stack.ip.layer import IpLayer
from stack.ip.policy import TABLE_LOCAL, RoutingPolicy, Rule
from stack.ip.route import RouteEntry, RouteKind
from stack.link.loopback import Loopback
from stack.packet import PacketLayer
from stack.tcp.layer import TcpLayer
from stack.udp import UdpLayer
from stack.unix import AbstractNames
from stack.wire.ipv6 import link_local_from_mac

if TYPE_CHECKING:
    from stack.link.device import LinkDevice
    from stack.scheduler import Scheduler
    from stack.socket.netlink.tables import NetlinkTables
    from stack.tcp.options import TcpConfig

MAX_NAME_LENGTH: Final = 15  # IFNAMSIZ less the final zero
PROTOCOL_KERNEL: Final = 2  # RTPROT_KERNEL: routes that follow from addresses
PROTOCOL_STATIC: Final = 4  # RTPROT_STATIC
#: Metric of IPv6 routes that follow from addresses (IP6_RT_PRIO_ADDRCONF) and of others (IP6_RT_PRIO_USER).
METRIC6_KERNEL: Final = 256
METRIC6_USER: Final = 1024
#: Detail of changes to routes that follow from addresses: nobody asked for them.
IMPLIED: Final = "implied"
#: Detail of changes that Linux does not tell netlink groups of.
SILENT: Final = "silent"

#: Detail of changes of links that went to, and came from, another namespace.
MOVED: Final = "moved"
ARRIVED: Final = "arrived"


def check_name(name: str) -> None:
    """Raises ValueError for what is no interface name."""
    if (
        not name
        or name in (".", "..")
        or len(name.encode()) > MAX_NAME_LENGTH
        or "/" in name
        or ":" in name
        or not name.isprintable()
        or " " in name
    ):
        raise ValueError(f"not an interface name (1..{MAX_NAME_LENGTH} characters, no blank, '/' or ':'): {name!r}")


def _implied(
    network: bytes, prefix_length: int, iface: Interface, kind: RouteKind, address: InterfaceAddress
) -> RouteEntry:
    """A line of the table `local`."""
    ipv4 = len(network) == 4
    scope = (SCOPE_HOST if kind is RouteKind.LOCAL else SCOPE_LINK) if ipv4 else 0
    return RouteEntry(
        network,
        prefix_length,
        iface,
        src=address.address if ipv4 else None,
        kind=kind,
        protocol=PROTOCOL_KERNEL,
        scope=scope,
        table=TABLE_LOCAL,
    )


def _multicast_route(iface: Interface) -> RouteEntry:
    """ff00::/8, of every link that is up."""
    entry = _implied(b"\xff" + bytes(15), 8, iface, RouteKind.MULTICAST, InterfaceAddress(bytes(16), 128))
    entry.metric = METRIC6_KERNEL
    return entry


class NetNamespace:
    """Made with `lo` up: index 1, 127.0.0.1/8, ::1/128, MTU 65536 (IF-01)."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        name: str = "",
        tcp_config: TcpConfig | None = None,
        user_ns: UserNamespace = INIT_USER_NS,
    ) -> None:
        """`user_ns` owns it: whoever has a capability there may use it here."""
        self.scheduler = scheduler
        self.name = name
        self.user_ns = user_ns
        self.closed = False
        self.changes = ChangeLog()
        #: Tables of netlink sockets, made by the first one; here because they are this namespace's.
        self.netlink: NetlinkTables | None = None
        self.abstract = AbstractNames(scheduler.rng)  #: names of Unix sockets (UNX-05)
        self._by_name: dict[str, Interface] = {}
        self._next_index = itertools.count(1)
        #: Set by the owner: told of interfaces that links made by kind bring along, so that somebody polls them.
        self.attach: Callable[[Interface], None] | None = None
        self.detach: Callable[[Interface], None] | None = None
        self.ip = IpLayer(scheduler)
        self.ip.icmp6.ndp.duplicates.on_done = self._tested
        #: Interfaces that configure themselves from router advertisements.
        self.autoconf = Autoconfiguration(self.ip, self)
        self.ip.icmp6.on_advertisement = self.autoconf.receive
        self.lo = self._add(Loopback(), "lo", None, None, loopback=True)
        self.add_address(self.lo, "127.0.0.1/8")
        self.add_address(self.lo, "::1/128")
        self.udp = UdpLayer(scheduler, self.ip)
        self.packet = PacketLayer(scheduler, self.ip, self.changes)  #: sockets that see whole frames
        self.tcp = TcpLayer(scheduler, self.ip, ports=self.ip.ports[6], config=tcp_config)

    # --- interfaces -----------------------------------------------------------------------------------------------

    @property
    def interfaces(self) -> dict[str, Interface]:
        """By name, in order of their indexes."""
        return dict(self._by_name)

    def interface(self, which: str | int) -> Interface:
        """By name or index. Raises NetError(ENODEV)."""
        found = self._by_name.get(which) if isinstance(which, str) else self.ip.interfaces.get(which)
        if found is None:
            raise NetError(errno.ENODEV, f"no interface {which!r} here; there are: {', '.join(self._by_name)}")
        return found

    def add_interface(
        self,
        device: LinkDevice,
        name: str | None = None,
        addresses: Iterable[str] = (),
        mac: bytes | None = None,
        mtu: int | None = None,
    ) -> Interface:
        """An Ethernet interface on `device`, up, with `addresses` like ``10.0.2.2/24`` and an IPv6 link-local one.

        Without `name` the first free of eth0, eth1... Raises ValueError for a bad name, address, MAC or MTU,
        NetError(EEXIST) for a name that is taken; nothing is left behind then.
        """
        parsed = [InterfaceAddress.parse(text) for text in addresses]
        if name is None:
            name = next(each for each in map("eth{}".format, itertools.count()) if each not in self._by_name)
        iface = self._add(device, name, mac, mtu, loopback=False)
        link_local = InterfaceAddress(link_local_from_mac(iface.mac), 64, scope=SCOPE_LINK)
        for address in (*parsed, link_local):
            if not iface.has_address(address.address):
                self.give_address(iface, address)
        return iface

    def add_link(
        self,
        device: LinkDevice,
        name: str,
        *,
        kind: str,
        mac: bytes | None = None,
        mtu: int | None = None,
        index: int = 0,
        noarp: bool = False,
    ) -> Interface:
        """An interface of a link made by `kind` (see `stack.iface.kinds`): down, without addresses, polled from now on.

        `index` 0 is the next free one. Raises NetError: EEXIST (name), EBUSY (index), EINVAL (name, MAC, MTU).
        """
        if index and (index < 0 or index in self.ip.interfaces):
            raise NetError(errno.EINVAL if index < 0 else errno.EBUSY)
        try:
            iface = self._add(device, name, mac, mtu, loopback=False, kind=kind, index=index, noarp=noarp, up=False)
        except ValueError as error:
            raise NetError(errno.EINVAL, str(error)) from None
        if self.attach is not None:
            self.attach(iface)
        return iface

    def _add(
        self,
        device: LinkDevice,
        name: str,
        mac: bytes | None,
        mtu: int | None,
        *,
        loopback: bool,
        kind: str = "",
        index: int = 0,
        noarp: bool = False,
        up: bool = True,
    ) -> Interface:
        check_name(name)
        if name in self._by_name:
            raise NetError(errno.EEXIST, f"there is an interface {name!r} already")
        iface = Interface(
            self.scheduler,
            device,
            name=name,
            index=index or next(each for each in self._next_index if each not in self.ip.interfaces),
            changes=self.changes,
            mac=mac,
            mtu=mtu,
            loopback=loopback,
            kind=kind,
            noarp=noarp,
            up=up,
        )
        self._by_name[name] = iface
        iface.netns = self
        self.ip.add_interface(iface)
        self.changes.append(ChangeKind.NEW_LINK, iface, iface.index, "new")
        return iface

    def rename(self, iface: Interface, name: str) -> None:
        """Raises NetError: EEXIST, EINVAL for what is no interface name."""
        if name == iface.name:
            return
        try:
            check_name(name)
        except ValueError as error:
            raise NetError(errno.EINVAL, str(error)) from None
        if name in self._by_name:
            raise NetError(errno.EEXIST, f"there is an interface {name!r} already")
        old = iface.name
        iface.name = name
        self._by_name = {each.name: each for each in self._by_name.values()}  # the order of indexes stays
        self.changes.append(ChangeKind.NEW_LINK, iface, iface.index, f"renamed from {old}")
        for address in iface.addresses:
            if len(address.address) == 4:
                label, colon, rest = address.label.partition(":")
                address.label = name + colon + rest if colon and label == old else ""
                self.changes.append(ChangeKind.NEW_ADDRESS, address, iface.index, IMPLIED)

    def set_up(self, iface: Interface, up: bool) -> None:
        """Take a link up or down, and with it what follows on Linux (RT-15).

        Down: its routes go, silently for IPv4 as there, and its IPv6 addresses. Up: the routes to its subnets are back,
        and an Ethernet link has its link-local address.
        """
        if up == iface.up:
            return
        iface.set_up(up)
        self.autoconf.went(iface, up=up)
        if up:
            if not iface.loopback:
                self._tell_route(ChangeKind.NEW_ROUTE, _multicast_route(iface))
            for address in iface.addresses:
                self._add_connected(iface, address)
                self._tell_route(ChangeKind.NEW_ROUTE, self._broadcast_route(iface, address))
            if not iface.loopback and iface.master is None:
                link_local = InterfaceAddress(link_local_from_mac(iface.mac), 64, scope=SCOPE_LINK)
                if not any(len(each.address) == 16 and each.scope == SCOPE_LINK for each in iface.addresses):
                    self.give_address(iface, link_local)
            return
        self._forget_routes(iface)
        if not iface.loopback:
            self._tell_route(ChangeKind.DEL_ROUTE, _multicast_route(iface))
            for address in [each for each in iface.addresses if len(each.address) == 16]:
                self.remove_address(iface, address.address)

    def _forget_routes(self, iface: Interface) -> None:
        """A link is down or gone: so are the routes through it. Linux tells nobody of the IPv4 ones."""
        for entry in [each for each in self.routes if each.uses(iface)]:
            self.ip.remove_route(entry)
            self.changes.append(
                ChangeKind.DEL_ROUTE, entry, iface.index, IMPLIED if len(entry.network) == 16 else SILENT
            )

    def set_forwarding(self, on: bool, *, version: int = 0, iface: Interface | None = None) -> None:
        """Route packets between interfaces, as net.ipv4.ip_forward and net.ipv6.conf.*.forwarding of Linux do.

        IPv4 (4), IPv6 (6) or both (0); for packets that come in through `iface`, or everywhere. Off at first.
        """
        self.ip.forwarding.set(on, version=version, iface=iface)

    def set_master(self, iface: Interface, master: Interface | None) -> None:
        """Make `iface` a port of `master`, a bridge, or free. Raises NetError: EOPNOTSUPP, EINVAL, ELOOP, EBUSY."""
        if master is iface.master:
            return
        if master is not None and master.ports is None:
            raise NetError(errno.EOPNOTSUPP, f"{master.name} takes no ports")
        if iface.master is not None and iface.master.ports is not None:
            iface.master.ports.remove(iface)
            iface.master = None
        if master is not None and master.ports is not None:
            master.ports.add(iface)
            iface.master = master
        self.changes.append(ChangeKind.NEW_LINK, iface, iface.index, "master")

    def remove_interface(self, which: Interface | str) -> None:
        """Take an interface away with its addresses and routes; its device stays open.

        Raises NetError: ENODEV, EOPNOTSUPP for `lo`, which stays.
        """
        iface = self.interface(which if isinstance(which, str) else which.name)
        if iface is self.lo:
            raise NetError(errno.EOPNOTSUPP, "lo cannot be removed")
        self._release_links(iface)
        self.changes.origin = (0, 0)  # what goes with a link is nobody's request
        if iface.up:
            iface.set_up(False, "closing")
        self.autoconf.disable(iface, keep=True)
        self._forget_routes(iface)
        for address in [*(each for each in iface.addresses if len(each.address) == 16), *iface.addresses]:
            if iface.has_address(address.address):
                self.remove_address(iface, address.address)
        for entry in self.ip.remove_interface(iface):
            self.changes.append(ChangeKind.DEL_ROUTE, entry, iface.index)
        del self._by_name[iface.name]
        iface.netns = None
        iface.close()
        if iface.kind and self.detach is not None:
            self.detach(iface)
        self.changes.append(ChangeKind.DEL_LINK, iface, iface.index)
        on_removed, iface.on_removed = iface.on_removed, None
        if on_removed is not None:
            on_removed()

    def adopt(self, iface: Interface, name: str | None = None, index: int = 0) -> None:
        """Take an interface over from the namespace it is in, as `ip link set NAME netns`: down, without addresses.

        It keeps its name (or gets `name`) and its index if that is free here. Raises NetError: EINVAL for `lo` and
        bridges, which stay where they are, and for a bad name; EEXIST for a name, EBUSY for an `index` in use here.
        """
        there = iface.netns
        if there is None or there is self:
            return
        if iface.loopback or iface.ports is not None:
            raise NetError(errno.EINVAL, "The interface is bound to its namespace")
        wanted = iface.name if name is None else name
        try:
            check_name(wanted)
        except ValueError as error:
            raise NetError(errno.EINVAL, str(error)) from None
        if wanted in self._by_name:
            raise NetError(errno.EEXIST, f"there is an interface {wanted!r} already")
        if index and index in self.ip.interfaces:
            raise NetError(errno.EBUSY)
        there._give_away(iface)  # noqa: SLF001 - another of us
        iface.name = wanted
        own = index or (iface.index if iface.index not in self.ip.interfaces else 0)
        iface.index = own or next(each for each in self._next_index if each not in self.ip.interfaces)
        iface.move(self.changes)
        self._by_name[wanted] = iface
        self._by_name = {each.name: each for each in sorted(self._by_name.values(), key=lambda each: each.index)}
        iface.netns = self
        self.ip.add_interface(iface)
        self.changes.append(ChangeKind.NEW_LINK, iface, iface.index, ARRIVED)

    def _give_away(self, iface: Interface) -> None:
        """An interface leaves, unharmed, for another namespace."""
        if iface.master is not None:
            self.set_master(iface, None)
        self.set_up(iface, False)
        for address in list(iface.addresses):
            self.remove_address(iface, address.address)
        for entry in self.ip.remove_interface(iface):
            self.changes.append(ChangeKind.DEL_ROUTE, entry, iface.index)
        del self._by_name[iface.name]
        self.changes.append(ChangeKind.DEL_LINK, iface, iface.index, MOVED)

    def _release_links(self, iface: Interface) -> None:
        """A link goes: it is nobody's port any more, its ports are free, and what stands on it goes first."""
        if iface.master is not None:
            self.set_master(iface, None)
        for other in list(self._by_name.values()):
            if other.master is iface:
                self.set_master(other, None)
        for upper in list(iface.uppers):
            if upper.netns is not None:
                upper.netns.remove_interface(upper)

    def close(self) -> None:
        """Remove every interface. Idempotent."""
        self.closed = True
        for iface in list(self._by_name.values()):
            if iface is not self.lo and iface.netns is self:  # with one link others go
                self.remove_interface(iface)
        self.lo.device.close()

    def stats(self) -> dict[str, dict[str, int] | dict[str, tuple[int, int]]]:
        """Why packets were dropped, by layer and reason, and under "limits" what is in use of what there can be."""
        found: dict[str, dict[str, int] | dict[str, tuple[int, int]]] = {
            "ip": dict(self.ip.drops),
            "udp": dict(self.udp.drops),
            "tcp": dict(self.tcp.drops),
            "limits": self.ip.limits(),
        }
        for iface in self._by_name.values():
            found[iface.name] = dict(iface.drops)
            found[f"{iface.name} neighbours"] = dict(iface.neighbours.drops)
        return found

    # --- addresses ------------------------------------------------------------------------------------------------

    def add_address(self, iface: Interface, text: str, *, detect_duplicates: bool = False) -> InterfaceAddress:
        """Give `iface` an address like ``10.0.2.2/24``. Raises ValueError naming `text`, NetError(EEXIST).

        `detect_duplicates`: the address is tentative, and not used, until nobody objected (RFC 4862, RFC 5227), which
        takes a second or two, or up to seven for IPv4. Without, it is ours at once.
        """
        address = InterfaceAddress.parse(text)
        self.give_address(iface, address, detect_duplicates=detect_duplicates)
        return address

    def give_address(self, iface: Interface, address: InterfaceAddress, *, detect_duplicates: bool = False) -> None:
        """As `add_address`, of an address made already. Raises NetError(EEXIST)."""
        if iface.has_address(address.address):
            raise NetError(errno.EEXIST, f"{iface.name} has {address} already")
        if len(address.address) == 4 and self._primary(iface, address) is not None:
            address.flags |= IFA_F_SECONDARY
        address.created = address.changed = self.scheduler.now
        iface.addresses.append(address)
        if detect_duplicates and not iface.loopback:
            if len(address.address) == 4:
                iface.arp.conflicts.on_done = self._tested
                iface.arp.conflicts.start(address)
            else:
                self.ip.icmp6.ndp.duplicates.start(iface, address)
        self.ip.refresh()
        # Linux tells of an IPv6 prefix before its address, and of the address before an IPv4 one.
        if len(address.address) == 16:
            self._add_connected(iface, address)
            self.changes.append(ChangeKind.NEW_ADDRESS, address, iface.index)
            self._tell_route(ChangeKind.NEW_ROUTE, self._local_route(iface, address))
        else:
            self.changes.append(ChangeKind.NEW_ADDRESS, address, iface.index)
            self._tell_route(ChangeKind.NEW_ROUTE, self._local_route(iface, address))
            self._add_connected(iface, address)
            self._tell_route(ChangeKind.NEW_ROUTE, self._broadcast_route(iface, address))
        if iface.up and not iface.loopback and len(address.address) == 4 and address.usable:
            iface.arp.announce(address.address)

    def _tested(self, iface: Interface, address: InterfaceAddress, ours: bool) -> None:
        """Detection of duplicates is over; an autoconfigured address that is not ours alone goes."""
        self.ip.refresh()
        if not ours:
            self.ip.drops.count(DropReason.DUPLICATE_ADDRESS)
        if not ours and address.autoconfigured:
            self.remove_address(iface, address.address)
        else:
            self.changes.append(ChangeKind.NEW_ADDRESS, address, iface.index)

    def _add_connected(self, iface: Interface, address: InterfaceAddress) -> None:
        """The route to an address's subnet, if the link is up."""
        connected = self._connected_route(iface, address) if iface.up else None
        if connected is not None and self.ip.add_route(connected):
            self.changes.append(ChangeKind.NEW_ROUTE, connected, iface.index, IMPLIED)

    def remove_address(self, iface: Interface, address: bytes) -> None:
        """Raises NetError(EADDRNOTAVAIL) if `iface` does not have it."""
        found = next((each for each in iface.addresses if each.address == address), None)
        if found is None:
            raise NetError(errno.EADDRNOTAVAIL)
        if len(address) == 4 and not found.secondary:  # its secondaries go with it, and before it
            for each in [one for one in iface.addresses if one.secondary and self._primary(iface, one) is found]:
                self.remove_address(iface, each.address)
        local, broadcast = self._local_route(iface, found), self._broadcast_route(iface, found)
        iface.addresses.remove(found)
        iface.arp.conflicts.stop(address)
        self.ip.icmp6.ndp.duplicates.stop(iface, address)
        self.ip.refresh()
        self.changes.append(ChangeKind.DEL_ADDRESS, found, iface.index)
        connected = self._connected_route(iface, found)
        still_needed = any(
            each.network == found.network and each.prefix_length == found.prefix_length for each in iface.addresses
        )
        if connected is not None and not still_needed:
            for entry in list(self._table(connected.network)):
                if entry.same_as(connected):
                    self.ip.remove_route(entry)
                    self.changes.append(ChangeKind.DEL_ROUTE, entry, iface.index, IMPLIED)
        self._tell_route(ChangeKind.DEL_ROUTE, broadcast)
        self._tell_route(ChangeKind.DEL_ROUTE, local)
        if len(address) == 4:
            self._orphaned_routes(iface, address)

    def _orphaned_routes(self, iface: Interface, address: bytes) -> None:
        """Routes from an IPv4 address that is gone go too, and with a link's last address all routes through it."""
        last = not any(len(each.address) == 4 for each in iface.addresses)
        for entry in list(self.ip.routes4):
            if entry.src == address or (last and entry.uses(iface)):
                self.ip.remove_route(entry)
                self.changes.append(ChangeKind.DEL_ROUTE, entry, iface.index, SILENT)

    def _primary(self, iface: Interface, address: InterfaceAddress) -> InterfaceAddress | None:
        """The address of the same IPv4 subnet, prefix length included, that was there before `address`."""
        for each in iface.addresses:
            if each is address:
                return None
            if each.network == address.network and each.prefix_length == address.prefix_length and not each.secondary:
                return each
        return None

    # --- routes that follow from addresses: the table `local` -------------------------------------------------------

    @property
    def local_routes(self) -> list[RouteEntry]:
        """What Linux has in its table 255, both families: nothing is looked up here, `IpLayer.local` knows."""
        entries: list[RouteEntry] = []
        for iface in self._by_name.values():
            for address in iface.addresses:
                entries.append(self._local_route(iface, address))
                broadcast = self._broadcast_route(iface, address)
                if broadcast is not None:
                    entries.append(broadcast)
                if iface.loopback and len(address.address) == 4 and iface.up:
                    entries.append(_implied(address.network, address.prefix_length, iface, RouteKind.LOCAL, address))
            if iface.up and not iface.loopback:
                entries.append(_multicast_route(iface))
        return entries

    def _local_route(self, iface: Interface, address: InterfaceAddress) -> RouteEntry:
        primary = self._primary(iface, address) or address
        return _implied(address.address, len(address.address) * 8, iface, RouteKind.LOCAL, primary)

    def _broadcast_route(self, iface: Interface, address: InterfaceAddress) -> RouteEntry | None:
        """None if there is none: IPv6, /31 and /32, a secondary address, a link that is down."""
        broadcast = broadcast_of(address.address, address.prefix_length)
        if broadcast is None or address.secondary or not iface.up:
            return None
        return _implied(broadcast, 32, iface, RouteKind.BROADCAST, address)

    def _tell_route(self, kind: ChangeKind, entry: RouteEntry | None) -> None:
        if entry is not None and entry.iface is not None:
            self.changes.append(kind, entry, entry.iface.index, IMPLIED)

    @staticmethod
    def _connected_route(iface: Interface, address: InterfaceAddress) -> RouteEntry | None:
        """The route to an address's own subnet, as the kernel makes it; None for a lone host address or on lo."""
        width = len(address.address)
        lone = address.prefix_length == width * 8
        if iface.loopback or lone or address.secondary or address.flags & IFA_F_NOPREFIXROUTE:
            return None
        return RouteEntry(
            address.network,
            address.prefix_length,
            iface,
            metric=0 if width == 4 else METRIC6_KERNEL,
            src=address.address if width == 4 else None,
            protocol=PROTOCOL_KERNEL,
            scope=SCOPE_LINK if width == 4 else 0,
        )

    # --- routes ---------------------------------------------------------------------------------------------------

    @property
    def routes(self) -> list[RouteEntry]:
        """Both families, longest prefixes first."""
        return [*self.ip.routes4, *self.ip.routes6]

    def add_route(
        self,
        dst: str,
        gateway: str | None = None,
        dev: str | Interface | None = None,
        metric: int | None = None,
        *,
        src: str | None = None,
        kind: RouteKind = RouteKind.UNICAST,
        protocol: int = PROTOCOL_STATIC,
    ) -> RouteEntry:
        """A route to `dst` (``10.1.0.0/16``, ``default``) by way of `gateway`, interface `dev`, or both (IF-15).

        Raises ValueError for text that is no address or a prefix with host bits set, NetError: EEXIST, ENODEV (no such
        interface, or neither gateway nor dev), ENETUNREACH (the gateway is on no subnet of ours).
        """
        via = None if gateway is None else parse_address(gateway)
        if dst == "default":
            width = 4 if via is None else len(via)
            network, length = bytes(width), 0
        else:
            network, length = parse_prefix(dst)
            if network_of(network, length) != network:
                raise ValueError(f"host bits are set in {dst!r}")
        iface = self.interface(dev) if isinstance(dev, str) else dev
        if kind == RouteKind.UNICAST and iface is None:
            if via is None:
                raise NetError(errno.ENODEV, f"a route to {dst} needs a gateway or a device")
            iface = next(
                (each for each in self._by_name.values() if any(one.covers(via) for one in each.addresses)), None
            )
            if iface is None:
                raise NetError(errno.ENETUNREACH, f"gateway {gateway} is on no subnet of ours")
        if metric is None:
            metric = 0 if len(network) == 4 else METRIC6_USER
        source = None if src is None else parse_address(src)
        entry = RouteEntry(network, length, iface, gateway=via, metric=metric, src=source, kind=kind, protocol=protocol)
        if not self.ip.add_route(entry):
            raise NetError(errno.EEXIST, f"there is a route to {dst} like this already")
        self.changes.append(ChangeKind.NEW_ROUTE, entry, iface.index if iface else 0)
        return entry

    def put_route(self, entry: RouteEntry, how: str = "") -> None:
        """As `add_route`, of an entry made already; `how` goes into the record. Raises NetError(EEXIST)."""
        if not self.ip.add_route(entry):
            raise NetError(errno.EEXIST)
        self.changes.append(ChangeKind.NEW_ROUTE, entry, entry.iface.index if entry.iface else 0, how)

    def replace_route(self, old: RouteEntry, new: RouteEntry) -> None:
        """`new` in the place of `old`; there is no moment without either."""
        self.ip.add_route(new)
        self.ip.remove_route(old)
        self.changes.append(ChangeKind.NEW_ROUTE, new, new.iface.index if new.iface else 0, "replaced")

    def add_rule(self, policy: RoutingPolicy, rule: Rule) -> None:
        """A rule for one family's lookups."""
        policy.add_rule(rule)
        self.ip.invalidate()
        self.changes.append(ChangeKind.NEW_RULE, rule, 0)

    def remove_rule(self, policy: RoutingPolicy, rule: Rule) -> None:
        policy.remove_rule(rule)
        self.ip.invalidate()
        self.changes.append(ChangeKind.DEL_RULE, rule, 0)

    def remove_route(self, entry: RouteEntry) -> None:
        """Raises NetError(ESRCH) if it is not there."""
        if not self.ip.remove_route(entry):
            raise NetError(errno.ESRCH, f"no such route: {entry}")
        self.changes.append(ChangeKind.DEL_ROUTE, entry, entry.iface.index if entry.iface else 0)

    def _table(self, address: bytes) -> Iterable[RouteEntry]:
        return self.ip.routes4 if len(address) == 4 else self.ip.routes6
