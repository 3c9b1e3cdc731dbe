"""Programs written for the standard library's `socket` over a Stack's Unix sockets: asyncio, socketserver, send_fds."""

from __future__ import annotations

import asyncio
import os
import socket as kernel
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import Network, Stack


@pytest.fixture
def gw() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def test_asyncio_streams(gw: Stack) -> None:
    """A server and a client of asyncio's streams on sockets of ours."""
    module = gw.socket

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def session() -> bytes:
        listener = module.socket(module.AF_UNIX)
        listener.bind("/run/echo")
        listener.listen()
        server = await asyncio.start_unix_server(serve, sock=listener)
        client = module.socket(module.AF_UNIX)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, "/run/echo")
        reader, writer = await asyncio.open_unix_connection(sock=client)
        writer.write(b"hello\n" * 80_000)  # more than the buffers hold
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return answer

    assert asyncio.run(session()) == b"HELLO\n" * 80_000


def test_socketserver(gw: Stack) -> None:
    """socketserver.UnixStreamServer at a path of the Stack; the host's tree is not touched."""

    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline().upper())

    with gw.installed(families=(kernel.AF_UNIX,)), socketserver.UnixStreamServer("/run/server", Echo) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with kernel.socket(kernel.AF_UNIX) as client:
            client.connect("/run/server")
            client.sendall(b"hello\n")
            with client.makefile("rb") as answers:
                assert answers.readline() == b"HELLO\n"
        thread.join()
    assert gw.files.listdir("/run") == ["server"]
    assert not Path("/run/server").exists()


def test_send_fds(gw: Stack) -> None:
    """socket.send_fds and recv_fds of the module."""
    module = gw.socket
    one, other = module.socketpair()
    read, write = os.pipe()
    with one, other:
        assert module.send_fds(one, [b"x"], [write]) == 1
        os.close(write)
        data, fds, flags, address = module.recv_fds(other, 9, 5)
        assert (data, flags, address) == (b"x", 0, None)
        os.write(fds[0], b"through")
        os.close(fds[0])
    assert os.read(read, 99) == b"through"
    os.close(read)


def test_two_stacks_have_the_same_path(gw: Stack) -> None:
    """A path is of one Stack: two of a Network have different sockets there."""
    twin = gw.network.stack("twin")  # type: ignore[attr-defined]  # a Network is more than a Stack needs of it
    servers = []
    for stack in (gw, twin):
        server = stack.socket.socket(kernel.AF_UNIX)
        server.bind("/run/x")
        server.listen()
        servers.append(server)
    with twin.socket.socket(kernel.AF_UNIX) as client:
        client.connect("/run/x")
        client.send(b"x")
        served, _ = servers[1].accept()
        with served:
            assert served.recv(9) == b"x"
        servers[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            servers[0].accept()
    for server in servers:
        server.close()
