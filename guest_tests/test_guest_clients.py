"""Network libraries that users reach for first, unchanged, against servers in the guest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

import aiohttp
import httpx
import pytest
import requests
import urllib3

from qemu.guest import Guest

PATIENCE = 60


@pytest.fixture(scope="module")
def served(guest: Guest) -> Iterator[tuple[str, str]]:
    """A web server in the guest: the URL of a megabyte of noise, and its digest."""
    guest.run("mkdir -p /clients && head -c 1048576 /dev/urandom > /clients/noise", check=True)
    digest = guest.run("sha256sum /clients/noise", check=True).stdout.split()[0]
    server = guest.spawn(["httpd", "-f", "-p", "8081", "-h", "/clients"])
    guest.run("until nc 127.0.0.1 8081 < /dev/null; do sleep 0.02; done", check=True)
    yield f"http://{guest.address}:8081/noise", digest
    server.kill()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_requests(guest: Guest, served: tuple[str, str]) -> None:
    url, digest = served
    with guest.stack.installed(), requests.Session() as session:
        for _ in range(2):
            assert digest_of(session.get(url, timeout=PATIENCE).content) == digest


def test_urllib3(guest: Guest, served: tuple[str, str]) -> None:
    url, digest = served
    with guest.stack.installed(), urllib3.PoolManager(timeout=PATIENCE) as pool:
        assert digest_of(pool.request("GET", url).data) == digest


def test_httpx(guest: Guest, served: tuple[str, str]) -> None:
    url, digest = served
    with guest.stack.installed(), httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        assert digest_of(client.get(url).content) == digest


def test_aiohttp_many_at_once(guest: Guest, served: tuple[str, str]) -> None:
    """In one thread, on descriptors of the Stack's sockets."""
    url, digest = served

    async def fetch(session: aiohttp.ClientSession) -> str:
        async with session.get(url) as response:
            return digest_of(await response.read())

    async def main() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(fetch(session) for _ in range(8)))

    with guest.stack.installed():
        assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == [digest] * 8


def test_asyncio_serves_the_guest(guest: Guest) -> None:
    """A server of asyncio's streams, for the guest's own client."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> str:
        server = await asyncio.start_server(answer, guest.gateway, 8082)
        async with server:
            asked = await asyncio.to_thread(guest.run, f"echo hello | nc {guest.gateway} 8082", check=True)
            return asked.stdout

    with guest.stack.installed():
        assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == "HELLO\n"
