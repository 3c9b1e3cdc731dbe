"""Bulk data that lands in its reader's buffer (`stack.tcp.landing`), and nobody can tell.

The oracle is the usual way: two equal nodes get the same frames in the same bursts, and the device of one of them puts
into the reader's buffer what the device of the other hands up. Which frames that is, is said by a model of it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from stack.link.around import AroundDevice
from stack.link.capture import INBOUND
from stack.link.capture_ring import CaptureRing
from stack.link.device import NEEDS_CSUM, NOTHING_LANDED, Landed, LandingDevice, RxFrame, TxFrame, Wanted
from stack.tcp.connection import Connection
from stack.tcp.landing import BULK, GROUND, Landing
from stack.testing import trains
from stack.tests.tcp import test_tcp_trains
from stack.tests.tcp.test_tcp_trains import Node, Peer, Way, in_one_buffer, segment, stamp

LEAST = 16384  # payload that counts as bulk
HEADERS = struct.Struct("!16sHHHHH12sIIBBH")
SIZES = (16384, 20_000, 60_000, 60_000, 60_000, 60_000, 16383, 1448, 100)
UNTOUCHED = 0xEE


class Strip(AroundDevice):
    """Lands, or does not."""

    def __init__(self, device: Any, *, lands: bool) -> None:
        super().__init__(device)
        self.lands = lands
        self.landed = 0
        self._left: list[RxFrame] = []

    def receive(self, budget: int) -> Sequence[RxFrame]:
        frames = [*self._left, *self.device.receive(budget)]
        self._left = []
        return frames

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        return self.device.transmit(burst)

    def receive_coalesced(self, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        return self._up(self.receive(budget), NOTHING_LANDED)

    def _up(self, frames: Sequence[RxFrame], landed: Landed) -> tuple[Sequence[RxFrame], int, int]:
        count, size = landed[0] + len(frames), landed[3] + sum(len(frame) for frame, *_ in frames)
        return trains.mark(frames), count, size

    def receive_landing(
        self, budget: int, wanted: Wanted, ground: memoryview
    ) -> tuple[Sequence[RxFrame], int, int, Landed]:
        frames = self.receive(budget)
        views, landed, full = model(wanted, frames)
        if full:
            frames, self._left = frames[: len(views)], list(frames[len(views) :])
        if not self.lands:
            return *self._up(frames, NOTHING_LANDED), NOTHING_LANDED
        self.landed += len(views)
        ground[: landed[2]] = b"".join(views)
        return *self._up(frames[len(views) :], landed), landed


def model(wanted: Wanted, frames: Sequence[RxFrame]) -> tuple[list[memoryview], Landed, bool]:
    """The payloads of those that land, what is said of them, and whether there is one more without room."""
    head, place, word, window, seq, ack, recent, data, room = wanted
    views: list[memoryview] = []
    segments = size = wire = longest = value = 0
    for frame, flags, gso_type, gso_size, _, _ in frames:
        if len(frame) < 14 + data + LEAST:
            break
        at, total, _, fragment, fate, _, where, number, said, offset, bits, room_said = HEADERS.unpack_from(frame)
        if (at, fate, where, number, said) != (head, word, place, (seq + size) & 0xFFFFFFFF, ack):
            break
        if flags != NEEDS_CSUM or fragment & 0x3FFF or bits & ~8 != 16 or room_said != window:
            break
        if total != len(frame) - 14 or offset != data - 20 << 2:
            break
        if data == 52:
            option, stamped = struct.unpack_from("!II", frame, 54)
            if option != 0x0101080A or (stamped != value if views else (stamped - recent) & 0xFFFFFFFF >= 1 << 31):
                break
            value = stamped
        view = frame[14 + data :]
        if size + len(view) > room:
            return views, (len(views), segments, size, wire, longest, value), bool(views)
        views.append(view)
        piece = gso_size if gso_type else len(view)
        longest = max(longest, piece)
        segments += -(-len(view) // piece)
        size += len(view)
        wire += len(frame)
    return views, (len(views), segments, size, wire, longest, value), False


class Reader(Node):
    """A node that reads into one buffer."""

    def __init__(self, way: Way, *, lands: bool) -> None:
        self.lands = lands
        super().__init__(way, marks=True)
        self.buffer = bytearray(400_000)

    def around(self, wire: Any) -> Strip:
        self.strip = Strip(wire, lands=self.lands)
        return self.strip

    def read_into(self, size: int, frames: Sequence[RxFrame] = ()) -> bytes | None:
        """What a call gives that finds nothing, perhaps, and while which `frames` arrive. It touches no other byte."""
        self.buffer[:] = bytes([UNTOUCHED]) * len(self.buffer)
        self.wire.feed_frames(*frames)
        with memoryview(self.buffer) as view:
            try:
                count = self.sock.recv_into(view[:size])
            except BlockingIOError:
                count = -1
            except ConnectionError:
                count = -2
        assert self.buffer[max(count, 0) :].count(UNTOUCHED) == len(self.buffer) - max(count, 0)
        self.settle()
        return bytes(self.buffer[:count]) if count >= 0 else None

    def seen(self) -> dict[str, Any]:
        """But for how much memory is kept, and in how many pieces: that is the point."""
        seen = super().seen()
        del seen["charge"]
        seen["queue"] = b"".join(seen["queue"])
        return seen


@contextmanager
def twins(way: Way) -> Iterator[tuple[Reader, Reader]]:
    """The one whose device hands everything up, the one whose device lands."""
    with closing(Reader(way, lands=False)) as hands, closing(Reader(way, lands=True)) as lands:
        yield hands, lands


def compare(way: Way, seed: int, bursts: int) -> int:
    """How many frames have landed."""
    rng = random.Random(seed)
    with twins(way) as nodes:
        peer = Peer(rng, way, nodes[0].iss)
        written = 0
        for _ in range(bursts):
            receiver = nodes[0].connection.receiver
            if rng.random() < 0.9:
                peer.seq = receiver.rcv_nxt
            frames = peer.burst(receiver.window, nodes[0].iss + written)
            if rng.random() < 0.7:
                frames = in_one_buffer(frames)
            if rng.random() < 0.8:
                while nodes[0].connection.readable and rng.random() < 0.95:
                    assert nodes[0].read_into(400_000) == nodes[1].read_into(400_000)
                size = rng.choice((GROUND, 300_000, 400_000, 400_000, 50_000))
                assert nodes[0].read_into(size, frames) == nodes[1].read_into(size, frames)
            else:
                for node in nodes:
                    node.feed(frames)
            assert nodes[0].seen() == nodes[1].seen()
            if rng.random() < 0.2:
                size = rng.choice((1, 1000, 70_000))
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
        return nodes[1].strip.landed


@pytest.fixture(autouse=True)
def _large_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_tcp_trains, "SIZES", SIZES)


@pytest.mark.parametrize("stamped", [False, True], ids=["plain", "stamped"])
def test_what_lands_is_what_was_handed_up(stamped: bool) -> None:
    assert sum(compare(Way(4, stamped), seed, 60) for seed in range(8)) > 100


def test_what_is_asked_about_times_is_known_of_what_landed() -> None:
    assert sum(compare(Way(4, True, "timed"), seed, 60) for seed in range(4)) > 50


@pytest.mark.parametrize("special", ["filter", "raw socket", "packet socket", "min TTL", "ecn"])
def test_where_somebody_looks_at_each_packet_none_lands(special: str) -> None:
    assert sum(compare(Way(4, False, special), seed, 30) for seed in range(2)) == 0


def test_over_ipv6_nothing_lands() -> None:
    assert sum(compare(Way(6, True), seed, 30) for seed in range(2)) == 0


# -- one reader -----------------------------------------------------------------------------------

SIZE = 33_000


class Flood:
    """The superframes of one stream."""

    def __init__(self, node: Reader) -> None:
        self.node = node
        self.seq = 1000

    def next(self, count: int, **facts: Any) -> list[RxFrame]:
        frames = []
        for _ in range(count):
            options = stamp(self.node.way, 1)
            frames.append(segment(self.node.way, self.seq, self.node.iss, SIZE, options=options, **facts))
            self.seq += SIZE
        return frames


def expected(first: int, size: int) -> bytes:
    """Bytes of the stream from number `first` of it on."""
    start = (1000 + first) % 251
    return (bytes(range(251)) * (size // 251 + 2))[start : start + size]


@pytest.fixture
def reader() -> Iterator[tuple[Reader, Flood]]:
    """One that reads in bulk, so what comes next may land."""
    with closing(Reader(Way(), lands=True)) as node:
        flood = Flood(node)
        assert node.read_into(400_000, flood.next(1)) == expected(0, SIZE)
        assert node.strip.landed == 0
        yield node, flood


def test_only_a_large_buffer_is_landed_in(reader: tuple[Reader, Flood]) -> None:
    node, flood = reader
    assert node.read_into(GROUND - 1, flood.next(1)) == expected(SIZE, SIZE)
    assert node.strip.landed == 0
    assert node.read_into(GROUND, flood.next(1)) == expected(2 * SIZE, SIZE)
    assert node.strip.landed == 1


def test_nothing_lands_beyond_the_window(reader: tuple[Reader, Flood]) -> None:
    node, flood = reader
    fit = node.connection.receiver.window // SIZE
    assert (fit + 1) * SIZE < 400_000
    node.read_into(400_000, flood.next(fit + 1))
    assert node.strip.landed == fit


def test_what_lands_shows_that_the_peer_is_reached(reader: tuple[Reader, Flood]) -> None:
    node, flood = reader
    node.connection.soft_error = 113  # EHOSTUNREACH, by ICMP
    node.read_into(400_000, flood.next(1))
    assert node.strip.landed == 1
    assert node.connection.soft_error == 0


def test_who_reads_little_is_asked_no_more(reader: tuple[Reader, Flood]) -> None:
    node, flood = reader
    frame = segment(node.way, flood.seq, node.iss, BULK - 1)
    assert node.read_into(GROUND, [frame]) is not None
    assert node.strip.landed == 1
    flood.seq += BULK - 1
    node.read_into(GROUND, flood.next(1))
    assert node.strip.landed == 1


def test_the_buffer_is_the_readers_again_after_the_call(reader: tuple[Reader, Flood]) -> None:
    """Whatever it ended with: an object whose memory is referred to cannot be resized."""
    node, flood = reader
    assert node.read_into(400_000) is None
    node.buffer.append(1)
    assert node.read_into(400_000, flood.next(1)) is not None
    assert node.strip.landed == 1
    node.buffer.append(1)
    fin = segment(node.way, flood.seq, node.iss, flags=0x11)
    assert node.read_into(400_000, [fin]) == b""
    node.buffer.append(1)
    assert node.iface.landing is None


def test_a_wait_that_is_interrupted_loses_nothing(
    reader: tuple[Reader, Flood], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between landing and reading: what has landed is there for the next call, and the buffer is free."""
    node, flood = reader

    def interrupted(connection: Connection, target: memoryview) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "read_into", interrupted)
        node.wire.feed_frames(*flood.next(1))
        with pytest.raises(KeyboardInterrupt):
            node.sock.recv_into(node.buffer)
    assert node.strip.landed == 1
    node.buffer[:] = bytes(len(node.buffer))
    node.buffer.append(1)
    assert node.connection.readable == SIZE
    assert node.connection.receiver.queue.charge > SIZE
    assert node.read(400_000)[0] == expected(SIZE, SIZE)


