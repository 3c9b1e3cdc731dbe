"""AF_UNIX sockets inside a Stack: streams, seqpacket and datagrams (rows UNX-01..UNX-19, UDG-01..08, CTRL-01..10)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.socket.base import Host, Socket

AF_UNIX: Final = 1
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3  # means SOCK_DGRAM
SOCK_SEQPACKET: Final = 5


def create(host: Host, kind: int, protocol: int) -> Socket:
    """socket(AF_UNIX, kind, protocol). Raises NetError as measured on Linux (row CORE-02)."""
    if protocol not in (0, AF_UNIX):
        raise NetError(errno.EPROTONOSUPPORT)
    from stack.socket.unix.datagram import UnixDatagramSocket
    from stack.socket.unix.seqpacket import UnixSeqpacketSocket
    from stack.socket.unix.stream import UnixStreamSocket

    if kind == SOCK_STREAM:
        return UnixStreamSocket(host, protocol)
    if kind == SOCK_SEQPACKET:
        return UnixSeqpacketSocket(host, protocol)
    if kind in (SOCK_DGRAM, SOCK_RAW):
        return UnixDatagramSocket(host, kind, protocol)
    raise NetError(errno.ESOCKTNOSUPPORT)
