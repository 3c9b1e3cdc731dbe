"""A card that is tapped goes on as a card, whether or not it is recorded; what is recorded is what crossed the card.

The oracle is the card's own book, and a twin: a world without the tap, or one whose card has no short ways at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import pytest

from stack import Network
from stack.link.capture import INBOUND, OUTBOUND
from stack.link.capture_ring import CaptureRing
from stack.link.device import Buffer, LinkDevice, RxFrame, TxFacts, TxFrame
from stack.link.impaired import ImpairedDevice
from stack.link.impairment import Impairment
from stack.testing import trains
from stack.tests.tcp.card_world import Card, FullCard, VolleyCard, World

Crossing = tuple[int, int, bytes]  # time, direction, frame
SIZES = (1, 1, 1, 700, 1448, 65160, 3 * 65160, 262144, 400_000)


class Booked(Card):
    """A card that notes each frame in both directions, and the time."""

    book: list[Crossing]
    clock: Callable[[], int]

    def receive(self, budget: int) -> Sequence[RxFrame]:
        burst = super().receive(budget)
        self._book(INBOUND, [bytes(frame[0]) for frame in burst])
        return burst

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        accepted = super().transmit(burst)
        self._book(OUTBOUND, [b"".join(frame[0]) for frame in burst[:accepted]])
        return accepted

    def _book(self, direction: int, frames: Sequence[bytes]) -> None:
        if hasattr(self, "book"):
            self.book += [(self.clock(), direction, frame) for frame in frames]


class AbleCard(Booked, VolleyCard):
    """... and has all short ways that do not change when frames are taken."""

    marked = alone = 0

    def receive_coalesced(self, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        burst = self.receive(budget)
        self.marked += len(burst)
        return trains.mark(burst), len(burst), sum(len(frame[0]) for frame in burst)

    def transmit_alone(self, parts: tuple[Buffer, ...], facts: TxFacts) -> bool:
        self.alone += 1
        return self.transmit([(parts, *facts)]) == 1

    def linger(self) -> None: ...

    @property
    def short(self) -> tuple[int, int, int]:
        """How often each of them was taken."""
        return self.marked, self.alone, self.volleys


class CrampedCard(AbleCard, FullCard):
    """... as long as it has room."""


class Tapped(World):
    """A world whose card is tapped, and a bad line's place between them, as with a guest."""

    ring: CaptureRing

    def __init__(self, kind: type[Booked], *, tapped: bool = True) -> None:
        def around(network: Network, card: Card) -> LinkDevice:
            self.ring = CaptureRing(network.scheduler, limit=1 << 40)
            line = ImpairedDevice(network.scheduler, card)
            return self.ring.tap(line, "eth0") if tapped else line

        super().__init__(kind, around=around)
        assert isinstance(self.card, Booked)
        self.booked = self.card
        self.booked.clock = lambda: self.network.scheduler.now
        self.booked.book = []
        if isinstance(self.card, AbleCard):
            self.card.marked = self.card.alone = self.card.volleys = 0
        self.ring.frames.clear()
        self.expected: list[Crossing] = []
        self.crossed = 0  #: frames, recorded or not

    def record(self, on: bool) -> None:
        """Record or do not from now on."""
        self._note()
        self.ring.paused = not on

    def _note(self) -> None:
        if not self.ring.paused:
            self.expected += self.booked.book
        self.crossed += len(self.booked.book)
        self.booked.book.clear()

    @property
    def kept(self) -> list[Crossing]:
        return [(each.time, each.direction, each.data) for each in self.ring.frames]

    def check(self) -> None:
        """The record is the card's own book of the time it was recorded."""
        self._note()
        assert self.kept == self.expected


@contextmanager
def two(first: Tapped, second: Tapped) -> Iterator[tuple[Tapped, Tapped]]:
    with closing(first), closing(second):
        yield first, second


