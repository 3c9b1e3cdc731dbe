"""ICMP and ICMPv6: echo, errors sent (and when not), errors received and whom they reach (IF-10, UDP-08)."""

from __future__ import annotations

import errno
import struct

import pytest

from stack.ip.packet import IcmpError, IpPacket
from stack.testing import builders
from stack.tests.ip_rig import LO, LO6, ME, ME6, MY_MAC, PEER, PEER6, SUBNET_BROADCAST, Host, fields4

ROUTER = bytes((10, 0, 2, 1))
ROUTER6 = bytes.fromhex("fd00" + "00" * 13 + "01")
ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")


def icmp(kind: int, code: int, info: int, data: bytes) -> bytes:
    body = struct.pack("!BBHI", kind, code, 0, info) + data
    return body[:2] + struct.pack("!H", builders.inet_checksum(body)) + body[4:]


def icmp6(src: bytes, dst: bytes, kind: int, code: int, info: int, data: bytes) -> bytes:
    body = struct.pack("!BBHI", kind, code, 0, info) + data
    check = builders.inet_checksum(builders.pseudo_header(src, dst, 58, len(body)) + body)
    return body[:2] + struct.pack("!H", check) + body[4:]


# --- echo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 56, 1400])
def test_echo_is_answered(size: int) -> None:
    """RFC 1122 3.2.2.6: identifier, sequence and data come back; from the address that was asked."""
    host = Host()
    data = bytes(index & 255 for index in range(size))
    host.receive4(builders.ipv4(PEER, ME, 1, builders.icmp_echo(7, 9, data), tos=0x10, ttl=3))
    reply = fields4(host.sent_ip()[0])
    assert (reply["src"], reply["dst"], reply["tos"], reply["ttl"]) == (ME, PEER, 0x10, 64)
    assert reply["payload"] == builders.icmp_echo(7, 9, data, reply=True)


def test_a_large_echo_is_reassembled_and_its_answer_cut() -> None:
    host = Host()
    message = builders.icmp_echo(7, 9, bytes(5000))
    for start in range(0, len(message), 1480):
        piece = message[start : start + 1480]
        flags = start >> 3 | (0x2000 if start + 1480 < len(message) else 0)
        host.receive4(builders.ipv4(PEER, ME, 1, piece, identification=3, flags_fragment=flags))
    replies = [fields4(packet) for packet in host.sent_ip()]
    joined = b"".join(bytes(each["payload"]) for each in replies if isinstance(each["payload"], bytes))
    assert joined == builders.icmp_echo(7, 9, bytes(5000), reply=True)
    assert len(replies) == 4


@pytest.mark.parametrize("dst", [SUBNET_BROADCAST, b"\xff" * 4, bytes((224, 0, 0, 1))])
def test_echo_to_everybody_is_not_answered(dst: bytes) -> None:
    host = Host()
    host.receive4(builders.ipv4(PEER, dst, 1, builders.icmp_echo(7, 9)), dst_mac=b"\xff" * 6)
    assert host.sent() == []


def test_a_broken_echo_is_dropped() -> None:
    host = Host()
    host.receive4(builders.ipv4(PEER, ME, 1, builders.icmp_echo(7, 9, b"data")[:-1] + b"X"))
    host.receive4(builders.ipv4(PEER, ME, 1, bytes(7)))
    assert (host.sent(), host.ip.drops["bad-message"]) == ([], 2)


@pytest.mark.parametrize(("dst", "src"), [(ME6, ME6), (ALL_NODES, ME6)])
def test_echo_is_answered_over_ipv6(dst: bytes, src: bytes) -> None:
    """RFC 4443 4.2: also to a group, then from an address of ours."""
    host = Host()
    host.receive6(builders.ipv6(PEER6, dst, 58, icmp6(PEER6, dst, 128, 0, 0x70009, b"data")))
    assert host.sent_ip() == [builders.ipv6(src, PEER6, 58, icmp6(src, PEER6, 129, 0, 0x70009, b"data"))]


