"""Frames that continue the one before them (`FOLLOWS`) are queued without a walk, and nobody can tell.

The oracle is the walk: the same frames arrive at two equal nodes, and the device of one of them marks what follows.
"""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import accumulate
from typing import Any, NamedTuple

import pytest

from stack import Network
from stack.link.around import AroundDevice
from stack.link.device import DATA_VALID, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, LinkDevice, RxFrame, TxFrame
from stack.socket.filter import SO_ATTACH_FILTER
from stack.tcp.buffers import CHUNK_OVERHEAD, ReceiveQueue
from stack.tcp.receiver import PIN_SLACK, Receiver
from stack.tcp.sender import Sender
from stack.testing import builders, trains
from stack.testing.clock import ManualClock
from stack.testing.links import DEFAULT_MAC, RecorderDevice
from stack.tests.test_simulation import run
from stack.wire import tcp

PEER_MAC = bytes.fromhex("020000000015")
HOSTS = {
    4: (bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2)), "10.0.2.2"),
    6: (b"\xfd" + bytes(14) + b"\x15", b"\xfd" + bytes(14) + b"\x02", "fd00::2"),
}
SO_TIMESTAMP, IP_MINTTL = 29, 21  # <asm-generic/socket.h>, <netinet/in.h>
PORT = 9000
MSS = 1448
#: A filter that takes everything, and has to be asked.
ALL_OF_IT = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)
SIZES = (1, 300, 1448, 2100, 9000, 65400)


class Marking(AroundDevice):
    """A device that joins nothing, and marks or does not."""

    def __init__(self, device: RecorderDevice, *, marks: bool) -> None:
        super().__init__(device)
        self._marks = marks

    def receive(self, budget: int) -> Sequence[RxFrame]:
        return self.device.receive(budget)

    def receive_coalesced(self, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        burst = self.device.receive(budget)
        return trains.mark(burst) if self._marks else burst, len(burst), sum(len(frame[0]) for frame in burst)

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        return self.device.transmit(burst)


class Way(NamedTuple):
    """How a connection is made; `special` has something done to the node or the socket once it is there."""

    version: int = 4
    stamped: bool = False
    special: str = ""


class Node:
    """A stack with one connection, whose peer is the test."""

    def __init__(self, way: Way, *, marks: bool) -> None:
        self.way = way
        self.marks = marks
        self.network = Network(clock=ManualClock(), rng=random.Random(3))
        self.stack = self.network.stack("node")
        self.wire = RecorderDevice()
        self.iface = self.stack.add_interface(
            self.around(self.wire), name="eth0", addresses=["10.0.2.2/24", "fd00::2/64"]
        )
        sockets: Any = self.stack.socket
        self.iface.neighbours.set_permanent(HOSTS[way.version][0], PEER_MAC)
        if way.special == "ecn":
            self.stack.netns.tcp.config.ecn = 1
        family = sockets.AF_INET if way.version == 4 else sockets.AF_INET6
        listener = sockets.socket(family, sockets.SOCK_STREAM)
        if way.special == "small buffer":
            listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 150_000)
        listener.bind((HOSTS[way.version][2], PORT))
        listener.listen()
        listener.setblocking(False)
        self.settle()
        self.wire.take()
        options = tcp.HeaderOptions(
            mss=MSS, window_scale=7, timestamps=(1, 0) if way.stamped else None, sack_permitted=True
        ).emit()
        flags = tcp.SYN | (tcp.ECE | tcp.CWR if way.special == "ecn" else 0)
        self.feed([segment(way, 999, 0, flags=flags, options=options + bytes(-len(options) % 4))])
        (answer,) = self.wire.take()
        header, _ = tcp.parse(memoryview(answer)[34 if way.version == 4 else 54 :])
        self.iss = header.seq + 1
        self.feed([segment(way, 1000, self.iss, options=stamp(way, 1))])
        self.sock, _ = listener.accept()
        self.open = [self.sock, listener]
        self.sock.setblocking(False)
        self.connection = next(iter(self.stack.netns.tcp.connections.values()))
        self._make_special(sockets)

    def around(self, wire: RecorderDevice) -> LinkDevice:
        """What the interface sees of the wire."""
        return Marking(wire, marks=self.marks)

    def _make_special(self, sockets: Any) -> None:
        special, sock = self.way.special, self.sock
        if special == "timed":
            sock.setsockopt(sockets.SOL_SOCKET, SO_TIMESTAMP, 1)
        elif special == "filter":
            memory = ctypes.create_string_buffer(ALL_OF_IT)
            program = struct.pack("@HP", 1, ctypes.addressof(memory))
            sock.setsockopt(sockets.SOL_SOCKET, SO_ATTACH_FILTER, program)
        elif special == "raw socket":
            self.open.append(sockets.socket(sockets.AF_INET, sockets.SOCK_RAW, 6))
        elif special == "packet socket":
            self.open.append(sockets.socket(sockets.AF_PACKET, sockets.SOCK_RAW, 0x0300))
        elif special == "min TTL":
            sock.setsockopt(sockets.IPPROTO_IP, IP_MINTTL, 60)
        elif special == "shut":
            sock.shutdown(sockets.SHUT_RD)

    def close(self) -> None:
        for each in self.open:
            each.close()
        self.network.close()

    def feed(self, frames: Sequence[RxFrame]) -> None:
        """A burst arrives."""
        self.wire.feed_frames(*frames)
        self.settle()

    def settle(self) -> None:
        while self.network.poll(self.network.clock()) == self.network.clock():
            pass

    def read(self, size: int) -> tuple[bytes, list[Any]]:
        data, ancillary = b"", []
        with suppress(BlockingIOError, ConnectionError):
            data, ancillary, _, _ = self.sock.recvmsg(size, 100)
        self.settle()
        return data, ancillary

    def seen(self) -> dict[str, Any]:
        """All that users, peers and administrators can see, and what it will depend on."""
        connection, netns = self.connection, self.stack.netns
        receiver, sender = connection.receiver, connection.sender
        plain = {
            name: getattr(receiver, name)
            for name in Receiver.__slots__
            if name not in ("connection", "queue", "reassembly", "times")
        }
        times = receiver.times
        return plain | {
            "queue": [bytes(chunk) for chunk in receiver.queue._chunks],
            "charge": receiver.queue.charge,
            "times": times and list(times._marks),
            "reassembly": receiver.reassembly.length,
            "sender": (sender.snd_una, sender.snd_wnd, sender.raw_window, sender.snd_wl1, sender.max_window),
            "left": (sender.segments, sender.data_segments),
            "state": (connection.state, connection.predicted, connection.last_heard, connection.soft_error),
            "tcp": (netns.tcp.stats, dict(netns.tcp.drops), netns.tcp.mib.snapshot()),
            "ip": dict(netns.ip.drops),
            "interface": (self.iface.stats, dict(self.iface.drops)),
            "deadline": self.network.scheduler.next_deadline(),
            "sent": self.wire.take(),
        }


