"""A TCP socket whose connect is under way (rows TCP-05..07)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.ip.stream_connected import StreamConnected
from stack.socket.ip.stream_init import StreamInit
from stack.socket.message import Ancillary, Message
from stack.tcp import TcpState

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort
    from stack.link.device import Buffer
    from stack.socket.ip.address import IpAddress
    from stack.socket.ip.stream import StreamSocket
    from stack.tcp import Connection


class StreamConnecting(Phase):
    """Ends by itself, in `_event`: connected, or back to init with an error. `bound`: what the user had bound."""

    __slots__ = ("bound", "connection", "socket")

    def __init__(self, socket: StreamSocket, connection: Connection, bound: BoundPort | None) -> None:
        self.socket = socket
        self.connection = connection
        self.bound = bound.retain() if bound is not None else None
        connection.on_event = self._event

    def _event(self) -> None:
        connection, socket = self.connection, self.socket
        if socket.phase is not self:
            return
        if connection.connected:
            if self.bound is not None:
                self.bound.release()
            socket.phase = StreamConnected(socket, connection, announced=False)
        else:
            if connection.state is not TcpState.CLOSED:
                return
            error = connection.take_error() or errno.ECONNABORTED
            connection.on_event = None
            connection.close()
            socket.phase = StreamInit(socket, self.bound, refused=True, error=error)
        socket.pollee.notify()

    def connect(self, address: IpAddress) -> Again:
        raise NetError(errno.EALREADY)

    def connecting(self) -> Again:
        return AGAIN

    def listen(self, backlog: int) -> None:
        raise NetError(errno.EINVAL)

    def accept(self) -> Again:
        raise NetError(errno.EINVAL)

    def bind(self, address: IpAddress) -> None:
        raise NetError(errno.EINVAL)

    def send(self, data: Buffer, flags: int, address: IpAddress | None) -> Again:
        return AGAIN

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: IpAddress | None
    ) -> int | Again:
        return self.send(data, flags, address)  # they are looked at when there is somewhere to send to

    def recv(self, size: int, flags: int) -> Again:
        return AGAIN

    def receive(self, size: int, flags: int) -> Message | Again:
        return AGAIN

    def shutdown(self, how: int) -> None:
        """Gives the attempt up, as Linux does."""
        self.connection.on_event = None
        self.connection.abort()
        self.socket.phase = StreamInit(self.socket, self.bound)

    def local_address(self) -> IpAddress:
        return self.connection.local

    def option_changed(self, level: int, name: int) -> None:
        self.socket.apply_options(self.connection)

    def close(self) -> None:
        self.connection.on_event = None
        self.connection.abort()
        if self.bound is not None:
            self.bound.release()
