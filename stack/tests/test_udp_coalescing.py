"""Datagrams that a device joined: the stack ends where it would have ended had they come one by one.

The oracle is the path without coalescing: the same frames go into two hosts, one of which has a device that joins
neighbours, and everything a user, a peer or an administrator can see of the two is compared.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.bpf.program import check
from stack.iface.interface import Interface
from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.link.device import DATA_VALID, RxFrame, TxFrame
from stack.testing import builders
from stack.tests.ip_rig import ME, ME6, MY_MAC, PEER, PEER6, PEER_MAC, SUBNET_BROADCAST, Host
from stack.udp import UdpEndpoint
from stack.udp.datagram import Datagram, ReceiveQueue

#: Refuse what is shorter than 30 bytes with its header, keep 12 bytes of the rest.
SHORT_OUT_REST_CUT = b"".join(
    struct.pack("=HBBI", *each) for each in ((0x80, 0, 0, 0), (0x35, 0, 1, 30), (0x06, 0, 0, 12), (0x06, 0, 0, 0))
)


def datagram(rng: random.Random, number: int, port: int, size: int, *, version: int = 4, sport: int = 1111) -> RxFrame:
    def rarely(usual: int, *others: int) -> int:
        return rng.choice(others) if rng.random() < 0.03 else usual

    src, dst = (PEER, ME) if version == 4 else (PEER6, ME6)
    if version == 4 and rng.random() < 0.02:
        dst = SUBNET_BROADCAST
    body = builders.udp(src, dst, sport, port, rng.randbytes(size), checksum=0 if rng.random() < 0.02 else None)
    flags = 0 if rng.random() < 0.02 else DATA_VALID  # 0: nobody vouches for it, the stack looks itself
    if version == 4:
        packet = builders.ipv4(
            src,
            dst,
            17,
            body,
            tos=rarely(0, 3),
            ttl=rarely(64, 9),
            identification=number,
            options=bytes(rarely(0, 4)),
            flags_fragment=rarely(0x4000, 0x2000),
        )
    else:
        packet = builders.ipv6(src, dst, 17, body, traffic_class=rarely(0, 3), flow=rarely(0, 8))
    dst_mac = MY_MAC if dst != SUBNET_BROADCAST else b"\xff" * 6
    frame = builders.ethernet(dst_mac, PEER_MAC, 0x0800 if version == 4 else 0x86DD, packet)
    return memoryview(frame), flags, 0, 0, 0, 0


def burst(rng: random.Random) -> list[RxFrame]:
    """Mostly runs: of one flow, of one size, the last one shorter."""
    frames: list[RxFrame] = []
    for _ in range(rng.randrange(1, 6)):
        port, size, version = rng.choice((7, 7, 8, 9, 10)), rng.choice((0, 1, 22, 500)), rng.choice((4, 4, 6))
        sport = rng.choice((1111, 2222))
        for _ in range(rng.choice((1, 2, 10, 40))):
            frames.append(datagram(rng, len(frames), port, size, version=version, sport=sport))
        if rng.random() < 0.5 and size:
            frames.append(datagram(rng, len(frames), port, rng.randrange(0, size), version=version, sport=sport))
    return frames


def seen(datagram: Datagram | None) -> Any:
    if datagram is None:
        return None
    header = datagram.header[:4] + datagram.header[6:] if len(datagram.dst[0]) == 16 else datagram.header  # no length
    return (datagram.data, datagram.src, datagram.dst, datagram.ifindex, datagram.ttl, datagram.tos, datagram.kind,
            datagram.stamp, header, datagram.fragment, datagram.overflow)  # fmt: skip


class World:
    """A host with endpoints of several sorts; nobody is bound to port 10."""

    def __init__(self, *, coalescing: bool) -> None:
        self.host = Host(coalescing=coalescing)
        self.endpoints: dict[str, UdpEndpoint] = {}
        for name, address, port in (("plain", bytes(16), 7), ("gro", bytes(16), 8), ("filtered", bytes(16), 9)):
            endpoint = self.endpoints[name] = self.host.udp.bind(address, port)
            endpoint.receive_limit = 20_000
        self.endpoints["gro"].coalesce = True
        self.endpoints["gro"].receive_limit = 10_000_000  # a superframe is queued whole or not at all
        self.endpoints["filtered"].filter = check(SHORT_OUT_REST_CUT)

    def state(self) -> Any:
        host = self.host
        return (
            {
                name: (each.lost, dict(each.drops), *((each.pending, each.queued_bytes) if name != "gro" else ()))
                for name, each in self.endpoints.items()
            },
            dict(host.udp.drops),
            dict(host.ip.drops),
            dict(host.eth.drops),
            host.eth.stats,
            host.sent(),
        )


def run(seed: int) -> int:
    """Returns how many frames were joined."""
    rng = random.Random(seed)
    worlds = [World(coalescing=False), World(coalescing=True)]
    for _ in range(6):
        frames = burst(rng)
        for world in worlds:
            world.host.device.inbox += frames
            world.host.turn()
        one, other = (world.state() for world in worlds)
        assert one == other
        for name in ("plain", "filtered"):
            action = rng.choice(("none", "one", "data", "several", "peek", "all"))
            results = [_act(world, name, action, random.Random(seed)) for world in worlds]
            assert results[0] == results[1], (name, action)
        for world in worlds:
            world.host.scheduler.now += 1000
    for name in worlds[0].endpoints:
        assert _act(worlds[0], name, "all", rng) == _act(worlds[1], name, "all", rng)
        assert worlds[1].endpoints[name].queued_bytes == 0
    link: Any = worlds[1].host.eth.device
    return int(link.joined)


def _act(world: World, name: str, action: str, rng: random.Random) -> Any:
    endpoint = world.endpoints[name]
    if action == "one":
        return seen(endpoint.recv())
    if action == "data":
        return endpoint.recv_data()
    if action == "peek":
        found = endpoint.peek_at(rng.choice((0, 1, 700)))
        return None if found is None else (seen(found[0]), found[1])
    if action == "several":
        got: list[bytes] = []
        while len(got) < 30 and (some := endpoint.recv_several(30 - len(got))) is not None:
            got += some[1]
        return got
    if action == "all":
        everything = []
        while (datagram := endpoint.recv()) is not None:
            # How much is put together depends on how it came, what it is cut into again does not.
            everything += [seen(piece) for piece in (datagram.pieces() if datagram.segment else [datagram])]
        return everything
    return None


@pytest.mark.parametrize("seed", range(12))
def test_udp_runs_end_in_the_same_state(seed: int) -> None:
    """Random flows, sizes, options, fragments, checksums, limits and readers: nothing tells the paths apart."""
    run(seed)


def test_udp_runs_are_runs() -> None:
    """What the test above is about happens."""
    assert sum(run(seed) for seed in range(40, 42)) > 100


class Listener:
    """A raw socket's half that takes everything."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def offer(self, packet: IpPacket) -> bool:
        self.packets.append(bytes(packet.datagram))
        return True

    def failed(self, error: IcmpError) -> None: ...


