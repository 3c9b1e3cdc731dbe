"""QMP with deadlines, for callers without an event loop: `qemu.qmp` run in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
from collections import deque
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from qemu.guest.errors import GuestDiedError, GuestError, GuestTimeoutError
from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

_T = TypeVar("_T")
#: Events kept for `events` and `wait_event`; a guest can make QEMU emit any number of them.
_EVENTS_KEPT: Final = 1000
_CLOSE_SECONDS: Final = 5.0


class QmpError(GuestError):
    """QEMU refused a command; the message is its description."""


class Qmp:
    """One QMP session over a connected socket. Thread-safe.

    >>> guest.qmp.execute("query-status")["running"]
    True
    """

    def __init__(self, connection: socket.socket, *, timeout: float) -> None:
        """Owns `connection`. Raises GuestTimeoutError if QEMU does not greet within `timeout` seconds."""
        self.events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)  #: newest last
        self._arrived = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("guestwire")
        self._client.logger.disabled = True  # what goes wrong is raised here, not printed as well
        self._listener = EventListener()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="guest-qmp", daemon=True)
        self._thread.start()
        self._connection = connection
        connection.setblocking(False)
        try:
            self._call(self._connect(connection), timeout, "QEMU's QMP greeting")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 10.0) -> Any:
        """Run one command; what QEMU returns.

        Raises QmpError if QEMU refuses it, GuestTimeoutError after `timeout` seconds, GuestDiedError without QEMU.
        """
        return self._call(self._client.execute(command, arguments), timeout, f"QEMU's answer to {command}")

    def pass_descriptor(self, name: str, fd: int, *, timeout: float = 10.0) -> None:
        """Give QEMU a copy of `fd`, which commands then name by `name` (getfd). Raises as `execute` does."""

        async def send() -> Any:
            self._client.send_fd_scm(fd)
            return await self._client.execute("getfd", {"fdname": name})

        self._call(send(), timeout, "QEMU's answer to getfd")

    def wait_event(self, name: str, *, timeout: float) -> dict[str, Any]:
        """The oldest kept event called `name`, taken out of `events`; waits for it. Raises GuestTimeoutError."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: any(e["event"] == name for e in self.events), timeout):
                raise GuestTimeoutError(f"waited {timeout:g} s for QEMU's event {name}")
            event = next(e for e in self.events if e["event"] == name)
            self.events.remove(event)
            return event

    def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        # QEMU may be gone or hang: then there is nothing to take leave of.
        with suppress(QMPError, OSError, EOFError, concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result(_CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()
        self._connection.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _connect(self, connection: socket.socket) -> None:
        self._client.register_listener(self._listener)
        await self._client.connect(connection)
        self._pump = asyncio.ensure_future(self._collect())

    async def _disconnect(self) -> None:
        pump = getattr(self, "_pump", None)
        if pump is not None:
            pump.cancel()
            await asyncio.wait([pump])
        await self._client.disconnect()

    async def _collect(self) -> None:
        async for message in self._listener:
            with self._arrived:
                self.events.append(dict(message))
                self._arrived.notify_all()

    def _call(self, work: Coroutine[Any, Any, _T], timeout: float, what: str) -> _T:
        if self._closed:
            work.close()
            raise GuestDiedError("the QMP session is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise GuestTimeoutError(f"waited {timeout:g} s for {what}") from None
        except ExecuteError as error:
            raise QmpError(str(error)) from error
        except (QMPError, OSError, EOFError) as error:
            raise GuestDiedError(f"QEMU went away while waiting for {what}: {error}") from error
