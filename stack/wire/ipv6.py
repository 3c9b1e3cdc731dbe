"""The IPv6 header and the extension headers a host walks over (RFC 8200), and its special addresses (RFC 4291)."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from stack.wire.error import WireError

HEADER_LENGTH: Final = 40  # bytes
FRAGMENT_HEADER_LENGTH: Final = 8  # bytes
MIN_MTU: Final = 1280  # RFC 8200 5
MAX_PAYLOAD_LENGTH: Final = 65535  # bytes after the fixed header

#: version, traffic class and flow label; payload length; next header; hop limit; source; destination
HEADER: Final = struct.Struct("!IHBB16s16s")
#: next header, reserved, offset (8-byte units) with the M bit lowest, identification
FRAGMENT: Final = struct.Struct("!BBHI")

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT_HEADER: Final = 44
ICMPV6: Final = 58
NO_NEXT_HEADER: Final = 59
DESTINATION_OPTIONS: Final = 60

#: A chain longer than this is dropped: RFC 8504 5.3 lets a host limit it, every header costs us a loop.
MAX_EXTENSION_HEADERS: Final = 8

ANY: Final = bytes(16)
LOOPBACK: Final = bytes(15) + b"\x01"
ALL_ROUTERS: Final = b"\xff\x02" + bytes(13) + b"\x02"  #: ff02::2
ALL_NODES: Final = b"\xff\x02" + bytes(13) + b"\x01"  #: ff02::1
SOLICITED_NODE_PREFIX: Final = b"\xff\x02" + bytes(9) + b"\x01\xff"  #: ff02::1:ff00:0/104


@dataclass(slots=True)
class Ipv6Header:
    """The fixed header."""

    src: bytes
    dst: bytes
    next_header: int
    payload_length: int
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0

    def emit(self) -> bytes:
        first = 0x60000000 | self.traffic_class << 20 | self.flow_label
        return HEADER.pack(first, self.payload_length, self.next_header, self.hop_limit, self.src, self.dst)

    def __str__(self) -> str:
        return (
            f"IP6 {text(self.src)} > {text(self.dst)}: next {self.next_header}, "
            f"length {self.payload_length}, hlim {self.hop_limit}"
        )


def parse(packet: memoryview) -> tuple[Ipv6Header, memoryview]:
    """Fixed header and what follows it, link padding cut off. Raises WireError."""
    if len(packet) < HEADER_LENGTH:
        raise WireError(f"IPv6 packet of {len(packet)} bytes")
    first, length, next_header, hop_limit, src, dst = HEADER.unpack_from(packet)
    if first >> 28 != 6:
        raise WireError(f"IPv6 version {first >> 28}")
    if length > len(packet) - HEADER_LENGTH:
        raise WireError(f"IPv6 payload length {length} in a packet of {len(packet)} bytes")
    header = Ipv6Header(src, dst, next_header, length, hop_limit, first >> 20 & 0xFF, first & 0xFFFFF)
    return header, packet[HEADER_LENGTH : HEADER_LENGTH + length]


@dataclass(slots=True)
class FragmentHeader:
    """RFC 8200 4.5. ``offset`` in bytes."""

    next_header: int
    offset: int
    more: bool
    ident: int

    def emit(self) -> bytes:
        return FRAGMENT.pack(self.next_header, 0, self.offset | self.more, self.ident)


def parse_fragment(data: memoryview) -> tuple[FragmentHeader, memoryview]:
    """Fragment header and the fragment's bytes. Raises WireError."""
    if len(data) < FRAGMENT_HEADER_LENGTH:
        raise WireError(f"IPv6 fragment header of {len(data)} bytes")
    next_header, _, offset, ident = FRAGMENT.unpack_from(data)
    return FragmentHeader(next_header, offset & 0xFFF8, bool(offset & 1), ident), data[FRAGMENT_HEADER_LENGTH:]


