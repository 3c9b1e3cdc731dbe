"""The DHCPv6 server at work: on one interface of a namespace, UDP port 547, in the group of all servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv6Address
from typing import Final

from stack.errors import Drops, NetError
from stack.iface.address import SCOPE_LINK
from stack.iface.interface import Interface
from stack.netns import NetNamespace
from stack.services.dhcp6 import Dhcp6Config, Dhcp6Server
from stack.services.faults import Later
from stack.services.leases import Lease
from stack.services.names import NameSource
from stack.services.router_advertisement import RouterAdvertiser
from stack.uts_ns import NONE, UtsNamespace
from stack.wire import dhcp6

#: Datagrams answered in one turn; others want their share of it too.
BUDGET: Final = 64
_IPV6_LENGTH: Final = 16


class Dhcp6Service:
    """Serves `interface` (an interface of `netns`, or its name) until `close`. Called with the Network's lock held.

    `advertiser`, if given, tells hosts meanwhile that there is DHCPv6: flag M where addresses are to be had, flag O in
    any case (RFC 4861 section 4.2). Clients are told the domain name of `uts` while it has one and `config` names no
    other; their own names are known to whoever asks `leases`, the list a DNS service looks into.

    Without a `config`, or without its `interface`, the first IPv6 address of the interface that is not link-local is
    the server's. Raises ValueError for an interface without one and for what `Dhcp6Server` refuses;
    NetError(EADDRINUSE) if port 547 is taken.
    """

    def __init__(
        self,
        netns: NetNamespace,
        interface: Interface | str,
        config: Dhcp6Config | None = None,
        *,
        on_lease: Callable[[Lease], None] | None = None,
        uts: UtsNamespace | None = None,
        leases: list[NameSource] | None = None,
        advertiser: RouterAdvertiser | None = None,
    ) -> None:
        self.interface = netns.interface(interface) if isinstance(interface, str) else interface
        config = self._completed(config or Dhcp6Config())
        self.server = Dhcp6Server(config, dhcp6.link_layer_duid(self.interface.mac), on_lease=on_lease)
        self.faults = self.server.faults
        self.drops = Drops()  #: of the service; what was wrong with messages is counted by `server`
        self._netns = netns
        self._scheduler = netns.scheduler
        self._later = Later(netns.scheduler)
        self._more = netns.scheduler.timer(self._serve)
        self._endpoint = netns.udp.bind(
            bytes(_IPV6_LENGTH), dhcp6.SERVER_PORT, v6only=True, ifindex=self.interface.index
        )
        self._endpoint.bind_ifindex = self.interface.index
        self._endpoint.on_event = self._arrived
        netns.ip.join_group(dhcp6.ALL_SERVERS, self.interface)
        self._uts = uts if config.domain is None else None
        if self._uts is not None:
            self._uts.observers.append(self._renamed)
            self._renamed()
        self._shared = leases
        if leases is not None:
            leases.append(self)
        self._advertiser = advertiser
        if advertiser is not None:
            advertiser.announce_dhcp6(managed=config.stateful, other=True)

    def addresses(self, name: str) -> list[bytes]:
        """Of the client called `name`; this service is a `stack.services.names.NameSource`."""
        return self.server.addresses(name, self._scheduler.now)

    def names(self, address: bytes) -> list[str]:
        """Of the client with this address."""
        return self.server.names(address, self._scheduler.now)

    def leases(self) -> Iterator[Lease]:
        """The leases in force now."""
        return self.server.leases(self._scheduler.now)

    def close(self) -> None:
        """Idempotent. The book of leases stays readable."""
        if self._endpoint.closed:
            return
        self._endpoint.on_event = None
        self._endpoint.close()
        self._more.cancel()
        self._later.close()
        if self._netns.interfaces.get(self.interface.name) is self.interface:
            self._netns.ip.leave_group(dhcp6.ALL_SERVERS, self.interface)
        if self._uts is not None:
            self._uts.observers.remove(self._renamed)
        if self._shared is not None:
            self._shared.remove(self)
        if self._advertiser is not None:
            self._advertiser.announce_dhcp6(managed=False, other=False)

    def _completed(self, config: Dhcp6Config) -> Dhcp6Config:
        if config.interface:
            return config
        for each in self.interface.addresses:
            if len(each.address) == _IPV6_LENGTH and each.scope != SCOPE_LINK:
                return replace(config, interface=f"{IPv6Address(each.address)}/{each.prefix_length}")
        raise ValueError(f"{self.interface.name} has no IPv6 address to serve DHCPv6 from: give it one first")

    def _renamed(self) -> None:
        if self._uts is not None:
            domain = self._uts.domainname
            try:
                self.server.set_domain(domain if domain not in ("", NONE) else None)
            except ValueError:  # a name that is no domain's
                self.server.set_domain(None)

    def _arrived(self) -> None:
        self._scheduler.defer(self._serve)

    def _serve(self) -> None:
        for _ in range(BUDGET):
            datagram = self._endpoint.recv()
            if datagram is None:
                return
            source = datagram.src[0]
            multicast = datagram.dst[0] == dhcp6.ALL_SERVERS
            reply = self.server.handle(datagram.data, source, self._scheduler.now, multicast=multicast)
            if reply is not None:
                self._later.call(reply.delay, partial(self._send, reply.data, source))
        self._more.arm_in(0)

    def _send(self, data: bytes, client: bytes) -> None:
        """To the client's port, whichever it sent from (RFC 8415 section 7.2)."""
        if self._endpoint.closed:
            return
        try:
            self._endpoint.send(data, (client, dhcp6.CLIENT_PORT), oif=self.interface.index)
        except NetError:
            self.drops.count("not-sent")
