"""AF_VSOCK sockets of the host side, CID 2: streams to and from its guests (rows VS-01..VS-18)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.socket.base import Host, Socket

AF_VSOCK: Final = 40
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2


def create(host: Host, kind: int, protocol: int) -> Socket:
    """socket(AF_VSOCK, kind, protocol). Raises NetError as measured on Linux; SEQPACKET is not offered."""
    if protocol not in (0, AF_VSOCK):
        raise NetError(errno.EPROTONOSUPPORT)
    if kind == SOCK_DGRAM:
        raise NetError(errno.ENODEV, "no vsock transport here carries datagrams")
    if kind != SOCK_STREAM:
        raise NetError(errno.ESOCKTNOSUPPORT)
    from stack.socket.vsock.stream import VsockSocket

    return VsockSocket(host, protocol)
