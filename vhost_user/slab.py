"""What to slice frames and packets from: the slab itself, and the copies of its runs of small ones."""

from __future__ import annotations

from typing import Any


def slab_views(slab: memoryview, chunks: Any, count: int) -> list[memoryview]:
    """Views by chunk number: 0 is the slab, 1... are private copies of `chunks` (struct chunk[], csrc/chunk.h).

    Whoever keeps a slice of a chunk keeps that chunk (8 KiB at most), not the slab.
    """
    views = [slab]
    for i in range(count):
        chunk = chunks[i]
        views.append(memoryview(slab[chunk.begin : chunk.end].tobytes()))
    return views
