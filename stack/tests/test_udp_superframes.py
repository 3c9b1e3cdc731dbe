"""UDP_SEGMENT and UDP_GRO below the sockets: what devices are handed, what endpoints are given (row UDP-13)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.link.device import DATA_VALID, GSO_UDP_L4, NEEDS_CSUM, Offload
from stack.testing import builders
from stack.tests.ip_rig import LO, LO6, ME, ME6, MY_MAC, PEER, PEER6, PEER_MAC, Host, fields4
from stack.tests.ip_world import routed
from stack.tests.test_ip_forward import RIGHT, endpoints
from stack.tests.test_udp import ANY, refused, texts
from stack.udp import MAX_SEGMENTS, SendOptions, UdpEndpoint

WITHOUT_USO = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN
DATA = bytes(range(250)) * 20


@pytest.mark.parametrize(("mine", "peer"), [(ME, PEER), (ME6, PEER6)])
def test_udp_13_a_device_with_uso_gets_one_superframe(mine: bytes, peer: bytes) -> None:
    """One frame with the whole, its offload facts, and a checksum to finish."""
    host = Host()
    endpoint = host.udp.bind(bytes(len(mine)))
    endpoint.segment = 1000
    endpoint.send(DATA, (peer, 7))
    host.turn()
    ((parts, flags, gso_type, header_length, size, start, offset),) = host.device.sent
    expected = 34 if len(mine) == 4 else 54
    assert (flags, gso_type, header_length, size) == (NEEDS_CSUM, GSO_UDP_L4, expected + 8, 1000)
    assert (start, offset) == (expected, 6)
    assert b"".join(parts).endswith(DATA)


@pytest.mark.parametrize("offloads", [WITHOUT_USO, Offload.CSUM, Offload.NONE])
def test_udp_13_a_device_without_gets_datagrams(offloads: Offload) -> None:
    """What a sender would have made that knows no offload; TCP's superframes beside it are left as they are."""
    host = Host(offloads=offloads)
    endpoint = host.udp.bind(ANY, 5000)
    endpoint.send(DATA, (PEER, 6000), SendOptions(segment=1000))
    sent = host.sent_ip()
    payloads = [fields4(packet)["payload"] for packet in sent]
    if offloads == Offload.NONE:
        expected = [builders.udp(ME, PEER, 5000, 6000, DATA[at : at + 1000]) for at in range(0, 5000, 1000)]
        assert payloads == expected
    assert [bytes(payload)[8:] for payload in payloads if isinstance(payload, bytes)] == [
        DATA[at : at + 1000] for at in range(0, 5000, 1000)
    ]


def test_udp_13_limits() -> None:
    """At most 128 pieces; none longer than the path takes; no fragments, however long the whole is."""
    host = Host()
    endpoint = host.udp.bind(ANY)
    endpoint.segment = 10
    endpoint.send(bytes(10 * MAX_SEGMENTS), (PEER, 7))
    assert refused(lambda: endpoint.send(bytes(10 * MAX_SEGMENTS + 1), (PEER, 7))) == errno.EINVAL
    endpoint.segment = 1472
    endpoint.send(bytes(60_000), (PEER, 7))
    endpoint.segment = 1473
    assert refused(lambda: endpoint.send(bytes(60_000), (PEER, 7))) == errno.EMSGSIZE
    assert refused(lambda: endpoint.send(bytes(1473), (PEER, 7))) == errno.EMSGSIZE
    endpoint.send(bytes(1472), (PEER, 7))
    endpoint.segment = 100
    endpoint.no_checksum = True
    assert refused(lambda: endpoint.send(bytes(200), (PEER, 7))) == errno.EINVAL
    assert host.eth.drops.total == 0


@pytest.mark.parametrize("address", [LO, LO6])
@pytest.mark.parametrize("coalesce", [False, True])
def test_udp_13_over_loopback(address: bytes, coalesce: bool) -> None:
    """Whoever asked for it gets the whole in one piece, others what they would have got without."""
    host = Host()
    server = host.udp.bind(address, 7)
    server.coalesce = coalesce
    client = host.udp.bind(bytes(len(address)))
    client.send(DATA, (address, 7), SendOptions(segment=1400))
    host.turn()
    if coalesce:
        datagram = server.recv()
        assert datagram is not None
        assert (datagram.data, datagram.segment) == (DATA, 1400)
    else:
        assert texts(server) == [DATA[at : at + 1400] for at in range(0, 5000, 1400)]


def burst(host: Host, *payloads: bytes, sport: int = 1111, tos: int = 0) -> None:
    """Datagrams that arrive at port 7 together."""
    for payload in payloads:
        packet = builders.ipv4(PEER, ME, 17, builders.udp(PEER, ME, sport, 7, payload), tos=tos)
        frame = builders.ethernet(MY_MAC, PEER_MAC, 0x0800, packet)
        host.device.inbox.append((memoryview(frame), DATA_VALID, 0, 0, 0, 0))


