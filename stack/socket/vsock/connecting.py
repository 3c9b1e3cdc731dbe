"""A vsock socket whose connect is under way (rows VS-04, VS-13)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.message import Message
from stack.socket.vsock.init import VsockInit

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.vsock.stream import VsockAddress, VsockSocket
    from stack.vsock import VsockConnection
    from stack.vsock.ports import BoundPort


class VsockConnecting(Phase):
    """Ends by itself, in `_event`: connected, or back to init with an error. `bound`: what the user had bound."""

    __slots__ = ("bound", "cid", "connection", "socket")

    def __init__(self, socket: VsockSocket, connection: VsockConnection, bound: BoundPort | None, cid: int) -> None:
        self.socket = socket
        self.connection = connection
        self.bound = bound
        self.cid = cid
        connection.on_event = self._event

    def _event(self) -> None:
        connection, socket = self.connection, self.socket
        if socket.phase is not self:
            return
        if connection.error:
            connection.on_event = None
            socket.phase = VsockInit(socket, self.bound, self.cid, error=connection.take_error())
        elif connection.connected:
            if self.bound is not None:
                self.bound.release()  # the connection holds it
            socket.phase = socket.connected(connection)
        socket.pollee.notify()

    def bind(self, address: VsockAddress) -> None:
        raise NetError(errno.EINVAL)

    def connect(self, address: VsockAddress) -> Again:
        raise NetError(errno.EALREADY)

    def connecting(self) -> Again:
        return AGAIN

    def listen(self, backlog: int) -> None:
        raise NetError(errno.EINVAL)

    def accept(self) -> Again:
        raise NetError(errno.EINVAL)

    def send(self, data: Buffer, flags: int, address: VsockAddress | None) -> int:
        raise NetError(errno.EOPNOTSUPP if address is not None else errno.ENOTCONN)

    def recv(self, size: int, flags: int) -> bytes:
        if not size:
            return b""
        raise NetError(errno.ENOTCONN)

    def receive(self, size: int, flags: int) -> Message:
        return Message(self.recv(size, flags))

    def shutdown(self, how: int) -> None:
        """Linux marks the socket and lets the attempt run on; nothing can be sent or received yet either way."""
        raise NetError(errno.ENOTCONN)

    def local_address(self) -> VsockAddress:
        return self.connection.local

    def poll(self) -> int:
        return 0

    def close(self) -> None:
        self.connection.close()
        if self.bound is not None:
            self.bound.release()
