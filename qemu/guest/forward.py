"""A TCP port of this machine that leads to one of a guest's, for programs that know nothing of us."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_BACKLOG: Final = 64
_READ_BYTES: Final = 65536
_END_SECONDS: Final = 5.0


class Forward:
    """Listens on 127.0.0.1 until `close`. A context manager whose value is the address."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        """`connect()` makes the connection to the guest, or raises OSError: the caller is then reset."""
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._open: set[Any] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="guest-forward", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self.address[1]

    def close(self) -> None:
        """Stop listening and end what goes through. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            ending = list(self._open)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept()
        for each in ending:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join(_END_SECONDS)
        self._listener.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, _END_SECONDS)

    def __enter__(self) -> tuple[str, int]:
        return self.address

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), name="guest-forward", daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        far: Any = None
        with near:
            self._track(near)
            try:
                far = self._connect()
                far.settimeout(None)
                self._track(far)
                back = threading.Thread(target=_copy, args=(far, near), name="guest-forward", daemon=True)
                back.start()
                _copy(near, far)
                back.join()
            except OSError:
                # What the guest said to the connection: it is refused, or gone.
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
            finally:
                if far is not None:
                    far.close()
                self._untrack(near, far)

    def _track(self, each: Any) -> None:
        with self._changed:
            self._open.add(each)
            if self._closed:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _untrack(self, *ended: Any) -> None:
        with self._changed:
            self._open.difference_update(ended)
            self._changed.notify_all()


def _copy(source: Any, target: Any) -> None:
    """Until the source ends; passes the end on as a half-close."""
    with suppress(OSError):
        while data := source.recv(_READ_BYTES):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
