"""What an AF_VSOCK socket understands (section 2.6 of the socket semantics, measured)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.scheduler import NS_PER_S, NS_PER_US
from stack.socket.options import SOL_SOCKET, Kind, Option, OptionTable, Value
from stack.socket.options_socket import SO_REUSEPORT, socket_level
from stack.vsock.connection import CONNECT_TIMEOUT, DEFAULT_BUFFER

if TYPE_CHECKING:
    from stack.socket.vsock.stream import VsockSocket

AF_VSOCK: Final = 40  #: also the options' level

# Linux <linux/vm_sockets.h>. The others are VMCI's and unknown here as they are to virtio's.
SO_VM_SOCKETS_BUFFER_SIZE: Final = 0
SO_VM_SOCKETS_BUFFER_MIN_SIZE: Final = 1
SO_VM_SOCKETS_BUFFER_MAX_SIZE: Final = 2
SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD: Final = 6
SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW: Final = 8

#: Options of the socket level that Linux knows, but not for this family (measured).
_OTHER_FAMILIES: Final = {
    16: "SO_PASSCRED",
    34: "SO_PASSSEC",
    42: "SO_PEEK_OFF",
    74: "SO_TXREHASH",
    76: "SO_PASSPIDFD",
}

MINIMUM_BUFFER: Final = 128  # bytes; Linux VSOCK_DEFAULT_BUFFER_MIN_SIZE
_U64_MAX: Final = 2**64 - 1
_TIMEVAL: Final = struct.Struct("@ll")
#: Linux MAX_SCHEDULE_TIMEOUT / HZ - 1, with Debian's HZ of 250.
_LONGEST: Final = (2**63 - 1) // 250 - 1

#: Bytes a getsockopt buffer must have at least, by option: a shorter one is EINVAL, not a shorter answer.
SIZES: Final = {
    SO_VM_SOCKETS_BUFFER_SIZE: 8,
    SO_VM_SOCKETS_BUFFER_MIN_SIZE: 8,
    SO_VM_SOCKETS_BUFFER_MAX_SIZE: 8,
    SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD: _TIMEVAL.size,
    SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW: _TIMEVAL.size,
}


def _clamped(socket: VsockSocket, size: int) -> int:
    """Linux applies the maximum last: one below the minimum wins."""
    values = socket.options
    at_least = values.value(AF_VSOCK, SO_VM_SOCKETS_BUFFER_MIN_SIZE)
    return int(min(max(size, at_least), values.value(AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE)))


def _limits_changed(socket: VsockSocket, _: int) -> None:
    values = socket.options
    size = _clamped(socket, values.value(AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE))
    values.store(AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, size)


def _check_timeout(_: VsockSocket, value: Value) -> None:
    seconds, microseconds = _timeval(value)
    if not (0 <= microseconds < 1_000_000 and 0 <= seconds < _LONGEST):
        raise NetError(errno.ERANGE)


def _set_timeout(socket: VsockSocket, value: Value) -> None:
    seconds, microseconds = _timeval(value)
    socket.connect_timeout = seconds * NS_PER_S + microseconds * NS_PER_US or CONNECT_TIMEOUT


def _timeval(value: Value) -> tuple[int, int]:
    if not isinstance(value, bytes) or len(value) < _TIMEVAL.size:
        raise NetError(errno.EINVAL)
    seconds, microseconds = _TIMEVAL.unpack_from(value)
    return seconds, microseconds


def _get_timeout(socket: VsockSocket) -> bytes:
    seconds, nanoseconds = divmod(socket.connect_timeout, NS_PER_S)
    return _TIMEVAL.pack(seconds, nanoseconds // NS_PER_US)


def _size_row(number: int, name: str, default: int) -> Option:
    limits = number != SO_VM_SOCKETS_BUFFER_SIZE
    return Option(
        AF_VSOCK,
        number,
        name,
        Kind.U64,
        default=default,
        low=0,
        high=_U64_MAX,
        adjust=None if limits else _clamped,
        effect=_limits_changed if limits else None,
    )


def _timeout_row(number: int, name: str) -> Option:
    return Option(AF_VSOCK, number, name, Kind.OPAQUE, check=_check_timeout, effect=_set_timeout, get=_get_timeout)


VSOCK_OPTIONS: Final = OptionTable(
    [
        *(row for row in socket_level() if row.number != SO_REUSEPORT),
        # Reading it is allowed, setting it is not (measured).
        Option(SOL_SOCKET, SO_REUSEPORT, "SO_REUSEPORT", Kind.BOOL, writable=False, refusal=errno.EOPNOTSUPP),
        *(
            Option(SOL_SOCKET, number, name, readable=False, writable=False, refusal=errno.EOPNOTSUPP)
            for number, name in _OTHER_FAMILIES.items()
        ),
        _size_row(SO_VM_SOCKETS_BUFFER_SIZE, "SO_VM_SOCKETS_BUFFER_SIZE", DEFAULT_BUFFER),
        _size_row(SO_VM_SOCKETS_BUFFER_MIN_SIZE, "SO_VM_SOCKETS_BUFFER_MIN_SIZE", MINIMUM_BUFFER),
        _size_row(SO_VM_SOCKETS_BUFFER_MAX_SIZE, "SO_VM_SOCKETS_BUFFER_MAX_SIZE", DEFAULT_BUFFER),
        _timeout_row(SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD, "SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD"),
        _timeout_row(SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW, "SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW"),
    ],
    unknown_level_get=errno.ENOPROTOOPT,
    unknown_level_set=errno.ENOPROTOOPT,
)
