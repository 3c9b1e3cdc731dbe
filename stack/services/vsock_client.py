"""The host's half of the hybrid vsock protocol: one line, then the stream.

Firecracker defined it, Cloud Hypervisor, vhost-device-vsock and systemd's ``ssh vsock-mux/PATH`` speak it. A program
that connects to the Unix socket says ``CONNECT <port>\\n`` and reads ``OK <number>\\n`` once the guest has accepted;
from there on the socket is the stream. Whatever goes wrong is told by closing it.

What programs get wrong, or do on purpose: the line comes in pieces, or never; it has no end; the end of input comes
first; data follow the line in the same write. The line is bounded in length and time, the data are kept.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from stack.errors import NetError
from stack.scheduler import NS_PER_S, Scheduler
from stack.services.host_sockets import HostSockets
from stack.services.vsock_pump import close_socket
from stack.vsock import VsockConnection, VsockState

#: "CONNECT 4294967295\r\n" has 20 bytes; room for blanks.
LINE_LIMIT: Final = 32
#: For the line to be complete. A person may be typing it.
LINE_TIMEOUT: Final = 30 * NS_PER_S
#: Received at a time: the line, and what was sent right behind it.
_READ: Final = 4096
_LARGEST_PORT: Final = 0xFFFFFFFF
_LINE: Final = re.compile(rb"CONNECT[ \t]+([0-9]{1,10})[ \t]*\r?", re.IGNORECASE)


def parse_connect(line: bytes) -> int:
    """The port of a line without its newline. Raises ValueError."""
    match = _LINE.fullmatch(line)
    if match is None or (port := int(match[1])) > _LARGEST_PORT:
        raise ValueError(f"{line!r} is not CONNECT and a port number")
    return port


class HostClient:
    """A program of the host that wants to reach the guest, up to the point where its stream begins.

    `port` None: it says which in a CONNECT line, and is told OK.

    `connect(port)` begins a connection to the guest, or raises NetError. Ends with `on_connected(client, connection,
    sock, early)`, the socket still registered, or with `on_failed(client, reason)`, everything closed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hosts: HostSockets,
        sock: socket.socket,
        connect: Callable[[int], VsockConnection],
        on_connected: Callable[[HostClient, VsockConnection, socket.socket, bytes], None],
        on_failed: Callable[[HostClient, str], None],
        *,
        port: int | None = None,
    ) -> None:
        self._hosts = hosts
        self._sock = sock
        self._connect = connect
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._received = b""
        self._connection: VsockConnection | None = None
        self.done = False  #: one of the two was called
        self._greets = port is None
        self._timer = scheduler.timer(self._expired)
        hosts.add(sock, self)
        if port is None:
            self._timer.arm_in(LINE_TIMEOUT)
        else:
            self._begin(port)

    def hint(self, *, hung_up: bool) -> None:
        """A program that leaves before it was answered may have said all it wanted: that still reaches the guest."""

    def run(self) -> bool:
        if self.done:
            return False
        if self._connection is None:
            self._read_line()
        else:
            self._answered(self._connection)
        return False

    def abandon(self) -> None:
        """Close everything without a call to anybody. Idempotent."""
        if not self.done:
            self._finish()
            close_socket(self._sock, abrupt=True)

    def _read_line(self) -> None:
        while b"\n" not in self._received:
            if len(self._received) >= LINE_LIMIT:
                self._fail("line-too-long")
                return
            try:
                data = self._sock.recv(_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._fail("line-unfinished")
                return
            self._received += data
        line, _, early = self._received.partition(b"\n")
        self._received = early
        try:
            if len(line) >= LINE_LIMIT:
                raise ValueError
            port = parse_connect(line)
        except ValueError:
            self._fail("line-malformed")
            return
        self._timer.cancel()
        self._begin(port)

    def _begin(self, port: int) -> None:
        try:
            connection = self._connect(port)
        except NetError:
            self._fail("no-guest")
            return
        self._connection = connection
        connection.on_event = self._event

    def _answered(self, connection: VsockConnection) -> None:
        if connection.state is VsockState.CONNECTING:
            return
        if connection.take_error():
            self._fail("refused")
            return
        if self._greets:
            with suppress(OSError):  # it left: the stream will see that as well
                self._sock.send(b"OK %d\n" % connection.local[1])  # a socket never written to has room for a line
        self._finish(keep=True)
        self._on_connected(self, connection, self._sock, self._received)

    def _event(self) -> None:
        self._hosts.mark(self)

    def _expired(self) -> None:
        self._fail("line-timeout")

    def _fail(self, reason: str) -> None:
        if self.done:
            return
        self._finish()
        close_socket(self._sock, abrupt=True)
        self._on_failed(self, reason)

    def _finish(self, *, keep: bool = False) -> None:
        self.done = True
        self._timer.cancel()
        if self._connection is not None:
            self._connection.on_event = None
        if not keep:
            self._hosts.remove(self._sock, self)
            if self._connection is not None:
                self._connection.close(0)
