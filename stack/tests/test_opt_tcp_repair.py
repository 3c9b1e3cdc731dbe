"""TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OPTIONS, TCP_REPAIR_WINDOW and TCP_TIMESTAMP (section 2.3)
on the kernel's sockets, where the user may (CAP_NET_ADMIN), and on ours.
"""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Credentials, Network, Stack
from stack.socket.poll import IN
from stack.tests.kernel_twin import World, code

DIFFERENCES = {
    "TCP_REPAIR": "Linux also lets a socket in repair take a port by force (SO_REUSEADDR reads 2), and refuses a read "
    "before it is connected with EPERM, a Stack with ENOTCONN; while a connect is under way, a Stack only remembers it",
}

TCP = kernel.IPPROTO_TCP
TCP_TIMESTAMP = 24
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OPTIONS, TCP_REPAIR_WINDOW = 19, 20, 21, 22, 29
NO_QUEUE, RECV_QUEUE, SEND_QUEUE = 0, 1, 2
MSS, WINDOW, SACK, TIMESTAMPS = 2, 3, 4, 8
PEEK = kernel.MSG_PEEK | kernel.MSG_DONTWAIT
MASK = 0xFFFFFFFF


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        with kernel.socket() as sock:
            try:
                sock.setsockopt(TCP, TCP_REPAIR, 1)
            except PermissionError:
                pytest.skip("the kernel lets only CAP_NET_ADMIN repair")
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def settled(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("@II", *pair) for pair in pairs)


def sequence(sock: Any, queue: int) -> int:
    """Of the queue, which stays chosen."""
    sock.setsockopt(TCP, TCP_REPAIR_QUEUE, queue)
    return int(sock.getsockopt(TCP, TCP_QUEUE_SEQ)) & MASK


def signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


def test_opt_tcp_repair_is_0_1_or_minus_1(world: World) -> None:
    """0 by default; -1 turns it off without a window probe and reads 0; else EINVAL; a listener is EPERM."""
    with world.socket.socket() as sock:
        assert sock.getsockopt(TCP, TCP_REPAIR) == 0
        for value, read in [(1, 1), (0, 0), (1, 1), (-1, 0), (0, 0)]:
            sock.setsockopt(TCP, TCP_REPAIR, value)
            assert sock.getsockopt(TCP, TCP_REPAIR) == read
        for bad in (2, -2):
            assert code(sock.setsockopt, TCP, TCP_REPAIR, bad) == errno.EINVAL
    with world.listener() as listener:
        for value in (1, 0, 2):
            assert code(listener.setsockopt, TCP, TCP_REPAIR, value) == errno.EPERM
        assert listener.getsockopt(TCP, TCP_REPAIR) == 0


def test_opt_tcp_repair_is_the_administrators() -> None:
    """EPERM without CAP_NET_ADMIN, whatever the value; what needs it turned on says so."""
    with Network() as network:
        user = Stack("user", network=network, credentials=Credentials.user(1000))
        with user.socket.socket() as sock:
            for value in (0, 1, 2):
                assert code(sock.setsockopt, TCP, TCP_REPAIR, value) == errno.EPERM
            assert sock.getsockopt(TCP, TCP_REPAIR) == 0


def test_opt_tcp_repair_off_refuses_what_belongs_to_it(world: World) -> None:
    """EPERM to choose a queue, for the window and the clock; EINVAL for the settled options and to read the queue."""
    with world.socket.socket() as sock:
        assert code(sock.setsockopt, TCP, TCP_REPAIR_QUEUE, 1) == errno.EPERM
        assert code(sock.getsockopt, TCP, TCP_REPAIR_QUEUE) == errno.EINVAL
        assert code(sock.setsockopt, TCP, TCP_QUEUE_SEQ, 1) == errno.EINVAL
        assert code(sock.getsockopt, TCP, TCP_QUEUE_SEQ) == errno.EINVAL
        assert code(sock.setsockopt, TCP, TCP_REPAIR_OPTIONS, settled((MSS, 1000))) == errno.EINVAL
        assert code(sock.getsockopt, TCP, TCP_REPAIR_OPTIONS) == errno.ENOPROTOOPT
        assert code(sock.setsockopt, TCP, TCP_REPAIR_WINDOW, bytes(20)) == errno.EPERM
        assert code(sock.getsockopt, TCP, TCP_REPAIR_WINDOW, 20) == errno.EPERM
        assert code(sock.getsockopt, TCP, TCP_REPAIR_WINDOW, 16) == errno.EINVAL
        assert code(sock.setsockopt, TCP, TCP_TIMESTAMP, 1) == errno.EPERM


