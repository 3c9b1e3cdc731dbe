"""Descriptors of a Stack's sockets: how many there are, who has them, and what is closed when."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import select
import socket as kernel
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from stack import Network, Stack
from stack.socket import syscalls
from stack.tests.kernel_twin import code
from stack.tests.test_runner_blocking import until_waiting


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def pair(stack: Stack) -> tuple[Any, Any]:
    with stack.socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def count() -> int:
    gc.collect()  # what others left goes now, not in between
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0), hard))
    try:
        yield
    finally:
        taken = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken)


def test_sockets_nobody_waits_for_have_none(stack: Stack) -> None:
    """A connection costs no descriptor and no thread until somebody asks for `fileno`; then two descriptors."""
    before, threads = count(), threading.active_count()
    pairs = [pair(stack) for _ in range(20)]
    assert (count(), threading.active_count()) == (before, threads)
    for client, _ in pairs:
        assert client.fileno() == client.fileno()
    assert (count(), threading.active_count()) == (before + 40, threads)
    for client, served in pairs:
        client.close()
        served.close()
    assert count() <= before  # what others left may have gone meanwhile


def test_running_out_of_descriptors_is_an_error(stack: Stack) -> None:
    """EMFILE from `fileno` and `dup`; the socket goes on working, and has one when there is one again."""
    client, served = pair(stack)
    with client, served:
        with no_more_descriptors():
            assert code(client.fileno) == errno.EMFILE
            assert code(client.dup) == errno.EMFILE
            assert code(client.detach) == errno.EMFILE
            client.sendall(b"still")
            assert served.recv(10) == b"still"
        fd = client.fileno()
        assert fd >= 0
        with no_more_descriptors():
            assert code(client.dup) == errno.EMFILE
            assert client.fileno() == fd
        client.sendall(b"here")
        assert served.recv(10) == b"here"


def test_the_last_descriptor_ends_the_socket(stack: Stack) -> None:
    """detach, os.dup and os.close: the peer sees the end when the last descriptor is closed, by whomever."""
    client, served = pair(stack)
    with served:
        first = client.detach()
        second = os.dup(first)
        os.close(first)
        served.setblocking(False)
        assert code(served.recv, 1) == errno.EAGAIN
        os.close(second)
        served.settimeout(10)
        assert served.recv(1) == b""


def test_a_detached_descriptor_goes_on_showing_readiness(stack: Stack) -> None:
    client, served = pair(stack)
    with served:
        fd = client.detach()
        with select.epoll() as epoll:
            epoll.register(fd, select.EPOLLIN)
            assert epoll.poll(0) == []
            served.sendall(b"x")
            assert epoll.poll(10) == [(fd, select.EPOLLIN)]
            assert syscalls.read(fd, 10) == b"x"
            assert epoll.poll(0) == []
        again = stack.socket.socket(fileno=fd)
        assert again.fileno() == fd
        again.close()
        assert served.recv(1) == b""


def test_a_descriptor_closed_by_number_is_left_alone(stack: Stack) -> None:
    """Whose number it is next is not written to, not read, not closed; the socket object goes on without."""
    client, served = pair(stack)
    with served:
        fd = client.fileno()
        reading, writing = kernel.socketpair()
        with reading, writing:
            os.dup2(reading.fileno(), fd)
            client.setblocking(False)
            with suppress(BlockingIOError):
                while client.send(bytes(1 << 16)):
                    pass
            served.sendall(b"x")
            writing.setblocking(False)
            assert code(writing.recv, 1) == errno.EAGAIN
            client.close()
            os.fstat(fd)
            os.close(fd)


def test_objects_that_share_an_open_socket(stack: Stack) -> None:
    """Each has its own descriptor and time-out; one's close() is not the other's."""
    client, served = pair(stack)
    with served:
        copy = client.dup()
        assert copy.fileno() != client.fileno()
        client.settimeout(7)
        assert copy.gettimeout() is None
        with select.epoll() as epoll:
            epoll.register(copy.fileno(), select.EPOLLIN)
            client.close()
            served.sendall(b"x")
            assert len(epoll.poll(10)) == 1
        assert copy.recv(1) == b"x"
        copy.close()
        assert served.recv(1) == b""


def test_a_lost_socket_warns_with_its_source(stack: Stack) -> None:
    """ResourceWarning names the socket and carries it as `source`; the connection ends all the same."""
    with warnings.catch_warnings(action="ignore"):
        gc.collect()  # what other tests left, and would be told of below
    client, served = pair(stack)
    client.fileno()
    before = count()
    shown = repr(client)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client  # nothing else refers to it
    (warning,) = caught
    assert warning.category is ResourceWarning
    assert str(warning.message) == f"unclosed {shown}"
    assert warning.source is not None
    del warning, caught
    with served:
        assert served.recv(1) == b""
    gc.collect()
    assert count() == before - 2


def test_a_lost_socket_under_an_interrupted_lock(stack: Stack) -> None:
    """The collector may run while a thread holds the Network's lock: a finaliser waits for nothing."""
    client, served = pair(stack)
    network = stack.network
    held = [client]
    del client

    def lose() -> None:
        with network.lock:
            held.clear()
            gc.collect()

    with pytest.warns(ResourceWarning):
        lose()
    with served:
        assert served.recv(1) == b""


