"""UDP endpoints: rows UDP-01..05, UDP-07, UDP-08, UDP-11, UDP-17, and bounded memory."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.errors import NetError
from stack.link.device import Offload
from stack.testing import builders
from stack.tests.ip_rig import (
    EVERYBODY,
    LO,
    LO6,
    ME,
    ME6,
    PEER,
    PEER6,
    SUBNET_BROADCAST,
    Host,
    fields4,
    valid_flags,
)
from stack.udp import MAX_PAYLOAD4, MAX_PAYLOAD6, OVERHEAD, Discover, UdpEndpoint

ANY = bytes(4)
ANY6 = bytes(16)


def refused(attempt: object) -> int:
    assert callable(attempt)
    with pytest.raises(NetError) as caught:
        attempt()
    return caught.value.errno


def arrive(
    host: Host, payload: bytes, *, src: bytes = PEER, sport: int = 1111, dst: bytes = ME, dport: int = 7
) -> None:
    datagram = builders.udp(src, dst, sport, dport, payload)
    if len(src) == 4:
        host.receive4(builders.ipv4(src, dst, 17, datagram))
    else:
        host.receive6(builders.ipv6(src, dst, 17, datagram))


def texts(endpoint: UdpEndpoint) -> list[bytes]:
    got = []
    while (datagram := endpoint.recv()) is not None:
        got.append(datagram.data)
    return got


@pytest.mark.parametrize(("address", "other"), [(LO, LO), (LO6, LO6), (ME, ME), (ME6, ME6), (ME, LO)])
def test_a_datagram_to_ourselves_and_back(address: bytes, other: bytes) -> None:
    """UDP-07: boundaries, empty datagrams, the sender's address."""
    host = Host()
    server = host.udp.bind(address, 7)
    client = host.udp.bind(bytes(len(address)), 0)
    for data in (b"one", b"", b"three"):
        assert client.send(data, (address, 7)) == len(data)
    host.turn()
    assert server.pending == 3
    datagram = server.recv()
    assert datagram is not None
    assert (datagram.data, datagram.src, datagram.dst) == (b"one", (address, client.local[1]), (address, 7))
    assert texts(server) == [b"", b"three"]
    server.send(b"back", datagram.src)
    host.turn()
    assert texts(client) == [b"back"]
    assert host.sent() == [], "nothing of this touches the wire"


def test_what_leaves_is_a_right_datagram() -> None:
    host = Host(offloads=Offload.NONE)
    endpoint = host.udp.bind(ANY, 5000)
    endpoint.v4.tos, endpoint.v4.hops = 0x20, 9
    endpoint.send(b"hello", (PEER, 6000))
    packet = fields4(host.sent_ip()[0])
    assert (packet["payload"], packet["ttl"], packet["tos"]) == (builders.udp(ME, PEER, 5000, 6000, b"hello"), 9, 0x20)
    endpoint.no_checksum = True
    endpoint.send(b"hello", (PEER, 6000))
    assert fields4(host.sent_ip()[0])["payload"] == builders.udp(ME, PEER, 5000, 6000, b"hello", checksum=0)


@settings(max_examples=50)
@given(st.binary(max_size=64))
def test_a_checksum_of_zero_is_sent_as_all_ones(data: bytes) -> None:
    """RFC 768: zero on the wire would mean that there is none."""
    host = Host(offloads=Offload.NONE)
    endpoint = host.udp.bind(ANY, 5000)
    whole = builders.udp(ME, PEER, 5000, 6000, data + bytes(len(data) & 1) + bytes(2))
    needed = struct.unpack_from("!H", whole, 6)[0]  # this makes the sum come out as zero
    payload = data + bytes(len(data) & 1) + struct.pack("!H", needed)
    endpoint.send(payload, (PEER, 6000))
    sent = fields4(host.sent_ip()[0])["payload"]
    assert isinstance(sent, bytes)
    assert sent[6:8] == b"\xff\xff"
    assert builders.inet_checksum(builders.pseudo_header(ME, PEER, 17, len(sent)) + sent) == 0


