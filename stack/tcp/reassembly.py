"""Payload that arrived ahead of a gap (RFC 9293 section 3.10.7.4, seventh step: "segments with higher beginning
sequence numbers SHOULD be held for later processing").

Held as sorted, disjoint ranges. Where a newcomer overlaps what is held, what is held stays: the same bytes anyhow, and
a peer that sends different ones gains nothing. Memory is accounted and bounded as in `buffers.ReceiveQueue`; above the
limit ranges are copied out of their slabs, and if their sheer number is the problem the farthest ones go (the peer
still has them: nothing out of order was ever acknowledged).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Final

from stack.tcp.buffers import CHUNK_OVERHEAD, COPY_BREAK, pinned_bytes

RECENT: Final = 8  # arrivals remembered for SACK blocks; an ACK carries at most four blocks


class Reassembly:
    """Ranges beyond RCV.NXT, by endless sequence number."""

    __slots__ = ("_charge", "_data", "_ends", "_recent", "_starts", "length")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._data: list[memoryview] = []
        self._charge = 0
        self.length = 0  #: bytes held
        self._recent: deque[int] = deque(maxlen=RECENT)  # where something arrived lately, newest last

    def __len__(self) -> int:
        return len(self._starts)

    def insert(self, start: int, view: memoryview) -> bool:
        """Hold `view`, which begins at sequence number `start`. False if every byte of it was held already."""
        starts, ends, data = self._starts, self._ends, self._data
        end = start + len(view)
        index = bisect_right(starts, start)
        if index and ends[index - 1] > start:
            start = ends[index - 1]
            if start >= end:
                return False
        base = end - len(view)
        added = False
        self._recent.append(start)
        # Fill the gaps between the ranges held, up to our end. Usually one gap, all of it.
        at = start
        while at < end:
            gap_end = end if index >= len(starts) or starts[index] >= end else starts[index]
            if gap_end > at:
                piece = view[at - base : gap_end - base]
                starts.insert(index, at)
                ends.insert(index, gap_end)
                data.insert(index, self._hold(piece))
                self.length += gap_end - at
                added = True
                index += 1
            if gap_end == end:
                break
            at = ends[index]
            index += 1
        return added

    def _hold(self, view: memoryview) -> memoryview:
        size = len(view)
        if size < COPY_BREAK:
            view = memoryview(bytes(view))
            self._charge += size + CHUNK_OVERHEAD
        else:
            self._charge += memoryview(view.obj).nbytes + CHUNK_OVERHEAD
        return view

    def take(self, seq: int) -> list[memoryview]:
        """Remove and return what continues at `seq`; what lies before it is dropped."""
        starts, ends, data = self._starts, self._ends, self._data
        taken: list[memoryview] = []
        count = 0
        for start, end, view in zip(starts, ends, data, strict=True):
            if start > seq:
                break
            count += 1
            self.length -= end - start
            if end > seq:
                taken.append(view[seq - start :] if start < seq else view)
                seq = end
        if count:
            del starts[:count], ends[:count], data[:count]
            if not starts:
                self._charge = 0
        return taken

    def limit(self, most: int) -> int:
        """Bring the memory pinned below `most`; returns the payload bytes that had to be dropped for it."""
        if self._charge <= most:
            return 0
        self._charge = pinned_bytes(self._data)
        if self._charge <= most:
            return 0
        self._collapse()
        self._charge = self.length + len(self._data) * CHUNK_OVERHEAD
        dropped = 0
        # An eighth more than necessary, so that a flood does not bring us here with every segment (as Linux prunes).
        goal = most - (most >> 3) if self._charge > most else most
        while self._charge > goal and self._data:
            size = self._ends.pop() - self._starts.pop()
            self._data.pop()
            self._charge -= size + CHUNK_OVERHEAD
            self.length -= size
            dropped += size
        return dropped

    def _collapse(self) -> None:
        """Copy what is contiguous together, into memory of exactly its size: so a window full of segments behind a gap
        costs what it holds, and only crumbs cost more.
        """
        starts, ends, data = self._starts, self._ends, self._data
        merged: list[list[memoryview]] = []
        edges: list[tuple[int, int]] = []
        for start, end, view in zip(starts, ends, data, strict=True):
            if edges and edges[-1][1] == start:
                edges[-1] = (edges[-1][0], end)
                merged[-1].append(view)
            else:
                edges.append((start, end))
                merged.append([view])
        self._starts = [start for start, _ in edges]
        self._ends = [end for _, end in edges]
        self._data = [memoryview(b"".join(views)) for views in merged]

    def blocks(self) -> list[tuple[int, int]]:
        """Contiguous (left, right) edges, lowest first."""
        merged: list[tuple[int, int]] = []
        for start, end in zip(self._starts, self._ends, strict=True):
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        return merged

    def look_at(self, seq: int) -> None:
        """Something at `seq` arrived again: its block comes first in the next report, if it lies in one."""
        self._recent.append(seq)

    def report(self, most: int) -> list[tuple[int, int]]:
        """Up to `most` (left, right) edges as RFC 2018 section 4 orders them: where data arrived last first."""
        blocks = self.blocks()
        chosen: list[tuple[int, int]] = []
        for place in reversed(self._recent):
            for block in blocks:
                if block[0] <= place < block[1] and block not in chosen:
                    chosen.append(block)
        return chosen[:most]

    def clear(self) -> None:
        self._starts.clear()
        self._ends.clear()
        self._data.clear()
        self._charge = 0
        self._recent.clear()
        self.length = 0
