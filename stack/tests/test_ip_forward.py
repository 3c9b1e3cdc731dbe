"""A namespace as a router: RFC 1812 5, RFC 8200, Linux's ip_forward; what senders are told; superframes."""

from __future__ import annotations

import errno
import random
import struct

import pytest

from stack.iface.address import parse_address
from stack.ip.forward import copied_options, fragments4
from stack.ip.packet import IcmpError
from stack.ip.route import RouteKind
from stack.link.device import Offload
from stack.link.offload import ALL_OFFLOADS
from stack.testing import builders
from stack.tests.ip_world import World, routed
from stack.udp import Discover, UdpEndpoint
from stack.wire import icmp, icmpv6, ipv4

BOTH = pytest.mark.parametrize("family", [4, 6])
LEFT = {4: parse_address("10.1.0.2"), 6: parse_address("fd01::2")}
RIGHT = {4: parse_address("10.2.0.2"), 6: parse_address("fd02::2")}
NEAR = {4: parse_address("10.1.0.1"), 6: parse_address("fd01::1")}


def endpoints(world: World, family: int) -> tuple[UdpEndpoint, UdpEndpoint, list[IcmpError]]:
    """One on the left that collects ICMP errors, one on the right at port 7."""
    any_address = bytes(4 if family == 4 else 16)
    left = world.node("left").udp.bind(any_address)
    errors: list[IcmpError] = []
    left.on_icmp = errors.append
    return left, world.node("right").udp.bind(any_address, 7), errors


def hand_in(world: World, ethertype: int, packet: bytes, *, flags: int = 0, gso_size: int = 0) -> None:
    """Have the router receive `packet` from the left."""
    router = world.node("router")
    eth = router.interface("eth0")
    frame = builders.ethernet(eth.mac, b"\x02" + bytes(5), ethertype, packet)
    handler = router.ip.input4 if ethertype == 0x0800 else router.ip.input6
    handler.receive(eth, memoryview(frame), 0, flags, gso_size)


@BOTH
def test_packets_pass_with_one_hop_less_both_ways(family: int) -> None:
    world = routed()
    left, right, _ = endpoints(world, family)
    left.send(b"hello", (RIGHT[family], 7))
    world.turn()
    there = right.recv()
    assert there is not None
    assert (there.data, there.src[0], there.ttl) == (b"hello", LEFT[family], 63)
    right.send(b"answer", there.src)
    world.turn()
    back = left.recv()
    assert back is not None
    assert (back.data, back.ttl) == (b"answer", 63)


@BOTH
def test_nothing_passes_unless_asked_for_and_per_interface(family: int) -> None:
    world = routed()
    router = world.node("router")
    left, right, _ = endpoints(world, family)

    def passes() -> bool:
        left.send(b"x", (RIGHT[family], 7))
        world.turn()
        return right.recv() is not None

    assert passes()
    router.set_forwarding(False)
    dropped = router.ip.drops["not-for-us"]
    assert not passes()
    assert router.ip.drops["not-for-us"] == dropped + 1
    router.set_forwarding(True, version=family, iface=router.interface("eth0"))
    assert passes(), "the interface it comes in through decides"
    router.set_forwarding(True)
    router.set_forwarding(False, iface=router.interface("eth0"))
    assert not passes()
    assert not router.ip.forwarding.is_on(family, router.interface("eth0"))
    assert router.ip.forwarding.is_on(family)


@BOTH
def test_the_last_hop_is_reported(family: int) -> None:
    world = routed()
    left, right, errors = endpoints(world, family)
    left.send(b"x", (RIGHT[family], 7), ttl=1)
    world.turn()
    assert right.recv() is None
    (error,) = errors
    assert error.type == (icmp.TIME_EXCEEDED if family == 4 else icmpv6.TIME_EXCEEDED)
    assert (error.code, error.src, error.errno) == (0, NEAR[family], errno.EHOSTUNREACH)
    assert world.node("router").ip.drops["ttl-exceeded"] == 1


@BOTH
@pytest.mark.parametrize(
    ("kind", "code4", "code6"),
    [
        (None, icmp.NET_UNREACHABLE, icmpv6.NO_ROUTE),
        (RouteKind.UNREACHABLE, icmp.HOST_UNREACHABLE, icmpv6.NO_ROUTE),
        (RouteKind.PROHIBIT, icmp.ADMINISTRATIVELY_PROHIBITED, icmpv6.ADMINISTRATIVELY_PROHIBITED),
        (RouteKind.BLACKHOLE, None, None),
    ],
)
def test_a_way_that_is_not_there_is_reported(
    family: int, kind: RouteKind | None, code4: int | None, code6: int | None
) -> None:
    world = routed()
    left, _, errors = endpoints(world, family)
    if kind is not None:
        world.node("router").add_route("10.9.0.0/16" if family == 4 else "fd09::/16", kind=kind)
    left.send(b"x", (parse_address("10.9.0.1" if family == 4 else "fd09::1"), 7))
    world.turn()
    assert [error.code for error in errors] == [code for code in [code4 if family == 4 else code6] if code is not None]


