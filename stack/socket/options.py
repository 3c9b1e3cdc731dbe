"""Socket options as one declarative table, and the code that interprets it (row OPT-00 and section 2).

Theory of operation
-------------------
An `Option` says everything about one option: level, number, name, kind of value, default, range, the errno outside the
range, whether it may be read or set, and what setting it does. `OptionTable` is what one family (and type) of sockets
understands; `OptionValues` is what one socket has been told. get/setsockopt, the tests and the documentation are all
driven by the same rows. There is one file of rows per level: `options_socket` (SOL_SOCKET), `ip.options` and
`ip.options6` (IPPROTO_IP, IPPROTO_IPV6), `ip.memberships` (their multicast groups), `ip.options_udp`, and so on.

The kinds of value are those of the C interface: `INT` and `BOOL` are a C int (any non-zero BOOL reads as 1), `U64`
eight bytes, `TIMEVAL` two longs, `LINGER` two ints, `NAME` a NUL-padded string. A getter may compute the value
instead of looking it up (SO_ERROR, TCP_INFO); an effect may pass it on. Every store is also told to the socket's
phase.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias

from stack.errors import NetError
from stack.scheduler import NS_PER_S, NS_PER_US

SOL_SOCKET: Final = 1  # Linux <asm-generic/socket.h>

_AF_INET6: Final = 10
#: SOL_SOCKET, TCP, UDP: the levels where Linux looks at the length before the number (row OPT-00).
_LENGTH_FIRST: Final = frozenset({1, 6, 17})

INT_MAX: Final = 0x7FFFFFFF
INT_MIN: Final = -0x80000000

#: What a value is inside: an int (BOOL: 0 or 1; TIMEVAL: ns, 0 for ever, -1 not at all), (on, seconds), or bytes.
Value: TypeAlias = int | bytes | tuple[int, int]

_INT: Final = struct.Struct("@i")
_U64: Final = struct.Struct("@Q")
_LINGER: Final = struct.Struct("@ii")
_TIMEVAL: Final = struct.Struct("@ll")


class Kind(Enum):
    """The C type of an option's value."""

    INT = "int"
    BOOL = "bool"
    U64 = "u64"
    LINGER = "struct linger"
    TIMEVAL = "struct timeval"
    NAME = "string"
    OPAQUE = "bytes"  # a struct that a getter packs


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table. `low` and `high` bound INT and U64 values and the lengths of NAMEs; outside them, `error`.

    ``adjust`` maps the value a user gave to the one stored (doubling, clamping); it may raise NetError.
    ``get`` computes the value from the socket; ``effect`` is called with socket and stored value after a store.
    ``check`` is called before a store and may refuse by NetError (state or privilege).
    """

    level: int
    number: int
    name: str
    kind: Kind = Kind.INT
    default: Value = 0
    low: int = INT_MIN
    high: int = INT_MAX
    error: int = errno.EINVAL
    readable: bool = True
    writable: bool = True
    short_ok: bool = False  #: one byte is enough; on level IPPROTO_IP it is what a short read of a small value gives
    empty_ok: bool = False  #: nothing at all counts as 0
    refusal: int = errno.ENOPROTOOPT  #: for what is not readable or not writable
    adjust: Callable[[Any, int], int] | None = None
    check: Callable[[Any, Value], None] | None = None
    get: Callable[[Any], Value] | None = None
    effect: Callable[[Any, Any], None] | None = None
    #: Instead of all the above: `act` does what a set asks for (socket, the bytes given), `show` makes the bytes of a
    #: get (socket, the room there is for them). Both may raise NetError. For what is no value: a membership, a list.
    act: Callable[[Any, bytes], None] | None = None
    show: Callable[[Any, int], bytes] | None = None


class OptionTable:
    """The options one kind of socket understands."""

    def __init__(
        self,
        rows: Iterable[Option],
        *,
        unknown_level_get: int = errno.EOPNOTSUPP,
        unknown_level_set: int = errno.ENOPROTOOPT,
    ) -> None:
        self._rows = {(row.level, row.number): row for row in rows}
        self._levels = {level for level, _ in self._rows}
        self._unknown_level_get = unknown_level_get
        self._unknown_level_set = unknown_level_set

    def __contains__(self, key: tuple[int, int]) -> bool:
        """Is there a row (level, number)?"""
        return key in self._rows

    def __iter__(self) -> Iterator[Option]:
        return iter(self._rows.values())

    def knows(self, level: int, number: int) -> bool:
        """Whether there is such a row, or not even such a level."""
        return (level, number) in self._rows or level not in self._levels

    def row(self, level: int, number: int, *, setting: bool, family: int = 0) -> Option:
        """The row, or NetError(ENOPROTOOPT) for an unknown option, EOPNOTSUPP or so for an unknown level."""
        row = self._rows.get((level, number))
        if row is None:
            if level in self._levels:
                raise NetError(errno.ENOPROTOOPT)
            if family == _AF_INET6:
                raise NetError(errno.ENOPROTOOPT)  # IPv6 answers for every level
            raise NetError(self._unknown_level_set if setting else self._unknown_level_get)
        return row


class OptionValues:
    """What one socket's options are set to; defaults cost nothing."""

    __slots__ = ("_values", "table")

    def __init__(self, table: OptionTable) -> None:
        self.table = table
        self._values: dict[tuple[int, int], Value] = {}

    def value(self, level: int, number: int) -> Any:
        """The stored (or default) value, in the inner form of `Value`."""
        value = self._values.get((level, number))
        return self.table.row(level, number, setting=False).default if value is None else value

    def store(self, level: int, number: int, value: Value) -> None:
        """Store without any check; for inheritance and for the protocol's own adjustments."""
        self._values[level, number] = value

    def explicit(self, level: int, number: int) -> bool:
        """Whether it was ever set."""
        return (level, number) in self._values

    def inherit(self, other: OptionValues, *, except_for: Iterable[tuple[int, int]] = ()) -> None:
        """Take over what `other` was told (accept, row TCP-16)."""
        self._values = {key: value for key, value in other._values.items() if key not in except_for}


