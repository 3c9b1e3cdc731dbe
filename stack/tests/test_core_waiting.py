"""Who waits, and how he learns of what he waits for: rows CORE-07..10, on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket as kernel
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.link import cable
from stack.socket import syscalls
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import INET, LOOPBACK, STREAM, Calls, World, code, twin

DIFFERENCES = {
    "CORE-09": "an error of a socket (POLLERR) shows in its descriptor as readable and writable, not as POLLERR: the "
    "descriptor is one end of a kernel's socketpair; hang-ups show where they are final",
}

NONBLOCK = 0x800


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from twin(request.param)


@pytest.fixture
def calls(world: World) -> Calls:
    return Calls(os if world.network is None else syscalls)


@pytest.fixture
def pair(world: World) -> Iterator[tuple[Any, Any]]:
    one, other = world.pair()
    with one, other:
        yield one, other


def test_core_07_non_blocking(world: World, calls: Calls) -> None:
    """O_NONBLOCK is of the open file: set by socket(), F_SETFL, FIONBIO and setblocking(), shared by duplicates, and
    not inherited by an accepted socket.
    """
    with world.listener() as listener, world.socket.socket() as client:
        client.connect(listener.getsockname())
        world.settle(listener, IN)
        listener.setblocking(False)
        served, _ = listener.accept()
        with served:
            assert served.getblocking()
            assert os.get_blocking(served.fileno())
            fd = served.fileno()
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
            assert code(served.recv, 1) == errno.EAGAIN
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
            calls.ioctl(fd, 0x5421, struct.pack("i", 1))  # FIONBIO
            assert not os.get_blocking(fd)
            assert code(served.recv, 1) == errno.EAGAIN
            copy = os.dup(fd)
            assert not os.get_blocking(copy)
            os.close(copy)
            served.setblocking(True)
            assert os.get_blocking(fd)
            served.settimeout(3)
            assert not os.get_blocking(fd)
    with world.socket.socket(INET, STREAM | NONBLOCK) as sock:
        assert not sock.getblocking()
        assert sock.gettimeout() == 0
        assert not os.get_blocking(sock.fileno())


def test_core_08_block_on(world: World, pair: tuple[Any, Any]) -> None:
    """Non-blocking calls try once: EAGAIN. A time-out of the program's is TimeoutError, one of SO_RCVTIMEO or
    SO_SNDTIMEO is EAGAIN, of connect() EINPROGRESS.
    """
    one, other = pair
    moment = struct.pack("ll", 0, 1000)
    one.setblocking(False)
    assert code(one.recv, 1) == errno.EAGAIN
    one.settimeout(0.001)
    with pytest.raises(TimeoutError, match="timed out"):
        one.recv(1)
    one.settimeout(None)
    one.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, moment)
    one.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, moment)
    assert code(one.recv, 1) == errno.EAGAIN
    one.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDBUF, 4608)
    other.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 2304)
    assert code(lambda: [one.send(bytes(1 << 20)) for _ in range(100)]) == errno.EAGAIN
    with world.listener() as listener:
        listener.settimeout(None)
        listener.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, moment)
        assert code(listener.accept) == errno.EAGAIN


def test_core_08_connect_in_vain() -> None:
    """SO_SNDTIMEO ends a connect() with EINPROGRESS (in virtual time, towards nobody)."""
    with Network(clock=ManualClock()) as network:
        stack = network.stack("gw")
        left, _ = cable(network.scheduler)
        stack.add_interface(left, addresses=["10.0.0.1/24"])
        with stack.socket.socket() as sock:
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, struct.pack("ll", 1, 0))
            assert code(sock.connect, ("10.0.0.2", 80)) == errno.EINPROGRESS


def test_core_08_signals(world: World, pair: tuple[Any, Any]) -> None:
    """A signal whose handler returns does not end a blocked call (PEP 475); one whose handler raises does."""
    one, other = pair
    one.settimeout(None)
    heard: list[int] = []

    def answer(*_: object) -> None:
        heard.append(1)
        other.send(b"woken")

    def refuse(*_: object) -> None:
        raise ZeroDivisionError

    before = signal.signal(signal.SIGUSR1, answer)
    main = threading.get_ident()
    try:
        for handler in (answer, refuse):
            signal.signal(signal.SIGUSR1, handler)
            timer = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
            timer.start()
            if handler is answer:
                assert one.recv(10) == b"woken"
            else:
                with pytest.raises(ZeroDivisionError):
                    one.recv(10)
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]


def test_core_09_poll_bits(world: World) -> None:
    """The poll bits of one socket in its states; ERR and HUP are told unasked."""
    with world.socket.socket() as sock:
        assert world.bits(sock) == OUT | HUP
        sock.bind((LOOPBACK, 0))
        assert world.bits(sock) == OUT | HUP
        sock.listen()
        assert world.bits(sock) == 0
        with world.socket.socket() as client:
            client.connect(sock.getsockname())
            assert world.settle(sock, IN) == IN
            served, _ = sock.accept()
            assert world.bits(sock) == 0
            assert world.bits(served) == OUT
            client.send(b"x")
            assert world.settle(served, IN) == IN | OUT
            client.shutdown(kernel.SHUT_WR)
            assert world.settle(served, RDHUP) == IN | OUT | RDHUP
            served.close()


def test_core_09_all_bits_at_once() -> None:
    """Refused, a socket is readable, writable, hung up and in error, and poll() of a Stack's socket says so."""
    with Network() as network, network.stack("gw").socket.socket() as sock:
        sock.setblocking(False)
        assert code(sock.connect, (LOOPBACK, 9)) == errno.EINPROGRESS
        assert sock.poll() & (IN | OUT | ERR | HUP | RDHUP) == IN | OUT | ERR | HUP | RDHUP
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNREFUSED
        assert not sock.poll() & ERR


