"""Guests of a common group on one engine: connections between them, through us (VMADDR_FLAG_TO_HOST; VS-02, VS-11)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.testing.vsock import ModelStream
from stack.tests.vsock_world import VsockWorld
from stack.vsock.guest import CONNECTION_LIMIT
from stack.wire.vsock import TYPE_SEQPACKET, TYPE_STREAM, Op

ONE, TWO, THREE = 10, 11, 12


def world_of_two(**options: Any) -> VsockWorld:
    return VsockWorld(ONE, TWO, groups=("friends",), **options)


def joined(world: VsockWorld, kind: int = TYPE_STREAM) -> tuple[ModelStream, ModelStream]:
    """A connection from guest ONE, port 1000, to guest TWO, port 2000: both kernels' ends of it."""
    near = world.guests[ONE].model.connect(2000, 1000, kind=kind, cid=TWO)
    world.settle()
    far = world.guests[TWO].model.streams[1000, 2000]
    assert (near.state, far.state) == ("connected", "connected")
    return near, far


def test_each_guest_sees_the_other_one_and_bytes_cross() -> None:
    world = world_of_two()
    near, far = joined(world)
    assert (near.cid, far.cid) == (TWO, ONE)
    near.write(b"question")
    far.write(b"answer")
    world.settle()
    assert (bytes(far.received), bytes(near.received)) == (b"question", b"answer")
    world.check()


def test_messages_keep_their_boundaries_on_the_way() -> None:
    world = world_of_two()
    near, far = joined(world, TYPE_SEQPACKET)
    for n in range(20):
        near.write_message(bytes([n]) * (n * 500 + 1), end_of_record=n % 3 == 0, piece=1000)
        far.write_message(b"%d" % n)
        world.settle()
    assert far.messages == [(bytes([n]) * (n * 500 + 1), n % 3 == 0) for n in range(20)]
    assert near.messages == [(b"%d" % n, False) for n in range(20)]
    world.check()


def test_the_answer_of_the_other_guest_is_waited_for() -> None:
    """RESPONSE only when it accepted; its RST is passed on; without an answer it is RST as well."""
    for answer, state in ((Op.RESPONSE, "connected"), (Op.RST, "reset"), (None, "reset")):
        world = world_of_two()
        near = world.guests[ONE].model.connect(2000, 1000, cid=TWO)
        world.guests[ONE].port.service(8)
        world.scheduler.run_deferred()
        (request,) = world.guests[TWO].transport.take()
        assert request[:6] == (ONE, TWO, 1000, 2000, TYPE_STREAM, Op.REQUEST)
        world.guests[ONE].model.run()
        assert near.state == "requested"
        if answer is not None:
            world.guests[TWO].transport.feed(answer, 1000, 2000, dst_cid=ONE)
            world.guests[TWO].port.service(8)
            world.scheduler.run_deferred()
        else:
            world.wait(2_000_000_000)
        world.guests[ONE].model.run()
        assert near.state == state


@pytest.mark.parametrize(
    ("groups", "cid"),
    [((), TWO), (("others",), TWO), (("friends",), 99), (("friends",), ONE), (("friends",), 1 << 40)],
)
def test_without_a_common_group_or_a_guest_there_it_is_refused_at_once(groups: tuple[str, ...], cid: int) -> None:
    world = VsockWorld(ONE, groups=groups)
    stranger = world.engine.add_guest(world_of_two().guests[TWO].transport, groups=("friends", "family"))
    if groups == ("friends",):
        assert world.engine.sibling(stranger, ONE) is not None
    near = world.guests[ONE].model.connect(2000, 1000, cid=cid)
    world.settle()
    assert near.state == "reset"
    assert world.guest.port.drops["destination-cid"] == 1


def test_a_guest_cannot_pretend_to_be_its_sibling() -> None:
    world = world_of_two()
    _, far = joined(world)
    world.guests[ONE].transport.feed(Op.RW, 1000, 2000, src_cid=TWO, dst_cid=ONE, payload=b"forged")
    world.settle()
    assert not far.received
    assert world.guests[ONE].port.drops["source-cid"] == 1


def test_ports_of_the_host_and_of_siblings_do_not_mix() -> None:
    """The same port numbers towards CID 2 and towards a sibling are two connections."""
    world = world_of_two()
    near, far = joined(world)
    host = world.engine.listen(2000)
    world.guests[ONE].transport.feed(Op.REQUEST, 2000, 1000)
    world.guests[ONE].port.service(8)
    accepted = host.accept()
    assert accepted is not None
    world.scheduler.run_deferred()
    world.guests[ONE].transport.feed(Op.RW, 2000, 1000, payload=b"for the host")
    near.write(b"for the sibling")
    world.guests[ONE].port.service(8)
    world.scheduler.run_deferred()
    world.guests[TWO].model.run()
    assert accepted.read(100) == b"for the host"
    assert bytes(far.received) == b"for the sibling"