def play(worlds: tuple[Tapped, ...], seed: int, steps: int = 120, toggling: bool = False) -> None:
    """Both ends write and read, at equal times in all worlds."""
    rng = random.Random(seed)
    marks = [0] * len(worlds)
    for _ in range(steps):
        data, answer = rng.randbytes(rng.choice(SIZES)), rng.randbytes(rng.choice(SIZES))
        limit, delay = rng.choice((1000, 1 << 18, 1 << 21)), rng.randrange(3_000_000)
        toggle, talk, record = toggling and rng.random() < 0.3, rng.random(), rng.random() < 0.5
        read = []
        for world in worlds:
            if toggle:
                world.record(record)
            if talk < 0.7:
                world.send(data)
            if talk > 0.4:
                with suppress(BlockingIOError):
                    world.served.send(answer)
            world.network.advance(delay)
            try:
                read.append((world.read(limit), bytes(world.client.recv(limit))))
            except BlockingIOError:
                read.append((b"", b""))
        assert read[1:] == read[:-1]
        carried = [world.card.carried[mark:] for world, mark in zip(worlds, marks, strict=True)]
        assert carried[1:] == carried[:-1]
        marks = [len(world.card.carried) for world in worlds]
        assert len({repr(world.counters()) for world in worlds}) == 1


def short(world: Tapped) -> tuple[int, int, int]:
    assert isinstance(world.card, AbleCard)
    return world.card.short


@pytest.mark.parametrize("recording", [True, False], ids=["recording", "paused"])
def test_a_tap_changes_nothing_on_the_wire_and_in_no_counter(recording: bool) -> None:
    with two(Tapped(AbleCard), Tapped(AbleCard, tapped=False)) as (tapped, bare):
        tapped.record(recording)
        bare.record(False)
        play((tapped, bare), 7)
        tapped.check()
        assert bool(tapped.kept) == recording
        marked, alone, volleys = short(tapped)
        assert min(alone, volleys) > 20
        assert (alone, volleys) == short(bare)[1:]
        assert marked == 0 if recording else marked == short(bare)[0] > 100


def test_what_is_recorded_is_the_same_with_short_ways_and_without() -> None:
    with two(Tapped(AbleCard), Tapped(Booked)) as (able, plain):
        play((able, plain), 8)
        assert len(able.kept) > 400
        assert able.ring.frames == plain.ring.frames  # superframes as such, too
        able.check()
        plain.check()


@pytest.mark.parametrize("seed", range(4))
def test_recording_begins_and_ends_in_the_middle_of_traffic(seed: int) -> None:
    with two(Tapped(AbleCard), Tapped(Booked)) as (able, plain):
        play((able, plain), seed, toggling=True)
        assert able.ring.frames == plain.ring.frames
        able.check()
        plain.check()
        assert 100 < len(able.kept) < able.crossed - 100
        assert min(short(able)) > 10


def test_of_a_volley_that_is_taken_in_part_that_part_is_recorded() -> None:
    with closing(Tapped(CrampedCard)) as world:
        card, sender = world.card, world.connection.sender
        assert isinstance(card, FullCard)
        world.send(bytes(100))
        world.network.advance(50_000_000)
        world.read(1 << 20)
        sender.congestion.cwnd = sender.sndbuf = sender.snd_wnd = 4 << 20
        card.room, card.volleys = 3, 0
        world.send(bytes(range(256)) * 2700)
        assert card.volleys == 1
        assert sender.unsent > 0
        world.check()
        card.room = 1 << 30
        card.end.changed()
        for _ in range(20):
            world.read(1 << 20)
            world.network.advance(1_000_000)
        world.check()
        assert card.volleys > 1


def test_a_line_goes_bad_while_it_is_recorded() -> None:
    """The tap is this side of the line: it sees what is sent into it, and what comes out."""
    with closing(Tapped(AbleCard)) as world:
        line = world.iface.device.device  # type: ignore[attr-defined]  # the tap's
        assert isinstance(line, ImpairedDevice)
        for bad in (False, True, False):
            with world.network.lock:
                if bad:
                    line.impair(None, Impairment(loss=0.0))
                else:
                    line.mend()
            before = short(world)
            for _ in range(20):
                world.send(bytes(262144))
                world.network.advance(1_000_000)
                world.read(1 << 20)
            assert (short(world)[2] > before[2]) != bad
        world.check()
