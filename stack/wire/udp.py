"""The UDP header (RFC 768; RFC 8200 8.1 for IPv6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from stack.wire.checksum import checksum, pseudo_sum
from stack.wire.error import WireError

HEADER_LENGTH: Final = 8  # bytes
CHECKSUM_OFFSET: Final = 6  # bytes into the header
PROTO: Final = 17

#: source port, destination port, length, checksum
HEADER: Final = struct.Struct("!HHHH")


@dataclass(slots=True)
class UdpHeader:
    """One header. ``checksum`` 0 means none was made (IPv4 only)."""

    src_port: int
    dst_port: int
    length: int
    checksum: int = 0

    def emit(self) -> bytes:
        return HEADER.pack(self.src_port, self.dst_port, self.length, self.checksum)

    def __str__(self) -> str:
        return f"udp {self.src_port} > {self.dst_port}, length {self.length - HEADER_LENGTH}"


def parse(payload: memoryview) -> tuple[UdpHeader, memoryview]:
    """Header and data. The checksum is the caller's to verify (`IpPacket.csum_ok`). Raises WireError."""
    if len(payload) < HEADER_LENGTH:
        raise WireError(f"UDP datagram of {len(payload)} bytes")
    header = UdpHeader(*HEADER.unpack_from(payload))
    if not HEADER_LENGTH <= header.length <= len(payload):
        raise WireError(f"UDP length {header.length} in {len(payload)} bytes")
    return header, payload[HEADER_LENGTH : header.length]


def emit(src: bytes, dst: bytes, src_port: int, dst_port: int, data: bytes) -> bytes:
    """A whole datagram with its full checksum, for tests and tools; the stack itself leaves it to the device."""
    length = HEADER_LENGTH + len(data)
    header = HEADER.pack(src_port, dst_port, length, 0)
    value = checksum(header + data, pseudo_sum(src, dst, PROTO, length))
    return HEADER.pack(src_port, dst_port, length, value or 0xFFFF) + data
