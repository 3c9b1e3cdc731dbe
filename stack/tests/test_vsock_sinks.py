"""What a stream makes of packets that go straight to a socket: credit, ends, and what the socket refused."""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Sequence

from stack.scheduler import Scheduler
from stack.testing.vsock import GUEST_CID, ScriptedGuest
from stack.vsock import VsockEngine, VsockState
from stack.vsock.straight import SINK_CALLS, STRAIGHT_BYTES, STRAIGHT_BYTES_ALONE
from stack.vsock.transport import VsockRx
from stack.wire.vsock import CID_HOST, TYPE_STREAM, Op

GUEST_PORT, SINK = 1234, 99


class SendingGuest(ScriptedGuest):
    """`ring`: packets as (bytes, buf_alloc, fwd_cnt). The socket takes `room` bytes; `fails`: an errno."""

    def __init__(self) -> None:
        super().__init__()
        self.ring: deque[tuple[int, int, int]] = deque()
        self.room, self.fails = 1 << 30, 0
        self.host_port = 0
        self.limits: list[int] = []
        self.shares: list[int] = []
        self.others: list[int] = []  #: packets in the ring whenever it was emptied the usual way

    def receive(self, budget: int) -> Sequence[VsockRx]:
        self.others.append(len(self.ring))
        return super().receive(budget)

    def next_data(self) -> tuple[int, int, int, int, int] | None:
        return (GUEST_CID, CID_HOST, GUEST_PORT, self.host_port, TYPE_STREAM) if self.ring else None

    def send_on(self, fd: int, limit: int, enough: int) -> tuple[int, int, bytes, int, int]:
        assert fd == SINK
        assert enough > 0
        self.limits.append(limit)
        self.shares.append(enough)
        if self.fails:
            raise OSError(self.fails, "fails")
        size, buf_alloc, fwd_cnt = self.ring[0]
        if size > limit:
            return 0, 0, b"", 0, 0
        if not self.room:
            raise BlockingIOError(errno.EAGAIN, "full")
        self.ring.popleft()
        sent = min(size, self.room)
        self.room -= sent
        return 1, sent, bytes(size - sent), buf_alloc, fwd_cnt


class World:
    def __init__(self, buffer: int = 1 << 18) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler)
        self.guest = SendingGuest()
        self.port = self.engine.add_guest(self.guest)
        self.connection = self.engine.connect(GUEST_CID, GUEST_PORT, buffer=buffer)
        self.guest.host_port = self.connection.local[1]
        self.turn()
        self.guest.feed(Op.RESPONSE, self.guest.host_port, GUEST_PORT)
        self.turn()
        self.guest.take()
        self.events = 0
        self.connection.on_event = self._event
        self.connection.use_sink(SINK)

    def _event(self) -> None:
        self.events += 1

    def turn(self) -> None:
        while self.port.service(64):
            pass
        self.scheduler.run_deferred()

    def send(self, *sizes: int, alloc: int = 1 << 18, forwarded: int = 0) -> None:
        self.guest.ring.extend((size, alloc, forwarded) for size in sizes)
        self.turn()


def test_vs_12_what_goes_straight_counts_as_received_and_consumed() -> None:
    """VS-12: the peer is told as if a reader had taken it at once."""
    world = World()
    world.send(65_536, 65_536, 65_536, 1000)
    credit = world.connection.credit
    assert credit.received == credit.consumed == 3 * 65_536 + 1000
    assert world.guest.limits == [1 << 18, 3 << 16, 2 << 16, 1 << 16]
    assert [(packet[5], packet[8]) for packet in world.guest.take()] == [(Op.CREDIT_UPDATE, credit.consumed)]
    assert world.connection.readable == 0


def test_what_is_more_than_a_turns_share_goes_straight_in_the_next_turn() -> None:
    """Not the usual way, by a copy, in the same one: half of a fast stream did."""
    world = World(buffer=4 * STRAIGHT_BYTES)
    packets = 3 * STRAIGHT_BYTES // 65_536
    world.guest.others.clear()
    world.send(*[65_536] * packets, 1000)
    assert len(world.guest.limits) == packets + 1
    assert set(world.guest.others) == {0}
    assert world.connection.credit.received == 3 * STRAIGHT_BYTES + 1000


