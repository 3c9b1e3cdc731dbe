"""What to slice frames and packets from: the slab itself, and the copies of its runs of small ones."""

from __future__ import annotations

from struct import Struct
from typing import Final

_CHUNK: Final = Struct("=II")  #: struct chunk: begin, end


def slab_views(slab: memoryview, chunks: memoryview, count: int) -> list[memoryview]:
    """Views by chunk number: 0 is the slab, 1... are private copies of the `count` packed `chunks` (csrc/chunk.h).

    Whoever keeps a slice of a chunk keeps that chunk (8 KiB at most), not the slab.
    """
    return [
        slab,
        *[memoryview(slab[begin:end].tobytes()) for begin, end in _CHUNK.iter_unpack(chunks[: count * _CHUNK.size])],
    ]