@BOTH
def test_a_next_hop_that_never_answers_is_reported_to_the_sender(family: int) -> None:
    world = routed()
    left, _, errors = endpoints(world, family)
    left.send(b"x", (parse_address("10.2.0.77" if family == 4 else "fd02::77"), 7))
    world.pass_time(5)
    (error,) = errors
    assert error.src == NEAR[family]
    assert error.code == (icmp.HOST_UNREACHABLE if family == 4 else icmpv6.ADDRESS_UNREACHABLE)


def test_a_smaller_link_ahead_is_found_and_used() -> None:
    """RFC 1191: with DF the sender hears the next hop's MTU; its next datagrams are cut at the source."""
    world = routed(right_mtu=1000)
    left, right, errors = endpoints(world, 4)
    left.v4.discover = left.v6.discover = Discover.DO
    left.send(bytes(1400), (RIGHT[4], 7))
    world.turn()
    assert right.recv() is None
    (error,) = errors
    assert (error.type, error.code, error.mtu, error.errno) == (3, 4, 1000, errno.EMSGSIZE)
    assert world.node("left").ip.path_mtu(RIGHT[4]) == 1000


def test_without_df_the_router_fragments() -> None:
    world = routed(right_mtu=600)
    left, right, errors = endpoints(world, 4)
    left.v4.discover = Discover.DONT
    data = random.Random(3).randbytes(1400)
    left.send(data, (RIGHT[4], 7))
    world.turn()
    received = right.recv()
    assert received is not None
    assert received.data == data
    assert not errors


def test_ipv6_routers_never_fragment() -> None:
    """RFC 8200 4.5, 5: packet too big; the source fragments the next one."""
    world = routed(right_mtu=1300)
    left, right, errors = endpoints(world, 6)
    data = random.Random(3).randbytes(1400)
    left.send(data, (RIGHT[6], 7))
    world.turn()
    assert right.recv() is None
    (error,) = errors
    assert (error.type, error.mtu) == (icmpv6.PACKET_TOO_BIG, 1300)
    left.send(data, (RIGHT[6], 7))
    world.turn()
    received = right.recv()
    assert received is not None
    assert received.data == data


@BOTH
@pytest.mark.parametrize("offloads", [Offload.NONE, Offload.CSUM, None])
@pytest.mark.parametrize("mtu", [1500, 1280])
def test_a_tcp_transfer_through_the_router(family: int, offloads: Offload | None, mtu: int) -> None:
    """Superframes arrive, whatever the out-link can do, and whether or not their segments fit it."""
    world = routed(right_mtu=mtu, right_offloads=ALL_OFFLOADS if offloads is None else offloads)
    left, right, router = world.node("left"), world.node("right"), world.node("router")
    listener = right.tcp.listen(
        right.ip.ports[6].bind(bytes(len(RIGHT[family])), 80, reuse_addr=False, reuse_port=False, v6only=False), 5
    )
    connection = left.tcp.connect(None, None, (RIGHT[family], 80))
    world.pass_time(2, lambda: connection.connected)
    peer = listener.accept()
    assert peer is not None
    data = random.Random(family).randbytes(300_000)
    sent, got = 0, bytearray()
    for _ in range(2000):
        if sent < len(data):
            sent += connection.write(data[sent : sent + 65536])
        world.pass_time(0.01)
        got += peer.read(1 << 20)
        if len(got) == len(data):
            break
    assert bytes(got) == data
    passed = router.ip.forwarding.forwarded4 if family == 4 else router.ip.forwarding.forwarded6
    if mtu == 1500:
        assert passed < 150, "superframes are passed on whole"


def test_a_superframe_without_df_is_segmented_and_fragmented() -> None:
    world = routed(right_mtu=600)
    right = world.node("right")
    payload = random.Random(1).randbytes(3000)
    seen: list[bytes] = []
    right.ip.handlers4[6] = lambda packet: seen.append(bytes(packet.payload) if packet.csum_ok else b"bad")
    segment = builders.tcp(LEFT[4], RIGHT[4], 1000, 80, payload=payload, flags=builders.ACK)
    partial = builders.partial_checksum(LEFT[4], RIGHT[4], 6, len(segment))
    segment = segment[:16] + struct.pack("!H", partial) + segment[18:]
    packet = builders.ipv4(LEFT[4], RIGHT[4], 6, segment, flags_fragment=0)
    hand_in(world, 0x0800, packet, flags=1, gso_size=1000)
    world.turn()
    assert [len(each) - 20 for each in seen] == [1000, 1000, 1000]
    assert b"".join(each[20:] for each in seen) == payload


