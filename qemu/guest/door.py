"""A Unix socket of ours that other processes knock at: the file, who may come in, and a thread for each who did.

Whoever reaches such a socket administers what is behind it. So the file is its owner's alone (mode 0600, set before
anybody can connect), and a peer of another user, root excepted, is let go at once (SO_PEERCRED).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from qemu.guest.argv import SocketName, socket_options
from qemu.guest.errors import SetupError

_UCRED: Final = struct.Struct("=iII")
#: Without descriptors or threads to serve anybody with, whoever knocks waits, and is looked at again so often.
_SHORT_OF_SECONDS: Final = 0.1


class Door(ABC):
    """Listens at `path` (SOCK_SEQPACKET) until `close`; `_serve` is what happens inside, in the client's thread."""

    def __init__(self, path: Path, *, name: str, purpose: str, most: int) -> None:
        """`name` is the threads', `purpose` what an error calls it; at most `most` clients are inside at a time.

        Raises SetupError if the path cannot be used; an existing file is never taken away.
        """
        socket_options(SocketName(str(path)))
        self.path = path
        self._name, self._most = name, most
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise SetupError(f"no {purpose} at {path}: {error.strerror}") from error
        self._wake, self._waker = os.pipe()  # the end of the one closes with the other
        self._clients: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
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
            try:
                connection, _ = self._listener.accept()
            except OSError:
                self._wait(timeout=_SHORT_OF_SECONDS)
                continue
            self._clients = {each for each in self._clients if each.is_alive()}
            if len(self._clients) >= self._most or not may_connect(connection):
                connection.close()
                continue
            client = threading.Thread(
                target=self._receive, args=(connection,), name=f"{self._name}-client", daemon=True
            )
            self._clients.add(client)
            client.start()

    def _wait(self, *descriptors: int, timeout: float | None = None) -> list[int]:
        """Those that are readable; none after `timeout` seconds, or once `close` was called."""
        poll = select.poll()  # select() knows no descriptor above 1023
        for descriptor in (self._wake, *descriptors):
            poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1e3)]
        return [] if self._wake in ready else ready

    def _receive(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._serve(connection)

    @abstractmethod
    def _serve(self, connection: socket.socket) -> None:
        """Until the client or we have had enough; an OSError ends it, the connection is closed for it."""


def may_connect(connection: socket.socket) -> bool:
    """Is the peer of our user, or root?"""
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (0, os.geteuid())