@pytest.mark.parametrize("dst", [LO, ME, PEER, LO6, ME6])
def test_we_can_ask_too(dst: bytes) -> None:
    host = Host()
    layer = host.ip.icmp4 if len(dst) == 4 else host.ip.icmp6
    got: list[tuple[bytes, int, bytes]] = []
    layer.listen_echo(7, lambda *reply: got.append(reply))
    layer.send_echo(dst, 7, 1, b"data")
    if dst is PEER:
        assert fields4(host.sent_ip()[0])["payload"] == builders.icmp_echo(7, 1, b"data")
        host.receive4(builders.ipv4(PEER, ME, 1, builders.icmp_echo(7, 1, b"data", reply=True)))
    host.turn()
    assert got == [(dst, 1, b"data")]
    layer.listen_echo(7, None)
    layer.send_echo(dst, 7, 2, b"data")
    host.turn()
    assert len(got) == 1


# --- errors we send -------------------------------------------------------------------------------------------------


def closed_port(dst: bytes = ME, src: bytes = PEER, **how: int | bytes) -> bytes:
    return builders.ipv4(src, dst, 17, builders.udp(src, dst, 5, 6, bytes(900)), **how)  # type: ignore[arg-type]


def test_a_closed_port_is_reported_with_as_much_as_fits() -> None:
    """IF-10; RFC 1122 4.1.3.1, RFC 1812 4.3.2.3: up to 576 bytes in all."""
    host = Host()
    offending = closed_port()
    host.receive4(offending)
    packet = host.sent_ip()[0]
    error = fields4(packet)
    assert (error["src"], error["dst"], error["proto"], error["tos"]) == (ME, PEER, 1, 0xC0)
    assert (len(packet), error["payload"]) == (576, icmp(3, 3, 0, offending[: 576 - 28]))


def test_a_closed_port_is_reported_over_ipv6() -> None:
    """RFC 4443 3.1: up to the minimum MTU."""
    host = Host()
    offending = builders.ipv6(PEER6, ME6, 17, builders.udp(PEER6, ME6, 5, 6, bytes(1400)))
    host.receive6(offending)
    quoted = offending[: 1280 - 48]
    assert host.sent_ip() == [builders.ipv6(ME6, PEER6, 58, icmp6(ME6, PEER6, 1, 4, 0, quoted))]


def test_an_unknown_protocol_is_reported() -> None:
    host = Host()
    offending = builders.ipv4(PEER, ME, 200, b"12345678")
    host.receive4(offending)
    assert fields4(host.sent_ip()[0])["payload"] == icmp(3, 2, 0, offending)
    offending = builders.ipv6(PEER6, ME6, 200, b"12345678")
    host.receive6(offending)
    assert host.sent_ip() == [builders.ipv6(ME6, PEER6, 58, icmp6(ME6, PEER6, 4, 1, 6, offending))]
    behind = bytes((200, 0, 1, 4)) + bytes(4)
    offending = builders.ipv6(PEER6, ME6, 60, behind + b"12345678")
    host.receive6(offending)
    assert host.sent_ip()[0][44:48] == struct.pack("!I", 40), "the pointer is at the header that names it"


def test_an_option_that_asks_for_a_complaint_gets_one() -> None:
    """RFC 8200 4.2: type 10xxxxxx."""
    host = Host()
    offending = builders.ipv6(PEER6, ME6, 60, bytes((59, 0, 0x9E, 4)) + bytes(4))
    host.receive6(offending)
    assert host.sent_ip() == [builders.ipv6(ME6, PEER6, 58, icmp6(ME6, PEER6, 4, 2, 42, offending))]


@pytest.mark.parametrize(
    "packet",
    [
        closed_port(SUBNET_BROADCAST),
        closed_port(bytes((224, 0, 0, 1))),
        closed_port(src=bytes(4), dst=b"\xff" * 4),
        builders.ipv4(PEER, ME, 200, b"12345678", flags_fragment=1),
        builders.ipv4(PEER, ME, 1, icmp(3, 3, 0, builders.ipv4(PEER, ME, 200, b"12345678"))),
    ],
    ids=["broadcast", "multicast", "no sender", "later fragment", "about an error"],
)
def test_no_error_about_these(packet: bytes) -> None:
    """RFC 1122 3.2.2."""
    host = Host()
    host.receive4(packet)
    assert host.sent() == []


