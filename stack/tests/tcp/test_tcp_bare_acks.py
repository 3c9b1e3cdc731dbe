"""The acknowledgment that leaves by a shorter way (`stack.tcp.bare`) is the one that would have left."""

from __future__ import annotations

import random
from contextlib import closing
from typing import Any

import pytest

from stack.iface.interface import Interface
from stack.link.device import Buffer, TxFacts
from stack.tcp import pcb
from stack.tcp.output import emit_acks
from stack.tests.tcp.test_tcp_trains import WAYS, Node, Peer, Way


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_lone_acknowledgment_is_the_one_of_a_burst(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bare.acknowledge` against `emit_acks`, in all there is to see and to hear."""
    alone: list[int] = []
    short, original = [], Interface.send_alone

    def send_alone(iface: Interface, parts: tuple[Buffer, ...], facts: TxFacts, length: int) -> None:
        alone.append(length)
        original(iface, parts, facts, length)

    def long_way(connection: Any, count: int) -> None:
        emit_acks(connection, connection.sender.bare_seq, count)

    monkeypatch.setattr(Interface, "send_alone", send_alone)
    for seed in range(4):
        with closing(Node(way, marks=True)) as node:
            short.append(history(node, way, seed))
    assert alone if way.version == 4 else not alone
    monkeypatch.setattr(pcb, "acknowledge", long_way)
    monkeypatch.setattr(pcb, "send_fin", lambda _: False)  # which leaves as they do
    alone.clear()
    for seed in range(4):
        with closing(Node(way, marks=True)) as node:
            assert history(node, way, seed) == short[seed]
    assert not alone


def history(node: Node, way: Way, seed: int) -> list[object]:
    """What a node shows as bursts arrive and are read."""
    rng = random.Random(seed)
    peer = Peer(rng, way, node.iss)
    told: list[object] = []
    for _ in range(40):
        receiver = node.connection.receiver
        if rng.random() < 0.9:
            peer.seq = receiver.rcv_nxt
        node.feed(peer.burst(receiver.window, node.iss))
        told.append(repr(node.seen()))  # counters go on counting
        if rng.random() < 0.6:
            told.append(node.read(rng.choice((1, 1000, 70_000, 1 << 20))))
        if rng.random() < 0.3:
            node.network.advance(rng.randrange(1, 60_000_000))
        told.append(repr(node.seen()))  # counters go on counting
    return told
