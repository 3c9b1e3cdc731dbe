"""NLMSG_ERROR and NLMSG_DONE: acks, refusals, and what extended acks add (rows RT-E6..RT-E10)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from stack.wire.netlink import header
from stack.wire.netlink.attribute import RAW, U32, Nested, Schema, String
from stack.wire.netlink.header import (
    HEADER,
    HEADER_LENGTH,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    Buffer,
    Header,
)

#: NLMSGERR_ATTR_*
EXTENDED: Final = Schema(
    (1, "message", String()),
    (2, "offset", U32),
    (3, "cookie", RAW),
    (4, "policy", Nested(Schema())),
    (5, "missing_type", U32),
    (6, "missing_nest", U32),
)

_ERROR: Final = struct.Struct("=i")


@dataclass(slots=True)
class Extended:
    """What is told besides the number; nothing, if the socket did not ask for it."""

    message: str = ""
    offset: int | None = None
    missing: int | None = None

    def emit(self) -> bytes:
        return EXTENDED.emit({"message": self.message or None, "offset": self.offset, "missing_type": self.missing})


def acknowledge(
    request: memoryview, pid: int, errno: int = 0, *, capped: bool = False, extended: Extended | None = None
) -> bytes:
    """The answer to `request`, a whole message: errno 0 for an ack, which never repeats more than the header."""
    original = Header(*HEADER.unpack_from(request))
    flags = 0
    echo: Buffer = request
    if capped or not errno:
        echo = request[:HEADER_LENGTH]
        flags |= NLM_F_CAPPED
    told = b"" if extended is None else extended.emit()
    if told:
        flags |= NLM_F_ACK_TLVS
    padding = bytes(header.align(len(echo)) - len(echo)) if told else b""
    payload = b"".join((_ERROR.pack(-errno), echo, padding, told))
    return header.pack(NLMSG_ERROR, flags, original.seq, pid, payload)


def done(seq: int, pid: int, errno: int = 0, *, flags: int = 0, extended: Extended | None = None) -> bytes:
    """The end of a dump. `flags` may add DUMP_INTR and DUMP_FILTERED."""
    told = b"" if extended is None else extended.emit()
    flags |= NLM_F_MULTI | (NLM_F_ACK_TLVS if told else 0)
    return header.pack(NLMSG_DONE, flags, seq, pid, _ERROR.pack(-errno) + told)


@dataclass(slots=True)
class Outcome:
    """A parsed NLMSG_ERROR or NLMSG_DONE. `errno` is positive, 0 for success."""

    errno: int
    message: str = ""
    offset: int | None = None


def parse(kind: int, flags: int, body: Buffer) -> Outcome:
    """For clients. A body too short for its number counts as success, as libraries have it."""
    if len(body) < _ERROR.size:
        return Outcome(0)
    errno = -_ERROR.unpack_from(body)[0]
    if not flags & NLM_F_ACK_TLVS:
        return Outcome(errno)
    start = _ERROR.size
    if kind == NLMSG_ERROR and len(body) >= start + HEADER_LENGTH:
        length = HEADER_LENGTH if flags & NLM_F_CAPPED else Header(*HEADER.unpack_from(body, start)).length
        start += header.align(length)
    told = EXTENDED.parse(memoryview(body)[start:])
    return Outcome(errno, told.get("message", ""), told.get("offset"))
