"""Which address families there are, and how a socket of each is made (row CORE-02).

A family is one function: it checks type and protocol and makes the socket. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from stack.errors import NetError
from stack.socket.base import Host, Socket

# Linux <bits/socket.h>.
AF_UNSPEC: Final = 0
AF_UNIX: Final = 1
AF_INET: Final = 2
AF_INET6: Final = 10
AF_NETLINK: Final = 16
AF_PACKET: Final = 17
AF_VSOCK: Final = 40

SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3
SOCK_RDM: Final = 4
SOCK_SEQPACKET: Final = 5
SOCK_NONBLOCK: Final = 0x800
SOCK_CLOEXEC: Final = 0x80000
_TYPE_MASK: Final = 0xF

#: (host, type, protocol) -> socket; raises NetError: ESOCKTNOSUPPORT, EPROTONOSUPPORT.
Factory: TypeAlias = Callable[[Host, int, int], Socket]


def _inet(host: Host, kind: int, protocol: int) -> Socket:
    from stack.socket.ip import create

    return create(host, AF_INET, kind, protocol)


def _inet6(host: Host, kind: int, protocol: int) -> Socket:
    from stack.socket.ip import create

    return create(host, AF_INET6, kind, protocol)


def _unix(host: Host, kind: int, protocol: int) -> Socket:
    from stack.socket.unix import create

    return create(host, kind, protocol)


def _vsock(host: Host, kind: int, protocol: int) -> Socket:
    from stack.socket.vsock import create

    return create(host, kind, protocol)


def _packet(host: Host, kind: int, protocol: int) -> Socket:
    from stack.socket.packet import create

    return create(host, kind, protocol)


def _netlink(host: Host, kind: int, protocol: int) -> Socket:
    from stack.socket.netlink import create

    return create(host, kind, protocol)


FACTORIES: Final[Mapping[int, Factory]] = {
    AF_UNIX: _unix,
    AF_INET: _inet,
    AF_INET6: _inet6,
    AF_NETLINK: _netlink,
    AF_PACKET: _packet,
    AF_VSOCK: _vsock,
}


def create(host: Host, family: int, kind: int, protocol: int) -> Socket:
    """socket(2): `kind` is a SOCK_ type, flag bits already split off. Raises NetError."""
    if not 0 <= kind <= _TYPE_MASK:
        raise NetError(errno.EINVAL, f"unknown bits in socket type {kind:#x}")
    factory = FACTORIES.get(family)
    if factory is None:
        raise NetError(errno.EAFNOSUPPORT)
    return factory(host, kind, protocol)


def create_pair(host: Host, family: int, kind: int, protocol: int) -> tuple[Socket, Socket]:
    """socketpair(2). Raises NetError as `create`, OSError(EOPNOTSUPP) but for AF_UNIX (row CORE-03)."""
    one, other = create(host, family, kind, protocol), create(host, family, kind, protocol)
    try:
        one.call(one.pair_with, other)
    except OSError:
        one.close()
        other.close()
        raise
    return one, other
