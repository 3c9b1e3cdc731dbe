"""AF_VSOCK sockets of the host side, CID 2: streams and messages to and from its guests (rows VS-01..VS-20)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.socket.base import Host, Socket

AF_VSOCK: Final = 40
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_SEQPACKET: Final = 5


def create(host: Host, kind: int, protocol: int) -> Socket:
    """socket(AF_VSOCK, kind, protocol). Raises NetError as measured on Linux."""
    if protocol not in (0, AF_VSOCK):
        raise NetError(errno.EPROTONOSUPPORT)
    if kind == SOCK_DGRAM:
        raise NetError(errno.ENODEV, "no vsock transport here carries datagrams")
    if kind not in (SOCK_STREAM, SOCK_SEQPACKET):
        raise NetError(errno.ESOCKTNOSUPPORT)
    from stack.socket.vsock.stream import VsockSocket

    return VsockSocket(host, protocol, kind)
