"""SOCK_SEQPACKET over vsock: boundaries, EOM and EOR, EMSGSIZE, credit (VS-09, VS-12, VS-15; virtio 1.3 5.10.6.6.1)."""

from __future__ import annotations

import errno
import random
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.errors import NetError
from stack.tests.vsock_world import VsockWorld
from stack.vsock import SeqpacketConnection, VsockState
from stack.vsock.seqpacket import Lengths
from stack.wire.vsock import SEQ_EOM, SEQ_EOR, TYPE_SEQPACKET, TYPE_STREAM, Op


def connected(world: VsockWorld) -> SeqpacketConnection:
    return cast("SeqpacketConnection", world.connected(TYPE_SEQPACKET))


def test_messages_and_their_marks_cross_both_ways() -> None:
    world = VsockWorld()
    connection = connected(world)
    stream = world.stream(connection)
    assert connection.send_message(b"first")
    assert connection.send_message(b"second", end_of_record=True)
    assert connection.send_message(bytes(200_000))
    world.settle()
    assert stream.messages == [(b"first", False), (b"second", True), (bytes(200_000), False)]
    stream.write_message(b"one")
    stream.write_message(b"two" * 30_000, end_of_record=True)
    world.settle()
    assert connection.messages == 2
    assert connection.receive_message(100) == (b"one", 3, False)
    assert connection.receive_message(1 << 20) == (b"two" * 30_000, 90_000, True)
    assert connection.receive_message(1) is None
    world.check()


def test_a_message_of_many_packets_is_marked_on_its_last_alone() -> None:
    world = VsockWorld()
    connection = connected(world)
    connection.send_message(bytes(150_000), end_of_record=True)
    connection.send_message(b"next")
    world.scheduler.run_deferred()
    packets = [packet for packet in world.guest.transport.sent if packet[5] == Op.RW]
    assert [(len(packet[9]), packet[6]) for packet in packets] == [
        (65536, 0),
        (65536, 0),
        (18928, SEQ_EOM | SEQ_EOR),
        (4, SEQ_EOM),
    ]
    assert {packet[4] for packet in packets} == {TYPE_SEQPACKET}


def test_a_share_of_a_turn_may_end_within_a_message() -> None:
    """What one connection may send at a time is bounded; the message goes on where it was."""
    world = VsockWorld(buffer=1 << 20)
    connection = cast("SeqpacketConnection", world.connected(TYPE_SEQPACKET, buffer=1 << 20))
    messages = [bytes([n]) * 300_000 for n in range(3)]
    for message in messages:
        assert connection.send_message(message)
    world.settle()
    assert [message for message, _ in world.stream(connection).messages] == messages


def test_the_beginning_of_a_message_cannot_be_read() -> None:
    world = VsockWorld()
    connection = connected(world)
    stream = world.stream(connection)
    stream.send(Op.RW, payload=b"begin")
    stream.tx_cnt += 5
    world.settle()
    assert (connection.messages, connection.readable, connection.receive_message(10)) == (0, 0, None)
    stream.send(Op.RW, payload=b"ning", flags=SEQ_EOM)
    world.settle()
    assert connection.receive_message(100) == (b"beginning", 9, False)


def test_what_is_cut_off_is_gone_and_peeking_leaves_it() -> None:
    world = VsockWorld()
    connection = connected(world)
    stream = world.stream(connection)
    for message in (b"abcdef", b"next"):
        stream.write_message(message)
    world.settle()
    assert connection.receive_message(2, peek=True) == (b"ab", 6, False)
    assert connection.receive_message(2) == (b"ab", 6, False)
    assert connection.receive_message(100) == (b"next", 4, False)
    assert connection.credit.consumed == 10


def test_a_message_larger_than_the_peers_buffer_is_emsgsize() -> None:
    """As Linux: compared with the buffer, not with what is free of it."""
    world = VsockWorld(buffer=10_000)
    connection = connected(world)
    with pytest.raises(NetError) as refused:
        connection.send_message(bytes(10_001))
    assert refused.value.errno == errno.EMSGSIZE
    assert connection.send_message(bytes(10_000))


def test_a_message_waits_for_credit_for_all_of_it() -> None:
    world = VsockWorld(buffer=10_000)
    connection = connected(world)
    stream = world.stream(connection)
    assert connection.send_message(bytes(6000))
    assert not connection.send_message(bytes(6000))
    assert connection.writable == 0, "a poller must not be told of room that is too little"
    world.settle()
    assert len(stream.messages) == 1
    stream.consume(1000)
    world.settle()
    assert connection.writable == 0
    stream.consume(1000)
    world.settle()
    assert connection.writable == 6000
    assert connection.send_message(bytes(6000))
    world.check()


