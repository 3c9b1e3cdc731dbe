"""A listening vsock socket (row VS-05)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.message import MSG_ERRQUEUE
from stack.socket.poll import IN, RDNORM

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.vsock.stream import VsockAddress, VsockSocket
    from stack.vsock import VsockListener
    from stack.vsock.ports import BoundPort


class VsockListen(Phase):
    """Both the listener and this phase hold the port."""

    refuses = True
    __slots__ = ("bound", "cid", "listener", "socket")
    listening: ClassVar[bool] = True

    def __init__(self, socket: VsockSocket, listener: VsockListener, bound: BoundPort, cid: int) -> None:
        self.socket = socket
        self.listener = listener
        self.bound = bound
        self.cid = cid
        listener.on_event = socket.pollee.notify

    def bind(self, address: VsockAddress) -> None:
        raise NetError(errno.EINVAL)

    def connect(self, address: VsockAddress) -> Again:
        raise NetError(errno.EINVAL)

    def listen(self, backlog: int) -> None:
        self.listener.backlog = backlog

    def accept(self) -> tuple[VsockSocket, VsockAddress] | Again:
        connection = self.listener.accept()
        if connection is None:
            return AGAIN
        return self.socket.accepted(connection), connection.remote

    def send(self, data: Buffer, flags: int, address: VsockAddress | None) -> int:
        raise NetError(errno.EOPNOTSUPP if address is not None else errno.ENOTCONN)

    def recv(self, size: int, flags: int) -> Again:
        if flags & MSG_ERRQUEUE:
            return AGAIN
        raise NetError(errno.ENOTCONN)

    def receive(self, size: int, flags: int) -> Again:
        return self.recv(size, flags)

    def shutdown(self, how: int) -> None:
        raise NetError(errno.ENOTCONN)

    def local_address(self) -> VsockAddress:
        return self.cid, self.bound.port

    def poll(self) -> int:
        return IN | RDNORM if self.listener.ready else 0

    def option_changed(self, level: int, name: int) -> None:
        self.listener.set_buffer(self.socket.buffer)

    def close(self) -> None:
        self.listener.close()
        self.bound.release()
