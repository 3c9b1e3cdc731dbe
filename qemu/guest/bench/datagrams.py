"""The far end of UDP rows, on whichever `socket` module it is given (see farend.py)."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from qemu.guest.bench.farend import Transfer

_START_SECONDS: Final = 20.0
#: Silence after which nothing more is expected.
_SILENCE_SECONDS: Final = 0.5
_BUFFER_BYTES: Final = 4 << 20
#: Sent one after the other to say that this is all: some are lost in a full queue.
_ENDINGS: Final = 20


class _Datagrams:
    def __init__(self, sockets: Any, host: str) -> None:
        self._socket = sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM)
        self._socket.bind((host, 0))
        for option in (sockets.SO_RCVBUF, sockets.SO_SNDBUF):
            self._socket.setsockopt(sockets.SOL_SOCKET, option, _BUFFER_BYTES)
        self._socket.settimeout(_START_SECONDS)
        self.port: int = self._socket.getsockname()[1]
        self.transfer = Transfer()
        self._thread = threading.Thread(target=self._run_quietly, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(_START_SECONDS)
        self._socket.close()

    def _run_quietly(self) -> None:
        with suppress(OSError):  # what was lost is not counted
            self._run()

    def _run(self) -> None:
        raise NotImplementedError


class DatagramSink(_Datagrams):
    """Counts what arrives, from the first datagram until there is silence. A context manager."""

    def _run(self) -> None:
        sock, transfer = self._socket, self.transfer
        room = memoryview(bytearray(1 << 16))
        sock.recv_into(room)
        transfer.began = transfer.ended = time.monotonic()
        sock.settimeout(_SILENCE_SECONDS)
        while True:
            size = sock.recv_into(room)
            transfer.bytes += size
            transfer.ended = time.monotonic()


class DatagramSource(_Datagrams):
    """Sends datagrams of `size` bytes for so many seconds to whoever sends the first one. A context manager."""

    def __init__(self, sockets: Any, host: str, seconds: float, size: int) -> None:
        super().__init__(sockets, host)
        self._seconds = seconds
        self._data = bytes(size)

    def _run(self) -> None:
        sock, transfer, data = self._socket, self.transfer, self._data
        _, guest = sock.recvfrom(16)
        sock.connect(guest)
        transfer.began = now = time.monotonic()
        while now - transfer.began < self._seconds:
            for _ in range(16):
                with suppress(OSError):  # ENOBUFS: the queue is full
                    sock.send(data)
                    transfer.bytes += len(data)
            transfer.ended = now = time.monotonic()
        for _ in range(_ENDINGS):
            with suppress(OSError):
                sock.send(b"")
            time.sleep(0.01)