@pytest.mark.parametrize("how", ["recv", "part", "recv_into", "peek"])
def test_another_reader_may_be_first(reader: tuple[Reader, Flood], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """What landed for one thread is taken by another: each byte comes once, in order."""
    node, flood = reader
    original = Connection.read_into
    other = bytearray(SIZE)
    got = []

    def late(connection: Connection, target: memoryview) -> int:
        monkeypatch.setattr(Connection, "read_into", original)
        if how == "recv":
            got.append(connection.read(400_000))
        elif how == "part":
            got.append(connection.read(1000))
        elif how == "peek":
            assert connection.peek(10) == expected(SIZE, 10)
        else:
            other[:1000] = bytes(1000)
            got.append(bytes(other[: connection.read_into(memoryview(other)[:1000])]))
        return connection.read_into(target)

    monkeypatch.setattr(Connection, "read_into", late)
    node.wire.feed_frames(*flood.next(2))
    count = 0
    with suppress(BlockingIOError):
        count = node.sock.recv_into(node.buffer)
    assert node.strip.landed == 2
    assert b"".join(got) + node.buffer[:count] == expected(SIZE, 2 * SIZE)


def test_what_changes_while_one_waits_is_seen(reader: tuple[Reader, Flood]) -> None:
    """An interface that is down, or has another address, lands nothing."""
    node, flood = reader
    mac = node.iface.mac
    node.iface.set_mac(bytes.fromhex("525500000099"))
    frames = flood.next(1)
    assert node.read_into(400_000, frames) is None
    node.iface.set_mac(mac)
    assert node.read_into(400_000, frames) == expected(SIZE, SIZE)  # sent again; found anew
    assert node.strip.landed == 0
    assert node.read_into(400_000, flood.next(1)) == expected(2 * SIZE, SIZE)
    assert node.strip.landed == 1


def test_the_last_who_waits_is_served(reader: tuple[Reader, Flood]) -> None:
    node, flood = reader
    first, second = Landing(node.connection), Landing(node.connection)
    buffers = [memoryview(bytearray(GROUND)) for _ in range(2)]
    for landing, buffer in zip((first, second), buffers, strict=True):
        landing.wait(buffer)
    first.end()
    assert node.iface.landing is second
    node.feed(flood.next(1))
    assert node.strip.landed == 1
    assert buffers[1][:SIZE] == expected(SIZE, SIZE)
    second.end()
    assert [node.iface.landing] == [None]
    assert node.read(400_000)[0] == expected(SIZE, SIZE)


def test_a_closed_socket_lands_nothing(reader: tuple[Reader, Flood]) -> None:
    node, flood = reader
    landing = node.sock._sock.landing
    landing.wait(memoryview(bytearray(GROUND)))
    node.sock.close()
    assert node.iface.landing is None
    node.feed(flood.next(1))
    assert node.strip.landed == 0


class Recorded(Reader):
    """... through a tap."""

    def around(self, wire: Any) -> Any:
        self.ring = CaptureRing(self.network.scheduler, limit=1 << 30)
        return self.ring.tap(super().around(wire), "eth0")


def test_while_frames_are_recorded_none_lands() -> None:
    """Recording begins and ends while the reader's buffer waits for more; each frame is either recorded or may land."""
    with closing(Recorded(Way(), lands=True)) as node:
        flood = Flood(node)
        assert node.read_into(400_000, flood.next(1)) == expected(0, SIZE)
        node.ring.frames.clear()
        read, fed, landed = SIZE, [], 0
        for paused in (True, False, False, True, False, True, True):
            node.ring.paused = paused
            frames = flood.next(1)
            assert node.read_into(400_000, frames) == expected(read, SIZE)
            read += SIZE
            landed += paused
            fed += [] if paused else [bytes(frame[0]) for frame in frames]
            assert node.strip.landed == landed
            assert [each.data for each in node.ring.frames if each.direction == INBOUND] == fed


def test_the_model_is_what_it_stands_for() -> None:
    assert isinstance(Strip(None, lands=True), LandingDevice)
