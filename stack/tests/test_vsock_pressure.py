"""Many connections, little room: fairness, tiny rings, bounded memory (VS-12; reference section 4.4)."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any, cast

import pytest

from stack.tests.vsock_world import VsockWorld
from stack.vsock import SeqpacketConnection, VsockConnection
from stack.vsock.guest import ROUND_BYTES
from stack.vsock.turns import LITTLE
from stack.wire.vsock import SEQ_EOM, TYPE_SEQPACKET, TYPE_STREAM, Op

BULK = 16
#: What a Linux guest's receive ring takes: 128 buffers of 4 KiB.
RING_BYTES = 512 << 10


class Ring:
    """Replaces a scripted guest's `transmit`: holds so many bytes, and the guest takes so many each turn."""

    def __init__(self, world: VsockWorld, capacity: int, drain: int) -> None:
        self.world = world
        self.capacity = capacity
        self.drain = drain
        self.held: list[Any] = []
        self.size = 0
        self.budget = 0
        self.take_all = world.guest.transport.transmit
        world.guest.transport.transmit = self.transmit  # type: ignore[method-assign] # the ring stands in front of it

    def transmit(self, burst: Any) -> int:
        count = 0
        for packet in burst:
            cost = max(len(packet[9]), 64)
            if self.size + cost > self.capacity:
                break
            self.held.append((packet, cost))
            self.size += cost
            count += 1
        return count

    def turn(self) -> None:
        """The guest takes what it can, then everybody has a turn."""
        self.budget = min(self.budget + self.drain, 2 * self.drain)
        while self.held and self.held[0][1] <= self.budget:
            packet, cost = self.held.pop(0)
            self.budget -= cost
            self.size -= cost
            self.take_all([packet])
        self.world.turn()
        self.world.guest.transport.changed()
        self.world.turn()


def round_trips(
    world: VsockWorld, ring: Ring, small: VsockConnection, count: int, bulk: list[VsockConnection]
) -> list[int]:
    """Turns from a short message to its answer, for `count` of them."""
    stream = world.stream(small)
    times = []
    for _ in range(count):
        small.write(b"ping")
        answered = len(stream.received)
        for turns in range(1, 1000):
            for each in bulk:
                each.write(bytes(1 << 16))
                end = world.stream(each)
                end.consume(end.unread)
            ring.turn()
            if len(stream.received) > answered and not small.readable:
                stream.consume(stream.unread)
                stream.write(b"pong")
            if small.read(10):
                times.append(turns)
                break
    return times