def test_a_peer_that_shrinks_its_buffer_meanwhile_turns_the_wait_into_emsgsize() -> None:
    world = VsockWorld(buffer=10_000)
    connection = connected(world)
    stream = world.stream(connection)
    connection.send_message(bytes(6000))
    assert not connection.send_message(bytes(6000))
    world.settle()
    stream.buf_alloc = 5000
    stream.consume(6000)
    world.settle()
    assert connection.writable, "so that whoever waits looks"
    with pytest.raises(NetError) as refused:
        connection.send_message(bytes(6000))
    assert refused.value.errno == errno.EMSGSIZE


def test_a_message_as_large_as_the_buffer_goes_through_after_small_ones_were_read() -> None:
    """The peer is told of what was consumed as soon as a message needs it, though less than 64 KiB are unreported."""
    world = VsockWorld()
    connection = connected(world)
    stream = world.stream(connection)
    stream.write_message(bytes(1000))
    world.settle()
    connection.receive_message(1000)
    world.settle()
    data = memoryview(bytes(1 << 18))
    for _ in range(5):  # as Linux sends: as much as credit allows, the rest when there is more
        size = min(stream.free, len(data))
        stream.tx_cnt += size
        stream.send(Op.RW, payload=bytes(data[:size]), flags=SEQ_EOM if size == len(data) else 0)
        data = data[size:]
        world.settle()
        if not data:
            break
    assert connection.receive_message(1 << 20) == (bytes(1 << 18), 1 << 18, False)


def test_a_buffer_does_not_shrink_under_a_message() -> None:
    world = VsockWorld()
    connection = connected(world)
    connection.set_buffer(1000)
    world.settle()
    assert world.stream(connection).peer_buf_alloc == 1 << 18
    connection.set_buffer(1 << 19)
    world.settle()
    assert world.stream(connection).peer_buf_alloc == 1 << 19


def test_single_byte_messages_cost_the_memory_of_bytes() -> None:
    world = VsockWorld()
    connection = connected(world)
    stream = world.stream(connection)
    for n in range(20_000):
        stream.write_message(bytes([n & 0xFF]))
    world.settle()
    assert connection.messages == 20_000
    assert len(connection._arrived._bytes) == 20_000
    assert [connection.receive_message(1) for _ in range(300)] == [(bytes([n & 0xFF]), 1, False) for n in range(300)]


def test_empty_messages_are_kept_but_not_without_end() -> None:
    """They cost no credit: Linux never sends one, a hostile guest may send any number."""
    world = VsockWorld()
    connection = connected(world)
    stream = world.stream(connection)
    stream.write_message(b"")
    world.settle()
    assert connection.receive_message(10) == (b"", 0, False)
    for _ in range((1 << 18) + 2):
        stream.write_message(b"")
    world.settle()
    assert (connection.state, connection.take_error()) == (VsockState.CLOSED, errno.ECONNRESET)
    assert world.guest.port.drops["violation: it sent empty messages without end"] == 1


def test_an_empty_message_is_not_sent() -> None:
    world = VsockWorld()
    connection = connected(world)
    assert connection.send_message(b"")
    world.settle()
    assert world.stream(connection).messages == []


def test_vs_13_ends_messages_before_the_end_stay_and_a_beginning_is_forgotten() -> None:
    """VS-13, for messages."""
    world = VsockWorld()
    connection = connected(world)
    stream = world.stream(connection)
    stream.write_message(b"whole")
    stream.send(Op.RW, payload=b"half of")
    stream.send(Op.SHUTDOWN, flags=3)
    world.settle()
    assert (connection.state, connection.eof, connection.messages) == (VsockState.CLOSED, True, 1)
    assert stream.state == "connected", "the RST waits until nothing is unread"
    assert connection.receive_message(10) == (b"whole", 5, False)
    world.settle()
    assert stream.state == "reset"
    with pytest.raises(NetError) as closed:
        connection.send_message(b"x")
    assert closed.value.errno == errno.EPIPE
    assert world.engine.reserved == 0


def test_more_than_was_granted_is_a_violation_also_in_pieces() -> None:
    world = VsockWorld()
    connection = connected(world)
    for _ in range(5):
        world.stream(connection).send(Op.RW, payload=bytes(65536))
    world.settle()
    assert connection.take_error() == errno.ECONNRESET
    assert world.engine.reserved == 0


