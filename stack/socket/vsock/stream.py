"""AF_VSOCK sockets: the socket object; its phases are `init`, `connecting`, `connected` or `messages`, and `listen`."""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.socket.base import AGAIN, CLOSED, Socket, Timeout
from stack.socket.message import MSG_WAITALL
from stack.socket.options import SOL_SOCKET, OptionTable
from stack.socket.options_socket import SO_LINGER
from stack.socket.poll import IN, Pollee
from stack.socket.vsock import AF_VSOCK, SOCK_SEQPACKET, SOCK_STREAM
from stack.socket.vsock.connected import VsockConnected
from stack.socket.vsock.init import VsockInit
from stack.socket.vsock.messages import VsockMessages
from stack.socket.vsock.options import SIZES, SO_VM_SOCKETS_BUFFER_SIZE, VSOCK_OPTIONS
from stack.vsock import SeqpacketConnection
from stack.vsock.connection import CONNECT_TIMEOUT
from stack.wire.vsock import TYPE_SEQPACKET, TYPE_STREAM

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.base import Host
    from stack.socket.mirror import End
    from stack.vsock import VsockConnection

#: (CID, port).
VsockAddress: TypeAlias = tuple[int, int]

_U32: Final = 0xFFFFFFFF
_U64: Final = struct.Struct("@Q")
_U64_MAX: Final = 2**64 - 1
_LINGER_MAX: Final = 1 << 31  # s; what a clock can count


class VsockSocket(Socket):
    """socket(AF_VSOCK, SOCK_STREAM or SOCK_SEQPACKET)."""

    family = AF_VSOCK
    options_table: ClassVar[OptionTable] = VSOCK_OPTIONS

    def __init__(self, host: Host, protocol: int = 0, kind: int = SOCK_STREAM) -> None:
        super().__init__(host, kind, protocol)
        self.wire_type = TYPE_SEQPACKET if kind == SOCK_SEQPACKET else TYPE_STREAM
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
        if level != AF_VSOCK:
            return super().get_option(level, number, length)
        if (_U64.size if length is None else length) < SIZES.get(number, 0):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        value = super().get_option(level, number, length or _U64.size)
        return int.from_bytes(value, sys.byteorder) if length is None and isinstance(value, bytes) else value

    def set_option(self, level: int, number: int, value: int | Buffer) -> None:
        """CPython hands an int on to AF_VSOCK as 64 bits."""
        if isinstance(value, int):
            value = _U64.pack(value & _U64_MAX)
        super().set_option(level, number, value)

    @property
    def buffer(self) -> int:
        """SO_VM_SOCKETS_BUFFER_SIZE, bytes."""
        return int(self.options.value(AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE))

    def accepted(self, connection: VsockConnection) -> VsockSocket:
        """The socket for a connection this listening one has accepted; it inherits the options."""
        child = VsockSocket(self.host, self.protocol, self.type)
        child.options.inherit(self.options)
        child.connect_timeout = self.connect_timeout
        child.receive_timeout, child.send_timeout = self.receive_timeout, self.send_timeout
        child.phase = child.connected(connection)
        return child

    def connected(self, connection: VsockConnection) -> VsockConnected:
        """The phase for this connection."""
        if isinstance(connection, SeqpacketConnection):
            return VsockMessages(self, connection)
        return VsockConnected(self, connection)

    def input_queue(self) -> int:
        """SIOCINQ. Raises NetError(EOPNOTSUPP) while there is no transport."""
        return self._carried().readable

    def output_queue(self) -> int:
        """SIOCOUTQ: bytes that have not reached the guest's memory. Raises NetError(EOPNOTSUPP) as `input_queue`."""
        return self._carried().unsent_bytes

    def _carried(self) -> VsockConnection:
        if not isinstance(self.phase, VsockConnected):
            raise NetError(errno.EOPNOTSUPP)
        return self.phase.connection

    def recv_all(self, size: int, flags: int, timeout: Timeout) -> bytes:
        """MSG_WAITALL: a message is all there is."""
        if self.type == SOCK_SEQPACKET:
            return self.block_on(IN, timeout, self._recv, size, flags & ~MSG_WAITALL)
        return super().recv_all(size, flags, timeout)

    def close(self, end: End | None = None) -> None:
        """As `Socket.close`; with SO_LINGER (Linux 6.16) it then waits until everything written is the guest's."""
        phase = self.phase
        on, seconds = self.options.value(SOL_SOCKET, SO_LINGER)
        super().close(end)
        if isinstance(phase, VsockConnected) and self.phase is CLOSED and on and seconds > 0:
            self._linger(phase.connection, min(seconds, _LINGER_MAX) * NS_PER_S)

    def _linger(self, connection: VsockConnection, timeout: int) -> None:
        pollee = Pollee(lambda: 0 if connection.unsent else IN, self.waiting.marks)

        def watch() -> None:
            connection.on_event = pollee.notify
            connection.tell_when_sent()

        with suppress(NetError):  # a Network that closes meanwhile ends the wait too
            self.waiting.call(watch, ())
            self.waiting.block_on(pollee, IN, timeout, lambda: AGAIN if connection.unsent else None, ())
