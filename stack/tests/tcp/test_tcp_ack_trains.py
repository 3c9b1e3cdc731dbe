"""Bare acknowledgments that follow one another (`FOLLOWS`) are taken in by the last of them; nothing else differs.

The oracle is the walk: the same bursts arrive at two equal nodes that send bulk, and the device of one of them marks
what follows. Only the number of round-trip times that are measured may differ, and what is made of their sequence: so
here all take equally long, and cwnd grows as RFC 5681 says.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from socket import IPPROTO_TCP, TCP_CONGESTION
from typing import Any

import pytest

from stack.link.device import RxFrame
from stack.tcp.rtt import RttEstimator
from stack.tcp.sender import Sender
from stack.tests.tcp.test_tcp_trains import WAYS, Node, Way, following, segment, stamp
from stack.wire import tcp


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return following(monkeypatch, Sender)


@pytest.fixture
def equal_times(monkeypatch: pytest.MonkeyPatch) -> None:
    original = RttEstimator.sample
    monkeypatch.setattr(RttEstimator, "sample", lambda rtt, _: original(rtt, 1_000_000))


@contextmanager
def twins(way: Way) -> Iterator[tuple[Node, Node]]:
    """The one without marks, the one with."""
    with closing(Node(way, marks=False)) as walks, closing(Node(way, marks=True)) as marks:
        yield walks, marks


def sending(node: Node) -> dict[str, Any]:
    """What there is to be seen of the sending half, besides `Node.seen`."""
    sender = node.connection.sender
    return {
        "numbers": (sender.snd_una, sender.snd_nxt, sender.snd_max, sender.snd_wl1, sender.snd_wl2, sender.karn),
        "flights": list(sender.flights),
        "window": (sender.congestion.cwnd, sender.congestion.ssthresh, sender.sndbuf, sender.cwnd_limited),
        "queue": (sender.queue.start, sender.queue.end),
        "timer": (sender.backoff, sender.retries, sender.rtt.rto, sender.rtt.latest),
        "counters": (sender.bytes_acked, sender.bytes_resent, sender.retransmitted, sender.busy_time),
    }


def both(nodes: tuple[Node, Node]) -> None:
    assert sending(nodes[0]) == sending(nodes[1])
    assert nodes[0].seen() == nodes[1].seen()


def write(nodes: tuple[Node, Node], size: int) -> None:
    for node in nodes:
        with suppress(BlockingIOError):
            node.sock.send(bytes(size))
        node.settle()


def burst(way: Way, rng: random.Random, node: Node) -> list[RxFrame]:
    """A peer acknowledges what has come, in one step or several, with something peculiar now and then."""
    sender = node.connection.sender
    una, most = sender.snd_una, sender.snd_max
    frames, ack, window, value = [], una, 500, 2
    trouble = rng.random() < 0.3
    for number in range(rng.randrange(1, 9)):
        ack = min(ack + rng.choice((1448, 2896, 65160, 1)), most)
        seq, flags, tos, padding = 1000, tcp.ACK, 0, 0
        if trouble and rng.random() < 0.2:
            what = rng.randrange(7)
            if what == 0:
                ack = rng.choice((una, most + 1, most + 70000, ack - 1000))
            elif what == 1:
                window = rng.choice((0, 100, 501, 600))
            elif what == 2:
                value += rng.choice((1, -2))
            elif what == 3:
                tos = 3
            elif what == 4:
                padding = 3
            elif what == 5:
                flags |= rng.choice((tcp.PSH, tcp.URG, tcp.ECE))
            else:
                seq += rng.choice((1, -1))
        options = stamp(way, value)
        frames.append(
            segment(
                way, seq, ack, flags=flags, window=window, options=options, tos=tos, ident=number * 3, padding=padding
            )
        )
    return frames


def compare(way: Way, seed: int, bursts: int) -> None:
    rng = random.Random(seed)
    with twins(way) as nodes:
        for node in nodes:
            node.sock.setsockopt(IPPROTO_TCP, TCP_CONGESTION, b"reno")
        for _ in range(bursts):
            if rng.random() < 0.8:
                write(nodes, rng.choice((100, 3000, 200_000, 1 << 20)))
            frames = burst(way, rng, nodes[0])
            for node in nodes:
                node.feed(frames)
            both(nodes)
            delay = 300_000_000 if rng.random() < 0.02 else rng.choice((0, 1000, 1_000_000))
            for node in nodes:
                node.network.advance(delay)
            both(nodes)


@pytest.mark.usefixtures("equal_times")
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_last_of_a_train_says_what_all_say(way: Way, followers: list[int]) -> None:
    for seed in range(8):
        compare(way, seed, 60)
    assert sum(followers) > 150
    assert followers.count(0) > 3  # there was one among them that acknowledged what was never sent, or recovery


@pytest.mark.usefixtures("equal_times")
@pytest.mark.parametrize("special", ["filter", "raw socket", "packet socket", "min TTL"])
def test_where_somebody_looks_at_each_packet_each_is_walked(special: str, followers: list[int]) -> None:
    compare(Way(4, False, special), 1, 40)
    assert not followers


def acknowledged(way: Way, node: Node, pieces: int, *, window: int = 500) -> list[RxFrame]:
    """All that is in flight, in so many equal steps."""
    sender = node.connection.sender
    size = (sender.snd_max - sender.snd_una) // pieces
    numbers = [sender.snd_una + size * at for at in range(1, pieces)] + [sender.snd_max]
    return [segment(way, 1000, ack, window=window + at) for at, ack in enumerate(numbers)]


def test_one_acknowledgment_is_taken_for_many_and_all_are_counted(
    monkeypatch: pytest.MonkeyPatch, followers: list[int]
) -> None:
    way = Way()
    with twins(way) as nodes:
        write(nodes, 14480)
        taken: list[int] = []
        original = Sender.acknowledge

        def acknowledge(sender: Sender, ack: int, echo: int | None) -> None:
            taken.append(ack - sender.snd_una)
            original(sender, ack, echo)

        monkeypatch.setattr(Sender, "acknowledge", acknowledge)
        for node, steps in zip(nodes, ([2896] * 5, [2896, 4 * 2896]), strict=True):
            fast, segments = node.stack.netns.tcp.stats.fast_in, node.connection.receiver.segments
            node.feed(acknowledged(way, node, 5))
            assert taken == steps
            assert node.stack.netns.tcp.stats.fast_in == fast + 5
            assert node.connection.receiver.segments == segments + 5
            assert node.connection.sender.raw_window == 504  # the last one's
            taken.clear()
        both(nodes)
    assert followers == [4]


def test_what_comes_behind_a_train_is_walked(followers: list[int]) -> None:
    way = Way()
    with twins(way) as nodes:
        write(nodes, 14480)
        for node in nodes:
            data = segment(way, 1000, node.connection.sender.snd_max, 500, window=600)
            node.feed([*acknowledged(way, node, 5), data])
            assert node.read(1000)[0]
            assert node.connection.sender.raw_window == 600
        both(nodes)
    assert followers == [4]


def test_in_recovery_each_counts(followers: list[int]) -> None:
    """A partial acknowledgment is news by itself (RFC 6582, RFC 6675)."""
    way = Way()
    with twins(way) as nodes:
        write(nodes, 14480)
        for node in nodes:
            node.network.advance(2_000_000_000)  # a time-out
            assert node.connection.sender.recovery.engaged
            node.feed(acknowledged(way, node, 5))
        both(nodes)
    assert followers == [0] or not any(followers)
