"""The parsers of link and network layer: what they emit they parse, and arbitrary bytes give a message or WireError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.testing import builders
from stack.wire import arp, ethernet, icmp, icmpv6, ipv4, ipv6, udp
from stack.wire.error import WireError

MAC = st.binary(min_size=6, max_size=6)
IP4 = st.binary(min_size=4, max_size=4)
IP6 = st.binary(min_size=16, max_size=16)
BYTE = st.integers(0, 255)
SHORT = st.integers(0, 0xFFFF)
WORD = st.integers(0, 0xFFFFFFFF)

PARSERS: dict[str, Callable[[memoryview], Any]] = {
    "ethernet": ethernet.parse,
    "arp": arp.parse,
    "ipv4": ipv4.parse,
    "ipv4 options": ipv4.has_source_route,
    "ipv6": ipv6.parse,
    "ipv6 fragment": ipv6.parse_fragment,
    "ipv6 hop-by-hop": lambda data: ipv6.walk_extensions(0, data),
    "ipv6 routing": lambda data: ipv6.walk_extensions(43, data),
    "ipv6 destination options": lambda data: ipv6.walk_extensions(60, data),
    "icmp": icmp.parse,
    "icmpv6": lambda data: icmpv6.parse(data, bytes(16), bytes(16)),
    "neighbour solicitation": lambda data: icmpv6.parse_neighbour(
        icmpv6.Icmpv6Message(135, 0, 0, data), bytes(15) + b"\x01", bytes(16), 255
    ),
    "neighbour advertisement": lambda data: icmpv6.parse_neighbour(
        icmpv6.Icmpv6Message(136, 0, 0, data), bytes(15) + b"\x01", bytes(16), 255
    ),
    "udp": udp.parse,
}


def parsed(parser: Callable[[memoryview], tuple[Any, memoryview]], data: bytes) -> tuple[Any, bytes]:
    """(header, payload as bytes) of what `parser` makes of `data`."""
    header, payload = parser(memoryview(data))
    return header, bytes(payload)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=120))
def test_arbitrary_bytes_never_raise_anything_but_wire_error(name: str, data: bytes) -> None:
    with contextlib.suppress(WireError):
        PARSERS[name](memoryview(data))


@given(MAC, MAC, SHORT, st.binary(max_size=20))
def test_ethernet_round_trip(dst: bytes, src: bytes, ethertype: int, payload: bytes) -> None:
    header = ethernet.EthernetHeader(dst, src, ethertype)
    assert header.emit() + payload == builders.ethernet(dst, src, ethertype, payload)
    assert parsed(ethernet.parse, header.emit() + payload) == (header, payload)


@given(st.sampled_from((arp.REQUEST, arp.REPLY)), MAC.filter(lambda mac: not mac[0] & 1), IP4, MAC, IP4)
def test_arp_round_trip(operation: int, sender_mac: bytes, sender: bytes, target_mac: bytes, target: bytes) -> None:
    message = arp.ArpMessage(operation, sender_mac, sender, target_mac, target)
    assert message.emit() == builders.arp(operation, sender_mac, sender, target_mac, target)
    assert arp.parse(memoryview(message.emit() + bytes(18))) == message  # link padding does not matter


@given(
    IP4,
    IP4,
    BYTE,
    SHORT,
    BYTE,
    BYTE,
    st.binary(max_size=40),
    st.integers(0, 10).map(lambda words: b"\x01" * 4 * words),
)
def test_ipv4_round_trip(
    src: bytes, dst: bytes, proto: int, fragment: int, ttl: int, tos: int, payload: bytes, options: bytes
) -> None:
    total = 20 + len(options) + len(payload)
    header = ipv4.Ipv4Header(src, dst, proto, total, 7, fragment, ttl, tos, options)
    packet = header.emit() + payload
    assert packet == builders.ipv4(
        src, dst, proto, payload, ttl=ttl, tos=tos, identification=7, flags_fragment=fragment, options=options
    )
    assert parsed(ipv4.parse, packet + b"padding") == (header, payload)


@given(IP6, IP6, BYTE, BYTE, BYTE, st.integers(0, 0xFFFFF), st.binary(max_size=40))
def test_ipv6_round_trip(src: bytes, dst: bytes, proto: int, hops: int, tos: int, flow: int, payload: bytes) -> None:
    header = ipv6.Ipv6Header(src, dst, proto, len(payload), hops, tos, flow)
    packet = header.emit() + payload
    assert packet == builders.ipv6(src, dst, proto, payload, hop_limit=hops, traffic_class=tos, flow=flow)
    assert parsed(ipv6.parse, packet + b"padding") == (header, payload)


@given(BYTE, st.integers(0, 0x1FFF), st.booleans(), WORD)
def test_ipv6_fragment_header_round_trip(proto: int, units: int, more: bool, ident: int) -> None:
    header = ipv6.FragmentHeader(proto, units * 8, more, ident)
    assert parsed(ipv6.parse_fragment, header.emit() + b"data") == (header, b"data")


@given(SHORT, SHORT, st.binary(max_size=40))
def test_icmp_echo_round_trip(ident: int, sequence: int, data: bytes) -> None:
    message = icmp.IcmpMessage(icmp.ECHO_REQUEST, 0, ident << 16 | sequence, data)
    assert message.emit() == builders.icmp_echo(ident, sequence, data)
    assert icmp.parse(memoryview(message.emit())) == message


@given(IP6, IP6, BYTE, BYTE, WORD, st.binary(max_size=40))
def test_icmpv6_round_trip(src: bytes, dst: bytes, kind: int, code: int, info: int, data: bytes) -> None:
    message = icmpv6.Icmpv6Message(kind, code, info, data)
    whole = message.emit(src, dst)
    assert builders.inet_checksum(builders.pseudo_header(src, dst, 58, len(whole)) + whole) == 0
    assert icmpv6.parse(memoryview(whole), src, dst) == message


@given(
    st.sampled_from((4, 16)).flatmap(
        lambda n: st.tuples(st.binary(min_size=n, max_size=n), st.binary(min_size=n, max_size=n))
    ),
    SHORT,
    SHORT,
    st.binary(max_size=40),
)
def test_udp_round_trip(addresses: tuple[bytes, bytes], src_port: int, dst_port: int, data: bytes) -> None:
    src, dst = addresses
    datagram = udp.emit(src, dst, src_port, dst_port, data)
    assert datagram == builders.udp(src, dst, src_port, dst_port, data)
    header, payload = parsed(udp.parse, datagram)
    assert (header.src_port, header.dst_port, payload) == (src_port, dst_port, data)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (bytes(19), "19 bytes"),
        (builders.ipv4(bytes(4), bytes(4), 1, b"")[:1].replace(b"\x45", b"\x65") + bytes(19), "0x65"),
        (b"\x44" + bytes(19), "0x44"),
        (builders.ipv4(bytes(4), bytes(4), 1, b"", total_length=21), "length 21"),
        (builders.ipv4(bytes(4), bytes(4), 1, b"", total_length=19), "length 19"),
        (builders.ipv4(bytes(4), bytes(4), 1, b"", header_checksum=0x1234), "checksum"),
    ],
)
def test_a_bad_ipv4_header_is_named(packet: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        ipv4.parse(memoryview(packet))


@pytest.mark.parametrize("kind", [131, 137])
def test_source_routes_are_found_behind_other_options(kind: int) -> None:
    assert ipv4.has_source_route(bytes((1, 7, 3, 0, kind, 3, 4, 0)))
    assert not ipv4.has_source_route(bytes((1, 7, 3, 0, 0, kind, 3, 4)))  # after the end of the list


@pytest.mark.parametrize("options", [bytes((7, 1)), bytes((7, 9, 0, 0)), bytes((7,)), bytes((7, 0, 0, 0))])
def test_lying_option_lengths(options: bytes) -> None:
    with pytest.raises(WireError):
        ipv4.has_source_route(options)


def test_special_addresses() -> None:
    assert ethernet.multicast_mac4(bytes((239, 255, 1, 2))).hex(":") == "01:00:5e:7f:01:02"  # RFC 1112 6.4
    group = ipv6.solicited_node(bytes.fromhex("fd00000000000000000000abcd123456"))
    assert ipv6.text(group) == "ff02::1:ff12:3456"
    assert ethernet.multicast_mac6(group).hex(":") == "33:33:ff:12:34:56"  # RFC 2464 7
    assert ipv6.text(ipv6.link_local_from_mac(bytes.fromhex("525400123456"))) == "fe80::5054:ff:fe12:3456"


def test_mac_text() -> None:
    assert ethernet.parse_mac("52:54:00:12:34:56") == bytes.fromhex("525400123456")
    for bad in ("", "52:54:00:12:34", "52:54:00:12:34:567", "gg:54:00:12:34:56", "525400123456"):
        with pytest.raises(ValueError, match="not a MAC address"):
            ethernet.parse_mac(bad)


def option_header(*options: bytes) -> bytes:
    """A hop-by-hop header, next header 59, around `options` that fill it to a multiple of 8."""
    body = b"".join(options)
    assert (len(body) + 2) % 8 == 0
    return bytes((59, (len(body) + 2) // 8 - 1)) + body


@pytest.mark.parametrize(
    ("option", "discard", "problem"),
    [
        (bytes((1, 4)) + bytes(4), False, -1),  # PadN
        (bytes((0x1E, 4)) + bytes(4), False, -1),  # 00: skip
        (bytes((0x5E, 4)) + bytes(4), True, -1),  # 01: discard
        (bytes((0x9E, 4)) + bytes(4), False, 2),  # 10: discard and report
        (bytes((0xDE, 4)) + bytes(4), False, 2),  # 11: discard and report unless multicast
    ],
)
def test_unknown_ipv6_options_by_their_highest_bits(option: bytes, discard: bool, problem: int) -> None:
    """RFC 8200 4.2."""
    chain = ipv6.walk_extensions(0, memoryview(option_header(option)))
    assert (chain.discard, chain.problem) == (discard, problem)
    if problem < 0 and not discard:
        assert (chain.next_header, chain.offset) == (59, 8)


def test_hop_by_hop_only_comes_first() -> None:
    """RFC 8200 4.1."""
    pad = bytes((1, 4)) + bytes(4)
    data = bytes((0, 0)) + pad + bytes((59, 0)) + pad
    chain = ipv6.walk_extensions(60, memoryview(data))
    assert (chain.problem, chain.problem_code) == (0, 1)


def test_a_chain_of_headers_has_a_limit() -> None:
    header = bytes((60, 0, 1, 4)) + bytes(4)
    with pytest.raises(WireError, match="too many"):
        ipv6.walk_extensions(60, memoryview(header * 50))


def test_messages_have_a_one_line_text() -> None:
    texts = [
        str(ethernet.EthernetHeader(b"\xff" * 6, bytes(6), 0x800)),
        str(arp.ArpMessage(1, bytes(6), bytes(4), bytes(6), b"\x0a\0\0\1")),
        str(arp.ArpMessage(2, bytes(6), bytes(4), bytes(6), b"\x0a\0\0\1")),
        str(ipv4.Ipv4Header(bytes(4), bytes(4), 6, 40)),
        str(ipv6.Ipv6Header(bytes(16), bytes(16), 6, 20)),
        str(icmp.IcmpMessage(8, 0, 0, b"")),
        str(icmpv6.Icmpv6Message(128, 0, 0, b"")),
        str(udp.UdpHeader(1, 2, 8)),
    ]
    assert texts[1] == "arp who-has 10.0.0.1 tell 0.0.0.0"
    assert all("\n" not in text for text in texts)
