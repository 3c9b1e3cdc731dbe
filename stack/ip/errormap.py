"""ICMP types and codes as errno values, the way Linux maps them (icmp_err_convert, icmpv6_err_convert)."""

from __future__ import annotations

import errno
from typing import Final

from stack.wire import icmp, icmpv6

#: code of "destination unreachable" -> (errno, hard). Hard errors end a connection attempt; RFC 5461.
_UNREACHABLE4: Final = {
    0: (errno.ENETUNREACH, False),
    1: (errno.EHOSTUNREACH, False),
    2: (errno.ENOPROTOOPT, True),
    3: (errno.ECONNREFUSED, True),
    4: (errno.EMSGSIZE, False),
    5: (errno.EOPNOTSUPP, False),
    6: (errno.ENETUNREACH, True),
    7: (errno.EHOSTDOWN, True),
    8: (errno.ENONET, True),
    9: (errno.ENETUNREACH, True),
    10: (errno.EHOSTUNREACH, True),
    11: (errno.ENETUNREACH, False),
    12: (errno.EHOSTUNREACH, False),
    13: (errno.EHOSTUNREACH, True),
    14: (errno.EHOSTUNREACH, True),
    15: (errno.EHOSTUNREACH, True),
}

_UNREACHABLE6: Final = {
    0: (errno.ENETUNREACH, False),
    1: (errno.EACCES, True),
    2: (errno.EHOSTUNREACH, False),
    3: (errno.EHOSTUNREACH, False),
    4: (errno.ECONNREFUSED, True),
    5: (errno.EACCES, True),
    6: (errno.EACCES, True),
}


def classify4(kind: int, code: int) -> tuple[int, bool] | None:
    """(errno, hard) of an ICMP error, or None if it tells transports nothing (redirect, source quench, unknown)."""
    if kind == icmp.UNREACHABLE:
        return _UNREACHABLE4.get(code)
    if kind == icmp.TIME_EXCEEDED:
        return errno.EHOSTUNREACH, False
    if kind == icmp.PARAMETER_PROBLEM:
        return errno.EPROTO, True
    return None


def classify6(kind: int, code: int) -> tuple[int, bool] | None:
    """(errno, hard) of an ICMPv6 error, or None for types that RFC 4443 does not define."""
    if kind == icmpv6.UNREACHABLE:
        return _UNREACHABLE6.get(code, (errno.EPROTO, True))
    if kind == icmpv6.PACKET_TOO_BIG:
        return errno.EMSGSIZE, False
    if kind == icmpv6.TIME_EXCEEDED:
        return errno.EHOSTUNREACH, False
    if kind == icmpv6.PARAMETER_PROBLEM:
        return errno.EPROTO, True
    return None
