"""Errors and drops inside the stack, before anything becomes an `OSError`.

Two kinds of failure, kept apart:

* a caller asked for something that cannot be: `NetError` with an errno, turned into `OSError` at the socket edge only;
* a packet was not worth keeping: nobody is told, a `Drops` counter under a `DropReason` goes up.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Iterator, Mapping
from enum import StrEnum


class NetError(Exception):
    """A request that cannot be met: ``errno`` (int, as in `errno`) and a message in words."""

    def __init__(self, errno: int, message: str = "") -> None:
        self.errno = errno
        self.message = message or os.strerror(errno)
        super().__init__(f"[{_errno.errorcode.get(errno, errno)}] {self.message}")


class DropReason(StrEnum):
    """Why a packet was dropped; the value is the counter's name in statistics."""

    TOO_SHORT = "too-short"  # the fixed header does not fit
    BAD_HEADER = "bad-header"  # version, header length or a reserved value is wrong
    TRUNCATED = "truncated"  # the header claims more bytes than arrived
    BAD_CHECKSUM = "bad-checksum"
    TOO_LONG = "too-long"  # larger than the link or the protocol can carry
    OTHER_HOST = "other-host"  # link-layer destination is not ours
    UNKNOWN_ETHERTYPE = "unknown-ethertype"
    UNKNOWN_PROTOCOL = "unknown-protocol"
    MARTIAN_SOURCE = "martian-source"  # a source address no host may use on this link
    MARTIAN_DESTINATION = "martian-destination"
    NOT_FOR_US = "not-for-us"  # would have to be forwarded
    TTL_EXCEEDED = "ttl-exceeded"  # a packet to forward whose TTL or hop limit ran out
    SOURCE_ROUTE = "source-route"  # LSRR/SSRR option, refused unless asked for
    LINK_DOWN = "link-down"
    QUEUE_FULL = "queue-full"  # drop-tail of a transmit queue
    DEVICE_ERROR = "device-error"
    NO_ROUTE = "no-route"
    NEIGHBOUR_QUEUE_FULL = "neighbour-queue-full"
    NEIGHBOUR_FAILED = "neighbour-failed"
    NEIGHBOUR_CACHE_FULL = "neighbour-cache-full"
    FRAGMENT_OVERLAP = "fragment-overlap"
    FRAGMENT_BAD = "fragment-bad"  # length or offset that no datagram can have
    FRAGMENT_TIMEOUT = "fragment-timeout"
    FRAGMENT_LIMIT = "fragment-limit"
    RATE_LIMITED = "rate-limited"
    TOO_MANY = "too-many"  # more routers, prefixes, names or groups than are kept
    DUPLICATE_ADDRESS = "duplicate-address"  # not a packet: an address of ours that another host has
    NO_SOCKET = "no-socket"
    RECEIVE_BUFFER_FULL = "receive-buffer-full"
    FILTERED = "filtered"  # the socket's own filter refused it
    BAD_MESSAGE = "bad-message"  # an ICMP, ARP or NDP message that breaks its protocol's rules


class Drops(Mapping[str, int]):
    """Counters by reason. Reads as a mapping of name to count; a name never counted reads as 0."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def count(self, reason: str, amount: int = 1) -> None:
        counts = self._counts
        counts[reason] = counts.get(reason, 0) + amount

    @property
    def total(self) -> int:
        return sum(self._counts.values())

    def __getitem__(self, reason: str) -> int:
        return self._counts.get(reason, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        inside = ", ".join(f"{reason}={count}" for reason, count in sorted(self._counts.items()))
        return f"Drops({inside})"