def test_errors_of_send() -> None:
    host = Host()
    endpoint = host.udp.bind(ANY)
    assert refused(lambda: endpoint.send(b"x")) == errno.EDESTADDRREQ  # UDP-03
    assert refused(lambda: endpoint.send(b"x", (PEER, 0))) == errno.EINVAL  # UDP-05
    assert refused(lambda: endpoint.send(b"x", (bytes((192, 0, 2, 1)), 9))) == errno.ENETUNREACH  # UDP-06
    assert refused(lambda: endpoint.send(b"x", (SUBNET_BROADCAST, 9))) == errno.EACCES  # UDP-06
    assert refused(lambda: endpoint.connect(SUBNET_BROADCAST, 9)) == errno.EACCES  # UDP-02
    endpoint.close()
    assert refused(lambda: endpoint.send(b"x", (PEER, 9))) == errno.EPIPE


@pytest.mark.parametrize(("address", "limit"), [(LO, MAX_PAYLOAD4), (LO6, MAX_PAYLOAD6), (PEER, MAX_PAYLOAD4)])
def test_the_largest_datagram(address: bytes, limit: int) -> None:
    """UDP-04: 65507 bytes over IPv4, not one more; fragmented where the link is small."""
    host = Host()
    endpoint = host.udp.bind(address if address != PEER else ME, 7)
    endpoint.send(bytes(limit), (address, 7))
    if address == PEER:
        assert len(host.sent_ip()) == 45
    else:
        host.turn()
        datagram = endpoint.recv()
        assert datagram is not None
        assert len(datagram.data) == limit
    assert refused(lambda: endpoint.send(bytes(limit + 1), (address, 7))) == errno.EMSGSIZE


def test_dont_fragment_is_respected() -> None:
    host = Host()
    endpoint = host.udp.bind(ANY)
    endpoint.v4.discover = Discover.DO
    endpoint.send(bytes(1472), (PEER, 7))
    assert refused(lambda: endpoint.send(bytes(1473), (PEER, 7))) == errno.EMSGSIZE


def test_a_connected_endpoint_hears_only_its_peer() -> None:
    """UDP-02, UDP-07."""
    host = Host()
    endpoint = host.udp.bind(ANY, 7)
    endpoint.connect(PEER, 1111)
    assert endpoint.local == (ME, 7)
    arrive(host, b"yes")
    arrive(host, b"other port", sport=1112)
    arrive(host, b"other host", src=bytes((10, 0, 2, 99)))
    assert texts(endpoint) == [b"yes"]
    endpoint.connect(PEER, 1112)
    arrive(host, b"reconnected", sport=1112)
    endpoint.disconnect()
    arrive(host, b"anybody", src=bytes((10, 0, 2, 99)))
    assert texts(endpoint) == [b"reconnected", b"anybody"]
    assert endpoint.local == (ANY, 7)


def test_the_best_fit_gets_the_datagram() -> None:
    host = Host()
    connected, specific, anybody = (host.udp.bind(addr, 7, reuse_addr=True) for addr in (ANY, ME, ANY))
    connected.connect(PEER, 1111)
    arrive(host, b"from the peer")
    arrive(host, b"from elsewhere", sport=2)
    specific.close()
    arrive(host, b"then anybody", sport=2)
    assert (texts(connected), texts(anybody)) == ([b"from the peer"], [b"then anybody"])


def test_of_equals_the_last_bound_gets_it() -> None:
    """UDP-11: of two that fit equally the one bound last gets the datagram."""
    host = Host()
    first, last = (host.udp.bind(ME, 7, reuse_addr=True) for _ in range(2))
    arrive(host, b"x")
    assert (texts(first), texts(last)) == ([], [b"x"])


def test_reuseport_spreads_flows_and_keeps_each_together() -> None:
    """UDP-11: with SO_REUSEPORT flows are spread, and each keeps to one endpoint."""
    host = Host()
    endpoints = [host.udp.bind(ME, 7, reuse_port=True) for _ in range(4)]
    for port in range(1, 201):
        for _ in range(2):
            arrive(host, bytes((port,)), sport=port)
    shares = [texts(endpoint) for endpoint in endpoints]
    assert all(len(share) > 40 for share in shares)
    assert sum(len(set(share)) for share in shares) == 200


