"""`Stack`: one node of a Network, with its namespaces and its sockets.

A Stack holds no protocol of its own: it ties a `NetNamespace` (interfaces, routes, ports, IP, TCP, UDP), a vsock engine
and the Network it lives in together, and offers sockets on them, as a stand-in for the `socket` module.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from stack.credentials import Capability, Credentials, UserNamespace
from stack.errors import NetError
from stack.iface.address import SCOPE_LINK
from stack.socket.base import Again, Timeout, os_error
from stack.socket.poll import Pollee
from stack.uts_ns import Uname, UtsNamespace

if TYPE_CHECKING:
    import threading

    from stack.iface.interface import Interface
    from stack.iface.source import Source
    from stack.kobjects import Kobject
    from stack.link.device import LinkDevice
    from stack.netns import NetNamespace
    from stack.scheduler import Scheduler
    from stack.services.names import NameSource
    from stack.socket.descriptors import Descriptors
    from stack.socket.module import SocketModule
    from stack.statistics import Statistics
    from stack.task import Task
    from stack.unix import UnixSpace
    from stack.unix.files import Files
    from stack.vsock import VsockEngine
    from stack.vsock.transport import VsockTransport

T = TypeVar("T")


class World(Protocol):
    """What a Stack needs of its Network; see `stack.network.Network`."""

    lock: threading.Lock
    scheduler: Scheduler
    stacks: dict[str, Stack]
    marks: list[Pollee]
    clock: Callable[[], int]

    def call(self, attempt: Callable[..., T], args: tuple[Any, ...]) -> T: ...
    def block_on(
        self, pollee: Pollee, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again: ...
    def briefly(self, step: Callable[[Any, Any], bool], one: Any, two: Any) -> bool: ...
    def attend(self) -> None: ...
    def dispose(self, close: Callable[[], None]) -> None: ...
    def attach_locked(self, source: Source, name: str = "") -> None: ...
    def detach_locked(self, source: Source) -> None: ...
    def finish(self) -> None: ...
    def start(self) -> None: ...
    def close(self) -> None: ...


class Stack:
    """One node: interfaces, routes, ports, sockets. Made by `Network.stack(name)` or alone."""

    #: Makes the Network of a Stack made alone; put here by `stack.network`.
    make_network: ClassVar[Callable[[], World] | None] = None

    def __init__(self, name: str, *, network: World | None = None, credentials: Credentials | None = None) -> None:
        """Without `network` the Stack has one of its own, closed with it. Its sockets act as `credentials` (root).

        Raises ValueError if the Network has a Stack of that name.
        """
        self.name = name
        self._owns_network = network is None
        if network is None:
            if Stack.make_network is None:
                raise RuntimeError("no Network to be had: use `from stack import Stack`")
            network = Stack.make_network()
        self.network = network
        self.waiting = network
        #: Names this node can resolve besides its own, "localhost" and those of the Network's other stacks.
        self.hosts: dict[str, list[str]] = {}
        #: Called, in the writer's thread, where Linux would send SIGPIPE: an EPIPE of a stream, without MSG_NOSIGNAL.
        self.on_sigpipe: Callable[[], None] | None = None
        #: Where names of guests are found: DHCP services of this node add themselves, its DNS services look here.
        self.clients: list[NameSource] = []
        from stack.kobjects import Events
        from stack.namespaces import NetNamespaces
        from stack.task import Task

        with network.lock:
            if name in network.stacks:
                raise ValueError(f"this Network has a stack called {name!r} already")
            self.events = Events(network)  #: kernel events: `events.subscribe()`
            who = Credentials() if credentials is None else credentials
            self._namespaces = NetNamespaces(network, self.events, self._forget_netns)
            netns = self._namespaces.make(who.user_ns, name, up=True)
            self._first = Task(who, netns, UtsNamespace(name, user_ns=who.user_ns))
            self._tasks: list[Task] = []  # those acting, besides the first
            self._hosts: dict[NetNamespace, SocketHost] = {}
            network.stacks[name] = self
            network.finish()
        self._vsock_sources: list[Source] = []

    # -- who acts, and where ------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """Who acts for this Stack in the present context; see `stack.task`."""
        from stack.task import ACTING

        return ACTING.get().get(self, self._first)

    @property
    def netns(self) -> NetNamespace:
        """The network namespace of whoever acts."""
        return self.task.netns

    @property
    def namespaces(self) -> tuple[NetNamespace, ...]:
        """The network namespaces that live, the node's own first."""
        return tuple(self._namespaces)

    @property
    def uts(self) -> UtsNamespace:
        """The UTS namespace of whoever acts."""
        return self.task.uts

    @property
    def credentials(self) -> Credentials:
        """Those of whoever acts."""
        return self.task.credentials

    @contextmanager
    def acting(self, credentials: Credentials | None = None) -> Iterator[Task]:
        """Meanwhile, in this thread, another task acts: with `credentials`, in the namespaces of the present one."""
        from stack.task import ACTING

        task = self.task.fork(credentials)
        token = ACTING.set(MappingProxyType({**ACTING.get(), self: task}))
        self._tasks.append(task)
        try:
            yield task
        finally:
            self._tasks.remove(task)
            ACTING.reset(token)
            self.network.dispose(task.leave)

    def has_process(self, pid: int) -> bool:
        """Has one of the tasks that act now this process id?"""
        return any(task.credentials.pid == pid for task in (self._first, *self._tasks))

    def unshare(self, flags: int) -> Task:
        """unshare(2) for whoever acts: `stack.task.CLONE_NEWNET`, CLONE_NEWUTS, CLONE_NEWUSER, or-ed.

        A new network namespace has only `lo`, which is down, and lives while a task or a socket is in it: see
        `stack.namespaces`. Raises OSError: EINVAL, EPERM, ENOSPC.
        """
        task = self.task
        self._call(task.unshare, flags, self._namespaces.make)
        return task

    def setns(self, namespace: NetNamespace | UtsNamespace | UserNamespace, nstype: int = 0) -> None:
        """setns(2) for whoever acts. Sockets stay in the namespace they were made in. Raises OSError: EINVAL, EPERM."""
        self._call(self.task.setns, namespace, nstype)

    def add_netns(self, name: str) -> NetNamespace:
        """As `ip netns add`: a network namespace that its name holds; whoever acts stays. Raises OSError(EPERM)."""
        return self._call(self._add_netns, name)

    def _add_netns(self, name: str) -> NetNamespace:
        credentials = self.credentials
        if not credentials.may(Capability.SYS_ADMIN):
            raise NetError(errno.EPERM)
        netns = self._namespaces.make(credentials.user_ns, name)
        self._namespaces.name(netns)
        return netns

    def remove_netns(self, netns: NetNamespace) -> None:
        """As `ip netns delete`: the name goes, and with it the namespace once no task or socket is in it any more.

        Then links made by kind go, and with them their peers; what was plugged in goes back to the node's own
        namespace, as `dev0`, `dev1`... if its name is taken there, down and without addresses. Raises OSError: EBUSY
        for the node's own, EINVAL for one without a name, EPERM without CAP_SYS_ADMIN.
        """
        self._call(self._namespaces.remove, netns, self.credentials)

    @contextmanager
    def keeping(self, netns: NetNamespace) -> Iterator[NetNamespace]:
        """Meanwhile the namespace lives, whoever leaves it: an open /proc/PID/ns/net. Raises OSError(EINVAL): gone."""
        if netns.closed:
            raise OSError(errno.EINVAL, "the namespace is gone")
        hold = netns.hold()
        try:
            yield netns
        finally:
            self.network.dispose(lambda: netns.let_go(hold))

    def _forget_netns(self, netns: NetNamespace) -> None:
        self._hosts.pop(netns, None)

    def move_interface(self, name: str, netns: NetNamespace) -> Interface:
        """As `ip link set NAME netns`: down, without addresses. Raises OSError: ENODEV, EINVAL (`lo`, bridges), EEXIST.

        EPERM unless who acts has CAP_NET_ADMIN in the owners of both namespaces.
        """
        return self._call(self._namespaces.move, name, self.netns, netns, self.credentials)

    def _call(self, attempt: Callable[..., T], *args: Any) -> T:
        try:
            return self.network.call(attempt, args)
        except NetError as error:
            raise os_error(error) from None

    # -- names of the node --------------------------------------------------------------------------------------------

    def uname(self) -> Uname:
        """The six names of the UTS namespace of whoever acts, of one moment."""
        return self.uts.uname()

    def sethostname(self, name: str | bytes) -> None:
        """Raises OSError: EPERM, then EINVAL for more than 64 bytes (UTS-03)."""
        raw = name.encode() if isinstance(name, str) else bytes(name)
        self._call(self.uts.sethostname, raw, len(raw), self.credentials)

    def setdomainname(self, name: str | bytes) -> None:
        """Raises OSError: EPERM, then EINVAL for more than 64 bytes."""
        raw = name.encode() if isinstance(name, str) else bytes(name)
        self._call(self.uts.setdomainname, raw, len(raw), self.credentials)

    # -- kernel events ------------------------------------------------------------------------------------------------

    def kobject(self, path: str) -> Kobject:
        """The object at `path`, as "/sys/class/net/lo" or "/devices/virtual/net/lo". Raises FileNotFoundError."""
        from stack.kobjects import Kobject

        vsock = self.vsock if "vsock" in self.__dict__ else None
        found = self._call(self.events.find, self.netns, vsock, path)
        return Kobject(self.events, found, self.credentials)

    # -- links --------------------------------------------------------------------------------------------------------

    def add_interface(
        self,
        device: LinkDevice,
        name: str | None = None,
        addresses: Iterable[str] = (),
        *,
        mac: bytes | None = None,
        mtu: int | None = None,
    ) -> Interface:
        """Plug `device` in. `addresses` as "10.0.2.2/24"; `name` defaults to the next free ethN.

        Raises ValueError naming what cannot be: an address that is none, a name in use, a MAC or MTU no link has.
        """
        network = self.network
        with network.lock:
            interface = self.netns.add_interface(device, name=name, addresses=list(addresses), mac=mac, mtu=mtu)
            network.attach_locked(interface, f"{self.name}:{interface.name}")
            network.finish()
        return interface

    def remove_interface(self, name: str) -> None:
        """Unplug and close. Raises KeyError for a name that is not there."""
        network = self.network
        with network.lock:
            network.detach_locked(self.netns.interfaces[name])
            self.netns.remove_interface(name)
            network.finish()

    def add_route(self, destination: str, gateway: str | None = None, dev: str | None = None, metric: int = 0) -> None:
        """As `ip route add`: "0.0.0.0/0" through a gateway, or a network on a link. Raises ValueError."""
        with self.network.lock:
            self.netns.add_route(destination, gateway, dev, metric)
            self.network.finish()

    @cached_property
    def unix(self) -> UnixSpace:
        """What this node's Unix sockets share: limits, paths, and files on their way."""
        from stack.unix import UnixSpace

        return UnixSpace(self.network.scheduler)

    @cached_property
    def files(self) -> Files:
        """The paths of this node's Unix sockets, a file tree in memory: mkdir, unlink, stat, chmod..."""
        from stack.unix.files import Files

        return Files(self._call, lambda: self.unix.tree, lambda: self.credentials)

    @cached_property
    def vsock(self) -> VsockEngine:
        """The host side of every guest's vsock: CID 2."""
        from stack.vsock import VsockEngine

        engine = VsockEngine(self.network.scheduler)
        self.events.watch(self._first.netns, engine.changes)
        return engine

    def add_vsock(self, transport: VsockTransport, *, groups: Iterable[str] = ()) -> None:
        """AF_VSOCK sockets of this Stack reach the transport's guest, and it reaches them at CID 2.

        Guests with one of their `groups` in common reach each other too. Raises ValueError if a guest with that CID is
        there already.
        """
        network = self.network
        engine = self.vsock
        with network.lock:
            port = engine.add_guest(transport, groups=groups)
            network.attach_locked(port, f"{self.name}:vsock{transport.guest_cid}")
            self._vsock_sources.append(port)
            network.finish()

    def remove_vsock(self, cid: int) -> None:
        """The guest is gone: its connections end with ECONNRESET. Its transport is not touched again, nor closed.

        Raises KeyError without a guest of that CID.
        """
        network = self.network
        with network.lock:
            port = self.vsock.remove_guest(cid)
            if port is None:
                raise KeyError(f"no guest with vsock CID {cid} is attached here")
            network.detach_locked(port)
            self._vsock_sources.remove(port)
            network.finish()

    @property
    def stats(self) -> Statistics:
        """What has been counted in the network namespace of whoever acts, and in vsock, by layer: read-only, of now."""
        from stack.statistics import of_node

        return self._call(of_node, self.netns, self.__dict__.get("vsock"))

    def names(self) -> dict[str, list[str]]:
        """The host names this node can resolve and their addresses: those of the Network's stacks, and `hosts`."""
        known: dict[str, list[str]] = {}
        for stack in tuple(self.network.stacks.values()):
            known[stack.name.lower()] = known[stack.uts.nodename.lower()] = stack.addresses()
        known.update((name.lower(), addresses) for name, addresses in tuple(self.hosts.items()))
        return known

    def public_names(self) -> dict[str, list[str]]:
        """What a DNS service of this node tells others: host names of the Network's stacks as they are, and `hosts`."""
        stacks = tuple(self.network.stacks.values())
        known = {stack.uts.nodename.lower(): stack.outer_addresses() for stack in stacks if stack is not self}
        known.update((name.lower(), addresses) for name, addresses in tuple(self.hosts.items()))
        return known

    def addresses(self) -> list[str]:
        """This node's addresses as text, IPv4 first, without loopback and link-local ones; of lo if there are none."""
        return self.outer_addresses() or ["127.0.0.1"]

    def outer_addresses(self) -> list[str]:
        """As `addresses`, but none if there are none."""
        interfaces = self.netns.interfaces.values()
        texts = [
            str(IPv4Address(each.address) if len(each.address) == 4 else IPv6Address(each.address))
            for interface in interfaces
            if not interface.loopback
            for each in interface.addresses
            if each.scope != SCOPE_LINK
        ]
        return sorted(texts, key=lambda text: ":" in text)

    @property
    def privileged(self) -> bool:
        """May whoever acts take ports below 1024 (row SEC-02)?"""
        return self.socket_host().privileged

    def socket_host(self) -> SocketHost:
        """What new sockets belong to: this Stack, in the network namespace of whoever makes them, for good."""
        netns = self.netns
        host = self._hosts.get(netns)
        if host is None:
            host = self._hosts[netns] = SocketHost(self, netns)
        return host

    # -- sockets ------------------------------------------------------------------------------------------------------

    @cached_property
    def descriptors(self) -> Descriptors:
        """Which of this Stack's sockets the descriptors that users have are of."""
        from stack.socket.descriptors import Descriptors

        return Descriptors(self.network.attach_locked, self.network.detach_locked)

    @cached_property
    def socket(self) -> SocketModule:
        """Stands in for `import socket`: same names, signatures, exceptions, constants."""
        from stack.socket.module import SocketModule

        return SocketModule(self)

    def installed(self, families: Collection[int] | None = None) -> AbstractContextManager[Self]:
        """Meanwhile the process's `socket` module makes sockets of this Stack (see `stack.socket.installed`).

        `families` are those that are the Stack's: by default all of its network's, AF_UNIX may be added.
        """
        from stack.socket.installed import NETWORK_FAMILIES, installed

        return installed(self, NETWORK_FAMILIES if families is None else families)

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take the node away: interfaces and devices closed, connections gone. Idempotent."""
        if self._owns_network:
            self.network.close()
            return
        with self.network.lock:
            self.close_locked()

    def close_locked(self) -> None:
        """As `close`, the Network's lock held; the Network itself stays."""
        network = self.network
        if network.stacks.get(self.name) is not self:
            return
        del network.stacks[self.name]
        for source in self._vsock_sources:
            network.detach_locked(source)
        if "vsock" in self.__dict__:
            self.vsock.close()
            self.events.unwatch(self.vsock.changes)
        self._namespaces.close()
        if "unix" in self.__dict__:
            self.unix.close()
        if "descriptors" in self.__dict__:
            self.descriptors.forget()

    def __enter__(self) -> Self:
        if self._owns_network:
            self.network.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Stack {self.name}>"


class SocketHost:
    """A Stack as sockets of one network namespace see it; satisfies `stack.socket.base.Host`."""

    def __init__(self, stack: Stack, netns: NetNamespace) -> None:
        self.stack = stack
        self.netns = netns
        self.waiting = stack.waiting

    @property
    def vsock(self) -> VsockEngine:
        return self.stack.vsock

    @property
    def unix(self) -> UnixSpace:
        return self.stack.unix

    @property
    def credentials(self) -> Credentials:
        """Of whoever acts now, as the owner of the socket's namespace sees them."""
        return self.stack.credentials.within(self.netns.user_ns)

    @property
    def on_sigpipe(self) -> Callable[[], None] | None:
        return self.stack.on_sigpipe

    @property
    def descriptors(self) -> Descriptors:
        return self.stack.descriptors

    def has_process(self, pid: int) -> bool:
        return self.stack.has_process(pid)

    @property
    def privileged(self) -> bool:
        """May take ports below 1024 (row SEC-02)."""
        return self.stack.credentials.may(Capability.NET_BIND_SERVICE, self.netns.user_ns)

    def names(self) -> dict[str, list[str]]:
        return self.stack.names()
