"""How much may be under way, against a scripted guest: virtio 1.3 section 5.10.6.3, row VS-12."""

from __future__ import annotations

import errno

from stack.tests.vsock_world import ScriptedWorld
from stack.vsock import VsockState
from stack.wire.vsock import Op


def test_vs_12_no_more_is_sent_than_the_peer_granted() -> None:
    world = ScriptedWorld()
    connection = world.connected(alloc=1000)
    assert connection.writable == 1000
    assert connection.write(bytes(1500)) == 1000
    assert connection.writable == 0
    assert world.flush() == ["RW"]
    assert connection.write(b"x") == 0
    assert world.feed(Op.CREDIT_UPDATE, alloc=1000, forwarded=400) == ["CREDIT_REQUEST"]
    assert connection.writable == 400
    assert connection.write(bytes(500)) == 400


def test_vs_12_without_credit_the_peer_is_asked_once_until_it_answers() -> None:
    world = ScriptedWorld()
    connection = world.connected(alloc=10)
    connection.write(bytes(10))
    world.flush()
    for _ in range(3):
        assert connection.write(b"x") == 0
    assert world.flush() == ["CREDIT_REQUEST"]
    assert connection.write(b"x") == 0
    assert world.feed(Op.CREDIT_UPDATE, alloc=10) == []
    assert connection.write(b"x") == 0
    assert world.flush() == [], "it has been asked and has answered: none"
    world.feed(Op.CREDIT_UPDATE, alloc=10, forwarded=10)
    connection.write(bytes(10))
    world.flush()
    assert connection.write(b"x") == 0
    assert world.flush() == ["CREDIT_REQUEST"]


def test_a_peer_that_shrinks_its_buffer_below_what_is_under_way_leaves_no_credit() -> None:
    """CVE-2026-23069: the difference is negative, not huge."""
    world = ScriptedWorld()
    connection = world.connected(alloc=1000)
    connection.write(bytes(800))
    world.flush()
    world.feed(Op.CREDIT_UPDATE, alloc=100)
    assert connection.writable == 0
    assert connection.write(b"x") == 0
    world.feed(Op.CREDIT_UPDATE, alloc=100, forwarded=750)
    assert connection.writable == 50


def test_a_peer_that_claims_to_have_consumed_more_than_was_sent_is_reset() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    connection.write(bytes(100))
    world.flush()
    assert world.feed(Op.CREDIT_UPDATE, forwarded=100) == []
    assert world.feed(Op.CREDIT_UPDATE, forwarded=101) == ["RST"]
    assert (connection.state, connection.take_error()) == (VsockState.CLOSED, errno.ECONNRESET)


def test_an_older_count_that_was_overtaken_is_harmless() -> None:
    """A Linux guest prepares packets on several processors."""
    world = ScriptedWorld()
    connection = world.connected(alloc=1000)
    connection.write(bytes(1000))
    world.flush()
    world.feed(Op.CREDIT_UPDATE, alloc=1000, forwarded=600)
    assert world.feed(Op.CREDIT_UPDATE, alloc=1000, forwarded=500) == []
    assert connection.writable == 600


def test_vs_11_12_a_peer_that_sends_more_than_we_granted_is_reset_and_what_it_sent_before_stays() -> None:
    """Never dropped in silence: that would corrupt the stream (reference section 4.4)."""
    world = ScriptedWorld()
    connection, _ = world.accepted(buffer=1000)
    assert world.feed(Op.RW, payload=b"a" * 1000) == []
    assert world.feed(Op.RW, payload=b"b") == ["RST"]
    assert (connection.state, connection.take_error()) == (VsockState.CLOSED, errno.ECONNRESET)
    assert connection.read(2000) == b"a" * 1000
    assert connection.eof


def test_what_was_granted_stays_granted_when_the_buffer_shrinks() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    connection.set_buffer(1000)
    assert world.flush() == ["CREDIT_UPDATE"]
    assert world.feed(Op.RW, payload=bytes(65536)) == []
    assert connection.readable == 65536
    assert connection.connected


def test_vs_12_a_credit_update_leaves_when_less_than_64_kib_are_unreported() -> None:
    """As Linux (virtio_transport_stream_do_dequeue): not for every read, but before the peer stalls."""
    world = ScriptedWorld()
    connection, _ = world.accepted(buffer=256 << 10)
    for _ in range(4):
        world.feed(Op.RW, payload=bytes(64 << 10))
    connection.read(192 << 10)
    assert world.flush() == []
    connection.read(1)
    world.turn()
    assert [packet[5:] for packet in world.guest.take()] == [(Op.CREDIT_UPDATE, 0, 256 << 10, (192 << 10) + 1, b"")]
    connection.read(1000)
    assert world.flush() == []


def test_a_small_buffer_is_reported_after_every_read() -> None:
    world = ScriptedWorld()
    connection, _ = world.accepted(buffer=1000)
    world.feed(Op.RW, payload=bytes(10))
    connection.read(5)
    assert world.flush() == ["CREDIT_UPDATE"]


def test_a_reader_that_waits_for_more_than_is_granted_has_the_peer_told() -> None:
    """SO_RCVLOWAT: otherwise both would wait for the other."""
    world = ScriptedWorld()
    connection, _ = world.accepted(buffer=256 << 10)
    world.feed(Op.RW, payload=bytes(64 << 10))
    connection.read(64 << 10)
    assert world.flush() == []
    connection.set_wanted(200 << 10)
    assert world.flush() == ["CREDIT_UPDATE"]


def test_vs_12_a_credit_request_is_answered() -> None:
    world = ScriptedWorld()
    world.connected()
    assert world.feed(Op.CREDIT_REQUEST) == ["CREDIT_UPDATE"]


def test_data_carries_the_credit_no_update_leaves_beside_it() -> None:
    world = ScriptedWorld()
    connection, _ = world.accepted(buffer=1000)
    world.feed(Op.RW, payload=bytes(500))
    connection.read(500)
    connection.write(b"echo")
    assert world.flush() == ["RW"]
