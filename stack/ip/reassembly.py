"""Putting fragments together again, IPv4 and IPv6 (RFC 791 3.2, RFC 815, RFC 8200 4.5), in bounded memory.

Theory of operation
-------------------
A datagram under way is a sorted list of disjoint pieces. It is complete when the last piece's end is known and the
pieces' lengths add up to it. Rules that keep a hostile sender from gaining anything:

* pieces that overlap others end the whole datagram (RFC 5722 for IPv6; Linux does the same for IPv4 since 2018), an
  exact duplicate of a piece is ignored; with `bury` pieces that come later are dropped too, until the deadline (RFC
  5722 4: "including those constituent fragments not yet received");
* pieces are copied, so that they pin no frame; each is charged its length plus a constant for its bookkeeping;
* over the memory limit the oldest datagrams under way are dropped, and of one source sooner than of all, so that who
  floods us with fragments loses its own first;
* every datagram has a deadline from its first piece on, never extended.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from stack.errors import DropReason, Drops
from stack.scheduler import NS_PER_S

if TYPE_CHECKING:
    from stack.scheduler import Scheduler

TIMEOUT4: Final = 30 * NS_PER_S  # Linux: ipfrag_time; RFC 1122 3.3.2 suggests 60 s at least, no one follows
TIMEOUT6: Final = 60 * NS_PER_S  # RFC 8200 4.5
MEMORY_LIMIT: Final = 4 << 20  # bytes; Linux: ipfrag_high_thresh
#: What one source may hold of it, bytes: a few datagrams of 64 KiB in pieces of 1,400 bytes.
SOURCE_LIMIT: Final = MEMORY_LIMIT // 4
#: Charged for a piece and for a datagram besides the bytes: the size of the Python objects around them.
OVERHEAD: Final = 256

#: What identifies a datagram: (src, dst, protocol or -1, identification).
Key: TypeAlias = tuple[bytes, bytes, int, int]


class Partial:
    """One datagram under way."""

    __slots__ = ("charge", "context", "dead", "deadline", "end", "key", "largest", "pieces", "received", "starts")

    def __init__(self, key: Key, deadline: int) -> None:
        self.key = key
        self.deadline = deadline
        self.starts: list[int] = []  # offsets of `pieces`, ascending
        self.pieces: list[bytes] = []
        self.received = 0
        self.end = -1  #: total length once the last fragment is in, else -1
        self.charge = OVERHEAD
        self.dead = False  #: pieces contradicted each other; what else comes is dropped
        self.largest = 0  #: the longest fragment's length with its headers, bytes
        self.context: Any = None  #: of the fragment at offset 0; None while that is missing


class Reassembler:
    """All datagrams under way of one address family."""

    def __init__(
        self,
        scheduler: Scheduler,
        drops: Drops,
        on_timeout: Callable[[Partial], None],
        *,
        timeout: int,
        memory_limit: int = MEMORY_LIMIT,
        source_limit: int = SOURCE_LIMIT,
        bury: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._drops = drops
        self._on_timeout = on_timeout
        self._timeout = timeout
        self.memory_limit = memory_limit
        self.source_limit = source_limit
        self._bury = bury
        self._sources: dict[bytes, tuple[list[int], dict[Key, None]]] = {}  # source -> ([bytes charged], its datagrams)
        self._partials: dict[Key, Partial] = {}  # in order of their deadlines: insertion order, one timeout for all
        self._timer = scheduler.timer(self._expire)
        self.memory = 0  #: bytes charged now
        self.largest = 0  #: of the datagram put together last: its longest fragment's length with its headers, bytes

    def __len__(self) -> int:
        """Datagrams under way."""
        return len(self._partials)

    def add(
        self, key: Key, offset: int, more: bool, data: memoryview, context: Any, max_length: int, whole: int = 0
    ) -> tuple[bytes, Any] | None:
        """Take one fragment: `data` at `offset` bytes, `more` to come after it.

        `context` is kept from the fragment at offset 0; `whole` is the fragment's length with its headers. Returns
        (payload, that context) once all is there.
        `max_length` is what the reassembled payload may have at most. Bad fragments are counted and end nothing but
        themselves, unless they contradict what is there already: then the whole datagram is dropped.
        """
        length = len(data)
        end = offset + length
        if not length or end > max_length or (more and length & 7):
            self._drops.count(DropReason.FRAGMENT_BAD)
            return None
        partial = self._partials.get(key)
        if partial is None:
            partial = self._partials[key] = Partial(key, self._scheduler.now + self._timeout)
            self._sources.setdefault(key[0], ([0], {}))[1][key] = None
            self._charge(key[0], partial.charge)
            if not self._timer.armed:
                self._timer.arm(partial.deadline)
        if partial.dead:
            self._drops.count(DropReason.FRAGMENT_OVERLAP)
            return None
        if not self._fits(partial, offset, end, more):
            return None
        self._insert(partial, offset, data)
        if not more:
            partial.end = end
        partial.largest = max(partial.largest, whole)
        if not offset:
            partial.context = context
        if partial.received == partial.end:
            self._remove(partial)
            self.largest = partial.largest
            return b"".join(partial.pieces), partial.context
        charged, keys = self._sources[key[0]]
        while charged[0] > self.source_limit:
            self._drops.count(DropReason.FRAGMENT_LIMIT)
            self._remove(self._partials[next(iter(keys))])
        while self.memory > self.memory_limit:
            self._drops.count(DropReason.FRAGMENT_LIMIT)
            self._remove(next(iter(self._partials.values())))
        return None

    def _charge(self, source: bytes, amount: int) -> None:
        self.memory += amount
        self._sources[source][0][0] += amount

    def _fits(self, partial: Partial, offset: int, end: int, more: bool) -> bool:
        """Is [offset, end) new and consistent? Drops the datagram if it contradicts what is there."""
        starts, pieces = partial.starts, partial.pieces
        index = bisect_left(starts, offset)
        if index < len(starts) and starts[index] == offset and len(pieces[index]) == end - offset:
            return False  # a duplicate
        overlaps = (index < len(starts) and starts[index] < end) or (
            index > 0 and starts[index - 1] + len(pieces[index - 1]) > offset
        )
        if overlaps:
            self._drops.count(DropReason.FRAGMENT_OVERLAP)
            if self._bury:
                self._kill(partial)
            else:
                self._remove(partial)
            return False
        beyond = partial.end >= 0 and (end > partial.end or not more)
        before = not more and starts and starts[-1] >= end
        if beyond or before:
            self._drops.count(DropReason.FRAGMENT_BAD)
            self._remove(partial)
            return False
        return True

    def _insert(self, partial: Partial, offset: int, data: memoryview) -> None:
        index = bisect_left(partial.starts, offset)
        partial.starts.insert(index, offset)
        partial.pieces.insert(index, bytes(data))
        partial.received += len(data)
        partial.charge += len(data) + OVERHEAD
        self._charge(partial.key[0], len(data) + OVERHEAD)

    def _kill(self, partial: Partial) -> None:
        """Give up the pieces and remember until the deadline that there is nothing to be had."""
        self._charge(partial.key[0], OVERHEAD - partial.charge)
        partial.charge = OVERHEAD
        partial.starts.clear()
        partial.pieces.clear()
        partial.context = None
        partial.dead = True

    def _remove(self, partial: Partial) -> None:
        if self._partials.pop(partial.key, None) is not None:
            source = partial.key[0]
            self._charge(source, -partial.charge)
            keys = self._sources[source][1]
            del keys[partial.key]
            if not keys:
                del self._sources[source]
        if not self._partials:
            self._timer.cancel()

    def _expire(self) -> None:
        now = self._scheduler.now
        while self._partials:
            partial = next(iter(self._partials.values()))
            if partial.deadline > now:
                self._timer.arm(partial.deadline)
                return
            if not partial.dead:
                self._drops.count(DropReason.FRAGMENT_TIMEOUT)
            self._remove(partial)
            self._on_timeout(partial)
