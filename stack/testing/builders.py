"""Frames from nothing: small builders for tests that need bytes on a wire, right or wrong on purpose.

Independent of the stack's own emitters, so that a test using them is an oracle for those. Addresses are raw bytes
(6 for Ethernet, 4 or 16 for IP), results are `bytes`. A checksum argument of None means the right one.
"""

from __future__ import annotations

import struct
from typing import Final

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
BROADCAST: Final = b"\xff" * 6

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))


def inet_checksum(data: bytes) -> int:
    """The Internet checksum of RFC 1071, word by word as the RFC writes it."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """What a transport checksum covers besides the segment (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    if len(src) == 4:
        return src + dst + struct.pack("!BBH", 0, protocol, length)
    return src + dst + struct.pack("!I3xB", length, protocol)


def ethernet(dst: bytes, src: bytes, ethertype: int, payload: bytes, *, vlan: int | None = None) -> bytes:
    """An Ethernet frame without padding; `vlan` adds an 802.1Q tag with that identifier."""
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    return dst + src + tag + struct.pack("!H", ethertype) + payload


def arp(operation: int, sender_mac: bytes, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    """An ARP packet for Ethernet and IPv4; operation 1 asks, 2 answers."""
    return struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, operation) + sender_mac + sender + target_mac + target


def ipv4(
    src: bytes,
    dst: bytes,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    tos: int = 0,
    identification: int = 0,
    flags_fragment: int = 0x4000,
    options: bytes = b"",
    total_length: int | None = None,
    header_checksum: int | None = None,
) -> bytes:
    """An IPv4 packet. `options` must be a multiple of four bytes; `total_length` may lie."""
    words = 5 + len(options) // 4
    length = words * 4 + len(payload) if total_length is None else total_length
    header = (
        struct.pack("!BBHHHBBH", 0x40 | words, tos, length & 0xFFFF, identification, flags_fragment, ttl, protocol, 0)
        + src
        + dst
        + options
    )
    check = inet_checksum(header) if header_checksum is None else header_checksum
    return header[:10] + struct.pack("!H", check) + header[12:] + payload


def ipv6(
    src: bytes,
    dst: bytes,
    next_header: int,
    payload: bytes,
    *,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow: int = 0,
    payload_length: int | None = None,
) -> bytes:
    """An IPv6 packet; extension headers are part of `payload`, `payload_length` may lie."""
    length = len(payload) if payload_length is None else payload_length
    first = 6 << 28 | traffic_class << 20 | flow
    return struct.pack("!IHBB", first, length & 0xFFFF, next_header, hop_limit) + src + dst + payload


def tcp(
    src: bytes,
    dst: bytes,
    source_port: int,
    destination_port: int,
    *,
    seq: int = 0,
    ack: int = 0,
    flags: int = ACK,
    window: int = 65535,
    options: bytes = b"",
    payload: bytes = b"",
    urgent: int = 0,
    checksum: int | None = None,
) -> bytes:
    """A TCP segment between the IP addresses `src` and `dst`. `options` must be a multiple of four bytes."""
    words = 5 + len(options) // 4
    head = struct.pack("!HHIIBBH", source_port, destination_port, seq, ack, words << 4, flags, window)
    body = head + struct.pack("!HH", 0, urgent) + options + payload
    if checksum is None:
        checksum = inet_checksum(pseudo_header(src, dst, 6, len(body)) + body)
    return body[:16] + struct.pack("!H", checksum) + body[18:]


def udp(
    src: bytes, dst: bytes, source_port: int, destination_port: int, payload: bytes, *, checksum: int | None = None
) -> bytes:
    """A UDP datagram between the IP addresses `src` and `dst`."""
    length = 8 + len(payload)
    body = struct.pack("!HHHH", source_port, destination_port, length & 0xFFFF, 0) + payload
    if checksum is None:
        checksum = inet_checksum(pseudo_header(src, dst, 17, length) + body) or 0xFFFF
    return body[:6] + struct.pack("!H", checksum) + body[8:]


def icmp_echo(identifier: int, sequence: int, payload: bytes = b"", *, reply: bool = False) -> bytes:
    """An ICMP echo request or reply (RFC 792)."""
    head = struct.pack("!BBHHH", 0 if reply else 8, 0, 0, identifier, sequence)
    check = inet_checksum(head + payload)
    return head[:2] + struct.pack("!H", check) + head[4:] + payload


def partial_checksum(src: bytes, dst: bytes, protocol: int, length: int) -> int:
    """What a sender that leaves the checksum to its device writes into the field: the pseudo-header's sum, folded."""
    return ~inet_checksum(pseudo_header(src, dst, protocol, length)) & 0xFFFF