def test_no_error_about_what_came_in_a_link_layer_broadcast() -> None:
    host = Host()
    host.receive4(closed_port(), dst_mac=b"\xff" * 6)
    assert host.sent() == []


@pytest.mark.parametrize(
    "packet",
    [
        builders.ipv4(PEER, ME, 1, icmp(3, 3, 0, bytes(40)), flags_fragment=0x2000),
        builders.ipv4(PEER, ME, 1, icmp(11, 0, 0, bytes(40)), flags_fragment=0x2000),
    ],
)
def test_no_time_exceeded_about_the_fragment_of_an_error(packet: bytes) -> None:
    host = Host()
    host.receive4(packet)
    host.pass_time(40 * 10**9)
    assert (host.sent(), host.ip.drops["fragment-timeout"]) == ([], 1)


def test_no_error_about_a_later_fragment_whoever_asks() -> None:
    host = Host()
    got: list[IpPacket] = []
    host.ip.register(200, got.append, lambda _: None)
    host.receive4(builders.ipv4(PEER, ME, 200, bytes(8)))
    header = bytearray(got[0].frame)
    header[20:22] = b"\x00\x05"
    got[0].frame = memoryview(bytes(header))
    host.ip.icmp4.send_error(got[0], 3, 2)
    assert host.sent() == []


def test_no_icmpv6_error_about_an_error_or_from_nobody() -> None:
    """RFC 4443 2.4 e."""
    host = Host()
    host.receive6(builders.ipv6(PEER6, ME6, 58, icmp6(PEER6, ME6, 1, 4, 0, bytes(48))))
    host.receive6(builders.ipv6(bytes(16), ME6, 200, bytes(8)))
    host.receive6(builders.ipv6(PEER6, ALL_NODES, 200, bytes(8)), dst_mac=bytes.fromhex("333300000001"))
    assert host.sent() == []


def test_errors_are_rate_limited_per_peer_and_recover() -> None:
    """RFC 1812 4.3.2.8; Linux: a burst of six, then one a second."""
    host = Host()
    for _ in range(20):
        host.receive4(closed_port())
    assert (len(host.sent_ip()), host.ip.drops["rate-limited"]) == (6, 14)
    host.pass_time(2 * 10**9)
    for _ in range(5):
        host.receive4(closed_port())
    assert len(host.sent_ip()) == 2


def test_errors_are_rate_limited_for_all_together() -> None:
    host = Host()
    for last in range(3, 203):
        peer = bytes((10, 0, 2, last))
        host.eth.neighbours.set_permanent(peer, bytes.fromhex("020000000003"))
        host.receive4(closed_port(src=peer))
    assert len(host.sent_ip()) == 50


def test_loopback_is_not_rate_limited() -> None:
    host = Host()
    endpoint = host.udp.bind(LO)
    endpoint.connect(LO, 9)
    for _ in range(100):
        endpoint.send(b"x")
        host.turn()
        assert endpoint.take_error() == errno.ECONNREFUSED


# --- errors we get --------------------------------------------------------------------------------------------------


def told(host: Host) -> list[IcmpError]:
    errors: list[IcmpError] = []
    host.ip.register(17, lambda _: None, errors.append)
    return errors


QUOTED = builders.ipv4(ME, bytes((192, 0, 2, 1)), 17, builders.udp(ME, bytes((192, 0, 2, 1)), 5, 6, b""))


@pytest.mark.parametrize(
    ("kind", "code", "number", "hard"),
    [
        (3, 0, errno.ENETUNREACH, False),
        (3, 1, errno.EHOSTUNREACH, False),
        (3, 2, errno.ENOPROTOOPT, True),
        (3, 3, errno.ECONNREFUSED, True),
        (3, 4, errno.EMSGSIZE, False),
        (3, 5, errno.EOPNOTSUPP, False),
        (3, 7, errno.EHOSTDOWN, True),
        (3, 13, errno.EHOSTUNREACH, True),
        (11, 0, errno.EHOSTUNREACH, False),
        (12, 0, errno.EPROTO, True),
    ],
)
def test_errors_reach_the_transport_as_errno(kind: int, code: int, number: int, hard: bool) -> None:
    host = Host()
    errors = told(host)
    host.receive4(builders.ipv4(ROUTER, ME, 1, icmp(kind, code, 1400, QUOTED)))
    (error,) = errors
    assert (error.errno, error.hard, error.src, error.local) == (number, hard, ROUTER, ME)
    assert (error.remote, error.proto, bytes(error.payload)) == (bytes((192, 0, 2, 1)), 17, QUOTED[20:])
    assert error.mtu == (1400 if (kind, code) == (3, 4) else 0)


