"""The same test body on the kernel's sockets and on ours, on loopback: errno for errno, poll bit for poll bit.

Rows of the socket semantics are cited; where a body passes on the kernel, the row is what it says it is.
"""

from __future__ import annotations

import errno
import select
import socket as kernel
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Network, Stack
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP

LOOPBACK = "127.0.0.1"
ASKED = IN | OUT | RDHUP


class World:
    """What differs between the two: the module, and how to ask for poll bits."""

    def __init__(self, module: Any, network: Network | None) -> None:
        self.socket = module
        self.network = network

    def bits(self, sock: Any) -> int:
        """Poll bits among IN, OUT, RDHUP, ERR, HUP once they have settled."""
        if self.network is not None:
            return int(sock._sock.poll()) & (ASKED | ERR | HUP)
        poll = select.poll()
        poll.register(sock, ASKED)
        return sum(bits for _, bits in poll.poll(0))

    def settle(self, sock: Any, wanted: int) -> int:
        """The bits as soon as all of `wanted` are there (the kernel's loopback is quick, not instant)."""
        if self.network is None:
            poll = select.poll()
            poll.register(sock, ASKED)
            for _ in range(1000):
                if self.bits(sock) & wanted == wanted:
                    break
                poll.poll(1)
        return self.bits(sock)

    def listener(self, backlog: int = 5) -> Any:
        sock = self.socket.socket()
        sock.bind((LOOPBACK, 0))
        sock.listen(backlog)
        return sock

    def pair(self) -> tuple[Any, Any]:
        """A connected client and the accepted socket."""
        with self.listener() as listener:
            client = self.socket.socket()
            client.settimeout(10)
            client.connect(listener.getsockname())
            served, _ = listener.accept()
        served.settimeout(10)
        return client, served

    def refused_address(self) -> tuple[str, int]:
        with self.socket.socket() as sock:
            sock.bind((LOOPBACK, 0))
            address: tuple[str, int] = sock.getsockname()
        return address


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        stack = network.stack("gw")
        yield World(stack.socket, network)