def test_a_failed_constructor_leaves_nothing(stack: Stack) -> None:
    before = count()
    for arguments in ((99, 1), (2, 9), ("x",), (2, 1, 0, -1), (2, 1, 0, 1.5), (2, 1 << 40)):
        with pytest.raises((OSError, TypeError, ValueError, OverflowError)):
            stack.socket.socket(*arguments)
    gc.collect()
    assert count() <= before  # what others left may have gone meanwhile


def test_a_thread_blocked_in_recv_costs_no_polling(stack: Stack) -> None:
    """It sleeps: the Network runs no turn while nothing happens."""
    client, served = pair(stack)
    network = stack.network
    assert isinstance(network, Network)
    with client, served:
        heard: list[bytes] = []
        thread = threading.Thread(target=lambda: heard.append(served.recv(10)))
        thread.start()
        until_waiting(network)
        client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_NODELAY, 1)
        with network.lock:
            before = network.stats.calls
        thread.join(0.15)
        with network.lock:
            assert network.stats.calls == before
            turns = network.stats.turns
        thread.join(0.15)
        with network.lock:
            assert network.stats.turns - turns <= 2  # a timer of TCP may be due
        client.sendall(b"now")
        thread.join()
        assert heard == [b"now"]


def test_many_sockets_in_one_event_loop(stack: Stack) -> None:
    """Two hundred conversations at a time, each on a descriptor, in one thread."""

    async def converse(loop: Any, client: Any, served: Any, number: int) -> bytes:
        client.setblocking(False)
        served.setblocking(False)
        waiting = asyncio.create_task(loop.sock_recv(served, 100))
        await loop.sock_sendall(client, b"%d" % number)
        data: bytes = await waiting
        client.close()
        served.close()
        return data

    async def main() -> list[bytes]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(converse(loop, *pair(stack), number) for number in range(200)))

    before = count()
    assert asyncio.run(main()) == [b"%d" % number for number in range(200)]
    assert count() <= before  # what others left may have gone meanwhile


# -- what installed() adds --------------------------------------------------------------------------------------------


def test_system_calls_while_installed(stack: Stack, tmp_path: Any) -> None:
    """os.read, os.write, os.readv, os.writev and os.sendfile reach the Stack's sockets, and files as ever."""
    before = (os.read, os.write, os.readv, os.writev, os.sendfile)
    client, served = pair(stack)
    path = tmp_path / "file"
    path.write_bytes(b"from a file")
    with client, served, stack.installed():
        assert os.write(client.fileno(), b"written") == 7
        assert os.read(served.fileno(), 100) == b"written"
        assert os.writev(client.fileno(), [b"a", b"bc"]) == 3
        buffers = [bytearray(2), bytearray(2)]
        assert os.readv(served.fileno(), buffers) == 3
        assert buffers == [b"ab", b"c\0"]
        with path.open("rb") as file:
            assert os.sendfile(client.fileno(), file.fileno(), 5, 100) == 6
            assert os.read(file.fileno(), 4) == b"from"
        assert os.read(served.fileno(), 100) == b"a file"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.read(987654, 1)
        done = subprocess.run([sys.executable, "-c", "print('out')"], check=True, stdout=subprocess.PIPE)
        assert done.stdout == b"out\n"
    assert (os.read, os.write, os.readv, os.writev, os.sendfile) == before


def test_families_of_installed(stack: Stack) -> None:
    """AF_INET, AF_INET6 and AF_VSOCK are the Stack's by default, AF_UNIX and socketpair the kernel's; both on
    request.
    """
    theirs = kernel.socket
    ours = stack.socket.socket
    with stack.installed():
        for family, kind in ((kernel.AF_INET, 1), (kernel.AF_INET6, 2), (kernel.AF_VSOCK, 1), (kernel.AF_NETLINK, 3)):
            with kernel.socket(family, kind) as sock:
                assert isinstance(sock, ours)
        with kernel.socket(kernel.AF_UNIX) as sock:
            assert type(sock) is theirs
        one, other = kernel.socketpair()
        with one, other:
            assert type(one) is theirs
    with stack.installed(families=(kernel.AF_UNIX,)):
        one, other = kernel.socketpair()
        with one, other, kernel.socket(kernel.AF_UNIX) as sock, kernel.socket(kernel.AF_INET) as inet:
            assert isinstance(one, ours)
            assert isinstance(sock, ours)
            assert type(inet) is theirs
    assert kernel.socket is theirs


def test_functions_of_the_standard_module_follow(stack: Stack) -> None:
    """create_connection, create_server, fromfd and getfqdn look up what is installed, also for who imported them."""
    from socket import create_connection, create_server, fromfd, getfqdn, has_dualstack_ipv6

    with stack.installed():
        assert getfqdn() == "gw"
        assert has_dualstack_ipv6()
        with create_server(("127.0.0.1", 0)) as server, create_connection(server.getsockname()) as client:
            served, _ = server.accept()
            with served, fromfd(served.fileno(), kernel.AF_INET, kernel.SOCK_STREAM) as copy:
                assert isinstance(client, stack.socket.socket)
                client.sendall(b"x")
                assert copy.recv(1) == b"x"
        kernels = os.dup(0)
        os.close(kernels)


def test_classes_made_meanwhile(stack: Stack) -> None:
    """A program's own subclass of socket.socket, with a constructor of its own, is a socket of the Stack."""
    with stack.installed():

        class Named(kernel.socket):
            def __init__(self, title: str) -> None:
                super().__init__(kernel.AF_INET, kernel.SOCK_DGRAM)
                self.title = title

        with Named("mine") as sock:
            assert isinstance(sock, stack.socket.socket)
            assert isinstance(sock, kernel.socket)
            assert sock.title == "mine"
