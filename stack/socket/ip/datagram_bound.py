"""A UDP socket with a port, connected or not (rows UDP-02..15)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.ip.binding import connect_source
from stack.socket.ip.datagram_options import apply
from stack.socket.message import MSG_OOB, MSG_PEEK, MSG_TRUNC, Message
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP, RDNORM, WRNORM

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.ip.address import IpAddress
    from stack.socket.ip.datagram import DatagramSocket
    from stack.udp import UdpEndpoint

_READ: Final = 0
_WRITE: Final = 1


class DatagramBound(Phase):
    """`by_user`: bind was called, not only implied."""

    __slots__ = ("by_user", "deaf", "endpoint", "mute", "socket")

    def __init__(self, socket: DatagramSocket, endpoint: UdpEndpoint, *, by_user: bool) -> None:
        self.socket = socket
        self.endpoint = endpoint
        self.by_user = by_user
        self.deaf = False  #: our receiving side is shut down
        self.mute = False  #: our sending side is shut down
        apply(socket, endpoint)
        endpoint.on_event = socket.pollee.notify

    def bind(self, address: IpAddress) -> None:
        raise NetError(errno.EINVAL)  # row CORE-19

    def connect(self, address: IpAddress) -> None:
        _, remote = connect_source(self.socket, None, address)
        self.endpoint.connect(*remote)

    def send(self, data: Buffer, flags: int, address: IpAddress | None) -> int | Again:
        endpoint = self.endpoint
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)  # row UDP-12
        if endpoint.error:
            raise NetError(endpoint.take_error())
        if self.mute:
            raise NetError(errno.EPIPE)
        if address is not None:
            _, address = connect_source(self.socket, None, address)
        return endpoint.send(data if type(data) is bytes else bytes(data), address)

    def receive(self, size: int, flags: int) -> Message | Again:
        endpoint = self.endpoint
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if endpoint.error:
            raise NetError(endpoint.take_error())
        datagram = endpoint.peek() if flags & MSG_PEEK else endpoint.recv()
        if datagram is None:
            return Message(b"") if self.deaf else AGAIN
        data = datagram.data
        length = len(data)
        if length <= size:
            return Message(data, datagram.src, 0, length)
        return Message(data[:size], datagram.src, MSG_TRUNC, length)

    def shutdown(self, how: int) -> None:
        if self.endpoint.remote is None:
            raise NetError(errno.ENOTCONN)
        self.deaf = self.deaf or how != _WRITE
        self.mute = self.mute or how != _READ

    def local_address(self) -> IpAddress:
        return self.endpoint.local

    def peer_address(self) -> IpAddress:
        if self.endpoint.remote is None:
            raise NetError(errno.ENOTCONN)
        return self.endpoint.remote

    def take_error(self) -> int:
        return self.endpoint.take_error()

    def option_changed(self, level: int, name: int) -> None:
        apply(self.socket, self.endpoint)

    def poll(self) -> int:
        endpoint = self.endpoint
        bits = OUT | WRNORM
        if endpoint.pending or self.deaf:
            bits |= IN | RDNORM
        if self.deaf:
            bits |= RDHUP
            if self.mute:
                bits |= HUP
        if endpoint.error:
            bits |= ERR | IN | RDNORM
        return bits

    def close(self) -> None:
        self.endpoint.on_event = None
        self.endpoint.close()
