"""Opening, bytes both ways, and ports, against a scripted guest: virtio 1.3 section 5.10.6, rows VS-01 to VS-13."""

from __future__ import annotations

import errno

import pytest

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.testing.vsock import GUEST_CID
from stack.tests.vsock_world import GUEST_PORT, HOST_PORT, ScriptedWorld, state
from stack.vsock import VsockState
from stack.vsock.connection import CONNECT_TIMEOUT
from stack.wire.vsock import CID_HOST, PORT_ANY, TYPE_SEQPACKET, TYPE_STREAM, Op

# -- opening ------------------------------------------------------------------------------------------------------


def test_vs_05_12_a_request_to_a_listener_is_answered_with_response_and_our_buffer() -> None:
    world = ScriptedWorld()
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
    world = ScriptedWorld()
    world.guest.feed(op, HOST_PORT, GUEST_PORT, payload=b"x" if op == Op.RW else b"")
    world.turn()
    assert world.guest.take() == [(CID_HOST, GUEST_CID, HOST_PORT, GUEST_PORT, TYPE_STREAM, Op.RST, 0, 0, 0, b"")]


def test_vs_11_a_request_without_listener_is_refused() -> None:
    assert ScriptedWorld().feed(Op.REQUEST) == ["RST"]


def test_vs_10_11_unknown_operations_are_refused() -> None:
    world = ScriptedWorld()
    assert world.feed(8) == ["RST"]
    assert world.feed(0xFFFF) == ["RST"]


def test_vs_11_rst_is_never_answered_with_rst() -> None:
    """Two engines that did would go on for ever (Cloud Hypervisor 8692)."""
    world = ScriptedWorld()
    assert world.feed(Op.RST) == []
    assert world.feed(Op.RST, kind=TYPE_SEQPACKET) == []
    assert world.feed(Op.RST, dst_cid=77) == []
    connection, _ = world.accepted()
    assert world.feed(Op.RST) == []
    assert state(connection) is VsockState.CLOSED
    assert world.feed(Op.RST) == []


def test_vs_11_types_we_do_not_speak_are_refused_in_their_own_type() -> None:
    """A SEQPACKET request meets the stream listener of the same port, but not its stream."""
    world = ScriptedWorld()
    world.engine.listen(HOST_PORT)
    world.guest.feed(Op.REQUEST, HOST_PORT, GUEST_PORT, kind=TYPE_SEQPACKET)
    world.turn()
    (packet,) = world.guest.take()
    assert (packet[4], packet[5]) == (TYPE_SEQPACKET, Op.RST)
    assert world.port.drops["type"] == 1


def test_vs_11_other_destinations_are_refused_and_other_sources_ignored() -> None:
    """Reference section 4.4: a guest must not wait for a time-out, nor speak for others."""
    world = ScriptedWorld()
    world.engine.listen(HOST_PORT)
    world.guest.feed(Op.REQUEST, HOST_PORT, GUEST_PORT, dst_cid=99)
    world.turn()
    assert world.guest.take() == [(99, GUEST_CID, HOST_PORT, GUEST_PORT, TYPE_STREAM, Op.RST, 0, 0, 0, b"")]
    assert world.feed(Op.REQUEST, src_cid=4) == []
    assert world.port.drops["source-cid"] == 1


def test_vs_01_13_connect_sends_a_request_with_credit_and_is_done_by_response() -> None:
    world = ScriptedWorld()
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
    world = ScriptedWorld()
    connection = world.engine.connect(GUEST_CID, GUEST_PORT, bound=world.engine.bind(HOST_PORT))
    world.flush()
    assert world.feed(op) == answer
    assert (connection.state, connection.take_error(), connection.take_error()) == (VsockState.CLOSED, error, 0)
    assert world.wait(CONNECT_TIMEOUT) == []


def test_vs_04_a_request_nobody_answers_times_out() -> None:
    """VS-04: two seconds unless told otherwise, and its late answer meets RST."""
    world = ScriptedWorld()
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
    world = ScriptedWorld()
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
    world = ScriptedWorld()
    world.engine.connect(GUEST_CID, GUEST_PORT).close()
    assert world.flush() == []
    connection = world.engine.connect(GUEST_CID, GUEST_PORT)
    assert world.flush() == ["REQUEST"]
    connection.close()
    assert world.flush() == ["RST"]


# -- data ---------------------------------------------------------------------------------------------------------


def test_bytes_both_ways() -> None:
    world = ScriptedWorld()
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
    world = ScriptedWorld()
    connection = world.connected()
    for _ in range(100):
        connection.write(b"0123456789")
    world.turn()
    assert [len(packet[9]) for packet in world.guest.take()] == [1000]
    connection.write(bytes(150_000))
    world.turn()
    assert [len(packet[9]) for packet in world.guest.take()] == [65536, 65536, 18928]


def test_a_mutable_buffer_is_copied_when_written() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    data = bytearray(b"a" * 10_000)
    connection.write(data)
    data[:] = b"b" * 10_000
    world.turn()
    assert world.guest.take()[0][9] == b"a" * 10_000


def test_an_empty_data_packet_means_nothing() -> None:
    """Reference section 4.4: RW with len 0."""
    world = ScriptedWorld()
    connection = world.connected()
    assert world.feed(Op.RW) == []
    assert (connection.readable, connection.eof, connection.connected) == (0, False, True)


def test_vs_11_payload_on_a_control_packet_is_ignored() -> None:
    world = ScriptedWorld()
    connection = world.connected()
    assert world.feed(Op.CREDIT_UPDATE, payload=b"stray") == []
    assert connection.readable == 0
    assert connection.connected


# -- ports --------------------------------------------------------------------------------------------------------


def test_vs_03_if_06_ports_are_taken_once_and_free_after_the_last_holder() -> None:
    """VS-03, IF-06."""
    engine = ScriptedWorld().engine
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
    world = ScriptedWorld()
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
