"""The DNS server at work: UDP and TCP port 53 of every address of one interface.

It follows the interface's addresses as they come and go. Each has an endpoint of its own, so that an answer comes from
the address that was asked, and port 53 of the node's other interfaces stays free for other servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from stack.errors import Drops, NetError
from stack.iface.address import SCOPE_LINK
from stack.iface.interface import Interface
from stack.netns import NetNamespace
from stack.scheduler import Scheduler
from stack.services.dns_server import DnsServer, Forwarder
from stack.services.dns_stream import DnsStreams
from stack.services.names import Names, NameSource, OwnNames, StaticNames
from stack.udp import Datagram, UdpEndpoint
from stack.uts_ns import NONE, UtsNamespace
from stack.wire.dns import PORT

#: Datagrams answered in one turn; others want their share of it too.
BUDGET: Final = 64
#: Connections that wait to be accepted: no longer than the turn they arrive in.
BACKLOG: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsConfig:
    """What is served. `domain` None: the domain name of the UTS namespace, while it has one."""

    aliases: tuple[str, ...] = ("gateway",)  #: names of the node besides its host name
    domain: str | None = None
    ttl: int = 0  #: seconds an answer may be remembered; names change while a LAN lives


class DnsService:
    """Serves `interface` (an interface of `netns`, or its name) until `close`. Called with the Network's lock held.

    Names come from `uts` (the host name, as it is at the moment), `hosts` (what it returns: names and addresses as
    text) and `leases`, a list that DHCP services add themselves to and that several DNS services may share. What is not
    known is asked of `forwarder`. Raises NetError(EADDRINUSE) if port 53 of an address is taken, ValueError for a TTL
    that is none.
    """

    def __init__(
        self,
        netns: NetNamespace,
        interface: Interface | str,
        config: DnsConfig | None = None,
        *,
        uts: UtsNamespace | None = None,
        hosts: Callable[[], Mapping[str, Iterable[str]]] = dict,
        leases: list[NameSource] | None = None,
        forwarder: Forwarder | None = None,
    ) -> None:
        self.interface = netns.interface(interface) if isinstance(interface, str) else interface
        self.config = config or DnsConfig()
        self._netns = netns
        self._scheduler = netns.scheduler
        self._uts = uts
        own = OwnNames(netns, self.interface, uts, self.config.aliases)
        self.names = Names(own, StaticNames(hosts), domain=self._domain)
        if leases is not None:
            self.names.leases = leases
        self.server = DnsServer(self.names, netns.scheduler, ttl=self.config.ttl, forwarder=forwarder)
        self.faults = self.server.faults
        self.drops = Drops()  #: of the service; what was wrong with messages is counted by `server`
        self._ports: dict[bytes, _Port] = {}
        self._closed = False
        netns.changes.observers.append(self._changed)
        try:
            self._follow(strict=True)
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> list[bytes]:
        """Where it can be asked."""
        return list(self._ports)

    def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._netns.changes.observers.remove(self._changed)
        for port in self._ports.values():
            port.close()
        self._ports.clear()
        self.server.close()

    def _domain(self) -> str | None:
        if self.config.domain is not None:
            return self.config.domain
        domain = self._uts.domainname if self._uts is not None else ""
        return domain if domain.isascii() and domain not in ("", NONE) else None

    def _changed(self) -> None:
        self._scheduler.defer(self._follow)

    def _follow(self, *, strict: bool = False) -> None:
        """Be where the interface's addresses are."""
        if self._closed:
            return
        here = self._netns.interfaces.get(self.interface.name) is self.interface
        wanted = {each.address: each for each in self.interface.addresses if each.usable} if here else {}
        for address in [each for each in self._ports if each not in wanted]:
            self._ports.pop(address).close()
        for address, details in wanted.items():
            if address not in self._ports:
                oif = self.interface.index if details.scope == SCOPE_LINK else 0
                try:
                    self._ports[address] = _Port(self._netns, address, oif, self.server, self.drops)
                except NetError:
                    if strict:
                        raise
                    self.drops.count("address-in-use")


class _Port:
    """Port 53 of one address."""

    def __init__(self, netns: NetNamespace, address: bytes, oif: int, server: DnsServer, drops: Drops) -> None:
        self._scheduler: Scheduler = netns.scheduler
        self._server = server
        self._drops = drops
        self._oif = oif
        self._more = netns.scheduler.timer(self._serve)
        # Link-local addresses may be the same on several links; there, each link has its own port 53.
        self._endpoint: UdpEndpoint = netns.udp.bind(address, PORT, ifindex=oif)
        try:
            bound = netns.tcp.ports.bind(address, PORT, reuse_addr=True, ifindex=oif)
            try:
                listener = netns.tcp.listen(bound, BACKLOG)
            except BaseException:
                bound.release()
                raise
        except BaseException:
            self._endpoint.close()
            raise
        self._endpoint.bind_ifindex = oif
        self._endpoint.on_event = self._arrived
        self._streams = DnsStreams(listener, server, netns.scheduler, drops)

    def close(self) -> None:
        self._more.cancel()
        self._endpoint.on_event = None
        self._endpoint.close()
        self._streams.close()

    def _arrived(self) -> None:
        self._scheduler.defer(self._serve)

    def _serve(self) -> None:
        for _ in range(BUDGET):
            datagram = self._endpoint.recv()
            if datagram is None:
                return
            self._server.handle(datagram.data, partial(self._reply, datagram), client=datagram.src[0])
        self._more.arm_in(0)

    def _reply(self, datagram: Datagram, answer: bytes | None) -> None:
        if answer is None or self._endpoint.closed:
            return
        try:
            self._endpoint.send(answer, datagram.src, src=datagram.dst[0], oif=self._oif)
        except NetError:
            self._drops.count("not-sent")  # no way back to whoever asked
