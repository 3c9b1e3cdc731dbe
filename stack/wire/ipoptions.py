"""IPv4 options that hosts on the way write into: record route, timestamp (RFC 791 3.1, RFC 1122 3.2.1.8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

END: Final = 0
NOP: Final = 1
RECORD_ROUTE: Final = 7
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


def echoed(options: bytes) -> bytes:
    """What a reply would carry (IP_RETOPTS): the records, padded to whole words. Source routes never arrive here."""
    kept = b"".join(options[at : at + length] for kind, at, length in each(options) if kind == RECORD_ROUTE)
    kept += b"".join(options[at : at + length] for kind, at, length in each(options) if kind == TIMESTAMP)
    return kept + bytes(-len(kept) % 4)
