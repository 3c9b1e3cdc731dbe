"""One vhost-user connection: bytes and descriptors off a Unix stream socket, cut into whole messages.

Theory of operation
-------------------
The socket is non-blocking and a stream, so a header or a payload may come in pieces and the peer may fall silent in
the middle; what was read so far waits here and the control thread goes on to others. Descriptors ride on the first
byte of a header (QEMU sends header, payload and descriptors in one sendmsg); reads never run past the message at hand,
because the kernel hands over descriptors with whatever bytes are read together with them.

A descriptor is ours the moment recvmsg returns. From then on exactly one of three owns it: this object (message not
complete yet), the `Message` (until the session takes it off the list), or the session. `close` and every error path
close what this object owns; whoever got a message closes what is left in its `fds`.
"""

from __future__ import annotations

import array
import os
import socket
from typing import NamedTuple

from . import syscalls
from .message import HEADER, MAX_PAYLOAD, MAX_TABLE_REGIONS, ProtocolError, parse_header, request_name


class Message(NamedTuple):
    """One whole request. The receiver owns `fds` and closes what it does not keep."""

    request: int
    flags: int
    payload: bytes
    fds: list[int]

    def close(self) -> None:
        """Close the descriptors nobody took."""
        close_all(self.fds)


class Disconnected(Exception):  # noqa: N818 - the orderly end of a connection, not an error
    """The peer is gone; the text says so, and `truncated` that it was in the middle of something."""

    def __init__(self, reason: str, *, truncated: bool = False) -> None:
        super().__init__(reason)
        self.truncated = truncated


def close_all(fds: list[int]) -> None:
    """Close and forget every descriptor of the list."""
    while fds:
        os.close(fds.pop())


class Connection:
    """Framing for one connected `AF_UNIX` stream socket, which it owns from here on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._receiver = syscalls.Receiver(MAX_PAYLOAD)
        self._header = bytearray()
        self._payload = bytearray()
        self._expected = 0  # payload size of the header at hand
        self._request = self._flags = 0
        self._fds: list[int] = []
        self.closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def peer(self) -> tuple[int, int, int]:
        """(pid, uid, gid) of the process at the other end, as the kernel noted them when it connected."""
        data = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, gid = array.array("i", data)
        return pid, uid, gid

    def receive(self) -> Message | None:
        """The next whole message, or None if it has not all arrived. Never waits.

        Raises `ProtocolError` (broken framing) or `Disconnected`; after either the connection is good for `close` only.
        """
        while len(self._header) < HEADER.size:
            data = self._read(HEADER.size - len(self._header))
            if data is None:
                return None
            if not self._header and not data:
                raise Disconnected("the front-end closed the connection")
            if not data:
                raise Disconnected("the front-end closed the connection inside a message header", truncated=True)
            self._header += data
            if len(self._header) == HEADER.size:
                self._request, self._flags, self._expected = parse_header(self._header)
        while len(self._payload) < self._expected:
            had = len(self._fds)
            data = self._read(self._expected - len(self._payload))
            if data is None:
                return None
            name = request_name(self._request)
            if not data:
                raise Disconnected(f"the front-end closed the connection inside the payload of {name}", truncated=True)
            if len(self._fds) != had:
                raise ProtocolError(f"{name}: descriptors came with the payload, not with the header")
            self._payload += data
        message = Message(self._request, self._flags, bytes(self._payload), self._fds)
        self._header.clear()
        self._payload.clear()
        self._fds = []
        return message

    def _read(self, size: int) -> bytes | None:
        """Up to `size` bytes; None when there are none yet. Descriptors are collected on the way."""
        try:
            data, fds, truncated = self._receiver.receive(self._fd, size)
        except BlockingIOError:
            return None
        except OSError as error:  # ECONNRESET: it died with our replies unread
            raise Disconnected(f"the connection failed: {error.strerror}") from error
        if fds:
            self._fds += fds
            if len(self._fds) > MAX_TABLE_REGIONS:  # now, not when the message is whole: a slow one must not hoard
                raise ProtocolError(
                    f"{len(self._fds)} descriptors with one message, at most {MAX_TABLE_REGIONS} allowed"
                )
        if truncated:
            raise ProtocolError("descriptors were lost on receipt: this process is at its descriptor limit (ulimit -n)")
        return data

    def send(self, data: bytes) -> None:
        """Send one reply whole. Raises `ProtocolError` if the peer does not read its replies, or `Disconnected`."""
        try:
            sent = syscalls.send(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Disconnected(f"the connection failed: {error.strerror}") from error
        if sent != len(data):
            # Replies are tens of bytes and a front-end waits for each; a full socket buffer means it never reads.
            raise ProtocolError("the front-end does not read its replies")

    def close(self) -> None:
        """Idempotent. Closes the socket and every descriptor of a message that never completed."""
        if not self.closed:
            self.closed = True
            close_all(self._fds)
            self._sock.close()