def test_opt_tcp_repair_queue_and_its_number(world: World) -> None:
    """None, receive, send; each has its number, to be set while not connected; both outlive repair."""
    with world.socket.socket() as sock:
        sock.setsockopt(TCP, TCP_REPAIR, 1)
        assert sock.getsockopt(TCP, TCP_REPAIR_QUEUE) == NO_QUEUE
        for bad in (-1, 3):
            assert code(sock.setsockopt, TCP, TCP_REPAIR_QUEUE, bad) == errno.EINVAL
        assert code(sock.getsockopt, TCP, TCP_QUEUE_SEQ) == errno.EINVAL
        assert code(sock.setsockopt, TCP, TCP_QUEUE_SEQ, 1) == errno.EINVAL
        for queue, number in [(RECV_QUEUE, 1001), (SEND_QUEUE, -2)]:
            sock.setsockopt(TCP, TCP_REPAIR_QUEUE, queue)
            assert sock.getsockopt(TCP, TCP_REPAIR_QUEUE) == queue
            assert sock.getsockopt(TCP, TCP_QUEUE_SEQ) == 0
            sock.setsockopt(TCP, TCP_QUEUE_SEQ, number)
            assert sock.getsockopt(TCP, TCP_QUEUE_SEQ) == number
        assert sequence(sock, RECV_QUEUE) == 1001
        sock.setsockopt(TCP, TCP_REPAIR, 0)
        assert sock.getsockopt(TCP, TCP_QUEUE_SEQ) == 1001
        sock.setsockopt(TCP, TCP_REPAIR, 1)
        assert sock.getsockopt(TCP, TCP_REPAIR_QUEUE) == NO_QUEUE


def test_opt_tcp_repair_of_a_connection_shows_its_numbers(world: World) -> None:
    """They move with the stream, each end's receive number is the other's send number, and setting them is EPERM."""
    client, served = world.pair()
    with client, served:
        client.sendall(b"hello")
        assert served.recv(5, kernel.MSG_WAITALL) == b"hello"
        for sock in (client, served):
            sock.setsockopt(TCP, TCP_REPAIR, 1)
        assert sequence(client, SEND_QUEUE) == sequence(served, RECV_QUEUE)
        assert sequence(client, RECV_QUEUE) == sequence(served, SEND_QUEUE)
        for queue in (NO_QUEUE, RECV_QUEUE, SEND_QUEUE):
            client.setsockopt(TCP, TCP_REPAIR_QUEUE, queue)
            assert code(client.setsockopt, TCP, TCP_QUEUE_SEQ, 5) == errno.EPERM


def test_opt_tcp_repair_fills_and_shows_the_chosen_queue(world: World) -> None:
    """Reads only look (else EPERM), at the chosen queue; sends fill it; without one both are EINVAL. The peer gets
    nothing of it at first.
    """
    client, served = world.pair()
    with client, served:
        served.sendall(b"hello")
        world.settle(client, IN)
        client.setsockopt(TCP, TCP_REPAIR, 1)
        assert code(client.recv, 9) == errno.EPERM
        assert code(client.recv, 9, PEEK) == errno.EINVAL
        assert code(client.send, b"x") == errno.EINVAL
        before = {queue: sequence(client, queue) for queue in (RECV_QUEUE, SEND_QUEUE)}
        assert client.recv(9, PEEK) == b""  # of the send queue
        assert client.send(b"sent") == 4
        assert client.recv(9, PEEK) == b"sent"
        assert (sequence(client, SEND_QUEUE) - before[SEND_QUEUE]) & MASK == 4
        assert (sequence(client, RECV_QUEUE) - before[RECV_QUEUE]) & MASK == 0
        assert client.send(b" you") == 4
        assert client.recv(20, PEEK) == b"hello you"
        assert code(client.recv_into, bytearray(9)) == errno.EPERM
        assert (sequence(client, RECV_QUEUE) - before[RECV_QUEUE]) & MASK == 4
        served.setblocking(False)
        assert code(served.recv, 9) == errno.EAGAIN


def test_opt_tcp_repair_closes_without_a_word(world: World) -> None:
    """The peer hears of it only when it speaks: a reset."""
    client, served = world.pair()
    with served:
        client.setsockopt(TCP, TCP_REPAIR, 1)
        client.close()
        served.setblocking(False)
        assert code(served.recv, 9) == errno.EAGAIN
        assert served.send(b"x") == 1
        world.settle(served, IN)
        assert code(served.recv, 9) == errno.ECONNRESET


