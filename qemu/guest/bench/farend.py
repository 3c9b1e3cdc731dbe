"""The far end of every bench row: the same sink, source and echo, on whichever `socket` module it is given.

On `guest.stack.socket` they are reached through our card, on the standard library's through a peer. What is measured
is therefore the path, not the program at its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

#: What is read at most, and what is written at a time, in every row and beside every peer.
READ_BYTES: Final = 512 << 10
WRITTEN_BYTES: Final = 1 << 20
#: What an echo reads at most: each read makes an object of so many bytes.
_ECHOED_BYTES: Final = 256 << 10
_WAIT_SECONDS: Final = 30.0


@dataclass(slots=True)
class Transfer:
    """One connection's bytes, timed from the first to the last."""

    bytes: int = 0
    began: float = 0.0
    ended: float = 0.0

    @property
    def gbps(self) -> float:
        """Gigabits per second."""
        return self.bytes * 8e-9 / (self.ended - self.began) if self.ended > self.began else 0.0


@dataclass
class FarEnd:
    """Listens on a port of the system's choice and serves every connection by `serve`, each in a thread.

    A context manager: `port` is where to connect to, `transfers` what was moved. `one_by_one`: the thread that accepts
    also serves, each connection to its end, for a peer that has one at a time.
    """

    sockets: Any  #: a module with the interface of `socket`
    host: str
    serve: Callable[[Any, Transfer], None]
    family: int | None = None
    one_by_one: bool = False
    transfers: list[Transfer] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        family = self.sockets.AF_INET if self.family is None else self.family
        self._listener = self.sockets.socket(family, self.sockets.SOCK_STREAM)
        vsock = family == self.sockets.AF_VSOCK
        self._listener.bind((self.sockets.VMADDR_CID_ANY, self.sockets.VMADDR_PORT_ANY) if vsock else (self.host, 0))
        self._listener.listen(64)
        self._listener.settimeout(0.2)
        self.port = self._listener.getsockname()[1]
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._acceptor.join(_WAIT_SECONDS)
        self._listener.close()
        for thread in self._threads:
            thread.join(_WAIT_SECONDS)

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            connection.settimeout(_WAIT_SECONDS)
            transfer = Transfer()
            self.transfers.append(transfer)
            if self.one_by_one:
                self._run(connection, transfer)
                continue
            thread = threading.Thread(target=self._run, args=(connection, transfer), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: Any, transfer: Transfer) -> None:
        # A peer that goes away in the middle ends its row, not the bench.
        with suppress(ConnectionError, TimeoutError), connection:
            self.serve(connection, transfer)


def sink(connection: Any, transfer: Transfer) -> None:
    """Read until the peer is done."""
    buffer = memoryview(bytearray(READ_BYTES))
    while size := connection.recv_into(buffer):
        transfer.ended = time.monotonic()
        transfer.began = transfer.began or transfer.ended
        transfer.bytes += size


def source(seconds: float) -> Callable[[Any, Transfer], None]:
    """Write for that long, then close."""

    def serve(connection: Any, transfer: Transfer) -> None:
        data = bytes(range(256)) * (WRITTEN_BYTES // 256)
        transfer.began = time.monotonic()
        while (now := time.monotonic()) - transfer.began < seconds:
            connection.sendall(data)
            transfer.bytes += len(data)
            transfer.ended = now

    return serve


def echo(connection: Any, transfer: Transfer) -> None:
    """Answer every piece with itself."""
    while data := connection.recv(_ECHOED_BYTES):
        connection.sendall(data)
        transfer.bytes += len(data)
