"""`Reading`: one receive call on a stream, which may go on over several attempts (MSG_WAITALL, SO_RCVLOWAT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stack.unix.control import Identity, Rights
    from stack.unix.endpoint import Endpoint


class Reading:
    """What was asked for, and what there is so far."""

    __slots__ = ("bound", "copied", "identity", "oob", "parts", "peek", "rights", "size", "source", "target")

    def __init__(self, size: int, *, peek: bool = False, target: int = 1) -> None:
        """`target` is how much, bytes, a call that may wait waits for."""
        self.size = size
        self.target = max(min(target, size), 1)
        self.peek = peek
        self.parts: list[bytes | memoryview] = []
        self.copied = 0
        self.bound = False  #: `identity` is that of the first piece, and pieces of others are for another call
        self.identity: Identity | None = None
        self.rights: Rights | None = None
        self.source: Endpoint | None = None  #: who sent the first piece
        self.oob = False  #: it is the urgent byte

    def data(self) -> bytes:
        parts = self.parts
        if len(parts) == 1:
            only = parts[0]
            return only if type(only) is bytes else bytes(only)
        return b"".join(parts)
