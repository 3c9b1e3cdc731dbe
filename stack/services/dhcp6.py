"""A DHCPv6 server for one interface of a stack (RFC 8415, RFC 3646, RFC 4075, RFC 5908, RFC 5970).

Theory of operation
-------------------
`Dhcp6Server` is sans-IO: `handle` takes a datagram's bytes, where it came from and the time, and gives the answer,
which goes back there. Stateful, it gives each identity association (IA_NA) of each client (DUID) one address, from a
pool or a fixed one; stateless, or for who asks for information only, it gives what goes with an address that the host
made itself of a router's advertisement. What is said to which message is in `dhcp6_exchange`.

It is the only server on its segment and behaves so: its advertisements have the highest preference, so that clients
take them without waiting for others, and a client that remembers an address from before we were started keeps it if it
is free (RFC 8415 section 18.3.4 and 18.3.5 allow it). Prefixes and temporary addresses are answered: there are none.

The book is bounded by the pool: whoever asks under a thousand names can use it up, which is counted, but an offer that
is not taken is free again after a minute, and fixed addresses are nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, IPv6Interface
from typing import Any, Final, NamedTuple

from stack.errors import DropReason, Drops
from stack.services.boot import Boot
from stack.services.dhcp6_exchange import Exchange
from stack.services.faults import Fault, Faults
from stack.services.leases import MAX_POOL, Lease, LeaseTable
from stack.services.names import label_of
from stack.wire import dhcp6
from stack.wire.dhcp6 import Dhcp6Message, Identity, MessageType, Option, Status
from stack.wire.error import WireError

DEFAULT_LEASE: Final = 3600  # seconds, as with DHCPv4
DEFAULT_POOL: Final = 4096  # addresses
_FIRST: Final = 0x1000  # in the subnet: clear of ::1, ::2 and what people number by hand

#: Which messages name their server (RFC 8415 section 16): must, must not, or may.
_NAMED: Final = frozenset((MessageType.REQUEST, MessageType.RENEW, MessageType.RELEASE, MessageType.DECLINE))
_UNNAMED: Final = frozenset((MessageType.SOLICIT, MessageType.CONFIRM, MessageType.REBIND))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dhcp6Config:
    """What the server gives out. Text addresses; times in seconds; None or empty leaves an option out.

    `interface` is the server's own address with its prefix, as ``fd00::2/64``; a `Dhcp6Service` fills it in from its
    interface. The pool defaults to 4096 addresses from the subnet's ``::1000`` on. `static` maps a DUID (bytes, or
    hexadecimal text with or without colons) or a hardware address to an address; so does `static_hostnames` to names.
    """

    interface: str = ""
    stateful: bool = True  #: False: no addresses, only what goes with them
    first: str | None = None
    last: str | None = None
    static: Mapping[str | bytes, str] = field(default_factory=dict)
    static_hostnames: Mapping[str | bytes, str] = field(default_factory=dict)
    dns: tuple[str, ...] = ()  #: "self" is the server's own address
    domain: str | None = None  #: searched first
    search: tuple[str, ...] = ()
    ntp: tuple[str, ...] = ()  #: "self" too; given as NTP and as SNTP servers
    boot: tuple[Boot, ...] = ()  #: only those whose `file` is a URL; the first that fits
    lease_time: int = DEFAULT_LEASE
    rapid_commit: bool = True  #: clients that can do without an advertisement get their lease at once


class Reply6(NamedTuple):
    """An answer, to where the question came from; `delay` in ns."""

    data: bytes
    delay: int = 0


class Dhcp6Faults(Faults[Dhcp6Message, Dhcp6Message]):
    """What goes wrong on purpose; `limits` are `times` and `when` of `inject`."""

    def status(self, status: Status, **limits: Any) -> Fault[Dhcp6Message, Dhcp6Message]:
        """Identities are refused with `status`, as `Status.NO_BINDING`, instead of what they should get."""

        def refuse(identity: Identity) -> None:
            identity.addresses.clear()
            identity.status = (status, "a fault, on purpose")

        return self._identities(refuse, limits)

    def address(self, text: str, **limits: Any) -> Fault[Dhcp6Message, Dhcp6Message]:
        """Addresses that are given out are all this one."""
        wrong = IPv6Address(text).packed

        def lie(identity: Identity) -> None:
            for each in identity.addresses:
                each.address = wrong

        return self._identities(lie, limits)

    def _identities(
        self, change: Callable[[Identity], None], limits: Mapping[str, Any]
    ) -> Fault[Dhcp6Message, Dhcp6Message]:
        def alter(_: Dhcp6Message, answer: Dhcp6Message) -> Dhcp6Message:
            for number, (code, value) in enumerate(answer.options):
                if code == Option.IA_NA:
                    identity = dhcp6.parse_identity(value)
                    change(identity)
                    answer.options[number] = (code, identity.emit())
            return answer

        return self.inject(alter=alter, **limits)


def identifier_bytes(client: str | bytes) -> bytes:
    """A DUID or hardware address from bytes or from hexadecimal text. Raises `ValueError`."""
    raw = client if isinstance(client, bytes) else bytes.fromhex(client.replace(":", "").replace("-", ""))
    if len(raw) != 6 and not dhcp6.MIN_DUID <= len(raw) <= dhcp6.MAX_DUID:
        raise ValueError(f"{client!r} is no DUID of 3 to 130 bytes, nor a hardware address of 6")
    return raw


class Dhcp6Server:
    """The protocol, sans-IO. `duid` is the server's own; `on_lease` is called with every lease that is given.

    A `Lease`'s client is DUID and IAID, one after the other. Raises `ValueError`, naming the setting, for a
    configuration that cannot be right.
    """

    def __init__(self, config: Dhcp6Config, duid: bytes, *, on_lease: Callable[[Lease], None] | None = None) -> None:
        own = IPv6Interface(config.interface)
        network = own.network
        if config.stateful and network.prefixlen > 120:
            raise ValueError(f"{config.interface} leaves too few addresses to give out")
        if not 60 <= config.lease_time <= 0xFFFFFFFE:
            raise ValueError(f"lease_time is 60 seconds to 136 years, not {config.lease_time}")
        size = network.num_addresses
        first = IPv6Address(config.first) if config.first else network[min(_FIRST, size // 2)]
        last = (
            IPv6Address(config.last)
            if config.last
            else network[min(int(first) - int(network[0]) + DEFAULT_POOL, size) - 1]
        )
        for name, address in (("first", first), ("last", last)):
            if address not in network:
                raise ValueError(f"{name} address {address} of the pool is not in {network}")
        static = {identifier_bytes(client): IPv6Address(text).packed for client, text in config.static.items()}
        for packed in static.values():
            if IPv6Address(packed) not in network or packed == own.ip.packed:
                raise ValueError(f"static address {IPv6Address(packed)} cannot be given out in {network} by {own.ip}")
        if len(set(static.values())) < len(static):
            raise ValueError("two static leases share an address")
        if len(static) > MAX_POOL:
            raise ValueError(f"more than {MAX_POOL} static leases")
        if not dhcp6.MIN_DUID <= len(duid) <= dhcp6.MAX_DUID:
            raise ValueError(f"a DUID is 3 to 130 bytes long, not {len(duid)}")
        self.address = own.ip.packed
        self.duid = duid
        self.on_lease = on_lease
        self.drops = Drops()
        self.faults = Dhcp6Faults()
        self._network = network
        self._static = static
        self._hostnames = {identifier_bytes(client): name for client, name in config.static_hostnames.items()}
        reserved = frozenset((self.address, network[0].packed, *static.values()))
        self._leases = LeaseTable(first.packed, last.packed, static={}, reserved=reserved)
        self._config = config
        self._options = self._configured(config)

    def set_domain(self, domain: str | None) -> None:
        """From now on clients are told to look in this domain first."""
        config = replace(self._config, domain=domain)
        self._options = self._configured(config)
        self._config = config

    def leases(self, now: int) -> Iterator[Lease]:
        """The leases in force at `now` (ns)."""
        return (lease for lease in self._leases if lease.bound and lease.expires > now)

    def addresses(self, name: str, now: int) -> list[bytes]:
        """Of the client called `name`, if it has a lease: see `stack.services.names`."""
        lease = self._leases.named(name)
        return [lease.address] if lease is not None and lease.bound and lease.expires > now else []

    def names(self, address: bytes, now: int) -> list[str]:
        """Of the client that has a lease of `address`."""
        lease = self._leases.at(address)
        return [lease.name] if lease is not None and lease.name and lease.bound and lease.expires > now else []

    def handle(self, data: bytes, source: bytes, now: int, *, multicast: bool = True) -> Reply6 | None:
        """The answer to one datagram from `source` (an address), or None. Never raises: bad ones are counted.

        `multicast`: it was sent to all servers, as clients are to do.
        """
        try:
            message = dhcp6.parse(data)
            if not self._valid(message, multicast=multicast):
                return None
            fault = self.faults.take(message)
            if fault is not None and fault.drop:
                self.drops.count("fault")
                return None
            exchange = Exchange(self, message, source, now)
            answer = exchange.answer(multicast=multicast)
        except WireError:
            self.drops.count(DropReason.BAD_MESSAGE)
            return None
        if answer is not None and fault is not None and fault.alter is not None:
            answer = fault.alter(message, answer)
            if answer is None:
                self.drops.count("fault")
        return None if answer is None else Reply6(answer.emit(), 0 if fault is None else fault.delay)

    def _valid(self, message: Dhcp6Message, *, multicast: bool) -> bool:
        """RFC 8415 section 16: what is to be discarded without a word."""
        kind = message.kind
        client, server = message.get(Option.CLIENT_ID), message.get(Option.SERVER_ID)
        reason = ""
        if kind in (MessageType.RELAY_FORWARD, MessageType.RELAY_REPLY):
            reason = DropReason.NOT_FOR_US  # we serve our own segment
        elif kind == MessageType.INFORMATION_REQUEST:
            if any(message.get(code) is not None for code in (Option.IA_NA, Option.IA_TA, Option.IA_PD)):
                reason = DropReason.BAD_MESSAGE
        elif kind not in _NAMED | _UNNAMED or client is None or (server is not None) != (kind in _NAMED):
            reason = DropReason.BAD_MESSAGE
        if not reason and server is not None and server != self.duid:
            reason = DropReason.NOT_FOR_US
        if not reason and client is not None and not dhcp6.MIN_DUID <= len(client) <= dhcp6.MAX_DUID:
            reason = DropReason.BAD_MESSAGE
        if not reason and not multicast and kind not in _NAMED:
            reason = DropReason.BAD_MESSAGE  # sections 18.3.1, 18.3.3, 18.3.5, 18.3.6
        if reason:
            self.drops.count(reason)
        return not reason

    # -- what an exchange needs to know and to note -------------------------------------------------------------------

    @property
    def config(self) -> Dhcp6Config:
        return self._config

    @property
    def table(self) -> LeaseTable:
        return self._leases

    def on_link(self, address: bytes) -> bool:
        """Whether an address is one of our segment's."""
        return IPv6Address(address) in self._network

    def pin(self, duid: bytes, mac: bytes | None, client: bytes, now: int) -> None:
        """If there is a fixed address for this DUID or hardware address, it is this `client`'s."""
        fixed = self._static.get(duid) or (self._static.get(mac) if mac is not None else None)
        if fixed is not None:
            self._leases.pin(client, fixed, now)

    def name_for(self, duid: bytes, mac: bytes | None, said: str) -> str:
        """What a client is called: by us, or else by itself."""
        ours = self._hostnames.get(duid) or (self._hostnames.get(mac) if mac is not None else None)
        return label_of(ours or said)

    def configured(self) -> Mapping[int, bytes]:
        """The options that are the same for every client."""
        return self._options

    def _configured(self, config: Dhcp6Config) -> dict[int, bytes]:
        options: dict[int, bytes] = {}
        if config.dns:
            options[Option.DNS] = b"".join(self._addresses(config.dns))
        domains = list(dict.fromkeys(each for each in (config.domain, *config.search) if each))
        if domains:
            options[Option.DOMAINS] = dhcp6.domain_list(domains)
        if config.ntp:
            options[Option.SNTP] = b"".join(self._addresses(config.ntp))
            options[Option.NTP] = dhcp6.ntp_servers(self._addresses(config.ntp))
        return options

    def _addresses(self, texts: Iterable[str]) -> list[bytes]:
        return [self.address if text == "self" else IPv6Address(text).packed for text in texts]
