"""One network namespace: interfaces, addresses, routes, ports, and the transports on top of them."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from stack.credentials import INIT_USER_NS, UserNamespace
from stack.errors import NetError
from stack.iface.address import SCOPE_LINK, InterfaceAddress
from stack.iface.changes import ChangeKind, ChangeLog
from stack.iface.interface import Interface
from stack.iface.loopback import LoopbackInterface
from stack.ip.autoconf import Autoconfiguration
from stack.ip.layer import IpLayer
from stack.link.loopback import Loopback
from stack.netns.addresses import Addresses
from stack.netns.implied import broadcast_route, multicast_route
from stack.netns.lifetimes import Lifetimes
from stack.netns.marks import ARRIVED, IMPLIED, MOVED, SILENT
from stack.netns.naming import check_name
from stack.packet import PacketLayer
from stack.tcp import express
from stack.tcp.layer import TcpLayer
from stack.udp import UdpLayer
from stack.unix import AbstractNames
from stack.wire.ipv6 import link_local_from_mac

if TYPE_CHECKING:
    from stack.link.device import LinkDevice
    from stack.scheduler import Scheduler
    from stack.socket.netlink.tables import NetlinkTables
    from stack.tcp.options import TcpConfig


class NetNamespace(Addresses):
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
        #: Told when nothing holds this namespace any more.
        self.on_unheld: Callable[[NetNamespace], None] | None = None
        self._holds: set[object] = set()  # a set, for who begins to hold it may not have the lock
        self.ip = IpLayer(scheduler)
        self.ip.icmp6.ndp.duplicates.on_done = self._tested
        self.lifetimes = Lifetimes(self)  #: of addresses that do not last
        #: Interfaces that configure themselves from router advertisements.
        self.autoconf = Autoconfiguration(self.ip, self)
        self.ip.icmp6.on_advertisement = self.autoconf.receive
        self.lo = self._add(Loopback(), "lo", None, None, loopback=True)
        self.add_address(self.lo, "127.0.0.1/8")
        self.add_address(self.lo, "::1/128")
        self.udp = UdpLayer(scheduler, self.ip)
        self.packet = PacketLayer(scheduler, self.ip, self.changes)  #: sockets that see whole frames
        self.tcp = TcpLayer(scheduler, self.ip, ports=self.ip.ports[6], config=tcp_config)
        express.install(self.tcp)

    # --- life -----------------------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether a task, a socket, a name or a handle holds it: see `stack.namespaces`."""
        return bool(self._holds)

    def hold(self) -> object:
        """It is to live until what is returned is passed to `let_go`."""
        hold = object()
        self._holds.add(hold)
        return hold

    def let_go(self, hold: object) -> None:
        """Lock held: one of those who held it does not any more. Idempotent."""
        if hold in self._holds:
            self._holds.discard(hold)
            if not self._holds and self.on_unheld is not None:
                self.on_unheld(self)

    # --- interfaces -----------------------------------------------------------------------------------------------

    @property
    def interfaces(self) -> dict[str, Interface]:
        """By name, in order of their indexes."""
        return dict(self._by_name)

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
        iface = (LoopbackInterface if loopback else Interface)(
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
                self._tell_route(ChangeKind.NEW_ROUTE, multicast_route(iface))
            for address in iface.addresses:
                self._add_connected(iface, address)
                self._tell_route(ChangeKind.NEW_ROUTE, broadcast_route(iface, address))
            if not iface.loopback and iface.master is None:
                link_local = InterfaceAddress(link_local_from_mac(iface.mac), 64, scope=SCOPE_LINK)
                if not any(len(each.address) == 16 and each.scope == SCOPE_LINK for each in iface.addresses):
                    self.give_address(iface, link_local)
            return
        self._forget_routes(iface)
        if not iface.loopback:
            self._tell_route(ChangeKind.DEL_ROUTE, multicast_route(iface))
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

    def take_source_routes(self, on: bool, *, iface: Interface | None = None) -> None:
        """Take packets that name the hosts on their way (LSRR, SSRR), as net.ipv4.conf.all.accept_source_route of Linux
        does; `iface`: of that interface only where it does so everywhere. Off at first.
        """
        self.ip.source_routes.set(on, iface=iface)

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
