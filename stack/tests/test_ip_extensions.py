"""IPv6 extension headers and IPv4 options on the way in: what is read, refused, and complained about."""

from __future__ import annotations

import struct

import pytest

from stack.testing import builders
from stack.tests.ip_rig import ME, ME6, PEER, PEER6, Host
from stack.wire.ipv6 import ALL_NODES

UDP = builders.udp(PEER6, ME6, 1000, 7, b"hello")


def problem(host: Host) -> tuple[int, int] | None:
    """(code, pointer) of the parameter problem that was sent, if one was."""
    for packet in host.sent_ip():
        if packet[6] == 58 and packet[40] == 4:
            return packet[41], struct.unpack_from("!I", packet, 44)[0]
    return None


def delivered(host: Host, body: bytes, first: int, *, dst: bytes = ME6) -> bool:
    endpoint = host.udp.bind(bytes(16), 7)
    host.receive6(
        builders.ipv6(PEER6, dst, first, body), dst_mac=b"\x33\x33\0\0\0\x01" if dst[0] == 0xFF else host.eth.mac
    )
    try:
        return endpoint.pending > 0
    finally:
        endpoint.close()


def options(next_header: int, *data: int) -> bytes:
    """An options header around `data`, padded with PadN."""
    body = bytes(data)
    room = -(len(body) + 2) % 8
    body += b"" if not room else b"\0" if room == 1 else bytes((1, room - 2)) + bytes(room - 2)
    return bytes((next_header, (len(body) + 2) // 8 - 1)) + body


def routing(next_header: int, kind: int, left: int) -> bytes:
    return bytes((next_header, 2, kind, left)) + bytes(20)


@pytest.mark.parametrize(
    ("body", "first"),
    [
        (options(17) + UDP, 0),
        (options(17, 5, 2, 0, 0) + UDP, 0),
        (options(17, 0x3E, 1, 0) + UDP, 60),  # unknown, to be skipped
        (routing(17, 0, 0) + UDP, 43),  # nothing left to visit
        (routing(17, 99, 0) + UDP, 43),
        (options(60) + options(43) + routing(44, 4, 0) + struct.pack("!BBHI", 60, 0, 0, 1) + options(17) + UDP, 0),
    ],
)
def test_headers_that_are_stepped_over(body: bytes, first: int) -> None:
    assert delivered(Host(), body, first)


@pytest.mark.parametrize(
    ("body", "first", "expected"),
    [
        (options(17, 0x7E, 1, 0) + UDP, 60, None),  # 01: drop
        (options(17, 0xBE, 1, 0) + UDP, 60, (2, 42)),  # 10: complain
        (options(17, 0xFE, 1, 0) + UDP, 0, (2, 42)),  # 11: complain, not of groups
        (routing(17, 0, 1) + UDP, 43, (0, 42)),  # RFC 5095: type 0 is like any unknown one
        (routing(17, 99, 1) + UDP, 43, (0, 42)),  # RFC 8200 4.4
        (options(0) + options(17) + UDP, 60, (1, 40)),  # hop-by-hop anywhere but first
        (options(200) + UDP, 60, (1, 40)),  # unknown next header
        (options(17)[:4], 60, None),
        (bytes((17, 5)) + bytes(6) + UDP, 60, None),  # longer than the packet
        (options(60) * 9 + UDP, 60, None),  # more than anybody needs
    ],
)
def test_headers_that_end_a_packet(body: bytes, first: int, expected: tuple[int, int] | None) -> None:
    """RFC 8200 4.2, 4.4, 4; RFC 4443 3.4."""
    host = Host()
    assert not delivered(host, body, first)
    assert problem(host) == expected
    assert host.ip.drops.total == 1


@pytest.mark.parametrize(("option", "told"), [(0xBE, True), (0xFE, False)])
def test_complaints_about_packets_to_a_group(option: int, told: bool) -> None:
    """RFC 8200 4.2: 10 is reported whatever the destination, 11 only if it was not a group."""
    host = Host()
    assert not delivered(host, options(17, option, 1, 0) + UDP, 60, dst=ALL_NODES)
    assert (problem(host) is not None) == told


def fragment(next_header: int, offset: int, more: bool, data: bytes) -> bytes:
    return struct.pack("!BBHI", next_header, 0, offset | more, 77) + data


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (fragment(17, 0, True, UDP[:13]), (0, 4)),  # length no multiple of 8, and more to come
        (fragment(17, 65528, False, bytes(16)), (0, 42)),  # beyond 65535
        (fragment(6, 0, True, bytes(16)), (3, 0)),  # RFC 7112: half a TCP header
        (fragment(60, 0, True, bytes((17, 3)) + bytes(14)), (3, 0)),
        (fragment(44, 0, True, bytes(16)), None),  # a fragment in a fragment
        (bytes(4), None),
    ],
)
def test_fragments_that_cannot_be(body: bytes, expected: tuple[int, int] | None) -> None:
    """RFC 8200 4.5, RFC 7112."""
    host = Host()
    assert not delivered(host, body, 44)
    assert problem(host) == expected
    assert host.ip.drops["fragment-bad"] == 1
    assert len(host.ip.input6.reassembler) == 0


@pytest.mark.parametrize(
    ("given", "taken", "reason"),
    [
        (b"\x01\x01\x01\x00", True, ""),
        (b"\x94\x04\x00\x00", True, ""),  # router alert
        (bytes((7, 7, 4, 0, 0, 0, 0, 0)), True, ""),  # record route
        (bytes((131, 7, 4, 10, 0, 0, 9, 0)), False, "source-route"),
        (bytes((137, 7, 4, 10, 0, 0, 9, 0)), False, "source-route"),
        (bytes((7, 1, 0, 0)), False, "bad-header"),
        (bytes((68, 40, 5, 0)), False, "bad-header"),
        (bytes((0, 0, 0, 0)), True, ""),
    ],
)
def test_ipv4_options(given: bytes, taken: bool, reason: str) -> None:
    """RFC 791 3.1, RFC 1122 3.2.1.8; source routes as by Linux (accept_source_route 0)."""
    host = Host()
    endpoint = host.udp.bind(bytes(4), 7)
    host.receive4(builders.ipv4(PEER, ME, 17, builders.udp(PEER, ME, 9, 7, b"x"), options=given))
    assert (endpoint.pending > 0) == taken
    assert not reason or host.ip.drops[reason] == 1


def test_an_error_about_our_own_ping_lowers_the_path_mtu() -> None:
    """RFC 8201 4: whatever packet was too big."""
    for packet_of_ours, mtu in ((b"\x80", 1400), (b"\x81", 1500)):
        host = Host()
        host.ip.icmp6.listen_echo(7, lambda *_: None)
        quoted = builders.ipv6(ME6, PEER6, 58, packet_of_ours + bytes((0, 0, 0, 0, 7, 0, 1)))
        message = struct.pack("!BBHI", 2, 0, 0, 1400) + quoted
        check = builders.inet_checksum(builders.pseudo_header(PEER6, ME6, 58, len(message)) + message)
        message = message[:2] + struct.pack("!H", check) + message[4:]
        host.receive6(builders.ipv6(PEER6, ME6, 58, message))
        assert host.ip.path_mtu(PEER6) == mtu
