"""`Stack.socket` as a module, `installed()`, and the descriptors that make select and asyncio work."""

from __future__ import annotations

import asyncio
import errno
import http.client
import io
import os
import random
import select
import selectors
import socket as kernel
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stack import Network, Stack
from stack.link import cable
from stack.socket.mirror import Mirror
from stack.socket.poll import ERR, HUP, IN, OUT, PRI, Pollee
from stack.tests.kernel_twin import UNIX_URGENT


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def pair(stack: Stack) -> tuple[Any, Any]:
    with stack.socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.socket.create_connection(server.getsockname())
        return client, server.accept()[0]


# -- the module -------------------------------------------------------------------------------------------------------


def test_every_name_of_the_standard_module_is_there(stack: Stack) -> None:
    assert set(dir(kernel)) - set(dir(stack.socket)) <= {"__cached__", "__spec__"}
    assert set(kernel.__all__) <= set(stack.socket.__all__)


def test_constants_and_exceptions_are_the_standard_modules(stack: Stack) -> None:
    for name in ("AF_INET", "SOCK_STREAM", "SO_REUSEADDR", "timeout", "gaierror", "error", "inet_aton", "htons"):
        assert getattr(stack.socket, name) is getattr(kernel, name)


def test_what_makes_or_resolves_is_the_stacks(stack: Stack) -> None:
    """A name that quietly stayed the kernel's would make every test of ours a test of the kernel."""
    ours = {name for name in kernel.__all__ if getattr(stack.socket, name) is not getattr(kernel, name)}
    assert ours >= {"socket", "SocketType", "create_connection", "create_server", "getaddrinfo", "gethostbyname"}
    with stack.socket.create_server(("127.0.0.1", 0)) as server:
        assert type(server) is stack.socket.socket
        with stack.socket.create_connection(server.getsockname()) as client:
            assert type(client) is stack.socket.socket
            served, _ = server.accept()
            assert type(served) is stack.socket.socket
            served.close()


def test_names_of_the_network(stack: Stack) -> None:
    left, right = cable(stack.network.scheduler)
    other = Stack("other", network=stack.network)
    stack.add_interface(left, addresses=["10.0.0.1/24", "fd00::1/64"])
    other.add_interface(right, addresses=["10.0.0.2/24"])
    stack.hosts["printer"] = ["10.0.0.77"]
    module = stack.socket
    assert module.gethostname() == "gw"
    assert module.gethostbyname("localhost") == "127.0.0.1"
    assert module.gethostbyname("OTHER") == "10.0.0.2"
    assert module.gethostbyname("printer") == "10.0.0.77"
    assert module.gethostbyaddr("10.0.0.2") == ("other", [], ["10.0.0.2"])
    assert module.getfqdn("10.0.0.77") == "printer"
    assert module.getfqdn("") == "gw"
    assert [info[4][0] for info in module.getaddrinfo("gw", 80, 0, kernel.SOCK_STREAM)] == ["10.0.0.1", "fd00::1"]
    assert module.getnameinfo(("10.0.0.2", 80), 0) == ("other", "http")
    assert module.getnameinfo(("10.0.0.9", 9), kernel.NI_NUMERICSERV) == ("10.0.0.9", "9")
    assert module.if_nameindex() == [(1, "lo"), (2, "eth0")]
    assert (module.if_nametoindex("eth0"), module.if_indextoname(1)) == (2, "lo")
    for function, argument in ((module.if_nametoindex, "eth9"), (module.if_indextoname, 9)):
        with pytest.raises(OSError, match=r"interface|No such"):
            function(argument)


def test_default_timeout(stack: Stack) -> None:
    stack.socket.setdefaulttimeout(2.5)
    with stack.socket.socket() as sock:
        assert sock.gettimeout() == 2.5
    with pytest.raises(ValueError, match="out of range"):
        stack.socket.setdefaulttimeout(-1)
    assert kernel.getdefaulttimeout() is None


# -- files, duplicates, detached sockets ------------------------------------------------------------------------------


