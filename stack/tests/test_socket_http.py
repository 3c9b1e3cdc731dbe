"""http.client and http.server of the standard library, unchanged, on Stacks: over lo and over a cable, in real and in
virtual time.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import random
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stack import Network, Stack
from stack.link import Impairment, cable
from stack.scheduler import NS_PER_MS
from stack.testing.clock import ManualClock

BODY = random.Random(4).randbytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(data).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Quiet."""


def joined(network: Network, impairment: Impairment | None = None) -> tuple[Stack, Stack]:
    left, right = cable(network.scheduler, a_to_b=impairment, b_to_a=impairment)
    server, client = network.stack("server"), network.stack("client")
    server.add_interface(left, addresses=["10.0.0.1/24", "fd00::1/64"])
    client.add_interface(right, addresses=["10.0.0.2/24", "fd00::2/64"])
    return server, client


@contextmanager
def serving(stack: Stack, kind: type[http.server.HTTPServer]) -> Iterator[int]:
    with stack.installed():
        server = kind(("", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def converse(connection: http.client.HTTPConnection) -> None:
    for _ in range(3):
        connection.request("GET", "/")
        assert connection.getresponse().read() == BODY
        connection.request("POST", "/", body=BODY)
        assert connection.getresponse().read().decode() == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("kind", [http.server.HTTPServer, http.server.ThreadingHTTPServer])
def test_over_lo(kind: type[http.server.HTTPServer]) -> None:
    with Network() as network:
        stack = network.stack("gw")
        with serving(stack, kind) as port, stack.installed():
            connection = http.client.HTTPConnection("localhost", port, timeout=30)
            converse(connection)
            connection.close()


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1", "server"])
def test_over_a_cable(host: str) -> None:
    with Network() as network:
        server, client = joined(network)
        with serving(server, http.server.ThreadingHTTPServer) as port, client.installed():
            if host == "fd00::1":
                with pytest.raises(ConnectionRefusedError):  # the server is on IPv4 only
                    http.client.HTTPConnection(host, port, timeout=30).connect()
                return
            connection = http.client.HTTPConnection(host, port, timeout=30)
            converse(connection)
            connection.close()


def test_urllib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with Network() as network:
        server, client = joined(network)
        with (
            serving(server, http.server.ThreadingHTTPServer) as port,
            client.installed(),
            urllib.request.urlopen(f"http://server:{port}/", timeout=30) as response,
        ):
            assert response.read() == BODY


def test_in_virtual_time_in_one_thread() -> None:
    """Client and server take turns in one thread; the world in between runs in virtual time, losses and all."""
    impairment = Impairment(loss=0.02, delay_ns=20 * NS_PER_MS, seed=7)
    with Network(clock=ManualClock(), rng=random.Random(7)) as network:
        server_stack, client_stack = joined(network, impairment)
        with server_stack.installed():
            server = http.server.HTTPServer(("", 80), Handler)
            server.timeout = 10
        Handler.protocol_version = "HTTP/1.0"  # one request per connection: handle_request returns in between
        try:
            with client_stack.installed():
                connection = http.client.HTTPConnection("10.0.0.1", 80, timeout=600)
                for _ in range(3):
                    before = network.clock()
                    connection.request("POST", "/", body=BODY[:100_000])
                    network.advance(100 * NS_PER_MS)  # select() in handle_request knows nothing of virtual time
                    server.handle_request()
                    response = connection.getresponse()
                    assert response.read().decode() == hashlib.sha256(BODY[:100_000]).hexdigest()
                    assert network.clock() - before >= 80 * NS_PER_MS  # two round trips at least
                    connection.close()
        finally:
            Handler.protocol_version = "HTTP/1.1"
            server.server_close()


def test_header_and_body_in_two_writes_wait_for_no_delayed_ack() -> None:
    """What http.server does: a small write, then a large one whose last piece Nagle holds until the first is acked.

    RFC 9293 section 3.8.6.3: more than one full-sized segment is acknowledged at once, so no 40 ms go by on lo.
    """
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        stack = network.stack("gw")
        with stack.socket.create_server(("127.0.0.1", 80)) as server:
            client = stack.socket.create_connection(("127.0.0.1", 80))
            served, _ = server.accept()
        before = network.clock()
        with client, served:
            for _ in range(30):  # past the quick ACKs of a connection's beginning
                client.sendall(b"request")
                assert served.recv(100) == b"request"
                served.sendall(b"h" * 200)
                served.sendall(BODY[:100_000])
                assert len(client.recv(100_200, stack.socket.MSG_WAITALL)) == 100_200
            assert network.clock() == before
