"""struct nlattr, the types of attributes, and `Schema`: which attributes a message may have (row NL-15).

Theory of operation
-------------------
A schema is data: attributes by number, name and type. `Schema.parse` turns bytes into a dict of name to value,
`Schema.emit` a mapping back into bytes, in the mapping's order, because Linux's order is part of what clients see.
Which attribute failed is reported by its offset in the message, as an extended ack wants it.

What Linux lets pass, passes: attributes it does not know, a value longer than its type, bytes after the last
attribute, an attribute twice (the last one counts). What it refuses is refused with its errno: a value too short
(ERANGE), a string too long (ERANGE) or without its final zero where that is required (EINVAL). *Strict* parsing, on
which NETLINK_GET_STRICT_CHK insists, refuses all of them with EINVAL. An attribute whose length cannot be ends the
list. Nesting is bounded.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import Buffer, align

NLA_F_NESTED: Final = 0x8000
NLA_F_NET_BYTEORDER: Final = 0x4000
NLA_TYPE_MASK: Final = 0x3FFF

#: length (header included), type
ATTRIBUTE: Final = struct.Struct("=HH")
HEADER_LENGTH: Final = ATTRIBUTE.size
MAX_LENGTH: Final = 0xFFFF  # of one attribute, header included
MAX_DEPTH: Final = 10  # nesting; Linux: MAX_POLICY_RECURSION_DEPTH

POLICY: Final = "Attribute failed policy validation"
LEFTOVER: Final = "bytes leftover after parsing attributes"


@dataclass(slots=True)
class Context:
    """One parse: how strict, how deep, and where in the message the present bytes start."""

    strict: bool = False
    depth: int = 0
    base: int = 0
    leftover: bool = False  #: set by the parse: there were bytes after the last attribute that could be


def attributes(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(type with its flag bits, offset of the attribute in `data`, value) until the end or the first impossible one."""
    offset = 0
    end = len(data)
    while end - offset >= HEADER_LENGTH:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if not HEADER_LENGTH <= length <= end - offset:
            return
        yield kind, offset, data[offset + HEADER_LENGTH : offset + length]
        offset += align(length)


def pack(kind: int, value: Buffer) -> bytes:
    """One attribute, padded. Raises ValueError if the value does not fit into 16 bits of length."""
    length = HEADER_LENGTH + len(value)
    if length > MAX_LENGTH:
        raise ValueError(f"attribute {kind & NLA_TYPE_MASK} of {length} bytes: there can be {MAX_LENGTH}")
    return b"".join((ATTRIBUTE.pack(length, kind), value, bytes(align(length) - length)))


class AttributeType(Protocol):
    """How a value looks on the wire."""

    nested: bool  #: emitted with NLA_F_NESTED

    def parse(self, data: memoryview, context: Context) -> Any:
        """Raises NetlinkError without an offset: `Schema` adds it."""
        ...

    def emit(self, value: Any) -> bytes: ...


class Number:
    """A fixed-size integer."""

    nested = False

    def __init__(self, form: str) -> None:
        """`form` is of `struct`, with its byte order."""
        self._struct = struct.Struct(form)

    def parse(self, data: memoryview, context: Context) -> int:
        if len(data) < self._struct.size:
            raise NetlinkError(errno.ERANGE, POLICY)
        if context.strict and len(data) != self._struct.size:
            raise NetlinkError(errno.EINVAL, "invalid attribute length")
        return int(self._struct.unpack_from(data)[0])

    def emit(self, value: int) -> bytes:
        return self._struct.pack(value)


class String:
    """Text with a final zero. `most` is the longest, in bytes, without it."""

    nested = False

    def __init__(self, most: int = MAX_LENGTH, *, zero: bool = False) -> None:
        """`zero`: the final zero must be there (NLA_NUL_STRING)."""
        self._most = most
        self._zero = zero

    def parse(self, data: memoryview, context: Context) -> str:
        raw = bytes(data)
        text, found, _ = raw.partition(b"\0")
        if self._zero and not found:
            raise NetlinkError(errno.EINVAL, POLICY)
        if len(text) > self._most or not raw:
            raise NetlinkError(errno.ERANGE, POLICY)
        return text.decode("utf-8", "surrogateescape")

    def emit(self, value: str) -> bytes:
        return value.encode("utf-8", "surrogateescape") + b"\0"


class Bytes:
    """Raw bytes: at least `least`, at most `most`."""

    nested = False

    def __init__(self, least: int = 0, most: int = MAX_LENGTH) -> None:
        self._least = least
        self._most = most

    def parse(self, data: memoryview, context: Context) -> bytes:
        if not self._least <= len(data) <= self._most:
            raise NetlinkError(errno.ERANGE, POLICY)
        return bytes(data)

    def emit(self, value: bytes) -> bytes:
        return value


class Flag:
    """There or not; a flag that is False is not emitted."""

    nested = False

    def parse(self, data: memoryview, context: Context) -> bool:
        return True

    def emit(self, value: bool) -> bytes:
        return b""


