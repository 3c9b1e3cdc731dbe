"""Receiving records: what seqpacket and datagram sockets have in common (rows UNX-11, UDG-05)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from stack.socket.message import MSG_DONTWAIT, MSG_TRUNC, Message
from stack.socket.phase import Timeout
from stack.socket.poll import IN
from stack.socket.unix.socket import UnixSocket
from stack.unix.records import RecordEndpoint

if TYPE_CHECKING:
    from stack.socket.unix.phase import UnixPhase
    from stack.unix.records import Record

R = TypeVar("R", bound=RecordEndpoint)


def received(phase: UnixPhase[Any], record: Record, size: int, flags: int, room: int) -> Message:
    """The message a receive call answers with: cut to `size` bytes, its true length beside."""
    data, skip = record.data, record.skip
    length = len(data) - skip
    if type(data) is not bytes or skip or length > size:
        data = bytes(data[skip : skip + size])
    message = phase.message(data, record.source, record.identity, record.rights, flags, room)
    message.length = length
    if length > size:
        message.flags |= MSG_TRUNC
    return message


class RecordSocket(UnixSocket[R]):
    """A record is all there is: nothing waits for more."""

    def recv(self, size: int, flags: int, timeout: Timeout) -> bytes:
        if flags & MSG_DONTWAIT and timeout is None:
            timeout = 0
        return self.block_on(IN, timeout, self._recv, size, flags)

    def input_queue(self) -> int:
        return self.endpoint.unread()
