"""One received datagram, and the queue it waits in.

Payload is copied out of its frame into `bytes` on arrival: a waiting datagram pins nothing, and what it is charged
against the endpoint's limit is what it costs. Of a superframe, or of datagrams that arrived together, an endpoint that
asked for it (UDP_GRO) gets one long datagram and the length of its pieces.
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

    __slots__ = ("_more", "data", "dst", "fragment", "header", "ifindex", "kind", "overflow", "peeked", "segment",
                 "src", "stamp", "tos", "ttl")  # fmt: skip

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
        )

    def pieces(self) -> list[Datagram]:
        """The datagrams a superframe stands for."""
        data, size = self.data, self.segment
        return [self.copy(data[at : at + size]) for at in range(0, len(data), size)]

    # -- coalescing, while it waits -----------------------------------------------------------------------------------

    def absorb(self, other: Datagram, size: int) -> bool:
        """Take `other` in as the next piece of this one, which has `size` bytes by now; False if it does not fit.

        As Linux's GRO: same flow, same hop limit and traffic class, arrived in the same burst; all pieces as long as
        the first, only the last may be shorter.
        """
        length = len(other.data)
        segment = self.segment or len(self.data)
        if (
            not length
            or length > segment
            or size % segment
            or size + length > MAX_COALESCED
            or size >= segment * MAX_PIECES
            or other.stamp != self.stamp
            or other.segment
            or other.src != self.src
            or other.dst != self.dst
            or other.ttl != self.ttl
            or other.tos != self.tos
            or other.header != self.header
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

    __slots__ = ("_queue", "_sizes", "charge", "lost")

    def __init__(self) -> None:
        self._queue: deque[Datagram] = deque()
        self._sizes: deque[int] = deque()
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
        datagram.overflow = self.lost
        self._queue.append(datagram)
        self._sizes.append(size)
        return True

    def take(self) -> Datagram | None:
        """The next one."""
        if not self._queue:
            return None
        self.charge -= self._sizes.popleft() + OVERHEAD
        datagram = self._queue.popleft()
        return datagram.settle()

    def peek(self, skip: int = 0) -> tuple[Datagram, int] | None:
        """The next one, or the one `skip` bytes further on, left in place; and the bytes of it that are skipped."""
        for datagram, size in zip(self._queue, self._sizes, strict=True):
            if skip and skip >= size:
                skip -= size
                continue
            datagram.settle().peeked = True
            return datagram, skip
        return None

    def clear(self) -> None:
        self._queue.clear()
        self._sizes.clear()
        self.charge = 0

    def __len__(self) -> int:
        return len(self._queue)
