"""Clauses of rows that no other test asserts, on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import signal
import socket as kernel
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.tests.kernel_twin import LOOPBACK, World, code

SOL = kernel.SOL_SOCKET

DIFFERENCES = {
    "TCP-33": "Linux never sends segments longer than half the largest window seen, so that TCP_MAXSEG on loopback is "
    "32768 at first; a Stack sends what the path takes, 65483",
    "UDP-10": "a receive with a time-out of Python's, on a socket shut for reading, waits for all of it on Linux; on a "
    "Stack it returns the end at once, as one without",
}


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture
def pair(world: World) -> Iterator[tuple[Any, Any]]:
    one, other = world.pair()
    with one, other:
        yield one, other


def test_opt_so_peek_off_of_a_stream_moves_along(world: World, pair: tuple[Any, Any]) -> None:
    """SO_PEEK_OFF of a TCP socket: each peek goes on where the last one ended, reading moves it back; -1 ends it."""
    one, other = pair
    other.setsockopt(SOL, 42, 1)
    one.send(b"abcdef")
    world.settle(other, IN)
    assert [other.recv(2, kernel.MSG_PEEK), other.recv(2, kernel.MSG_PEEK)] == [b"bc", b"de"]
    assert other.getsockopt(SOL, 42) == 5
    assert other.recv(3) == b"abc"
    assert other.getsockopt(SOL, 42) == 2
    assert other.recv(9, kernel.MSG_PEEK) == b"f"
    other.setblocking(False)
    assert code(other.recv, 9, kernel.MSG_PEEK) == errno.EAGAIN
    assert other.recv(9) == b"def"
    assert other.getsockopt(SOL, 42) == 0
    other.setsockopt(SOL, 42, -1)
    one.send(b"gh")
    world.settle(other, IN)
    assert [other.recv(1, kernel.MSG_PEEK) for _ in range(2)] == [b"g", b"g"]


def test_tcp_18_both_directions_ended_is_not_connected(world: World, pair: tuple[Any, Any]) -> None:
    """Once both sides have shut down writing, and know it, getpeername() and shutdown() are ENOTCONN on both."""
    one, other = pair
    one.shutdown(kernel.SHUT_WR)
    world.settle(other, RDHUP)
    other.shutdown(kernel.SHUT_WR)
    for sock in (one, other):
        assert world.settle(sock, HUP) == IN | OUT | RDHUP | HUP
    for sock in (one, other):
        assert code(sock.shutdown, kernel.SHUT_RDWR) == errno.ENOTCONN
        assert code(sock.getpeername) == errno.ENOTCONN
        assert sock.recv(9) == b""


def test_tcp_21_a_reset_in_close_wait_is_epipe(world: World, pair: tuple[Any, Any]) -> None:
    """After the peer's FIN its RST is told as EPIPE, not as ECONNRESET: once by SO_ERROR, and then there is none."""
    one, other = pair
    one.shutdown(kernel.SHUT_WR)
    world.settle(other, RDHUP)
    one.setsockopt(SOL, kernel.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    one.close()
    assert world.settle(other, ERR) == IN | OUT | RDHUP | HUP | ERR
    assert other.getsockopt(SOL, kernel.SO_ERROR) == errno.EPIPE
    assert world.bits(other) == IN | OUT | RDHUP | HUP
    assert other.recv(1) == b""
    assert code(other.send, b"x") == errno.EPIPE


def test_core_17_sigpipe_of_streams_alone(world: World, pair: tuple[Any, Any]) -> None:
    """EPIPE comes with SIGPIPE from a TCP socket, fresh or shut for writing, not with MSG_NOSIGNAL, nor from UDP."""
    seen: list[int] = []
    old = None
    if world.network is None:
        old = signal.signal(signal.SIGPIPE, lambda number, frame: seen.append(1))
    else:
        world.network.stacks["gw"].on_sigpipe = lambda: seen.append(1)
    one, _ = pair
    one.shutdown(kernel.SHUT_WR)
    try:
        with world.socket.socket() as fresh, world.socket.socket(type=kernel.SOCK_DGRAM) as udp:
            udp.connect((LOOPBACK, 9))
            udp.shutdown(kernel.SHUT_WR)
            for sock, flags, signals in (
                (fresh, 0, 1),
                (fresh, kernel.MSG_NOSIGNAL, 0),
                (one, 0, 1),
                (one, kernel.MSG_NOSIGNAL, 0),
                (udp, 0, 0),
            ):
                seen.clear()
                assert code(sock.send, b"x", flags) == errno.EPIPE
                assert len(seen) == signals
    finally:
        if old is not None:
            signal.signal(signal.SIGPIPE, old)


def test_udp_03_10_no_destination_comes_before_shut(world: World) -> None:
    """A send to nobody is EDESTADDRREQ also after shutdown(SHUT_WR), which is ENOTCONN and done all the same."""
    with world.socket.socket(type=kernel.SOCK_DGRAM) as sock:
        assert code(sock.shutdown, kernel.SHUT_WR) == errno.ENOTCONN
        assert code(sock.send, b"x") == errno.EDESTADDRREQ
        assert code(sock.sendmsg, [b"x"], [(0, 2, b"\1\0\0\0")]) == errno.EDESTADDRREQ
        assert code(sock.sendto, b"x", (LOOPBACK, 9)) == errno.EPIPE


def test_udp_10_15_both_sides_shut(world: World) -> None:
    """Connected: SHUT_WR makes sends EPIPE; SHUT_RD lets a receive return the end at once; then poll is IN, OUT, RDHUP
    and HUP.
    """
    with world.socket.socket(type=kernel.SOCK_DGRAM) as sock:
        sock.bind((LOOPBACK, 0))
        sock.connect(sock.getsockname())
        assert world.bits(sock) == OUT
        sock.shutdown(kernel.SHUT_WR)
        assert code(sock.send, b"x") == errno.EPIPE
        assert world.bits(sock) == OUT
        sock.shutdown(kernel.SHUT_RD)
        assert sock.recv(9) == b""
        assert world.bits(sock) == IN | OUT | RDHUP | HUP


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("::ffff:127.0.0.1", kernel.AF_INET),
        ("0:0:0:0:0:ffff:7f00:1", kernel.AF_INET),
        ("::1", kernel.AF_INET),
        ("127.1", kernel.AF_INET),
        ("127.0.0.1%lo", kernel.AF_INET),
        ("127.0.0.1", kernel.AF_INET6),
        ("fe80::1%lo", kernel.AF_INET6),
        ("fe80::1%9", kernel.AF_INET6),
        ("fe80::1%nope", kernel.AF_INET6),
        ("::ffff:127.0.0.1%1", kernel.AF_INET6),
    ],
)
def test_addr_numbers_of_either_family(name: str, family: int) -> None:
    """A mapped IPv4 address asked for as IPv4 is one; an IPv6 address may name its zone, by number or, on one link, by
    name; everything else is refused as the C library refuses it.
    """
    answers = []
    with Network() as network:
        for module in (kernel, network.stack("gw").socket):
            try:
                found = module.getaddrinfo(name, 80, family, kernel.SOCK_STREAM)
                answers.append([address for *_, address in found])
            except OSError as error:
                answers.append([(error.errno,)])
    assert answers[0] == answers[1]


def test_addr_a_mapped_address_is_bound_to_as_ipv4(world: World) -> None:
    """An AF_INET socket takes "::ffff:127.0.0.1" for the IPv4 address that it is."""
    with world.socket.socket() as sock:
        sock.bind((f"::ffff:{LOOPBACK}", 0))
        assert sock.getsockname()[0] == LOOPBACK
