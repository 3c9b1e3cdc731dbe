"""Lets programs of this machine onto a LAN: what `guestwire exec` talks to.

A connection (SOCK_SEQPACKET, `path`) begins with a packet `MAGIC` that carries the descriptor of a TAP device, made
by the client in a network namespace of its own. It is answered by a line of JSON: the address the client is to give
that interface, prefix length, gateway, name server, MTU and name. The TAP is a port of the LAN's switch until the
connection ends. What is refused is answered by {"error": text}.

Whoever connects is on the LAN: the file is its owner's alone (see qemu.guest.door).
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qemu.guest.door import Door
from qemu.guest.errors import SetupError

if TYPE_CHECKING:
    from qemu.guest.lan import Lan

MAGIC: Final = b"GWJ1"
MAX_CLIENTS: Final = 64
_HELLO_SECONDS: Final = 10.0
_ANSWER_BYTES: Final = 4096


class JoinSocket(Door):
    """Listens at `path` until `close`; then everybody who joined is off the LAN."""

    def __init__(self, lan: Lan, path: Path) -> None:
        """Raises SetupError if the path cannot be used; an existing file is never taken away."""
        self._lan = lan
        super().__init__(path, name="lan-join", purpose="socket to join a LAN by", most=MAX_CLIENTS)

    def _serve(self, connection: socket.socket) -> None:
        if not self._wait(connection.fileno(), timeout=_HELLO_SECONDS):
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