def test_vs_11_types_are_told_apart() -> None:
    """VS-11: another type's packet is refused in its own type and does not touch the connection of these ports."""
    world = VsockWorld()
    world.engine.listen(5000, kind=TYPE_SEQPACKET)
    for kind, op in ((TYPE_STREAM, Op.REQUEST), (3, Op.REQUEST), (0, Op.RW)):
        world.guest.transport.feed(op, 5000, 1, kind=kind)
        world.guest.port.service(8)
        world.scheduler.run_deferred()
        (answer,) = world.guest.transport.take()
        assert (answer[4], answer[5]) == (kind, Op.RST)
    connection = connected(world)
    world.guest.transport.feed(Op.RW, connection.local[1], 99, kind=TYPE_STREAM, payload=b"x")
    world.guest.port.service(8)
    world.scheduler.run_deferred()
    (answer,) = world.guest.transport.take()
    assert (answer[4], answer[5]) == (TYPE_STREAM, Op.RST)
    assert connection.connected


def test_a_driver_without_the_feature_is_not_bothered() -> None:
    """As Linux: ESOCKTNOSUPPORT at connect; its own SEQPACKET packets are refused; NO_IMPLIED_STREAM likewise."""
    world = VsockWorld()
    transport = world.guest.transport
    for stream, seqpacket, kind in ((True, False, TYPE_SEQPACKET), (False, True, TYPE_STREAM)):
        transport.stream, transport.seqpacket = stream, seqpacket
        with pytest.raises(NetError) as refused:
            world.engine.connect(3, 1, kind=kind)
        assert refused.value.errno == errno.ESOCKTNOSUPPORT
        world.engine.listen(6000 + kind, kind=kind)
        transport.feed(Op.REQUEST, 6000 + kind, 1, kind=kind)
        world.guest.port.service(8)
        world.scheduler.run_deferred()
        (answer,) = transport.take()
        assert (answer[4], answer[5]) == (kind, Op.RST)


def test_a_request_made_before_the_driver_is_up_waits_for_it() -> None:
    world = VsockWorld()
    transport = world.guest.transport
    transport.carrier = transport.seqpacket = False
    transport.changed()
    connection = world.engine.connect(3, 1, kind=TYPE_SEQPACKET)
    transport.carrier = transport.seqpacket = True
    transport.changed()
    world.settle()
    assert connection.connected


@given(st.lists(st.integers(0, 1 << 40), max_size=60), st.integers(0, 1 << 32))
def test_lengths_come_out_as_they_went_in(values: list[int], seed: int) -> None:
    rng = random.Random(seed)
    queue, model = Lengths(), list[int]()
    for value in values:
        queue.append(value)
        model.append(value)
        while model and rng.random() < 0.4:
            assert queue.first() == model[0]
            assert queue.pop() == model.pop(0)
        assert len(queue) == len(model)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=40),
    st.integers(3000, 8000),
    st.integers(0, 1 << 32),
)
def test_any_messages_with_any_credit_arrive_whole_and_in_order(
    ours: list[tuple[int, bool]], theirs: list[tuple[int, bool]], buffer: int, seed: int
) -> None:
    """Both ways at once, buffers that hold little more than one message, readers that are slow."""
    rng = random.Random(seed)
    world = VsockWorld(buffer=buffer)
    connection = cast("SeqpacketConnection", world.connected(TYPE_SEQPACKET, buffer=buffer))
    stream = world.stream(connection)
    to_guest = [(rng.randbytes(size), end) for size, end in ours]
    to_host = [(rng.randbytes(size), end) for size, end in theirs]
    sent = written = 0
    received: list[tuple[bytes, bool]] = []
    for _ in range(2000):
        if sent < len(to_guest):
            sent += connection.send_message(to_guest[sent][0], end_of_record=to_guest[sent][1])
        if written < len(to_host):
            data, end = to_host[written]
            written += stream.write_message(data, end_of_record=end, piece=rng.randint(1, 2000))
        world.turn()
        if rng.random() < 0.5:
            message = connection.receive_message(10_000)
            if message is not None:
                received.append((message[0], message[2]))
        if rng.random() < 0.5:
            stream.consume(stream.unread)
        if len(received) == len(to_host) and len(stream.messages) == len(to_guest):
            break
    assert stream.messages == to_guest
    assert received == to_host
    world.check()
