"""`NetDevice.forward`: frames from one guest's card to another's, and what keeps them from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from vhost_user.driver import NetDriver, NetFrame
from vhost_user.net import NetDevice
from vhost_user.tests.device_rig import ether, ipv4, net_rig, tcp
from vhost_user.virtqueue import OWED_LOOKS

ONE, TWO = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
KEY = TWO + ONE


def frame(number: int = 0, size: int = 60) -> bytes:
    return KEY + b"\x88\xb5" + bytes([number]) * (size - 14)


@contextmanager
def pair(queues: int = 1, *, workers: int = 0) -> Iterator[tuple[NetDevice, NetDriver, NetDevice, NetDriver]]:
    """Two cards, and a route from the first to the second."""
    with ExitStack() as stack:
        cards = [NetDevice(queues=queues, workers=workers) for _ in range(2)]
        (one, sender), (two, receiver) = (stack.enter_context(net_rig(card, queues=queues)) for card in cards)
        assert one.route(KEY, two, 100, "token")
        yield one, sender, two, receiver


def test_frames_with_a_route_are_moved_and_the_others_left() -> None:
    with pair() as (one, sender, two, receiver):
        sender.send([frame(1), frame(2), b"\xff" * 6 + frame()[6:], frame(3)])
        assert one.forward(256, 0, ()) == ([("token", 2)], True)
        assert [bytes(got.data) for got in receiver.recv()] == [frame(1), frame(2)]
        assert one.forward(256, 0, ()) == ([], True)
        assert [bytes(got[0][:6]) for got in one.receive(1)] == [b"\xff" * 6]
        assert one.forward(256, 0, ()) == ([("token", 1)], False)
        assert one.forward(256, 0, ()) == ([], False)
        assert (one.frames_in, one.bytes_in, two.frames_out) == (4, 240, 3)


def test_looks_for_frames_with_a_route_count_for_a_call_that_is_owed() -> None:
    """Where all there is to move has a route, nobody looks by `receive` any more."""
    with pair() as (one, sender, _, _):
        one.suppress()
        ring = sender.tx()
        ring.arm()
        ring.drain_calls()
        sender.send([ether(0x0800, ipv4(6, tcp(b"")))])
        assert len(one.receive(1)) == 1
        for _ in range(OWED_LOOKS):
            assert ring.drain_calls() == 0
            assert one.forward(256, 0, ()) == ([], False)
        assert ring.drain_calls() == 1


def test_a_route_ends_at_its_deadline_or_when_it_is_taken_back() -> None:
    with pair() as (one, sender, two, _):
        sender.send([frame()] * 3)
        assert one.forward(1, 100, ()) == ([("token", 1)], False)
        assert one.forward(1, 101, ()) == ([], True)
        assert one.route(KEY, two, 200, "again")
        assert one.forward(1, 101, ()) == ([("again", 1)], False)
        one.unroute(KEY)
        one.unroute(KEY)
        assert one.forward(1, 101, ()) == ([], True)
        assert len(one.receive(256)) == 1


def test_what_cannot_be_a_destination_is_refused() -> None:
    with pair() as (one, _, two, _):
        assert not one.route(KEY, one, 1, None)
        assert not one.route(KEY, object(), 1, None)
        for number in range(511):
            assert one.route(number.to_bytes(12, "big"), two, 1, None)
        assert not one.route(b"one too many", two, 1, None)
        one.unroute(KEY)
        assert one.route(b"as many now.", two, 1, None)


def test_a_closed_stalled_or_unplugged_device_gets_nothing() -> None:
    with pair() as (one, sender, two, receiver):
        sender.send([frame()])
        assert one.forward(256, 0, (two,)) == ([], True)
        with two.faults.lasting("rx.stall"):
            assert one.forward(256, 0, ()) == ([], True)
        receiver.stop()
        assert one.forward(256, 0, ()) == ([], True)  # its rings are known to have stopped though it was not refreshed
        two.refresh()
        assert one.forward(256, 0, ()) == ([], True)
        receiver.start()
        two.refresh()
        assert one.forward(256, 0, ()) == ([("token", 1)], False)
        receiver.reset()
        receiver.start()
        sender.send([frame()])
        two.refresh()
        assert one.forward(256, 0, ()) == ([("token", 1)], False)
        two.close()
        sender.send([frame()])
        assert one.forward(256, 0, ()) == ([], True)


def test_a_sender_that_stops_holds_or_goes_away_sends_nothing() -> None:
    with pair() as (one, sender, _, receiver):
        sender.send([frame()])
        with one.faults.lasting("tx.hold"):
            assert one.forward(256, 0, ())[0] == []
        sender.stop()
        assert one.forward(256, 0, ())[0] == []
        sender.start()
        assert one.forward(256, 0, ()) == ([("token", 1)], False)
        assert len(receiver.recv()) == 1
        sender.close()
        one.close()
        assert one.forward(256, 0, ())[0] == []


def test_a_full_ring_leaves_the_frame_for_the_long_way() -> None:
    with ExitStack() as stack:
        one, sender = stack.enter_context(net_rig())
        two, receiver = stack.enter_context(net_rig(rx_size=4))
        one.route(KEY, two, 100, None)
        sender.send([frame(n) for n in range(6)])
        assert one.forward(256, 0, ()) == ([(None, 4)], True)
        assert one.forward(256, 0, ()) == ([], True)
        assert len(receiver.recv()) == 4
        assert one.forward(256, 0, ()) == ([(None, 2)], False)


def test_a_broken_receiving_ring_is_reported_once_and_costs_the_sender_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pair() as (one, sender, two, receiver):
        receiver.rx().set_avail_index(1000)
        sender.send([frame()])
        assert one.forward(256, 0, ()) == ([], True)
        assert two.rings[0].broken
        assert not one.rings[1].broken
        assert receiver.rx().drain_errors() == 1
        assert one.forward(256, 0, ()) == ([], True)
        assert len(one.receive(256)) == 1
        assert caplog.text.count("stopped") == 1


def test_a_broken_sending_ring_is_the_senders() -> None:
    with pair() as (one, sender, two, _):
        sender.tx().set_avail_index(1000)
        assert one.forward(256, 0, ()) == ([], True)
        assert one.rings[1].broken
        assert not two.rings[0].broken


def test_a_guest_that_negotiates_anew_gets_what_it_takes_now() -> None:
    """The sender still has its old routes; the header is made for the features of now."""
    with pair() as (one, sender, two, receiver):
        sender.send([sender_frame := frame(1)])
        one.forward(256, 0, ())
        assert receiver.recv()[0].num_buffers == 1
        receiver.reset()
        receiver.features &= ~(1 << 1)  # GUEST_CSUM
        receiver.start()
        two.refresh()
        sender.send([NetFrame(sender_frame, 1, csum_start=14, csum_offset=2)])
        assert one.forward(256, 0, ()) == ([("token", 1)], False)
        got = receiver.recv()[0]
        assert (got.flags, got.csum_start, got.csum_offset) == (0, 0, 0)
        assert bytes(got.data) != sender_frame


def test_pairs_of_both_cards_are_used_and_a_flow_keeps_its_pair() -> None:
    with pair(queues=2, workers=1) as (one, sender, two, receiver):
        for number in range(20):
            sender.send([frame(number)], queue=number % 2)
        told, left = one.forward(256, 0, ())
        assert sum(count for _, count in told) == 20
        assert not left
        # One flow, by its addresses: all in one ring.
        assert sorted(len(receiver.recv(queue=queue)) for queue in (0, 1)) == [0, 20]
        assert two.frames_out == 20
