"""SOCK_RAW sockets (row UDP-18), and ping sockets: SOCK_DGRAM with protocol ICMP or ICMPv6."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.raw import IpEndpoint, PingEndpoint, RawEndpoint
from stack.socket.families import AF_INET
from stack.socket.ip.address import address_in, address_out, scope_of
from stack.socket.ip.asked import take
from stack.socket.ip.failed import take_failure
from stack.socket.ip.ping_open import PingOpen
from stack.socket.ip.raw_open import RawOpen
from stack.socket.ip.raw_options import PING4_OPTIONS, PING6_OPTIONS, RAW4_OPTIONS, RAW6_OPTIONS, apply
from stack.socket.ip.received import Reporter, report, reporters
from stack.socket.ip.scope import ScopedAddress
from stack.socket.message import MSG_CONFIRM, MSG_DONTROUTE, MSG_DONTWAIT, MSG_PEEK
from stack.socket.options import OptionTable, OptionValues
from stack.socket.phase import AGAIN
from stack.socket.record import RecordSocket
from stack.udp.sending import PLAIN, SendOptions

if TYPE_CHECKING:
    from stack.ip.listening import Listening
    from stack.socket.base import Host, Timeout
    from stack.socket.message import Ancillary, Message
    from stack.udp.datagram import Datagram

SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3
IPPROTO_ICMP: Final = 1
IPPROTO_ICMPV6: Final = 58


class IpMessageSocket(RecordSocket):
    """What the two have in common."""

    endpoint: IpEndpoint
    _reporters: list[Reporter]

    @property
    def listening(self) -> Listening:
        """The multicast groups joined; they are left with the socket."""
        return self.endpoint.listening

    def address_in(self, address: object) -> ScopedAddress:
        target, port = address_in(self.host, self.family, address)
        return target, port, 0 if self.family == AF_INET else scope_of(self.host, address)

    def address_out(self, address: tuple[bytes, int] | ScopedAddress) -> object:
        return address_out(self.family, address[:2], address[2] if len(address) > 2 else 0)

    # As with UDP, a call that may not wait does not notice that the receiving side is shut down.

    def recv(self, size: int, flags: int, timeout: Timeout) -> bytes:
        return super().recv(size, flags | MSG_DONTWAIT if timeout == 0 else flags, timeout)

    def recv_into(self, target: memoryview, flags: int, timeout: Timeout) -> int:
        return super().recv_into(target, flags | MSG_DONTWAIT if timeout == 0 else flags, timeout)

    def receive(self, size: int, flags: int, timeout: Timeout, room: int = 0) -> Message:
        return super().receive(size, flags | MSG_DONTWAIT if timeout == 0 else flags, timeout, room)

    def input_queue(self) -> int:
        """SIOCINQ and SIOCOUTQ: ping sockets have none."""
        raise NetError(errno.ENOTTY)

    output_queue = input_queue

    def is_bound(self) -> bool:
        return any(self.endpoint.bound_address)

    def path_mtu(self) -> int:
        """IP_MTU: of the route to the peer, bytes. Raises NetError(ENOTCONN)."""
        if self.endpoint.remote is None:
            raise NetError(errno.ENOTCONN)
        ip = self.host.netns.ip
        return ip.mtu_for(ip.route(self.endpoint.remote[0]))

    def apply(self) -> None:
        """Bring the endpoint up to what the socket has been told."""
        apply(self, self.endpoint)
        self._reporters = reporters(self)

    def sending(self, ancillary: Sequence[Ancillary], flags: int, oif: int) -> SendOptions:
        """What one send asks for besides. Raises NetError(EINVAL) for control messages that are wrong."""
        if not ancillary and not flags & (MSG_DONTROUTE | MSG_CONFIRM) and not oif:
            return PLAIN
        how = SendOptions(oif=oif, direct=bool(flags & MSG_DONTROUTE), confirm=bool(flags & MSG_CONFIRM))
        take(self, ancillary, how, version=self.endpoint.version)
        return how

    def told(self, packet: Datagram) -> list[Ancillary]:
        """The control messages that go with a received packet."""
        return report(self._reporters, packet) if self._reporters else []

    def failure(self, size: int, flags: int) -> Message:
        """The oldest entry of the error queue. Raises NetError(EAGAIN) if there is none."""
        message = take_failure(self, self.endpoint.errors, size, flags)
        if message is AGAIN:
            raise NetError(errno.EAGAIN)
        if not flags & MSG_PEEK:
            self.endpoint.error = self.endpoint.errors.next_errno
        return message


class RawSocket(IpMessageSocket):
    """socket(AF_INET or AF_INET6, SOCK_RAW, protocol)."""

    options_table: ClassVar[OptionTable] = RAW6_OPTIONS
    endpoint: RawEndpoint

    def __init__(self, host: Host, family: int, protocol: int) -> None:
        super().__init__(host, SOCK_RAW, protocol)
        self.family = family
        if family == AF_INET:
            self.options = OptionValues(RAW4_OPTIONS)
        self.endpoint = RawEndpoint(host.netns.ip, 4 if family == AF_INET else 6, protocol)
        self.endpoint.on_event = self.pollee.notify
        self.phase = RawOpen(self)
        self.apply()

    def input_queue(self) -> int:
        """SIOCINQ: the first packet's length, bytes."""
        packet = self.endpoint.peek()
        return 0 if packet is None else len(packet.data)

    def output_queue(self) -> int:
        """SIOCOUTQ: what is sent is gone."""
        return 0


class PingSocket(IpMessageSocket):
    """socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP), and the same for IPv6."""

    options_table: ClassVar[OptionTable] = PING6_OPTIONS
    endpoint: PingEndpoint

    def __init__(self, host: Host, family: int) -> None:
        super().__init__(host, SOCK_DGRAM, IPPROTO_ICMP if family == AF_INET else IPPROTO_ICMPV6)
        self.family = family
        if family == AF_INET:
            self.options = OptionValues(PING4_OPTIONS)
        self.endpoint = PingEndpoint(host.netns.ip, 4 if family == AF_INET else 6)
        self.endpoint.on_event = self.pollee.notify
        self.phase = PingOpen(self)
        self.apply()


def create_raw(host: Host, family: int, protocol: int) -> RawSocket:
    """Raises NetError: EPROTONOSUPPORT without a protocol, EPERM (row SEC-03)."""
    if not protocol:
        raise NetError(errno.EPROTONOSUPPORT)
    if not host.credentials.may(Capability.NET_RAW):
        raise NetError(errno.EPERM)
    return RawSocket(host, family, protocol)


def create_ping(host: Host, family: int) -> PingSocket:
    """Raises NetError(EACCES) for who is in no group of net.ipv4.ping_group_range."""
    who = host.credentials
    if not host.netns.ip.pings.may((who.gid, *who.groups)):
        raise NetError(errno.EACCES)
    return PingSocket(host, family)
