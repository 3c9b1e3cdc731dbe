"""The byte queues of a connection: what waits to be sent or acknowledged, what waits to be read.

Theory of operation
-------------------
Neither queue copies payload that it can share.

`SendQueue` keeps large `bytes` objects (and views of such) as they are: immutable, so they may be referred to until
the peer has acknowledged them. Anything else is copied once, into an arena shared by small writes, so that a thousand
20-byte writes become one part of one frame. It is addressed by sequence number, because a retransmission may want
any part of it.

`ReceiveQueue` keeps views of the buffers the device filled. A view keeps its whole buffer (a slab of up to 512 KiB)
alive, therefore the queue accounts for what it pins, not for what it holds: small payloads are copied out at once, and
when the bytes pinned exceed a limit everything is copied together (`collapse`), after which it pins what it holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter, is_, itemgetter
from typing import Final

from stack.link.device import Buffer

#: Writes up to this size are copied into an arena; larger ones of immutable bytes are kept. A part costs the device
#: about as much as copying 4 KiB.
KEEP_ABOVE: Final = 4096
ARENA_FIRST: Final = 4096  # bytes; doubles up to ARENA_LAST while data is waiting
ARENA_LAST: Final = 65536
#: Received payload up to this size is copied out, so that 40 bytes never pin 64 KiB.
COPY_BREAK: Final = 2048
#: What a chunk costs beside its bytes: the object, its view and its places in the queue.
CHUNK_OVERHEAD: Final = 256
_BUFFER: Final = attrgetter("obj")


def immutable_view(data: Buffer) -> memoryview | None:
    """A view of `data` if it can never change (exact `bytes`, or a view of one), else None."""
    if type(data) is bytes:
        return memoryview(data)
    if type(data) is memoryview and type(data.obj) is bytes and data.contiguous:
        return data if data.format == "B" and data.ndim == 1 else data.cast("B")
    return None


class SendQueue:
    """The stream from SND.UNA on: bytes [start, end) by endless sequence number."""

    __slots__ = ("_arena", "_arena_used", "_chunks", "_cursor", "_head", "_starts", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start  #: the oldest byte still held
        self.end = start  #: the number the next byte written will get
        self._chunks: list[bytes | memoryview | None] = []
        self._starts: list[int] = []  # sequence number of each chunk's first byte
        self._head = 0  # chunks before it are released
        self._cursor = 0  # where slice() looked last
        self._arena: memoryview | None = None  # the last chunk is its end, if not None
        self._arena_used = 0

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: Buffer, room: int) -> int:
        """Take up to `room` bytes of `data`; returns how many."""
        if type(data) is bytes:
            size = len(data)
            if 0 < size <= KEEP_ABOVE and size <= room and not self._chunks:
                # Usually it stays alone: a question, an answer.
                self.append_lone(data, size)
                return size
        else:
            size = memoryview(data).nbytes
        taken = min(size, room)
        if taken <= 0:
            return 0
        if taken <= KEEP_ABOVE:
            self._append_small(memoryview(data).cast("B")[:taken])
            return taken
        view = immutable_view(data)
        if view is None:
            view = memoryview(bytes(memoryview(data).cast("B")[:taken]))
        elif taken != size:
            view = view[:taken]
        self._starts.append(self.end)
        self._chunks.append(view)
        self._arena = None
        self.end += taken
        return taken

    def append_lone(self, data: bytes, size: int) -> None:
        """As `append`, if nothing is held, `data` has 1 to KEEP_ABOVE bytes and there is room."""
        self._starts.append(self.end)
        self._chunks.append(data)
        self.end += size

    def _append_small(self, data: memoryview) -> None:
        size = len(data)
        arena = self._arena
        used = self._arena_used
        if arena is not None and used + size <= len(arena):
            arena[used : used + size] = data
            self._arena_used = used + size
            # Views handed out earlier keep their length; the chunk itself grows.
            self._chunks[-1] = arena[: used + size]
            self.end += size
            return
        capacity = ARENA_FIRST if arena is None else min(2 * len(arena), ARENA_LAST)
        arena = memoryview(bytearray(max(capacity, size)))
        arena[:size] = data
        self._arena = arena
        self._arena_used = size
        self._starts.append(self.end)
        self._chunks.append(arena[:size])
        self.end += size

    def slice(self, seq: int, length: int) -> list[Buffer]:
        """Views of bytes [seq, seq + length), which must be held. No copy."""
        starts = self._starts
        chunks = self._chunks
        if len(chunks) == 1 and length == self.end - seq and starts[0] == seq:
            # All there is, in one piece: a question, an answer.
            whole = chunks[0]
            assert whole is not None, "slice of released bytes"
            self._cursor = 1
            return [whole]
        index = self._cursor
        count = len(starts)
        if index >= count or starts[index] > seq or (index + 1 < count and starts[index + 1] <= seq):
            index = bisect_right(starts, seq, self._head) - 1
        parts: list[Buffer] = []
        at = seq - starts[index]
        while True:
            chunk = chunks[index]
            assert chunk is not None, "slice of released bytes"
            here = len(chunk) - at
            if here >= length:
                parts.append(chunk if here == length and not at else chunk[at : at + length])
                # The next slice usually goes on where this one ended.
                self._cursor = index if here > length else index + 1
                return parts
            if here > 0:
                parts.append(chunk[at:] if at else chunk)
                length -= here
            index += 1
            at = 0

    def release(self, seq: int) -> None:
        """The peer has everything before `seq`: drop the chunks that are wholly acknowledged."""
        self.start = seq
        if seq >= self.end:
            self._chunks.clear()
            self._starts.clear()
            self._head = self._cursor = 0
            self._arena = None
            return
        starts = self._starts
        chunks = self._chunks
        head = self._head
        last = len(starts) - 1
        while head < last and starts[head + 1] <= seq:
            chunks[head] = None
            head += 1
        if head > 64 and head * 2 > last:
            del starts[:head]
            del chunks[:head]
            self._cursor = max(0, self._cursor - head)
            head = 0
        self._head = head

    def clear(self) -> None:
        """Drop everything: the connection is gone."""
        self.release(self.end)


class ReceiveQueue:
    """In-order payload not yet read."""

    __slots__ = ("_chunks", "_last_pinned", "charge", "landed", "length")

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self.charge = 0  #: bytes of memory this queue keeps alive, at most
        self._last_pinned: object = None  # the buffer of the newest chunk: usually the next one's too
        self.length = 0  #: bytes
        #: A reader's buffer, and the view of it that was queued first; see `stack.tcp.landing`.
        self.landed: tuple[memoryview, memoryview] | None = None

    def append(self, view: memoryview) -> None:
        """Take a payload view; small ones are copied out of their buffer."""
        size = len(view)
        if size < COPY_BREAK:
            self.append_small(view.tobytes(), size)
            return
        self.length += size
        pinned = view.obj
        if pinned is not self._last_pinned:
            self._last_pinned = pinned
            self.charge += memoryview(pinned).nbytes
        self.charge += CHUNK_OVERHEAD
        self._chunks.append(view)

    def append_small(self, data: bytes, size: int) -> None:
        """Take the copy of a payload of fewer than COPY_BREAK bytes."""
        self.length += size
        self.charge += size + CHUNK_OVERHEAD
        self._chunks.append(memoryview(data))

    def append_train(self, frames: Sequence[memoryview], start: int, size: int, most: int) -> bool:
        """Take what lies behind byte `start` of each frame, `size` bytes together and none of them small, as `append`
        would one after the other. False: nothing was done, as they are not all in one buffer, or more than `most` would
        be pinned, so that it may be time to copy.
        """
        pinned = frames[0].obj
        charge = self.charge + len(frames) * CHUNK_OVERHEAD
        if pinned is not self._last_pinned:
            charge += memoryview(pinned).nbytes
        if charge > most or not all(map(is_, map(_BUFFER, frames), repeat(pinned))):
            return False
        self._chunks.extend(map(itemgetter(slice(start, None)), frames))
        self._last_pinned = pinned
        self.charge = charge
        self.length += size
        return True

    def land(self, ground: memoryview, size: int) -> None:
        """The first `size` bytes of a reader's buffer are what comes next; the queue is empty."""
        view = ground[:size]
        self.landed = ground, view
        self._chunks.append(view)
        self.length = size
        self.charge += CHUNK_OVERHEAD

    def recover(self) -> None:
        """The reader's buffer is his again: what of it is still queued is copied."""
        landed, self.landed = self.landed, None
        chunks = self._chunks
        if landed is not None and chunks and chunks[0].obj is landed[1].obj:
            chunks[0] = memoryview(chunks[0].tobytes())
            self.charge += len(chunks[0])

    def limit(self, most: int) -> None:
        """Bring the memory pinned below `most` if that takes no more than copying what is queued."""
        if self.charge > most:
            self.charge = pinned_bytes(self._chunks)
            if self.charge > most:
                self.collapse()

    def collapse(self) -> None:
        """Copy everything into one buffer of exactly its size."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._chunks.append(memoryview(data))
        self._last_pinned = None
        self.charge = len(data) + CHUNK_OVERHEAD

    def read(self, limit: int) -> bytes:
        """Take up to `limit` bytes; one copy."""
        chunks = self._chunks
        if self.length <= limit:
            data = bytes(chunks.popleft()) if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self._last_pinned = None
            self.charge = self.length = 0
            return data
        if limit <= 0:
            return b""
        first = chunks[0]
        if len(first) > limit:
            chunks[0] = first[limit:]
            self.length -= limit
            return bytes(first[:limit])
        return b"".join(self._take(limit))

    def read_into(self, target: memoryview) -> int:
        """Take up to len(target) bytes into a writable "B" view; returns how many."""
        chunks = self._chunks
        room = len(target)
        at = 0
        if self.landed is not None:
            ground, view = self.landed
            if target is ground and chunks and chunks[0] is view:
                self.landed = None
                at = len(view)
                del chunks[0]
                self.length -= at
                return at + self.read_into(target[at:]) if chunks else at
            self.recover()
        if self.length <= room:
            for view in chunks:
                end = at + len(view)
                target[at:end] = view
                at = end
            self._emptied()
            return at
        while at < room:
            view = chunks[0]
            end = at + len(view)
            if end > room:
                target[at:room] = view[: room - at]
                chunks[0] = view[room - at :]
                break
            target[at:end] = view
            at = end
            del chunks[0]
        self.length -= room
        return room

    def discard(self, limit: int) -> int:
        limit = min(limit, self.length)
        self._take(limit)
        return limit

    def peek(self, limit: int, offset: int = 0) -> bytes:
        """Copy up to `limit` bytes from `offset` on, leaving them queued."""
        parts = []
        for view in self._chunks:
            if limit <= 0:
                break
            if offset >= len(view):
                offset -= len(view)
                continue
            piece = view[offset : offset + limit]
            offset = 0
            limit -= len(piece)
            parts.append(piece)
        return b"".join(parts)

    def clear(self) -> None:
        self._emptied()

    def _take(self, limit: int) -> list[memoryview]:
        """Remove `limit` bytes (no more than are there) and return them as views."""
        chunks = self._chunks
        taken: list[memoryview] = []
        self.length -= limit
        while limit > 0:
            view = chunks[0]
            size = len(view)
            if size > limit:
                taken.append(view[:limit])
                chunks[0] = view[limit:]
                return taken
            chunks.popleft()
            taken.append(view)
            limit -= size
        if not chunks:
            self._emptied()
        return taken

    def _emptied(self) -> None:
        self._chunks.clear()
        self._last_pinned = None
        self.charge = 0
        self.length = 0


def pinned_bytes(chunks: deque[memoryview] | list[memoryview]) -> int:
    """Memory that `chunks` keep alive together, each buffer counted once."""
    buffers = {id(view.obj): view.obj for view in chunks}
    total = len(chunks) * CHUNK_OVERHEAD
    for pinned in buffers.values():
        total += memoryview(pinned).nbytes
    return total
