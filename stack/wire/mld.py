"""Multicast listener discovery as a host speaks it: version 2 (RFC 3810) and 1 (RFC 2710). Messages of ICMPv6."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from stack.wire.error import WireError
from stack.wire.icmpv6 import Icmpv6Message
from stack.wire.igmp import Query, Record, floating, parse_query_tail

QUERY: Final = 130
V1_REPORT: Final = 131
V1_DONE: Final = 132
V2_REPORT: Final = 143
TYPES: Final = frozenset({QUERY, V1_REPORT, V1_DONE, V2_REPORT})

V2_ROUTERS: Final = b"\xff\x02" + bytes(13) + b"\x16"  #: ff02::16
#: Hop-by-hop header with router alert for MLD (RFC 2711) and PadN; goes in front of every message.
ROUTER_ALERT: Final = bytes((58, 0, 5, 2, 0, 0, 1, 0))


def parse_group(message: Icmpv6Message) -> bytes:
    """The group of a version 1 report or done. Raises WireError."""
    if len(message.data) < 16:
        raise WireError("MLD message cut short")
    return bytes(message.data[:16])


def parse_query(message: Icmpv6Message) -> Query:
    """Raises WireError."""
    data = memoryview(message.data)
    group = parse_group(message)
    code = message.info >> 16
    if len(data) == 16:
        return Query(group, code, version=1)
    suppress, robustness, interval, sources = parse_query_tail(data[16:], 16)
    return Query(group, floating(code, 12), sources, 2, suppress, robustness, interval)


def emit(kind: int, group: bytes, src: bytes, dst: bytes) -> bytes:
    """A version 1 report or done."""
    return Icmpv6Message(kind, 0, 0, group).emit(src, dst)


def emit_report(records: Iterable[Record] | Sequence[Record], src: bytes, dst: bytes) -> bytes:
    """A version 2 report."""
    emitted = [record.emit() for record in records]
    return Icmpv6Message(V2_REPORT, 0, len(emitted), b"".join(emitted)).emit(src, dst)
