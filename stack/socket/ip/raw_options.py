"""What raw and ping sockets understand, and how it reaches their endpoints (raw(7), RFC 3542, section 2.2)."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.raw import PingEndpoint, RawEndpoint
from stack.raw.raw import IPPROTO_RAW
from stack.socket.filter import attached, filter_level
from stack.socket.ip import memberships
from stack.socket.ip.options import (
    IP_HDRINCL,
    IP_MTU_DISCOVER,
    IP_MULTICAST_ALL,
    IP_MULTICAST_LOOP,
    IP_MULTICAST_TTL,
    IP_NODEFRAG,
    IP_OPTIONS,
    IP_RECVERR,
    IP_RECVERR_RFC4884,
    IP_ROUTER_ALERT,
    IP_UNICAST_IF,
    IPPROTO_IP,
    IPPROTO_IPV6,
    ip_rows,
    multicast_interface,
    rows_beside6,
    tos_of,
    ttl_of,
    unicast_interface,
)
from stack.socket.ip.options6 import (
    IPV6_DONTFRAG,
    IPV6_DSTOPTS,
    IPV6_HOPOPTS,
    IPV6_MTU_DISCOVER,
    IPV6_MULTICAST_ALL,
    IPV6_MULTICAST_HOPS,
    IPV6_MULTICAST_IF,
    IPV6_MULTICAST_LOOP,
    IPV6_RECVERR,
    IPV6_RECVERR_RFC4884,
    IPV6_RTHDR,
    IPV6_UNICAST_IF,
    datagram_rows6,
    path_mtu_limit,
    prefers_temporary,
    settled,
)
from stack.socket.ip.peername import peer_name_row
from stack.socket.ip.wire_options import chain
from stack.socket.options import SOL_SOCKET, Kind, Option, OptionTable, Value
from stack.socket.options_device import SO_MARK, bound_interface
from stack.socket.options_socket import SO_BROADCAST, SO_DONTROUTE, SO_PRIORITY, SO_RCVBUF, SO_REUSEADDR, socket_level

if TYPE_CHECKING:
    from stack.raw import IpEndpoint
    from stack.socket.ip.raw import IpMessageSocket

SOL_RAW: Final = 255
SOL_ICMPV6: Final = 58
IPV6_CHECKSUM: Final = 7
IPV6_HDRINCL: Final = 36
ICMP_FILTER: Final = 1
ICMPV6_FILTER: Final = 1

_ICMP: Final = 1
_ICMPV6: Final = 58
_FILTER4: Final = 4  # bytes of struct icmp_filter
_FILTER6: Final = 32  # bytes of struct icmp6_filter
_DEFAULT4: Final = bytes(_FILTER4)
_DEFAULT6: Final = bytes(_FILTER6)


def _rows(*more: Option) -> list[Option]:
    """Rows of SOL_SOCKET, where SO_REUSEADDR is set from the start as it is on Linux, and what follows."""
    return [
        *(replace(row, default=1) if row.number == SO_REUSEADDR else row for row in socket_level()),
        peer_name_row(),
        *filter_level(),
        *more,
    ]


def _defaults_only(rows: list[Option]) -> list[Option]:
    """Raw sockets of AF_INET6 do not know IPPROTO_IP; what asks for its options gets the defaults."""
    return [replace(row, readable=False, writable=False, refusal=errno.ENOPROTOOPT) for row in rows]


def _for(proto: int) -> Any:
    """A check that the socket has this protocol."""

    def check(socket: Any, *_: Any) -> None:
        if socket.protocol != proto:
            raise NetError(errno.EOPNOTSUPP)

    return check


def _icmp_filter(level: int, number: int, name: str, proto: int, default: bytes) -> Option:
    """A mask of types not to deliver; what is set short changes the beginning only."""
    check = _for(proto)

    def act(socket: Any, data: bytes) -> None:
        check(socket)
        old = socket.options.value(level, number)
        socket.options.store(level, number, (data[: len(default)] + old[len(data) :])[: len(default)])

    def show(socket: Any, room: int) -> bytes:
        check(socket)
        return bytes(socket.options.value(level, number)[:room])

    return Option(level, number, name, Kind.OPAQUE, default=default, act=act, show=show)


def _checksum(level: int) -> Option:
    def check(socket: Any, value: Value) -> None:
        assert isinstance(value, int)
        # RFC 3542 3.1: the kernel makes ICMPv6's; as Linux, SOL_RAW may switch that off.
        if (socket.protocol == _ICMPV6 and level == IPPROTO_IPV6) or (value > 0 and value & 1):
            raise NetError(errno.EINVAL)

    def effect(socket: Any, value: int) -> None:
        socket.endpoint.checksum = max(value, -1)

    return Option(
        level, IPV6_CHECKSUM, "IPV6_CHECKSUM", check=check, effect=effect, get=lambda socket: socket.endpoint.checksum
    )


def _header_included(level: int, number: int, name: str) -> Option:
    def effect(socket: Any, value: int) -> None:
        socket.endpoint.header_included = bool(value)

    return Option(
        level,
        number,
        name,
        Kind.BOOL,
        short_ok=level == IPPROTO_IP,
        empty_ok=level == IPPROTO_IP,
        effect=effect,
        get=lambda socket: int(socket.endpoint.header_included),
    )


def _router_alert() -> Option:
    """As Linux: switching it on again is EADDRINUSE, and off what is off, oddly, ENOBUFS."""

    def check(socket: Any, value: Value) -> None:
        endpoint, alerts = socket.endpoint, socket.host.netns.ip.alerts
        if endpoint.proto == IPPROTO_RAW:
            raise NetError(errno.EINVAL)
        if value and endpoint in alerts:
            raise NetError(errno.EADDRINUSE)
        if not value and endpoint not in alerts:
            raise NetError(errno.ENOBUFS)
        (alerts.listen if value else alerts.leave)(endpoint)

    return Option(
        IPPROTO_IP,
        IP_ROUTER_ALERT,
        "IP_ROUTER_ALERT",
        Kind.BOOL,
        short_ok=True,
        empty_ok=True,
        check=check,
        get=lambda socket: int(socket.endpoint in socket.host.netns.ip.alerts),
    )


_ROWS4: Final = _rows(*ip_rows(stream=False), *memberships.rows4())
_ROWS6: Final = (*datagram_rows6(), *memberships.rows6())

RAW4_OPTIONS: Final = OptionTable(
    [
        *_ROWS4,
        _header_included(IPPROTO_IP, IP_HDRINCL, "IP_HDRINCL"),
        _router_alert(),
        # Nothing here puts fragments together on their way out; Linux does only with connection tracking.
        Option(IPPROTO_IP, IP_NODEFRAG, "IP_NODEFRAG", Kind.BOOL, short_ok=True, empty_ok=True),
        _icmp_filter(SOL_RAW, ICMP_FILTER, "ICMP_FILTER", _ICMP, _DEFAULT4),
    ]
)
RAW6_OPTIONS: Final = OptionTable(
    [
        *_rows(*_defaults_only(ip_rows(stream=False)), *_ROWS6),
        *(_checksum(level) for level in (SOL_RAW, IPPROTO_IPV6)),
        *(_header_included(level, IPV6_HDRINCL, "IPV6_HDRINCL") for level in (SOL_RAW, IPPROTO_IPV6)),
        # What is not there is looked for after the value, other than elsewhere: a short one is EINVAL.
        Option(SOL_RAW, ICMP_FILTER, "ICMP_FILTER", readable=False, writable=False),
        _icmp_filter(SOL_ICMPV6, ICMPV6_FILTER, "ICMPV6_FILTER", _ICMPV6, _DEFAULT6),
    ],
    unknown_level_get=errno.ENOPROTOOPT,
)
PING4_OPTIONS: Final = OptionTable(_ROWS4)
PING6_OPTIONS: Final = OptionTable([*rows_beside6(_ROWS4), *_ROWS6], unknown_level_get=errno.ENOPROTOOPT)


def apply(socket: IpMessageSocket, endpoint: IpEndpoint) -> None:
    """Bring the endpoint's live attributes up to what the socket has been told."""
    value = socket.options.value
    endpoint.broadcast = bool(value(SOL_SOCKET, SO_BROADCAST))
    endpoint.receive_limit = value(SOL_SOCKET, SO_RCVBUF)
    endpoint.direct = bool(value(SOL_SOCKET, SO_DONTROUTE))
    endpoint.mark = value(SOL_SOCKET, SO_MARK)
    endpoint.priority = value(SOL_SOCKET, SO_PRIORITY)
    endpoint.bind_ifindex = bound_interface(socket)
    endpoint.filter = attached(socket.options)
    if endpoint.version == 4:
        _apply4(socket, endpoint)
    else:
        _apply6(socket, endpoint)
    if isinstance(endpoint, PingEndpoint):
        endpoint.reuse = bool(value(SOL_SOCKET, SO_REUSEADDR))
    elif isinstance(endpoint, RawEndpoint):
        level, number = (SOL_RAW, ICMP_FILTER) if endpoint.version == 4 else (SOL_ICMPV6, ICMPV6_FILTER)
        # Arrays of 32-bit words in the host's order; bit n of word n / 32 is type n.
        endpoint.blocked_types = int.from_bytes(value(level, number), sys.byteorder)


