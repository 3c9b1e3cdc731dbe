"""What comes in: row IF-09, the checks of RFC 791/1122/8200, drops by reason, and that nothing ever raises."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stack.ip.packet import IpPacket, PacketKind
from stack.testing import builders
from stack.tests.ip_rig import (
    EVERYBODY,
    LO,
    LO6,
    ME,
    ME6,
    MY_MAC,
    PEER,
    PEER6,
    PEER_MAC,
    SUBNET_BROADCAST,
    Host,
    valid_flags,
)

PROTO = 253  # RFC 3692: for experiments
ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")


def listening(proto: int = PROTO, **options: bool) -> tuple[Host, list[IpPacket]]:
    host = Host(**options)  # type: ignore[arg-type]  # only `resolved` is passed
    got: list[IpPacket] = []
    host.ip.register(proto, got.append, lambda _: None)
    return host, got


def drops(host: Host) -> dict[str, int]:
    return {**host.ip.drops, **host.eth.drops}


def test_a_plain_packet_arrives_with_its_facts() -> None:
    host, got = listening()
    host.receive4(builders.ipv4(PEER, ME, PROTO, b"payload", ttl=9, tos=0x28) + bytes(13))
    (packet,) = got
    assert (packet.version, packet.src, packet.dst, packet.proto) == (4, PEER, ME, PROTO)
    assert (packet.ttl, packet.tos, bytes(packet.payload)) == (9, 0x28, b"payload"), "link padding must be cut off"
    assert (packet.iface, packet.kind, packet.gso_size) == (host.eth, PacketKind.UNICAST, 0)
    assert bytes(packet.header) == builders.ipv4(PEER, ME, PROTO, b"", ttl=9, tos=0x28, total_length=27)
    assert len(packet.datagram) == 27
    assert not drops(host)


def test_a_plain_ipv6_packet_arrives_with_its_facts() -> None:
    host, got = listening()
    host.receive6(builders.ipv6(PEER6, ME6, PROTO, b"payload", hop_limit=9, traffic_class=0x28) + bytes(9))
    (packet,) = got
    assert (packet.version, packet.src, packet.dst, packet.proto) == (6, PEER6, ME6, PROTO)
    assert (packet.ttl, packet.tos, bytes(packet.payload), packet.kind) == (9, 0x28, b"payload", PacketKind.UNICAST)
    assert not drops(host)


def test_a_superframe_arrives_whole_with_its_segment_size() -> None:
    host, got = listening(6)
    frame = builders.ethernet(MY_MAC, PEER_MAC, 0x0800, builders.ipv4(PEER, ME, 6, bytes(65000)))
    host.device.inbox.append((memoryview(frame), 1, 1, 1448, 34, 16))
    host.turn()
    assert (len(got[0].payload), got[0].gso_size, got[0].csum_ok) == (65000, 1448, True)


def test_a_segment_size_without_a_segmentation_type_means_nothing() -> None:
    host, got = listening(6)
    frame = builders.ethernet(MY_MAC, PEER_MAC, 0x0800, builders.ipv4(PEER, ME, 6, bytes(20)))
    host.device.inbox.append((memoryview(frame), 1, 0, 1448, 34, 16))
    host.turn()
    assert got[0].gso_size == 0


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (builders.ipv4(PEER, ME, PROTO, b"")[:19], "too-short"),
        (b"", "too-short"),
        (b"\x55" + builders.ipv4(PEER, ME, PROTO, b"")[1:], "bad-header"),
        (b"\x44" + builders.ipv4(PEER, ME, PROTO, b"")[1:], "bad-header"),
        (b"\x4f" + builders.ipv4(PEER, ME, PROTO, b"")[1:], "bad-header"),
        (builders.ipv4(PEER, ME, PROTO, b"", total_length=21), "truncated"),
        (builders.ipv4(PEER, ME, PROTO, b"", total_length=65535), "truncated"),
        (builders.ipv4(PEER, ME, PROTO, b"", total_length=19), "truncated"),
        (builders.ipv4(PEER, ME, PROTO, b"", total_length=0), "truncated"),
        (builders.ipv4(PEER, ME, PROTO, b"", header_checksum=0xBEEF), "bad-checksum"),
        (builders.ipv4(PEER, ME, PROTO, b"", options=b"\x01\x01\x01\x01", header_checksum=1), "bad-checksum"),
        (builders.ipv4(PEER, ME, PROTO, b"", options=bytes((131, 3, 4, 0))), "source-route"),
        (builders.ipv4(PEER, ME, PROTO, b"", options=bytes((137, 3, 4, 0))), "source-route"),
        (builders.ipv4(PEER, ME, PROTO, b"", options=bytes((7, 40, 4, 0))), "bad-header"),
        (builders.ipv4(PEER, bytes((8, 8, 8, 8)), PROTO, b""), "not-for-us"),
        (builders.ipv4(PEER, bytes((239, 1, 2, 3)), PROTO, b""), "not-for-us"),
        (builders.ipv4(PEER, LO, PROTO, b""), "martian-destination"),
        (builders.ipv4(PEER, bytes((127, 9, 9, 9)), PROTO, b""), "martian-destination"),
        (builders.ipv4(LO, ME, PROTO, b""), "martian-source"),
        (builders.ipv4(ME, ME, PROTO, b""), "martian-source"),
        (builders.ipv4(bytes(4), ME, PROTO, b""), "martian-source"),
        (builders.ipv4(bytes((0, 1, 2, 3)), ME, PROTO, b""), "martian-source"),
        (builders.ipv4(bytes((224, 0, 0, 1)), ME, PROTO, b""), "martian-source"),
        (builders.ipv4(EVERYBODY, ME, PROTO, b""), "martian-source"),
        (builders.ipv4(SUBNET_BROADCAST, ME, PROTO, b""), "martian-source"),
    ],
)
def test_bad_ipv4_is_dropped_and_counted(packet: bytes, reason: str) -> None:
    """IF-09; RFC 1122 3.2.1."""
    host, got = listening()
    host.receive4(packet)
    assert not got
    assert drops(host) == {reason: 1}


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "too-short"),
        (builders.ipv6(PEER6, ME6, PROTO, b"")[:39], "too-short"),
        (b"\x40" + builders.ipv6(PEER6, ME6, PROTO, b"")[1:], "bad-header"),
        (builders.ipv6(PEER6, ME6, PROTO, b"", payload_length=1), "truncated"),
        (builders.ipv6(PEER6, ME6, PROTO, b"", payload_length=65535), "truncated"),
        (builders.ipv6(PEER6, bytes.fromhex("fd00" + "00" * 13 + "77"), PROTO, b""), "not-for-us"),
        (builders.ipv6(PEER6, LO6, PROTO, b""), "martian-source"),
        (builders.ipv6(LO6, ME6, PROTO, b""), "martian-source"),
        (builders.ipv6(ME6, ME6, PROTO, b""), "martian-source"),
        (builders.ipv6(ALL_NODES, ME6, PROTO, b""), "martian-source"),
        (builders.ipv6(bytes(10) + b"\xff\xff" + PEER, ME6, PROTO, b""), "martian-source"),
        (builders.ipv6(PEER6, ME6, 0, b"\x3b"), "bad-header"),
        (builders.ipv6(PEER6, ME6, 60, bytes((59, 9)) + bytes(6)), "bad-header"),
        (builders.ipv6(PEER6, ME6, 60, bytes((59, 0, 0x5E, 4)) + bytes(4)), "bad-header"),
        (builders.ipv6(PEER6, ME6, 44, bytes(7)), "fragment-bad"),
        (builders.ipv6(PEER6, ME6, 44, bytes((44, 0, 0, 0)) + bytes(12)), "fragment-bad"),
    ],
)
def test_bad_ipv6_is_dropped_and_counted(packet: bytes, reason: str) -> None:
    """IF-12; RFC 8200, RFC 4291 2.5."""
    host, got = listening()
    host.receive6(packet)
    assert not got
    assert drops(host) == {reason: 1}


def test_a_host_without_an_address_may_ask_everybody() -> None:
    """RFC 1122 3.2.1.3: 0.0.0.0 as source, which is how DHCP starts."""
    host, got = listening()
    host.receive4(builders.ipv4(bytes(4), EVERYBODY, PROTO, b"help"), dst_mac=b"\xff" * 6)
    assert (got[0].src, got[0].kind) == (bytes(4), PacketKind.BROADCAST)


@pytest.mark.parametrize(
    ("dst", "kind"),
    [
        (ME, PacketKind.UNICAST),
        (SUBNET_BROADCAST, PacketKind.BROADCAST),
        (bytes((10, 0, 2, 0)), PacketKind.BROADCAST),
        (EVERYBODY, PacketKind.BROADCAST),
        (bytes((224, 0, 0, 1)), PacketKind.MULTICAST),
    ],
)
def test_destinations_by_kind(dst: bytes, kind: PacketKind) -> None:
    host, got = listening()
    host.receive4(builders.ipv4(PEER, dst, PROTO, b""))
    assert got[0].kind is kind


@pytest.mark.parametrize(
    ("mac", "kind"), [(b"\xff" * 6, PacketKind.BROADCAST), (bytes.fromhex("01005e000001"), PacketKind.MULTICAST)]
)
def test_our_address_in_a_link_layer_broadcast_is_no_unicast(mac: bytes, kind: PacketKind) -> None:
    """RFC 1122 3.3.6: transports must be able to refuse it."""
    host, got = listening()
    host.receive4(builders.ipv4(PEER, ME, PROTO, b""), dst_mac=mac)
    assert got[0].kind is kind


def test_a_joined_group_is_received_until_left() -> None:
    host, got = listening()
    group = bytes((239, 1, 2, 3))
    packet = builders.ipv4(PEER, group, PROTO, b"")
    host.ip.join_group(group, host.eth)
    host.ip.join_group(group, host.eth)
    host.ip.leave_group(group, host.eth)
    host.receive4(packet, dst_mac=bytes.fromhex("01005e010203"))
    host.ip.leave_group(group, host.eth)
    host.receive4(packet, dst_mac=bytes.fromhex("01005e010203"))
    assert len(got) == 1


def test_options_that_are_no_source_route_are_stepped_over() -> None:
    host, got = listening()
    host.receive4(builders.ipv4(PEER, ME, PROTO, b"data", options=bytes((7, 7, 4, 0, 0, 0, 0, 0))))
    assert (bytes(got[0].payload), got[0].header_length) == (b"data", 28)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "too-short"),
        (bytes(13), "too-short"),
        (builders.ethernet(PEER_MAC, MY_MAC, 0x0800, bytes(40)), "other-host"),
        (builders.ethernet(MY_MAC, PEER_MAC, 0x88CC, bytes(40)), "unknown-ethertype"),
        (builders.ethernet(MY_MAC, PEER_MAC, 0x0800, bytes(40), vlan=5), "unknown-ethertype"),
        (builders.ethernet(MY_MAC, PEER_MAC, 0x0806, bytes(27)), "bad-message"),
    ],
)
def test_bad_frames_are_dropped_and_counted(frame: bytes, reason: str) -> None:
    host = Host()
    host.receive(frame)
    assert drops(host) == {reason: 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("proto", [6, 17])
def test_transport_checksums_are_summed_unless_the_link_vouches(version: int, proto: int) -> None:
    host, got = listening(proto)
    src, dst = (PEER, ME) if version == 4 else (PEER6, ME6)
    make = builders.tcp if proto == 6 else builders.udp
    good = make(src, dst, 1, 2, payload=b"odd")
    bad = good[:-1] + b"X"
    for segment, flags in ((good, 0), (bad, 0), (bad, valid_flags())):
        if version == 4:
            host.receive4(builders.ipv4(src, dst, proto, segment), flags=flags)
        else:
            host.receive6(builders.ipv6(src, dst, proto, segment), flags=flags)
    assert [packet.csum_ok for packet in got] == [True, False, True]


def test_udp_without_a_checksum_is_fine_in_ipv4_only() -> None:
    """RFC 768; RFC 8200 8.1."""
    host, got = listening(17)
    host.receive4(builders.ipv4(PEER, ME, 17, builders.udp(PEER, ME, 1, 2, b"x", checksum=0)))
    host.receive6(builders.ipv6(PEER6, ME6, 17, builders.udp(PEER6, ME6, 1, 2, b"x", checksum=0)))
    assert [packet.csum_ok for packet in got] == [True, False]


def test_a_link_that_is_down_receives_nothing() -> None:
    host, got = listening()
    host.eth.set_up(False)
    host.receive4(builders.ipv4(PEER, ME, PROTO, b""))
    assert (got, drops(host)) == ([], {"link-down": 1})


def test_extension_headers_lead_to_the_transport() -> None:
    host, got = listening(17)
    pad = bytes((1, 4)) + bytes(4)
    datagram = builders.udp(PEER6, ME6, 1, 2, b"data")
    chain = bytes((60, 0)) + pad + bytes((43, 0)) + pad + bytes((17, 0, 0, 0)) + bytes(4) + datagram
    host.receive6(builders.ipv6(PEER6, ME6, 0, chain))
    (packet,) = got
    assert (packet.proto, bytes(packet.payload), packet.header_length, packet.csum_ok) == (17, datagram, 64, True)


# --- fragments ------------------------------------------------------------------------------------------------------


def cut4(payload: bytes, *edges: int, ident: int = 1, proto: int = PROTO) -> list[bytes]:
    """IPv4 fragments of `payload` cut at `edges`."""
    bounds = (0, *edges, len(payload))
    return [
        builders.ipv4(
            PEER,
            ME,
            proto,
            payload[start:end],
            identification=ident,
            flags_fragment=start >> 3 | (0x2000 if end < len(payload) else 0),
        )
        for start, end in pairwise(bounds)
    ]


def cut6(payload: bytes, *edges: int, proto: int = PROTO) -> list[bytes]:
    bounds = (0, *edges, len(payload))
    return [
        builders.ipv6(
            PEER6, ME6, 44, struct.pack("!BBHI", proto, 0, start | (end < len(payload)), 77) + payload[start:end]
        )
        for start, end in pairwise(bounds)
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 1, 0, 2, 2)])
def test_fragments_become_one_packet_in_any_order(order: tuple[int, ...]) -> None:
    host, got = listening()
    payload = bytes(range(100))
    for index in order:
        host.receive4(cut4(payload, 16, 48)[index])
    (packet,) = got[:1]
    assert bytes(packet.payload) == payload
    assert bytes(packet.datagram) == builders.ipv4(PEER, ME, PROTO, payload, identification=1, flags_fragment=0)
    if len(order) == 3:  # duplicates that come late start a datagram that will time out
        assert host.ip.input4.reassembler.memory == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_ipv6_fragments_become_one_packet_in_any_order(order: tuple[int, ...]) -> None:
    host, got = listening()
    payload = bytes(range(100))
    for index in order:
        host.receive6(cut6(payload, 16, 48)[index])
    (packet,) = got
    assert (bytes(packet.payload), packet.proto) == (payload, PROTO)
    assert bytes(packet.datagram) == builders.ipv6(PEER6, ME6, PROTO, payload)
    assert host.ip.input6.reassembler.memory == 0


def test_a_reassembled_transport_checksum_is_verified() -> None:
    host, got = listening(17)
    datagram = builders.udp(PEER, ME, 1, 2, bytes(100))
    for packet in cut4(datagram, 40, proto=17) + cut4(datagram[:-1] + b"X", 40, proto=17, ident=2):
        host.receive4(packet, flags=valid_flags())  # whatever the flags of a fragment claim
    assert [packet.csum_ok for packet in got] == [True, False]


def test_an_atomic_fragment_stands_alone() -> None:
    """RFC 6946: it neither waits nor disturbs fragments with its identification."""
    host, got = listening()
    first, second = cut6(bytes(64), 32)
    host.receive6(first)
    host.receive6(cut6(b"atomic")[0])
    host.receive6(second)
    assert [bytes(packet.payload) for packet in got] == [b"atomic", bytes(64)]


def test_the_ping_of_death_is_refused() -> None:
    """A last fragment that would end beyond 65535 bytes."""
    host, got = listening()
    packet = builders.ipv4(PEER, ME, PROTO, bytes(100), flags_fragment=0x1FFF)
    host.receive4(packet)
    assert (got, drops(host)) == ([], {"fragment-bad": 1})


def test_missing_fragments_time_out_and_the_sender_learns_if_the_first_had_come() -> None:
    """RFC 792 type 11 code 1; RFC 1122 3.3.2."""
    host, got = listening()
    host.receive4(cut4(bytes(64), 32, ident=1)[0])
    host.receive4(cut4(bytes(64), 32, ident=2)[1])
    host.pass_time(31 * 10**9)
    (error,) = host.sent_ip()
    assert (error[16:20], error[20:22]) == (PEER, b"\x0b\x01")
    assert error[28:48] == cut4(bytes(64), 32, ident=1)[0][:20]
    assert (got, host.ip.drops["fragment-timeout"], len(host.ip.input4.reassembler)) == ([], 2, 0)


def test_ipv6_time_out_quotes_the_first_fragment() -> None:
    """RFC 8200 4.5."""
    host, _ = listening()
    host.receive6(cut6(bytes(64), 32)[0])
    host.pass_time(61 * 10**9)
    (error,) = host.sent_ip()
    assert (error[24:40], error[40:42], error[48:88]) == (PEER6, b"\x03\x01", cut6(bytes(64), 32)[0][:40])


# --- anything at all --------------------------------------------------------------------------------------------------

HEADERS4 = st.builds(
    lambda src, dst, proto, body, fragment, length: builders.ipv4(
        src, dst, proto, body, flags_fragment=fragment, total_length=length
    ),
    st.sampled_from((PEER, ME, LO, EVERYBODY, bytes(4))),
    st.sampled_from((ME, SUBNET_BROADCAST, EVERYBODY, LO, bytes((224, 0, 0, 1)))),
    st.sampled_from((1, 2, 6, 17, 58, 253)),
    st.binary(max_size=80),
    st.sampled_from((0, 0x2000, 0x4000, 1, 0x2001, 0x1FFF)),
    st.one_of(st.none(), st.integers(0, 0xFFFF)),
)
HEADERS6 = st.builds(
    lambda src, dst, proto, body, length, hops: builders.ipv6(
        src, dst, proto, body, payload_length=length, hop_limit=hops
    ),
    st.sampled_from((PEER6, ME6, LO6, bytes(16), ALL_NODES)),
    st.sampled_from((ME6, ALL_NODES, LO6)),
    st.sampled_from((0, 6, 17, 43, 44, 58, 59, 60, 253)),
    st.binary(max_size=80),
    st.one_of(st.none(), st.integers(0, 0xFFFF)),
    st.sampled_from((1, 64, 255)),
)


def with_checksum(kind: int, rest: bytes) -> bytes:
    body = bytes((kind, 0, 0, 0)) + rest
    return body[:2] + struct.pack("!H", builders.inet_checksum(body)) + body[4:]


ICMP4 = st.builds(
    lambda kind, rest: builders.ipv4(PEER, ME, 1, with_checksum(kind, rest)),
    st.sampled_from((0, 3, 4, 5, 8, 11, 12, 13)),
    st.one_of(st.binary(max_size=60), HEADERS4.map(lambda quoted: bytes(4) + quoted)),
)


def icmp6(kind: int, rest: bytes) -> bytes:
    body = bytes((kind, 0, 0, 0)) + rest
    check = builders.inet_checksum(builders.pseudo_header(PEER6, ME6, 58, len(body)) + body)
    return builders.ipv6(PEER6, ME6, 58, body[:2] + struct.pack("!H", check) + body[4:], hop_limit=255)


ICMP6 = st.builds(
    icmp6,
    st.sampled_from((1, 2, 3, 4, 100, 128, 129, 133, 134, 135, 136, 137, 200)),
    st.one_of(
        st.binary(max_size=60),
        HEADERS6.map(lambda quoted: bytes(4) + quoted),
        st.binary(max_size=30).map(lambda rest: bytes(4) + ME6 + rest),
    ),
)
FRAMES: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=150),
    st.builds(
        lambda mac, ethertype, body: builders.ethernet(mac, PEER_MAC, ethertype, body),
        st.sampled_from((MY_MAC, b"\xff" * 6, bytes.fromhex("01005e000001"))),
        st.sampled_from((0x0800, 0x0806, 0x86DD)),
        st.binary(max_size=100),
    ),
    st.one_of(HEADERS4, ICMP4).map(lambda body: builders.ethernet(MY_MAC, PEER_MAC, 0x0800, body)),
    st.one_of(HEADERS6, ICMP6).map(lambda body: builders.ethernet(MY_MAC, PEER_MAC, 0x86DD, body)),
)


def mutated(frame: bytes, where: int, value: int, cut: int) -> bytes:
    """`frame` with one byte replaced and its end cut off: lying lengths of every kind."""
    if frame:
        where %= len(frame)
        frame = frame[:where] + bytes((value,)) + frame[where + 1 :]
    return frame[: len(frame) - cut % (len(frame) + 1)]


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            FRAMES, st.booleans(), st.integers(0, 200), st.integers(0, 255), st.sampled_from((0, 0, 0, 1, 5, 30))
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 3),
    st.integers(0, 5),
    st.integers(0, 65535),
)
def test_no_frame_whatsoever_makes_the_host_raise(
    frames: list[tuple[bytes, bool, int, int, int]], flags: int, gso_type: int, gso_size: int
) -> None:
    host = Host(resolved=False)
    endpoint = host.udp.bind(bytes(4), 9)
    for frame, mutate, where, value, cut in frames:
        data = mutated(frame, where, value, cut) if mutate else frame
        host.device.inbox.append((memoryview(data), flags, gso_type, gso_size, 0, 0))
    host.turn()
    host.pass_time(70 * 10**9)
    assert host.ip.input4.reassembler.memory == 0
    assert host.ip.input6.reassembler.memory == 0
    assert endpoint.error == 0


def test_bad_frames_do_not_cost_a_burst_its_good_ones() -> None:
    host, got = listening()
    good = builders.ethernet(MY_MAC, PEER_MAC, 0x0800, builders.ipv4(PEER, ME, PROTO, b"x"))
    host.receive(good[:20], good, bytes(5), good)
    assert len(got) == 2