def test_opt_tcp_repair_options_are_for_new_connections(world: World) -> None:
    """EPERM unless connected; EFBIG for shift counts above 14; what is permitted has no value; others are passed over.

    A piece of a pair is not looked at; nothing at all is EINVAL; once data was sent EPERM.
    """
    with world.socket.socket() as sock:
        sock.setsockopt(TCP, TCP_REPAIR, 1)
        assert code(sock.setsockopt, TCP, TCP_REPAIR_OPTIONS, settled((MSS, 1000))) == errno.EPERM
    client, served = world.pair()
    with client, served:
        client.setsockopt(TCP, TCP_REPAIR, 1)
        for shifts in (0x7000F, 0xF0007):
            assert code(client.setsockopt, TCP, TCP_REPAIR_OPTIONS, settled((WINDOW, shifts))) == errno.EFBIG
        for kind in (SACK, TIMESTAMPS):
            assert code(client.setsockopt, TCP, TCP_REPAIR_OPTIONS, settled((kind, 1))) == errno.EINVAL
        assert code(client.setsockopt, TCP, TCP_REPAIR_OPTIONS, b"") == errno.EINVAL
        for good in (settled((SACK, 0), (TIMESTAMPS, 0)), settled((9, 0)), b"1234567", settled((MSS, 1000)) + b"xx"):
            client.setsockopt(TCP, TCP_REPAIR_OPTIONS, good)
        client.setsockopt(TCP, TCP_REPAIR, -1)
        client.sendall(b"x")
        assert served.recv(1) == b"x"
        client.setsockopt(TCP, TCP_REPAIR, 1)
        assert code(client.setsockopt, TCP, TCP_REPAIR_OPTIONS, settled((MSS, 1000))) == errno.EPERM


def test_opt_tcp_repair_window_is_read_and_set(world: World) -> None:
    """20 bytes: last update, the peer's window and its largest, ours, the last acknowledgment. What no peer can have
    said is EINVAL; so is another length.
    """
    with world.socket.socket() as sock:
        sock.setsockopt(TCP, TCP_REPAIR, 1)
        assert sock.getsockopt(TCP, TCP_REPAIR_WINDOW, 20) == bytes(20)
        for size in (4, 16, 64):
            assert code(sock.getsockopt, TCP, TCP_REPAIR_WINDOW, size) == errno.EINVAL
            assert code(sock.setsockopt, TCP, TCP_REPAIR_WINDOW, bytes(size)) == errno.EINVAL
        assert code(sock.setsockopt, TCP, TCP_REPAIR_WINDOW, struct.pack("@5I", 0, 0, 0, 0, 1)) == errno.EINVAL
        sock.setsockopt(TCP, TCP_REPAIR_WINDOW, struct.pack("@5I", 1, 2, 3, 4, 0))
        assert struct.unpack("@5I", sock.getsockopt(TCP, TCP_REPAIR_WINDOW, 20)) == (1, 2, 3, 4, 0)
    client, served = world.pair()
    with client, served:
        client.sendall(b"hello")
        assert served.recv(5, kernel.MSG_WAITALL) == b"hello"
        served.setsockopt(TCP, TCP_REPAIR, 1)
        window = served.getsockopt(TCP, TCP_REPAIR_WINDOW, 20)
        fields = updated, wnd, most, ours, acknowledged = struct.unpack("@5I", window)
        nxt = sequence(served, RECV_QUEUE)
        assert most >= wnd > 0
        assert ours > 0
        assert (nxt - acknowledged) & MASK <= 5
        assert (nxt - updated) & MASK <= 6
        served.setsockopt(TCP, TCP_REPAIR_WINDOW, window)
        assert served.getsockopt(TCP, TCP_REPAIR_WINDOW, 20) == window
        bad = [
            (updated, most + 1, most, ours, acknowledged),
            ((nxt + ours + 1) & MASK, wnd, most, ours, acknowledged),
            (updated, wnd, most, ours, (nxt + 1) & MASK),
        ]
        for each in bad:
            assert code(served.setsockopt, TCP, TCP_REPAIR_WINDOW, struct.pack("@5I", *each)) == errno.EINVAL
        changed = (updated, wnd - 1, most + 1, ours, acknowledged)
        served.setsockopt(TCP, TCP_REPAIR_WINDOW, struct.pack("@5I", *changed))
        assert struct.unpack("@5I", served.getsockopt(TCP, TCP_REPAIR_WINDOW, 20)) == changed != fields


