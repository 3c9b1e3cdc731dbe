"""Floods, rings that are full, and who gets room, against a scripted guest: rows VS-05 and VS-11."""

from __future__ import annotations

import errno

import pytest

from stack.errors import NetError
from stack.testing.vsock import GUEST_CID
from stack.tests.vsock_world import GUEST_PORT, HOST_PORT, ScriptedWorld
from stack.vsock.connection import LARGEST_BUFFER
from stack.vsock.guest import CONNECTION_LIMIT, REPLY_LIMIT
from stack.wire.vsock import Op


def test_vs_05_a_full_accept_queue_refuses() -> None:
    """VS-05; backlog + 1 wait, as on Linux."""
    world = ScriptedWorld()
    listener = world.engine.listen(HOST_PORT, 2)
    answers = [world.feed(Op.REQUEST, guest_port=port) for port in range(5)]
    assert answers == [["RESPONSE"]] * 3 + [["RST"]] * 2
    assert (listener.ready, listener.refused) == (3, 2)
    assert listener.accept() is not None
    assert world.feed(Op.REQUEST, guest_port=9) == ["RESPONSE"]
    listener.close()
    listener.close()
    assert world.flush() == ["RST"] * 3, "what nobody accepted is reset"
    assert world.feed(Op.REQUEST, guest_port=10) == ["RST"]
    assert not world.port.connections or len(world.port.connections) == 1


def test_a_flood_of_requests_stops_at_the_limit_of_connections() -> None:
    world = ScriptedWorld()
    listener = world.engine.listen(HOST_PORT, -1, buffer=1000)
    for guest_port in range(CONNECTION_LIMIT + 100):
        world.guest.feed(Op.REQUEST, HOST_PORT, guest_port)
    world.turn()
    ops = world.guest.ops()
    assert (ops.count("RESPONSE"), ops.count("RST")) == (CONNECTION_LIMIT, 100)
    with pytest.raises(NetError) as full:
        world.engine.connect(GUEST_CID, 1)
    assert full.value.errno == errno.ENOBUFS
    for _ in range(CONNECTION_LIMIT):
        connection = listener.accept()
        assert connection is not None
        connection.close(0)
    assert world.engine.reserved == 0


def test_receive_buffers_together_stay_within_the_memory_limit() -> None:
    world = ScriptedWorld(memory_limit=1 << 20)
    listener = world.engine.listen(HOST_PORT)
    answers = [world.feed(Op.REQUEST, guest_port=port)[0] for port in range(6)]
    assert answers == ["RESPONSE"] * 4 + ["RST"] * 2
    with pytest.raises(NetError):
        world.engine.connect(GUEST_CID, 1)
    first = listener.accept()
    assert first is not None
    first.set_buffer(1 << 30)
    assert first.rcvbuf == 1 << 18, "nothing is left"
    world.feed(Op.RW, guest_port=0, payload=b"kept")
    world.feed(Op.RST, guest_port=0)
    assert world.feed(Op.REQUEST, guest_port=7) == ["RST"], "its bytes are unread yet"
    first.read(10)
    assert world.feed(Op.REQUEST, guest_port=7) == ["RESPONSE"]


def test_a_huge_buffer_is_clamped() -> None:
    world = ScriptedWorld()
    connection = world.engine.connect(GUEST_CID, 1, buffer=1 << 62)
    assert connection.rcvbuf == LARGEST_BUFFER
    connection.close()
    assert world.engine.reserved == 0


def test_single_bytes_cost_the_memory_of_bytes() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    for _ in range(100_000):
        world.guest.feed(Op.RW, HOST_PORT, GUEST_PORT, payload=b"x")
    world.turn()
    assert connection.readable == 100_000
    assert len(connection._incoming._pieces) <= 3
    assert connection.read(200_000) == b"x" * 100_000


def test_the_transmit_ring_is_drained_while_the_receive_ring_is_full() -> None:
    """The deadlock rule: a guest that writes first and reads later gets everything through, in bounded memory."""
    world = ScriptedWorld()
    connection, _ = world.accepted()
    world.guest.room = 0
    for guest_port in range(5000):
        world.guest.feed(Op.CREDIT_REQUEST, HOST_PORT, GUEST_PORT)
        world.guest.feed(Op.RW, 1, guest_port, payload=b"junk")
    world.guest.feed(Op.RW, HOST_PORT, GUEST_PORT, payload=b"arrived")
    connection.write(b"answer")
    world.turn()
    assert connection.read(10) == b"arrived"
    assert world.port.drops["reply-limit"] >= 5000 - 2 * REPLY_LIMIT
    world.guest.room = None
    world.guest.changed()
    world.turn()
    ops = world.guest.ops()
    assert REPLY_LIMIT <= ops.count("RST") <= 2 * REPLY_LIMIT
    assert ops.count("RW") == 1
    assert ops.count("CREDIT_UPDATE") == 0, "the data carried it"


def test_what_the_transport_refuses_waits_in_order() -> None:
    world = ScriptedWorld()
    connection = world.connected(alloc=1 << 20)
    world.guest.room = 1
    connection.write(b"a" * 65536 + b"b" * 65536 + b"c" * 65536)
    world.turn()
    connection.shutdown_write()
    for _ in range(5):
        world.guest.room = 1
        world.guest.changed()
        world.turn()
    packets = world.guest.take()
    assert [packet[5] for packet in packets] == [Op.RW] * 3 + [Op.SHUTDOWN]
    assert b"".join(bytes(packet[9][:1]) for packet in packets) == b"abc"


def test_a_bulk_stream_does_not_starve_the_others() -> None:
    world = ScriptedWorld()
    bulk = world.connected(alloc=1 << 20)
    bulk.set_buffer(1 << 20)
    second = world.engine.connect(GUEST_CID, 77)
    world.flush()
    world.feed(Op.RESPONSE, host_port=second.local[1], guest_port=77)
    world.guest.room = 3
    bulk.write(bytes(1 << 20))
    second.write(b"small")
    world.turn()
    assert b"small" in [packet[9] for packet in world.guest.take()]


def test_the_port_is_a_source() -> None:
    world = ScriptedWorld()
    world.port.suppress()
    assert not world.guest.armed
    world.guest.feed(Op.RST, 1, 1)
    assert world.port.arm()
    ready: list[int] = []
    world.port.on_ready = lambda: ready.append(1)
    world.guest.changed()
    assert ready == [1]


def test_running_out_of_room_while_nobody_polls_asks_to_be_told_of_room() -> None:
    """A user's write() from outside a turn: without this the stream stood still until the guest sent something."""
    world = ScriptedWorld()
    connection = world.connected()
    world.port.arm()  # the Network sleeps
    world.guest.armed = False  # as a ring is whose notification has been used up
    world.guest.room = 0
    connection.write(b"x" * 10)
    world.scheduler.run_deferred()
    assert world.guest.armed
    world.port.suppress()
    world.guest.armed = False
    connection.write(b"y" * 10)
    world.scheduler.run_deferred()
    assert not world.guest.armed  # whoever polls arms it before sleeping
