"""Network programs of the standard library, unchanged, against servers on a second Stack."""

from __future__ import annotations

import asyncio
import ftplib
import http.client
import http.server
import io
import random
import smtplib
import socket as kernel
import socketserver
import ssl
import urllib.request
import xmlrpc.client
import xmlrpc.server
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack.tests.client_rig import PATIENCE, Rig, client_context, in_thread, joined, server_context, serving

BODY = random.Random(8).randbytes(150_000)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with joined() as made:
        yield made


class Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Quiet."""


def on_server(rig: Rig, kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A server of `kind` whose sockets are the server's."""
    with rig.server.installed():
        return kind(("", 0), *args, **kwargs)


def test_http_and_urllib_over_tls(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    server = on_server(rig, http.server.ThreadingHTTPServer, Web)
    server.socket = server_context().wrap_socket(server.socket, server_side=True)
    with serving(server), rig.client.installed():
        connection = http.client.HTTPSConnection(
            "server", server.server_port, timeout=PATIENCE, context=client_context()
        )
        for _ in range(2):
            connection.request("GET", "/")
            assert connection.getresponse().read() == BODY
        connection.close()
        url = f"https://10.0.0.1:{server.server_port}/"
        with urllib.request.urlopen(url, timeout=PATIENCE, context=client_context()) as answer:
            assert answer.read() == BODY


class Upper(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_socketserver_streams(rig: Rig, kind: Any) -> None:
    server = on_server(rig, kind, Upper)
    with serving(server), rig.client.socket.create_connection(("server", server.server_address[1])) as client:
        client.sendall(b"one\ntwo\n")
        client.shutdown(kernel.SHUT_WR)
        with client.makefile() as lines:
            assert list(lines) == ["ONE\n", "TWO\n"]


class Reverse(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.read()[::-1])


def test_socketserver_datagrams(rig: Rig) -> None:
    server = on_server(rig, socketserver.UDPServer, Reverse)
    with serving(server), rig.client.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"abc", ("server", server.server_address[1]))
        assert client.recvfrom(10) == (b"cba", ("10.0.0.1", server.server_address[1]))


def test_xmlrpc(rig: Rig) -> None:
    server = on_server(rig, xmlrpc.server.SimpleXMLRPCServer, logRequests=False)
    server.register_function(lambda *numbers: sum(numbers), "add")
    with (
        serving(server),
        rig.client.installed(),
        xmlrpc.client.ServerProxy(f"http://server:{server.server_address[1]}/") as proxy,
    ):
        assert proxy.add(2, 3, 4) == 9


class Mail(socketserver.StreamRequestHandler):
    """Just enough of RFC 5321 and STARTTLS."""

    def handle(self) -> None:
        self.say(b"220 server")
        while line := self.rfile.readline():
            word = line.split()[0].upper()
            if word == b"EHLO":
                self.say(b"250-server")
                self.say(b"250 STARTTLS")
            elif word == b"STARTTLS":
                self.say(b"220 go on")
                self.request = server_context().wrap_socket(self.request, server_side=True)
                self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
            elif word == b"DATA":
                self.say(b"354 go on")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.received.append((text, self.request.version()))  # type: ignore[attr-defined]
                self.say(b"250 kept")
            elif word == b"QUIT":
                self.say(b"221 bye")
                return
            else:
                self.say(b"250 fine")

    def say(self, line: bytes) -> None:
        self.wfile.write(line + b"\r\n")

    def finish(self) -> None:
        super().finish()
        self.request.close()


def test_smtplib_with_starttls(rig: Rig) -> None:
    server = on_server(rig, socketserver.ThreadingTCPServer, Mail)
    server.received = []
    with serving(server), rig.client.installed():
        with smtplib.SMTP("server", server.server_address[1], timeout=PATIENCE) as client:
            client.starttls(context=client_context())
            client.sendmail("a@client", ["b@server"], "Subject: hello\r\n\r\nbody\r\n")
        assert server.received == [(b"Subject: hello\r\n\r\nbody\r\n", "TLSv1.3")]


class Files(Mail):
    """Just enough of RFC 959, with passive transfers over TLS (RFC 4217)."""

    def handle(self) -> None:
        self.say(b"220 server")
        data: Any = None
        stored = self.server.stored  # type: ignore[attr-defined]
        while line := self.rfile.readline():
            word, _, rest = line.strip().partition(b" ")
            if word == b"AUTH":
                self.say(b"234 go on")
                self.request = server_context().wrap_socket(self.request, server_side=True)
                self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
            elif word == b"PASV":
                data = self.server.stack.socket.create_server(("", 0))  # type: ignore[attr-defined]
                port = data.getsockname()[1]
                self.say(b"227 here (10,0,0,1,%d,%d)" % divmod(port, 256))
            elif word in (b"RETR", b"STOR"):
                self.say(b"150 go on")
                with data, server_context().wrap_socket(data.accept()[0], server_side=True) as transfer:
                    if word == b"RETR":
                        transfer.sendall(stored[rest])
                    else:
                        stored[rest] = b"".join(iter(lambda: transfer.recv(65536), b""))
                    with suppress(OSError):
                        transfer.unwrap()
                self.say(b"226 done")
            elif word == b"QUIT":
                self.say(b"221 bye")
                return
            else:
                self.say(b"331 go on" if word == b"USER" else b"230 fine" if word == b"PASS" else b"200 fine")


def test_ftplib_over_tls(rig: Rig) -> None:
    server = on_server(rig, socketserver.ThreadingTCPServer, Files)
    server.stored, server.stack = {}, rig.server
    with serving(server), rig.client.installed():
        with ftplib.FTP_TLS(timeout=PATIENCE, context=client_context()) as client:
            client.connect("server", server.server_address[1])
            client.login("user", "word")
            client.prot_p()
            client.storbinary("STOR file", io.BytesIO(BODY))
            received = bytearray()
            client.retrbinary("RETR file", received.extend)
        assert received == BODY


# -- asyncio ----------------------------------------------------------------------------------------------------------


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


def test_asyncio_socket_methods(rig: Rig, tmp_path: Any) -> None:
    """sock_connect, sock_accept, sock_sendall, sock_recv, sock_recv_into, sock_sendfile, and the datagram ones."""
    path = tmp_path / "file"
    path.write_bytes(BODY)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with rig.server.socket.create_server(("", 80)) as listening, rig.client.socket.socket() as client:
            listening.setblocking(False)
            client.setblocking(False)
            accepting = asyncio.create_task(loop.sock_accept(listening))
            await loop.sock_connect(client, ("10.0.0.1", 80))
            served, peer = await accepting
            assert peer == client.getsockname()
            with served:
                sending = asyncio.create_task(loop.sock_sendall(client, BODY))
                received = b""
                while len(received) < len(BODY):
                    received += await loop.sock_recv(served, 1 << 16)
                await sending
                assert received == BODY
                with path.open("rb") as file:
                    whole = asyncio.create_task(loop.sock_sendfile(client, file))
                    buffer = bytearray(len(BODY))
                    view = memoryview(buffer)
                    while view:
                        view = view[await loop.sock_recv_into(served, view) :]
                    assert await whole == len(BODY)
                assert bytes(buffer) == BODY
        with (
            rig.server.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as one,
            rig.client.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as other,
        ):
            one.bind(("", 53))
            one.setblocking(False)
            other.setblocking(False)
            waiting = asyncio.create_task(loop.sock_recvfrom(one, 100))
            await loop.sock_sendto(other, b"question", ("10.0.0.1", 53))
            data, sender = await waiting
            assert data == b"question"
            await loop.sock_sendto(one, b"answer", sender)
            assert await loop.sock_recv(other, 100) == b"answer"

    with rig.client.installed():
        run(main())


def test_asyncio_datagram_endpoints(rig: Rig) -> None:
    """An endpoint of each kind: on a socket, and made by the loop; an ICMP error reaches error_received."""

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data.upper(), addr)

    class Asker(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.heard.set_result((data, addr))

        def error_received(self, exc: Exception) -> None:
            self.heard.set_result(type(exc))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        bound = rig.server.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
        bound.bind(("", 7))
        served, _ = await loop.create_datagram_endpoint(Echo, sock=bound)
        transport, asker = await loop.create_datagram_endpoint(Asker, remote_addr=("10.0.0.1", 7))
        transport.sendto(b"hello")
        assert await asker.heard == (b"HELLO", ("10.0.0.1", 7))
        transport.close()
        served.close()
        transport, asker = await loop.create_datagram_endpoint(Asker, remote_addr=("10.0.0.1", 9))
        transport.sendto(b"anybody?")
        assert await asker.heard is ConnectionRefusedError
        transport.close()

    with rig.client.installed():
        run(main())


def test_asyncio_servers_and_many_connections(rig: Rig) -> None:
    """A server made while the one Stack is installed serves clients made while the other is."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def ask(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("server", 8000)
        writer.write(b"%d" % number)
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return data

    async def main() -> None:
        with rig.server.installed():
            server = await asyncio.start_server(answer, "10.0.0.1", 8000)
        async with server:
            with rig.client.installed():
                answers = await asyncio.gather(*(ask(number) for number in range(30)))
                assert answers == [b"%d" % number for number in range(30)]
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection("10.0.0.1", 8001)

    run(main())


def test_asyncio_start_tls(rig: Rig) -> None:
    """A conversation that becomes encrypted on the way."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"tls please\n"
        writer.write(b"yes\n")
        await writer.drain()
        await writer.start_tls(server_context())
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(answer, sock=rig.server.socket.create_server(("", 25)))
        async with server:
            reader, writer = await asyncio.open_connection(sock=rig.client.socket.create_connection(("server", 25)))
            writer.write(b"tls please\n")
            assert await reader.readline() == b"yes\n"
            await writer.start_tls(client_context(), server_hostname="server")
            writer.write(b"secret\n")
            assert await reader.readline() == b"SECRET\n"
            writer.close()
            await writer.wait_closed()

    run(main())


def test_get_server_certificate(rig: Rig) -> None:
    with rig.server.socket.create_server(("", 443)) as listening:

        def serve() -> None:
            with server_context().wrap_socket(listening.accept()[0], server_side=True) as served, suppress(OSError):
                served.recv(1)  # the client leaves without a word

        with in_thread(serve), rig.client.installed():
            assert ssl.get_server_certificate(("server", 443)).startswith("-----BEGIN CERTIFICATE")