class Recorder:
    """A tap."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def received(self, burst: Sequence[RxFrame]) -> None:
        self.frames += [bytes(frame[0]) for frame in burst]

    def transmitted(self, burst: Sequence[TxFrame]) -> None: ...


def flow(count: int, size: int = 22, port: int = 7) -> list[RxFrame]:
    rng = random.Random(1)
    bodies = [builders.udp(PEER, ME, 1111, port, rng.randbytes(size)) for _ in range(count)]
    packets = [builders.ipv4(PEER, ME, 17, body, identification=number) for number, body in enumerate(bodies)]
    frames = [builders.ethernet(MY_MAC, PEER_MAC, 0x0800, packet) for packet in packets]
    return [(memoryview(frame), DATA_VALID, 0, 0, 0, 0) for frame in frames]


def test_udp_runs_are_shown_to_raw_sockets_as_they_came() -> None:
    """To the byte, one by one; the port's owner gets them as well."""
    host = Host(coalescing=True)
    endpoint, listener = host.udp.bind(ME, 7), Listener()
    host.ip.raw.listen(4, 17, listener)
    frames = flow(20)
    host.device.inbox += frames
    host.turn()
    assert listener.packets == [bytes(frame[0][14:]) for frame in frames]
    assert endpoint.pending == 20


