"""Sockets that receive records, one per call, whatever MSG_WAITALL asks for (row CORE-16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.socket.base import Socket
from stack.socket.message import MSG_TRUNC
from stack.socket.poll import IN

if TYPE_CHECKING:
    from stack.socket.base import Again, Timeout


class RecordSocket(Socket):
    """Base of families whose MSG_TRUNC asks for a record's true length."""

    def recv_all(self, size: int, flags: int, timeout: Timeout) -> bytes:
        return self.block_on(IN, timeout, self._one, size, flags)

    def _one(self, size: int, flags: int) -> bytes | Again:
        return self.phase.recv(size, flags)

    def recv_into(self, target: memoryview, flags: int, timeout: Timeout) -> int:
        if not flags & MSG_TRUNC:
            return super().recv_into(target, flags, timeout)
        message = self.receive(len(target), flags, timeout)
        target[: len(message.data)] = message.data
        return message.length
