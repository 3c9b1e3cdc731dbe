"""Fast Open at the socket (RFC 7413, tcp(7)): what MSG_FASTOPEN and TCP_FASTOPEN_CONNECT do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, in_progress
from stack.socket.ip.stream_connecting import StreamConnecting
from stack.socket.ip.stream_init import StreamInit
from stack.socket.message import MSG_DONTWAIT, MSG_FASTOPEN
from stack.socket.poll import OUT, WRNORM
from stack.tcp.fastopen import CLIENT

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.base import Timeout
    from stack.socket.ip.address import IpAddress
    from stack.socket.ip.scope import ScopedAddress
    from stack.socket.ip.stream import StreamSocket


class StreamDeferred(StreamConnecting):
    """After a connect that only remembered where to: there is a cookie, so the SYN waits for data (tcp(7))."""

    __slots__ = ()

    def connect(self, address: IpAddress) -> Again:
        raise NetError(errno.EISCONN)

    def connecting(self) -> None:  # type: ignore[override]  # it is as good as connected
        return None

    def send(self, data: Buffer, flags: int, address: IpAddress | None) -> int | Again:  # type: ignore[override]
        return self.launch(data) or AGAIN

    def launch(self, data: Buffer) -> int:
        """Send the SYN, with as much of `data` as goes along; returns how much that is."""
        socket, connection = self.socket, self.connection
        taken = socket.host.netns.tcp.launch(connection, data)
        phase = StreamConnecting(socket, connection, self.bound)
        if self.bound is not None:
            self.bound.release()
        socket.phase = phase
        return taken

    def poll(self) -> int:
        return OUT | WRNORM


def send_with_syn(socket: StreamSocket, data: Buffer, flags: int, address: object, timeout: Timeout) -> int:
    """sendto(MSG_FASTOPEN): connect and send in one. Returns the bytes taken.

    Without waiting: those in the SYN, or BlockingIOError(EINPROGRESS) if there is no cookie yet. Raises OSError: what
    connect raises, EOPNOTSUPP where clients may not use it, EINVAL without an address.
    """
    inner = None if address is None else socket.address_in(address)
    taken = socket.call(_open, socket, data, inner)
    return _rest_of(socket, data, taken, flags, timeout)


def send_deferred(socket: StreamSocket, data: Buffer, flags: int, timeout: Timeout) -> int | None:
    """The first send after a connect that was put off: as `send_with_syn`. None: another thread has sent already."""
    taken = socket.call(_launch, socket, data)
    return None if taken is None else _rest_of(socket, data, taken, flags, timeout)


def _rest_of(socket: StreamSocket, data: Buffer, taken: int, flags: int, timeout: Timeout) -> int:
    """The SYN is on its way with `taken` bytes. Who waits does so for the handshake and for room for the rest."""
    if timeout == 0 or flags & MSG_DONTWAIT:
        if not taken:
            raise in_progress()
        return taken
    socket.block_on(OUT, timeout, _connecting, socket)
    rest = memoryview(data).cast("B")[taken:]
    return taken + (socket.send(rest, flags & ~MSG_FASTOPEN, timeout) if rest else 0)


def _launch(socket: StreamSocket, data: Buffer) -> int | None:
    phase = socket.phase
    return phase.launch(data) if isinstance(phase, StreamDeferred) else None


def _connecting(socket: StreamSocket) -> Again | None:
    return socket.phase.connecting()


def _open(socket: StreamSocket, data: Buffer, address: ScopedAddress | None) -> int:
    if not socket.host.netns.tcp.config.fastopen & CLIENT:
        raise NetError(errno.EOPNOTSUPP)
    phase = socket.phase
    if isinstance(phase, StreamInit):
        if address is None:
            raise NetError(errno.EINVAL)
        phase.connect(address, data)
        assert isinstance(socket.phase, StreamConnecting)
        return socket.phase.connection.unacknowledged
    phase.connect(address)
    raise NetError(errno.EISCONN)
