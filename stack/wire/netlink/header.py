"""struct nlmsghdr: constants, one message, and a datagram as a sequence of messages (rows NL-14, RT-E1, RT-E13)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

# Protocols of AF_NETLINK that exist here (row NL-01).
NETLINK_ROUTE: Final = 0
NETLINK_USERSOCK: Final = 2
NETLINK_KOBJECT_UEVENT: Final = 15
NETLINK_GENERIC: Final = 16
MAX_LINKS: Final = 32  #: protocols are below this

# Flags of every message, of GET, of NEW, of DEL, and of answers. They share bits.
NLM_F_REQUEST: Final = 0x1
NLM_F_MULTI: Final = 0x2
NLM_F_ACK: Final = 0x4
NLM_F_ECHO: Final = 0x8
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP_FILTERED: Final = 0x20
NLM_F_ROOT: Final = 0x100
NLM_F_MATCH: Final = 0x200
NLM_F_DUMP: Final = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200

# Control messages (row NL-16).
NLMSG_NOOP: Final = 1
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLMSG_OVERRUN: Final = 4
NLMSG_MIN_TYPE: Final = 16  #: types below are control

#: length (header included), type, flags, sequence number, port id
HEADER: Final = struct.Struct("=IHHII")
HEADER_LENGTH: Final = HEADER.size


class Header(NamedTuple):
    length: int
    type: int
    flags: int
    seq: int
    pid: int


def align(length: int) -> int:
    """NLMSG_ALIGN and NLA_ALIGN: up to a multiple of 4."""
    return (length + 3) & ~3


def pack(kind: int, flags: int, seq: int, pid: int, payload: Buffer) -> bytes:
    """One message, padded to a multiple of 4. The length in it does not count the padding."""
    length = HEADER_LENGTH + len(payload)
    return b"".join((HEADER.pack(length, kind, flags, seq, pid), payload, bytes(align(length) - length)))


def split(data: Buffer) -> Iterator[tuple[Header, memoryview]]:
    """The messages of a datagram as (header, whole message, header included, padding not).

    Stops silently at the first one that is shorter than a header or longer than what is left, as the kernel does.
    """
    rest = memoryview(data)
    while len(rest) >= HEADER_LENGTH:
        header = Header(*HEADER.unpack_from(rest))
        if not HEADER_LENGTH <= header.length <= len(rest):
            return
        yield header, rest[: header.length]
        rest = rest[align(header.length) :]
