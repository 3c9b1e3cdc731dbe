"""One received datagram, and the queue it waits in.

Payload is copied out of its frame into `bytes` on arrival: a waiting datagram pins nothing, and what it is charged
against the endpoint's limit is what it costs at most. Of a superframe, or of datagrams that arrived together, an
endpoint that asked for it (UDP_GRO) gets one long datagram and the length of its pieces. Another one's superframe waits
as a *run*: in one piece, from which the datagrams are cut as they are received. It counts, and is charged, as what it
stands for, so that nobody can tell; but a run of 64 costs hardly more than one datagram until it is read.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.ip.packet import PacketKind

#: Charged for a waiting datagram besides its payload, bytes: about what the objects around it take.
OVERHEAD: Final = 384
#: Bytes one coalesced datagram may have: what a UDP length can say, less the header.
MAX_COALESCED: Final = 65535 - 8
#: Datagrams put together at most, as Linux (UDP_GRO_CNT_MAX).
MAX_PIECES: Final = 64


class Datagram:
    """What arrived, and everything a control message may tell about it."""

    __slots__ = ("_more", "cut", "data", "dst", "fragment", "header", "ifindex", "kind", "note", "overflow", "peeked",
                 "segment", "src", "stamp", "tos", "ttl")  # fmt: skip

    def __init__(
        self,
        data: bytes,
        src: tuple[bytes, int],
        dst: tuple[bytes, int],
        ifindex: int,
        ttl: int,
        tos: int,
        kind: PacketKind,
        stamp: int = 0,
        header: bytes = b"",
        segment: int = 0,
        fragment: int = 0,
        note: int = 0,
    ) -> None:
        self.data = data
        self.src = src  #: (address bytes, port)
        self.dst = dst  #: (address bytes, port) it was sent to
        self.ifindex = ifindex
        self.ttl = ttl
        self.tos = tos
        self.kind = kind
        self.stamp = stamp  #: when it arrived, ns of the Network's clock
        self.header = header  #: IP header with options or extension headers, if there is more to it than the above
        self.segment = segment  #: > 0: several datagrams of this many bytes each, the last perhaps shorter
        self.fragment = fragment  #: of one that came in fragments, the longest one's length with its headers, bytes
        self.note = note  #: mark and priority, see `stack.iface.loopback`
        self.cut = 0  #: > 0: a run of datagrams of this many bytes, to be received one by one
        self.overflow = 0  #: datagrams lost for lack of room before this one was queued
        self.peeked = False
        self._more: list[bytes] | None = None

    def copy(self, data: bytes, segment: int = 0) -> Datagram:
        """Another one of the same flow and moment."""
        return Datagram(
            data,
            self.src,
            self.dst,
            self.ifindex,
            self.ttl,
            self.tos,
            self.kind,
            self.stamp,
            self.header,
            segment,
            self.fragment,
            self.note,
        )

    def pieces(self) -> list[Datagram]:
        """The datagrams a superframe or a run stands for."""
        data, size = self.data, self.segment or self.cut
        pieces = [self.copy(data[at : at + size]) for at in range(0, len(data), size)]
        for piece in pieces:
            piece.overflow = self.overflow
        return pieces

    # -- coalescing, while it waits -----------------------------------------------------------------------------------

    def absorb(self, other: Datagram, size: int) -> bool:
        """Take `other` in as the next piece of this one, which has `size` bytes by now; False if it does not fit.

        As Linux's GRO: same flow, same hop limit and traffic class, arrived in the same burst; all pieces as long as
        the first, only the last may be shorter. `other` may be several already.
        """
        length = len(other.data)
        segment = self.segment or len(self.data)
        if (
            not length
            or not segment
            or (length > segment and other.segment != segment)
            or size % segment
            or size + length > min(MAX_COALESCED, segment * MAX_PIECES)
            or other.stamp != self.stamp
            or (other.segment and other.segment != segment)
            or self.cut
            or other.src != self.src
            or other.dst != self.dst
            or other.ttl != self.ttl
            or other.tos != self.tos
            or other.header != self.header
            or other.note != self.note
            or self.peeked
        ):
            return False
        self.segment = segment
        if self._more is None:
            self._more = [self.data]
        self._more.append(other.data)
        return True

    def settle(self) -> Datagram:
        """Itself, its pieces put together."""
        if self._more is not None:
            self.data = b"".join(self._more)
            self._more = None
        return self


class ReceiveQueue:
    """Datagrams that wait, bounded by what they cost."""

    __slots__ = ("_at", "_count", "_queue", "_runs", "_sizes", "charge", "lost")

    def __init__(self) -> None:
        self._queue: deque[Datagram] = deque()
        self._sizes: deque[int] = deque()
        self._at = 0  # bytes received already of the run in front
        self._runs = 0  # entries that are runs
        self._count = 0
        self.charge = 0  #: memory, bytes
        self.lost = 0  #: datagrams there was no room for, ever

    def put(self, datagram: Datagram, limit: int, *, coalesce: bool = False) -> bool:
        """Queue it unless the limit is reached; one always fits into an empty queue."""
        size = len(datagram.data)
        charge = size + OVERHEAD
        if self.charge + charge > limit and self._queue:
            self.lost += 1
            return False
        if coalesce and self._queue and self._queue[-1].absorb(datagram, self._sizes[-1]):
            self._sizes[-1] += size
            self.charge += size
            return True
        self.charge += charge
        self._append(datagram, size, 1)
        return True

    def put_run(self, run: Datagram, limit: int) -> int:
        """Queue what fits of a run of datagrams, as `put` would have done with each; how many did not."""
        data, size = run.data, run.cut
        each = size + OVERHEAD
        full, rest = divmod(len(data), size)
        fit = min(full, max(limit - self.charge, 0) // each)
        if not self._queue and not fit:
            fit = min(full, 1)
        charge = self.charge + fit * each + rest + OVERHEAD
        if fit == full and rest and (charge <= limit or not (full or self._queue)):
            self._append_run(run, full + 1)
            return 0
        if fit:
            run.data = data[: fit * size]
            self._append_run(run, fit)
        lost = full - fit
        self.lost += lost
        if rest and not self.put(run.copy(data[full * size :]), limit):  # a shorter one fits where others did not
            lost += 1
        return lost

    def take(self) -> Datagram | None:
        """The next one."""
        if not self._queue:
            return None
        datagram = self._queue[0]
        if datagram.cut:
            piece = datagram.copy(self._cut(datagram, 1)[0])
            piece.overflow = datagram.overflow
            return piece
        self._count -= 1
        self.charge -= self._sizes.popleft() + OVERHEAD
        self._queue.popleft()
        return datagram.settle()

    def take_data(self) -> bytes | None:
        """Of the next one only what is in it."""
        queue = self._queue
        if not queue:
            return None
        datagram = queue[0]
        self._count -= 1
        if not datagram.cut:
            self.charge -= self._sizes.popleft() + OVERHEAD
            return queue.popleft().settle().data
        whole, at = datagram.data, self._at
        end = at + datagram.cut
        data = whole[at:end]
        self.charge -= len(data) + OVERHEAD
        if end < len(whole):
            self._at = end
        else:
            self._leave_run()
        return data

    def take_several(self, most: int) -> tuple[Datagram, list[bytes]] | None:
        """Up to `most` of the next ones: as many as came in one run, and something that says of all of them but for
        `data` what there is to say."""
        if not self._queue:
            return None
        datagram = self._queue[0]
        if datagram.cut:
            return datagram, self._cut(datagram, most)
        self.take()
        return datagram, [datagram.data]

    def peek(self, skip: int = 0) -> tuple[Datagram, int] | None:
        """The next one, or the one `skip` bytes further on, left in place; and the bytes of it that are skipped."""
        if self._runs:
            self._take_runs_apart()
        for datagram, size in zip(self._queue, self._sizes, strict=True):
            if skip and skip >= size:
                skip -= size
                continue
            datagram.settle().peeked = True
            return datagram, skip
        return None

    def clear(self) -> None:
        self._forget()
        self._count = self.charge = 0

    def __len__(self) -> int:
        return self._count

    def _append(self, datagram: Datagram, size: int, count: int) -> None:
        datagram.overflow = self.lost
        self._queue.append(datagram)
        self._sizes.append(size)
        self._count += count

    def _append_run(self, run: Datagram, count: int) -> None:
        size = len(run.data)
        self.charge += size + count * OVERHEAD
        self._runs += 1
        self._append(run, size, count)

    def _cut(self, run: Datagram, most: int) -> list[bytes]:
        """Up to `most` datagrams off the run in front."""
        data, size, at = run.data, run.cut, self._at
        end = min(at + most * size, len(data))
        pieces = [data[here : here + size] for here in range(at, end, size)]
        count = len(pieces)
        self._count -= count
        self.charge -= end - at + count * OVERHEAD
        if end < len(data):
            self._at = end
        else:
            self._leave_run()
        return pieces

    def _leave_run(self) -> None:
        """Everything is off the run in front."""
        self._at = 0
        self._runs -= 1
        self._queue.popleft()
        self._sizes.popleft()

    def _take_runs_apart(self) -> None:
        """For those who look at more than what is next."""
        entries = list(zip(self._queue, self._sizes, strict=True))
        if self._at:
            entries[0][0].data = entries[0][0].data[self._at :]
        self._forget()
        for datagram, size in entries:
            pieces = datagram.pieces() if datagram.cut else [datagram]
            self._queue.extend(pieces)
            self._sizes.extend([len(piece.data) for piece in pieces] if datagram.cut else [size])

    def _forget(self) -> None:
        self._queue.clear()
        self._sizes.clear()
        self._at = self._runs = 0
