"""Bytes in, bytes out, in order: the buffer of each direction of a vsock connection.

Large pieces are kept as they came (views of what the transport received, `bytes` that a user sent) and copied once,
when they leave. Small ones are copied together into 64 KiB pieces as they arrive: a peer sending single bytes costs the
memory of its bytes, not of an object for each, and a few bytes never pin a large receive buffer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from itertools import islice
from typing import Final

from stack.vsock.transport import Buffer

COALESCE: Final = 4096  # bytes; shorter pieces are copied together. Linux's receive buffers hold about as much
PIECE: Final = 64 << 10  # bytes; copied-together pieces grow to this


class ByteQueue:
    """A queue of bytes. `len()` is how many there are."""

    __slots__ = ("_head", "_length", "_pieces")

    def __init__(self) -> None:
        self._pieces: deque[Buffer] = deque()
        self._head = 0  # bytes of the first piece that are gone already
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, data: Buffer) -> None:
        """Add `data`, which must not change any more if it is COALESCE bytes or longer."""
        length = len(data)
        if not length:
            return
        self._length += length
        pieces = self._pieces
        if length >= COALESCE:
            pieces.append(data)
            return
        if pieces:
            last = pieces[-1]
            # Only pieces made here are bytearrays, and nobody holds a view of one that is in the queue.
            if type(last) is bytearray and len(last) + length <= PIECE:
                last += data
                return
        pieces.append(bytearray(data))

    def read(self, limit: int) -> bytes:
        """Take up to `limit` bytes."""
        count = min(limit, self._length)
        if not count:
            return b""
        first = self._pieces[0]
        if not self._head and len(first) == count:
            self._length -= count
            self._pieces.popleft()
            return first if type(first) is bytes else bytes(first)
        result = self.peek(count)
        self.discard(count)
        return result

    def read_into(self, target: memoryview) -> int:
        """Take what fits `target`, a writable "B" view; returns how many bytes were placed."""
        count = min(len(target), self._length)
        placed = 0
        while placed < count:
            piece = self.take(count - placed)
            target[placed : placed + len(piece)] = piece
            placed += len(piece)
        return count

    def peek(self, limit: int, offset: int = 0) -> bytes:
        """Up to `limit` bytes from `offset` on, which stay."""
        missing = min(limit, self._length - offset)
        skip = self._head + max(offset, 0)
        parts: list[bytes] = []
        for piece in self._pieces:
            if missing <= 0:
                break
            if skip >= len(piece):
                skip -= len(piece)
                continue
            part = bytes(memoryview(piece)[skip : skip + missing])
            parts.append(part)
            missing -= len(part)
            skip = 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def views(self, pieces: int) -> list[Buffer]:
        """The first `pieces` pieces at most, uncopied, which stay. Let go of them before the next `append`."""
        views: list[Buffer] = list(islice(self._pieces, pieces))
        if self._head and views:
            views[0] = memoryview(views[0])[self._head :]
        return views

    def take(self, limit: int) -> Buffer:
        """Take up to `limit` bytes that lie together, without copying; b"" only if the queue is empty."""
        if not self._pieces:
            return b""
        first, head = self._pieces[0], self._head
        available = len(first) - head
        count = min(limit, available)
        self._length -= count
        if count == available:
            self._pieces.popleft()
            self._head = 0
            return memoryview(first)[head:] if head else first
        view = memoryview(first)
        self._pieces[0] = view  # no bytearray any more: a view of it is out, so it must not grow
        self._head = head + count
        return view[head : head + count]

    def discard(self, limit: int) -> int:
        """Drop up to `limit` bytes; returns how many."""
        count = missing = min(limit, self._length)
        pieces = self._pieces
        while missing:
            available = len(pieces[0]) - self._head
            if available > missing:
                self._head += missing
                break
            pieces.popleft()
            self._head = 0
            missing -= available
        self._length -= count
        return count

    def compact(self, slabs: Container[int]) -> None:
        """Copy out every view of something more than twice its size: what waits must not keep the rest.

        Only of the oldest pieces, as far as they are of `slabs` (ids of what was viewed).
        """
        pieces = self._pieces
        for place in range(len(pieces)):
            piece = pieces[place]
            if type(piece) is not memoryview:
                continue
            if id(piece.obj) not in slabs:
                break
            if 2 * len(piece) < len(memoryview(piece.obj)):
                head = 0 if place else self._head
                pieces[place] = bytes(piece[head:])
                self._head -= head

    def clear(self) -> None:
        self._pieces.clear()
        self._head = self._length = 0
