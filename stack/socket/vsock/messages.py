"""A connected SEQPACKET socket: one send is one message, one recv takes one (rows VS-06, VS-17)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import AGAIN, Again
from stack.socket.message import MSG_EOR, MSG_OOB, MSG_PEEK, MSG_TRUNC, Message
from stack.socket.vsock.connected import VsockConnected

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.vsock.stream import VsockAddress, VsockSocket
    from stack.vsock import SeqpacketConnection


class VsockMessages(VsockConnected):
    """As VsockConnected, with boundaries. What of a message does not fit the reader's buffer is lost (MSG_TRUNC)."""

    __slots__ = ("_messages",)

    def __init__(self, socket: VsockSocket, connection: SeqpacketConnection) -> None:
        super().__init__(socket, connection)
        self._messages = connection

    def send(self, data: Buffer, flags: int, address: VsockAddress | None) -> int | Again:
        connection = self._messages
        if connection.error:
            raise NetError(connection.take_error())
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if address is not None:
            raise NetError(errno.EISCONN)
        # Whole or not at all: raises EMSGSIZE for what can never be sent, EPIPE once nothing can be.
        return len(data) if connection.send_message(data, end_of_record=bool(flags & MSG_EOR)) else AGAIN

    def recv(self, size: int, flags: int) -> bytes | Again:
        message = self.receive(size, flags)
        return AGAIN if message is AGAIN else message.data

    def recv_into(self, target: memoryview, flags: int) -> int | Again:
        data = self.recv(len(target), flags)
        if data is AGAIN:
            return AGAIN
        target[: len(data)] = data
        return len(data)

    def receive(self, size: int, flags: int) -> Message | Again:
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        message = self._messages.receive_message(size, peek=bool(flags & MSG_PEEK))
        if message is None:
            data = self._nothing(size)
            return AGAIN if data is AGAIN else Message(data)
        data, length, end_of_record = message
        out = (MSG_TRUNC if length > len(data) else 0) | (MSG_EOR if end_of_record else 0)
        return Message(data, flags=out, length=length)

    def worth_reading(self) -> bool:
        """A whole message. (Linux looks at bytes and reports the beginning of one, which nobody can read, as well.)"""
        return self._messages.has_data
