"""ICMPv6 (RFC 4443) with the neighbour discovery messages a host needs to talk on a link (RFC 4861)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from stack.wire.checksum import checksum, pseudo_sum
from stack.wire.error import WireError
from stack.wire.ipv6 import ICMPV6, is_multicast

HEADER_LENGTH: Final = 8  # bytes
PROTO: Final = ICMPV6

UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2
TIME_EXCEEDED: Final = 3
PARAMETER_PROBLEM: Final = 4
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129
ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOUR_SOLICITATION: Final = 135
NEIGHBOUR_ADVERTISEMENT: Final = 136
REDIRECT: Final = 137

#: Those that may carry extensions behind the quotation (RFC 4884 4).
EXTENSIBLE: Final = frozenset({UNREACHABLE, TIME_EXCEEDED})
#: Codes of UNREACHABLE.
NO_ROUTE: Final = 0
ADMINISTRATIVELY_PROHIBITED: Final = 1
BEYOND_SCOPE: Final = 2
ADDRESS_UNREACHABLE: Final = 3
PORT_UNREACHABLE: Final = 4
#: Codes of TIME_EXCEEDED.
HOP_LIMIT_EXCEEDED: Final = 0
REASSEMBLY_EXCEEDED: Final = 1
#: Codes of PARAMETER_PROBLEM.
ERRONEOUS_FIELD: Final = 0
INCOMPLETE_CHAIN: Final = 3  # RFC 7112
UNKNOWN_NEXT_HEADER: Final = 1
UNKNOWN_OPTION: Final = 2

#: Messages below this type are errors, the others informational (RFC 4443 2.1).
FIRST_INFORMATIONAL: Final = 128

OPTION_SOURCE_LINK_ADDRESS: Final = 1
OPTION_TARGET_LINK_ADDRESS: Final = 2
OPTION_NONCE: Final = 14  # RFC 3971 5.3.2, for RFC 7527

#: Flags in the second word of a neighbour advertisement.
NA_ROUTER: Final = 1 << 31
NA_SOLICITED: Final = 1 << 30
NA_OVERRIDE: Final = 1 << 29

#: Neighbour discovery only believes packets that no router has forwarded (RFC 4861 3.1).
ND_HOP_LIMIT: Final = 255

#: type, code, checksum, the 32 bits whose meaning depends on the type
HEADER: Final = struct.Struct("!BBHI")


@dataclass(slots=True)
class Icmpv6Message:
    """One message. ``info`` is the second word: identifier and sequence, MTU, pointer, or flags."""

    type: int
    code: int
    info: int
    data: bytes | memoryview

    def emit(self, src: bytes, dst: bytes) -> bytes:
        """The whole message with its checksum, which covers the pseudo-header of (16-byte) `src` and `dst`."""
        body = bytes(self.data)
        header = HEADER.pack(self.type, self.code, 0, self.info)
        value = checksum(header + body, pseudo_sum(src, dst, PROTO, HEADER_LENGTH + len(body)))
        return HEADER.pack(self.type, self.code, value, self.info) + body

    def __str__(self) -> str:
        return (
            f"icmp6 type {self.type} code {self.code} info 0x{self.info:08x}, length {HEADER_LENGTH + len(self.data)}"
        )


@dataclass(slots=True)
class NeighbourMessage:
    """A neighbour solicitation or advertisement: target, link-layer address option (or None), flags of an NA."""

    target: bytes
    link_address: bytes | None
    flags: int = 0
    nonce: bytes | None = None  #: RFC 7527: by which its sender knows it again


def parse(payload: memoryview, src: bytes, dst: bytes) -> Icmpv6Message:
    """The message in an IPv6 payload, checksum verified. Raises WireError."""
    if len(payload) < HEADER_LENGTH:
        raise WireError(f"ICMPv6 message of {len(payload)} bytes")
    if checksum(payload, pseudo_sum(src, dst, PROTO, len(payload))):
        raise WireError("ICMPv6 checksum")
    kind, code, _, info = HEADER.unpack_from(payload)
    return Icmpv6Message(kind, code, info, payload[HEADER_LENGTH:])


def parse_neighbour(message: Icmpv6Message, src: bytes, dst: bytes, hop_limit: int) -> NeighbourMessage:
    """Validate a solicitation or advertisement by RFC 4861 7.1.1 and 7.1.2. Raises WireError."""
    if hop_limit != ND_HOP_LIMIT:
        raise WireError(f"neighbour discovery with hop limit {hop_limit}")
    if message.code:
        raise WireError(f"neighbour discovery with code {message.code}")
    data = message.data
    if len(data) < 16:
        raise WireError("neighbour discovery without a target")
    target = bytes(data[:16])
    if is_multicast(target):
        raise WireError("neighbour discovery for a multicast target")
    solicitation = message.type == NEIGHBOUR_SOLICITATION
    wanted = OPTION_SOURCE_LINK_ADDRESS if solicitation else OPTION_TARGET_LINK_ADDRESS
    link_address = _link_address(memoryview(data)[16:], wanted)
    unspecified = not any(src)
    if solicitation and unspecified:
        if not (dst[0] == 0xFF and dst[11:13] == b"\x01\xff"):
            raise WireError("duplicate address probe to a unicast address")
        if link_address is not None:
            raise WireError("duplicate address probe with a link-layer address")
    if not solicitation and is_multicast(dst) and message.info & NA_SOLICITED:
        raise WireError("solicited advertisement to a multicast address")
    nonce = _nonce(memoryview(data)[16:]) if solicitation else None
    return NeighbourMessage(target, link_address, 0 if solicitation else message.info, nonce)


def _link_address(options: memoryview, wanted: int) -> bytes | None:
    """The 6-byte address in option `wanted`, or None. Raises WireError for an option with a bad length."""
    found = None
    while options:
        if len(options) < 2 or not options[1] or options[1] * 8 > len(options):
            raise WireError("neighbour discovery option with a bad length")
        length = options[1] * 8
        if options[0] == wanted and length == 8 and found is None:
            found = bytes(options[2:8])
            if found[0] & 1:
                raise WireError("link-layer address of a neighbour is multicast")
        options = options[length:]
    return found


def _nonce(options: memoryview) -> bytes | None:
    """Of options whose lengths were found good."""
    while options:
        length = options[1] * 8
        if options[0] == OPTION_NONCE:
            return bytes(options[2:length])
        options = options[length:]
    return None


def emit_neighbour(
    kind: int, target: bytes, mac: bytes | None, flags: int, src: bytes, dst: bytes, *, nonce: bytes | None = None
) -> bytes:
    """A whole NS or NA (`kind`) for `target`, with `mac` in its link-layer address option unless None.

    `nonce`: 6 bytes for a nonce option.
    """
    option = b""
    if mac is not None:
        solicitation = kind == NEIGHBOUR_SOLICITATION
        option = bytes((OPTION_SOURCE_LINK_ADDRESS if solicitation else OPTION_TARGET_LINK_ADDRESS, 1)) + mac
    if nonce is not None:
        option += bytes((OPTION_NONCE, 1)) + nonce
    return Icmpv6Message(kind, 0, flags, target + option).emit(src, dst)
