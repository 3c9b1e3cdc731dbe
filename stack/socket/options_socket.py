"""SOL_SOCKET: the options every family has, as measured (section 2.1 of the socket semantics).

Those about time stamps, devices, marks and the like that only some families go by are in `options_device`.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.options import INT_MAX, SOL_SOCKET, Kind, Option, Value
from stack.socket.options_device import device_rows, require_admin_or_raw

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
SO_NO_CHECK: Final = 11
SO_PRIORITY: Final = 12
SO_LINGER: Final = 13
SO_BSDCOMPAT: Final = 14
SO_REUSEPORT: Final = 15
SO_PASSCRED: Final = 16
SO_PEERCRED: Final = 17
SO_RCVLOWAT: Final = 18
SO_SNDLOWAT: Final = 19
SO_RCVTIMEO: Final = 20
SO_SNDTIMEO: Final = 21
SO_PEERNAME: Final = 28
SO_ACCEPTCONN: Final = 30
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_PASSSEC: Final = 34
SO_PROTOCOL: Final = 38
SO_DOMAIN: Final = 39
SO_RXQ_OVFL: Final = 40
SO_WIFI_STATUS: Final = 41
SO_PEEK_OFF: Final = 42
SO_NOFCS: Final = 43
SO_SELECT_ERR_QUEUE: Final = 45
SO_BUSY_POLL: Final = 46
SO_MAX_PACING_RATE: Final = 47
SO_BPF_EXTENSIONS: Final = 48
SO_INCOMING_CPU: Final = 49
SO_MEMINFO: Final = 55
SO_INCOMING_NAPI_ID: Final = 56
SO_COOKIE: Final = 57
SO_PEERGROUPS: Final = 59
SO_ZEROCOPY: Final = 60
SO_TXTIME: Final = 61
SO_RCVTIMEO_NEW: Final = 66
SO_SNDTIMEO_NEW: Final = 67
SO_PREFER_BUSY_POLL: Final = 69
SO_NETNS_COOKIE: Final = 71
SO_BUF_LOCK: Final = 72
SO_TXREHASH: Final = 74
SO_RCVMARK: Final = 75
SO_PASSPIDFD: Final = 76
SO_PEERPIDFD: Final = 77
SO_RCVPRIORITY: Final = 82
SO_PASSRIGHTS: Final = 83

#: SO_MAX_PACING_RATE of a socket nobody slows down.
UNLIMITED: Final = (1 << 64) - 1
#: Linux net.core.wmem_max and rmem_max, bytes.
BUFFER_MAX: Final = 4 << 20
#: Linux net.core.wmem_default and rmem_default, bytes.
BUFFER_DEFAULT: Final = 212992
#: Linux SOCK_MIN_SNDBUF and SOCK_MIN_RCVBUF, bytes.
MIN_SNDBUF: Final = 4608
MIN_RCVBUF: Final = 2304


#: What only Unix sockets have (section 2.1): others refuse them, in both directions.
_UNIX_ONLY: Final = {
    SO_PASSCRED: "SO_PASSCRED",
    SO_PASSSEC: "SO_PASSSEC",
    SO_PASSPIDFD: "SO_PASSPIDFD",
    SO_PASSRIGHTS: "SO_PASSRIGHTS",
}
_SOCK_STREAM: Final = 1
_INTERNET: Final = (2, 10)  # AF_INET, AF_INET6
#: Instructions a BPF program may use besides the classic ones (SO_BPF_EXTENSIONS), as Linux says it.
_BPF_EXTENSIONS: Final = 64
_CLOCKS: Final = (0, 1, 11)  # CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_TAI
_CLOCK_MONOTONIC: Final = 1
_TXTIME: Final = struct.Struct("@iI")  # struct sock_txtime
_NO_CREDENTIALS: Final = struct.pack("@iii", 0, -1, -1)  # struct ucred of nobody


def socket_level(
    *, sndbuf: int = BUFFER_DEFAULT, rcvbuf: int = BUFFER_DEFAULT, without: Iterable[int] = ()
) -> list[Option]:
    """The rows; `without` are numbers this family refuses with EOPNOTSUPP. Buffer defaults in bytes.

    A family that has more to say about an option puts its own row behind these.
    """

    def row(number: int, name: str, kind: Kind = Kind.BOOL, **more: Any) -> Option:
        return Option(SOL_SOCKET, number, name, kind, **more)

    rows = [
        row(SO_DEBUG, "SO_DEBUG", check=_debug),
        row(SO_REUSEADDR, "SO_REUSEADDR"),
        row(SO_TYPE, "SO_TYPE", Kind.INT, writable=False, get=lambda socket: socket.type),
        row(SO_ERROR, "SO_ERROR", Kind.INT, writable=False, get=lambda socket: socket.phase.take_error()),
        row(SO_DONTROUTE, "SO_DONTROUTE"),
        row(SO_BROADCAST, "SO_BROADCAST"),
        row(SO_SNDBUF, "SO_SNDBUF", Kind.INT, default=sndbuf, adjust=_buffer(MIN_SNDBUF), effect=_lock(1)),
        row(SO_RCVBUF, "SO_RCVBUF", Kind.INT, default=rcvbuf, adjust=_buffer(MIN_RCVBUF), effect=_lock(2)),
        row(SO_KEEPALIVE, "SO_KEEPALIVE"),
        row(SO_OOBINLINE, "SO_OOBINLINE"),
        row(SO_NO_CHECK, "SO_NO_CHECK"),
        row(SO_PRIORITY, "SO_PRIORITY", Kind.INT, check=_priority),
        row(SO_LINGER, "SO_LINGER", Kind.LINGER, default=(0, 0)),
        row(SO_BSDCOMPAT, "SO_BSDCOMPAT", get=lambda _: 0),
        row(SO_REUSEPORT, "SO_REUSEPORT"),
        row(SO_PEERCRED, "SO_PEERCRED", Kind.OPAQUE, writable=False, get=lambda _: _NO_CREDENTIALS),
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
        row(SO_RXQ_OVFL, "SO_RXQ_OVFL"),
        row(SO_WIFI_STATUS, "SO_WIFI_STATUS"),
        row(SO_PEEK_OFF, "SO_PEEK_OFF", Kind.INT, default=-1),
        row(SO_NOFCS, "SO_NOFCS"),
        row(SO_SELECT_ERR_QUEUE, "SO_SELECT_ERR_QUEUE"),
        row(SO_BUSY_POLL, "SO_BUSY_POLL", Kind.INT, low=0),
        row(SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE", Kind.OPAQUE, act=_set_pacing, show=_show_pacing),
        row(SO_BPF_EXTENSIONS, "SO_BPF_EXTENSIONS", Kind.INT, default=_BPF_EXTENSIONS, writable=False),
        row(SO_INCOMING_CPU, "SO_INCOMING_CPU", Kind.INT, default=-1),
        row(SO_MEMINFO, "SO_MEMINFO", Kind.OPAQUE, writable=False, get=_memory),
        row(SO_INCOMING_NAPI_ID, "SO_INCOMING_NAPI_ID", Kind.INT, writable=False),
        row(SO_COOKIE, "SO_COOKIE", Kind.OPAQUE, writable=False, show=_cookie),
        row(SO_PEERGROUPS, "SO_PEERGROUPS", Kind.OPAQUE, writable=False, get=_no_data),
        row(SO_ZEROCOPY, "SO_ZEROCOPY", Kind.INT, low=0, high=1),
        row(SO_TXTIME, "SO_TXTIME", Kind.OPAQUE, default=bytes(_TXTIME.size), act=_set_transmit_time),
        row(SO_PREFER_BUSY_POLL, "SO_PREFER_BUSY_POLL", check=_admin_to_switch_on),
        row(SO_NETNS_COOKIE, "SO_NETNS_COOKIE", Kind.OPAQUE, writable=False, show=_namespace_cookie),
        row(SO_BUF_LOCK, "SO_BUF_LOCK", Kind.INT, low=0, high=3),
        row(SO_TXREHASH, "SO_TXREHASH", Kind.INT, check=_rehash, get=_get_rehash),
        row(SO_RCVMARK, "SO_RCVMARK"),
        row(SO_PEERPIDFD, "SO_PEERPIDFD", Kind.OPAQUE, writable=False, get=_no_data),
        row(SO_RCVPRIORITY, "SO_RCVPRIORITY"),
        *(
            row(number, name, readable=False, writable=False, refusal=errno.EOPNOTSUPP)
            for number, name in _UNIX_ONLY.items()
        ),
        *device_rows(),
    ]
    refused = set(without)
    if SO_REUSEPORT in refused:  # off is what it is in any case
        refused.remove(SO_REUSEPORT)
        rows.append(row(SO_REUSEPORT, "SO_REUSEPORT", check=_never_on))
    return [
        row(r.number, r.name, r.kind, readable=False, writable=False, refusal=errno.EOPNOTSUPP)
        if r.number in refused
        else r
        for r in rows
    ]


def _never_on(socket: Socket, value: Value) -> None:
    if value:
        raise NetError(errno.EOPNOTSUPP)


def _admin_to_switch_on(socket: Socket, value: Value) -> None:
    if value and not socket.host.credentials.may(Capability.NET_ADMIN):
        raise NetError(errno.EPERM)


def _debug(socket: Socket, value: Value) -> None:
    if value and not socket.host.credentials.may(Capability.NET_ADMIN):
        raise NetError(errno.EACCES)


def _priority(socket: Socket, value: Value) -> None:
    if not (isinstance(value, int) and 0 <= value <= 6):
        require_admin_or_raw(socket)


def _forced(socket: Socket, value: Value) -> None:
    if not socket.host.credentials.may(Capability.NET_ADMIN):
        raise NetError(errno.EPERM)


def _buffer(minimum: int) -> Callable[[Socket, int], int]:
    """Linux doubles what it is given, to have room for its book-keeping; negative counts as huge."""

    def adjust(socket: Socket, value: int) -> int:
        return max(2 * (BUFFER_MAX if value < 0 else min(value, BUFFER_MAX)), minimum)

    return adjust


def _lock(bit: int) -> Callable[[Socket, int], None]:
    """A size the user chose is not tuned any more; SO_BUF_LOCK tells (SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK)."""

    def effect(socket: Socket, value: int) -> None:
        locks = int(socket.options.value(SOL_SOCKET, SO_BUF_LOCK))
        socket.options.store(SOL_SOCKET, SO_BUF_LOCK, locks | bit)

    return effect


def _force(number: int) -> Callable[[Socket, int], None]:
    minimum = MIN_SNDBUF if number == SO_SNDBUF else MIN_RCVBUF
    lock = _lock(1 if number == SO_SNDBUF else 2)

    def effect(socket: Socket, value: int) -> None:
        socket.options.store(SOL_SOCKET, number, min(max(2 * max(value, 0), minimum), INT_MAX))
        lock(socket, value)

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


def _set_pacing(socket: Socket, data: bytes) -> None:
    """Bytes a second: a u64, or an unsigned int whose largest value means no limit."""
    if len(data) < 4:
        raise NetError(errno.EINVAL)
    if len(data) >= 8:
        rate = int.from_bytes(data[:8], sys.byteorder)
    else:
        rate = int.from_bytes(data[:4], sys.byteorder)
        rate = UNLIMITED if rate == 0xFFFFFFFF else rate
    socket.options.store(SOL_SOCKET, SO_MAX_PACING_RATE, rate.to_bytes(8, sys.byteorder))


def pacing_rate(socket: Socket) -> int:
    """SO_MAX_PACING_RATE, bytes a second; `UNLIMITED`: as fast as can be."""
    stored = bytes(socket.options.value(SOL_SOCKET, SO_MAX_PACING_RATE) or b"")
    return int.from_bytes(stored, sys.byteorder) if stored else UNLIMITED


def _show_pacing(socket: Socket, room: int) -> bytes:
    rate = pacing_rate(socket)
    if room >= 8:
        return rate.to_bytes(8, sys.byteorder)
    return min(rate, 0xFFFFFFFF).to_bytes(4, sys.byteorder)


def _memory(socket: Socket) -> bytes:
    """The nine numbers of SK_MEMINFO_*: what waits, its limit, what is being sent, its limit, ..., drops."""
    waiting, sending, drops = socket.phase.memory()
    value = socket.options.value
    return struct.pack(
        "@9I", waiting, value(SOL_SOCKET, SO_RCVBUF), sending, value(SOL_SOCKET, SO_SNDBUF), 0, 0, 0, 0, drops
    )


def _cookie(socket: Socket, room: int) -> bytes:
    if room < 8:
        raise NetError(errno.EINVAL)
    stored = socket.options.value(SOL_SOCKET, SO_COOKIE)
    if not stored:
        stored = socket.host.netns.ip.new_cookie().to_bytes(8, sys.byteorder)
        socket.options.store(SOL_SOCKET, SO_COOKIE, stored)
    return bytes(stored)


def _namespace_cookie(socket: Socket, room: int) -> bytes:
    if room != 8:
        raise NetError(errno.EINVAL)
    return int(socket.host.netns.ip.cookie).to_bytes(8, sys.byteorder)


def _rehash(socket: Socket, value: Value) -> None:
    """Only TCP's flows are hashed anew when they lose packets."""
    if value not in (-1, 0, 1) and socket.type == _SOCK_STREAM and socket.family in _INTERNET:
        raise NetError(errno.EINVAL)
    if socket.type != _SOCK_STREAM or socket.family not in _INTERNET:
        raise NetError(errno.EOPNOTSUPP)


def _get_rehash(socket: Socket) -> int:
    _rehash(socket, 0)
    stored = int(socket.options.value(SOL_SOCKET, SO_TXREHASH))
    return stored if socket.options.explicit(SOL_SOCKET, SO_TXREHASH) and stored >= 0 else 1


def _no_data(socket: Socket) -> bytes:
    raise NetError(errno.ENODATA)


def _set_transmit_time(socket: Socket, data: bytes) -> None:
    """struct sock_txtime: a clock and flags for SCM_TXTIME."""
    if len(data) != _TXTIME.size:
        raise NetError(errno.EINVAL)
    clock, flags = _TXTIME.unpack(data)
    if flags & ~3:
        raise NetError(errno.EINVAL)
    if clock != _CLOCK_MONOTONIC and not socket.host.credentials.may(Capability.NET_ADMIN):
        raise NetError(errno.EPERM)
    if clock not in _CLOCKS:
        raise NetError(errno.EINVAL)
    socket.options.store(SOL_SOCKET, SO_TXTIME, data)
