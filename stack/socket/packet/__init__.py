"""AF_PACKET sockets: whole frames, with their link header (SOCK_RAW) or without it (SOCK_DGRAM); packet(7)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.credentials import Capability
from stack.errors import NetError

if TYPE_CHECKING:
    from stack.socket.base import Host, Socket

SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3


def create(host: Host, kind: int, protocol: int) -> Socket:
    """socket(AF_PACKET, kind, protocol). Raises NetError: EPERM (row SEC-03), ESOCKTNOSUPPORT."""
    if not host.credentials.may(Capability.NET_RAW):
        raise NetError(errno.EPERM)
    if kind not in (SOCK_DGRAM, SOCK_RAW):
        raise NetError(errno.ESOCKTNOSUPPORT)
    from stack.socket.packet.socket import PacketSocket

    return PacketSocket(host, kind, protocol)
