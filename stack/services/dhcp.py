"""A DHCPv4 server for one interface of a stack (RFC 2131, RFC 2132, RFC 4039).

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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, Final, NamedTuple

from stack.errors import DropReason, Drops
from stack.scheduler import NS_PER_S
from stack.services.boot import Boot, architectures_in, choose
from stack.services.faults import Fault, Faults
from stack.services.leases import OFFER_TIME, Lease, LeaseTable
from stack.services.names import label_of
from stack.wire import dhcp
from stack.wire.dhcp import DhcpMessage, MessageType, Option
from stack.wire.error import WireError

BROADCAST: Final = b"\xff\xff\xff\xff"
DEFAULT_LEASE: Final = 3600  # seconds; what user-mode network back-ends give
DECLINE_TIME: Final = 600 * NS_PER_S  # how long an address someone else answers for is left alone
#: Sent whether asked for or not: without them the client cannot use the address, or boot.
_ALWAYS: Final = frozenset((Option.SUBNET_MASK, Option.ROUTER, Option.DNS, Option.VENDOR_CLASS))
#: Those that the exchange itself needs: not for `DhcpConfig.options`.
_RESERVED: Final = frozenset(
    (
        Option.PAD, Option.REQUESTED_ADDRESS, Option.LEASE_TIME, Option.OVERLOAD, Option.MESSAGE_TYPE, Option.SERVER_ID,
        Option.PARAMETER_LIST, Option.MESSAGE, Option.MAX_SIZE, Option.RENEWAL_TIME, Option.REBINDING_TIME,
        Option.CLIENT_ID, Option.RAPID_COMMIT, Option.END,
    )
)  # fmt: skip
#: UEFI boots by HTTP only from who says this back (UEFI specification, section 24.7.2.3).
_HTTP_CLIENT: Final = b"HTTPClient"


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
    dns: tuple[str, ...] = ()  #: here too
    ntp: tuple[str, ...] = ()  #: and here
    hostname: str | None = None  #: for every client; `static_hostnames` goes first
    static_hostnames: Mapping[str | bytes, str] = field(default_factory=dict)
    domain: str | None = None
    search: tuple[str, ...] = ()
    mtu: int | None = None
    lease_time: int = DEFAULT_LEASE
    rapid_commit: bool = True  #: clients that can do without an offer get their lease at once (RFC 4039)
    boot: tuple[Boot, ...] = ()  #: for machines that boot from the network; the first that fits
    options: Mapping[int, bytes] = field(default_factory=dict)  #: any other, by code, for clients that ask for them


class Reply(NamedTuple):
    """An answer: UDP payload, IPv4 destination, and the MAC to send to without asking (None: to everybody)."""

    data: bytes
    destination: bytes
    mac: bytes | None
    delay: int = 0  #: ns to hold it back


class _Draft(NamedTuple):
    """A `Reply` before it is bytes."""

    answer: DhcpMessage
    destination: bytes
    mac: bytes | None


class DhcpFaults(Faults[DhcpMessage, DhcpMessage]):
    """What goes wrong on purpose; `limits` are `times` and `when` of `inject`."""

    def nak(self, **limits: Any) -> Fault[DhcpMessage, DhcpMessage]:
        """What would be acknowledged is refused."""

        def refuse(request: DhcpMessage, answer: DhcpMessage) -> DhcpMessage:
            if answer.kind != MessageType.ACK:
                return answer
            return _refusal(request, answer.options[Option.SERVER_ID], "a fault, on purpose")

        return self.inject(alter=refuse, **limits)

    def address(self, text: str, **limits: Any) -> Fault[DhcpMessage, DhcpMessage]:
        """Offers and acknowledgements are of this address, whosoever it is."""
        wrong = IPv4Address(text).packed

        def lie(_: DhcpMessage, answer: DhcpMessage) -> DhcpMessage:
            if answer.yiaddr != dhcp.ANY:
                answer.yiaddr = wrong
            return answer

        return self.inject(alter=lie, **limits)

    def option(self, code: int, value: bytes | None, **limits: Any) -> Fault[DhcpMessage, DhcpMessage]:
        """Answers have this option so, whatever it should be; None: not at all."""

        def change(_: DhcpMessage, answer: DhcpMessage) -> DhcpMessage:
            if value is None:
                answer.options.pop(code, None)
            else:
                answer.options[code] = value
            return answer

        return self.inject(alter=change, **limits)


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
        for code, value in config.options.items():
            if not 0 < code < 255 or code in _RESERVED:
                raise ValueError(f"option {code} is not one that can be configured")
            if not isinstance(value, bytes):
                raise ValueError(f"the value of option {code} is bytes, not {value!r}")
        self.address = own.ip.packed
        self.on_lease = on_lease
        self.drops = Drops()
        self.faults = DhcpFaults()
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

    def addresses(self, name: str, now: int) -> list[bytes]:
        """Of the client called `name`, if it has a lease: see `stack.services.names`."""
        lease = self._leases.named(name)
        return [lease.address] if lease is not None and lease.bound and lease.expires > now else []

    def names(self, address: bytes, now: int) -> list[str]:
        """Of the client that has a lease of `address`."""
        lease = self._leases.at(address)
        return [lease.name] if lease is not None and lease.name and lease.bound and lease.expires > now else []

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
        fault = self.faults.take(message)
        if fault is not None and fault.drop:
            self.drops.count("fault")
            return None
        draft = self._reply(message, now)
        if draft is None:
            return None
        answer, destination, mac = draft
        if fault is not None and fault.alter is not None:
            altered = fault.alter(message, answer)
            if altered is None:
                self.drops.count("fault")
                return None
            if altered.kind == MessageType.NAK:
                destination, mac = BROADCAST, None
            answer = altered
        return Reply(answer.emit(), destination, mac, 0 if fault is None else fault.delay)

    def _reply(self, message: DhcpMessage, now: int) -> _Draft | None:
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

    def _discover(self, message: DhcpMessage, now: int) -> _Draft | None:
        client = message.client
        address = self._leases.choose(client, message.address(Option.REQUESTED_ADDRESS), now)
        if address is None:
            self.drops.count("pool-exhausted")
            return None
        if self._config.rapid_commit and message.options.get(Option.RAPID_COMMIT) == b"":
            return self._acknowledge(message, address, now)
        lease = self._leases.of(client)
        if lease is None or lease.address != address or lease.expires <= now + OFFER_TIME:
            bound = lease is not None and lease.bound and lease.address == address and lease.expires > now
            self._hold(message, address, now + OFFER_TIME, now, bound=bound)
        return self._answer(message, MessageType.OFFER, address)

    def _request(self, message: DhcpMessage, now: int) -> _Draft | None:
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
        return self._acknowledge(message, requested, now)

    def _acknowledge(self, message: DhcpMessage, address: bytes, now: int) -> _Draft:
        lease = self._hold(message, address, now + self._lease_time * NS_PER_S, now, bound=True)
        reply = self._answer(message, MessageType.ACK, address)
        if self.on_lease is not None:
            self.on_lease(lease)
        return reply

    def _hold(self, message: DhcpMessage, address: bytes, expires: int, now: int, *, bound: bool) -> Lease:
        """What we call the client comes before what it calls itself."""
        said = _hostname(message)
        name = label_of(self._hostnames.get(message.client) or said) or label_of(self._hostname or "")
        return self._leases.hold(message.client, address, expires, now, bound=bound, hostname=said, name=name)

    def _decline(self, message: DhcpMessage, now: int) -> None:
        """Only the client an address was given to may say that it is in use (RFC 2131 section 4.3.3)."""
        address = message.address(Option.REQUESTED_ADDRESS)
        lease = self._leases.of(message.client)
        if lease is not None and lease.address == address and not lease.static and self._ours(message):
            self._leases.decline(address, now + DECLINE_TIME)

    def _inform(self, message: DhcpMessage) -> _Draft | None:
        """Parameters for a client that has its address from elsewhere: no lease, no address (section 4.3.5)."""
        if not self._local(message.ciaddr):
            self.drops.count(DropReason.BAD_MESSAGE)
            return None
        return self._answer(message, MessageType.ACK, None)

    def _refuse(self, message: DhcpMessage, why: str) -> _Draft:
        return _Draft(_refusal(message, self.address, why), BROADCAST, None)

    def _answer(self, message: DhcpMessage, kind: MessageType, address: bytes | None) -> _Draft:
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
        if kind is MessageType.ACK and message.kind == MessageType.DISCOVER:
            options[Option.RAPID_COMMIT] = b""
        offered = self._boot(message, answer)
        self._fill(message, options, offered)
        if self._local(message.ciaddr):
            return _Draft(answer, message.ciaddr, message.client)
        if message.broadcast or address is None:
            return _Draft(answer, BROADCAST, None)
        return _Draft(answer, address, message.client)

    def _boot(self, message: DhcpMessage, answer: DhcpMessage) -> dict[int, bytes]:
        """Tell a machine that boots from the network what to boot; returns the options that say it too."""
        vendor_class = message.options.get(Option.VENDOR_CLASS, b"")
        boot = choose(self._config.boot, vendor_class, architectures_in(message.options.get(Option.ARCHITECTURE, b"")))
        if boot is None:
            return {}
        if boot.server is not None:
            answer.siaddr = IPv4Address(boot.server).packed
        answer.file, answer.sname = boot.file.encode(), boot.server_name.encode()
        options: dict[int, bytes] = {Option.BOOT_FILE: answer.file}
        server_name = boot.server_name or boot.server or str(IPv4Address(self.address))
        options[Option.TFTP_SERVER] = server_name.encode()
        if vendor_class.startswith(_HTTP_CLIENT):
            options[Option.VENDOR_CLASS] = _HTTP_CLIENT
        return options

    def _fill(self, message: DhcpMessage, options: dict[int, bytes], boot: Mapping[int, bytes]) -> None:
        """Add what the client asked for (option 55), as far as it fits what it takes (option 57)."""
        asked = message.options.get(Option.PARAMETER_LIST)
        limit = max(dhcp.MINIMUM_MESSAGE, int.from_bytes(message.options.get(Option.MAX_SIZE, b"")[:2], "big"))
        room = limit - 28 - dhcp.HEADER_LENGTH - 1  # IP and UDP headers; the end option
        room -= sum(2 + len(value) for value in options.values())
        offered = {**boot, **self._options}
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
            options[Option.DNS] = self._addresses(config.dns)
        if config.mtu is not None:
            options[Option.MTU] = config.mtu.to_bytes(2, "big")
        options[Option.BROADCAST] = self._network.broadcast_address.packed
        if config.domain:
            options[Option.DOMAIN] = config.domain.encode("idna" if not config.domain.isascii() else "ascii")
        if config.search:
            options[Option.SEARCH] = dhcp.search_list(config.search)
        if config.ntp:
            options[Option.NTP] = self._addresses(config.ntp)
        options.update(config.options)
        return options

    def _addresses(self, texts: Iterable[str]) -> bytes:
        return b"".join(self.address if text == "self" else IPv4Address(text).packed for text in texts)


def _refusal(message: DhcpMessage, server: bytes, why: str) -> DhcpMessage:
    answer = DhcpMessage(dhcp.BOOTREPLY, message.xid, message.client, broadcast=True)
    answer.options = {
        Option.MESSAGE_TYPE: bytes((MessageType.NAK,)),
        Option.SERVER_ID: server,
        Option.MESSAGE: why.encode(),
    }
    return answer


def _hostname(message: DhcpMessage) -> str:
    """What the client calls itself, printable characters only: it ends up in logs and tables."""
    text = message.options.get(Option.HOSTNAME, b"")[:255].decode("ascii", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)
