"""The DHCP server at work: on one interface of a namespace, UDP port 67.

Requests come through the namespace's UDP like any datagram. Answers do not go out that way: their receiver may not have
its address yet, so that neither a route nor ARP would find it. They are put together here and leave the interface with
the hardware address the server names (RFC 2131 section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from stack.iface.interface import Interface
from stack.netns import NetNamespace
from stack.services.dhcp import DhcpConfig, DhcpServer
from stack.services.faults import Later
from stack.services.leases import Lease
from stack.services.names import NameSource
from stack.uts_ns import NONE, UtsNamespace
from stack.wire import dhcp, ipv4, udp
from stack.wire.ethernet import BROADCAST, ETHERTYPE_IPV4

DEFAULT_MTU: Final = 1500  # bytes; what a client assumes that is told nothing
_IPV4_LENGTH: Final = 4


class DhcpService:
    """Serves `interface` (an interface of `netns`, or its name) until `close`. Called with the Network's lock held.

    Clients are told the domain name of `uts`, the node's UTS namespace, while it has one and `config` names no other.
    Their own names are known to whoever asks `leases`, the list a DNS service looks into, while they have a lease.

    Without a `config`, or without its `interface`, the first IPv4 address of the interface is the server's. Raises
    ValueError for an interface without one and for what `DhcpServer` refuses; NetError(EADDRINUSE) if port 67 is taken.
    """

    def __init__(
        self,
        netns: NetNamespace,
        interface: Interface | str,
        config: DhcpConfig | None = None,
        *,
        on_lease: Callable[[Lease], None] | None = None,
        uts: UtsNamespace | None = None,
        leases: list[NameSource] | None = None,
    ) -> None:
        self.interface = netns.interface(interface) if isinstance(interface, str) else interface
        self.server = DhcpServer(self._completed(config or DhcpConfig()), on_lease=on_lease)
        self.hostname = config.hostname if config is not None else None  #: of clients without a name of their own
        self._uts = uts if config is None or config.domain is None else None
        if self._uts is not None:
            self._uts.observers.append(self._renamed)
            self._renamed()
        self.faults = self.server.faults
        self._scheduler = netns.scheduler
        self._later = Later(netns.scheduler)
        self._endpoint = netns.udp.bind(bytes(_IPV4_LENGTH), dhcp.SERVER_PORT, reuse_addr=True)
        self._endpoint.bind_ifindex = self.interface.index
        self._endpoint.on_event = self._arrived
        self._shared = leases
        if leases is not None:
            leases.append(self)

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
        self._endpoint.on_event = None
        self._endpoint.close()
        self._later.close()
        if self._shared is not None:
            self._shared.remove(self)
            self._shared = None
        if self._uts is not None:
            self._uts.observers.remove(self._renamed)
            self._uts = None

    def _renamed(self) -> None:
        if self._uts is not None:
            domain = self._uts.domainname
            self.server.set_domain(domain if domain.isascii() and domain not in ("", NONE) else None)

    def _completed(self, config: DhcpConfig) -> DhcpConfig:
        interface = self.interface
        if not config.interface:
            for each in interface.addresses:
                if len(each.address) == _IPV4_LENGTH:
                    text = f"{IPv4Address(each.address)}/{each.prefix_length}"
                    config = replace(config, interface=text)
                    break
            else:
                raise ValueError(f"{interface.name} has no IPv4 address to serve DHCP from: give it one first")
        if config.mtu is None and interface.mtu != DEFAULT_MTU:
            config = replace(config, mtu=interface.mtu)
        return config

    def _arrived(self) -> None:
        self._scheduler.defer(self._serve)

    def _serve(self) -> None:
        while (datagram := self._endpoint.recv()) is not None:
            reply = self.server.handle(datagram.data, self._scheduler.now)
            if reply is not None:
                send = partial(self._send, reply.data, reply.destination, reply.mac or BROADCAST)
                self._later.call(reply.delay, send)

    def _send(self, data: bytes, destination: bytes, mac: bytes) -> None:
        source = self.server.address
        datagram = udp.emit(source, destination, dhcp.SERVER_PORT, dhcp.CLIENT_PORT, data)
        header = ipv4.Ipv4Header(
            src=source, dst=destination, proto=udp.PROTO, total_length=ipv4.HEADER_LENGTH + len(datagram)
        )
        self.interface.send_frame(mac, ETHERTYPE_IPV4, header.emit() + datagram)
