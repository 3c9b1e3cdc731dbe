"""A Unix socket through which other processes reach the netlink sockets of a Stack: what `guestwire ip` talks to.

A connection (SOCK_SEQPACKET) is one AF_NETLINK socket of the Stack. Its first packet, from the client, says which:
`HELLO`, i.e. magic, protocol (NETLINK_ROUTE or NETLINK_KOBJECT_UEVENT) and mask of groups. From then on each packet
carries one netlink datagram, both ways, as it is. When the socket overran, the client gets an NLMSG_OVERRUN.

Whoever reaches the socket administers the Stack. So the file is its owner's alone (mode 0600, set before anybody can
connect), and a peer of another user, root excepted, is let go at once (SO_PEERCRED).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from qemu.guest.argv import SocketName, socket_options
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
_UCRED: Final = struct.Struct("=iII")


class ControlSocket:
    """Listens at `path` until `close`."""

    def __init__(self, stack: Stack, path: Path) -> None:
        """Raises SetupError if the path cannot be used; an existing file is never taken away."""
        socket_options(SocketName(str(path)))
        self.path = path
        self._stack = stack
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise SetupError(f"no control socket at {path}: {error.strerror}") from error
        self._wake, self._waker = os.pipe()  # the end of the one closes with the other
        self._clients: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._accept, name="control-socket", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Every client is let go. Idempotent."""
        if self._waker < 0:
            return
        os.close(self._waker)
        self._waker = -1
        self._thread.join()
        for client in tuple(self._clients):
            client.join()
        self._listener.close()
        os.close(self._wake)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while self._wait(self._listener.fileno()):
            connection, _ = self._listener.accept()
            self._clients = {each for each in self._clients if each.is_alive()}
            if len(self._clients) >= MAX_CLIENTS or not may_connect(connection):
                connection.close()
                continue
            client = threading.Thread(target=self._serve, args=(connection,), name="control-client", daemon=True)
            self._clients.add(client)
            client.start()

    def _wait(self, *fds: int) -> list[int]:
        """Those that are readable; none once `close` was called."""
        ready, _, _ = select.select([self._wake, *fds], [], [])
        return [] if self._wake in ready else ready

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
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


def may_connect(connection: socket.socket) -> bool:
    """Is the peer of our user, or root?"""
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (0, os.geteuid())


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