def test_opt_tcp_timestamp_is_set_in_repair(world: World) -> None:
    """The clock goes on from there."""
    with world.socket.socket() as sock:
        sock.setsockopt(TCP, TCP_REPAIR, 1)
        sock.setsockopt(TCP, TCP_TIMESTAMP, 7000)
        assert 0 <= sock.getsockopt(TCP, TCP_TIMESTAMP) - 7000 < 5000
    client, served = world.pair()
    with client, served:
        client.setsockopt(TCP, TCP_REPAIR, 1)
        client.setsockopt(TCP, TCP_TIMESTAMP, 9000)
        assert 0 <= client.getsockopt(TCP, TCP_TIMESTAMP) - 9000 < 5000


def test_opt_tcp_repair_restores_a_connection(world: World) -> None:
    """A connection is saved, closed in silence, and made anew without a handshake: unread data is there, unacknowledged
    data arrives, both go on talking.
    """
    client, served = world.pair()
    with served:
        served.sendall(b"unread")
        world.settle(client, IN)
        client.setsockopt(TCP, TCP_REPAIR, 1)
        window = client.getsockopt(TCP, TCP_REPAIR_WINDOW, 20)
        clock = client.getsockopt(TCP, TCP_TIMESTAMP)
        numbers = {queue: sequence(client, queue) for queue in (RECV_QUEUE, SEND_QUEUE)}
        client.setsockopt(TCP, TCP_REPAIR_QUEUE, RECV_QUEUE)
        unread = client.recv(100, PEEK)
        numbers[RECV_QUEUE] -= len(unread)
        here, there = client.getsockname(), client.getpeername()
        client.close()
        served.setsockopt(TCP, TCP_REPAIR, 1)
        served.setsockopt(TCP, TCP_TIMESTAMP, -1_000_000)  # a clock past its half, which 0 is not older than
        served.setsockopt(TCP, TCP_REPAIR, -1)
        again = world.socket.socket()
        with again:
            again.setsockopt(TCP, TCP_REPAIR, 1)
            again.bind(here)
            for queue, number in numbers.items():
                again.setsockopt(TCP, TCP_REPAIR_QUEUE, queue)
                again.setsockopt(TCP, TCP_QUEUE_SEQ, signed(number & MASK))
            again.connect(there)
            assert again.getpeername() == there
            assert {queue: sequence(again, queue) for queue in numbers} == {k: v & MASK for k, v in numbers.items()}
            for queue, data in [(RECV_QUEUE, unread), (SEND_QUEUE, b"unacknowledged")]:
                again.setsockopt(TCP, TCP_REPAIR_QUEUE, queue)
                assert again.send(data) == len(data)
                assert again.recv(100, PEEK) == data
            again.setsockopt(
                TCP, TCP_REPAIR_OPTIONS, settled((MSS, 1400), (WINDOW, 0x70007), (SACK, 0), (TIMESTAMPS, 0))
            )
            again.setsockopt(TCP, TCP_TIMESTAMP, clock)
            again.setsockopt(TCP, TCP_REPAIR_WINDOW, window)
            again.setsockopt(TCP, TCP_REPAIR, 0)
            again.settimeout(10)
            assert again.recv(100) == b"unread"
            assert served.recv(14, kernel.MSG_WAITALL) == b"unacknowledged"
            again.sendall(b"and on")
            assert served.recv(6, kernel.MSG_WAITALL) == b"and on"
            served.sendall(b"it goes")
            assert again.recv(7, kernel.MSG_WAITALL) == b"it goes"


def test_opt_tcp_queue_seq_is_the_first_number_of_an_ordinary_connect(stack: Stack) -> None:
    """Set in repair, used by a connect after it: the SYN has that number."""
    network: Any = stack.network
    world = World(stack.socket, network)
    with world.listener() as listener, stack.socket.socket() as client:
        client.setsockopt(TCP, TCP_REPAIR, 1)
        client.setsockopt(TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)
        client.setsockopt(TCP, TCP_QUEUE_SEQ, 5000)
        client.setsockopt(TCP, TCP_REPAIR, -1)
        client.connect(listener.getsockname())
        assert client.getsockopt(TCP, TCP_QUEUE_SEQ) == 5001


def test_opt_tcp_repair_is_inherited(world: World) -> None:
    """A socket that listens in repair gives connections that are in it: they read after it was turned off."""
    with world.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setsockopt(TCP, TCP_REPAIR, 1)
        listener.listen()
        assert listener.getsockopt(TCP, TCP_REPAIR) == 1
        with world.socket.create_connection(listener.getsockname(), timeout=10) as client:
            served, _ = listener.accept()
            with served:
                assert client.getsockopt(TCP, TCP_REPAIR) == 0
                assert served.getsockopt(TCP, TCP_REPAIR) == 1
                client.sendall(b"x")
                assert code(served.recv, 1) == errno.EPERM
                served.setsockopt(TCP, TCP_REPAIR, -1)
                assert served.recv(1) == b"x"
