"""Making, binding, connecting, listening, on the kernel's sockets and on ours: errno for errno, poll bit for poll bit.

Rows of the socket semantics are cited; where a body passes on the kernel, the row is what it says it is.
"""

from __future__ import annotations

import errno
import socket as kernel
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.tests.kernel_twin import LOOPBACK, World, code, has_ipv6_loopback


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


def test_tcp_18_19_20_39_unconnected_stream(world: World) -> None:
    """An unconnected socket can neither send nor receive nor be shut down; poll says OUT and HUP."""
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


def test_tcp_01_bind(world: World) -> None:
    """bind() takes a free port of ours once; foreign addresses, taken ports and second binds are refused."""
    with world.socket.socket() as sock, world.socket.socket() as other:
        assert code(sock.bind, ("192.0.2.77", 0)) == errno.EADDRNOTAVAIL
        sock.bind((LOOPBACK, 0))
        address = sock.getsockname()
        assert 32768 <= address[1] <= 60999
        assert code(sock.bind, (LOOPBACK, 0)) == errno.EINVAL
        assert code(other.bind, address) == errno.EADDRINUSE
        assert code(other.bind, ("", address[1])) == errno.EADDRINUSE


def test_tcp_03_reuseaddr_shares_bound_ports_but_not_listening_ones(world: World) -> None:
    """With SO_REUSEADDR on both a bound port is shared, but only one may listen, and nobody joins a listener."""
    with world.socket.socket() as one, world.socket.socket() as other, world.socket.socket() as third:
        for sock in (one, other, third):
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEADDR, 1)
        one.bind((LOOPBACK, 0))
        other.bind(one.getsockname())
        one.listen(1)
        assert code(other.listen, 1) == errno.EADDRINUSE
        assert code(third.bind, one.getsockname()) == errno.EADDRINUSE


def test_tcp_04_reuseport_lets_two_listen(world: World) -> None:
    """With SO_REUSEPORT on all of them several listen on one port; who has it not is refused."""
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


def test_tcp_08_connect_and_addresses(world: World) -> None:
    """Both ends name each other; connected sockets, accepted ones too, refuse connect, bind, listen and accept."""
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


def test_tcp_05_connect_refused(world: World) -> None:
    """A blocking connect says ECONNREFUSED itself, and the socket may try again at once."""
    with world.socket.socket() as sock, world.listener() as listener:
        assert code(sock.connect, world.refused_address()) == errno.ECONNREFUSED
        assert code(sock.getpeername) == errno.ENOTCONN
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == 0
        sock.connect(listener.getsockname())
        assert code(sock.connect, listener.getsockname()) == errno.EISCONN
        listener.accept()[0].close()


def test_tcp_07_connect_ex(world: World) -> None:
    """After SO_ERROR has taken a refusal the next connect is ECONNABORTED once, and then a fresh attempt."""
    with world.socket.socket() as sock, world.listener() as listener:
        sock.settimeout(10)
        assert sock.connect_ex(world.refused_address()) == errno.ECONNREFUSED
        assert sock.connect_ex(listener.getsockname()) == errno.ECONNABORTED  # TCP-07: SO_ERROR took the refusal
        assert sock.connect_ex(listener.getsockname()) == 0


def test_tcp_06_nonblocking_connect_answers_zero_once(world: World) -> None:
    """EINPROGRESS, then POLLOUT; the next connect returns 0 exactly once, then EISCONN."""
    with world.listener() as listener, world.socket.socket() as sock:
        sock.setblocking(False)
        result = sock.connect_ex(listener.getsockname())
        assert result == errno.EINPROGRESS
        world.settle(sock, OUT)
        assert sock.connect_ex(listener.getsockname()) == 0
        assert sock.connect_ex(listener.getsockname()) == errno.EISCONN
        listener.accept()[0].close()


def test_tcp_06_07_39_nonblocking_refusal_is_reported_by_poll_and_then_by_connect(world: World) -> None:
    """A refusal shows as IN, OUT, RDHUP, HUP and ERR; the next connect reports it, the one after tries anew."""
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


def test_tcp_07_error_taken_by_so_error_leaves_one_econnaborted(world: World) -> None:
    """SO_ERROR gives ECONNREFUSED once; the connect after it is ECONNABORTED once."""
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


def test_tcp_07_send_and_recv_on_a_refused_socket(world: World) -> None:
    """The error once, then EPIPE for send and the end for recv, and ENOTCONN after the aborted connect."""
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


def test_tcp_05_no_route(world: World) -> None:
    """A broadcast address is ENETUNREACH."""
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


def test_tcp_11_12_self_connect(world: World) -> None:
    """A socket may connect to itself, which is a simultaneous open, and reads what it writes."""
    with world.socket.socket() as sock:
        sock.settimeout(10)
        sock.bind((LOOPBACK, 0))
        sock.connect(sock.getsockname())
        sock.sendall(b"to myself")
        assert sock.recv(100) == b"to myself"


# -- listening --------------------------------------------------------------------------------------------------------


def test_tcp_08_13_15_19_20_39_listener(world: World) -> None:
    """A listening socket neither connects nor sends nor receives; it is readable while a connection waits."""
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


def test_tcp_13_listen_binds_by_itself(world: World) -> None:
    """listen() on an unbound socket takes a free port of every address."""
    with world.socket.socket() as sock:
        sock.listen(1)
        assert sock.getsockname()[0] == "0.0.0.0"
        assert sock.getsockname()[1] != 0
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ACCEPTCONN) == 1


def test_tcp_14_accept_is_first_in_first_out(world: World) -> None:
    """Connections are accepted in the order of their handshakes."""
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


def test_tcp_18_shutdown_of_a_listener(world: World) -> None:
    """shutdown(SHUT_RD) ends listening, which can begin again; a port the user chose stays, another is given up."""
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


def test_tcp_17_closing_a_listener_resets_who_waits(world: World) -> None:
    """Connections not accepted yet are reset."""
    with world.listener() as listener, world.socket.socket() as client:
        client.settimeout(10)
        client.connect(listener.getsockname())
        listener.close()
        assert world.settle(client, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert code(client.send, b"x") == errno.ECONNRESET


def test_tcp_16_options_are_inherited(world: World) -> None:
    """Accepted sockets take over their listener's options, not its priority."""
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


# -- IPv6 -------------------------------------------------------------------------------------------------------------


def test_tcp_36_dual_stack_server_sees_mapped_addresses(world: World) -> None:
    """An IPv6 socket without IPV6_V6ONLY serves both; IPv4 peers show as mapped addresses."""
    with world.socket.create_server(("", 0), family=kernel.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        peers = [(kernel.AF_INET, LOOPBACK, "::ffff:127.0.0.1")]
        if world.socket is not kernel or has_ipv6_loopback():
            peers.append((kernel.AF_INET6, "::1", "::1"))
        for family, host, seen in peers:
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


def test_tcp_36_v6only_server_leaves_ipv4_alone(world: World) -> None:
    """With IPV6_V6ONLY the same port is free for IPv4."""
    with world.socket.create_server(("", 0), family=kernel.AF_INET6) as server:
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
