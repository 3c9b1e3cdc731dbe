"""The IPv4 header (RFC 791, RFC 6864), addresses in text, and which addresses mean what (RFC 6890)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from stack.wire.checksum import checksum, partial_sum
from stack.wire.error import WireError

HEADER_LENGTH: Final = 20  # bytes, without options
MAX_TOTAL_LENGTH: Final = 65535  # bytes
MIN_MTU: Final = 68  # RFC 791: every link carries this much

FLAG_DF: Final = 0x4000
FLAG_MF: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF  # in units of 8 bytes
FRAGMENT_MASK: Final = FLAG_MF | OFFSET_MASK

#: version and IHL, TOS, total length, identification, flags and offset, TTL, protocol, checksum, source, destination
HEADER: Final = struct.Struct("!BBHHHBBH4s4s")

PROTO_ICMP: Final = 1
PROTO_TCP: Final = 6
PROTO_UDP: Final = 17

OPTION_END: Final = 0
OPTION_NOP: Final = 1
OPTION_RECORD_ROUTE: Final = 7
OPTION_LSRR: Final = 131
OPTION_SSRR: Final = 137

ANY: Final = bytes(4)
LIMITED_BROADCAST: Final = b"\xff" * 4
LOOPBACK: Final = b"\x7f\x00\x00\x01"
ALL_SYSTEMS: Final = b"\xe0\x00\x00\x01"  #: 224.0.0.1


@dataclass(slots=True)
class Ipv4Header:
    """One header. ``fragment`` holds the three flag bits and the offset as on the wire."""

    src: bytes
    dst: bytes
    proto: int
    total_length: int
    ident: int = 0
    fragment: int = 0
    ttl: int = 64
    tos: int = 0
    options: bytes = b""

    @property
    def header_length(self) -> int:
        return HEADER_LENGTH + len(self.options)

    def emit(self) -> bytes:
        """The header with its checksum; `options` must be padded to a multiple of 4 bytes, 40 at most."""
        words = self.header_length // 4
        without = HEADER.pack(
            0x40 | words,
            self.tos,
            self.total_length,
            self.ident,
            self.fragment,
            self.ttl,
            self.proto,
            0,
            self.src,
            self.dst,
        )
        value = partial_sum(without, partial_sum(self.options)) ^ 0xFFFF
        return without[:10] + value.to_bytes(2, "big") + without[12:] + self.options

    def __str__(self) -> str:
        return f"IP {text(self.src)} > {text(self.dst)}: proto {self.proto}, length {self.total_length}, ttl {self.ttl}"


def parse(packet: memoryview) -> tuple[Ipv4Header, memoryview]:
    """Header and payload, link padding cut off. Raises WireError."""
    if len(packet) < HEADER_LENGTH:
        raise WireError(f"IPv4 packet of {len(packet)} bytes")
    first, tos, total, ident, fragment, ttl, proto, _, src, dst = HEADER.unpack_from(packet)
    header_length = (first & 0x0F) * 4
    if first >> 4 != 4 or header_length < HEADER_LENGTH:
        raise WireError(f"IPv4 header starts with 0x{first:02x}")
    if not header_length <= total <= len(packet):
        raise WireError(f"IPv4 length {total} in a packet of {len(packet)} bytes")
    if checksum(packet[:header_length]):
        raise WireError("IPv4 header checksum")
    options = bytes(packet[HEADER_LENGTH:header_length])
    header = Ipv4Header(src, dst, proto, total, ident, fragment, ttl, tos, options)
    return header, packet[header_length:total]


def has_source_route(options: bytes | memoryview) -> bool:
    """LSRR or SSRR among `options`. Raises WireError for an option with a lying length."""
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == OPTION_END:
            break
        if kind == OPTION_NOP:
            at += 1
            continue
        if at + 1 >= len(options) or not 2 <= options[at + 1] <= len(options) - at:
            raise WireError(f"IPv4 option {kind} with a bad length")
        if kind in (OPTION_LSRR, OPTION_SSRR):
            return True
        at += options[at + 1]
    return False


def text(address: bytes) -> str:
    """``10.0.2.15``"""
    return ".".join(map(str, address))


def is_multicast(address: bytes) -> bool:
    return 224 <= address[0] <= 239


def is_loopback(address: bytes) -> bool:
    return address[0] == 127


def may_be_source(address: bytes) -> bool:
    """Could another host have sent from here? RFC 1122 3.2.1.3: no broadcast, multicast, loopback, 0/8."""
    return address[0] not in (0, 127) and address[0] < 224
