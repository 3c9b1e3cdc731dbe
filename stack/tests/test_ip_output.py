"""What goes out: headers read back with an independent checksum, offload facts, fragments, unresolved neighbours."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.errors import NetError
from stack.ip.packet import IcmpError, IpPacket
from stack.link.device import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, Offload
from stack.link.offload import finish_checksum
from stack.testing import builders
from stack.tests.ip_rig import ME, ME6, MY_MAC, PEER, PEER6, PEER_MAC, Host, fields4

PROTO = 253


def send(host: Host, dst: bytes, payload: bytes, *, proto: int = PROTO, **how: int | bool | None) -> None:
    route = host.ip.route(dst)
    host.ip.output(route, route.src, dst, proto, (payload,), len(payload), **how)  # type: ignore[arg-type]


@given(
    st.binary(max_size=60),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.booleans(),
)
def test_ipv4_header(payload: bytes, ttl: int, tos: int, proto: int, dont_fragment: bool) -> None:
    host = Host()
    send(host, PEER, payload, proto=proto, ttl=ttl, tos=tos, dont_fragment=dont_fragment)
    (frame,) = host.sent()
    assert frame[:14] == PEER_MAC + MY_MAC + b"\x08\x00"
    read = fields4(frame[14:])
    assert (read["src"], read["dst"], read["payload"]) == (ME, PEER, payload)
    assert (read["ttl"], read["tos"], read["proto"], read["df"]) == (ttl, tos, proto, dont_fragment)
    assert (read["mf"], read["offset"]) == (0, 0)


def test_the_header_sum_for_addresses_other_than_the_routes() -> None:
    host = Host()
    route = host.ip.route(PEER)
    host.ip.output(route, bytes((10, 0, 2, 3)), PEER, PROTO, (b"x",), 1)
    assert fields4(host.sent()[0][14:])["src"] == bytes((10, 0, 2, 3))


def test_ipv6_header() -> None:
    host = Host()
    send(host, PEER6, b"payload", ttl=9, tos=0x28)
    (frame,) = host.sent()
    assert frame == builders.ethernet(
        PEER_MAC, MY_MAC, 0x86DD, builders.ipv6(ME6, PEER6, PROTO, b"payload", hop_limit=9, traffic_class=0x28)
    )


@pytest.mark.parametrize(("dst", "start", "gso"), [(PEER, 34, GSO_TCPV4), (PEER6, 54, GSO_TCPV6)])
def test_offload_facts_count_from_the_start_of_the_frame(dst: bytes, start: int, gso: int) -> None:
    host = Host()
    route = host.ip.route(dst)
    header = builders.tcp(route.src, dst, 1, 2)
    host.ip.output(
        route,
        route.src,
        dst,
        6,
        (header, bytes(60000)),
        60020,
        csum_start_offset=16,
        gso_type=gso,
        gso_size=1000,
        header_length=20,
    )
    host.turn()
    ((parts, *facts),) = host.device.sent
    assert facts == [NEEDS_CSUM, gso, start + 20, 1000, start, 16]
    assert len(parts) == 3, "payload is handed on, not copied"
    assert parts[1] is header


def test_a_checksum_left_to_the_link_comes_out_right() -> None:
    host = Host()
    partial = builders.partial_checksum(ME, PEER, 17, 11)
    send(host, PEER, struct.pack("!HHHH", 1, 2, 11, partial) + b"odd", proto=17, csum_start_offset=6)
    host.turn()
    (frame,) = host.device.sent
    finished = b"".join(finish_checksum(frame)[0])
    assert finished[34:] == builders.udp(ME, PEER, 1, 2, b"odd")


def test_a_device_without_offload_gets_segments_with_finished_checksums() -> None:
    host = Host(offloads=Offload.NONE)
    route = host.ip.route(PEER)
    header = bytearray(builders.tcp(ME, PEER, 1, 2, seq=1000))
    struct.pack_into("!H", header, 16, builders.partial_checksum(ME, PEER, 6, 20 + 3000))
    payload = bytes(range(250)) * 12
    host.ip.output(
        route,
        ME,
        PEER,
        6,
        (bytes(header), payload),
        3020,
        csum_start_offset=16,
        gso_type=GSO_TCPV4,
        gso_size=1460,
        header_length=20,
    )
    segments = [fields4(packet)["payload"] for packet in host.sent_ip()]
    assert segments == [
        builders.tcp(ME, PEER, 1, 2, seq=1000 + at, payload=payload[at : at + 1460]) for at in (0, 1460, 2920)
    ]


def test_everything_of_a_turn_leaves_in_one_transmit() -> None:
    host = Host()
    for number in range(40):
        send(host, PEER, bytes((number,)))
    host.scheduler.run_deferred()
    assert host.device.bursts == [40]
    assert [frame[-1] for frame in host.sent()] == list(range(40))


@pytest.mark.parametrize("dst", [PEER, PEER6])
def test_too_long_and_not_to_be_fragmented(dst: bytes) -> None:
    host = Host()
    header = 20 if dst is PEER else 40
    send(host, dst, bytes(1500 - header))
    with pytest.raises(NetError) as caught:
        send(host, dst, bytes(1501 - header))
    assert caught.value.errno == errno.EMSGSIZE
    with pytest.raises(NetError):
        send(host, dst, bytes(65536), dont_fragment=False)


def test_an_interface_that_is_down_refuses() -> None:
    host = Host()
    route = host.ip.route(PEER)
    host.eth.set_up(False)
    with pytest.raises(NetError) as caught:
        host.ip.output(route, ME, PEER, PROTO, (b"",), 0)
    assert caught.value.errno == errno.ENETDOWN


@settings(max_examples=60)
@given(st.integers(1, 40_000), st.integers(68, 3000))
def test_fragments_fit_and_join_again_ipv4(length: int, mtu: int) -> None:
    sender, receiver = Host(mtu=mtu), Host()
    got: list[IpPacket] = []
    receiver.ip.register(17, got.append, lambda _: None)
    body = bytes(index % 251 for index in range(length))
    datagram = builders.udp(ME, PEER, 1, 2, body)
    partial = struct.pack("!H", builders.partial_checksum(ME, PEER, 17, len(datagram)))
    send(sender, PEER, datagram[:6] + partial + datagram[8:], proto=17, csum_start_offset=6, dont_fragment=False, ttl=9)
    packets = sender.sent_ip()
    if 20 + len(datagram) <= mtu:
        assert len(packets) == 1
        return
    assert all(len(packet) <= mtu for packet in packets)
    parts = [fields4(packet) for packet in packets]
    assert len({part["ident"] for part in parts}) == 1
    assert [part["mf"] for part in parts] == [1] * (len(parts) - 1) + [0]
    assert b"".join(bytes(part["payload"]) for part in parts if isinstance(part["payload"], bytes)) == datagram
    # And through our own reassembly, as if the addresses were swapped.
    receiver.ip.local[PEER] = receiver.ip.local.pop(ME)
    for packet in reversed(packets):
        receiver.receive4(packet)
    assert (bytes(got[0].payload), got[0].csum_ok) == (datagram, True)


@settings(max_examples=40)
@given(st.integers(1300, 40_000), st.integers(1280, 3000))
def test_fragments_fit_and_join_again_ipv6(length: int, mtu: int) -> None:
    sender, receiver = Host(mtu=mtu), Host()
    got: list[IpPacket] = []
    receiver.ip.register(17, got.append, lambda _: None)
    datagram = builders.udp(ME6, PEER6, 1, 2, bytes(length))
    send(sender, PEER6, datagram, proto=17, dont_fragment=False)
    packets = sender.sent_ip()
    assert all(len(packet) <= mtu for packet in packets)
    receiver.ip.local[PEER6] = receiver.ip.local.pop(ME6)
    for packet in reversed(packets):
        receiver.receive6(packet)
    assert (bytes(got[0].payload), got[0].csum_ok) == (datagram, True)


def test_packets_wait_for_arp_and_leave_in_order() -> None:
    """IF-08."""
    host = Host(resolved=False)
    for number in range(3):
        send(host, PEER, bytes((number,)))
    (request,) = host.sent()
    assert request == builders.ethernet(b"\xff" * 6, MY_MAC, 0x0806, builders.arp(1, MY_MAC, ME, bytes(6), PEER))
    host.receive(builders.ethernet(MY_MAC, PEER_MAC, 0x0806, builders.arp(2, PEER_MAC, PEER, MY_MAC, ME)))
    frames = host.sent()
    assert [frame[-1] for frame in frames] == [0, 1, 2]
    assert all(frame[:12] == PEER_MAC + MY_MAC for frame in frames)


def test_fragments_wait_for_arp_too() -> None:
    host = Host(resolved=False)
    send(host, PEER, bytes(3000), dont_fragment=False)
    host.sent()
    host.receive(builders.ethernet(MY_MAC, PEER_MAC, 0x0806, builders.arp(2, PEER_MAC, PEER, MY_MAC, ME)))
    assert [frame[:6] for frame in host.sent()] == [PEER_MAC] * 3


@pytest.mark.parametrize("dst", [PEER, PEER6])
def test_nobody_answers_and_the_transport_is_told(dst: bytes) -> None:
    host = Host(resolved=False)
    errors: list[IcmpError] = []
    host.ip.register(PROTO, lambda _: None, errors.append)
    send(host, dst, b"12345678")
    host.pass_time(5 * 10**9)
    (error,) = errors
    assert (error.errno, error.hard, error.proto) == (errno.EHOSTUNREACH, False, PROTO)
    assert (error.local, error.remote, bytes(error.payload)) == (host.ip.route(dst).src, dst, b"12345678")


def test_a_cached_route_survives_the_eviction_of_its_neighbour() -> None:
    host = Host()
    route = host.ip.route(PEER)
    host.ip.output(route, ME, PEER, PROTO, (b"1",), 1)
    host.eth.neighbours.remove(PEER)
    host.eth.neighbours.set_permanent(PEER, bytes.fromhex("020000000009"))
    host.ip.output(route, ME, PEER, PROTO, (b"2",), 1)
    assert [frame[5] for frame in host.sent()] == [2, 9]


def test_confirming_a_route_keeps_its_neighbour_reachable() -> None:
    host = Host(resolved=False)
    send(host, PEER, b"x")
    host.receive(builders.ethernet(MY_MAC, PEER_MAC, 0x0806, builders.arp(2, PEER_MAC, PEER, MY_MAC, ME)))
    for _ in range(10):
        host.pass_time(14 * 10**9)
        host.ip.confirm(host.ip.route(PEER))
        send(host, PEER, b"x")
        host.ip.confirm(host.ip.route(PEER))
    assert all(frame[12:14] == b"\x08\x00" for frame in host.sent()[1:]), "no probe was needed"


def test_identifications_of_fragmentable_datagrams_do_not_repeat_soon() -> None:
    """RFC 6864 4.3."""
    host = Host()
    for _ in range(500):
        send(host, PEER, b"x", dont_fragment=False)
    idents = [fields4(packet)["ident"] for packet in host.sent_ip()]
    assert len(set(idents)) == 500
