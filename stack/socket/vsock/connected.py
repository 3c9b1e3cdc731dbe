"""A connected vsock socket, until it is closed (rows VS-06, VS-07, VS-13, VS-17)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.message import MSG_OOB, MSG_PEEK, MSG_TRUNC, Message
from stack.socket.options import SOL_SOCKET
from stack.socket.options_socket import SO_RCVLOWAT
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP, RDNORM, WRNORM
from stack.socket.vsock.options import AF_VSOCK
from stack.vsock import VsockState

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.vsock.stream import VsockAddress, VsockSocket
    from stack.vsock import VsockConnection

_READ: Final = 0
_WRITE: Final = 1


class VsockConnected(Phase):
    """Also after the peer's end: what was received stays readable."""

    final = True
    __slots__ = ("connection", "finished", "socket")

    def __init__(self, socket: VsockSocket, connection: VsockConnection) -> None:
        self.socket = socket
        self.connection = connection
        self.finished = 0  #: bit 0: we have shut receiving down; bit 1: sending
        connection.wanted = socket.options.value(SOL_SOCKET, SO_RCVLOWAT)
        connection.on_event = socket.pollee.notify

    def bind(self, address: VsockAddress) -> None:
        raise NetError(errno.EINVAL)

    def connect(self, address: VsockAddress) -> Again:
        raise NetError(errno.EISCONN)

    def listen(self, backlog: int) -> None:
        raise NetError(errno.EINVAL)

    def accept(self) -> Again:
        raise NetError(errno.EINVAL)

    def send(self, data: Buffer, flags: int, address: VsockAddress | None) -> int | Again:
        connection = self.connection
        if connection.error:
            raise NetError(connection.take_error())
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if address is not None:
            raise NetError(errno.EISCONN)
        taken = connection.write(data)  # raises EPIPE once nothing can be sent
        return taken if taken or not data else AGAIN

    def recv(self, size: int, flags: int) -> bytes | Again:
        connection = self.connection
        if flags & (MSG_OOB | MSG_PEEK | MSG_TRUNC):
            return self._special(size, flags)
        if connection.readable:
            return connection.read(size)
        return self._nothing(size)

    def recv_into(self, target: memoryview, flags: int) -> int | Again:
        connection = self.connection
        if connection.readable:
            return connection.read_into(target)
        return AGAIN if self._nothing(len(target)) is AGAIN else 0

    def receive(self, size: int, flags: int) -> Message | Again:
        data = self.recv(size, flags)
        return AGAIN if data is AGAIN else Message(data, length=len(data))

    def _special(self, size: int, flags: int) -> bytes | Again:
        connection = self.connection
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if not connection.readable:
            return self._nothing(size)
        if flags & MSG_PEEK:
            return connection.peek(size)
        return connection.read(size)  # MSG_TRUNC means nothing to a vsock stream

    def _nothing(self, size: int) -> bytes | Again:
        """No data: an error, the end, or not yet."""
        connection = self.connection
        if connection.error:
            raise NetError(connection.take_error())
        return b"" if connection.eof or not size else AGAIN

    def shutdown(self, how: int) -> None:
        if how != _WRITE:
            self.finished |= 1
            self.connection.shutdown_read()
        if how != _READ:
            self.finished |= 2
            self.connection.shutdown_write()

    def local_address(self) -> VsockAddress:
        return self.connection.local

    def peer_address(self) -> VsockAddress:
        return self.connection.remote

    def take_error(self) -> int:
        return self.connection.take_error()

    def poll(self) -> int:
        connection = self.connection
        closed = connection.state is VsockState.CLOSED
        eof = connection.eof
        bits = 0
        if eof:
            bits = IN | RDNORM | RDHUP
        elif self.worth_reading():
            bits = IN | RDNORM
        if connection.writable or (not self.finished & 2 and not connection.can_write):
            bits |= OUT | WRNORM  # also to learn of EPIPE
        if closed or self.finished == 3 or (self.finished & 2 and eof):
            bits |= HUP
        if connection.error:
            bits |= ERR
        return bits

    def worth_reading(self) -> bool:
        """There is as much as a reader waits for."""
        readable = self.connection.readable
        return bool(readable) and readable >= self.socket.options.value(SOL_SOCKET, SO_RCVLOWAT)

    def option_changed(self, level: int, name: int) -> None:
        if level == AF_VSOCK:
            if self.connection.rcvbuf != self.socket.buffer:
                self.connection.set_buffer(self.socket.buffer)
        elif (level, name) == (SOL_SOCKET, SO_RCVLOWAT):
            self.connection.set_wanted(self.socket.options.value(SOL_SOCKET, SO_RCVLOWAT))

    def close(self) -> None:
        self.connection.close()
