"""IGMP as a host speaks it: version 3 (RFC 3376) and 2 (RFC 2236)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from stack.wire.checksum import checksum
from stack.wire.error import WireError

PROTO: Final = 2
QUERY: Final = 0x11
V2_REPORT: Final = 0x16
V2_LEAVE: Final = 0x17
V3_REPORT: Final = 0x22
HEADER_LENGTH: Final = 8  # bytes

ALL_ROUTERS: Final = b"\xe0\x00\x00\x02"  #: 224.0.0.2
V3_ROUTERS: Final = b"\xe0\x00\x00\x16"  #: 224.0.0.22
ROUTER_ALERT: Final = b"\x94\x04\x00\x00"  #: the IPv4 option (RFC 2113)


class RecordType(IntEnum):
    """Of a group record, the same in MLDv2 (RFC 3376 4.2.12, RFC 3810 5.2.12)."""

    MODE_IS_INCLUDE = 1
    MODE_IS_EXCLUDE = 2
    CHANGE_TO_INCLUDE = 3
    CHANGE_TO_EXCLUDE = 4
    ALLOW_NEW_SOURCES = 5
    BLOCK_OLD_SOURCES = 6


@dataclass(slots=True)
class Record:
    """What a report says about one group."""

    type: RecordType
    group: bytes
    sources: Sequence[bytes] = ()

    def emit(self) -> bytes:
        """The same layout for both families, but for the length of addresses."""
        return struct.pack("!BBH", self.type, 0, len(self.sources)) + self.group + b"".join(self.sources)


@dataclass(slots=True)
class Query:
    """One query. ``max_response`` in ms; all-zero ``group`` for a general one; ``version`` 3 (or MLD 2), or less."""

    group: bytes
    max_response: int
    sources: tuple[bytes, ...] = ()
    version: int = 3
    suppress: bool = False
    robustness: int = 2
    interval: int = 125  #: s


def floating(code: int, mantissa_bits: int) -> int:
    """The value of a code of which the larger half is a floating-point number (RFC 3376 4.1.1, RFC 3810 5.1.3)."""
    top = 1 << (mantissa_bits + 3)
    if code < top:
        return code
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = code >> mantissa_bits & 7
    return (mantissa | 1 << mantissa_bits) << (exponent + 3)


def parse_query_tail(data: memoryview, width: int) -> tuple[bool, int, int, tuple[bytes, ...]]:
    """(S flag, robustness, interval in s, sources) of what follows a query's group. Raises WireError."""
    if len(data) < 4:
        raise WireError("group membership query cut short")
    flags, interval, count = struct.unpack_from("!BBH", data)
    if len(data) < 4 + count * width:
        raise WireError(f"group membership query with {count} sources in {len(data)} bytes")
    sources = tuple(bytes(data[at : at + width]) for at in range(4, 4 + count * width, width))
    return bool(flags & 8), flags & 7 or 2, floating(interval, 4) or 125, sources


def parse(payload: memoryview) -> tuple[int, bytes, Query | None]:
    """(type, group, the query if it is one), checksum verified. Raises WireError."""
    if len(payload) < HEADER_LENGTH:
        raise WireError(f"IGMP message of {len(payload)} bytes")
    if checksum(payload):
        raise WireError("IGMP checksum")
    kind, code = payload[0], payload[1]
    group = bytes(payload[4:8])
    if kind != QUERY:
        return kind, group, None
    if len(payload) == HEADER_LENGTH:
        # Version 1 asks with code 0, which means ten seconds (RFC 2236 2.2, 4).
        return kind, group, Query(group, code * 100 or 10_000, version=2)
    suppress, robustness, interval, sources = parse_query_tail(payload[HEADER_LENGTH:], 4)
    return kind, group, Query(group, floating(code, 4) * 100, sources, 3, suppress, robustness, interval)


def emit(kind: int, group: bytes) -> bytes:
    """A version 2 report or leave."""
    head = struct.pack("!BBH", kind, 0, 0) + group
    return head[:2] + checksum(head).to_bytes(2, "big") + head[4:]


def emit_report(records: Iterable[Record]) -> bytes:
    """A version 3 report."""
    emitted = [record.emit() for record in records]
    whole = struct.pack("!BBHHH", V3_REPORT, 0, 0, 0, len(emitted)) + b"".join(emitted)
    return whole[:2] + checksum(whole).to_bytes(2, "big") + whole[4:]
