"""`MessageType`: a fixed header and a schema of attributes; `Message`: one of them, parsed."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stack.wire.netlink import header
from stack.wire.netlink.attribute import Context, Schema
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import Buffer


@dataclass(slots=True)
class Message:
    """What came: the fields of the fixed header, and the attributes, both by name."""

    fields: dict[str, int]
    attributes: dict[str, Any] = field(default_factory=dict)
    leftover: bool = False  #: bytes came after the last attribute; Linux warns of them


class MessageType:
    """One body layout, shared by the NEW, DEL and GET messages of a family."""

    def __init__(self, form: str, names: str, schema: Schema) -> None:
        """`form` is of `struct`; `names` the fields, blank-separated."""
        self._struct = struct.Struct(form)
        self.names = tuple(names.split())
        self.schema = schema
        self.header_length = self._struct.size  #: bytes of the fixed part

    def parse_fields(self, body: Buffer) -> dict[str, int]:
        """The fixed part alone. Raises NetlinkError(EINVAL) if it is not all there."""
        if len(body) < self._struct.size:
            raise NetlinkError(errno.EINVAL)
        return dict(zip(self.names, self._struct.unpack_from(body), strict=True))

    def parse(self, body: Buffer, *, strict: bool = False) -> Message:
        """From a message's bytes after its nlmsghdr. Raises NetlinkError; offsets in it count the nlmsghdr."""
        fields = self.parse_fields(body)
        start = header.align(self._struct.size)
        context = Context(strict, 0, header.HEADER_LENGTH + start)
        attributes = self.schema.parse(memoryview(body)[start:], context)
        return Message(fields, attributes, context.leftover)

    def offset_of(self, body: Buffer, name: str) -> int | None:
        """Where attribute `name` is in the whole message, for an extended ack."""
        start = header.align(self._struct.size)
        return self.schema.offset_of(memoryview(body)[start:], name, header.HEADER_LENGTH + start)

    def emit(self, fields: Mapping[str, int], attributes: Mapping[str, Any] | None = None) -> bytes:
        """A body. Fields not named are 0. Raises KeyError for names there are not."""
        for name in fields:
            if name not in self.names:
                raise KeyError(name)
        fixed = self._struct.pack(*(fields.get(name, 0) for name in self.names))
        padding = bytes(header.align(len(fixed)) - len(fixed))
        return fixed + padding + self.schema.emit(attributes or {})