def stamp(way: Way, value: int) -> bytes:
    return struct.pack("!III", 0x0101080A, value & 0xFFFFFFFF, 0) if way.stamped else b""


def segment(
    way: Way,
    seq: int,
    ack: int,
    size: int = 0,
    *,
    flags: int = tcp.ACK,
    window: int = 500,
    options: bytes = b"",
    tos: int = 0,
    ident: int = 0,
    padding: int = 0,
    hops: int = 64,
) -> RxFrame:
    """A frame of the peer's. Its payload says by its sequence number which bytes it is."""
    src, dst, _ = HOSTS[way.version]
    payload = bytes((seq + at) % 251 for at in range(min(size, 251)))
    payload = (payload * (size // 251 + 1))[:size]
    body = builders.tcp(
        src,
        dst,
        4000,
        PORT,
        seq=seq & 0xFFFFFFFF,
        ack=ack & 0xFFFFFFFF,
        flags=flags,
        window=window,
        options=options,
        payload=payload,
        checksum=builders.partial_checksum(src, dst, 6, 20 + len(options) + size),
    )
    if way.version == 4:
        packet = builders.ipv4(src, dst, 6, body, tos=tos, ttl=hops, identification=ident)
    else:
        packet = builders.ipv6(src, dst, 6, body, traffic_class=tos, hop_limit=hops)
    frame = builders.ethernet(DEFAULT_MAC, PEER_MAC, 0x0800 if way.version == 4 else 0x86DD, packet + bytes(padding))
    gso = 0 if size <= MSS else GSO_TCPV4 if way.version == 4 else GSO_TCPV6
    start = 34 if way.version == 4 else 54
    return memoryview(frame), NEEDS_CSUM, gso, MSS if gso else 0, start, 16


class Peer:
    """Sends bursts of one stream, with something peculiar now and then."""

    def __init__(self, rng: random.Random, way: Way, iss: int) -> None:
        self.rng = rng
        self.way = way
        self.ack = iss
        self.seq = 1000
        self.value = 1
        self.window = 500

    def burst(self, window: int, most: int) -> list[RxFrame]:
        rng = self.rng
        frames = []
        size, left = rng.choice(SIZES), window
        trouble = rng.random() < 0.4
        for number in range(rng.randrange(1, 12)):
            seq, flags, tos, padding, hops = self.seq, tcp.ACK, 0, 0, 64
            size = rng.choice(SIZES) if rng.random() < 0.1 else size
            if size > left:
                if not trouble:
                    break
                size = max(1, min(size, left + rng.choice((0, 1, 1500))))
            if rng.random() < 0.2:
                flags |= tcp.PSH
            if trouble and rng.random() < 0.15:
                what = rng.randrange(10)
                if what == 0:
                    seq += rng.choice((1, size, MSS, -1, -size))
                elif what == 1:
                    self.ack = min(self.ack + rng.randrange(1, 3), most)
                elif what == 2:
                    self.window = rng.choice((0, 400, 500, 600))
                elif what == 3:
                    self.value += rng.choice((1, 5, -3))
                elif what == 4:
                    tos = 3
                elif what == 5:
                    padding = 2
                elif what == 6:
                    hops = 50
                elif what == 7:
                    flags |= rng.choice((tcp.URG, tcp.ECE, tcp.CWR))
                elif what == 8 and rng.random() < 0.2:
                    flags |= tcp.FIN
                elif what == 9:  # a bare segment from ahead
                    frames.append(segment(self.way, seq + 5000, self.ack, window=self.window + 1))
            frames.append(
                segment(
                    self.way,
                    seq,
                    self.ack,
                    size,
                    flags=flags,
                    window=self.window,
                    options=stamp(self.way, self.value),
                    tos=tos,
                    ident=number * 3,
                    padding=padding,
                    hops=hops,
                )
            )
            self.seq = seq + size if seq == self.seq else self.seq
            left -= size
        return frames


def following(monkeypatch: pytest.MonkeyPatch, half: type[Receiver | Sender]) -> list[int]:
    """How many each call of its `follow` takes, from now on."""
    taken: list[int] = []
    original: Callable[[Any, Sequence[RxFrame], int], int] = half.follow

    def follow(self: Any, burst: Sequence[RxFrame], at: int) -> int:
        end = original(self, burst, at)
        taken.append(end - at)
        return end

    monkeypatch.setattr(half, "follow", follow)
    return taken


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return following(monkeypatch, Receiver)


@contextmanager
def twins(way: Way) -> Iterator[tuple[Node, Node]]:
    """The one without marks, the one with."""
    with closing(Node(way, marks=False)) as walks, closing(Node(way, marks=True)) as marks:
        yield walks, marks


def in_one_buffer(frames: Sequence[RxFrame]) -> list[RxFrame]:
    """The same frames as views of one slab, as a card has them."""
    slab = memoryview(b"".join(frame for frame, *_ in frames))
    ends = list(accumulate(len(frame) for frame, *_ in frames))
    return [
        (slab[begin:end], *facts)  # type: ignore[misc]  # same arity
        for (_, *facts), begin, end in zip(frames, [0, *ends], ends, strict=False)
    ]


def compare(way: Way, seed: int, bursts: int) -> None:
    with twins(way) as nodes:
        compare_nodes(nodes, way, random.Random(seed), bursts)


def compare_nodes(nodes: tuple[Node, Node], way: Way, rng: random.Random, bursts: int) -> None:
    peer = Peer(rng, way, nodes[0].iss)
    written = 0
    for _ in range(bursts):
        receiver = nodes[0].connection.receiver
        if rng.random() < 0.9:
            peer.seq = receiver.rcv_nxt
        frames = peer.burst(receiver.window, nodes[0].iss + written)
        if rng.random() < 0.7:
            frames = in_one_buffer(frames)
        for node in nodes:
            node.feed(frames)
        assert nodes[0].seen() == nodes[1].seen()
        if rng.random() < 0.6:
            size = rng.choice((1, 1000, 70_000, 1 << 20))
            assert nodes[0].read(size) == nodes[1].read(size)
        if rng.random() < 0.1:
            for node in nodes:
                with suppress(OSError):
                    node.sock.send(b"?" * 100)
                node.settle()
            written += 100
        if rng.random() < 0.3:
            delay = rng.randrange(1, 60_000_000)
            for node in nodes:
                node.network.advance(delay)
        assert nodes[0].seen() == nodes[1].seen()


WAYS = [Way(version, stamped) for version in (4, 6) for stamped in (False, True)]


@pytest.fixture
def in_one_go(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames were queued together."""
    taken: list[int] = []
    original = ReceiveQueue.append_train

    def append_train(queue: ReceiveQueue, frames: Sequence[memoryview], start: int, size: int, most: int) -> bool:
        done = original(queue, frames, start, size, most)
        taken.append(len(frames) if done else 0)
        return done

    monkeypatch.setattr(ReceiveQueue, "append_train", append_train)
    return taken


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_train_is_what_its_frames_are_one_by_one(way: Way, followers: list[int], in_one_go: list[int]) -> None:
    for seed in range(6):
        compare(way, seed, 60)
    assert sum(followers) > 300
    assert 50 < sum(in_one_go) < sum(followers) - 50
    assert in_one_go.count(0) > 5


@pytest.mark.parametrize("special", ["timed", "small buffer", "ecn", "shut"])
def test_a_train_of_a_peculiar_connection(special: str, followers: list[int]) -> None:
    for seed in range(4):
        compare(Way(4, True, special), seed, 60)
    assert sum(followers) > 100


@pytest.mark.parametrize("special", ["filter", "raw socket", "packet socket", "min TTL"])
def test_where_somebody_looks_at_each_packet_each_is_walked(special: str, followers: list[int]) -> None:
    for seed in range(3):
        compare(Way(4, False, special), seed, 40)
    assert not followers


def superframes(way: Way, node: Node, count: int, size: int = 60_000) -> list[RxFrame]:
    return [segment(way, 1000 + at * size, node.iss, size, options=stamp(way, 1)) for at in range(count)]


def test_the_window_ends_a_train(followers: list[int]) -> None:
    """What lies beyond it is walked: trimmed, acknowledged, counted."""
    way = Way()
    with twins(way) as nodes:
        for node in nodes:
            window = node.connection.receiver.window
            node.feed(superframes(way, node, 5, window // 3 + 10))
            assert node.connection.readable == window
    assert followers[0] == 1


def test_the_longest_segment_of_a_train_is_remembered(followers: list[int]) -> None:
    """The estimate of the peer's segments, by which acknowledgments go, is as good as one by one."""
    way = Way()
    with twins(way) as nodes:
        for node in nodes:
            sizes, at = (100, 1400, 200), 1000
            burst = []
            for size in sizes:
                burst.append(segment(way, at, node.iss, size))
                at += size
            node.feed(burst)
            assert node.connection.receiver.mss == 1400
    assert followers == [2]


def test_memory_that_a_train_keeps_is_bounded() -> None:
    """Views of many slabs, little of each: the queue copies as soon as it would without marks."""
    way = Way(special="small buffer")
    charges = []
    with twins(way) as nodes:
        for node in nodes:
            burst: list[RxFrame] = []
            for frame, *facts in superframes(way, node, 8, 2100):
                slab = bytearray(100_000)
                slab[: len(frame)] = frame
                burst.append((memoryview(slab)[: len(frame)], *facts))  # type: ignore[arg-type]  # same arity
            node.feed(burst)
            receiver = node.connection.receiver
            assert receiver.queue.length == 8 * 2100
            assert receiver.queue.charge <= receiver.rcvbuf + PIN_SLACK
            assert receiver.queue.charge >= receiver.queue.length + CHUNK_OVERHEAD
            charges.append((receiver.queue.charge, len(receiver.queue._chunks)))
    assert charges[0] == charges[1]


@pytest.fixture
def node() -> Iterator[Node]:
    with closing(Node(Way(), marks=True)) as one:
        yield one


def test_a_mark_goes_no_further_than_the_interface(node: Node) -> None:
    """What is handed up, or on, says nothing of the frame before it."""
    way, seen = Way(), []
    original = node.iface.handlers[0x0800]

    def look(iface: Any, frame: memoryview, kind: int, flags: int, gso_size: int) -> None:
        seen.append(flags)
        original(iface, frame, kind, flags, gso_size)

    node.iface.handlers[0x0800] = look
    node.feed(superframes(way, node, 3, 10_000))
    assert seen == [NEEDS_CSUM] * 3
    assert node.connection.readable == 30_000


def test_what_is_not_trusted_follows_nobody(node: Node) -> None:
    frames = superframes(Way(), node, 2, 1000)
    plain = [(view, 0, 0, 0, 0, 0) for view, *_ in frames]
    assert trains.mark(plain) == plain
    mixed = [frames[0], (frames[1][0], DATA_VALID, 0, 0, 0, 0)]
    assert trains.mark(mixed) == mixed


@pytest.mark.parametrize("seed", range(100, 130, 3))
def test_trains_change_no_packet_of_a_network(seed: int, monkeypatch: pytest.MonkeyPatch, followers: list[int]) -> None:
    """Random networks, lines and programs: with and without marks they are equal to the packet."""
    marked = run(seed, coalescing=True)
    unmarked: Callable[[Any], list[RxFrame]] = list
    monkeypatch.setattr(trains, "mark", unmarked)
    count = len(followers)
    assert run(seed, coalescing=True) == marked
    assert len(followers) == count
