"""Network libraries that users reach for first, unchanged, against servers on a second Stack."""

from __future__ import annotations

import asyncio
import http.server
import queue
import random
import ssl
from collections.abc import Iterator
from typing import Any

import aiohttp
import aiohttp.web
import httpx
import paramiko
import pytest
import requests
import urllib3

from stack.tests.client_rig import (
    PATIENCE,
    Rig,
    authority,
    client_context,
    in_thread,
    joined,
    server_context,
    serving,
)

BODY = random.Random(9).randbytes(120_000)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with joined() as made:
        yield made


class Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[::-1])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Quiet."""


@pytest.fixture(params=["http", "https"])
def url(request: pytest.FixtureRequest, rig: Rig) -> Iterator[str]:
    """Of a server that answers what it is sent, backwards; the client's Stack is installed."""
    with rig.server.installed():
        server = http.server.ThreadingHTTPServer(("", 0), Web)
    if request.param == "https":
        server.socket = server_context().wrap_socket(server.socket, server_side=True)
    with serving(server), rig.client.installed():
        yield f"{request.param}://server:{server.server_port}/"


@pytest.fixture
def trust(tmp_path: Any) -> str:
    """A file with the authority's certificate."""
    path = tmp_path / "authority.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


def test_requests(url: str, trust: str) -> None:
    with requests.Session() as session:
        for _ in range(3):
            answer = session.post(url, data=BODY, verify=trust, timeout=PATIENCE)
            assert answer.content == BODY[::-1]


def test_requests_believes_no_stranger(rig: Rig) -> None:
    with rig.server.installed():
        server = http.server.HTTPServer(("", 0), Web)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # its half of the refusal is expected
    server.socket = server_context().wrap_socket(server.socket, server_side=True)
    with serving(server), rig.client.installed(), pytest.raises(requests.exceptions.SSLError):
        requests.get(f"https://server:{server.server_port}/", timeout=PATIENCE)


def test_requests_is_refused(rig: Rig) -> None:
    with rig.client.installed(), pytest.raises(requests.exceptions.ConnectionError, match="refused"):
        requests.get("http://server:81/", timeout=PATIENCE)


def test_urllib3(url: str, trust: str) -> None:
    with urllib3.PoolManager(ca_certs=trust, timeout=PATIENCE) as pool:
        for _ in range(3):
            assert pool.request("POST", url, body=BODY).data == BODY[::-1]


def test_httpx(url: str) -> None:
    with httpx.Client(verify=client_context(), timeout=PATIENCE, trust_env=False) as client:
        for _ in range(3):
            assert client.post(url, content=BODY).content == BODY[::-1]


def test_httpx_in_asyncio(url: str) -> None:
    async def main() -> bytes:
        async with httpx.AsyncClient(verify=client_context(), timeout=PATIENCE, trust_env=False) as client:
            return (await client.post(url, content=BODY)).content

    assert asyncio.run(main()) == BODY[::-1]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_aiohttp_client_and_server(rig: Rig, scheme: str) -> None:
    async def answer(request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(body=(await request.read())[::-1])

    async def main() -> bytes:
        application = aiohttp.web.Application()
        application.router.add_post("/", answer)
        runner = aiohttp.web.AppRunner(application)
        await runner.setup()
        context: ssl.SSLContext | None = server_context() if scheme == "https" else None
        site = aiohttp.web.SockSite(runner, rig.server.socket.create_server(("", 80)), ssl_context=context)
        await site.start()
        try:
            resolver = aiohttp.ThreadedResolver()
            connector = aiohttp.TCPConnector(ssl=client_context(), resolver=resolver)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.post(f"{scheme}://server:80/", data=BODY) as response,
            ):
                return await response.read()
        finally:
            await runner.cleanup()

    with rig.client.installed():
        assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == BODY[::-1]


class Login(paramiko.ServerInterface):
    """Lets "user" in with "word", and takes one command."""

    def __init__(self) -> None:
        self.commands: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def check_auth_password(self, username: str, password: str) -> int:
        good = (username, password) == ("user", "word")
        return paramiko.common.AUTH_SUCCESSFUL if good else paramiko.common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.commands.put(command)
        return True


def test_paramiko(rig: Rig) -> None:
    key = paramiko.ECDSAKey.generate()
    with rig.server.socket.create_server(("", 22)) as listening:

        def serve() -> None:
            transport = paramiko.Transport(listening.accept()[0])
            transport.add_server_key(key)
            login = Login()
            transport.start_server(server=login)
            channel = transport.accept(PATIENCE)
            assert channel is not None
            with channel:
                channel.sendall(b"did " + login.commands.get(timeout=PATIENCE))
                channel.send_exit_status(3)
            transport.join(PATIENCE)

        with in_thread(serve), rig.client.installed(), paramiko.SSHClient() as client:
            client.get_host_keys().add("server", key.get_name(), key)
            client.connect("server", 22, "user", "word", timeout=PATIENCE, look_for_keys=False, allow_agent=False)
            _, output, _ = client.exec_command("it", timeout=PATIENCE)
            assert output.read() == b"did it"
            assert output.channel.recv_exit_status() == 3
