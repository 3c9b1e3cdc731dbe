"""A UDP socket without a port: the first connect or send binds it by itself (row UDP-01)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.ip.binding import any_address, bind_arguments
from stack.socket.ip.datagram_bound import DatagramBound
from stack.socket.message import Message
from stack.socket.poll import OUT, WRNORM

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.ip.address import IpAddress
    from stack.socket.ip.datagram import DatagramSocket


class DatagramUnbound(Phase):
    __slots__ = ("socket",)

    def __init__(self, socket: DatagramSocket) -> None:
        self.socket = socket

    def bind(self, address: IpAddress) -> None:
        self._bind(address, by_user=True)

    def _bind(self, address: IpAddress, *, by_user: bool) -> DatagramBound:
        socket = self.socket
        endpoint = socket.host.netns.udp.bind(*address, **bind_arguments(socket, address))
        phase = socket.phase = DatagramBound(socket, endpoint, by_user=by_user)
        return phase

    def connect(self, address: IpAddress) -> None:
        phase = self._bind((any_address(self.socket), 0), by_user=False)
        try:
            phase.connect(address)
        except NetError:
            phase.close()
            self.socket.phase = self
            raise

    def send(self, data: Buffer, flags: int, address: IpAddress | None) -> int | Again:
        # As on Linux, a port is taken even if the send then fails.
        return self._bind((any_address(self.socket), 0), by_user=False).send(data, flags, address)

    def receive(self, size: int, flags: int) -> Message | Again:
        return AGAIN

    def shutdown(self, how: int) -> None:
        raise NetError(errno.ENOTCONN)

    def local_address(self) -> IpAddress:
        return any_address(self.socket), 0

    def poll(self) -> int:
        return OUT | WRNORM
