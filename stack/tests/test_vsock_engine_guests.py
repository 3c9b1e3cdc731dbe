"""Guests come, pause, start anew and go, and what becomes of their connections: row VS-14."""

from __future__ import annotations

import errno

import pytest

from stack.scheduler import NS_PER_S
from stack.testing.vsock import GUEST_CID, ScriptedGuest
from stack.tests.vsock_world import GUEST_PORT, HOST_PORT, ScriptedWorld, state
from stack.vsock import VsockState
from stack.wire.vsock import Op


def test_vs_14_a_driver_reset_ends_connections_and_keeps_listeners() -> None:
    """A driver that starts anew: every connection is ECONNRESET, listeners stay."""
    world = ScriptedWorld()
    connection, listener = world.accepted()
    pending = world.engine.connect(GUEST_CID, 9)
    world.flush()
    world.feed(Op.RW, payload=b"rest")
    connection.write(b"never sent")
    world.guest.generation += 1
    world.guest.changed()
    assert (connection.take_error(), pending.take_error()) == (errno.ECONNRESET, errno.ECONNRESET)
    assert world.flush() == [], "the guest has forgotten: nobody to tell"
    assert connection.read(10) == b"rest"
    assert world.feed(Op.REQUEST) == ["RESPONSE"]
    assert listener.ready == 1


def test_a_guest_that_pauses_keeps_its_connections() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    world.guest.carrier = False
    world.guest.changed()
    connection.write(b"later")
    assert world.flush() == []
    assert world.wait(3600 * NS_PER_S) == [], "however long"
    world.guest.carrier = True
    world.guest.changed()
    world.turn()
    assert [bytes(packet[9]) for packet in world.guest.take()] == [b"later"]
    assert connection.connected


def test_a_guest_that_left_takes_its_connections_along_but_not_requests_it_never_saw() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    world.guest.carrier = False
    world.guest.changed()
    unseen = world.engine.connect(GUEST_CID, 7)
    world.guest.generation += 1
    world.guest.changed()
    assert (state(connection), connection.take_error()) == (VsockState.CLOSED, errno.ECONNRESET)
    world.guest.carrier = True
    world.guest.changed()
    assert world.flush() == ["REQUEST"]
    assert state(unseen) is VsockState.CONNECTING


def test_connecting_before_the_guest_is_up_sends_the_request_when_it_is() -> None:
    world = ScriptedWorld()
    world.guest.carrier = False
    world.guest.changed()
    world.engine.connect(GUEST_CID, GUEST_PORT)
    assert world.flush() == []
    world.guest.carrier = True
    world.guest.changed()
    assert world.flush() == ["REQUEST"]


def test_a_guest_is_removed_and_another_takes_its_cid() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    with pytest.raises(ValueError, match="CID 3 already"):
        world.engine.add_guest(ScriptedGuest())
    assert world.engine.remove_guest(GUEST_CID) is world.port
    assert world.engine.remove_guest(GUEST_CID) is None
    assert connection.take_error() == errno.ECONNRESET
    world.guest.feed(Op.REQUEST, HOST_PORT, GUEST_PORT)
    assert world.port.service(8) == 0
    assert world.port.fileno() == -1
    world.engine.add_guest(ScriptedGuest())
    world.engine.listen(1)
    world.engine.close()
    world.engine.close()
    assert not world.engine.listeners
    assert not world.engine.guests
    assert world.engine.reserved == 0
