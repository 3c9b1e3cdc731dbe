"""Local ports and addresses of IP sockets: what bind and connect have in common for TCP and UDP."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, TypedDict

from stack.errors import NetError
from stack.socket.families import AF_INET, AF_INET6
from stack.socket.ip.address import ANY4, ANY6
from stack.socket.ip.options import (
    IP_FREEBIND,
    IP_TRANSPARENT,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    port_range,
)
from stack.socket.ip.options6 import IPV6_FREEBIND, IPV6_TRANSPARENT
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import bound_interface
from stack.socket.options_socket import SO_REUSEADDR, SO_REUSEPORT

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort, PortTable
    from stack.socket.base import Socket
    from stack.socket.ip.address import IpAddress

_ANY_SOURCE: Final = (
    (IPPROTO_IP, IP_FREEBIND),
    (IPPROTO_IP, IP_TRANSPARENT),
    (IPPROTO_IPV6, IPV6_FREEBIND),
    (IPPROTO_IPV6, IPV6_TRANSPARENT),
)
LOOPBACK4: Final = b"\x7f\0\0\1"
LOOPBACK6: Final = bytes(15) + b"\1"


class BindArguments(TypedDict):
    """What a socket's options say to a bind."""

    reuse_addr: bool
    reuse_port: bool
    v6only: bool
    privileged: bool
    freebind: bool
    owner: int
    ifindex: int
    span: tuple[int, int] | None


def bind_arguments(socket: Socket, address: IpAddress) -> BindArguments:
    """The keyword arguments of PortTable.bind for this socket. Raises NetError(EINVAL): IPv4 on an IPv6-only socket."""
    options = socket.options
    v6only = False
    if socket.family == AF_INET6:
        v6only = bool(options.value(IPPROTO_IPV6, IPV6_V6ONLY))
        if len(address[0]) == 4:
            if v6only:
                raise NetError(errno.EINVAL)
        elif address[0] != ANY6:  # Linux does this to the option itself (section 1.2)
            options.store(IPPROTO_IPV6, IPV6_V6ONLY, 1)
            v6only = True
    return {
        "reuse_addr": bool(options.value(SOL_SOCKET, SO_REUSEADDR)),
        "reuse_port": bool(options.value(SOL_SOCKET, SO_REUSEPORT)),
        "v6only": v6only,
        "privileged": socket.host.privileged,
        "freebind": any_source_allowed(socket),
        "owner": socket.host.credentials.uid,
        "ifindex": bound_interface(socket),
        "span": port_range(socket),
    }


def any_source_allowed(socket: Socket) -> bool:
    """May the socket have an address that is not ours: IP_FREEBIND, IP_TRANSPARENT, and their likes of IPv6."""
    options = socket.options
    return any(key in options.table and options.value(*key) for key in _ANY_SOURCE)


def bind(socket: Socket, ports: PortTable, address: IpAddress) -> BoundPort:
    """Claim a local address and port (0: an ephemeral one). Raises NetError (row TCP-01)."""
    return ports.bind(*address, **bind_arguments(socket, address))


def any_address(socket: Socket) -> bytes:
    return ANY4 if socket.family == AF_INET else ANY6


def connect_source(socket: Socket, local: bytes | None, address: IpAddress) -> tuple[bytes | None, IpAddress]:
    """The source address to use, None for the route's choice, and the remote address with "any" resolved to
    this host, as Linux does. `local` is what the socket is bound to. Raises NetError(ENETUNREACH).
    """
    remote, port = address
    if remote == ANY4:
        remote = LOOPBACK4
    elif remote == ANY6:
        remote = LOOPBACK6
    if len(remote) == 4 and socket.family == AF_INET6 and socket.options.value(IPPROTO_IPV6, IPV6_V6ONLY):
        raise NetError(errno.ENETUNREACH)
    if local is None or not any(local):
        return None, (remote, port)
    if len(local) != len(remote):
        raise NetError(errno.ENETUNREACH)
    return local, (remote, port)
