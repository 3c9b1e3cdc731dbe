"""SO_PEERNAME: getpeername as an option (section 2.1), for sockets with IP addresses."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.families import AF_INET
from stack.socket.ip.received import sockaddr
from stack.socket.options import SOL_SOCKET, Kind, Option
from stack.socket.options_socket import SO_PEERNAME

if TYPE_CHECKING:
    from stack.socket.base import Socket

_MAPPED: Final = bytes(10) + b"\xff\xff"


def peer_name_row() -> Option:
    """The row."""
    return Option(SOL_SOCKET, SO_PEERNAME, "SO_PEERNAME", Kind.OPAQUE, writable=False, show=_peer_name)


def _peer_name(socket: Socket, room: int) -> bytes:
    address, port = socket.phase.peer_address()[:2]
    if socket.family != AF_INET and len(address) == 4:
        address = _MAPPED + address
    packed = sockaddr(address, port)
    if room > len(packed):
        raise NetError(errno.EINVAL)
    return packed
