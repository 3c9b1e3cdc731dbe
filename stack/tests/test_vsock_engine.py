"""The vsock engine against a scripted guest: virtio 1.3 section 5.10.6, rows VS-03..VS-13, reference section 4.4."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from stack.errors import NetError
from stack.scheduler import NS_PER_S, Scheduler
from stack.testing.vsock import GUEST_CID, ScriptedGuest
from stack.vsock import VsockConnection, VsockEngine, VsockListener, VsockState
from stack.vsock.connection import CLOSE_TIMEOUT, CONNECT_TIMEOUT, LARGEST_BUFFER
from stack.vsock.guest import CONNECTION_LIMIT, REPLY_LIMIT
from stack.wire.vsock import CID_HOST, PORT_ANY, TYPE_SEQPACKET, TYPE_STREAM, Op

HOST_PORT, GUEST_PORT = 5000, 1234


class World:
    """An engine with one scripted guest, and its clock."""

    def __init__(self, **engine: Any) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler, **engine)
        self.guest = ScriptedGuest()
        self.port = self.engine.add_guest(self.guest)

    def turn(self) -> None:
        """What a Network does: due timers, packets, deferred work."""
        self.scheduler.run_timers()
        while self.port.service(64):
            pass
        self.scheduler.run_deferred()

    def feed(self, op: int, **fields: Any) -> list[str]:
        """One packet from the guest; the names of what the host sends in answer."""
        fields = {"host_port": HOST_PORT, "guest_port": GUEST_PORT} | fields
        self.guest.feed(op, **fields)
        self.turn()
        return self.guest.ops()

    def wait(self, duration: int) -> list[str]:
        self.scheduler.now += duration
        self.turn()
        return self.guest.ops()

    def flush(self) -> list[str]:
        self.turn()
        return self.guest.ops()

    def accepted(self, *, alloc: int = 1 << 18, buffer: int = 1 << 18) -> tuple[VsockConnection, VsockListener]:
        """A connection the guest opened."""
        listener = self.engine.listen(HOST_PORT, buffer=buffer)
        assert self.feed(Op.REQUEST, alloc=alloc) == ["RESPONSE"]
        connection = listener.accept()
        assert connection is not None
        assert connection.connected
        return connection, listener

    def connected(self, *, alloc: int = 1 << 18) -> VsockConnection:
        """A connection the host opened."""
        bound = self.engine.bind(HOST_PORT)
        connection = self.engine.connect(GUEST_CID, GUEST_PORT, bound=bound)
        bound.release()
        assert self.flush() == ["REQUEST"]
        assert self.feed(Op.RESPONSE, alloc=alloc) == []
        assert connection.connected
        return connection


def state(connection: VsockConnection) -> VsockState:
    """Looked at anew each time: type checkers remember what an attribute was compared with."""
    return connection.state


# -- opening ------------------------------------------------------------------------------------------------------


def test_vs_05_12_a_request_to_a_listener_is_answered_with_response_and_our_buffer() -> None:
    world = World()
    listener = world.engine.listen(HOST_PORT)
    events: list[int] = []
    listener.on_event = lambda: events.append(1)
    world.guest.feed(Op.REQUEST, HOST_PORT, GUEST_PORT)
    world.turn()
    assert world.guest.take() == [
        (CID_HOST, GUEST_CID, HOST_PORT, GUEST_PORT, TYPE_STREAM, Op.RESPONSE, 0, 1 << 18, 0, b"")
    ]
    assert (events, listener.ready) == ([1], 1)
    connection = listener.accept()
    assert connection is not None
    assert (connection.local, connection.remote) == ((CID_HOST, HOST_PORT), (GUEST_CID, GUEST_PORT))
    assert listener.accept() is None


@pytest.mark.parametrize("op", [op for op in Op if op not in (Op.RST, Op.REQUEST)])
def test_vs_11_a_packet_of_no_connection_is_answered_with_rst(op: Op) -> None:
    """Addresses swapped, the same type, no credit (5.10.6.4, VS-11)."""
    world = World()
    world.guest.feed(op, HOST_PORT, GUEST_PORT, payload=b"x" if op == Op.RW else b"")
    world.turn()
    assert world.guest.take() == [(CID_HOST, GUEST_CID, HOST_PORT, GUEST_PORT, TYPE_STREAM, Op.RST, 0, 0, 0, b"")]


def test_vs_11_a_request_without_listener_is_refused() -> None:
    assert World().feed(Op.REQUEST) == ["RST"]


def test_vs_10_11_unknown_operations_are_refused() -> None:
    world = World()
    assert world.feed(8) == ["RST"]
    assert world.feed(0xFFFF) == ["RST"]


def test_vs_11_rst_is_never_answered_with_rst() -> None:
    """Two engines that did would go on for ever (Cloud Hypervisor 8692)."""
    world = World()
    assert world.feed(Op.RST) == []
    assert world.feed(Op.RST, kind=TYPE_SEQPACKET) == []
    assert world.feed(Op.RST, dst_cid=77) == []
    connection, _ = world.accepted()
    assert world.feed(Op.RST) == []
    assert state(connection) is VsockState.CLOSED
    assert world.feed(Op.RST) == []


def test_vs_11_types_we_do_not_speak_are_refused_in_their_own_type() -> None:
    """A SEQPACKET request meets the stream listener of the same port, but not its stream."""
    world = World()
    world.engine.listen(HOST_PORT)
    world.guest.feed(Op.REQUEST, HOST_PORT, GUEST_PORT, kind=TYPE_SEQPACKET)
    world.turn()
    (packet,) = world.guest.take()
    assert (packet[4], packet[5]) == (TYPE_SEQPACKET, Op.RST)
    assert world.port.drops["type"] == 1


def test_vs_11_other_destinations_are_refused_and_other_sources_ignored() -> None:
    """Reference section 4.4: a guest must not wait for a time-out, nor speak for others."""
    world = World()
    world.engine.listen(HOST_PORT)
    world.guest.feed(Op.REQUEST, HOST_PORT, GUEST_PORT, dst_cid=99)
    world.turn()
    assert world.guest.take() == [(99, GUEST_CID, HOST_PORT, GUEST_PORT, TYPE_STREAM, Op.RST, 0, 0, 0, b"")]
    assert world.feed(Op.REQUEST, src_cid=4) == []
    assert world.port.drops["source-cid"] == 1


def test_vs_01_13_connect_sends_a_request_with_credit_and_is_done_by_response() -> None:
    world = World()
    connection = world.engine.connect(GUEST_CID, GUEST_PORT)
    events: list[int] = []
    connection.on_event = lambda: events.append(1)
    world.turn()
    (packet,) = world.guest.take()
    assert packet[:2] + packet[3:] == (CID_HOST, GUEST_CID, GUEST_PORT, TYPE_STREAM, Op.REQUEST, 0, 1 << 18, 0, b"")
    assert packet[2] >= 1024, "an ephemeral port"
    assert connection.local == (CID_HOST, packet[2])
    assert state(connection) is VsockState.CONNECTING
    with pytest.raises(NetError) as refused:
        connection.write(b"early")
    assert refused.value.errno == errno.ENOTCONN
    assert world.feed(Op.RESPONSE, host_port=packet[2]) == []
    assert connection.connected
    assert events
    assert world.wait(CONNECT_TIMEOUT) == [], "its time limit is over"
    assert connection.connected


@pytest.mark.parametrize(
    ("op", "error", "answer"),
    [
        (Op.RST, errno.ECONNRESET, []),
        (Op.SHUTDOWN, errno.EPROTO, ["RST"]),
        (Op.RW, errno.EPROTO, ["RST"]),
        (Op.REQUEST, errno.EPROTO, ["RST"]),
        (Op.INVALID, errno.EPROTO, ["RST"]),
    ],
)
def test_vs_13_what_a_request_may_meet(op: Op, error: int, answer: list[str]) -> None:
    """VS-13: RST means refused; anything but RESPONSE is a breach."""
    world = World()
    connection = world.engine.connect(GUEST_CID, GUEST_PORT, bound=world.engine.bind(HOST_PORT))
    world.flush()
    assert world.feed(op) == answer
    assert (connection.state, connection.take_error(), connection.take_error()) == (VsockState.CLOSED, error, 0)
    assert world.wait(CONNECT_TIMEOUT) == []


def test_vs_04_a_request_nobody_answers_times_out() -> None:
    """VS-04: two seconds unless told otherwise, and its late answer meets RST."""
    world = World()
    connection = world.engine.connect(GUEST_CID, GUEST_PORT, bound=world.engine.bind(HOST_PORT))
    other = world.engine.connect(GUEST_CID, GUEST_PORT, timeout=NS_PER_S // 2)
    assert world.flush() == ["REQUEST", "REQUEST"]
    world.wait(NS_PER_S // 2)
    assert other.take_error() == errno.ETIMEDOUT
    world.wait(CONNECT_TIMEOUT - NS_PER_S // 2 - 1)
    assert state(connection) is VsockState.CONNECTING
    world.wait(1)
    assert connection.take_error() == errno.ETIMEDOUT
    assert world.feed(Op.RESPONSE) == ["RST"]
    assert not world.port.connections


def test_connecting_to_nobody_and_twice_from_one_port_fails_at_once() -> None:
    world = World()
    with pytest.raises(NetError, match="no guest with vsock CID 99") as nobody:
        world.engine.connect(99, 1)
    assert nobody.value.errno == errno.ENODEV
    bound = world.engine.bind(HOST_PORT)
    world.engine.connect(GUEST_CID, GUEST_PORT, bound=bound)
    with pytest.raises(NetError) as twice:
        world.engine.connect(GUEST_CID, GUEST_PORT, bound=bound)
    assert twice.value.errno == errno.EADDRINUSE
    world.engine.connect(GUEST_CID, GUEST_PORT + 1, bound=bound)


def test_giving_up_before_anything_was_sent_says_nothing() -> None:
    world = World()
    world.engine.connect(GUEST_CID, GUEST_PORT).close()
    assert world.flush() == []
    connection = world.engine.connect(GUEST_CID, GUEST_PORT)
    assert world.flush() == ["REQUEST"]
    connection.close()
    assert world.flush() == ["RST"]


# -- data ---------------------------------------------------------------------------------------------------------


def test_bytes_both_ways() -> None:
    world = World()
    connection = world.connected()
    assert world.feed(Op.RW, payload=b"hello ") == []
    world.feed(Op.RW, payload=b"world")
    assert connection.readable == 11
    assert connection.peek(5) == b"hello"
    assert connection.peek(5, 6) == b"world"
    assert connection.read(6) == b"hello "
    target = bytearray(10)
    assert connection.read_into(memoryview(target)) == 5
    assert target[:5] == b"world"
    assert connection.read(10) == b""
    assert not connection.eof
    assert connection.write(b"answer") == 6
    world.turn()
    assert [packet[5:] for packet in world.guest.take()] == [(Op.RW, 0, 1 << 18, 11, b"answer")], "with fresh credit"


def test_small_writes_of_one_turn_leave_as_one_packet_and_large_ones_as_64_kib() -> None:
    world = World()
    connection = world.connected()
    for _ in range(100):
        connection.write(b"0123456789")
    world.turn()
    assert [len(packet[9]) for packet in world.guest.take()] == [1000]
    connection.write(bytes(150_000))
    world.turn()
    assert [len(packet[9]) for packet in world.guest.take()] == [65536, 65536, 18928]


def test_a_mutable_buffer_is_copied_when_written() -> None:
    world = World()
    connection = world.connected()
    data = bytearray(b"a" * 10_000)
    connection.write(data)
    data[:] = b"b" * 10_000
    world.turn()
    assert world.guest.take()[0][9] == b"a" * 10_000


def test_an_empty_data_packet_means_nothing() -> None:
    """Reference section 4.4: RW with len 0."""
    world = World()
    connection = world.connected()
    assert world.feed(Op.RW) == []
    assert (connection.readable, connection.eof, connection.connected) == (0, False, True)


def test_vs_11_payload_on_a_control_packet_is_ignored() -> None:
    world = World()
    connection = world.connected()
    assert world.feed(Op.CREDIT_UPDATE, payload=b"stray") == []
    assert connection.readable == 0
    assert connection.connected


# -- credit -------------------------------------------------------------------------------------------------------


def test_vs_12_no_more_is_sent_than_the_peer_granted() -> None:
    world = World()
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
    world = World()
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
    world = World()
    connection = world.connected(alloc=1000)
    connection.write(bytes(800))
    world.flush()
    world.feed(Op.CREDIT_UPDATE, alloc=100)
    assert connection.writable == 0
    assert connection.write(b"x") == 0
    world.feed(Op.CREDIT_UPDATE, alloc=100, forwarded=750)
    assert connection.writable == 50


def test_a_peer_that_claims_to_have_consumed_more_than_was_sent_is_reset() -> None:
    world = World()
    connection = world.connected()
    connection.write(bytes(100))
    world.flush()
    assert world.feed(Op.CREDIT_UPDATE, forwarded=100) == []
    assert world.feed(Op.CREDIT_UPDATE, forwarded=101) == ["RST"]
    assert (connection.state, connection.take_error()) == (VsockState.CLOSED, errno.ECONNRESET)


def test_an_older_count_that_was_overtaken_is_harmless() -> None:
    """A Linux guest prepares packets on several processors."""
    world = World()
    connection = world.connected(alloc=1000)
    connection.write(bytes(1000))
    world.flush()
    world.feed(Op.CREDIT_UPDATE, alloc=1000, forwarded=600)
    assert world.feed(Op.CREDIT_UPDATE, alloc=1000, forwarded=500) == []
    assert connection.writable == 600


def test_vs_11_12_a_peer_that_sends_more_than_we_granted_is_reset_and_what_it_sent_before_stays() -> None:
    """Never dropped in silence: that would corrupt the stream (reference section 4.4)."""
    world = World()
    connection, _ = world.accepted(buffer=1000)
    assert world.feed(Op.RW, payload=b"a" * 1000) == []
    assert world.feed(Op.RW, payload=b"b") == ["RST"]
    assert (connection.state, connection.take_error()) == (VsockState.CLOSED, errno.ECONNRESET)
    assert connection.read(2000) == b"a" * 1000
    assert connection.eof


def test_what_was_granted_stays_granted_when_the_buffer_shrinks() -> None:
    world = World()
    connection = world.connected()
    connection.set_buffer(1000)
    assert world.flush() == ["CREDIT_UPDATE"]
    assert world.feed(Op.RW, payload=bytes(65536)) == []
    assert connection.readable == 65536
    assert connection.connected


def test_vs_12_a_credit_update_leaves_when_less_than_64_kib_are_unreported() -> None:
    """As Linux (virtio_transport_stream_do_dequeue): not for every read, but before the peer stalls."""
    world = World()
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
    world = World()
    connection, _ = world.accepted(buffer=1000)
    world.feed(Op.RW, payload=bytes(10))
    connection.read(5)
    assert world.flush() == ["CREDIT_UPDATE"]


def test_a_reader_that_waits_for_more_than_is_granted_has_the_peer_told() -> None:
    """SO_RCVLOWAT: otherwise both would wait for the other."""
    world = World()
    connection, _ = world.accepted(buffer=256 << 10)
    world.feed(Op.RW, payload=bytes(64 << 10))
    connection.read(64 << 10)
    assert world.flush() == []
    connection.set_wanted(200 << 10)
    assert world.flush() == ["CREDIT_UPDATE"]


def test_vs_12_a_credit_request_is_answered() -> None:
    world = World()
    world.connected()
    assert world.feed(Op.CREDIT_REQUEST) == ["CREDIT_UPDATE"]


def test_data_carries_the_credit_no_update_leaves_beside_it() -> None:
    world = World()
    connection, _ = world.accepted(buffer=1000)
    world.feed(Op.RW, payload=bytes(500))
    connection.read(500)
    connection.write(b"echo")
    assert world.flush() == ["RW"]


# -- the end ------------------------------------------------------------------------------------------------------


def test_vs_13_half_close_by_the_guest() -> None:
    """VS-13: its SEND bit is our end of stream; we may go on sending."""
    world = World()
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
    world = World()
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
    world = World()
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
    world = World()
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
    world = World()
    connection, _ = world.accepted()
    world.feed(Op.RW, payload=b"unread")
    world.feed(Op.SHUTDOWN, flags=3)
    connection.close()
    assert world.flush() == ["RST"]


def test_a_late_answer_does_not_reset_the_next_connection_of_the_same_ports() -> None:
    world = World()
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
    world = World()
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
    world = World()
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
    world = World()
    connection = world.connected()
    connection.close()
    assert world.flush() == ["SHUTDOWN"]
    assert world.feed(Op.RW, payload=b"ignored") == []
    assert world.wait(CLOSE_TIMEOUT - 1) == []
    assert world.wait(1) == ["RST"]
    assert state(connection) is VsockState.CLOSED
    assert not world.port.connections


def test_two_closes_that_cross_end_at_once() -> None:
    world = World()
    connection = world.connected()
    connection.close()
    world.flush()
    assert world.feed(Op.SHUTDOWN, flags=3) == ["RST"]
    assert state(connection) is VsockState.CLOSED


def test_close_with_linger_zero_resets() -> None:
    world = World()
    connection = world.connected()
    connection.write(b"lost")
    connection.close(0)
    assert world.flush() == ["RST"]
    connection.abort()
    assert world.flush() == []


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, Op.INVALID, 8, 99])
def test_vs_11_what_has_no_place_in_a_connected_stream_resets_it(op: int) -> None:
    """VS-11: a duplicate REQUEST, a second RESPONSE, unknown operations."""
    world = World()
    connection = world.connected()
    world.feed(Op.RW, payload=b"before")
    assert world.feed(op) == ["RST"]
    assert (connection.state, connection.take_error()) == (VsockState.CLOSED, errno.ECONNRESET)
    assert connection.read(10) == b"before"


def test_a_request_for_a_port_we_are_still_closing_is_refused_and_frees_it() -> None:
    world = World()
    connection, listener = world.accepted()
    connection.close()
    world.flush()
    assert world.feed(Op.REQUEST) == ["RST"]
    assert world.feed(Op.REQUEST) == ["RESPONSE"]
    assert listener.ready == 1


# -- floods and bounds --------------------------------------------------------------------------------------------


def test_vs_05_a_full_accept_queue_refuses() -> None:
    """VS-05; backlog + 1 wait, as on Linux."""
    world = World()
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
    world = World()
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
    world = World(memory_limit=1 << 20)
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
    world = World()
    connection = world.engine.connect(GUEST_CID, 1, buffer=1 << 62)
    assert connection.rcvbuf == LARGEST_BUFFER
    connection.close()
    assert world.engine.reserved == 0


def test_single_bytes_cost_the_memory_of_bytes() -> None:
    world = World()
    connection = world.connected()
    for _ in range(100_000):
        world.guest.feed(Op.RW, HOST_PORT, GUEST_PORT, payload=b"x")
    world.turn()
    assert connection.readable == 100_000
    assert len(connection._incoming._pieces) <= 3
    assert connection.read(200_000) == b"x" * 100_000


def test_the_transmit_ring_is_drained_while_the_receive_ring_is_full() -> None:
    """The deadlock rule: a guest that writes first and reads later gets everything through, in bounded memory."""
    world = World()
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
    world = World()
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
    world = World()
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


# -- the guest comes and goes -------------------------------------------------------------------------------------


def test_vs_14_a_driver_reset_ends_connections_and_keeps_listeners() -> None:
    """A driver that starts anew: every connection is ECONNRESET, listeners stay."""
    world = World()
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
    world = World()
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
    world = World()
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
    world = World()
    world.guest.carrier = False
    world.guest.changed()
    world.engine.connect(GUEST_CID, GUEST_PORT)
    assert world.flush() == []
    world.guest.carrier = True
    world.guest.changed()
    assert world.flush() == ["REQUEST"]


def test_a_guest_is_removed_and_another_takes_its_cid() -> None:
    world = World()
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


def test_the_port_is_a_source() -> None:
    world = World()
    world.port.suppress()
    assert not world.guest.armed
    world.guest.feed(Op.RST, 1, 1)
    assert world.port.arm()
    ready: list[int] = []
    world.port.on_ready = lambda: ready.append(1)
    world.guest.changed()
    assert ready == [1]


# -- ports --------------------------------------------------------------------------------------------------------


def test_vs_03_if_06_ports_are_taken_once_and_free_after_the_last_holder() -> None:
    """VS-03, IF-06."""
    engine = World().engine
    bound = engine.bind(HOST_PORT)
    with pytest.raises(NetError) as taken:
        engine.bind(HOST_PORT)
    assert taken.value.errno == errno.EADDRINUSE
    bound.retain()
    bound.release()
    with pytest.raises(NetError):
        engine.bind(HOST_PORT)
    bound.release()
    bound.release()
    engine.bind(HOST_PORT).release()
    with pytest.raises(NetError) as reserved:
        engine.bind(1023, privileged=False)
    assert reserved.value.errno == errno.EACCES
    ports = {engine.bind(PORT_ANY).port for _ in range(100)}
    assert len(ports) == 100
    assert all(1024 <= port < PORT_ANY for port in ports)


def test_a_port_is_listened_to_once_and_accepted_connections_do_not_hold_it() -> None:
    world = World()
    connection, listener = world.accepted()
    with pytest.raises(NetError):
        world.engine.listen(HOST_PORT)
    bound = listener._bound
    with pytest.raises(NetError) as twice:
        world.engine.listen(HOST_PORT, bound=bound)
    assert twice.value.errno == errno.EADDRINUSE
    listener.close()
    again = world.engine.listen(HOST_PORT)
    assert connection.connected
    again.close()


def test_running_out_of_room_while_nobody_polls_asks_to_be_told_of_room() -> None:
    """A user's write() from outside a turn: without this the stream stood still until the guest sent something."""
    world = World()
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