@pytest.mark.parametrize(
    ("src", "dst", "reason"),
    [
        ("10.1.0.2", "169.254.1.1", "not-for-us"),
        ("169.254.1.1", "10.2.0.2", "not-for-us"),
        ("10.1.0.2", "224.1.2.3", "not-for-us"),
        ("127.0.0.1", "10.2.0.2", "martian-source"),
        ("224.0.0.1", "10.2.0.2", "martian-source"),
        ("10.2.0.1", "10.2.0.2", "martian-source"),
        ("10.1.0.2", "240.0.0.1", "not-for-us"),
        ("fe80::1", "fd02::2", "not-for-us"),
        ("fd01::2", "fe80::1", "not-for-us"),
        ("fd01::2", "ff0e::1", "not-for-us"),
        ("::1", "fd02::2", "martian-source"),
        ("::", "fd02::2", "martian-source"),
        ("fd01::2", "::1", "martian-source"),
    ],
)
def test_what_no_router_passes_on(src: str, dst: str, reason: str) -> None:
    """RFC 1812 5.3.7, RFC 3927 7, RFC 4291 2.5: and no answer goes out through the other side."""
    world = routed()
    world.turn()
    router = world.node("router")
    one, other = parse_address(src), parse_address(dst)
    build, ethertype = (builders.ipv4, 0x0800) if len(one) == 4 else (builders.ipv6, 0x86DD)
    hand_in(world, ethertype, build(one, other, 17, b"12345678"))
    assert dict(router.ip.drops) == {reason: 1}
    assert router.interface("eth1").queued == 0


def test_record_route_is_filled_in_and_the_checksum_stays_right() -> None:
    world = routed()
    right = world.node("right")
    seen: list[bytes] = []
    right.ip.handlers4[99] = lambda packet: seen.append(bytes(packet.header))
    options = bytes([7, 11, 4]) + bytes(8) + b"\x00"
    packet = builders.ipv4(LEFT[4], RIGHT[4], 99, b"data", options=options)
    hand_in(world, 0x0800, packet)
    world.turn()
    (header,) = seen
    assert builders.inet_checksum(header) == 0
    assert header[20:27] == bytes([7, 11, 8, 10, 2, 0, 1])


def test_fragments_of_fragments_keep_their_place_and_only_copied_options() -> None:
    """RFC 791 3.2: offsets add up, the last piece of a middle fragment still says that more come."""
    options = bytes([0x94, 4, 0, 0, 7, 3, 4, 0])  # router alert (copied), record route (not)
    packet = memoryview(
        builders.ipv4(LEFT[4], RIGHT[4], 17, bytes(range(200)), flags_fragment=0x2000 | 10, options=options)
    )
    pieces = fragments4(packet[:28], packet[28:], 100)
    fragments = [struct.unpack_from("!H", piece, 6)[0] for piece in pieces]
    assert all(each & 0x2000 for each in fragments)
    offset = 10
    for piece, fragment in zip(pieces, fragments, strict=True):
        header, body = ipv4.parse(memoryview(piece))
        assert fragment & 0x1FFF == offset
        assert len(piece) <= 100
        offset += len(body) // 8
        assert header.options == (options if fragment & 0x1FFF == 10 else options[:4])
    assert b"".join(bytes(ipv4.parse(memoryview(piece))[1]) for piece in pieces) == bytes(range(200))
    assert copied_options(b"\x01\x01\x94\x04\x00\x00\x00\x00") == b"\x94\x04\x00\x00"


def test_an_unknown_hop_by_hop_option_stops_a_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    world = routed()
    router = world.node("router")
    errors: list[IcmpError] = []
    monkeypatch.setattr(world.node("left").ip, "deliver_error", errors.append)
    for option, passes in ((0x3E, True), (0x7E, False), (0xBE, False)):
        before = router.ip.forwarding.forwarded6
        body = bytes([17, 0, option, 4, 0, 0, 0, 0]) + b"12345678"
        hand_in(world, 0x86DD, builders.ipv6(LEFT[6], RIGHT[6], 0, body))
        assert router.ip.forwarding.forwarded6 - before == passes
        world.turn()
    assert router.ip.drops["bad-header"] == 2
    assert [(error.type, error.code) for error in errors] == [(icmpv6.PARAMETER_PROBLEM, icmpv6.UNKNOWN_OPTION)]
