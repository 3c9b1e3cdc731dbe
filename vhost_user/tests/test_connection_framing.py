"""Messages out of a byte stream, and who owns which descriptor at every moment (reference section 4.1)."""

from __future__ import annotations

import array
import fcntl
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from vhost_user.connection import Connection, Disconnected
from vhost_user.message import HEADER, ProtocolError, Request, emit_request


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    with theirs:
        yield theirs, connection
        connection.close()


def send(sock: socket.socket, data: bytes, fds: list[int] | None = None) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([data], rights) == len(data)


def open_fds() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


Pair = tuple[socket.socket, Connection]


def test_several_messages_in_one_write_come_out_one_by_one(pair: Pair) -> None:
    peer, connection = pair
    send(peer, emit_request(Request.SET_OWNER) + emit_request(Request.SET_FEATURES, b"12345678"))
    first, second = connection.receive(), connection.receive()
    assert first is not None
    assert (first.request, first.payload) == (Request.SET_OWNER, b"")
    assert second is not None
    assert (second.request, second.payload) == (Request.SET_FEATURES, b"12345678")
    assert connection.receive() is None


def test_a_message_may_arrive_byte_by_byte(pair: Pair) -> None:
    peer, connection = pair
    data = emit_request(Request.SET_VRING_ADDR, bytes(range(40)), need_reply=True)
    for byte in data[:-1]:
        send(peer, bytes([byte]))
        assert connection.receive() is None
    send(peer, data[-1:])
    message = connection.receive()
    assert message is not None
    assert message.payload == bytes(range(40))
    assert message.flags == 9


@pytest.mark.parametrize("cut", [1, 5, 11, 12, 13, 19])
def test_descriptors_ride_on_the_header_wherever_it_is_cut(pair: Pair, cut: int) -> None:
    peer, connection = pair
    read_end, write_end = os.pipe()
    data = emit_request(Request.SET_VRING_KICK, bytes(8))
    send(peer, data[:cut], [write_end])
    assert connection.receive() is None
    send(peer, data[cut:])
    message = connection.receive()
    assert message is not None
    assert len(message.fds) == 1
    assert os.fstat(message.fds[0]).st_ino == os.fstat(write_end).st_ino
    message.close()
    os.close(read_end)
    os.close(write_end)


def test_descriptors_belong_to_the_message_whose_header_brought_them(pair: Pair) -> None:
    """One read must not run into the next message: the kernel would hand over that one's descriptors as well."""
    peer, connection = pair
    event = os.eventfd(0)
    send(peer, emit_request(Request.SET_OWNER))
    send(peer, emit_request(Request.SET_VRING_CALL, bytes(8)), [event])
    send(peer, emit_request(Request.GET_FEATURES))
    messages = [connection.receive() for _ in range(3)]
    assert [len(message.fds) for message in messages if message] == [0, 1, 0]
    for message in messages:
        assert message is not None
        message.close()
    os.close(event)


def test_descriptors_are_received_close_on_exec(pair: Pair) -> None:
    peer, connection = pair
    send(peer, emit_request(Request.SET_LOG_FD), [peer.fileno()])
    message = connection.receive()
    assert message is not None
    assert fcntl.fcntl(message.fds[0], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    message.close()


def test_descriptors_with_the_payload_are_an_error_and_closed(pair: Pair) -> None:
    peer, connection = pair
    data = emit_request(Request.SET_VRING_KICK, bytes(8))
    before = open_fds()
    send(peer, data[:12])
    send(peer, data[12:], [peer.fileno()])
    with pytest.raises(ProtocolError, match="SET_VRING_KICK: descriptors came with the payload"):
        connection.receive()
    connection.close()
    assert not open_fds() - before


@pytest.mark.parametrize("count", [9, 64, 253])
def test_more_descriptors_than_any_message_has_are_refused_at_once(pair: Pair, count: int) -> None:
    """Also while the header is incomplete: a slow front-end must not make us hoard (12 x 253 otherwise)."""
    peer, connection = pair
    before = open_fds()
    send(peer, emit_request(Request.SET_MEM_TABLE, bytes(40))[:3], [peer.fileno()] * count)
    with pytest.raises(ProtocolError, match=f"{count} descriptors with one message"):
        connection.receive()
    connection.close()
    assert not open_fds() - before


def test_truncated_descriptors_are_an_error_and_the_rest_is_closed(pair: Pair) -> None:
    """MSG_CTRUNC (DPDK 585283f9a7, CVE-2019-14818): here because the process is at its descriptor limit."""
    peer, connection = pair
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_fds()
    holes = sorted(set(range(max(before) + 2)) - before)
    send(peer, emit_request(Request.SET_MEM_TABLE, bytes(40)), [peer.fileno()] * 8)
    resource.setrlimit(resource.RLIMIT_NOFILE, (holes[0] + 1, hard))  # room for exactly one more
    try:
        with pytest.raises(ProtocolError, match="descriptor limit"):
            connection.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    connection.close()
    assert not open_fds() - before


def test_orderly_end_between_messages(pair: Pair) -> None:
    peer, connection = pair
    peer.close()
    with pytest.raises(Disconnected, match="the front-end closed the connection") as caught:
        connection.receive()
    assert not caught.value.truncated


@pytest.mark.parametrize(
    ("cut", "place"), [(1, "a message header"), (12, "the payload of SET_FEATURES"), (19, "SET_F")]
)
def test_end_in_the_middle_of_a_message_says_where(pair: Pair, cut: int, place: str) -> None:
    peer, connection = pair
    send(peer, emit_request(Request.SET_FEATURES, bytes(8))[:cut])
    peer.close()
    with pytest.raises(Disconnected, match=place) as caught:
        connection.receive()
    assert caught.value.truncated


def test_end_in_the_middle_closes_what_had_arrived(pair: Pair) -> None:
    peer, connection = pair
    event = os.eventfd(0)
    before = open_fds()
    send(peer, emit_request(Request.SET_MEM_TABLE, bytes(40))[:20], [event] * 3)
    os.close(event)
    peer.close()
    with pytest.raises(Disconnected):
        connection.receive()
    assert len(open_fds()) == len(before) - 2 + 3
    connection.close()
    assert not open_fds() - before


def test_oversized_payload_is_refused_from_the_header_alone(pair: Pair) -> None:
    peer, connection = pair
    send(peer, HEADER.pack(Request.SET_MEM_TABLE, 1, 0xFFFFFFFF))
    with pytest.raises(ProtocolError, match="payload of 4294967295 bytes"):
        connection.receive()


def test_a_front_end_that_never_reads_its_replies_is_cut_off(pair: Pair) -> None:
    _, connection = pair

    def flood() -> None:
        for _ in range(1_000_000):
            connection.send(bytes(20))

    with pytest.raises(ProtocolError, match="does not read its replies"):
        flood()


def test_reply_to_a_peer_that_is_gone(pair: Pair) -> None:
    peer, connection = pair
    peer.close()
    with pytest.raises(Disconnected, match="Broken pipe"):
        connection.send(bytes(20))


def test_peer_is_the_process_at_the_other_end(pair: Pair) -> None:
    _, connection = pair
    assert connection.peer() == (os.getpid(), os.getuid(), os.getgid())


def test_close_is_idempotent(pair: Pair) -> None:
    _, connection = pair
    connection.close()
    connection.close()
    assert connection.closed