@pytest.fixture
def ours() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def code(call: Any, *args: Any) -> int | None:
    """The errno a call raises."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what the test compares
        call(*args)
    return caught.value.errno


# -- creation (CORE-02) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((kernel.AF_INET, kernel.SOCK_SEQPACKET, 0), errno.ESOCKTNOSUPPORT),
        ((kernel.AF_INET, kernel.SOCK_STREAM, 17), errno.EPROTONOSUPPORT),
        ((kernel.AF_INET, kernel.SOCK_DGRAM, 6), errno.EPROTONOSUPPORT),
        ((kernel.AF_INET, 9, 0), errno.ESOCKTNOSUPPORT),
        ((kernel.AF_INET6, kernel.SOCK_SEQPACKET, 0), errno.ESOCKTNOSUPPORT),
        ((99, kernel.SOCK_STREAM, 0), errno.EAFNOSUPPORT),
    ],
)
def test_socket_refuses_what_it_does_not_know(world: World, arguments: tuple[int, int, int], expected: int) -> None:
    assert code(world.socket.socket, *arguments) == expected


def test_type_flags_are_not_part_of_the_type(world: World) -> None:
    with world.socket.socket(kernel.AF_INET, kernel.SOCK_STREAM | kernel.SOCK_NONBLOCK) as sock:
        assert (sock.type, sock.family, sock.getblocking()) == (kernel.SOCK_STREAM, kernel.AF_INET, False)


# -- a fresh TCP socket -----------------------------------------------------------------------------------------------


def test_unconnected_stream(world: World) -> None:
    """TCP-18, 19, 20 and the poll matrix: OUT and HUP."""
    with world.socket.socket() as sock:
        assert world.bits(sock) == OUT | HUP
        assert code(sock.recv, 1) == errno.ENOTCONN
        assert code(sock.send, b"x") == errno.EPIPE
        assert code(sock.send, b"") == errno.EPIPE
        assert code(sock.shutdown, kernel.SHUT_RDWR) == errno.ENOTCONN
        assert code(sock.getpeername) == errno.ENOTCONN
        assert code(sock.accept) == errno.EINVAL
        assert sock.getsockname() == ("0.0.0.0", 0)
        assert code(sock.shutdown, 7) == errno.EINVAL


def test_closed_socket_is_ebadf(world: World) -> None:
    sock = world.socket.socket()
    sock.close()
    sock.close()
    assert sock.fileno() == -1
    for call in (lambda: sock.recv(1), lambda: sock.send(b""), sock.getsockname, lambda: sock.listen(1)):
        assert code(call) == errno.EBADF


def test_bind(world: World) -> None:
    """TCP-01, CORE-19."""
    with world.socket.socket() as sock, world.socket.socket() as other:
        assert code(sock.bind, ("192.0.2.77", 0)) == errno.EADDRNOTAVAIL
        sock.bind((LOOPBACK, 0))
        address = sock.getsockname()
        assert 32768 <= address[1] <= 60999
        assert code(sock.bind, (LOOPBACK, 0)) == errno.EINVAL
        assert code(other.bind, address) == errno.EADDRINUSE
        assert code(other.bind, ("", address[1])) == errno.EADDRINUSE


def test_reuseaddr_shares_bound_ports_but_not_listening_ones(world: World) -> None:
    """TCP-03."""
    with world.socket.socket() as one, world.socket.socket() as other, world.socket.socket() as third:
        for sock in (one, other, third):
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEADDR, 1)
        one.bind((LOOPBACK, 0))
        other.bind(one.getsockname())
        one.listen(1)
        assert code(other.listen, 1) == errno.EADDRINUSE
        assert code(third.bind, one.getsockname()) == errno.EADDRINUSE


def test_reuseport_lets_two_listen(world: World) -> None:
    """TCP-04."""
    with world.socket.socket() as one, world.socket.socket() as other, world.socket.socket() as third:
        for sock in (one, other):
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEPORT, 1)
        one.bind((LOOPBACK, 0))
        one.listen(1)
        other.bind(one.getsockname())
        other.listen(1)
        assert code(third.bind, one.getsockname()) == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("no tuple", TypeError),
        ((LOOPBACK,), TypeError),
        ((LOOPBACK, 1, 2), TypeError),
        ((LOOPBACK, "80"), TypeError),
        ((LOOPBACK, 65536), OverflowError),
        ((LOOPBACK, -1), OverflowError),
        ((5, 80), TypeError),
        (("no.such.name.invalid", 80), kernel.gaierror),
    ],
)
def test_bad_addresses(world: World, address: Any, error: type[Exception]) -> None:
    with world.socket.socket() as sock, pytest.raises(error):
        sock.bind(address)


# -- connecting -------------------------------------------------------------------------------------------------------


def test_connect_and_addresses(world: World) -> None:
    client, served = world.pair()
    with client, served:
        assert client.getpeername() == served.getsockname()
        assert client.getsockname() == served.getpeername()
        assert client.connect_ex(served.getsockname()) == 0  # connecting with a time-out asks SO_ERROR, not connect()
        assert code(client.connect, served.getsockname()) == errno.EISCONN  # TCP-08
        assert code(served.connect, client.getsockname()) == errno.EISCONN
        assert code(client.bind, (LOOPBACK, 0)) == errno.EINVAL
        assert code(client.listen, 1) == errno.EINVAL
        client.settimeout(None)
        assert code(client.accept) == errno.EINVAL
        assert world.bits(client) == OUT


def test_connect_refused(world: World) -> None:
    """TCP-05; the socket may try again at once."""
    with world.socket.socket() as sock, world.listener() as listener:
        assert code(sock.connect, world.refused_address()) == errno.ECONNREFUSED
        assert code(sock.getpeername) == errno.ENOTCONN
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == 0
        sock.connect(listener.getsockname())
        assert code(sock.connect, listener.getsockname()) == errno.EISCONN
        listener.accept()[0].close()


def test_connect_ex(world: World) -> None:
    with world.socket.socket() as sock, world.listener() as listener:
        sock.settimeout(10)
        assert sock.connect_ex(world.refused_address()) == errno.ECONNREFUSED
        assert sock.connect_ex(listener.getsockname()) == errno.ECONNABORTED  # TCP-07: SO_ERROR took the refusal
        assert sock.connect_ex(listener.getsockname()) == 0


def test_nonblocking_connect_answers_zero_once(world: World) -> None:
    """TCP-06."""
    with world.listener() as listener, world.socket.socket() as sock:
        sock.setblocking(False)
        result = sock.connect_ex(listener.getsockname())
        assert result == errno.EINPROGRESS
        world.settle(sock, OUT)
        assert sock.connect_ex(listener.getsockname()) == 0
        assert sock.connect_ex(listener.getsockname()) == errno.EISCONN
        listener.accept()[0].close()


def test_nonblocking_refusal_is_reported_by_poll_and_then_by_connect(world: World) -> None:
    """TCP-06, TCP-07, poll matrix 0x201D."""
    address = world.refused_address()
    with world.socket.socket() as sock:
        sock.setblocking(False)
        assert code(sock.connect, address) == errno.EINPROGRESS
        assert world.settle(sock, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert code(sock.listen, 1) == errno.EINVAL
        assert code(sock.getpeername) == errno.ENOTCONN
        assert sock.connect_ex(address) == errno.ECONNREFUSED
        assert sock.connect_ex(address) == errno.EINPROGRESS
        world.settle(sock, ERR)


def test_error_taken_by_so_error_leaves_one_econnaborted(world: World) -> None:
    """TCP-07."""
    address = world.refused_address()
    with world.socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex(address)
        world.settle(sock, ERR)
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNREFUSED
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == 0
        assert world.bits(sock) & ~(IN | RDHUP) == OUT | HUP
        assert sock.connect_ex(address) == errno.ECONNABORTED
        assert sock.connect_ex(address) == errno.EINPROGRESS
        world.settle(sock, ERR)


def test_send_and_recv_on_a_refused_socket(world: World) -> None:
    """TCP-07: the error once, then EPIPE for send and the end for recv."""
    address = world.refused_address()
    attempts: list[tuple[Callable[[Any], Any], int | None]] = [
        (lambda sock: sock.send(b"x"), errno.EPIPE),
        (lambda sock: sock.recv(1), None),
    ]
    for call, then in attempts:
        with world.socket.socket() as sock:
            sock.setblocking(False)
            sock.connect_ex(address)
            world.settle(sock, ERR)
            assert code(call, sock) == errno.ECONNREFUSED
            if then is None:
                assert call(sock) == b""
            else:
                assert code(call, sock) == then
            assert sock.connect_ex(address) == errno.ECONNABORTED
            assert code(sock.recv, 1) == errno.ENOTCONN


def test_no_route(world: World) -> None:
    with world.socket.socket() as sock:
        sock.settimeout(10)
        assert code(sock.connect, ("255.255.255.255", 80)) == errno.ENETUNREACH


def test_connecting_to_any_is_connecting_to_loopback(world: World) -> None:
    with world.socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen(1)
        with world.socket.socket() as sock:
            sock.settimeout(10)
            sock.connect(("0.0.0.0", listener.getsockname()[1]))
            assert sock.getpeername()[0] == LOOPBACK


def test_self_connect(world: World) -> None:
    """TCP-11, TCP-12."""
    with world.socket.socket() as sock:
        sock.settimeout(10)
        sock.bind((LOOPBACK, 0))
        sock.connect(sock.getsockname())
        sock.sendall(b"to myself")
        assert sock.recv(100) == b"to myself"


# -- listening --------------------------------------------------------------------------------------------------------


def test_listener(world: World) -> None:
    """TCP-08, 13, 15, 19, 20 and the poll matrix."""
    with world.listener() as listener, world.socket.socket() as client:
        assert world.bits(listener) == 0
        assert code(listener.connect, listener.getsockname()) == errno.EISCONN
        assert code(listener.recv, 1) == errno.ENOTCONN
        assert code(listener.send, b"x") == errno.EPIPE
        assert code(listener.bind, (LOOPBACK, 0)) == errno.EINVAL
        assert code(listener.getpeername) == errno.ENOTCONN
        listener.listen(7)
        listener.setblocking(False)
        assert code(listener.accept) == errno.EAGAIN
        client.settimeout(10)
        client.connect(listener.getsockname())
        client.close()
        assert world.settle(listener, IN) == IN  # also after the client has closed
        served, address = listener.accept()
        with served:
            assert served.getblocking()
            served.settimeout(10)
            assert address[0] == LOOPBACK
            assert served.recv(1) == b""


def test_listen_binds_by_itself(world: World) -> None:
    with world.socket.socket() as sock:
        sock.listen(1)
        assert sock.getsockname()[0] == "0.0.0.0"
        assert sock.getsockname()[1] != 0
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ACCEPTCONN) == 1


def test_accept_is_first_in_first_out(world: World) -> None:
    """TCP-14."""
    with world.listener() as listener:
        clients = []
        for _ in range(4):
            clients.append(world.socket.socket())
            clients[-1].settimeout(10)
            clients[-1].connect(listener.getsockname())
        for client in clients:
            served, address = listener.accept()
            assert address == client.getsockname()
            served.close()
            client.close()


def test_shutdown_of_a_listener(world: World) -> None:
    """TCP-18: listening can begin again; a port the user chose stays, another is given up."""
    with world.listener() as listener, world.socket.socket() as chosen:
        address = listener.getsockname()
        listener.shutdown(kernel.SHUT_WR)
        listener.shutdown(kernel.SHUT_RD)
        assert code(listener.accept) == errno.EINVAL
        assert listener.getsockname() == address
        chosen.bind(address)
        chosen.listen(1)
        chosen.shutdown(kernel.SHUT_RDWR)
        chosen.listen(1)
        assert chosen.getsockname() == address
        listener.listen(1)
        assert listener.getsockname()[0] == LOOPBACK


def test_closing_a_listener_resets_who_waits(world: World) -> None:
    """TCP-17."""
    with world.listener() as listener, world.socket.socket() as client:
        client.settimeout(10)
        client.connect(listener.getsockname())
        listener.close()
        assert world.settle(client, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert code(client.send, b"x") == errno.ECONNRESET


def test_options_are_inherited(world: World) -> None:
    """TCP-16."""
    with world.listener() as listener, world.socket.socket() as client:
        listener.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_NODELAY, 1)
        listener.setsockopt(kernel.SOL_SOCKET, kernel.SO_KEEPALIVE, 1)
        listener.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_KEEPIDLE, 33)
        listener.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_DEFER_ACCEPT, 0)
        listener.setsockopt(kernel.SOL_SOCKET, kernel.SO_PRIORITY, 4)
        client.settimeout(10)
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with served:
            assert served.getsockopt(kernel.IPPROTO_TCP, kernel.TCP_NODELAY) == 1
            assert served.getsockopt(kernel.SOL_SOCKET, kernel.SO_KEEPALIVE) == 1
            assert served.getsockopt(kernel.IPPROTO_TCP, kernel.TCP_KEEPIDLE) == 33
            assert served.getsockopt(kernel.SOL_SOCKET, kernel.SO_PRIORITY) == 0


# -- transfer ---------------------------------------------------------------------------------------------------------


def test_poll_matrix_of_a_connection(world: World) -> None:
    client, served = world.pair()
    with client, served:
        assert world.bits(served) == OUT
        client.send(b"x")
        assert world.settle(served, IN) == IN | OUT
        assert served.recv(10) == b"x"
        assert world.bits(served) == OUT
        client.shutdown(kernel.SHUT_WR)
        assert world.settle(served, RDHUP) == IN | OUT | RDHUP
        assert world.bits(client) == OUT
        assert code(client.send, b"x") == errno.EPIPE
        assert served.recv(10) == b""
        assert served.recv(10) == b""
        served.send(b"still")
        assert client.recv(10) == b"still"
        served.shutdown(kernel.SHUT_WR)
        assert world.settle(client, HUP) == IN | OUT | RDHUP | HUP
        assert world.settle(served, HUP) == IN | OUT | RDHUP | HUP


def test_shutdown_read(world: World) -> None:
    """TCP-18: what arrives later is still there to be read."""
    client, served = world.pair()
    with client, served:
        client.send(b"before")
        world.settle(served, IN)
        served.shutdown(kernel.SHUT_RD)
        assert world.bits(served) == IN | OUT | RDHUP
        assert world.bits(client) == OUT
        assert served.recv(10) == b"before"
        assert served.recv(10) == b""
        client.send(b"after")
        if world.network is None:
            while not served.recv(10, kernel.MSG_PEEK):
                pass
        assert served.recv(10) == b"after"


def test_nothing_to_read(world: World) -> None:
    """TCP-20: EAGAIN even for zero bytes."""
    client, served = world.pair()
    with client, served:
        client.setblocking(False)
        assert code(client.recv, 10) == errno.EAGAIN
        assert code(client.recvfrom, 0) == errno.EAGAIN
        assert client.recv(0) == b""  # Python asks nobody for nothing
        assert code(client.recv_into, bytearray(4)) == errno.EAGAIN
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(None)
        assert code(client.recv, 10, kernel.MSG_DONTWAIT) == errno.EAGAIN
        client.settimeout(0.01)
        with pytest.raises(TimeoutError):
            client.recv(10, kernel.MSG_DONTWAIT)  # Python waits before it asks


def test_zero_byte_send(world: World) -> None:
    client, served = world.pair()
    with client, served:
        assert client.send(b"") == 0


def test_sendto_on_a_connection_ignores_the_address(world: World) -> None:
    """TCP-19, MM-04: recvfrom gives no address."""
    client, served = world.pair()
    with client, served:
        assert client.sendto(b"abc", ("192.0.2.1", 9)) == 3
        assert served.recvfrom(10) == (b"abc", None)
        served.sendmsg([b"de", bytearray(b"f"), memoryview(b"gh")])
        assert client.recvmsg(10) == (b"defgh", [], 0, None)


def test_peek_waitall_and_trunc(world: World) -> None:
    client, served = world.pair()
    with client, served:
        client.sendall(b"abcdef")
        world.settle(served, IN)
        assert served.recv(3, kernel.MSG_PEEK) == b"abc"
        assert served.recv(3, kernel.MSG_PEEK) == b"abc"
        assert len(served.recv(2, kernel.MSG_TRUNC)) == 2  # discarded
        assert served.recv(2) == b"cd"
        client.sendall(b"gh")
        client.shutdown(kernel.SHUT_WR)
        assert served.recv(100, kernel.MSG_WAITALL) == b"efgh"


def test_recv_into_a_part(world: World) -> None:
    client, served = world.pair()
    with client, served:
        client.sendall(b"abcdef")
        buffer = bytearray(10)
        assert served.recv_into(buffer, 4) == 4
        assert served.recv_into(memoryview(buffer)[4:]) == 2
        assert buffer == b"abcdef\0\0\0\0"
        with pytest.raises(ValueError, match="buffer too small"):
            served.recv_into(buffer, 11)
        with pytest.raises(ValueError, match="negative"):
            served.recv(-1)
        with pytest.raises(TypeError):
            served.recv_into(b"read only")


def test_sending_until_full(world: World) -> None:
    client, served = world.pair()
    with client, served:
        client.setblocking(False)
        total = 0
        with suppress(BlockingIOError):
            while total < 1 << 26:
                total += client.send(bytes(1 << 16))
        assert 1 << 16 <= total < 1 << 26
        assert world.bits(client) & OUT == 0
        got = 0
        while got < total:
            got += len(served.recv(1 << 20))
        assert world.settle(client, OUT) == OUT


def test_close_with_unread_data_resets(world: World) -> None:
    """TCP-22, TCP-20, TCP-21: what had arrived first, then the error once, then the end."""
    client, served = world.pair()
    with client, served:
        served.sendall(b"last words")
        world.settle(client, IN)
        client.sendall(b"never read")
        world.settle(served, IN)
        served.close()
        assert world.settle(client, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert client.recv(100) == b"last words"
        assert code(client.recv, 1) == errno.ECONNRESET
        assert client.recv(1) == b""
        assert code(client.send, b"x") == errno.EPIPE
        assert code(client.getpeername) == errno.ENOTCONN
        assert code(client.shutdown, kernel.SHUT_RD) == errno.ENOTCONN


def test_send_takes_the_reset_first(world: World) -> None:
    """TCP-19: ECONNRESET once, then EPIPE; recv then sees the end."""
    client, served = world.pair()
    with client, served:
        served.setsockopt(kernel.SOL_SOCKET, kernel.SO_LINGER, struct.pack("ii", 1, 0))
        served.close()
        world.settle(client, ERR)
        assert code(client.send, b"x") == errno.ECONNRESET
        assert code(client.send, b"x") == errno.EPIPE
        assert client.recv(1) == b""
        assert world.bits(client) == IN | OUT | RDHUP | HUP


def test_so_error_takes_the_reset(world: World) -> None:
    """TCP-21."""
    client, served = world.pair()
    with client, served:
        served.setsockopt(kernel.SOL_SOCKET, kernel.SO_LINGER, struct.pack("ii", 1, 0))
        served.close()
        world.settle(client, ERR)
        assert client.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNRESET
        assert world.bits(client) == IN | OUT | RDHUP | HUP
        assert client.recv(1) == b""


def test_writing_to_a_closed_peer(world: World) -> None:
    client, served = world.pair()
    with client, served:
        served.close()
        world.settle(client, RDHUP)
        client.send(b"x")
        assert world.settle(client, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert code(client.send, b"x") == errno.EPIPE  # RST in CLOSE-WAIT (TCP-21)


# -- time-outs --------------------------------------------------------------------------------------------------------


def test_timeouts(world: World) -> None:
    """CORE-08: Python's time-out is TimeoutError, the kernel's SO_RCVTIMEO is EAGAIN."""
    client, served = world.pair()
    with client, served, world.listener() as listener:
        client.settimeout(0.01)
        with pytest.raises(TimeoutError, match="timed out"):
            client.recv(1)
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.accept()
        client.settimeout(None)
        client.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, struct.pack("ll", 0, 10_000))
        assert code(client.recv, 1) == errno.EAGAIN
        assert client.getsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, 16) == struct.pack("ll", 0, 12_000) or (
            client.getsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, 16) == struct.pack("ll", 0, 10_000)
        )  # the kernel counts in jiffies


def test_timeout_values(world: World) -> None:
    with world.socket.socket() as sock:
        assert sock.gettimeout() is None
        sock.settimeout(1.5)
        assert (sock.gettimeout(), sock.timeout, sock.getblocking()) == (1.5, 1.5, True)
        sock.setblocking(False)
        assert (sock.gettimeout(), sock.getblocking()) == (0.0, False)
        with pytest.raises(ValueError, match="out of range"):
            sock.settimeout(-1)


# -- UDP --------------------------------------------------------------------------------------------------------------


def datagram(world: World) -> Any:
    sock = world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    sock.settimeout(10)
    return sock


def test_fresh_datagram_socket(world: World) -> None:
    """UDP-01, 03, 09, 10, 12, 15."""
    with datagram(world) as sock:
        assert world.bits(sock) == OUT
        assert sock.getsockname() == ("0.0.0.0", 0)
        assert code(sock.send, b"x") == errno.EDESTADDRREQ
        assert code(sock.listen, 1) == errno.EOPNOTSUPP
        sock.settimeout(None)
        assert code(sock.accept) == errno.EOPNOTSUPP
        assert code(sock.shutdown, kernel.SHUT_RD) == errno.ENOTCONN
        assert code(sock.getpeername) == errno.ENOTCONN
        assert sock.getsockname()[1] != 0  # the send in vain took a port
        sock.setblocking(False)
        assert code(sock.recv, 1) == errno.EAGAIN


def test_datagrams_keep_their_boundaries(world: World) -> None:
    """UDP-07."""
    with datagram(world) as one, datagram(world) as other:
        one.bind((LOOPBACK, 0))
        for data in (b"first", b"", b"third"):
            assert other.sendto(data, one.getsockname()) == len(data)
        assert world.settle(one, IN) == IN | OUT
        sender = (LOOPBACK, other.getsockname()[1])
        assert one.recvfrom(3) == (b"fir", sender)
        assert one.recvfrom(100) == (b"", sender)
        data, _, flags, address = one.recvmsg(2)
        assert (data, flags, address) == (b"th", kernel.MSG_TRUNC, sender)


def test_datagram_limits(world: World) -> None:
    """UDP-04, 05, 06, 12."""
    with datagram(world) as one, datagram(world) as other:
        one.bind((LOOPBACK, 0))
        assert other.sendto(bytes(65507), one.getsockname()) == 65507
        assert len(one.recv(70000)) == 65507
        assert code(other.sendto, bytes(65508), one.getsockname()) == errno.EMSGSIZE
        assert code(other.sendto, b"x", (LOOPBACK, 0)) == errno.EINVAL
        assert code(other.sendto, b"x", kernel.MSG_OOB, one.getsockname()) == errno.EOPNOTSUPP


def test_connected_datagram_socket(world: World) -> None:
    """UDP-02, 08, 10: filter, default destination, refusal reported once."""
    with datagram(world) as one, datagram(world) as other, datagram(world) as stranger:
        one.bind((LOOPBACK, 0))
        other.bind((LOOPBACK, 0))
        one.connect(other.getsockname())
        assert one.getpeername() == other.getsockname()
        stranger.sendto(b"no", one.getsockname())
        other.sendto(b"yes", one.getsockname())
        assert one.recv(10) == b"yes"
        assert one.send(b"back") == 4
        assert other.recvfrom(10) == (b"back", one.getsockname())
        other.close()
        one.send(b"into the void")
        assert world.settle(one, ERR) & ERR
        assert code(one.send, b"x") == errno.ECONNREFUSED
        one.setblocking(False)
        one.shutdown(kernel.SHUT_RDWR)
        assert world.settle(one, HUP) & ~ERR == IN | OUT | RDHUP | HUP


def test_shut_datagram_socket(world: World) -> None:
    """UDP-10."""
    with datagram(world) as one, datagram(world) as other:
        one.settimeout(None)
        other.bind((LOOPBACK, 0))
        one.connect(other.getsockname())
        one.shutdown(kernel.SHUT_WR)
        assert code(one.send, b"x") == errno.EPIPE
        one.shutdown(kernel.SHUT_RD)
        assert one.recv(10) == b""
        assert world.bits(one) == IN | OUT | RDHUP | HUP


# -- IPv6 -------------------------------------------------------------------------------------------------------------


def test_dual_stack_server_sees_mapped_addresses(world: World) -> None:
    """TCP-36."""
    with world.socket.create_server(("", 0), family=kernel.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        for family, host, seen in ((kernel.AF_INET, LOOPBACK, "::ffff:127.0.0.1"), (kernel.AF_INET6, "::1", "::1")):
            with world.socket.socket(family) as client:
                client.settimeout(10)
                client.connect((host, port))
                served, address = server.accept()
                with served:
                    assert address[0] == seen
                    assert served.getpeername() == address
                    assert len(address) == 4
                    client.sendall(b"hello")
                    assert served.recv(10) == b"hello"


def test_v6only_server_leaves_ipv4_alone(world: World) -> None:
    with world.socket.create_server(("::1", 0), family=kernel.AF_INET6) as server:
        assert server.getsockopt(kernel.IPPROTO_IPV6, kernel.IPV6_V6ONLY) == 1
        with world.socket.create_server((LOOPBACK, server.getsockname()[1])) as beside:
            assert beside.getsockname()[1] == server.getsockname()[1]


# -- helpers of the module --------------------------------------------------------------------------------------------


def test_create_connection_gives_the_last_error(world: World) -> None:
    with pytest.raises(ConnectionRefusedError):
        world.socket.create_connection(world.refused_address(), timeout=10)
    with pytest.raises(ExceptionGroup):
        world.socket.create_connection(world.refused_address(), timeout=10, all_errors=True)


@pytest.mark.parametrize(
    "question",
    [
        ("127.0.0.1", 80),
        ("127.0.0.1", "80", 0, kernel.SOCK_STREAM),
        ("::1", 80, 0, kernel.SOCK_STREAM),
        (None, 80, 0, kernel.SOCK_STREAM),
        (None, 80, 0, kernel.SOCK_STREAM, 0, kernel.AI_PASSIVE),
        ("1.2.3.4", None, kernel.AF_INET, kernel.SOCK_DGRAM),
        (b"127.0.0.1", 80, kernel.AF_INET, kernel.SOCK_STREAM),
    ],
)
def test_getaddrinfo_of_numbers(ours: Stack, question: tuple[Any, ...]) -> None:
    """What the C library answers without asking anybody."""
    expected = kernel.getaddrinfo(*question)
    found = ours.socket.getaddrinfo(*question)
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_getaddrinfo_refuses_what_it_does_not_know(world: World) -> None:
    for question in (("no.such.name.invalid", 80), ("::1", 80, kernel.AF_INET), ("name", 80, 0, 0, 0, 4)):
        with pytest.raises(kernel.gaierror):
            world.socket.getaddrinfo(*question)
