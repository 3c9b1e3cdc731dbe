"""IPPROTO_IP and IPPROTO_IPV6 options that IP sockets of every type have (section 2.2 of the socket semantics)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.socket.families import AF_INET6
from stack.socket.options import Kind, Option

if TYPE_CHECKING:
    from stack.socket.base import Socket

IPPROTO_IP: Final = 0
IPPROTO_IPV6: Final = 41

# Linux <linux/in.h>, <linux/in6.h>.
IP_TOS: Final = 1
IP_TTL: Final = 2
IP_MTU_DISCOVER: Final = 10
IP_MTU: Final = 14
IP_FREEBIND: Final = 15
IPV6_UNICAST_HOPS: Final = 16
IPV6_V6ONLY: Final = 26
IPV6_TCLASS: Final = 67

DEFAULT_TTL: Final = 64


def ip_level(*, tos_keeps_ecn: bool) -> list[Option]:
    """The rows; on TCP sockets the user does not get at the two ECN bits of the TOS byte."""

    def tos(socket: Socket, value: int) -> int:
        byte = value & 0xFF
        return byte & ~3 if tos_keeps_ecn else byte

    def traffic_class(socket: Socket, value: int) -> int:
        return tos(socket, max(value, 0))

    return [
        Option(IPPROTO_IP, IP_TOS, "IP_TOS", short_ok=True, empty_ok=True, adjust=tos),
        Option(IPPROTO_IP, IP_TTL, "IP_TTL", default=DEFAULT_TTL, low=-1, high=255, short_ok=True, adjust=_ttl),
        Option(IPPROTO_IP, IP_MTU_DISCOVER, "IP_MTU_DISCOVER", default=1, low=0, high=5, short_ok=True, empty_ok=True),
        Option(IPPROTO_IP, IP_MTU, "IP_MTU", writable=False, get=_mtu),
        Option(IPPROTO_IP, IP_FREEBIND, "IP_FREEBIND", Kind.BOOL, short_ok=True),
        Option(IPPROTO_IPV6, IPV6_V6ONLY, "IPV6_V6ONLY", Kind.BOOL, check=_v6_unbound),
        Option(IPPROTO_IPV6, IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS", default=-1, low=-1, high=255, get=_hops),
        Option(IPPROTO_IPV6, IPV6_TCLASS, "IPV6_TCLASS", low=-1, high=255, adjust=traffic_class),
    ]


def ttl_of(socket: Socket, *, version: int) -> int:
    """The hop limit this socket's packets get."""
    if version == 4:
        return int(socket.options.value(IPPROTO_IP, IP_TTL))
    hops = int(socket.options.value(IPPROTO_IPV6, IPV6_UNICAST_HOPS))
    return DEFAULT_TTL if hops < 0 else hops


def tos_of(socket: Socket, *, version: int) -> int:
    """The TOS or traffic class byte this socket's packets get."""
    if version == 4:
        return int(socket.options.value(IPPROTO_IP, IP_TOS))
    return int(socket.options.value(IPPROTO_IPV6, IPV6_TCLASS))


def _ttl(socket: Socket, value: int) -> int:
    if value == 0:
        raise NetError(errno.EINVAL)
    return DEFAULT_TTL if value < 0 else value


def _hops(socket: Socket) -> int:
    return ttl_of(socket, version=6)


def _mtu(socket: Any) -> int:
    return int(socket.path_mtu())


def _v6_unbound(socket: Any, value: object) -> None:
    if socket.family != AF_INET6:
        raise NetError(errno.ENOPROTOOPT)
    if socket.is_bound():
        raise NetError(errno.EINVAL)