def test_makefile_keeps_the_connection_open(stack: Stack) -> None:
    client, served = pair(stack)
    with served:
        file = client.makefile("rwb")
        client.close()
        served.sendall(b"line\n")
        assert file.readline() == b"line\n"
        file.write(b"answer")
        file.flush()
        assert served.recv(10) == b"answer"
        file.close()
        assert served.recv(10) == b""


@pytest.mark.parametrize(
    ("mode", "kind"), [("rb", io.BufferedReader), ("wb", io.BufferedWriter), ("r", io.TextIOWrapper)]
)
def test_kinds_of_files(stack: Stack, mode: str, kind: type) -> None:
    client, served = pair(stack)
    with client, served, client.makefile(mode) as file:
        assert type(file) is kind
    with client, pytest.raises(ValueError, match="invalid mode"):
        client.makefile("a")


def test_unbuffered_text_is_refused(stack: Stack) -> None:
    client, served = pair(stack)
    with client, served, pytest.raises(ValueError, match="must be binary"):
        client.makefile("r", buffering=0)
    client.close()


def test_dup_shares_the_connection(stack: Stack) -> None:
    client, served = pair(stack)
    with served:
        copy = client.dup()
        client.close()
        with pytest.raises(OSError, match="closed") as caught:
            client.send(b"x")
        assert caught.value.errno == errno.EBADF
        copy.send(b"still here")
        assert served.recv(20) == b"still here"
        copy.close()
        assert served.recv(1) == b""


def test_detach_and_take_up_again(stack: Stack) -> None:
    client, served = pair(stack)
    with served:
        fd = client.detach()
        assert fd >= 0
        assert client.fileno() == -1
        again = stack.socket.socket(fileno=fd)
        again.send(b"hello")
        assert served.recv(10) == b"hello"
        again.close()
        assert served.recv(10) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        stack.socket.socket(fileno=fd)


def test_sendfile(stack: Stack, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(700_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    client, served = pair(stack)
    received = bytearray()

    def drain() -> None:
        while data := served.recv(1 << 16):
            received.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    with client, path.open("rb") as file:
        assert client.sendfile(file, 100) == len(content) - 100
        assert file.tell() == len(content)
        assert client.sendfile(file, 0, 10) == 10
    thread.join()
    served.close()
    assert received == content[100:] + content[:10]


def test_unclosed_socket_warns_and_is_closed(stack: Stack) -> None:
    client, served = pair(stack)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del client
    with served:
        assert served.recv(1) == b""


# -- descriptors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0, (False, False)),
        (IN, (True, False)),
        (OUT, (False, True)),
        (IN | OUT, (True, True)),
        (ERR, (True, True)),
        (OUT | HUP, (False, True)),
        (PRI, (False, False)),
        (IN | PRI, (True, False)),
        (IN | OUT | PRI, (True, True)),
    ],
)
def test_mirror_follows_every_level(bits: int, expected: tuple[bool, bool]) -> None:
    """From every state to every other, and asking twice changes nothing."""
    states = [0, IN, OUT, IN | OUT, ERR, OUT | HUP, PRI, IN | PRI, IN | OUT | PRI]
    for other in states:
        now = [other]
        pollee = Pollee(partial(now.__getitem__, 0), [])
        mirror = Mirror(pollee)
        for state in (other, bits, bits):
            now[0] = state
            pollee.settle()
        for _ in range(2):
            end = mirror.first()
            readable, writable, urgent = select.select([end], [end], [end], 0)
            assert (bool(readable), bool(writable)) == expected
            assert bool(urgent) is (UNIX_URGENT and bits & (IN | PRI) == IN | PRI)
        mirror.close()
        mirror.close()


def ready(sock: Any) -> tuple[bool, bool]:
    readable, writable, _ = select.select([sock], [sock], [], 0)
    return bool(readable), bool(writable)


def test_select_sees_what_poll_would(stack: Stack) -> None:
    """Level by level and at once: what a call takes away does not show any more when it returns."""
    client, served = pair(stack)
    with client, served:
        assert ready(served) == (False, True)
        client.send(b"two")
        assert ready(served) == (True, True)
        served.recv(1)
        assert ready(served) == (True, True)
        served.recv(10)
        assert ready(served) == (False, True)
        client.setblocking(False)
        try:
            while client.send(bytes(1 << 16)):
                pass
        except BlockingIOError:
            pass
        assert ready(client) == (False, False)
        while not ready(client)[1]:
            served.recv(1 << 20)
        client.close()
        while served.recv(1 << 20):
            pass
        assert ready(served) == (True, True)


