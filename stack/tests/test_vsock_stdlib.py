"""AF_VSOCK programs written for the standard library's `socket`, unchanged, on a Stack (loopback, CID 1)."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from stack import Network, Stack
from stack.tests.kernel_twin import code


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network, network.stack("host").installed() as installed:
        yield installed


def test_an_echo_server_and_its_client(stack: Stack) -> None:
    """As in every tutorial: bind to VMADDR_CID_ANY, listen, accept; connect to (CID, port)."""
    server = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    server.bind((socket.VMADDR_CID_ANY, 5000))
    server.listen()

    def serve() -> None:
        conn, (cid, port) = server.accept()
        with conn:
            assert cid == 1
            assert port != 5000
            while data := conn.recv(1024):
                conn.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
        client.connect((1, 5000))
        assert client.getpeername() == (1, 5000)
        client.sendall(b"hello, vsock")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            assert file.read() == b"hello, vsock"
    thread.join()
    server.close()


def test_options_and_local_cid(stack: Stack) -> None:
    """SO_VM_SOCKETS_* as 64-bit numbers; IOCTL_VM_SOCKETS_GET_LOCAL_CID through fcntl.ioctl; the VMADDR_ constants."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        assert sock.getsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE) == 256 * 1024
        sock.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, 1 << 20)
        assert sock.getsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE) == 1 << 20
        answer = fcntl.ioctl(sock, socket.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4))
        assert struct.unpack("I", answer) == (socket.VMADDR_CID_HOST,)
        assert sock.getsockname() == (socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY)
    assert (socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY, socket.VMADDR_CID_HOST) == (0xFFFFFFFF, 0xFFFFFFFF, 2)
    assert socket.VM_SOCKETS_INVALID_VERSION == 0xFFFFFFFF


def test_vs_01_a_socket_through_its_phases(stack: Stack) -> None:
    """A socket is unconnected, connecting, connected or listening; after a failed connect() another is allowed."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, 5001))
        listener.listen()
        assert code(listener.connect, (1, 5001)) == errno.EINVAL
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
            assert code(client.connect, (77, 5001)) == errno.ENODEV
            assert code(client.connect, (1, 5002)) == errno.ECONNRESET
            client.connect((1, 5001))
            assert code(client.connect, (1, 5001)) == errno.EISCONN
            assert code(client.listen) == errno.EINVAL
            served, _ = listener.accept()
            served.close()
            assert client.recv(1) == b""


def test_asyncio_over_vsock(stack: Stack) -> None:
    import asyncio

    async def main() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read(100)).upper())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listening.bind((socket.VMADDR_CID_ANY, 5003))
        server = await asyncio.start_server(answer, sock=listening)
        async with server:
            client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, (1, 5003))
            reader, writer = await asyncio.open_connection(sock=client)
            writer.write(b"async")
            data = await reader.read()
            writer.close()
            await writer.wait_closed()
            return data

    assert asyncio.run(asyncio.wait_for(main(), 20)) == b"ASYNC"