def test_a_stream_that_is_alone_moves_half_of_what_several_move_in_a_turn() -> None:
    """Its program reads the one half while the guest writes the other."""
    world = World(buffer=4 * STRAIGHT_BYTES)
    world.send(1000)
    other = world.engine.connect(GUEST_CID, GUEST_PORT + 1, buffer=1 << 18)
    world.turn()
    world.guest.feed(Op.RESPONSE, other.local[1], GUEST_PORT + 1)
    world.turn()
    other.use_sink(SINK)
    world.send(1000)
    assert world.guest.shares == [STRAIGHT_BYTES_ALONE, STRAIGHT_BYTES]


def test_more_than_was_granted_never_goes_straight() -> None:
    world = World(buffer=1000)
    world.send(1001)
    assert world.guest.limits == [1000]
    assert len(world.guest.ring) == 1, "left for the path that judges it"


def test_what_the_socket_did_not_take_is_read_as_usual_and_the_sink_is_over() -> None:
    world = World()
    world.guest.room = 700
    world.send(1000, 500)
    assert world.connection.read(1 << 20) == bytes(300)
    assert len(world.guest.ring) == 1
    assert world.events
    assert not world.port.sinks
    world.guest.room = 500
    world.connection.use_sink(SINK)
    world.turn()
    assert not world.guest.ring
    assert world.connection.credit.received == 1500


def test_a_socket_that_fails_or_is_full_ends_the_sink_and_loses_nothing() -> None:
    for error in (errno.EAGAIN, errno.EPIPE, errno.ECONNRESET, errno.EFAULT):
        world = World()
        world.guest.fails = error
        world.send(1000)
        assert world.events == 1
        assert not world.port.sinks
        assert len(world.guest.ring) == 1
        assert world.connection.credit.received == 0


def test_a_lie_in_packets_that_went_straight_is_a_violation() -> None:
    world = World()
    world.send(1000, forwarded=1)
    assert world.connection.take_error() == errno.ECONNRESET
    assert not world.port.sinks


def test_credit_that_came_with_packets_that_went_straight_wakes_who_waits_for_it() -> None:
    world = World()
    assert world.connection.write(bytes(1 << 18)) == 1 << 18
    world.turn()
    assert world.connection.writable == 0
    world.send(1, forwarded=5000)
    assert world.connection.writable == 5000
    assert world.events == 1


def test_nothing_goes_straight_past_what_waits_or_after_the_end() -> None:
    world = World()
    world.guest.feed(Op.RW, world.guest.host_port, GUEST_PORT, payload=b"first")
    world.turn()
    world.send(100)
    assert world.guest.limits == [], "what came behind another stream's packet, say, goes first"
    world.connection.use_sink(SINK)
    assert not world.port.sinks, "something waits to be read"
    assert world.connection.read(100) == b"first"
    world.guest.ring.clear()
    world.connection.use_sink(SINK)
    world.connection.shutdown_read()
    world.send(100)
    assert not world.port.sinks
    assert world.guest.limits == []


def test_a_sink_ends_with_its_connection() -> None:
    for end in ("close", "abort", "removed"):
        world = World()
        if end == "removed":
            world.engine.remove_guest(GUEST_CID)
        else:
            getattr(world.connection, end)()
        assert not world.port.sinks, end
        assert world.connection.state is not VsockState.CONNECTED


def test_a_guest_that_never_stops_sending_single_bytes_does_not_hold_up_the_others() -> None:
    """A turn has so many system calls, however many packets come while it lasts."""
    world = World()
    world.guest.ring.extend((1, 1 << 18, 0) for _ in range(10 * SINK_CALLS))
    assert world.port.service(64) == SINK_CALLS
    assert len(world.guest.limits) == SINK_CALLS
    world.turn()
    assert world.connection.credit.received == 10 * SINK_CALLS