@pytest.mark.parametrize(
    "quoted",
    [b"", QUOTED[:27], b"\x65" + QUOTED[1:], b"\x4f" + QUOTED[1:], b"\x41" + QUOTED[1:]],
    ids=["nothing", "cut", "version", "header too long", "header too short"],
)
def test_bad_quotations_are_dropped(quoted: bytes) -> None:
    host = Host()
    errors = told(host)
    host.receive4(builders.ipv4(ROUTER, ME, 1, icmp(3, 3, 0, quoted)))
    assert (errors, host.ip.drops["bad-message"]) == ([], 1)


@pytest.mark.parametrize(
    "quoted",
    [
        builders.ipv4(PEER, ROUTER, 17, bytes(8)),
        builders.ipv4(ME, ROUTER, 17, bytes(8), flags_fragment=8),
        builders.ipv4(ME, ROUTER, 99, bytes(8)),
    ],
    ids=["not ours", "a later fragment", "nobody's protocol"],
)
def test_errors_about_what_we_did_not_send_reach_nobody(quoted: bytes) -> None:
    host = Host()
    errors = told(host)
    host.receive4(builders.ipv4(ROUTER, ME, 1, icmp(3, 3, 0, quoted)))
    assert errors == []


@pytest.mark.parametrize(("kind", "code"), [(5, 1), (4, 0), (3, 99), (13, 0), (40, 0)])
def test_redirects_and_unknown_messages_change_nothing(kind: int, code: int) -> None:
    host = Host()
    errors = told(host)
    host.receive4(builders.ipv4(ROUTER, ME, 1, icmp(kind, code, 0, QUOTED)))
    assert (errors, host.sent()) == ([], [])


@pytest.mark.parametrize(
    ("kind", "code", "number", "hard"),
    [
        (1, 0, errno.ENETUNREACH, False),
        (1, 1, errno.EACCES, True),
        (1, 3, errno.EHOSTUNREACH, False),
        (1, 4, errno.ECONNREFUSED, True),
        (2, 0, errno.EMSGSIZE, False),
        (3, 0, errno.EHOSTUNREACH, False),
        (4, 1, errno.EPROTO, True),
    ],
)
@pytest.mark.parametrize("chain", [b"", bytes((17, 0, 0, 1)) + bytes(4)], ids=["plain", "first fragment"])
def test_icmpv6_errors_reach_the_transport(kind: int, code: int, number: int, hard: bool, chain: bytes) -> None:
    host = Host()
    errors = told(host)
    datagram = builders.udp(ME6, PEER6, 5, 6, b"")
    quoted = builders.ipv6(ME6, PEER6, 44 if chain else 17, chain + datagram)
    host.receive6(builders.ipv6(ROUTER6, ME6, 58, icmp6(ROUTER6, ME6, kind, code, 1400, quoted)))
    (error,) = errors
    assert (error.errno, error.hard, error.local, error.remote) == (number, hard, ME6, PEER6)
    assert (bytes(error.payload), error.mtu) == (datagram, 1400 if kind == 2 else 0)


# --- neighbour discovery ----------------------------------------------------------------------------------------------

GROUP = bytes.fromhex("ff02" + "00" * 9 + "01ff000002")  # solicited-node group of fd00::2
GROUP_MAC = bytes.fromhex("3333ff000002")
MAC_OPTION = bytes.fromhex("0101020000000002")


def nd(src: bytes, dst: bytes, kind: int, flags: int, target: bytes, option: bytes, hops: int = 255) -> bytes:
    return builders.ipv6(src, dst, 58, icmp6(src, dst, kind, 0, flags, target + option), hop_limit=hops)