def test_udp_runs_are_not_made_while_somebody_taps_the_link() -> None:
    """A capture shows the frames as they arrived; without it again they are joined."""
    host = Host(coalescing=True)
    endpoint, tap = host.udp.bind(ME, 7), Recorder()
    link: Any = host.eth.device
    host.eth.taps.append(tap)
    frames = flow(20)
    host.device.inbox += frames
    host.turn()
    assert (tap.frames, link.joined, endpoint.pending) == ([bytes(frame[0]) for frame in frames], 0, 20)
    host.eth.taps.remove(tap)
    host.device.inbox += frames
    host.turn()
    assert (link.joined, endpoint.pending) == (19, 40)


def test_udp_runs_to_a_closed_port_are_answered_one_by_one() -> None:
    """Each ICMP error quotes the packet it is about, and every datagram is counted."""
    hosts = Host(), Host(coalescing=True)
    for host in hosts:
        host.device.inbox += flow(5, port=9)
        host.turn()
    assert hosts[0].sent() == hosts[1].sent() != []
    assert hosts[1].udp.drops["no-socket"] == 5


def test_udp_runs_on_an_interface_that_is_down_are_counted() -> None:
    """As frames, not as what they were joined to."""
    host = Host(coalescing=True)
    host.eth.set_up(False)
    host.device.inbox += flow(5)
    host.turn()
    assert host.eth.drops["link-down"] == 5


SOURCE = (PEER, 1), (ME, 7)


def run_of(data: bytes, cut: int) -> Datagram:
    made = Datagram(data, *SOURCE, 2, 64, 0, PacketKind.UNICAST)
    made.cut = cut
    return made


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("run"), st.binary(min_size=1, max_size=3000), st.integers(1, 700)),
            st.tuples(st.just("take"), st.integers(1, 9)),
            st.tuples(st.just("peek"), st.integers(0, 900)),
        ),
        max_size=12,
    ),
    st.integers(0, 12_000),
)
def test_udp_runs_are_charged_and_cut_as_single_datagrams(steps: list[tuple[Any, ...]], limit: int) -> None:
    """A queue of runs and one of the datagrams they stand for: the same fits, is lost, waits, and is charged."""
    runs, singles = ReceiveQueue(), ReceiveQueue()
    for what, *arguments in steps:
        if what == "run":
            data, cut = arguments
            pieces = run_of(data, cut).pieces()
            lost = runs.put_run(run_of(data, cut), limit)
            assert lost == sum(not singles.put(piece, limit) for piece in pieces)
        elif what == "peek":
            found, expected = runs.peek(*arguments), singles.peek(*arguments)
            assert (found and (found[0].data, found[1])) == (expected and (expected[0].data, expected[1]))
        else:
            for _ in range(*arguments):
                taken, expected_one = runs.take(), singles.take()
                assert seen(taken) == seen(expected_one)
        assert (len(runs), runs.charge, runs.lost) == (len(singles), singles.charge, singles.lost)
    assert [seen(runs.take()) for _ in range(len(singles) + 1)] == [
        seen(singles.take()) for _ in range(len(singles) + 1)
    ]


def test_only_links_that_coalesce_are_asked_to() -> None:
    """An interface takes frames as before from every other device."""
    host = Host()
    iface: Interface = host.eth
    host.device.inbox += flow(3)
    assert iface.service(10) == 3
    assert iface.stats.rx_packets == 3
