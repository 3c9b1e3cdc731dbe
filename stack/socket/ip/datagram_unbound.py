"""A UDP socket without a port: the first connect or send binds it by itself (row UDP-01)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.ip.binding import any_address, bind_arguments
from stack.socket.ip.datagram_bound import DatagramBound
from stack.socket.ip.options import IP_BIND_ADDRESS_NO_PORT, IPPROTO_IP
from stack.socket.ip.scope import bind_to_link
from stack.socket.message import MSG_ERRQUEUE, Ancillary, Message
from stack.socket.poll import ERR, OUT, WRNORM

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.ip.datagram import DatagramAddress, DatagramSocket


class DatagramUnbound(Phase):
    """`address` is what bind was asked for, if the port is to be chosen later (IP_BIND_ADDRESS_NO_PORT)."""

    __slots__ = ("address", "error", "socket")

    def __init__(self, socket: DatagramSocket) -> None:
        self.socket = socket
        self.address: bytes | None = None
        self.error = 0  #: pending, see `put_error`

    def bind(self, address: DatagramAddress) -> None:
        socket = self.socket
        if self.address is not None:
            raise NetError(errno.EINVAL)  # row CORE-19
        bind_to_link(socket, address[0], address[2])
        if not address[1] and any(address[0]) and socket.options.value(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT):
            # Claimed and given back: an address that cannot be had is told now.
            socket.host.netns.udp.ports.bind(address[0], 0, **bind_arguments(socket, address[:2])).release()
            self.address = address[0]
            return
        self._bind(address)

    def _bind(self, address: DatagramAddress) -> DatagramBound:
        socket = self.socket
        endpoint = socket.host.netns.udp.bind(*address[:2], **bind_arguments(socket, address[:2]))
        endpoint.error = self.error
        phase = socket.phase = DatagramBound(socket, endpoint)
        return phase

    def _bind_somewhere(self) -> DatagramBound:
        try:
            return self._bind((self.address or any_address(self.socket), 0, 0, 0))
        except NetError as error:
            raise NetError(errno.EAGAIN) from error  # as Linux says it where nobody called bind()

    def connect(self, address: DatagramAddress) -> None:
        phase = self._bind_somewhere()
        try:
            phase.connect(address)
        except NetError:
            phase.endpoint.groups = None  # they stay
            phase.close()
            self.socket.phase = self
            raise

    def send(self, data: Buffer, flags: int, address: DatagramAddress | None) -> int | Again:
        # As on Linux, a port is taken even if the send then fails.
        return self._bind_somewhere().send(data, flags, address)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: DatagramAddress | None
    ) -> int | Again:
        return self._bind_somewhere().send_message(data, ancillary, flags, address)

    def receive(self, size: int, flags: int) -> Message | Again:
        if self.error and not flags & MSG_ERRQUEUE:
            raise NetError(self.take_error())
        return AGAIN if flags & MSG_ERRQUEUE else self.socket.nothing(flags)

    def shutdown(self, how: int) -> None:
        self.socket.shut(how)  # as on Linux, it is done and an error all the same
        raise NetError(errno.ENOTCONN)

    def local_address(self) -> tuple[bytes, int]:
        return self.address or any_address(self.socket), 0

    def take_error(self) -> int:
        error, self.error = self.error, 0
        return error

    def put_error(self, error: int) -> None:
        self.error = error

    def poll(self) -> int:
        return OUT | WRNORM | self.socket.shut_bits() | (ERR if self.error else 0)

    def close(self) -> None:
        if self.socket.groups is not None:
            self.socket.groups.close()
