"""`ssl.SSLContext.wrap_socket` over sockets of a Stack: what programs know of ssl.SSLSocket holds."""

from __future__ import annotations

import asyncio
import random
import selectors
import socket as kernel
import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Network, Stack
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.testing.clock import ManualClock
from stack.tests.client_rig import Rig, authority, client_context, in_thread, joined, server_context

BODY = random.Random(6).randbytes(300_000)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with joined() as made:
        yield made


@pytest.fixture
def still() -> Iterator[Stack]:
    """A Stack in virtual time, where one thread plays both ends without waiting."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        yield network.stack("server")


def network_of(stack: Stack) -> Network:
    network = stack.network
    assert isinstance(network, Network)
    return network


def plain_pair(stack: Stack) -> tuple[Any, Any]:
    with stack.socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def wrapped_pair(stack: Stack, context: ssl.SSLContext | None = None, **options: Any) -> tuple[Any, Any]:
    """Both ends non-blocking and through their handshakes."""
    plain, other = plain_pair(stack)
    plain.setblocking(False)
    other.setblocking(False)
    context = context or client_context()
    client = context.wrap_socket(plain, server_hostname="server", do_handshake_on_connect=False, **options)
    served = server_context().wrap_socket(other, server_side=True, do_handshake_on_connect=False)
    todo = [client, served]
    while todo:
        for each in tuple(todo):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
            todo.remove(each)
    return client, served


def test_a_conversation_between_two_stacks(rig: Rig) -> None:
    """Blocking calls, both ends wrapped, a listening socket wrapped: data, addresses and certificates are right."""
    listening = rig.server.socket.create_server(("", 443))

    def serve() -> None:
        with server_context().wrap_socket(listening, server_side=True) as server:
            served, peer = server.accept()
            assert peer[0] == "10.0.0.2"
            with served:
                while data := served.recv(100_000):
                    served.sendall(data)

    context = client_context()
    with in_thread(serve):
        plain = rig.client.socket.create_connection(("server", 443))
        with context.wrap_socket(plain, server_hostname="server") as client:
            assert plain.fileno() == -1
            assert isinstance(client, ssl.SSLSocket)
            assert isinstance(client, rig.client.socket.socket)
            assert client.context is context
            assert client.getpeername() == ("10.0.0.1", 443)
            assert client.version() == "TLSv1.3"
            certificate = client.getpeercert()
            assert certificate is not None
            assert ("DNS", "server") in certificate["subjectAltName"]
            with client.makefile("rwb") as file:
                file.write(BODY)
                file.flush()
                assert file.read(len(BODY)) == BODY
            client.sendfile(_File(BODY[:70_000]))
            buffer = bytearray(70_000)
            view = memoryview(buffer)
            while view:
                view = view[client.recv_into(view) :]
            assert bytes(buffer) == BODY[:70_000]


class _File:
    """A file that os.sendfile could not send."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def read(self, size: int) -> bytes:
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def test_an_unconnected_socket_is_wrapped_first(rig: Rig) -> None:
    with rig.server.socket.create_server(("", 443)) as listening:

        def serve() -> None:
            served = server_context().wrap_socket(listening.accept()[0], server_side=True)
            with served:
                served.sendall(served.recv(10)[::-1])
                assert served.recv(1) == b""

        with (
            in_thread(serve),
            client_context().wrap_socket(rig.client.socket.socket(), server_hostname="server") as client,
        ):
            client.connect(("10.0.0.1", 443))
            with pytest.raises(ValueError, match="already-connected"):
                client.connect(("10.0.0.1", 443))
            client.sendall(b"abc")
            assert client.recv(10) == b"cba"


def test_a_stranger_is_not_believed(rig: Rig) -> None:
    """The client says why in an alert, which the server hears."""
    with rig.server.socket.create_server(("", 443)) as listening:

        def serve() -> None:
            with listening.accept()[0] as plain, pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
                server_context().wrap_socket(plain, server_side=True).recv(1)

        with in_thread(serve), rig.client.socket.create_connection(("server", 443)) as plain:
            with pytest.raises(ssl.SSLCertVerificationError):
                ssl.create_default_context().wrap_socket(plain, server_hostname="server")
            assert plain.fileno() == -1


def test_what_cannot_be_wrapped(still: Stack) -> None:
    """The same exceptions as from a kernel's socket."""
    context = client_context()
    for module in (still.socket, kernel):
        with module.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock, pytest.raises(NotImplementedError):
            context.wrap_socket(sock, server_hostname="server")
        with module.socket() as sock:
            with pytest.raises(ValueError, match="check_hostname"):
                context.wrap_socket(sock)
            with pytest.raises(ValueError, match="client mode"):
                context.wrap_socket(sock, server_side=True, server_hostname="server")
        with context.wrap_socket(module.socket(), server_hostname="server") as sock:
            with pytest.raises(OSError, match=r"not connected"):
                sock.do_handshake()
            for refused, *arguments in ((sock.sendmsg, [b"x"]), (sock.recvmsg, 10), (sock.dup,)):
                with pytest.raises(NotImplementedError):
                    refused(*arguments)


