"""SOL_SOCKET: the options every family has, as measured (section 2.1 of the socket semantics)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.options import INT_MAX, SOL_SOCKET, Kind, Option, Value

if TYPE_CHECKING:
    from stack.socket.base import Socket

# Linux <asm-generic/socket.h>.
SO_DEBUG: Final = 1
SO_REUSEADDR: Final = 2
SO_TYPE: Final = 3
SO_ERROR: Final = 4
SO_DONTROUTE: Final = 5
SO_BROADCAST: Final = 6
SO_SNDBUF: Final = 7
SO_RCVBUF: Final = 8
SO_KEEPALIVE: Final = 9
SO_OOBINLINE: Final = 10
SO_PRIORITY: Final = 12
SO_LINGER: Final = 13
SO_BSDCOMPAT: Final = 14
SO_REUSEPORT: Final = 15
SO_RCVLOWAT: Final = 18
SO_SNDLOWAT: Final = 19
SO_RCVTIMEO: Final = 20
SO_SNDTIMEO: Final = 21
SO_ACCEPTCONN: Final = 30
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_PROTOCOL: Final = 38
SO_DOMAIN: Final = 39
SO_RCVTIMEO_NEW: Final = 66
SO_SNDTIMEO_NEW: Final = 67

#: Linux net.core.wmem_max and rmem_max, bytes.
BUFFER_MAX: Final = 4 << 20
#: Linux net.core.wmem_default and rmem_default, bytes.
BUFFER_DEFAULT: Final = 212992
#: Linux SOCK_MIN_SNDBUF and SOCK_MIN_RCVBUF, bytes.
MIN_SNDBUF: Final = 4608
MIN_RCVBUF: Final = 2304


def socket_level(
    *, sndbuf: int = BUFFER_DEFAULT, rcvbuf: int = BUFFER_DEFAULT, without: Iterable[int] = ()
) -> list[Option]:
    """The rows; `without` are numbers this family refuses with EOPNOTSUPP. Buffer defaults in bytes."""

    def row(number: int, name: str, kind: Kind = Kind.BOOL, **more: Any) -> Option:
        return Option(SOL_SOCKET, number, name, kind, **more)

    rows = [
        row(SO_DEBUG, "SO_DEBUG", check=_debug),
        row(SO_REUSEADDR, "SO_REUSEADDR"),
        row(SO_TYPE, "SO_TYPE", Kind.INT, writable=False, get=lambda socket: socket.type),
        row(SO_ERROR, "SO_ERROR", Kind.INT, writable=False, get=lambda socket: socket.phase.take_error()),
        row(SO_DONTROUTE, "SO_DONTROUTE"),
        row(SO_BROADCAST, "SO_BROADCAST"),
        row(SO_SNDBUF, "SO_SNDBUF", Kind.INT, default=sndbuf, adjust=_buffer(MIN_SNDBUF)),
        row(SO_RCVBUF, "SO_RCVBUF", Kind.INT, default=rcvbuf, adjust=_buffer(MIN_RCVBUF)),
        row(SO_KEEPALIVE, "SO_KEEPALIVE"),
        row(SO_OOBINLINE, "SO_OOBINLINE"),
        row(SO_PRIORITY, "SO_PRIORITY", Kind.INT, check=_priority),
        row(SO_LINGER, "SO_LINGER", Kind.LINGER, default=(0, 0)),
        row(SO_BSDCOMPAT, "SO_BSDCOMPAT", get=lambda _: 0),
        row(SO_REUSEPORT, "SO_REUSEPORT"),
        row(SO_RCVLOWAT, "SO_RCVLOWAT", Kind.INT, default=1, adjust=_low_water),
        row(SO_SNDLOWAT, "SO_SNDLOWAT", Kind.INT, default=1, writable=False),
        row(SO_RCVTIMEO, "SO_RCVTIMEO", Kind.TIMEVAL, effect=_receive_timeout),
        row(SO_SNDTIMEO, "SO_SNDTIMEO", Kind.TIMEVAL, effect=_send_timeout),
        row(SO_RCVTIMEO_NEW, "SO_RCVTIMEO_NEW", Kind.TIMEVAL, effect=_receive_timeout, get=_get_receive_timeout),
        row(SO_SNDTIMEO_NEW, "SO_SNDTIMEO_NEW", Kind.TIMEVAL, effect=_send_timeout, get=_get_send_timeout),
        row(SO_ACCEPTCONN, "SO_ACCEPTCONN", Kind.INT, writable=False, get=lambda s: int(s.phase.listening)),
        row(SO_SNDBUFFORCE, "SO_SNDBUFFORCE", Kind.INT, readable=False, check=_forced, effect=_force(SO_SNDBUF)),
        row(SO_RCVBUFFORCE, "SO_RCVBUFFORCE", Kind.INT, readable=False, check=_forced, effect=_force(SO_RCVBUF)),
        row(SO_PROTOCOL, "SO_PROTOCOL", Kind.INT, writable=False, get=lambda socket: socket.protocol),
        row(SO_DOMAIN, "SO_DOMAIN", Kind.INT, writable=False, get=lambda socket: socket.family),
    ]
    refused = set(without)
    return [
        row(r.number, r.name, r.kind, readable=False, writable=False, refusal=errno.EOPNOTSUPP)
        if r.number in refused
        else r
        for r in rows
    ]


def _debug(socket: Socket, value: Value) -> None:
    if value and not socket.host.credentials.may(Capability.NET_ADMIN):
        raise NetError(errno.EACCES)


def _priority(socket: Socket, value: Value) -> None:
    if not socket.host.credentials.may(Capability.NET_ADMIN) and not (isinstance(value, int) and 0 <= value <= 6):
        raise NetError(errno.EPERM)


def _forced(socket: Socket, value: Value) -> None:
    if not socket.host.credentials.may(Capability.NET_ADMIN):
        raise NetError(errno.EPERM)


def _buffer(minimum: int) -> Callable[[Socket, int], int]:
    """Linux doubles what it is given, to have room for its book-keeping; negative counts as huge."""

    def adjust(socket: Socket, value: int) -> int:
        return max(2 * (BUFFER_MAX if value < 0 else min(value, BUFFER_MAX)), minimum)

    return adjust


def _force(number: int) -> Callable[[Socket, int], None]:
    minimum = MIN_SNDBUF if number == SO_SNDBUF else MIN_RCVBUF

    def effect(socket: Socket, value: int) -> None:
        socket.options.store(SOL_SOCKET, number, min(max(2 * max(value, 0), minimum), INT_MAX))

    return effect


def _low_water(socket: Socket, value: int) -> int:
    """At least 1; negative means as much as there can be."""
    return min(INT_MAX if value < 0 else max(value, 1), socket.low_water_max)


def _receive_timeout(socket: Socket, value: int) -> None:
    socket.receive_timeout = None if value == 0 else max(value, 0)
    socket.options.store(SOL_SOCKET, SO_RCVTIMEO, value)


def _send_timeout(socket: Socket, value: int) -> None:
    socket.send_timeout = None if value == 0 else max(value, 0)
    socket.options.store(SOL_SOCKET, SO_SNDTIMEO, value)


def _get_receive_timeout(socket: Socket) -> int:
    return int(socket.options.value(SOL_SOCKET, SO_RCVTIMEO))


def _get_send_timeout(socket: Socket) -> int:
    return int(socket.options.value(SOL_SOCKET, SO_SNDTIMEO))
