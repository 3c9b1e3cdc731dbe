"""A DHCPv4 server for one interface of a stack (RFC 2131, RFC 2132).

Theory of operation
-------------------
`DhcpServer` is sans-IO: `handle` takes a datagram's bytes and the time and gives the answer and where it goes. It is
the only server on its segment and behaves so ("authoritative"): a client that remembers an address from earlier gets
it back if it is free and is told at once (NAK) if it is not, instead of waiting for a time-out.

A client without an address cannot be reached by ordinary means. RFC 2131 section 4.1 has the answer go to its future
address *and* its hardware address, without ARP, or to everybody if it set the broadcast flag; NAKs always go to
everybody. `Reply` says which, and `DhcpService` - the server tied to an interface and a UDP port - does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Final, NamedTuple

from stack.errors import DropReason, Drops
from stack.scheduler import NS_PER_S
from stack.services.leases import OFFER_TIME, Lease, LeaseTable
from stack.wire import dhcp
from stack.wire.dhcp import DhcpMessage, MessageType, Option
from stack.wire.error import WireError

BROADCAST: Final = b"\xff\xff\xff\xff"
DEFAULT_LEASE: Final = 3600  # seconds; what user-mode network back-ends give
DECLINE_TIME: Final = 600 * NS_PER_S  # how long an address someone else answers for is left alone
#: Sent whether asked for or not: without them the client cannot use the address.
_ALWAYS: Final = frozenset((Option.SUBNET_MASK, Option.ROUTER, Option.DNS))


@dataclass(frozen=True, slots=True, kw_only=True)
class DhcpConfig:
    """What the server gives out. Text addresses; times in seconds; None or empty leaves an option out.

    `interface` is the server's own address with its prefix, as ``10.0.2.2/24``; a `DhcpService` fills it in from its
    interface, as it does with an MTU that is not 1500. The pool defaults to the subnet's addresses from the 15th on,
    at most 200. `static` maps MAC text or bytes to addresses. Settings are checked by `DhcpServer`.
    """

    interface: str = ""
    first: str | None = None
    last: str | None = None
    static: Mapping[str | bytes, str] = field(default_factory=dict)
    router: str | None = "self"  #: "self" is the server's own address
    dns: tuple[str, ...] = ()
    hostname: str | None = None  #: for every client; `static_hostnames` goes first
    static_hostnames: Mapping[str | bytes, str] = field(default_factory=dict)
    domain: str | None = None
    search: tuple[str, ...] = ()
    mtu: int | None = None
    lease_time: int = DEFAULT_LEASE


class Reply(NamedTuple):
    """An answer: UDP payload, IPv4 destination, and the MAC to send to without asking (None: to everybody)."""

    data: bytes
    destination: bytes
    mac: bytes | None


def mac_bytes(mac: str | bytes) -> bytes:
    """A hardware address from bytes or from text with colons or dashes. Raises `ValueError`."""
    raw = mac if isinstance(mac, bytes) else bytes.fromhex(mac.replace(":", "").replace("-", ""))
    if len(raw) != 6:
        raise ValueError(f"{mac!r} is not a hardware address of 6 bytes")
    return raw


class DhcpServer:
    """The protocol, sans-IO. `on_lease` is called with every lease that is acknowledged.

    Raises `ValueError`, naming the setting, for a configuration that cannot be right.
    """

    def __init__(self, config: DhcpConfig, *, on_lease: Callable[[Lease], None] | None = None) -> None:
        own = IPv4Interface(config.interface)
        network = own.network
        if network.num_addresses < 4:
            raise ValueError(f"{config.interface} leaves no addresses to give out")
        if not 60 <= config.lease_time <= 0xFFFFFFFE:
            raise ValueError(f"lease_time is 60 seconds to 136 years, not {config.lease_time}")
        if config.mtu is not None and not 68 <= config.mtu <= 65535:
            raise ValueError(f"mtu is 68 to 65535 (RFC 2132 section 5.1), not {config.mtu}")
        first = IPv4Address(config.first) if config.first else network[min(15, network.num_addresses - 2)]
        last = IPv4Address(config.last) if config.last else min(network[-2], first + 199)
        for name, address in (("first", first), ("last", last)):
            if address not in network:
                raise ValueError(f"{name} address {address} of the pool is not in {network}")
        static = {mac_bytes(mac): IPv4Address(address) for mac, address in config.static.items()}
        for address in static.values():
            if address not in network or address == own.ip:
                raise ValueError(f"static address {address} cannot be given out in {network} by {own.ip}")
        if len(set(static.values())) < len(static):
            raise ValueError("two static leases share an address")
        self.address = own.ip.packed
        self.on_lease = on_lease
        self.drops = Drops()
        self._network = network
        self._not_hosts = frozenset((self.address, network[0].packed, network[-1].packed))
        self._leases = LeaseTable(
            first.packed,
            last.packed,
            static={mac: address.packed for mac, address in static.items()},
            reserved=self._not_hosts,
        )
        self._lease_time = config.lease_time
        self._hostname = config.hostname
        self._hostnames = {mac_bytes(mac): name for mac, name in config.static_hostnames.items()}
        self._config = config
        self._options = self._configured(config)

    def leases(self, now: int) -> Iterator[Lease]:
        """The leases in force at `now` (ns)."""
        return (lease for lease in self._leases if lease.bound and lease.expires > now)

    def handle(self, data: bytes | bytearray | memoryview, now: int) -> Reply | None:
        """The answer to one datagram that arrived at `now` (ns), or None. Never raises: bad ones are counted."""
        try:
            message = dhcp.parse(data)
        except WireError:
            self.drops.count(DropReason.BAD_MESSAGE)
            return None
        if message.op != dhcp.BOOTREQUEST or message.client[0] & 1:
            self.drops.count(DropReason.BAD_MESSAGE)
            return None
        if message.giaddr != dhcp.ANY:
            self.drops.count(DropReason.NOT_FOR_US)  # through a relay: we serve our own segment
            return None
        match message.kind:
            case MessageType.DISCOVER:
                return self._discover(message, now)
            case MessageType.REQUEST:
                return self._request(message, now)
            case MessageType.DECLINE:
                self._decline(message, now)
            case MessageType.RELEASE:
                lease = self._leases.of(message.client)
                if lease is not None and lease.address == message.ciaddr and self._ours(message):
                    self._leases.release(lease, now)
            case MessageType.INFORM:
                return self._inform(message)
            case _:
                self.drops.count(DropReason.BAD_MESSAGE)
        return None

    def _ours(self, message: DhcpMessage) -> bool:
        """Whether a message that may name a server means us."""
        return message.options.get(Option.SERVER_ID, self.address) == self.address

    def _local(self, address: bytes) -> bool:
        """Whether answers may go to the address a client says it has: never outside our segment."""
        return address not in self._not_hosts and IPv4Address(address) in self._network

    def _discover(self, message: DhcpMessage, now: int) -> Reply | None:
        client = message.client
        address = self._leases.choose(client, message.address(Option.REQUESTED_ADDRESS), now)
        if address is None:
            self.drops.count("pool-exhausted")
            return None
        lease = self._leases.of(client)
        if lease is None or lease.address != address or lease.expires <= now + OFFER_TIME:
            bound = lease is not None and lease.bound and lease.address == address and lease.expires > now
            lease = self._leases.hold(client, address, now + OFFER_TIME, bound=bound, hostname=_hostname(message))
        return self._answer(message, MessageType.OFFER, address)

    def _request(self, message: DhcpMessage, now: int) -> Reply | None:
        """The four meanings of REQUEST, told apart as RFC 2131 section 4.3.2 does."""
        client = message.client
        requested = message.address(Option.REQUESTED_ADDRESS)
        if Option.SERVER_ID in message.options:  # SELECTING
            if not self._ours(message):
                lease = self._leases.of(client)
                if lease is not None and not lease.bound:
                    self._leases.release(lease, now)  # it took another server's offer
                return None
        elif requested is None:  # RENEWING or REBINDING; with `requested`, INIT-REBOOT
            requested = message.ciaddr
        if requested is None or requested == dhcp.ANY:
            self.drops.count(DropReason.BAD_MESSAGE)
            return None
        if not self._leases.available(requested, client, now):
            return self._refuse(message, "this address is not available")
        expires = now + self._lease_time * NS_PER_S
        lease = self._leases.hold(client, requested, expires, bound=True, hostname=_hostname(message))
        reply = self._answer(message, MessageType.ACK, requested)
        if self.on_lease is not None:
            self.on_lease(lease)
        return reply

    def _decline(self, message: DhcpMessage, now: int) -> None:
        """Only the client an address was given to may say that it is in use (RFC 2131 section 4.3.3)."""
        address = message.address(Option.REQUESTED_ADDRESS)
        lease = self._leases.of(message.client)
        if lease is not None and lease.address == address and not lease.static and self._ours(message):
            self._leases.decline(address, now + DECLINE_TIME)

    def _inform(self, message: DhcpMessage) -> Reply | None:
        """Parameters for a client that has its address from elsewhere: no lease, no address (section 4.3.5)."""
        if not self._local(message.ciaddr):
            self.drops.count(DropReason.BAD_MESSAGE)
            return None
        return self._answer(message, MessageType.ACK, None)

    def _refuse(self, message: DhcpMessage, why: str) -> Reply:
        answer = DhcpMessage(dhcp.BOOTREPLY, message.xid, message.client, broadcast=True)
        answer.options = {
            Option.MESSAGE_TYPE: bytes((MessageType.NAK,)),
            Option.SERVER_ID: self.address,
            Option.MESSAGE: why.encode(),
        }
        return Reply(answer.emit(), BROADCAST, None)

    def _answer(self, message: DhcpMessage, kind: MessageType, address: bytes | None) -> Reply:
        """OFFER or ACK; `address` None is the ACK of an INFORM."""
        answer = DhcpMessage(dhcp.BOOTREPLY, message.xid, message.client, broadcast=message.broadcast)
        answer.ciaddr = message.ciaddr if kind is MessageType.ACK else dhcp.ANY
        answer.yiaddr = address or dhcp.ANY
        answer.siaddr = self.address
        options: dict[int, bytes] = {Option.MESSAGE_TYPE: bytes((kind,)), Option.SERVER_ID: self.address}
        if address is not None:
            for option, share in ((Option.LEASE_TIME, 8), (Option.RENEWAL_TIME, 4), (Option.REBINDING_TIME, 7)):
                options[option] = (self._lease_time * share // 8).to_bytes(4, "big")
        answer.options = options
        self._fill(message, options)
        if self._local(message.ciaddr):
            return Reply(answer.emit(), message.ciaddr, message.client)
        if message.broadcast or address is None:
            return Reply(answer.emit(), BROADCAST, None)
        return Reply(answer.emit(), address, message.client)

    def _fill(self, message: DhcpMessage, options: dict[int, bytes]) -> None:
        """Add what the client asked for (option 55), as far as it fits what it takes (option 57)."""
        asked = message.options.get(Option.PARAMETER_LIST)
        limit = max(dhcp.MINIMUM_MESSAGE, int.from_bytes(message.options.get(Option.MAX_SIZE, b"")[:2], "big"))
        room = limit - 28 - dhcp.HEADER_LENGTH - 1  # IP and UDP headers; the end option
        room -= sum(2 + len(value) for value in options.values())
        offered = dict(self._options)
        hostname = self._hostnames.get(message.client, self._hostname)
        if hostname:
            offered[Option.HOSTNAME] = hostname.encode()
        for code, value in offered.items():
            if asked is not None and code not in asked and code not in _ALWAYS:
                continue
            length = len(dhcp.option_bytes(code, value))
            if length <= room:
                options[code] = value
                room -= length

    def set_domain(self, domain: str | None) -> None:
        """From now on clients are told this domain name."""
        self._config = replace(self._config, domain=domain)
        self._options = self._configured(self._config)

    def _configured(self, config: DhcpConfig) -> dict[int, bytes]:
        """The options that are the same for every client, most important first."""
        options: dict[int, bytes] = {Option.SUBNET_MASK: self._network.netmask.packed}
        if config.router:
            options[Option.ROUTER] = self.address if config.router == "self" else IPv4Address(config.router).packed
        if config.dns:
            options[Option.DNS] = b"".join(IPv4Address(address).packed for address in config.dns)
        if config.mtu is not None:
            options[Option.MTU] = config.mtu.to_bytes(2, "big")
        options[Option.BROADCAST] = self._network.broadcast_address.packed
        if config.domain:
            options[Option.DOMAIN] = config.domain.encode("idna" if not config.domain.isascii() else "ascii")
        if config.search:
            options[Option.SEARCH] = dhcp.search_list(config.search)
        return options


def _hostname(message: DhcpMessage) -> str:
    """What the client calls itself, printable characters only: it ends up in logs and tables."""
    text = message.options.get(Option.HOSTNAME, b"")[:255].decode("ascii", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)
