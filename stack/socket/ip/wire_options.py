"""IP options and extension headers as users hand them over: checked, and in the form that goes into packets.

Each is as the headers have it on the wire (RFC 791 3.1; RFC 8200 4); what Linux refuses is refused.
"""

from __future__ import annotations

import errno
from typing import Final

from stack.errors import NetError

MAX_OPTIONS: Final = 40  # bytes, RFC 791: a header has at most 15 words

_END: Final = 0
_NOP: Final = 1
_RECORD_ROUTE: Final = 7
_TIMESTAMP: Final = 68
_LSRR: Final = 131
_SSRR: Final = 137
_CIPSO: Final = 134

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
DESTINATION: Final = 60
_UDP: Final = 17


def checked_options(data: bytes) -> bytes:
    """IPv4 options padded to whole words with ends of list. Raises NetError(EINVAL).

    What Linux's ip_options_compile takes: lengths that fit, pointers that point into their option, each kind once.
    Source routes are refused: a stack that drops packets with one should not send any.
    """
    if len(data) > MAX_OPTIONS:
        raise NetError(errno.EINVAL)
    options = bytearray(data.ljust((len(data) + 3) & ~3, b"\0"))
    at = 0
    seen: set[int] = set()
    while at < len(options):
        kind = options[at]
        if kind == _END:
            options[at:] = bytes(len(options) - at)
            break
        if kind == _NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options) or kind in (_LSRR, _SSRR, _CIPSO):
            raise NetError(errno.EINVAL)
        if kind in (_RECORD_ROUTE, _TIMESTAMP):
            least = 3 if kind == _RECORD_ROUTE else 4
            pointer = options[at + 2] if length >= least else 0
            if kind in seen or pointer < least + 1:
                raise NetError(errno.EINVAL)
            seen.add(kind)
        at += length
    return bytes(options)


def checked_extension(data: bytes) -> bytes:
    """One IPv6 extension header, b"" for none. Raises NetError(EINVAL) unless its length says how long it is."""
    if not data:
        return b""
    if len(data) < 2 or len(data) & 7 or len(data) > 8 * 255 or (data[1] + 1) * 8 > len(data):
        raise NetError(errno.EINVAL)
    return data[: (data[1] + 1) * 8]


def checked_routing(data: bytes) -> bytes:
    """A routing header with nothing left to route (RFC 5095 forbids type 0). Raises NetError(EINVAL)."""
    header = checked_extension(data)
    if header and (header[2] == 0 or header[3]):
        raise NetError(errno.EINVAL)
    return header


def chain(hop_by_hop: bytes, routing: bytes, destination: bytes) -> tuple[int, bytes] | None:
    """The headers in the order of RFC 8200 4.1, each pointing to the next, the last one to UDP; None if there are none.

    Answers the number of the first and the bytes of all.
    """
    headers = [
        (number, header)
        for number, header in ((HOP_BY_HOP, hop_by_hop), (ROUTING, routing), (DESTINATION, destination))
        if header
    ]
    if not headers:
        return None
    following = [number for number, _ in headers[1:]] + [_UDP]
    joined = b"".join(bytes((after,)) + header[1:] for (_, header), after in zip(headers, following, strict=True))
    return headers[0][0], joined