def test_a_solicitation_is_answered_and_its_sender_remembered() -> None:
    """RFC 4861 7.2.3, 7.2.4."""
    host = Host(resolved=False)
    host.receive6(nd(PEER6, GROUP, 135, 0, ME6, MAC_OPTION), dst_mac=GROUP_MAC)
    answer = nd(ME6, PEER6, 136, 0x60000000, ME6, bytes((2, 1)) + MY_MAC)
    assert host.sent() == [builders.ethernet(bytes.fromhex("020000000002"), MY_MAC, 0x86DD, answer)]
    host.ip.icmp6.send_echo(PEER6, 1, 1, b"")
    assert host.sent()[0][:6] == bytes.fromhex("020000000002"), "no question of ours was needed"


def test_a_probe_for_our_address_is_answered_to_all() -> None:
    """RFC 4861 7.2.4; RFC 4862 5.4: somebody checks whether the address is free."""
    host = Host()
    host.receive6(nd(bytes(16), GROUP, 135, 0, ME6, b""), dst_mac=GROUP_MAC)
    answer = nd(ME6, ALL_NODES, 136, 0x20000000, ME6, bytes((2, 1)) + MY_MAC)
    assert host.sent() == [builders.ethernet(bytes.fromhex("333300000001"), MY_MAC, 0x86DD, answer)]


def test_we_ask_the_solicited_node_group_and_take_the_answer() -> None:
    host = Host(resolved=False)
    host.ip.icmp6.send_echo(PEER6, 1, 1, b"hello")
    (question,) = host.sent()
    group = bytes.fromhex("ff02" + "00" * 9 + "01ff000015")
    assert question == builders.ethernet(
        bytes.fromhex("3333ff000015"), MY_MAC, 0x86DD, nd(ME6, group, 135, 0, PEER6, bytes((1, 1)) + MY_MAC)
    )
    host.receive6(nd(PEER6, ME6, 136, 0x60000000, PEER6, bytes.fromhex("0201020000000002")))
    (packet,) = host.sent()
    assert packet[:6] == bytes.fromhex("020000000002")
    assert packet[14:] == builders.ipv6(ME6, PEER6, 58, icmp6(ME6, PEER6, 128, 0, 0x10001, b"hello"))


@pytest.mark.parametrize(
    "packet",
    [
        nd(PEER6, GROUP, 135, 0, ME6, MAC_OPTION, hops=64),
        nd(PEER6, GROUP, 135, 0, GROUP, MAC_OPTION),
        nd(PEER6, GROUP, 135, 0, ME6, bytes((1, 0)) + bytes(6)),
        nd(PEER6, GROUP, 135, 0, ME6, bytes((1, 2)) + bytes(6)),
        nd(PEER6, GROUP, 135, 0, ME6, bytes.fromhex("0101030000000002")),
        nd(bytes(16), ME6, 135, 0, ME6, b""),
        nd(bytes(16), GROUP, 135, 0, ME6, MAC_OPTION),
        nd(PEER6, ALL_NODES, 136, 0x40000000, PEER6, b""),
        nd(PEER6, GROUP, 135, 0, ME6[:15], b""),
    ],
    ids=[
        "forwarded",
        "multicast target",
        "option of no length",
        "option too long",
        "multicast MAC",
        "probe to unicast",
        "probe with MAC",
        "solicited to all",
        "cut",
    ],
)
def test_bad_neighbour_discovery_is_dropped(packet: bytes) -> None:
    """RFC 4861 7.1."""
    host = Host(resolved=False)
    host.receive6(packet, dst_mac=GROUP_MAC)
    assert (host.sent(), host.ip.drops["bad-message"], len(host.eth.neighbours)) == ([], 1, 0)


def test_an_advertisement_nobody_asked_for_makes_no_entry() -> None:
    """RFC 4861 7.2.5."""
    host = Host(resolved=False)
    host.receive6(nd(PEER6, ME6, 136, 0x60000000, PEER6, bytes.fromhex("0201020000000002")))
    assert len(host.eth.neighbours) == 0


def test_a_solicitation_for_somebody_else_is_left_to_them() -> None:
    host = Host(resolved=False)
    host.receive6(nd(PEER6, GROUP, 135, 0, PEER6, MAC_OPTION), dst_mac=GROUP_MAC)
    assert (host.sent(), len(host.eth.neighbours)) == ([], 0)
