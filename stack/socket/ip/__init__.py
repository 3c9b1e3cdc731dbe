"""AF_INET and AF_INET6 sockets: streams over TCP, datagrams over UDP."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.socket.base import Host, Socket

SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17


def create(host: Host, family: int, kind: int, protocol: int) -> Socket:
    """socket(AF_INET or AF_INET6, kind, protocol). Raises NetError as measured for row CORE-02."""
    if not 0 <= protocol < 256:
        raise NetError(errno.EINVAL)
    if kind == SOCK_STREAM:
        if protocol not in (0, IPPROTO_TCP):
            raise NetError(errno.EPROTONOSUPPORT)
        from stack.socket.ip.stream import StreamSocket

        return StreamSocket(host, family)
    if kind == SOCK_DGRAM:
        if protocol not in (0, IPPROTO_UDP):
            raise NetError(errno.EPROTONOSUPPORT)
        from stack.socket.ip.datagram import DatagramSocket

        return DatagramSocket(host, family)
    raise NetError(errno.ESOCKTNOSUPPORT)
