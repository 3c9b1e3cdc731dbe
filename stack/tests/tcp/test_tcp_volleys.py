"""Superframes that leave in volleys: what is on the wire, and in every counter, is what leaves without them.

The oracle is the ordinary way: two equal worlds run the same script, and the card of one of them takes volleys.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from stack.link.device import RxFrame, TxFrame
from stack.tcp.receiver import QUICK_ACKS
from stack.tcp.sender import Sender
from stack.tests.tcp.card_world import Card, DeafCard, VolleyCard, World


@contextmanager
def worlds(**how: Any) -> Iterator[tuple[World, VolleyCard, World]]:
    plain, volleys = World(Card, **how), World(VolleyCard, **how)
    assert isinstance(volleys.card, VolleyCard)
    try:
        yield volleys, volleys.card, plain
    finally:
        plain.close()
        volleys.close()


@pytest.mark.parametrize("timestamps", [True, False], ids=["timestamps", "none"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_same_is_on_the_wire_and_in_every_counter(version: int, timestamps: bool) -> None:
    rng = random.Random(version + 2 * timestamps)
    with worlds(version=version, timestamps=timestamps) as (volleys, card, plain):
        for step in range(250):
            size = rng.choice((1, 700, 1448, 65160, 3 * 65160, 262144, 262144, 400_000, 900_000))
            data, limit, delay = rng.randbytes(size), rng.choice((1000, 1 << 18, 1 << 21)), rng.randrange(3_000_000)
            mark = len(card.carried)
            for world in (volleys, plain):
                if step <= 200:
                    world.send(data)
                world.network.advance(delay)
            assert volleys.read(limit) == plain.read(limit)
            if step == 200:
                for world in (volleys, plain):
                    world.client.shutdown(1)
            assert card.carried[mark:] == plain.card.carried[mark:]
            assert volleys.counters() == plain.counters()
        assert card.volleys > 20


def test_a_tap_sees_every_frame() -> None:
    """Somebody looks: nothing goes past him."""
    with worlds() as (volleys, card, plain):
        seen: list[bytes] = []

        class Tap:
            def received(self, burst: Sequence[RxFrame]) -> None: ...

            def transmitted(self, burst: Sequence[TxFrame]) -> None:
                seen.extend(b"".join(frame[0]) for frame in burst)

        volleys.iface.taps.append(Tap())
        mark = len(card.carried)
        for _ in range(20):
            for world in (volleys, plain):
                world.send(bytes(262144))
                world.network.advance(1_000_000)
                world.read(1 << 20)
        assert card.volleys == 0
        assert seen == [frame for frame, _ in card.carried[mark:]]
        assert card.carried == plain.card.carried


@pytest.mark.parametrize("queue_bytes", [70_000, 140_000, 300_000])
def test_a_card_that_is_full_keeps_one_superframe_waiting_and_the_rest_in_the_send_queue(queue_bytes: int) -> None:
    rng = random.Random(queue_bytes)
    with worlds(queue_bytes=queue_bytes) as (world, card, plain):
        plain.client.close()
        left = data = rng.randbytes(6 << 20)
        got = bytearray()
        began = world.network.clock()
        most = 0
        while len(got) < len(data):
            left = world.send(left)
            most = max(most, world.iface.queued)
            world.network.advance(100_000)
            got += world.read(rng.choice((65536, 1 << 20)))
            assert world.network.clock() - began < 2_000_000_000, "it came to a stand"
        assert got == data
        assert card.volleys > 5 or queue_bytes < 140_000
        assert most <= 3  # and an answer or two
        assert world.near.netns.tcp.stats.retransmitted == 0


@contextmanager
def wide_open() -> Iterator[tuple[World, DeafCard, Sender]]:
    """A world whose card knows what it is to carry, since the first bytes went the ordinary way; windows are wide."""
    world = World(DeafCard)
    card, sender = world.card, world.connection.sender
    assert isinstance(card, DeafCard)
    try:
        world.send(bytes(100))
        world.network.advance(50_000_000)
        assert world.read(1 << 20) == bytes(100)
        sender.congestion.cwnd = sender.sndbuf = sender.snd_wnd = 4 << 20
        yield world, card, sender
    finally:
        world.close()


def test_what_a_full_card_leaves_waits_in_the_send_queue_and_goes_on_as_a_volley() -> None:
    with wide_open() as (world, card, sender):
        start, size = sender.snd_nxt, sender.superframe
        card.room, card.volleys, card.deaf, small = 3, 0, True, sender.small_end
        data = bytes(range(256)) * 2700 + b"end"
        assert world.send(data) == b""
        assert card.volleys == 1
        assert world.iface.queued == 0
        assert sender.snd_nxt == sender.snd_max == start + 3 * size
        assert list(sender.flights) == [(start + 3 * size, world.network.clock())]
        assert sender.small_end == small  # the end of it has not left
        assert sender.unsent == len(data) - 3 * size
        card.room = 1 << 30
        world.send(b"more")  # what is behind waits as well, until what is in flight is acknowledged
        assert (card.volleys, sender.unsent) == (1, len(data) - 3 * size + 4)
        card.deaf = False
        got = bytearray()
        for _ in range(200):
            got += world.read(1 << 20)
            world.network.advance(1_000_000)
        assert card.volleys >= 2
        assert got == data + b"more"


@pytest.mark.parametrize("deaf", [100_000_000, 3_000_000_000])
def test_a_full_card_is_forgotten_when_the_acknowledgment_is_lost(deaf: int) -> None:
    """What a full card leaves waits for the acknowledgment of what it took. If that is lost the timer asks for it."""
    with wide_open() as (world, card, sender):
        data = bytes(range(256)) * 2700
        card.room, card.deaf = 3, True
        world.send(data)
        clogged = [sender.clogged]
        card.room = 1 << 30
        world.network.advance(deaf)
        card.deaf = False
        got = bytearray()
        for _ in range(100):
            world.network.advance(100_000_000)
            got += world.read(1 << 20)
        assert got == data
        assert [*clogged, sender.clogged] == [True, False]
        assert sender.retransmitted > 0


def test_a_part_of_what_left_at_once_gives_a_round_trip_time() -> None:
    """As Linux measures one by the acknowledgment of a part of a superframe (tcp_clean_rtx_queue)."""
    with wide_open() as (world, card, sender):
        card.deaf = True
        began = world.network.clock()
        world.send(bytes(5 * sender.superframe + 1))
        scheduler, una, end = world.network.scheduler, sender.snd_una, sender.snd_max
        assert end == una + 5 * sender.superframe + 1
        for passed, ack in ((7_000_000, una + sender.mss), (9_000_000, end - 1), (11_000_000, end)):
            scheduler.now = began + passed
            sender.acknowledge(ack, None)
            assert sender.rtt.latest == passed
        assert not sender.flights


def test_an_answer_that_leaves_in_a_volley_carries_the_acknowledgment() -> None:
    """From then on acknowledgments need not be hurried (`Receiver.quick`), as without volleys."""
    with worlds() as (volleys, card, plain):
        for world in (volleys, plain):
            for _ in range(20):  # the window opens
                world.send(bytes(262144))
                world.network.advance(1_000_000)
                world.read(1 << 20)
            for _ in range(QUICK_ACKS):  # those that are sent at once
                world.served.send(b"!")
                world.network.advance(1_000_000)
            assert world.connection.receiver.quick == 0
            before = card.volleys
            world.served.send(b"question")
            world.send(bytes(262144))
            assert world.connection.receiver.quick == -1
            assert (card.volleys > before) == (world is volleys)
        assert volleys.counters() == plain.counters()