def test_broadcasts_reach_everybody_bound() -> None:
    """IF-13."""
    host = Host()
    all_of_them = [host.udp.bind(addr, 7, reuse_addr=True) for addr in (ANY, SUBNET_BROADCAST, ANY, ME)]
    arrive(host, b"x", dst=SUBNET_BROADCAST)
    assert [texts(endpoint) for endpoint in all_of_them] == [[b"x"], [b"x"], [b"x"], []]
    arrive(host, b"x", dst=SUBNET_BROADCAST, dport=8)
    assert host.udp.drops["no-socket"] == 1
    assert host.sent() == []


def test_dual_stack() -> None:
    """An IPv6 wildcard hears IPv4 unless v6only."""
    host = Host()
    both = host.udp.bind(ANY6, 7)
    arrive(host, b"four")
    arrive(host, b"six", src=PEER6, dst=ME6)
    assert texts(both) == [b"four", b"six"]
    both.send(b"x", (PEER, 9))
    assert fields4(host.sent_ip()[0])["src"] == ME
    both.close()
    only = host.udp.bind(ANY6, 7, v6only=True)
    arrive(host, b"four")
    assert texts(only) == []


def test_one_interface_only() -> None:
    host = Host()
    endpoint = host.udp.bind(ANY, 7)
    endpoint.bind_ifindex = host.lo.index
    arrive(host, b"x")
    assert texts(endpoint) == []
    endpoint.bind_ifindex = host.eth.index
    arrive(host, b"x")
    assert texts(endpoint) == [b"x"]
    endpoint.broadcast = True
    endpoint.send(b"x", (EVERYBODY, 67))
    assert host.sent()[-1][:6] == b"\xff" * 6


@pytest.mark.parametrize(("mine", "peer"), [(ME, PEER), (ME6, PEER6)])
def test_a_refusal_is_told_once_to_the_connected_only(mine: bytes, peer: bytes) -> None:
    """UDP-08: a refusal is told once, and to the endpoint that is connected (RFC 1122 4.1.3.3)."""
    host = Host()
    connected, stranger = (host.udp.bind(bytes(len(mine))) for _ in range(2))
    events: list[int] = []
    connected.on_event = lambda: events.append(connected.error)
    connected.connect(peer, 9)
    connected.send(b"1")
    stranger.send(b"2", (peer, 9))
    for quoted in host.sent_ip():
        if len(mine) == 4:
            body = struct.pack("!BBHI", 3, 3, 0, 0) + quoted
            body = body[:2] + struct.pack("!H", builders.inet_checksum(body)) + body[4:]
            host.receive4(builders.ipv4(peer, mine, 1, body))
        else:
            body = struct.pack("!BBHI", 1, 4, 0, 0) + quoted
            check = builders.inet_checksum(builders.pseudo_header(peer, mine, 58, len(body)) + body)
            host.receive6(builders.ipv6(peer, mine, 58, body[:2] + struct.pack("!H", check) + body[4:]))
    assert events == [errno.ECONNREFUSED]
    assert (connected.take_error(), connected.take_error(), stranger.take_error()) == (errno.ECONNREFUSED, 0, 0)


def test_a_forged_error_about_somebody_elses_flow_is_ignored() -> None:
    host = Host()
    endpoint = host.udp.bind(ANY, 5)
    endpoint.connect(PEER, 9)
    quoted = builders.ipv4(ME, PEER, 17, builders.udp(ME, PEER, 5, 10, b""))
    body = struct.pack("!BBHI", 3, 3, 0, 0) + quoted
    body = body[:2] + struct.pack("!H", builders.inet_checksum(body)) + body[4:]
    host.receive4(builders.ipv4(PEER, ME, 1, body))
    assert endpoint.error == 0


def test_a_neighbour_that_never_answers_is_told_to_those_who_asked_for_every_error() -> None:
    """As Linux: EHOSTUNREACH may pass, so a plain connected socket is not disturbed; IP_RECVERR sees it."""
    host = Host(resolved=False)
    plain, curious = (host.udp.bind(ANY) for _ in range(2))
    told: list[int] = []
    curious.on_icmp = lambda error: told.append(error.errno)
    for endpoint in (plain, curious):
        endpoint.connect(PEER, 9)
        endpoint.send(b"x")
    host.pass_time(4 * 10**9)
    assert (plain.take_error(), curious.take_error(), told) == (0, 0, [errno.EHOSTUNREACH])


