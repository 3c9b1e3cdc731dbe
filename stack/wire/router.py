"""Router solicitations and advertisements with their options (RFC 4861 4.1, 4.2, 4.6; RFC 8106 for RDNSS, DNSSL)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from stack.wire.error import WireError
from stack.wire.icmpv6 import (
    ND_HOP_LIMIT,
    OPTION_SOURCE_LINK_ADDRESS,
    ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
    Icmpv6Message,
)
from stack.wire.ipv6 import is_link_local

OPTION_PREFIX: Final = 3
OPTION_MTU: Final = 5
OPTION_RDNSS: Final = 25
OPTION_DNSSL: Final = 31

INFINITE: Final = 0xFFFFFFFF  #: a lifetime in seconds that never ends
MAX_NAME_LENGTH: Final = 253  # RFC 1035 2.3.4, without the root's dot

_MANAGED: Final = 0x80
_OTHER: Final = 0x40
_ON_LINK: Final = 0x80
_AUTONOMOUS: Final = 0x40

#: Of a prefix option after type and length: prefix length, flags, valid and preferred lifetime (s), reserved, prefix.
_PREFIX: Final = struct.Struct("!BBIII16s")
_TIMES: Final = struct.Struct("!II")


@dataclass(slots=True)
class PrefixInformation:
    """One prefix; lifetimes in seconds, `INFINITE` for ever."""

    prefix: bytes
    length: int
    valid: int = 86400  # RFC 4861 6.2.1 says 30 days; RFC 9096 3.2 a day or less
    preferred: int = 14400
    on_link: bool = True
    autonomous: bool = True


@dataclass(slots=True)
class RouterAdvertisement:
    """What a router says. Times in seconds, but `reachable` and `retransmit` in milliseconds; 0: unspecified."""

    hop_limit: int = 64
    managed: bool = False  #: addresses are to be had by DHCPv6
    other: bool = False  #: other configuration is
    lifetime: int = 1800  #: as default router; 0: it is none
    reachable: int = 0
    retransmit: int = 0
    source_mac: bytes | None = None
    mtu: int = 0
    prefixes: list[PrefixInformation] = field(default_factory=list)
    rdnss: list[tuple[int, list[bytes]]] = field(default_factory=list)  #: (lifetime, addresses)
    dnssl: list[tuple[int, list[str]]] = field(default_factory=list)  #: (lifetime, domain names)

    def emit(self, src: bytes, dst: bytes) -> bytes:
        """The whole ICMPv6 message with its checksum."""
        flags = _MANAGED * self.managed | _OTHER * self.other
        body = bytearray(_TIMES.pack(self.reachable, self.retransmit))
        if self.source_mac is not None:
            body += bytes((OPTION_SOURCE_LINK_ADDRESS, 1)) + self.source_mac
        if self.mtu:
            body += struct.pack("!BBHI", OPTION_MTU, 1, 0, self.mtu)
        for each in self.prefixes:
            bits = _ON_LINK * each.on_link | _AUTONOMOUS * each.autonomous
            body += bytes((OPTION_PREFIX, 4))
            body += _PREFIX.pack(each.length, bits, each.valid, each.preferred, 0, each.prefix)
        for lifetime, addresses in self.rdnss:
            body += struct.pack("!BBHI", OPTION_RDNSS, 1 + 2 * len(addresses), 0, lifetime) + b"".join(addresses)
        for lifetime, names in self.dnssl:
            encoded = b"".join(map(encode_name, names))
            encoded += bytes(-len(encoded) % 8)
            body += struct.pack("!BBHI", OPTION_DNSSL, 1 + len(encoded) // 8, 0, lifetime) + encoded
        info = self.hop_limit << 24 | flags << 16 | self.lifetime
        return Icmpv6Message(ROUTER_ADVERTISEMENT, 0, info, bytes(body)).emit(src, dst)


def encode_name(name: str) -> bytes:
    """A domain name as in DNS, uncompressed (RFC 1035 3.1). Raises ValueError for what is none."""
    try:
        labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    except UnicodeEncodeError:
        labels = [b""]
    if len(name) > MAX_NAME_LENGTH or any(not 1 <= len(label) <= 63 for label in labels):
        raise ValueError(f"not a domain name: {name!r}")
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def _decode_names(data: memoryview) -> list[str]:
    names: list[str] = []
    labels: list[str] = []
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if not length:
            if not labels:
                break  # padding
            names.append(".".join(labels))
            labels = []
            continue
        label = bytes(data[at : at + length])
        if length > 63 or len(label) < length or not label.isascii() or not label.decode("ascii").isprintable():
            raise WireError("search list of a router advertisement with a bad name")
        labels.append(label.decode("ascii"))
        at += length
    if labels:
        raise WireError("search list of a router advertisement cut short")
    return names


def _options(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, whole option). Raises WireError: one bad length spoils the whole message (RFC 4861 6.1.2)."""
    while data:
        if len(data) < 2 or not data[1] or data[1] * 8 > len(data):
            raise WireError("neighbour discovery option with a bad length")
        yield data[0], data[: data[1] * 8]
        data = data[data[1] * 8 :]