def coalescing(host: Host) -> UdpEndpoint:
    endpoint = host.udp.bind(ME, 7)
    endpoint.coalesce = True
    return endpoint


def taken(endpoint: UdpEndpoint) -> list[tuple[bytes, int]]:
    got = []
    while (datagram := endpoint.recv()) is not None:
        got.append((datagram.data, datagram.segment))
    return got


def test_udp_13_what_arrives_together_is_put_together() -> None:
    """UDP_GRO: datagrams of one flow and size in one burst; a shorter one is the last of its row."""
    host = Host()
    endpoint = coalescing(host)
    burst(host, b"aaaa", b"bbbb", b"cc", b"dddd", b"ee", b"fff")
    host.turn()
    assert taken(endpoint) == [(b"aaaabbbbcc", 4), (b"ddddee", 4), (b"fff", 0)]


def test_udp_13_what_differs_is_not_put_together() -> None:
    """Not over another flow, traffic class or burst, not empty ones, not more than 64."""
    host = Host()
    endpoint = coalescing(host)
    burst(host, b"aa")
    burst(host, b"bb", sport=2222)
    burst(host, b"cc", tos=4, sport=2222)
    burst(host, b"", b"", tos=4, sport=2222)
    host.turn()
    host.scheduler.now += 1
    burst(host, b"dd", tos=4, sport=2222)
    host.turn()
    assert taken(endpoint) == [(b"aa", 0), (b"bb", 0), (b"cc", 0), (b"", 0), (b"", 0), (b"dd", 0)]
    burst(host, *[b"xx"] * 100)
    host.turn()
    assert taken(endpoint) == [(b"xx" * 64, 2), (b"xx" * 36, 2)]


def test_udp_13_what_was_peeked_at_does_not_grow() -> None:
    """A datagram that somebody has seen stays as it is."""
    host = Host()
    endpoint = coalescing(host)
    burst(host, b"aa")
    host.turn()
    seen = endpoint.peek()
    assert seen is not None
    assert seen.data == b"aa"
    burst(host, b"bb")
    host.turn()
    assert taken(endpoint) == [(b"aa", 0), (b"bb", 0)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=6), max_size=60), st.integers(1000, 20_000))
def test_udp_13_coalescing_keeps_every_byte_and_boundary(payloads: list[bytes], limit: int) -> None:
    """Cut at its pieces' size again, what was put together is what arrived and had room; the charge goes back to 0."""
    host = Host()
    endpoint = coalescing(host)
    endpoint.receive_limit = limit
    burst(host, *payloads)
    host.turn()
    got = []
    for data, size in taken(endpoint):
        got += [data[at : at + size] for at in range(0, len(data), size)] if size else [data]
    rest = iter(payloads)
    assert all(any(data == each for each in rest) for data in got), "in order, though some may be lost"
    assert len(got) + endpoint.lost == len(payloads)
    assert endpoint.queued_bytes == 0


def test_udp_13_a_guests_superframe_is_received() -> None:
    """A superframe from a card that offers USO: to one port as one, to another in pieces."""
    host = Host()
    whole, pieces = host.udp.bind(ME, 7), host.udp.bind(ME, 8)
    whole.coalesce = True
    for port in (7, 8):
        body = builders.udp(PEER, ME, 1111, port, DATA, checksum=builders.partial_checksum(PEER, ME, 17, 8 + len(DATA)))
        frame = builders.ethernet(MY_MAC, PEER_MAC, 0x0800, builders.ipv4(PEER, ME, 17, body))
        host.device.inbox.append((memoryview(frame), NEEDS_CSUM, GSO_UDP_L4, 1000, 34, 6))
    host.turn()
    assert taken(whole) == [(DATA, 1000)]
    assert taken(pieces) == [(DATA[at : at + 1000], 0) for at in range(0, 5000, 1000)]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("offloads", [WITHOUT_USO | Offload.USO, WITHOUT_USO, Offload.NONE])
@pytest.mark.parametrize("mtu", [1500, 1400])
def test_udp_13_through_a_router(family: int, offloads: Offload, mtu: int) -> None:
    """A superframe is passed on whole, or cut where the next link does not do it; every datagram arrives."""
    world = routed(right_mtu=mtu, right_offloads=offloads)
    left, right, errors = endpoints(world, family)
    left.send(DATA, (RIGHT[family], 7), SendOptions(segment=1200))
    world.turn()
    assert texts(right) == [DATA[at : at + 1200] for at in range(0, 5000, 1200)]
    assert not errors


def test_udp_13_corked_data_is_cut_too() -> None:
    """UDP_CORK collects, UDP_SEGMENT cuts what was collected."""
    host = Host()
    server, client = host.udp.bind(LO, 7), host.udp.bind(LO)
    client.segment = 4
    client.send(b"abc", (LO, 7), SendOptions(more=True))
    client.send(b"defgh", None, SendOptions(more=True))
    host.turn()
    assert server.pending == 0
    client.send(b"i")
    host.turn()
    assert texts(server) == [b"abcd", b"efgh", b"i"]
