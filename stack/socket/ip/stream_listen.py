"""A listening TCP socket (rows TCP-13..17)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.ip.stream_options import fill, heritage, reuse
from stack.socket.message import MSG_ERRQUEUE
from stack.socket.poll import IN, RDNORM

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort
    from stack.link.device import Buffer
    from stack.socket.ip.address import IpAddress
    from stack.socket.ip.stream import StreamSocket
    from stack.tcp import Listener

SOMAXCONN: Final = 4096  # Linux net.core.somaxconn

_WRITE: Final = 1


class StreamListen(Phase):
    """The listener has taken the port over; `bound` is a second hold on it for the time after shutdown(SHUT_RD)."""

    refuses = True
    __slots__ = ("bound", "listener", "socket")
    listening = True

    def __init__(self, socket: StreamSocket, listener: Listener, bound: BoundPort) -> None:
        self.socket = socket
        self.listener = listener
        self.bound = bound.retain()
        listener.options.told = heritage(socket)
        listener.on_event = socket.pollee.notify

    @staticmethod
    def clamp(backlog: int) -> int:
        """A negative backlog means as much as allowed (row TCP-13)."""
        return SOMAXCONN if backlog < 0 else min(backlog, SOMAXCONN)

    def bind(self, address: IpAddress) -> None:
        raise NetError(errno.EINVAL)

    def connect(self, address: IpAddress) -> Again:
        raise NetError(errno.EISCONN)

    def listen(self, backlog: int) -> None:
        self.listener.backlog = self.clamp(backlog)

    def accept(self) -> tuple[StreamSocket, IpAddress] | Again:
        connection = self.listener.accept()
        if connection is None:
            return AGAIN
        return self.socket.accepted(connection), connection.remote

    def send(self, data: Buffer, flags: int, address: IpAddress | None) -> int:
        raise NetError(errno.EPIPE)

    def recv(self, size: int, flags: int) -> Again:
        if flags & MSG_ERRQUEUE:
            return AGAIN
        raise NetError(errno.ENOTCONN)

    def receive(self, size: int, flags: int) -> Again:
        return self.recv(size, flags)

    def shutdown(self, how: int) -> None:
        """SHUT_RD ends listening and keeps a port the user chose (row TCP-18); SHUT_WR alone does nothing."""
        from stack.socket.ip.stream_init import StreamInit

        if how == _WRITE:
            return
        socket, bound = self.socket, self.bound
        self.listener.on_event = None
        self.listener.close()
        if socket.chose_port:
            socket.phase = StreamInit(socket, bound)
        else:
            bound.release()
            socket.phase = StreamInit(socket, before=self.local_address())

    def local_address(self) -> IpAddress:
        return self.bound.addr, self.bound.port

    def poll(self) -> int:
        return IN | RDNORM if self.listener.ready else 0

    def option_changed(self, level: int, name: int) -> None:
        fill(self.listener.options, self.socket).told = heritage(self.socket)
        reuse(self.socket, self.bound)

    def close(self) -> None:
        self.listener.on_event = None
        self.listener.close()
        self.bound.release()