def _apply4(socket: IpMessageSocket, endpoint: IpEndpoint) -> None:
    value = socket.options.value
    v4 = endpoint.v4
    v4.hops = ttl_of(socket, version=4)
    v4.tos = tos_of(socket, version=4)
    v4.discover = value(IPPROTO_IP, IP_MTU_DISCOVER)
    v4.report_errors = bool(value(IPPROTO_IP, IP_RECVERR))
    v4.report_extensions = bool(value(IPPROTO_IP, IP_RECVERR_RFC4884))
    v4.multicast_hops = value(IPPROTO_IP, IP_MULTICAST_TTL)
    v4.loop = bool(value(IPPROTO_IP, IP_MULTICAST_LOOP))
    v4.multicast_ifindex, source = multicast_interface(socket)
    v4.multicast_source = source if any(source) else None
    v4.unicast_ifindex = unicast_interface(socket, IPPROTO_IP, IP_UNICAST_IF)
    v4.options = value(IPPROTO_IP, IP_OPTIONS)
    if endpoint.groups is not None or not value(IPPROTO_IP, IP_MULTICAST_ALL):
        endpoint.listening.everything4 = bool(value(IPPROTO_IP, IP_MULTICAST_ALL))


def _apply6(socket: IpMessageSocket, endpoint: IpEndpoint) -> None:
    def value(number: int) -> int:
        return int(socket.options.value(IPPROTO_IPV6, number))

    v6 = endpoint.v6
    v6.hops = ttl_of(socket, version=6)
    v6.tos = tos_of(socket, version=6)
    v6.discover = value(IPV6_MTU_DISCOVER)
    v6.dont_fragment = bool(value(IPV6_DONTFRAG))
    v6.report_errors = bool(value(IPV6_RECVERR))
    v6.report_extensions = bool(value(IPV6_RECVERR_RFC4884))
    v6.multicast_hops = value(IPV6_MULTICAST_HOPS)
    v6.loop = bool(value(IPV6_MULTICAST_LOOP))
    v6.multicast_ifindex = value(IPV6_MULTICAST_IF)
    v6.longest = path_mtu_limit(socket)
    interface, source = settled(socket)
    v6.unicast_ifindex = interface or unicast_interface(socket, IPPROTO_IPV6, IPV6_UNICAST_IF)
    v6.source = source or None
    v6.temporary = prefers_temporary(socket)
    headers = (socket.options.value(IPPROTO_IPV6, number) for number in (IPV6_HOPOPTS, IPV6_RTHDR, IPV6_DSTOPTS))
    v6.extension = chain(*headers)
    if endpoint.groups is not None or not value(IPV6_MULTICAST_ALL):
        endpoint.listening.everything6 = bool(value(IPV6_MULTICAST_ALL))