def get_option(socket: Any, values: OptionValues, level: int, number: int, length: int | None) -> int | bytes:
    """getsockopt: an int when `length` is None, else up to `length` bytes. Raises NetError."""
    row = values.table.row(level, number, setting=False, family=socket.family)
    if not row.readable:
        raise NetError(row.refusal)
    if row.show is not None:
        value: Value = row.show(socket, _INT.size if length is None else length)
    else:
        value = row.get(socket) if row.get is not None else values.value(level, number)
    packed = _pack(row, value)
    if length is not None:
        one_byte = not level and length < _INT.size and isinstance(value, int) and 0 <= value <= 0xFF
        return packed[: 1 if one_byte else length]
    if len(packed) < _INT.size:  # an empty string read into an int leaves what the caller had there: zero
        packed = packed.ljust(_INT.size, b"\0")
    return int(_INT.unpack_from(packed)[0])


def set_option(
    socket: Any, values: OptionValues, level: int, number: int, given: int | bytes | bytearray | memoryview
) -> Value:
    """setsockopt: check, store, effect; returns what was stored. Raises NetError."""
    data = _INT.pack(given) if isinstance(given, int) else bytes(given)
    if level in _LENGTH_FIRST and len(data) < _INT.size and not values.table.knows(level, number):
        raise NetError(errno.EINVAL)
    row = values.table.row(level, number, setting=True)
    if not row.writable:
        if level and len(data) < _INT.size:  # checked first everywhere but on level IPPROTO_IP (OPT-00)
            raise NetError(errno.EINVAL)
        raise NetError(row.refusal)
    if row.act is not None:
        row.act(socket, data)
        return data
    value = _unpack(row, data)
    if isinstance(value, tuple) and not value[0]:
        value = (0, values.value(level, number)[1])  # switching SO_LINGER off does not touch the seconds
    if isinstance(value, int) and row.kind in _RANGED:
        if not row.low <= value <= row.high:
            raise NetError(row.error)
        if row.adjust is not None:
            value = row.adjust(socket, value)
    if row.check is not None:
        row.check(socket, value)
    values.store(level, number, value)
    if row.effect is not None:
        row.effect(socket, value)
    return value


_RANGED: Final = frozenset({Kind.INT, Kind.U64})


def _unpack(row: Option, data: bytes) -> Value:
    kind = row.kind
    if kind in (Kind.INT, Kind.BOOL):
        if len(data) < _INT.size:
            if not (row.short_ok if data else row.empty_ok):
                raise NetError(errno.EINVAL)
            value = data[0] if data else 0
        else:
            value = _INT.unpack_from(data)[0]
        return int(value != 0) if kind is Kind.BOOL else value
    if kind is Kind.U64:
        return int(_fixed(_U64, data)[0])
    if kind is Kind.LINGER:
        on, seconds = _fixed(_LINGER, data)
        return int(on != 0), seconds
    if kind is Kind.TIMEVAL:
        seconds, microseconds = _fixed(_TIMEVAL, data)
        if not 0 <= microseconds < 1_000_000:
            raise NetError(errno.EDOM)
        return -1 if seconds < 0 else int(seconds * NS_PER_S + microseconds * NS_PER_US)
    if kind is Kind.NAME:
        if len(data) < row.low:
            raise NetError(errno.EINVAL)
        return data.split(b"\0", 1)[0]
    return data


def _fixed(layout: struct.Struct, data: bytes) -> tuple[Any, ...]:
    if len(data) < layout.size:
        raise NetError(errno.EINVAL)
    return layout.unpack_from(data)


def _pack(row: Option, value: Value) -> bytes:
    kind = row.kind
    if isinstance(value, bytes):
        return value.ljust(row.high, b"\0") if kind is Kind.NAME and row.high != INT_MAX else value
    if isinstance(value, tuple):
        return _LINGER.pack(*value)
    if kind is Kind.U64:
        return _U64.pack(value)
    if kind is Kind.TIMEVAL:
        seconds, nanoseconds = divmod(max(value, 0), NS_PER_S)
        return _TIMEVAL.pack(seconds, nanoseconds // NS_PER_US)
    return _INT.pack(value)