def test_a_listener_in_a_selector(stack: Stack) -> None:
    with stack.socket.create_server(("127.0.0.1", 0)) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        assert selector.select(0) == []
        client = stack.socket.create_connection(server.getsockname())
        assert len(selector.select(0)) == 1
        server.accept()[0].close()
        assert selector.select(0) == []
        client.close()
        selector.unregister(server)


def test_descriptor_of_a_socket_closes_with_it(stack: Stack) -> None:
    sock = stack.socket.socket()
    fd = sock.fileno()
    assert sock.fileno() == fd
    sock.close()
    assert sock.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# -- installed --------------------------------------------------------------------------------------------------------


def test_installed_is_in_force_and_ends(stack: Stack) -> None:
    before = dict(vars(kernel))
    with stack.installed() as same:
        assert same is stack
        assert issubclass(kernel.socket, stack.socket.socket)
        with kernel.socket() as sock:
            assert isinstance(sock, kernel.socket)
            assert isinstance(sock, stack.socket.socket)
        one, other = kernel.socketpair()
        with one, other:
            assert type(one) is before["socket"]
            assert isinstance(one, kernel.socket)
        with kernel.socket(kernel.AF_UNIX, kernel.SOCK_DGRAM) as unix:
            assert type(unix) is before["socket"]
    assert dict(vars(kernel)) == before


def test_uses_are_counted_and_may_overlap(stack: Stack) -> None:
    other = Stack("other", network=stack.network)
    original = kernel.socket
    first, second, third = stack.installed(), other.installed(), stack.installed()
    first.__enter__()
    second.__enter__()
    assert kernel.gethostname() == "other"
    third.__enter__()
    assert kernel.gethostname() == "gw"
    first.__exit__(None, None, None)
    assert kernel.gethostname() == "gw"
    third.__exit__(None, None, None)
    assert kernel.gethostname() == "other"
    second.__exit__(None, None, None)
    assert kernel.socket is original


def test_installed_ends_with_an_exception(stack: Stack) -> None:
    original = kernel.socket
    with pytest.raises(ZeroDivisionError), stack.installed():
        raise ZeroDivisionError
    assert kernel.socket is original


def test_kernel_sockets_go_on_working_meanwhile(stack: Stack) -> None:
    """A server of the kernel accepts while ours is installed: what it makes from a descriptor is the kernel's."""
    with kernel.create_server(("127.0.0.1", 0)) as server, kernel.create_connection(server.getsockname()) as client:
        with stack.installed():
            served, _ = server.accept()
        with served:
            assert isinstance(served, kernel.socket)
            client.sendall(b"x")
            assert served.recv(1) == b"x"


def test_our_own_code_is_not_affected(stack: Stack) -> None:
    """fileno() makes a kernel socketpair in the middle of it; a second Network starts its thread."""
    with stack.installed():
        client, served = pair(stack)
        with client, served:
            assert ready(client) == (False, True)
        with Network() as network:
            network.start()


def test_asyncio_streams(stack: Stack) -> None:
    async def main() -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 8000)
        async with server:
            reader, writer = await asyncio.open_connection("localhost", 8000)
            writer.write(b"hello\n")
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return line

    with stack.installed():
        assert asyncio.run(asyncio.wait_for(main(), 20)) == b"HELLO\n"


def test_a_client_made_inside_goes_on_outside(stack: Stack) -> None:
    with stack.socket.create_server(("127.0.0.1", 80)) as server:
        with stack.installed():
            connection = http.client.HTTPConnection("127.0.0.1")
            connection.request("GET", "/")
        served, _ = server.accept()
        with served:
            assert served.recv(100).startswith(b"GET / HTTP/1.1\r\n")
            served.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert connection.getresponse().read() == b"ok"
        connection.close()
