"""Lets programs of this machine onto a LAN: what `guestwire exec` talks to.

A connection (SOCK_SEQPACKET, `path`) begins with a packet `MAGIC` that carries the descriptor of a TAP device, made
by the client in a network namespace of its own. It is answered by a line of JSON: the address the client is to give
that interface, prefix length, gateway, name server, MTU and name. The TAP is a port of the LAN's switch until the
connection ends. What is refused is answered by {"error": text}.

The file is its owner's alone, as with the control socket: whoever connects is on the LAN.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qemu.guest.argv import SocketName, socket_options
from qemu.guest.control import may_connect
from qemu.guest.errors import SetupError

if TYPE_CHECKING:
    from qemu.guest.lan import Lan

MAGIC: Final = b"GWJ1"
MAX_CLIENTS: Final = 64
_HELLO_SECONDS: Final = 10.0
_ANSWER_BYTES: Final = 4096


class JoinSocket:
    """Listens at `path` until `close`."""

    def __init__(self, lan: Lan, path: Path) -> None:
        """Raises SetupError if the path cannot be used; an existing file is never taken away."""
        socket_options(SocketName(str(path)))
        self.path = path
        self._lan = lan
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise SetupError(f"no socket to join a LAN by at {path}: {error.strerror}") from error
        self._wake, self._waker = os.pipe()  # the end of the one closes with the other
        self._clients: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._accept, name="lan-join", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Everybody who joined is off the LAN. Idempotent."""
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

    def _accept(self) -> None:
        while self._wait(self._listener.fileno()):
            connection, _ = self._listener.accept()
            self._clients = {each for each in self._clients if each.is_alive()}
            if len(self._clients) >= MAX_CLIENTS or not may_connect(connection):
                connection.close()
                continue
            client = threading.Thread(target=self._serve, args=(connection,), name="lan-client", daemon=True)
            self._clients.add(client)
            client.start()

    def _wait(self, descriptor: int, timeout: float | None = None) -> bool:
        """Whether it is readable; not if that takes longer, or once `close` was called."""
        ready, _, _ = select.select([self._wake, descriptor], [], [], timeout)
        return descriptor in ready and self._wake not in ready

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if not self._wait(connection.fileno(), _HELLO_SECONDS):
                return
            hello, descriptors, _, _ = socket.recv_fds(connection, _ANSWER_BYTES, 1)
            if hello != MAGIC or len(descriptors) != 1:
                for descriptor in descriptors:
                    os.close(descriptor)
                return
            self._carry(connection, descriptors[0])

    def _carry(self, connection: socket.socket, descriptor: int) -> None:
        from stack.link.tap import Tap

        os.set_blocking(descriptor, False)
        tap = Tap(descriptor)
        try:
            try:
                place = self._lan.admit()
            except SetupError as error:
                connection.send(json.dumps({"error": str(error)}).encode())
                return
            unplug = self._lan.plug(tap, place["name"])
            try:
                connection.send(json.dumps(place).encode())
                while self._wait(connection.fileno()) and connection.recv(_ANSWER_BYTES):
                    pass  # nothing more is said; the end is what is waited for
            finally:
                unplug()
                self._lan.dismiss(place)
        finally:
            tap.close()


def join(path: Path, tap: int) -> tuple[socket.socket, dict[str, Any]]:
    """The client's part: hand the TAP over; the connection to keep open, and how to set the interface up.

    Raises SetupError if nobody answers or the LAN takes nobody.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_HELLO_SECONDS)
        connection.connect(str(path))
        socket.send_fds(connection, [MAGIC], [tap])
        answer = connection.recv(_ANSWER_BYTES)
        if not answer:
            raise SetupError(f"the LAN at {path} takes nobody else")
        place: dict[str, Any] = json.loads(answer)
    except OSError as error:
        connection.close()
        raise SetupError(f"no LAN answers at {path}: {error.strerror or error}") from error
    except BaseException:
        connection.close()
        raise
    if "error" in place:
        connection.close()
        raise SetupError(place["error"])
    connection.settimeout(None)
    return connection, place
