"""What to slice frames and packets from: the slab itself, and the copies of its runs of small ones."""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from vhost_user._vring import ffi, lib

_CHUNK: Final = Struct("=II")  #: struct chunk: begin, end
#: struct vnet_record: begin, end, chunk, flags, gso_type, gso_size, csum_start, csum_offset.
RECORD: Final = Struct("=IIHHHHHH")
_PLACE: Final = Struct("=IIH10x")  #: of it: begin, end, chunk

#: Bursts up to this many bytes become a `bytes` object; larger ones keep the slab C made, whose finalizer costs more
#: than such a copy.
SMALL_BURST: Final = 8192

RxFrame = tuple[memoryview, int, int, int, int, int]


def burst_view(burst: Any, small: memoryview) -> memoryview:
    """All of a burst (`struct gw_burst`), in memory of its own; `small` is its buffer for those that are."""
    size: int = burst.bytes
    if size > SMALL_BURST:
        return memoryview(ffi.buffer(ffi.gc(burst.slab, lib.gw_slab_free, size), size))
    return memoryview(small[:size].tobytes())


def slab_views(slab: memoryview, chunks: memoryview, count: int) -> list[memoryview]:
    """Views by chunk number: 0 is the slab, 1... are private copies of the `count` packed `chunks` (csrc/chunk.h).

    Whoever keeps a slice of a chunk keeps that chunk (8 KiB at most), not the slab.
    """
    return [
        slab,
        *[memoryview(slab[begin:end].tobytes()) for begin, end in _CHUNK.iter_unpack(chunks[: count * _CHUNK.size])],
    ]


def sliced(
    slab: memoryview, records: memoryview, count: int, chunks: memoryview, nchunks: int, alike: int
) -> list[RxFrame]:
    """The frames of a burst: `count` packed struct vnet_record about `slab`, and its `nchunks` packed struct chunk.

    `alike`: the records from the second on differ in their places only, which is usual and costs a quarter less.
    """
    if not count:
        return []
    views = slab_views(slab, chunks, nchunks) if nchunks else [slab]
    if alike:
        begin, end, chunk, flags, gso_type, gso_size, start, offset = RECORD.unpack_from(records)
        first = (views[chunk][begin:end], flags, gso_type, gso_size, start, offset)
        if count == 1:
            return [first]
        _, _, _, flags, gso_type, gso_size, start, offset = RECORD.unpack_from(records, RECORD.size)
        places = _PLACE.iter_unpack(records[_PLACE.size : count * _PLACE.size])
        frames = [(views[chunk][begin:end], flags, gso_type, gso_size, start, offset) for begin, end, chunk in places]
        frames.insert(0, first)
        return frames
    return [
        (views[chunk][begin:end], flags, gso_type, gso_size, start, offset)
        for begin, end, chunk, flags, gso_type, gso_size, start, offset in RECORD.iter_unpack(
            records[: count * RECORD.size]
        )
    ]