def test_waiting_datagrams_are_bounded() -> None:
    """A thousand unread sockets must not eat the machine."""
    host = Host()
    endpoint = host.udp.bind(ANY, 7)
    endpoint.receive_limit = 10_000
    for _ in range(200):
        arrive(host, bytes(100))
    expected = 10_000 // (100 + OVERHEAD)
    assert (endpoint.pending, endpoint.drops["receive-buffer-full"]) == (expected, 200 - expected)
    assert endpoint.queued_bytes <= 10_000
    texts(endpoint)
    assert endpoint.queued_bytes == 0
    arrive(host, bytes(20_000)[:1400])
    assert endpoint.pending == 1


def test_one_datagram_always_fits() -> None:
    host = Host()
    endpoint = host.udp.bind(LO, 7)
    endpoint.receive_limit = 1
    endpoint.send(bytes(60_000), (LO, 7))
    endpoint.send(b"", (LO, 7))
    host.turn()
    assert endpoint.pending == 1


def test_a_waiting_datagram_pins_no_frame() -> None:
    host = Host()
    endpoint = host.udp.bind(ANY, 7)
    frame = bytearray(
        builders.ethernet(
            host.eth.mac, bytes(6), 0x0800, builders.ipv4(PEER, ME, 17, builders.udp(PEER, ME, 1, 7, b"kept"))
        )
    )
    host.device.inbox.append((memoryview(frame), valid_flags(), 0, 0, 0, 0))
    host.turn()
    frame[:] = bytes(len(frame))
    assert texts(endpoint) == [b"kept"]


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"1234567", "too-short"),
        (struct.pack("!HHHH", 1, 7, 7, 0), "truncated"),
        (struct.pack("!HHHH", 1, 7, 9, 0), "truncated"),
        (builders.udp(PEER, ME, 1, 7, b"x", checksum=0x1234), "bad-checksum"),
    ],
)
def test_bad_datagrams_are_dropped_and_counted(datagram: bytes, reason: str) -> None:
    host = Host()
    endpoint = host.udp.bind(ANY, 7)
    host.receive4(builders.ipv4(PEER, ME, 17, datagram))
    assert (endpoint.pending, dict(host.udp.drops)) == (0, {reason: 1})


def test_bytes_after_the_udp_length_are_no_data() -> None:
    host = Host()
    endpoint = host.udp.bind(ANY, 7)
    host.receive4(builders.ipv4(PEER, ME, 17, builders.udp(PEER, ME, 1, 7, b"data") + b"more"))
    assert texts(endpoint) == [b"data"]


def test_closing_frees_the_port_and_is_idempotent() -> None:
    host = Host()
    endpoint = host.udp.bind(ANY, 7)
    arrive(host, b"x")
    endpoint.close()
    endpoint.close()
    assert (endpoint.pending, host.udp.ports.claims(7)) == (0, ())
    host.udp.bind(ANY, 7)


def test_self_connect() -> None:
    """UDP-17: an endpoint connected to itself hears itself."""
    host = Host()
    endpoint = host.udp.bind(LO, 7)
    endpoint.connect(LO, 7)
    endpoint.send(b"me")
    host.turn()
    assert texts(endpoint) == [b"me"]


def test_packet_too_big_lowers_the_path_mtu_of_the_flow() -> None:
    host = Host()
    endpoint = host.udp.bind(ANY, 5)
    quoted = builders.ipv4(ME, PEER, 17, builders.udp(ME, PEER, 5, 10, b""))
    body = struct.pack("!BBHI", 3, 4, 0, 1000) + quoted
    body = body[:2] + struct.pack("!H", builders.inet_checksum(body)) + body[4:]
    endpoint.connect(PEER, 10)
    host.receive4(builders.ipv4(PEER, ME, 1, body))
    assert host.ip.route(PEER).mtu == 1000
    endpoint.send(bytes(1200))
    assert len(host.sent_ip()) == 2