def test_vs_07_08_13_half_close_and_close_are_passed_on_after_the_data() -> None:
    """VS-07, VS-08, VS-13 through the middle."""
    world = world_of_two()
    near, far = joined(world)
    near.write(b"x" * 50_000)
    near.send(Op.SHUTDOWN, flags=2)
    world.settle()
    assert (len(far.received), far.shutdown) == (50_000, 2)
    far.write(b"late answer")
    far.send(Op.SHUTDOWN, flags=3)
    world.settle()
    assert bytes(near.received) == b"late answer"
    assert near.shutdown & 2
    assert far.state == "reset", "its close is answered"
    world.wait(9_000_000_000)
    assert near.state == "reset"
    assert world.engine.reserved == 0
    assert not world.guests[ONE].port.siblings
    assert not world.guests[TWO].port.siblings


def test_an_end_of_receiving_reaches_the_writer() -> None:
    world = world_of_two()
    near, far = joined(world)
    far.send(Op.SHUTDOWN, flags=1)
    world.settle()
    near.write(b"unwanted")
    world.settle()
    assert near.shutdown & 1
    assert world.engine.reserved
    near.send(Op.RST)
    del world.guests[ONE].model.streams[2000, 1000]
    world.settle()
    world.wait(9_000_000_000)
    assert world.engine.reserved == 0


@pytest.mark.parametrize("who", ["one breaks the rules", "one is reset", "two is removed"])
def test_an_end_without_order_resets_the_other_side(who: str) -> None:
    world = world_of_two()
    near, far = joined(world)
    if who == "one breaks the rules":
        near.send(Op.RESPONSE)
    elif who == "one is reset":
        world.guests[ONE].transport.generation += 1
        world.guests[ONE].transport.changed()
    else:
        world.engine.remove_guest(TWO)
    world.settle()
    assert (near if who == "two is removed" else far).state == "reset"
    assert world.engine.reserved == 0


def test_a_flood_between_siblings_stops_at_the_limits() -> None:
    """REQUESTs without end cost connections of both, no more, and none of the host's memory beyond its limit."""
    world = world_of_two(memory_limit=64 << 20)
    world.guests[TWO].model.answers = False
    for port in range(CONNECTION_LIMIT):
        world.guests[ONE].model.connect(2000, port, cid=TWO)
    world.settle()
    assert world.engine.reserved <= 64 << 20
    assert len(world.guests[TWO].port.siblings) == 128
    assert world.guests[ONE].model.resets == CONNECTION_LIMIT - 128
    world.wait(2_000_000_000)
    assert world.engine.reserved == 0


def test_a_duplicate_request_ends_both_halves() -> None:
    world = world_of_two()
    near, far = joined(world)
    near.send(Op.REQUEST)
    world.settle()
    assert (near.state, far.state) == ("reset", "reset")


def test_a_guest_that_does_not_read_stops_its_writer_and_nobody_else() -> None:
    """Memory: what the writer may send ahead is one buffer here and one there, whatever it does."""
    world = world_of_two()
    near, far = joined(world)
    written = 0
    for _ in range(100):
        written += near.write(bytes(65536))
        world.turn()
    assert written <= 2 << 18
    other = world.guests[ONE].model.connect(2001, 1001, cid=TWO)
    world.settle()
    other.write(b"through")
    world.settle()
    assert bytes(world.guests[TWO].model.streams[1001, 2001].received) == b"through"
    far.consume(1 << 18)
    world.settle()
    assert len(far.received) == written
    world.check()


@pytest.mark.parametrize("room", [1, 3])
def test_both_sending_through_tiny_rings_never_lock_up(room: int) -> None:
    """vhost-device-vsock 384: bidirectional load, rings that hold a packet or three, readers that come late."""
    world = world_of_two()
    near, far = joined(world)
    data = random.Random(3).randbytes(400_000)
    left = {near: data, far: data}
    for turn in range(20_000):
        for guest in world.guests.values():
            guest.transport.room = room
            guest.transport.changed()
        for stream in (near, far):
            left[stream] = left[stream][stream.write(left[stream][:5000]) :]
            if turn % 7 == 0:
                stream.consume(stream.unread)
        world.turn()
        if len(near.received) == len(far.received) == len(data):
            break
    assert bytes(near.received) == bytes(far.received) == data
    world.check()


@settings(max_examples=30)
@given(st.integers(0, 1 << 32), st.integers(200, 5000), st.sampled_from([TYPE_STREAM, TYPE_SEQPACKET]))
def test_whatever_the_credit_bytes_arrive_in_order(seed: int, buffer: int, kind: int) -> None:
    rng = random.Random(seed)
    world = world_of_two(buffer=buffer)
    near, far = joined(world, kind)
    data = rng.randbytes(3 * buffer)
    at = 0
    for _ in range(5000):
        size = rng.randint(1, buffer)
        if kind == TYPE_STREAM:
            at += near.write(data[at : at + size])
        elif at < len(data) and near.write_message(data[at : at + size]):
            at += len(data[at : at + size])
        world.turn()
        if rng.random() < 0.6:
            far.consume(rng.randint(1, buffer))
        if len(far.received) == len(data):
            break
    assert bytes(far.received) == data
    if kind == TYPE_SEQPACKET:
        assert b"".join(message for message, _ in far.messages) == data
    world.check()
