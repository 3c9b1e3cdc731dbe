"""What became of packets a socket sent: the error queue (ip(7), IP_RECVERR; MSG_ERRQUEUE of section 1.3).

An entry is a struct sock_extended_err with the data it is about: an ICMP error with what the router quoted, a refusal
of our own, a transmit time stamp, the end of a zero-copy send. UDP, ping and raw sockets have one queue each. It is
bounded by the bytes it holds, as the receive queue is: what does not fit is lost.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from stack.wire.checksum import checksum

if TYPE_CHECKING:
    from stack.ip.packet import IcmpError

# SO_EE_ORIGIN_* of <linux/errqueue.h>.
ORIGIN_LOCAL: Final = 1
ORIGIN_ICMP: Final = 2
ORIGIN_ICMP6: Final = 3
ORIGIN_TIMESTAMPING: Final = 4
ORIGIN_ZEROCOPY: Final = 5

#: struct sock_ee_data_rfc4884, and the number in whose place it stands.
_RFC4884_FIELDS: Final = struct.Struct("@HBx")
_RFC4884: Final = struct.Struct("@I")
INVALID_EXTENSIONS: Final = 1  # SO_EE_RFC4884_FLAG_INVALID
_LEAST_DESCRIBED: Final = 128  # bytes
_EXTENSION_HEADER: Final = 4  # bytes: version, checksum
_EXTENSION_VERSION: Final = 2
_OBJECT_HEADER: Final = 4  # bytes: length, class, type

#: Charged for an entry besides its data, bytes: about what the objects around it take.
OVERHEAD: Final = 384


class QueuedError:
    """One entry; the first seven fields are those of struct sock_extended_err and its SO_EE_OFFENDER."""

    __slots__ = ("code", "errno", "extra", "ifindex", "info", "offender", "origin", "payload", "remote",
                 "stamp", "statistics", "type")  # fmt: skip

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
        statistics: bool = False,
    ) -> None:
        self.errno = errno
        self.origin = origin
        self.type = type
        self.code = code
        self.info = info  #: an MTU, a pointer, a time stamp's kind, the first of a range
        self.extra = extra  #: ee_data: a time stamp's number, the last of a range, where extensions begin
        self.offender = offender  #: who reports
        self.payload = payload  #: of our packet, as far as it is known
        self.remote = remote  #: whom it was for
        self.stamp = stamp  #: when, ns of the Network's clock
        self.ifindex = ifindex  #: of a time stamp: `payload` is a frame that left through it
        self.statistics = statistics  #: `payload` is statistics of a connection, see `stack.socket.ip.stream_stats`

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


def of_icmp(
    error: IcmpError, header: int, remote: tuple[bytes, int], now: int, *, extensions: bool = False
) -> QueuedError:
    """The entry for an ICMP error about a packet whose transport header has `header` bytes.

    `extensions`: say where in the data RFC 4884's begin (IP_RECVERR_RFC4884).
    """
    origin = ORIGIN_ICMP if error.version == 4 else ORIGIN_ICMP6
    payload = bytes(error.payload[header:])
    return QueuedError(
        error.errno,
        origin,
        type=error.type,
        code=error.code,
        info=error.mtu,
        extra=_extensions(payload, error.described, error.header + header) if extensions else 0,
        offender=error.src,
        payload=payload,
        remote=remote,
        stamp=now,
    )


def _extensions(payload: bytes, described: int, headers: int) -> int:
    """struct sock_ee_data_rfc4884 in the place of ee_data: the offset of the extensions in `payload`, and a flag if
    they make no sense; 0 if there are none. A quotation before them has 128 bytes at least (RFC 4884 5.1).
    """
    offset = described - headers
    if described < _LEAST_DESCRIBED or offset < 0 or offset + _EXTENSION_HEADER > len(payload):
        return 0
    flag = 0 if _make_sense(payload[offset:]) else INVALID_EXTENSIONS
    (number,) = _RFC4884.unpack(_RFC4884_FIELDS.pack(offset, flag))
    return int(number)


def _make_sense(extensions: bytes) -> bool:
    """RFC 4884 7: version 2, a checksum that is right if there is one, and objects that fill the rest exactly."""
    if extensions[0] >> 4 != _EXTENSION_VERSION:
        return True  # as Linux: not ours to judge
    if any(extensions[2:4]) and checksum(extensions):
        return False
    at = _EXTENSION_HEADER
    while at < len(extensions):
        if at + _OBJECT_HEADER > len(extensions):
            return False
        length = extensions[at] << 8 | extensions[at + 1]
        at += length
        if length < _OBJECT_HEADER or at > len(extensions):
            return False
    return True