@dataclass(slots=True)
class ExtensionChain:
    """Where a walk over extension headers ended. Offsets count from the start of the walked bytes."""

    next_header: int  #: protocol at `offset`, or FRAGMENT_HEADER
    offset: int
    pointer: int  #: offset of the next-header field that named `next_header`
    problem: int  #: -1, or the offset of an option or field that asks for a Parameter Problem
    problem_code: int  #: ICMPv6 code of the problem; 2: unrecognised option
    discard: bool  #: an unrecognised option asks to drop silently
    even_multicast: bool = False  #: the problem is reported of a packet to a group too (option type 10xxxxxx)


def walk_extensions(next_header: int, data: memoryview) -> ExtensionChain:
    """Step over hop-by-hop, destination and routing headers to the upper layer or the fragment header (RFC 8200 4).

    Raises WireError for a header that does not fit or a chain that is too long.
    """
    offset = 0
    pointer = -HEADER_LENGTH + 6  # the fixed header's own next-header field
    for _ in range(MAX_EXTENSION_HEADERS):
        if next_header not in (HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING):
            return ExtensionChain(next_header, offset, pointer, -1, 0, False)
        if len(data) - offset < 8:
            raise WireError("IPv6 extension header cut short")
        length = (data[offset + 1] + 1) * 8
        if length > len(data) - offset:
            raise WireError("IPv6 extension header longer than the packet")
        if next_header == HOP_BY_HOP and offset:
            return ExtensionChain(next_header, offset, pointer, pointer, 1, False)  # RFC 8200 4.1: only first
        if next_header == ROUTING:
            if data[offset + 3]:  # segments left, of a type we do not process (RFC 8200 4.4, RFC 5095)
                return ExtensionChain(next_header, offset, pointer, offset + 2, 0, False)
        else:
            problem, discard = walk_options(data, offset + 2, offset + length)
            if discard or problem >= 0:
                return ExtensionChain(
                    next_header, offset, pointer, problem, 2, discard, problem >= 0 and data[problem] >> 6 == 2
                )
        next_header = data[offset]
        pointer = offset
        offset += length
    raise WireError("too many IPv6 extension headers")


def transport_offset(packet: memoryview) -> tuple[int, int]:
    """(offset of the transport header, its protocol) of a packet to forward; other routers' business is not judged."""
    next_header = packet[6]
    offset = HEADER_LENGTH
    while next_header in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS) and offset + 8 <= len(packet):
        next_header, offset = packet[offset], offset + (packet[offset + 1] + 1) * 8
    return min(offset, len(packet)), next_header


def walk_options(data: memoryview, at: int, end: int) -> tuple[int, bool]:
    """(offset of an option to complain about or -1, drop silently) for ``data[at:end]`` (RFC 8200 4.2)."""
    while at < end:
        kind = data[at]
        if kind == 0:  # Pad1
            at += 1
            continue
        if at + 1 >= end or at + 2 + data[at + 1] > end:
            raise WireError("IPv6 option longer than its header")
        # PadN and Router Alert (RFC 2711) are known; of others the two highest bits say what to do.
        if kind not in (1, 5):
            action = kind >> 6
            if action == 1:
                return -1, True
            if action >= 2:
                return at, False
        at += 2 + data[at + 1]
    return -1, False


def text(address: bytes) -> str:
    """RFC 5952 form, ``fd00::2``."""
    return str(ipaddress.IPv6Address(address))


def is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF


def is_link_local(address: bytes) -> bool:
    """fe80::/10"""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_mapped(address: bytes) -> bool:
    """::ffff:0:0/96, IPv4 in IPv6 clothes: never on the wire (RFC 4291 2.5.5.2)."""
    return address.startswith(b"\x00" * 10 + b"\xff\xff")


def solicited_node(address: bytes) -> bytes:
    """The group that a neighbour solicitation for `address` goes to (RFC 4291 2.7.1)."""
    return SOLICITED_NODE_PREFIX + address[13:16]


def link_local_from_mac(mac: bytes) -> bytes:
    """fe80:: with the modified EUI-64 of `mac` (RFC 4291 appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:6]
