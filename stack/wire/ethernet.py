"""Ethernet II framing (IEEE 802.3 clause 3, RFC 894, RFC 2464)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from stack.wire.error import WireError

HEADER_LENGTH: Final = 14  # bytes
MAC_LENGTH: Final = 6  # bytes

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_VLAN: Final = 0x8100
ETHERTYPE_IPV6: Final = 0x86DD

BROADCAST: Final = b"\xff" * MAC_LENGTH
NULL_MAC: Final = bytes(MAC_LENGTH)  #: what `lo` has, as on Linux

#: destination, source, ethertype
HEADER: Final = struct.Struct("!6s6sH")


@dataclass(slots=True)
class EthernetHeader:
    """One frame's header; MACs are 6 bytes."""

    dst: bytes
    src: bytes
    ethertype: int

    def emit(self) -> bytes:
        return HEADER.pack(self.dst, self.src, self.ethertype)

    def __str__(self) -> str:
        return f"{mac_text(self.src)} > {mac_text(self.dst)}, ethertype 0x{self.ethertype:04x}"


def parse(frame: memoryview) -> tuple[EthernetHeader, memoryview]:
    """Header and payload (link padding included). Raises WireError."""
    if len(frame) < HEADER_LENGTH:
        raise WireError(f"Ethernet frame of {len(frame)} bytes")
    return EthernetHeader(*HEADER.unpack_from(frame)), frame[HEADER_LENGTH:]


def is_group(mac: bytes) -> bool:
    """Multicast or broadcast: the I/G bit, the lowest of the first byte."""
    return bool(mac[0] & 1)


def multicast_mac4(group: bytes) -> bytes:
    """MAC of an IPv4 group: 01:00:5e and the low 23 bits (RFC 1112 6.4)."""
    return b"\x01\x00\x5e" + bytes((group[1] & 0x7F,)) + group[2:4]


def multicast_mac6(group: bytes) -> bytes:
    """MAC of an IPv6 group: 33:33 and the low 32 bits (RFC 2464 7)."""
    return b"\x33\x33" + group[12:16]


def mac_text(mac: bytes) -> str:
    """``52:54:00:12:34:56``"""
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """6 bytes from ``52:54:00:12:34:56``. Raises ValueError naming the text."""
    pieces = text.split(":")
    try:
        mac = bytes(int(piece, 16) for piece in pieces)
    except ValueError:
        mac = b""
    if len(mac) != MAC_LENGTH:
        raise ValueError(f"not a MAC address (six hex bytes joined by colons): {text!r}")
    return mac
