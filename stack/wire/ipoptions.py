"""IPv4 options that hosts on the way write into: records, timestamps, source routes (RFC 791 3.1, RFC 1122 3.2.1.8).

A source route has two forms. Users name every host on the way in the option, and the destination elsewhere. On the wire
the first of those hosts stands in the header and the destination in the option's last slot: `routed` makes the one
of the other. All that answers, `echoed`, is in the user's form again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

END: Final = 0
NOP: Final = 1
RECORD_ROUTE: Final = 7
LSRR: Final = 131  #: loose: other routers may lie between those named
SSRR: Final = 137  #: strict: each is the next hop
TIMESTAMP: Final = 68

_DAY: Final = 86_400_000  # ms
_ONLY: Final = 0  # flags of a timestamp option: times alone,
_ADDRESSED: Final = 1  # with addresses,
_PRESPECIFIED: Final = 3  # of the addresses that are there


def each(options: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """(kind, offset, length) of the options that have a length; ends where one lies."""
    at = 0
    while at < len(options) and options[at] != END:
        if options[at] == NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            return
        yield options[at], at, length
        at += length


def milliseconds(time: int) -> int:
    """Since midnight UT, for a time in ns since 1970."""
    return time // 1_000_000 % _DAY


def recorded(options: bytes, address: bytes, milliseconds: int) -> bytes:
    """`options` after a host with `address` has written what it is asked to, at so many ms since midnight UT."""
    written = bytearray(options)
    for kind, at, length in each(options):
        if kind == RECORD_ROUTE and length >= 3:
            pointer = options[at + 2]
            if 4 <= pointer <= length - 3:
                written[at + pointer - 1 : at + pointer + 3] = address
                written[at + 2] = pointer + 4
        elif kind == TIMESTAMP and length >= 4:
            _stamp(written, at, length, address, milliseconds.to_bytes(4, "big"))
    return bytes(written)


def _stamp(options: bytearray, at: int, length: int, address: bytes, time: bytes) -> None:
    pointer, flags = options[at + 2], options[at + 3] & 0x0F
    needed = 4 if flags == _ONLY else 8
    if pointer < 5 or flags not in (_ONLY, _ADDRESSED, _PRESPECIFIED):
        return
    start = at + pointer - 1
    if pointer + needed - 1 > length:
        if options[at + 3] >> 4 < 15:
            options[at + 3] += 0x10  # one more that could not
        return
    if flags == _PRESPECIFIED and bytes(options[start : start + 4]) != address:
        return
    if flags != _ONLY:
        options[start : start + 4] = address
        start += 4
    options[start : start + 4] = time
    options[at + 2] = pointer + needed


def source_route(options: bytes | bytearray) -> int | None:
    """Where in `options` a source route begins, None: there is none. Ends where an option lies about its length."""
    for kind, at, length in each(options):
        if kind in (LSRR, SSRR) and length >= 3:
            return at
    return None


def first_hop(options: bytes) -> bytes | None:
    """Whom a packet with `options`, in the user's form, is sent to first; None: straight to its destination."""
    at = source_route(options) if options else None
    return None if at is None else options[at + 3 : at + 7]


def is_strict(options: bytes) -> bool:
    """Is there a strict source route among `options`?"""
    at = source_route(options)
    return at is not None and options[at] == SSRR


def routed(options: bytes, destination: bytes) -> bytes:
    """`options` as they go on the wire, in a packet whose header names their `first_hop`."""
    at = source_route(options)
    if at is None:
        return options
    end = at + options[at + 1]
    return options[: at + 3] + options[at + 7 : end] + destination + options[end:]


def echoed(options: bytes, source: bytes) -> bytes:
    """What a reply to `source` would carry (IP_RETOPTS), padded to whole words: the records, and the way back.

    That is what a source route has recorded, backwards. A source that recorded itself is not gone to twice (RFC 1812
    5.2.4.1). Another one's slots that nobody has come to are no part of it.
    """
    kept = b"".join(options[at : at + length] for kind, at, length in each(options) if kind == RECORD_ROUTE)
    kept += b"".join(options[at : at + length] for kind, at, length in each(options) if kind == TIMESTAMP)
    at = source_route(options)
    if at is not None:
        used = min(options[at + 2], options[at + 1] + 1) - 4  # bytes
        hops = [options[at + 3 + slot : at + 7 + slot] for slot in range(0, used - 3, 4)]
        if hops and hops[0] == source:
            del hops[0]
        if hops:
            kept += bytes((options[at], 3 + 4 * len(hops), 4)) + b"".join(reversed(hops))
    return kept + bytes(-len(kept) % 4)