def test_kernel_sockets_are_wrapped_as_ever(still: Stack) -> None:
    assert still.socket is not kernel
    one, other = kernel.socketpair()
    with one, other:
        one.setblocking(False)
        wrapped = client_context().wrap_socket(one, server_hostname="server", do_handshake_on_connect=False)
        assert type(wrapped) is ssl.SSLSocket
        with wrapped, pytest.raises(ssl.SSLWantReadError):
            wrapped.do_handshake()


def test_non_blocking_ends_say_what_they_wait_for(still: Stack) -> None:
    """SSLWantReadError without data; SSLWantWriteError when the peer does not read, and who asks again with the same
    data hears how much of it went.
    """
    client, served = wrapped_pair(still)
    with client, served:
        with pytest.raises(ssl.SSLWantReadError):
            served.recv(10)
        sent = 0
        view = memoryview(BODY * 60)
        with suppress(ssl.SSLWantWriteError):
            while sent < len(view):
                sent += client.send(view[sent:])
        assert sent < len(view)
        received = bytearray()
        while len(received) < len(view):
            try:
                received += served.recv(1 << 16)
            except ssl.SSLWantReadError:
                network_of(still).advance(NS_PER_MS)
            with suppress(ssl.SSLWantWriteError):
                sent += client.send(view[sent:]) if sent < len(view) else 0
        assert sent == len(view)
        assert bytes(received) == BODY * 60
        assert client.pending() == 0


def test_time_outs_are_of_the_whole_operation(still: Stack) -> None:
    client, served = wrapped_pair(still)
    network = network_of(still)
    with client, served:
        client.settimeout(5)
        before = network.clock()
        with pytest.raises(TimeoutError, match="read operation timed out"):
            client.recv(1)
        assert network.clock() - before == 5 * NS_PER_S


def test_the_end_of_tls_and_of_the_connection(still: Stack) -> None:
    """A goodbye is an end; a connection that just ends is one too, unless that is not wanted."""
    client, served = wrapped_pair(still)
    with served:
        client.setblocking(True)
        with pytest.raises(ssl.SSLWantReadError):
            served.unwrap()
        assert client.recv(1) == b""
        client.close()
    client, served = wrapped_pair(still)
    with client:
        kernel_like = served.detach()
        still.socket.close(kernel_like)
        client.setblocking(True)
        assert client.recv(1) == b""
    client, served = wrapped_pair(still, suppress_ragged_eofs=False)
    with client:
        served.close()
        client.setblocking(True)
        if client.context.options & ssl.OP_IGNORE_UNEXPECTED_EOF:  # as some builds of CPython have it by default
            assert client.recv(1) == b""
            return
        with pytest.raises(ssl.SSLEOFError):
            client.recv(1)


def test_after_unwrap_the_socket_is_plain_again(still: Stack) -> None:
    """Nothing is lost of what came right behind the end of TLS."""
    client, served = wrapped_pair(still)
    with client, served:
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()
        assert served.unwrap() is served
        served.sendall(b"plain words")
        assert client.unwrap() is client
        assert client.recv(5) == b"plain"
        buffer = bytearray(10)
        assert client.recv_into(buffer) == 6
        assert buffer[:6] == b" words"
        client.sendall(b"and back")
        assert served.recv(10) == b"and back"
        with pytest.raises(ValueError, match="No SSL wrapper"):
            client.unwrap()


def test_sessions_are_resumed(still: Stack) -> None:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client, served = wrapped_pair(still, context)
    session = client.session
    assert not client.session_reused
    client.close()
    served.close()
    client, served = wrapped_pair(still, context, session=session)
    assert client.session_reused
    client.close()
    served.close()


def test_readiness_shows_through(rig: Rig) -> None:
    """A selector waits on the descriptor of a wrapped socket."""
    client, served = wrapped_pair(rig.server)
    with client, served, selectors.DefaultSelector() as selector:
        selector.register(served, selectors.EVENT_READ)
        with suppress(ssl.SSLWantReadError):
            served.recv(1)  # what is left of the handshake
        assert selector.select(0) == []
        client.send(b"x")
        assert len(selector.select(10)) == 1
        assert served.recv(1) == b"x"


def test_asyncio_streams_over_tls(rig: Rig) -> None:
    """Both ends; the server's socket is of one Stack, the client's is made while the other is installed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readexactly(len(BODY)))[::-1])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> bytes:
        server = await asyncio.start_server(
            answer, sock=rig.server.socket.create_server(("", 443)), ssl=server_context()
        )
        async with server:
            context = client_context()
            reader, writer = await asyncio.open_connection("server", 443, ssl=context)
            assert writer.get_extra_info("peername") == ("10.0.0.1", 443)
            writer.write(BODY)
            data = await reader.read()
            writer.close()
            await writer.wait_closed()
            return data

    authority()
    with rig.client.installed():
        assert asyncio.run(asyncio.wait_for(main(), 30)) == BODY[::-1]