class Record:
    """A C struct: a dict of its fields. Missing ones are emitted as 0; a longer value is cut."""

    nested = False

    def __init__(self, form: str, *fields: str) -> None:
        self._struct = struct.Struct(form)
        self._fields = fields

    def parse(self, data: memoryview, context: Context) -> dict[str, int]:
        if len(data) < self._struct.size:
            raise NetlinkError(errno.EINVAL if context.strict else errno.ERANGE, POLICY)
        return dict(zip(self._fields, self._struct.unpack_from(data), strict=True))

    def emit(self, value: Mapping[str, int]) -> bytes:
        return self._struct.pack(*(value.get(field, 0) for field in self._fields))


class Nested:
    """Attributes of a schema. A function may stand for the schema, for those that contain themselves."""

    def __init__(self, schema: Schema | Callable[[], Schema], *, marked: bool = True) -> None:
        """`marked`: emitted with NLA_F_NESTED, which older families of messages lack."""
        self._schema = schema
        self.nested = marked

    @property
    def schema(self) -> Schema:
        return self._schema if isinstance(self._schema, Schema) else self._schema()

    def parse(self, data: memoryview, context: Context) -> dict[str, Any]:
        return self.schema.parse(data, deeper(context))

    def emit(self, value: Mapping[str, Any]) -> bytes:
        return self.schema.emit(value)


class Listed:
    """A list of attributes of one type; numbered from `first`, or all of number `same`."""

    def __init__(self, item: AttributeType, *, first: int = 1, same: int | None = None, marked: bool = True) -> None:
        self._item = item
        self._first = first
        self._same = same
        self.nested = marked

    def parse(self, data: memoryview, context: Context) -> list[Any]:
        inner = deeper(context)
        return [
            self._item.parse(value, Context(inner.strict, inner.depth, inner.base + at + HEADER_LENGTH))
            for _, at, value in attributes(data)
        ]

    def emit(self, value: Sequence[Any]) -> bytes:
        mark = NLA_F_NESTED if self._item.nested else 0
        return b"".join(
            pack((self._first + at if self._same is None else self._same) | mark, self._item.emit(each))
            for at, each in enumerate(value)
        )


def deeper(context: Context) -> Context:
    """The context of what is nested in the present attribute. Raises NetlinkError beyond `MAX_DEPTH`."""
    if context.depth >= MAX_DEPTH:
        raise NetlinkError(errno.EINVAL, "allowed policy recursion depth exceeded")
    return Context(context.strict, context.depth + 1, context.base)


@dataclass(frozen=True, slots=True)
class Attribute:
    number: int
    name: str
    type: AttributeType


class Schema:
    """The attributes one message, or one nest, may have. `rows` are (number, name, type)."""

    def __init__(self, *rows: tuple[int, str, AttributeType]) -> None:
        self.by_number = {number: Attribute(number, name, kind) for number, name, kind in rows}
        self.by_name = {each.name: each for each in self.by_number.values()}

    def extended(self, *rows: tuple[int, str, AttributeType]) -> Schema:
        """This schema and more."""
        return Schema(*((each.number, each.name, each.type) for each in self.by_number.values()), *rows)

    def parse(self, data: Buffer, context: Context | None = None) -> dict[str, Any]:
        """Values by name. Raises NetlinkError with the offset of what cannot be."""
        context = context or Context()
        view = memoryview(data)
        found: dict[str, Any] = {}
        end = 0
        for kind, at, value in attributes(view):
            end = at + align(HEADER_LENGTH + len(value))
            known = self.by_number.get(kind & NLA_TYPE_MASK)
            offset = context.base + at
            if known is None:
                if context.strict:
                    raise NetlinkError(errno.EINVAL, "Unknown attribute type", offset=offset)
                continue
            inner = Context(context.strict, context.depth, offset + HEADER_LENGTH)
            try:
                found[known.name] = known.type.parse(value, inner)
            except NetlinkError as error:
                if error.offset is None:
                    error.offset = offset
                raise
        if end < len(view):
            if context.strict:
                raise NetlinkError(errno.EINVAL, LEFTOVER)
            context.leftover = True
        return found

    def offset_of(self, data: Buffer, name: str, base: int) -> int | None:
        """Where attribute `name` last is: bytes from `base` before `data`; None if it is not there."""
        number = self.by_name[name].number
        found = [at for kind, at, _ in attributes(memoryview(data)) if kind & NLA_TYPE_MASK == number]
        return base + found[-1] if found else None

    def emit(self, values: Mapping[str, Any]) -> bytes:
        """In the mapping's order; None and False are left out. Raises KeyError for a name the schema lacks."""
        parts = []
        for name, value in values.items():
            row = self.by_name[name]
            if value is None or value is False:
                continue
            parts.append(pack(row.number | (NLA_F_NESTED if row.type.nested else 0), row.type.emit(value)))
        return b"".join(parts)


U8: Final = Number("=B")
U16: Final = Number("=H")
U32: Final = Number("=I")
U64: Final = Number("=Q")
S32: Final = Number("=i")
BE16: Final = Number("!H")
#: A MAC address or other link-layer address.
LINK_ADDRESS: Final = Bytes(0, 32)
#: An IPv4 or IPv6 address; which of the two, the message says.
ADDRESS: Final = Bytes(4, 16)
RAW: Final = Bytes()
FLAG: Final = Flag()