def parse_advertisement(message: Icmpv6Message, src: bytes, hop_limit: int) -> RouterAdvertisement:
    """Validate by RFC 4861 6.1.2. Unknown options are skipped. Raises WireError."""
    data = memoryview(message.data)
    if hop_limit != ND_HOP_LIMIT or message.code or len(data) < _TIMES.size or not is_link_local(src):
        raise WireError("router advertisement that is none of a neighbour's")
    info = message.info
    reachable, retransmit = _TIMES.unpack_from(data)
    result = RouterAdvertisement(
        info >> 24, bool(info >> 16 & _MANAGED), bool(info >> 16 & _OTHER), info & 0xFFFF, reachable, retransmit
    )
    for kind, option in _options(data[_TIMES.size :]):
        length = len(option)
        if kind == OPTION_SOURCE_LINK_ADDRESS and length == 8 and not option[2] & 1:
            result.source_mac = bytes(option[2:8])
        elif kind == OPTION_MTU and length == 8:
            result.mtu = int.from_bytes(option[4:8], "big")
        elif kind == OPTION_PREFIX and length == 32:
            bits, flags, valid, preferred, _, prefix = _PREFIX.unpack_from(option, 2)
            if bits <= 128:
                result.prefixes.append(
                    PrefixInformation(prefix, bits, valid, preferred, bool(flags & _ON_LINK), bool(flags & _AUTONOMOUS))
                )
        elif kind == OPTION_RDNSS and length >= 24 and length % 16 == 8:
            lifetime = int.from_bytes(option[4:8], "big")
            result.rdnss.append((lifetime, [bytes(option[at : at + 16]) for at in range(8, length, 16)]))
        elif kind == OPTION_DNSSL and length >= 16:
            result.dnssl.append((int.from_bytes(option[4:8], "big"), _decode_names(option[8:])))
    return result


def emit_solicitation(mac: bytes | None, src: bytes, dst: bytes) -> bytes:
    """A router solicitation; `mac` None with the unspecified source (RFC 4861 4.1)."""
    option = b"" if mac is None else bytes((OPTION_SOURCE_LINK_ADDRESS, 1)) + mac
    return Icmpv6Message(ROUTER_SOLICITATION, 0, 0, option).emit(src, dst)


def parse_solicitation(message: Icmpv6Message, src: bytes, hop_limit: int) -> bytes | None:
    """Its sender's MAC, if it says so. Raises WireError (RFC 4861 6.1.1)."""
    if hop_limit != ND_HOP_LIMIT or message.code:
        raise WireError("router solicitation that is none of a neighbour's")
    mac = None
    for kind, option in _options(memoryview(message.data)):
        if kind == OPTION_SOURCE_LINK_ADDRESS:
            if not any(src):
                raise WireError("router solicitation from nowhere with a link-layer address")
            if len(option) == 8 and not option[2] & 1:
                mac = bytes(option[2:8])
    return mac
