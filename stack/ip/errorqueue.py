"""What became of packets a socket sent: the error queue (ip(7), IP_RECVERR; MSG_ERRQUEUE of section 1.3).

An entry is a struct sock_extended_err with the data it is about: an ICMP error with what the router quoted, a refusal
of our own, a transmit time stamp, the end of a zero-copy send. UDP, ping and raw sockets have one queue each. It is
bounded by the bytes it holds, as the receive queue is: what does not fit is lost.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.ip.packet import IcmpError

# SO_EE_ORIGIN_* of <linux/errqueue.h>.
ORIGIN_LOCAL: Final = 1
ORIGIN_ICMP: Final = 2
ORIGIN_ICMP6: Final = 3
ORIGIN_TIMESTAMPING: Final = 4
ORIGIN_ZEROCOPY: Final = 5

#: Charged for an entry besides its data, bytes: about what the objects around it take.
OVERHEAD: Final = 384


class QueuedError:
    """One entry; the first seven fields are those of struct sock_extended_err and its SO_EE_OFFENDER."""

    __slots__ = ("code", "errno", "extra", "ifindex", "info", "offender", "origin", "payload", "remote",
                 "stamp", "type")  # fmt: skip

    def __init__(
        self,
        errno: int,
        origin: int,
        *,
        type: int = 0,  # noqa: A002 - the field's name in struct sock_extended_err
        code: int = 0,
        info: int = 0,
        extra: int = 0,
        offender: bytes | None = None,
        payload: bytes = b"",
        remote: tuple[bytes, int] | None = None,
        stamp: int = 0,
        ifindex: int = 0,
    ) -> None:
        self.errno = errno
        self.origin = origin
        self.type = type
        self.code = code
        self.info = info  #: an MTU, a pointer, a time stamp's kind, the first of a range
        self.extra = extra  #: ee_data: a time stamp's number, the last of a range
        self.offender = offender  #: who reports
        self.payload = payload  #: of our packet, as far as it is known
        self.remote = remote  #: whom it was for
        self.stamp = stamp  #: when, ns of the Network's clock
        self.ifindex = ifindex

    @property
    def icmp(self) -> bool:
        """Another host said so, and the socket has an error pending because of it."""
        return self.origin in (ORIGIN_ICMP, ORIGIN_ICMP6)


class ErrorQueue:
    """The entries of one socket, oldest first."""

    __slots__ = ("_charge", "_entries")

    def __init__(self) -> None:
        self._entries: deque[QueuedError] = deque()
        self._charge = 0

    def put(self, entry: QueuedError, limit: int) -> bool:
        """False if more than `limit` bytes would be held; an empty queue always takes one."""
        charge = len(entry.payload) + OVERHEAD
        if self._entries and self._charge + charge > limit:
            return False
        self._charge += charge
        self._entries.append(entry)
        return True

    def take(self, *, peek: bool = False) -> QueuedError | None:
        """The oldest entry; with `peek` it stays."""
        if not self._entries:
            return None
        if peek:
            return self._entries[0]
        entry = self._entries.popleft()
        self._charge -= len(entry.payload) + OVERHEAD
        return entry

    @property
    def next_errno(self) -> int:
        """What is pending once the entry before was taken: the errno of the next, if another host reports it."""
        return self._entries[0].errno if self._entries and self._entries[0].icmp else 0

    @property
    def last(self) -> QueuedError | None:
        """The youngest entry."""
        return self._entries[-1] if self._entries else None

    def clear(self) -> None:
        self._entries.clear()
        self._charge = 0

    def __len__(self) -> int:
        return len(self._entries)


def of_icmp(error: IcmpError, header: int, remote: tuple[bytes, int], now: int) -> QueuedError:
    """The entry for an ICMP error about a packet whose transport header has `header` bytes."""
    origin = ORIGIN_ICMP if error.version == 4 else ORIGIN_ICMP6
    return QueuedError(
        error.errno,
        origin,
        type=error.type,
        code=error.code,
        info=error.mtu,
        offender=error.src,
        payload=bytes(error.payload[header:]),
        remote=remote,
        stamp=now,
    )
