"""AF_VSOCK stream sockets: the socket object; its phases are `init`, `connecting`, `connected` and `listen`."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from stack.socket.base import Socket
from stack.socket.options import OptionTable
from stack.socket.vsock import AF_VSOCK, SOCK_STREAM
from stack.socket.vsock.init import VsockInit
from stack.socket.vsock.options import SIZES, SO_VM_SOCKETS_BUFFER_SIZE, VSOCK_OPTIONS
from stack.vsock.connection import CONNECT_TIMEOUT

if TYPE_CHECKING:
    from stack.socket.base import Host
    from stack.vsock import VsockConnection

#: (CID, port).
VsockAddress: TypeAlias = tuple[int, int]

_U32: Final = 0xFFFFFFFF


class VsockSocket(Socket):
    """socket(AF_VSOCK, SOCK_STREAM)."""

    family = AF_VSOCK
    options_table: ClassVar[OptionTable] = VSOCK_OPTIONS

    def __init__(self, host: Host, protocol: int = 0) -> None:
        super().__init__(host, SOCK_STREAM, protocol)
        self.connect_timeout = CONNECT_TIMEOUT  #: ns
        self.phase = VsockInit(self)

    def address_in(self, address: object) -> VsockAddress:
        """CPython takes a tuple of two ints, each modulo 2**32."""
        if not isinstance(address, tuple):
            raise TypeError(f"getsockaddrarg: AF_VSOCK address must be tuple, not {type(address).__name__}")
        if len(address) != 2 or not all(isinstance(part, int) for part in address):
            raise TypeError("getsockaddrarg() takes exactly 2 int arguments, CID and port")
        cid, port = address
        return cid & _U32, port & _U32

    def address_out(self, address: VsockAddress) -> object:
        return address

    def get_option(self, level: int, number: int, length: int | None) -> int | bytes:
        if level == AF_VSOCK and (4 if length is None else length) < SIZES.get(number, 0):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().get_option(level, number, length)

    @property
    def buffer(self) -> int:
        """SO_VM_SOCKETS_BUFFER_SIZE, bytes."""
        return int(self.options.value(AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE))

    def accepted(self, connection: VsockConnection) -> VsockSocket:
        """The socket for a connection this listening one has accepted; it inherits the options."""
        from stack.socket.vsock.connected import VsockConnected

        child = VsockSocket(self.host, self.protocol)
        child.options.inherit(self.options)
        child.connect_timeout = self.connect_timeout
        child.receive_timeout, child.send_timeout = self.receive_timeout, self.send_timeout
        child.phase = VsockConnected(child, connection)
        return child
