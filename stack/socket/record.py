"""Sockets that receive records, one per call, whatever MSG_WAITALL asks for (row CORE-16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.socket.base import Socket
from stack.socket.poll import IN

if TYPE_CHECKING:
    from stack.socket.base import Again, Timeout


class RecordSocket(Socket):
    """Base of families without streams."""

    def recv_all(self, size: int, flags: int, timeout: Timeout) -> bytes:
        return self.block_on(IN, timeout, self._one, size, flags)

    def _one(self, size: int, flags: int) -> bytes | Again:
        return self.phase.recv(size, flags)
