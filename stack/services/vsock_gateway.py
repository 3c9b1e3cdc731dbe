"""One guest's vsock opened to the host's programs: the hybrid Unix socket, and chosen ports to and from its servers.

Theory of operation
-------------------
**Host to guest.** A program connects to the Unix socket `uds_path` and names the port (`vsock_client`), or to a
listener made with `expose`, whose every connection goes to one port.

**Guest to host** (CID 2). A port that a socket of the stack listens on is the stack's. One that is forwarded goes to
the server it was forwarded to. Any other goes to the Unix socket ``<uds_path>_<port>``, as Firecracker named it, or to
the same port of one CID of the host's own kernel (`forward_cid`), as vhost-device-vsock has it. The guest is answered
once the server has taken the connection, and reset where there is none.

Everything is bounded: so many streams, handshakes included, each with a receive buffer that the engine's memory limit
counts. Host programs beyond that wait in their listener's queue; guests are refused.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import TYPE_CHECKING, Final

from stack.errors import Drops
from stack.services.host_address import HostAddress, unix_address, vsock_address
from stack.services.host_connect import HostConnect
from stack.services.host_listen import HostListener
from stack.services.host_sockets import HostSockets
from stack.services.vsock_client import HostClient
from stack.services.vsock_pump import Pump, close_socket
from stack.vsock.connection import DEFAULT_BUFFER

if TYPE_CHECKING:
    from stack.vsock import GuestPort, VsockConnection

#: Bytes a guest may send ahead on one stream. Four times Linux's default: with that, guest and gateway wait for each
#: other at high rates (measured: a third of the throughput).
BUFFER: Final = 1 << 20
#: Streams of one guest through its gateway at a time, half of what the engine allows the guest altogether.
STREAM_LIMIT: Final = 512

_LOG: Final = logging.getLogger(__name__)


class VsockGateway:
    """Serves the guest behind `port` until `close`. Attach `sources` to the Network. Lock held by the caller.

    `uds_path`: where host programs connect, and the prefix of their listeners for the guest; None: neither.
    `forward_cid`: whose AF_VSOCK ports stand for those that are nobody's. `buffer`: bytes the guest may send ahead on
    one stream. Raises OSError for a path that cannot be listened on, ValueError for one no socket can have.
    """

    def __init__(
        self,
        port: GuestPort,
        *,
        uds_path: str | None = None,
        forward_cid: int | None = None,
        buffer: int = BUFFER,
        stream_limit: int = STREAM_LIMIT,
    ) -> None:
        self.port = port
        self.hosts = HostSockets()
        self.uds_path = uds_path
        self.forward_cid = forward_cid
        self._buffer = buffer
        self.stream_limit = stream_limit
        self.forwards: dict[int, HostAddress] = {}  #: by the host port the guest connects to
        self.drops = Drops()  #: what became nothing, by reason
        self.streams = 0  #: that came about since the beginning
        self._tasks: set[Pump | HostClient | HostConnect] = set()
        self._listeners: list[HostListener] = []
        if uds_path is not None:
            try:
                self._listen(unix_address(uds_path), None)
            except BaseException:
                self.hosts.close()
                raise
        port.acceptor = self

    @property
    def buffer(self) -> int:
        """Receive buffer of the next stream: less once half of the engine's memory is promised."""
        engine = self.port.engine
        return self._buffer if engine.reserved <= engine.memory_limit // 2 else min(self._buffer, DEFAULT_BUFFER)

    @property
    def open_streams(self) -> int:
        """Streams and handshakes under way."""
        return len(self._tasks)

    def forward(self, port: int, target: HostAddress) -> None:
        """What the guest connects to CID 2, `port`, goes to `target`. Streams that exist stay where they are."""
        self.forwards[port] = target

    def expose(self, where: HostAddress, port: int) -> HostListener:
        """Each connection to `where` goes to the guest's `port`. Raises OSError."""
        return self._listen(where, port)

    def close(self) -> None:
        """Every stream ends with RST. The guest's other connections stay. Idempotent."""
        if self.port.acceptor is self:
            self.port.acceptor = None
        for listener in self._listeners:
            listener.close()
        for task in tuple(self._tasks):
            if isinstance(task, Pump):
                task.abort()
            else:
                task.abandon()
        self._tasks.clear()
        self.hosts.close()

    # -- host to guest ------------------------------------------------------------------------------------------------

    def _listen(self, where: HostAddress, port: int | None) -> HostListener:
        def accepted(sock: socket.socket) -> None:
            self._client(sock, port)

        listener = HostListener(self.port.scheduler, self.hosts, where, accepted, self._has_room)
        self._listeners.append(listener)
        return listener

    def _has_room(self) -> bool:
        return len(self._tasks) < self.stream_limit

    def _client(self, sock: socket.socket, port: int | None) -> None:
        try:
            client = HostClient(
                self.port.scheduler,
                self.hosts,
                sock,
                self._connect,
                self._client_connected,
                self._client_failed,
                port=port,
            )
        except OSError as error:  # the kernel watches no more sockets
            _LOG.warning("vsock gateway: %s", error)
            self.drops.count("unwatched")
            close_socket(sock, abrupt=True)
            return
        if not client.done:
            self._tasks.add(client)

    def _client_connected(
        self, client: HostClient, connection: VsockConnection, sock: socket.socket, early: bytes
    ) -> None:
        self._pump(connection, sock, early)
        self._tasks.discard(client)

    def _client_failed(self, client: HostClient, reason: str) -> None:
        self.drops.count(reason)
        self._ended(client)

    def _connect(self, port: int) -> VsockConnection:
        return self.port.engine.connect(self.port.guest_cid, port, buffer=self.buffer)

    # -- guest to host ------------------------------------------------------------------------------------------------

    def requested(self, connection: VsockConnection) -> None:
        """See `stack.vsock.acceptor`."""
        target = self._target(connection.local[1])
        if target is None or not self._has_room():
            self.drops.count("no-server" if target is None else "stream-limit")
            connection.close(0)
            return
        attempt: HostConnect | None = None

        def connected(sock: socket.socket) -> None:
            connection.answer()
            self._pump(connection, sock)
            if attempt is not None:
                self._tasks.discard(attempt)

        def failed(error: int) -> None:
            self.drops.count("guest-left" if not error else f"connect-{errno.errorcode.get(error, error)}")
            connection.close(0)
            if attempt is not None:
                self._ended(attempt)

        try:
            attempt = HostConnect(self.port.scheduler, self.hosts, connection, target, connected, failed)
        except OSError as error:
            self.drops.count(f"connect-{errno.errorcode.get(error.errno or 0, error.errno)}")
            connection.close(0)
            return
        if not attempt.done:
            self._tasks.add(attempt)

    def _target(self, port: int) -> HostAddress | None:
        target = self.forwards.get(port)
        if target is None and self.uds_path is not None:
            try:
                target = unix_address(f"{self.uds_path}_{port}")
            except ValueError:  # too long with the port behind it
                return None
        if target is None and self.forward_cid is not None:
            target = vsock_address(self.forward_cid, port)
        return target

    # -- streams ------------------------------------------------------------------------------------------------------

    def _pump(self, connection: VsockConnection, sock: socket.socket, early: bytes = b"") -> None:
        self.streams += 1
        self._tasks.add(Pump(self.hosts, connection, sock, on_end=self._ended, early=early))

    def _ended(self, task: Pump | HostClient | HostConnect) -> None:
        full = not self._has_room()
        self._tasks.discard(task)
        if full:
            for listener in self._listeners:
                listener.resume()
