"""What to slice frames and packets from: the slab itself, and the copies of its runs of small ones."""

from __future__ import annotations

from struct import Struct
from typing import Final

_CHUNK: Final = Struct("=II")  #: struct chunk: begin, end
#: struct vnet_record: begin, end, chunk, flags, gso_type, gso_size, csum_start, csum_offset.
_RECORD: Final = Struct("=IIHHHHHH")

RxFrame = tuple[memoryview, int, int, int, int, int]


def slab_views(slab: memoryview, chunks: memoryview, count: int) -> list[memoryview]:
    """Views by chunk number: 0 is the slab, 1... are private copies of the `count` packed `chunks` (csrc/chunk.h).

    Whoever keeps a slice of a chunk keeps that chunk (8 KiB at most), not the slab.
    """
    return [
        slab,
        *[memoryview(slab[begin:end].tobytes()) for begin, end in _CHUNK.iter_unpack(chunks[: count * _CHUNK.size])],
    ]


def sliced(slab: memoryview, records: memoryview, count: int, chunks: memoryview, nchunks: int) -> list[RxFrame]:
    """The frames of a burst: `count` packed struct vnet_record about `slab`, and its `nchunks` packed struct chunk."""
    if count == 1 and not nchunks:
        begin, end, _, flags, gso_type, gso_size, start, offset = _RECORD.unpack_from(records)
        return [(slab[begin:end], flags, gso_type, gso_size, start, offset)]
    packed = _RECORD.iter_unpack(records[: count * _RECORD.size])
    if not nchunks:
        return [
            (slab[begin:end], flags, gso_type, gso_size, start, offset)
            for begin, end, _, flags, gso_type, gso_size, start, offset in packed
        ]
    views = slab_views(slab, chunks, nchunks)
    return [
        (views[chunk][begin:end], flags, gso_type, gso_size, start, offset)
        for begin, end, chunk, flags, gso_type, gso_size, start, offset in packed
    ]
