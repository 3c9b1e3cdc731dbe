"""ICMP for IPv4 (RFC 792, RFC 1122 3.2.2, RFC 1191)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from stack.wire.checksum import checksum
from stack.wire.error import WireError

HEADER_LENGTH: Final = 8  # bytes

ECHO_REPLY: Final = 0
UNREACHABLE: Final = 3
REDIRECT: Final = 5
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12

#: Codes of UNREACHABLE.
NET_UNREACHABLE: Final = 0
HOST_UNREACHABLE: Final = 1
PROTOCOL_UNREACHABLE: Final = 2
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4
SOURCE_ROUTE_FAILED: Final = 5
ADMINISTRATIVELY_PROHIBITED: Final = 13
#: Codes of TIME_EXCEEDED.
TTL_EXCEEDED: Final = 0
REASSEMBLY_EXCEEDED: Final = 1

#: Types that report an error about another packet; never answered with an error (RFC 1122 3.2.2).
#: Those that may carry extensions behind the quotation (RFC 4884 4).
EXTENSIBLE: Final = frozenset({UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM})
ERROR_TYPES: Final = frozenset({UNREACHABLE, 4, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM})

#: type, code, checksum, the 32 bits whose meaning depends on the type
HEADER: Final = struct.Struct("!BBHI")


@dataclass(slots=True)
class IcmpMessage:
    """One message. ``info`` is the second word: identifier and sequence of an echo, the MTU in its low half of
    FRAGMENTATION_NEEDED, the pointer in its high byte of PARAMETER_PROBLEM."""

    type: int
    code: int
    info: int
    data: bytes | memoryview

    def emit(self) -> bytes:
        """The whole message with its checksum."""
        body = bytes(self.data)
        header = HEADER.pack(self.type, self.code, 0, self.info)
        return HEADER.pack(self.type, self.code, checksum(header + body), self.info) + body

    def __str__(self) -> str:
        return f"icmp type {self.type} code {self.code} info 0x{self.info:08x}, {len(self.data)} bytes"


def parse(payload: memoryview) -> IcmpMessage:
    """The message in an IPv4 payload, checksum verified. Raises WireError."""
    if len(payload) < HEADER_LENGTH:
        raise WireError(f"ICMP message of {len(payload)} bytes")
    if checksum(payload):
        raise WireError("ICMP checksum")
    kind, code, _, info = HEADER.unpack_from(payload)
    return IcmpMessage(kind, code, info, payload[HEADER_LENGTH:])