def p99(times: list[int]) -> int:
    return sorted(times)[len(times) * 99 // 100]


@pytest.mark.parametrize("drain", [64 << 10, 256 << 10, 1 << 20])
def test_a_small_connection_among_sixteen_bulk_streams_answers_within_five_times_its_idle_time(drain: int) -> None:
    """In turns: the guest takes `drain` bytes a turn from a ring it drains in less than five."""
    world = VsockWorld()
    small = world.connected(port=1)
    bulk = [world.connected(port=100 + n) for n in range(BULK)]
    ring = Ring(world, min(RING_BYTES, 4 * drain), drain)
    idle = p99(round_trips(world, ring, small, 100, []))
    loaded = p99(round_trips(world, ring, small, 100, bulk))
    assert loaded <= 5 * idle
    sent = [each.credit.sent for each in bulk]
    assert min(sent) * 2 > max(sent) > 0, "and they share what there is evenly"
    world.check()


def test_bulk_streams_alternate_so_that_none_waits_for_another() -> None:
    world = VsockWorld()
    bulk = [world.connected(port=100 + n) for n in range(BULK)]
    for each in bulk:
        each.write(bytes(1 << 18))
    world.guest.transport.room = 0
    world.scheduler.run_deferred()
    world.guest.transport.room = 8
    world.guest.transport.changed()
    world.guest.port.service(0)
    ports = [packet[3] for packet in world.guest.transport.take() if packet[5] == Op.RW]
    assert len(set(ports)) == 8, "the first eight packets are of eight streams"


def test_what_is_short_overtakes_what_is_held_up_but_never_its_own() -> None:
    world = VsockWorld()
    bulk, small = world.connected(port=100), world.connected(port=1)
    transport = world.guest.transport
    transport.room = 1
    bulk.write(bytes(1 << 18))
    world.scheduler.run_deferred()
    bulk.write(b"")
    small.write(b"short")
    for _ in range(6):
        transport.room = 1
        transport.changed()
        world.guest.port.service(0)
        world.scheduler.run_deferred()
    order = [(packet[3], len(packet[9])) for packet in transport.take()]
    assert order == [(100, 65536), (1, 5), (100, 65536), (100, 65536), (100, 65536)]
    assert LITTLE < ROUND_BYTES


@pytest.mark.parametrize("kind", [TYPE_STREAM, TYPE_SEQPACKET])
@pytest.mark.parametrize("room", [1, 2])
def test_tiny_rings_full_on_both_sides_never_lock_up(room: int, kind: int) -> None:
    """Both directions, sixteen connections, a ring that takes a packet or two at a time; everything gets through."""
    world = VsockWorld(buffer=20_000)
    connections = [world.connected(kind, port=n, buffer=20_000) for n in range(BULK)]
    data = random.Random(1).randbytes(60_000)
    sent = dict.fromkeys(connections, 0)
    written = dict.fromkeys(connections, 0)
    got = dict.fromkeys(connections, b"")
    for turn in range(20_000):
        for each in connections:
            stream = world.stream(each)
            if isinstance(each, SeqpacketConnection):
                if sent[each] < len(data) and each.send_message(data[sent[each] : sent[each] + 6000]):
                    sent[each] += 6000
                if written[each] < len(data) and stream.write_message(data[written[each] : written[each] + 6000]):
                    written[each] += 6000
                message = each.receive_message(20_000) if turn % 3 == 0 else None
                got[each] += message[0] if message else b""
            else:
                sent[each] += each.write(data[sent[each] :])
                written[each] += stream.write(data[written[each] : written[each] + 6000])
                got[each] += each.read(20_000) if turn % 3 == 0 else b""
            if turn % 5 == 0:
                stream.consume(stream.unread)
        world.guest.transport.room = room
        world.guest.transport.changed()
        world.turn()
        if all(len(got[each]) == len(world.stream(each).received) == len(data) for each in connections):
            break
    assert all(got[each] == bytes(world.stream(each).received) == data for each in connections)
    world.check()


def hostile(world: VsockWorld, attack: str) -> None:
    """Everything a guest can send to make us keep something, a thousand packets of it."""
    feed = world.guests[10].transport.feed
    for n in range(1000):
        if attack == "requests":
            feed(Op.REQUEST, 5000, n * 7 % 65536, alloc=0xFFFFFFFF)
        elif attack == "data nobody reads":
            feed(Op.RW, 5000, n % 64, payload=bytes(65536))
        elif attack == "messages without end":
            feed(Op.RW, 6000, n % 64, payload=bytes(60_000), kind=TYPE_SEQPACKET)
        elif attack == "tiny messages":
            feed(Op.RW, 6000, n % 64, payload=b"x", flags=SEQ_EOM, kind=TYPE_SEQPACKET)
        elif attack == "packets of no connection":
            feed(Op.RW, n, n * 31 % 65536, payload=bytes(1000), dst_cid=n)
        else:
            feed(Op.CREDIT_REQUEST, 5000, n % 64)


ATTACKS = [
    "requests",
    "data nobody reads",
    "messages without end",
    "tiny messages",
    "packets of no connection",
    "credit requests",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_guest_makes_us_keep_more_than_the_limit_while_another_one_streams_on(attack: str) -> None:
    """The attacker never takes an answer from its ring; the other guest's stream keeps its pace."""
    limit = 32 << 20
    world = VsockWorld(10, 11, memory_limit=limit)
    attacker = world.guests[10]
    stream_listener = world.engine.listen(5000, -1)
    message_listener = world.engine.listen(6000, -1, kind=TYPE_SEQPACKET)
    for n in range(48):
        attacker.transport.feed(Op.REQUEST, 5000 if n % 2 else 6000, n, kind=TYPE_STREAM if n % 2 else TYPE_SEQPACKET)
    world.guests[11].model.connect(5001, 1)
    listener = world.engine.listen(5001)
    world.settle()
    victim = cast("VsockConnection", listener.accept())
    stream = world.guests[11].model.streams[5001, 1]
    attacker.transport.room = 0

    def pace(turns: int) -> int:
        moved = 0
        for _ in range(turns):
            while stream.write(bytes(65536)):
                pass
            moved += len(victim.read(1 << 20))
            for each in world.guests.values():
                each.port.service(256)
            world.scheduler.run_deferred()
            world.guests[11].model.run()
            moved += len(victim.read(1 << 20))
            world.scheduler.run_deferred()
            world.guests[11].model.run()
        return moved

    usual = pace(20)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        under_attack = 0
        for _ in range(20):
            hostile(world, attack)
            under_attack += pace(4)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert under_attack >= 0.9 * 4 * usual
    assert world.engine.reserved <= limit
    # One page of zeroes stands for every payload above: what is counted here are the objects around it.
    assert kept <= limit
    assert len(attacker.port.connections) <= 1024
    assert victim.connected
    assert len(attacker.port._replies) <= 1024
    stream_listener.close()
    message_listener.close()
