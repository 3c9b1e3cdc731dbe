"""How connections end, against a scripted guest: virtio 1.3 section 5.10.6.6, rows VS-08, VS-11 and VS-13."""

from __future__ import annotations

import errno

import pytest

from stack.errors import NetError
from stack.tests.vsock_world import ScriptedWorld, state
from stack.vsock import VsockState
from stack.vsock.connection import CLOSE_TIMEOUT
from stack.wire.vsock import Op


def test_vs_13_half_close_by_the_guest() -> None:
    """VS-13: its SEND bit is our end of stream; we may go on sending."""
    world = ScriptedWorld()
    connection = world.connected()
    world.feed(Op.RW, payload=b"last")
    assert world.feed(Op.SHUTDOWN, flags=2) == []
    assert connection.eof
    assert connection.read(10) == b"last"
    assert connection.write(b"still") == 5
    assert world.flush() == ["RW"]
    assert world.feed(Op.SHUTDOWN, flags=1) == ["RST"], "the bits accumulate: now it is over"
    assert state(connection) is VsockState.CLOSED
    assert connection.take_error() == 0


def test_half_close_by_the_host_comes_after_what_was_written() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    connection.write(b"last words")
    connection.shutdown_write()
    connection.shutdown_write()
    world.turn()
    assert [(packet[5], packet[6]) for packet in world.guest.take()] == [(Op.RW, 0), (Op.SHUTDOWN, 2)]
    with pytest.raises(NetError) as over:
        connection.write(b"more")
    assert over.value.errno == errno.EPIPE
    world.feed(Op.RW, payload=b"reply")
    assert connection.read(10) == b"reply"
    connection.shutdown_read()
    world.turn()
    assert [(packet[5], packet[6]) for packet in world.guest.take()] == [(Op.SHUTDOWN, 3)]
    assert connection.eof


def test_vs_13_a_peer_that_will_not_receive_makes_writing_epipe() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    world.feed(Op.SHUTDOWN, flags=1)
    assert not connection.can_write
    assert connection.writable == 0
    with pytest.raises(NetError) as over:
        connection.write(b"x")
    assert over.value.errno == errno.EPIPE
    assert not connection.eof


def test_vs_13_a_guests_close_is_answered_with_rst_once_nothing_is_unread() -> None:
    """Linux waits up to 8 s for it; a later connection may use the same port at once."""
    world = ScriptedWorld()
    connection, _ = world.accepted()
    world.feed(Op.RW, payload=b"unread")
    assert world.feed(Op.SHUTDOWN, flags=3) == []
    assert not world.port.connections
    assert connection.eof
    assert connection.read(3) == b"unr"
    assert world.flush() == []
    assert connection.read(3) == b"ead"
    assert world.flush() == ["RST"]
    connection.close()
    assert world.flush() == [], "once"


def test_closing_with_unread_bytes_after_the_guests_close_answers_too() -> None:
    world = ScriptedWorld()
    connection, _ = world.accepted()
    world.feed(Op.RW, payload=b"unread")
    world.feed(Op.SHUTDOWN, flags=3)
    connection.close()
    assert world.flush() == ["RST"]


def test_a_late_answer_does_not_reset_the_next_connection_of_the_same_ports() -> None:
    world = ScriptedWorld()
    connection, listener = world.accepted()
    world.feed(Op.RW, payload=b"unread")
    world.feed(Op.SHUTDOWN, flags=3)
    assert world.feed(Op.REQUEST) == ["RESPONSE"]
    connection.close()
    assert world.flush() == []
    successor = listener.accept()
    assert successor is not None
    assert successor.connected


def test_vs_13_rst_ends_a_stream_without_error_and_keeps_what_was_received() -> None:
    """VS-13, as Linux: the peer's shutdown of both directions, no error."""
    world = ScriptedWorld()
    connection = world.connected()
    world.feed(Op.RW, payload=b"rest")
    assert world.feed(Op.RST) == []
    assert connection.take_error() == 0
    assert connection.read(10) == b"rest"
    assert connection.eof
    with pytest.raises(NetError) as over:
        connection.write(b"x")
    assert over.value.errno == errno.EPIPE


def test_vs_08_close_says_shutdown_and_waits_for_rst() -> None:
    """close() sends what is left, then SHUTDOWN with both flags, and is over at RST."""
    world = ScriptedWorld()
    connection = world.connected()
    connection.write(b"bye")
    connection.close()
    world.turn()
    assert [(packet[5], packet[6]) for packet in world.guest.take()] == [(Op.RW, 0), (Op.SHUTDOWN, 3)]
    assert state(connection) is VsockState.CLOSING
    assert world.feed(Op.RST) == []
    assert state(connection) is VsockState.CLOSED
    assert not world.port.connections
    assert world.wait(CLOSE_TIMEOUT) == []


def test_vs_08_close_ends_with_our_rst_after_eight_seconds() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    connection.close()
    assert world.flush() == ["SHUTDOWN"]
    assert world.feed(Op.RW, payload=b"ignored") == []
    assert world.wait(CLOSE_TIMEOUT - 1) == []
    assert world.wait(1) == ["RST"]
    assert state(connection) is VsockState.CLOSED
    assert not world.port.connections


def test_two_closes_that_cross_end_at_once() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    connection.close()
    world.flush()
    assert world.feed(Op.SHUTDOWN, flags=3) == ["RST"]
    assert state(connection) is VsockState.CLOSED


def test_close_with_linger_zero_resets() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    connection.write(b"lost")
    connection.close(0)
    assert world.flush() == ["RST"]
    connection.abort()
    assert world.flush() == []


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, Op.INVALID, 8, 99])
def test_vs_11_what_has_no_place_in_a_connected_stream_resets_it(op: int) -> None:
    """VS-11: a duplicate REQUEST, a second RESPONSE, unknown operations."""
    world = ScriptedWorld()
    connection = world.connected()
    world.feed(Op.RW, payload=b"before")
    assert world.feed(op) == ["RST"]
    assert (connection.state, connection.take_error()) == (VsockState.CLOSED, errno.ECONNRESET)
    assert connection.read(10) == b"before"


def test_a_request_for_a_port_we_are_still_closing_is_refused_and_frees_it() -> None:
    world = ScriptedWorld()
    connection, listener = world.accepted()
    connection.close()
    world.flush()
    assert world.feed(Op.REQUEST) == ["RST"]
    assert world.feed(Op.REQUEST) == ["RESPONSE"]
    assert listener.ready == 1