@pytest.mark.parametrize("edge", [0, select.EPOLLET])
def test_core_09_epoll(world: World, pair: tuple[Any, Any], edge: int) -> None:
    """epoll tells of levels, and of edges: each arrival is one, also when something was left unread."""
    one, other = pair
    with select.epoll() as epoll:
        epoll.register(other.fileno(), select.EPOLLIN | edge)
        assert epoll.poll(0) == []
        for number in range(3):
            one.send(b"x")
            world.settle(other, IN)
            assert epoll.poll(10) == [(other.fileno(), select.EPOLLIN)], number
            assert bool(epoll.poll(0)) is not bool(edge)
        other.recv(10)
        assert epoll.poll(0) == []
        one.send(b"x")
        world.settle(other, IN)
        assert epoll.poll(10) == [(other.fileno(), select.EPOLLIN)]
        one.shutdown(kernel.SHUT_WR)
        other.recv(10)
        epoll.modify(other.fileno(), select.EPOLLIN | select.EPOLLRDHUP | edge)
        world.settle(other, RDHUP)
        assert epoll.poll(10) == [(other.fileno(), select.EPOLLIN | select.EPOLLRDHUP)]


def test_core_09_a_descriptor_through_the_states_of_its_socket(world: World) -> None:
    """One registration hears of unbound, listening, and back; and of a connection's end, which is a hang-up."""
    with world.socket.socket() as sock, select.epoll() as epoll, world.socket.socket() as client:
        epoll.register(sock.fileno(), select.EPOLLIN)
        sock.bind((LOOPBACK, 0))
        sock.listen()
        client.connect(sock.getsockname())
        assert epoll.poll(10) == [(sock.fileno(), select.EPOLLIN)] or world.network is None
        served, _ = sock.accept()
        with served:
            served.fileno()
            epoll.register(served.fileno(), 0)
            assert epoll.poll(0) == [] or world.network is None
            client.shutdown(kernel.SHUT_WR)
            world.settle(served, RDHUP)
            served.shutdown(kernel.SHUT_WR)
            world.settle(served, HUP)
            events = dict(epoll.poll(10))
            assert events[served.fileno()] & select.EPOLLHUP


def test_core_10_sigio(world: World, pair: tuple[Any, Any]) -> None:
    """With O_ASYNC and F_SETOWN, readiness sends SIGIO."""
    one, other = pair
    heard = threading.Event()
    before = signal.signal(signal.SIGIO, lambda *_: heard.set())
    try:
        fd = other.fileno()
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        one.send(b"x")
        assert heard.wait(10)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_ASYNC)
    finally:
        signal.signal(signal.SIGIO, before)
