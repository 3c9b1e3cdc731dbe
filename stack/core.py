"""`Stack`: one node of a Network, with its namespaces and its sockets.

A Stack holds no protocol of its own: it ties a `NetNamespace` (interfaces, routes, ports, IP, TCP, UDP), a vsock engine
and the Network it lives in together, and offers sockets on them, as a stand-in for the `socket` module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from stack.credentials import Capability, Credentials
from stack.iface.address import SCOPE_LINK
from stack.socket.base import Again, Timeout
from stack.socket.poll import Pollee

if TYPE_CHECKING:
    import threading

    from stack.iface.interface import Interface
    from stack.iface.source import Source
    from stack.link.device import LinkDevice
    from stack.netns import NetNamespace
    from stack.scheduler import Scheduler
    from stack.socket.module import SocketModule
    from stack.vsock import VsockEngine
    from stack.vsock.transport import VsockTransport

T = TypeVar("T")


class World(Protocol):
    """What a Stack needs of its Network; see `stack.network.Network`."""

    lock: threading.Lock
    scheduler: Scheduler
    stacks: dict[str, Stack]
    marks: list[Pollee]

    def call(self, attempt: Callable[..., T], args: tuple[Any, ...]) -> T: ...
    def block_on(
        self, pollee: Pollee, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again: ...
    def dispose(self, close: Callable[[], None]) -> None: ...
    def attach_locked(self, source: Source) -> None: ...
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
        self.credentials = Credentials() if credentials is None else credentials
        self._owns_network = network is None
        if network is None:
            if Stack.make_network is None:
                raise RuntimeError("no Network to be had: use `from stack import Stack`")
            network = Stack.make_network()
        self.network = network
        self.waiting = network
        #: Names this node can resolve besides its own, "localhost" and those of the Network's other stacks.
        self.hosts: dict[str, list[str]] = {}
        from stack.netns import NetNamespace

        with network.lock:
            if name in network.stacks:
                raise ValueError(f"this Network has a stack called {name!r} already")
            self.netns: NetNamespace = NetNamespace(network.scheduler, name=name)
            for interface in self.netns.interfaces.values():
                network.attach_locked(interface)
            self.netns.attach = network.attach_locked
            self.netns.detach = network.detach_locked
            network.stacks[name] = self
            network.finish()
        self._vsock_sources: list[Source] = []

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
            network.attach_locked(interface)
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
    def vsock(self) -> VsockEngine:
        """The host side of every guest's vsock: CID 2."""
        from stack.vsock import VsockEngine

        return VsockEngine(self.network.scheduler)

    def add_vsock(self, transport: VsockTransport, *, groups: Iterable[str] = ()) -> None:
        """AF_VSOCK sockets of this Stack reach the transport's guest, and it reaches them at CID 2.

        Guests with one of their `groups` in common reach each other too. Raises ValueError if a guest with that CID is
        there already.
        """
        network = self.network
        engine = self.vsock
        with network.lock:
            port = engine.add_guest(transport, groups=groups)
            network.attach_locked(port)
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

    def names(self) -> dict[str, list[str]]:
        """The host names this node can resolve and their addresses: those of the Network's stacks, and `hosts`."""
        known = {stack.name.lower(): stack.addresses() for stack in tuple(self.network.stacks.values())}
        known.update((name.lower(), addresses) for name, addresses in self.hosts.items())
        return known

    def addresses(self) -> list[str]:
        """This node's addresses as text, IPv4 first, without loopback and link-local ones; of lo if there are none."""
        interfaces = self.netns.interfaces.values()
        texts = [
            str(IPv4Address(each.address) if len(each.address) == 4 else IPv6Address(each.address))
            for interface in interfaces
            if not interface.loopback
            for each in interface.addresses
            if each.scope != SCOPE_LINK
        ]
        return sorted(texts, key=lambda text: ":" in text) or ["127.0.0.1"]

    @property
    def privileged(self) -> bool:
        """May take ports below 1024 (row SEC-02)."""
        return self.credentials.may(Capability.NET_BIND_SERVICE)

    # -- sockets ------------------------------------------------------------------------------------------------------

    @cached_property
    def socket(self) -> SocketModule:
        """Stands in for `import socket`: same names, signatures, exceptions, constants."""
        from stack.socket.module import SocketModule

        return SocketModule(self)

    def installed(self) -> AbstractContextManager[Self]:
        """Meanwhile the process's `socket` module makes sockets of this Stack (see `stack.socket.installed`)."""
        from stack.socket.installed import installed

        return installed(self)

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
        for source in (*self.netns.interfaces.values(), *self._vsock_sources):
            network.detach_locked(source)
        if "vsock" in self.__dict__:
            self.vsock.close()
        self.netns.close()

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
