"""IP options and extension headers as users hand them over: checked, and in the form that goes into packets.

Each is as the headers have it on the wire (RFC 791 3.1; RFC 8200 4); what Linux refuses is refused.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from stack.errors import NetError
from stack.wire.ipoptions import LSRR, RECORD_ROUTE, SSRR, TIMESTAMP

MAX_OPTIONS: Final = 40  # bytes, RFC 791: a header has at most 15 words

_END: Final = 0
_NOP: Final = 1
_CIPSO: Final = 134
_ROUTER_ALERT: Final = 148
#: Flags of a timestamp option.
_TIMES_ALONE: Final = 0
_PRESPECIFIED: Final = 3
_TIMESTAMPS: Final = (_TIMES_ALONE, 1, _PRESPECIFIED)

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
DESTINATION: Final = 60
_UDP: Final = 17


def checked_options(data: bytes, *, privileged: bool) -> bytes:
    """IPv4 options padded to whole words with ends of list. Raises NetError(EINVAL).

    What Linux's ip_options_compile takes: lengths that fit, pointers that point into their option, each kind once, one
    source route at most; what it does not know of those with CAP_NET_RAW, `privileged`, only.
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
        if length < 2 or at + length > len(options):
            raise NetError(errno.EINVAL)
        check = _CHECKS.get(kind)
        if check is None:
            good = privileged and kind != _CIPSO
        else:
            kind = LSRR if kind == SSRR else kind
            good = kind not in seen and check(options[at : at + length], privileged)
        if not good:
            raise NetError(errno.EINVAL)
        if kind != _ROUTER_ALERT:
            seen.add(kind)
        at += length
    return bytes(options)


def _source_route(option: bytearray, _privileged: bool) -> bool:
    """Nobody has been come to yet, and there is somebody to come to."""
    return len(option) >= 7 and len(option) % 4 == 3 and option[2] == 4


def _record_route(option: bytearray, _privileged: bool) -> bool:
    """Full, or with a whole slot left."""
    return len(option) >= 3 and option[2] >= 4 and (option[2] > len(option) or option[2] + 3 <= len(option))


def _timestamp(option: bytearray, privileged: bool) -> bool:
    if len(option) < 4 or option[2] < 5:
        return False
    flags = option[3] & 0x0F
    if option[2] > len(option):
        return flags == _PRESPECIFIED or option[3] >> 4 < 15
    needed = 3 if flags == _TIMES_ALONE else 7
    if flags in _TIMESTAMPS:
        return option[2] + needed <= len(option)
    return privileged and option[2] + 3 <= len(option)


def _router_alert(option: bytearray, _privileged: bool) -> bool:
    return len(option) >= 4


#: By kind: is it good? Of source routes there may be one, whatever its kind; of router alerts any number.
_CHECKS: Final[dict[int, Callable[[bytearray, bool], bool]]] = {
    LSRR: _source_route,
    SSRR: _source_route,
    RECORD_ROUTE: _record_route,
    TIMESTAMP: _timestamp,
    _ROUTER_ALERT: _router_alert,
}


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
