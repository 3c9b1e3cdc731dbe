"""A Unix socket through which other processes reach the netlink sockets of a Stack: what `guestwire ip` talks to.

A connection (SOCK_SEQPACKET) is one AF_NETLINK socket of the Stack. Its first packet, from the client, says which:
`HELLO`, i.e. magic, protocol (NETLINK_ROUTE or NETLINK_KOBJECT_UEVENT) and mask of groups. From then on each packet
carries one netlink datagram, both ways, as it is. When the socket overran, the client gets an NLMSG_OVERRUN.

Whoever reaches the socket administers the Stack: it is its owner's alone (see qemu.guest.door).
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qemu.guest.door import Door
from qemu.guest.errors import SetupError
from stack.wire.netlink.header import NETLINK_KOBJECT_UEVENT, NETLINK_ROUTE, NLMSG_OVERRUN, pack

if TYPE_CHECKING:
    from stack import Stack

HELLO: Final = struct.Struct("=4sII")  # magic, protocol, mask of groups
MAGIC: Final = b"GWN1"
AF_NETLINK: Final = 16
MAX_CLIENTS: Final = 32
MAX_DATAGRAM: Final = 1 << 17  # bytes
SEND_SECONDS: Final = 5.0  # a client that reads nothing for so long is let go
_PROTOCOLS: Final = (NETLINK_ROUTE, NETLINK_KOBJECT_UEVENT)


class ControlSocket(Door):
    """Listens at `path` until `close`."""

    def __init__(self, stack: Stack, path: Path) -> None:
        """Raises SetupError if the path cannot be used; an existing file is never taken away."""
        self._stack = stack
        super().__init__(path, name="control-socket", purpose="control socket", most=MAX_CLIENTS)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(SEND_SECONDS)
        if not self._wait(connection.fileno()):
            return
        hello = connection.recv(MAX_DATAGRAM)
        if len(hello) != HELLO.size or hello[:4] != MAGIC:
            return
        _, protocol, groups = HELLO.unpack(hello)
        if protocol not in _PROTOCOLS:
            return
        with self._stack.socket.socket(AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
            netlink.bind((0, groups))
            netlink.settimeout(0)
            self._carry(connection, netlink)

    def _carry(self, connection: socket.socket, netlink: socket.socket) -> None:
        while ready := self._wait(connection.fileno(), netlink.fileno()):
            if connection.fileno() in ready:
                data = connection.recv(MAX_DATAGRAM)
                if not data:
                    return
                with suppress(OSError):  # what netlink refuses to take has no answer there either
                    netlink.send(data)
            if netlink.fileno() in ready:
                try:
                    data = netlink.recv(MAX_DATAGRAM)
                except BlockingIOError:
                    continue
                except OSError:
                    data = pack(NLMSG_OVERRUN, 0, 0, 0, b"")
                connection.send(data)


def connect(path: Path, protocol: int = NETLINK_ROUTE, groups: int = 0) -> socket.socket:
    """The client's end, greeting done. Raises SetupError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(str(path))
        connection.send(HELLO.pack(MAGIC, protocol, groups))
    except OSError as error:
        connection.close()
        raise SetupError(f"no Stack answers at {path}: {error.strerror}") from error
    return connection
