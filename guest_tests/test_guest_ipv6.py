"""IPv6 between the guest's kernel and this process: it believes our router advertisements, and talks, both ways."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import threading
import time
from collections.abc import Iterator

import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest

GATEWAY = "fd00::2"
PORT = 7000


def global_address(guest: Guest) -> str:
    """The guest's address in our prefix, as soon as it has tested it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for line in guest.run("ip -6 addr show dev eth0 scope global", check=True).stdout.splitlines():
            words = line.split()
            if words[:1] == ["inet6"] and "tentative" not in words:
                return words[1].partition("/")[0]
        time.sleep(0.2)
    raise AssertionError(guest.run("ip -6 addr", check=True).stdout)


@pytest.fixture(scope="module")
def guest6() -> Iterator[Guest]:
    with Guest(address6=f"{GATEWAY}/64") as guest:
        yield guest


@pytest.fixture(scope="module")
def address(guest6: Guest) -> str:
    return global_address(guest6)


def test_the_guest_gave_itself_an_address_of_our_prefix(guest6: Guest, address: str) -> None:
    """RFC 4862: prefix of the advertisement, EUI-64 of the card."""
    assert address.startswith("fd00::")
    shown = guest6.run("cat /proc/net/if_inet6", check=True).stdout
    assert "fd000000000000005" in shown
    router = next(each for each in guest6.stack.netns.interface("eth0").addresses if str(each).startswith("fe80"))
    routes = guest6.run("ip -6 route", check=True).stdout
    assert f"default via {str(router).partition('/')[0]} dev eth0" in routes


@pytest.mark.parametrize("size", [56, 1452, 4000])  # 1452 fills an MTU of 1500, 4000 is fragmented both ways
def test_the_guest_pings_its_gateway(size: int, guest6: Guest, address: str) -> None:
    out = guest6.run(["ping6", "-c", "3", "-i", "0.05", "-s", str(size), GATEWAY], check=True).stdout
    assert "3 packets transmitted, 3 packets received" in out


def test_tcp_from_the_guest(guest6: Guest, address: str) -> None:
    sockets = guest6.stack.socket
    with sockets.create_server((GATEWAY, PORT), family=sockets.AF_INET6) as server:
        server.settimeout(20)
        client = guest6.spawn(f"head -c 3000000 /dev/zero | tr '\\0' x | nc {GATEWAY} {PORT}")
        connection, peer = server.accept()
        assert peer[0] == address
        received = 0
        with connection:
            connection.settimeout(20)
            while block := connection.recv(1 << 18):
                assert not block.strip(b"x")
                received += len(block)
                if received == 3000000:
                    break
        client.communicate(timeout=20)
    assert received == 3000000


def test_tcp_to_the_guest(guest6: Guest, address: str) -> None:
    data = random.Random(6).randbytes(2_000_000)
    listener = guest6.spawn(f"nc -l -p {PORT} | sha256sum")
    sockets = guest6.stack.socket
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = sockets.create_connection((address, PORT), timeout=20)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.1)
    with connection:
        connection.sendall(data)
        connection.shutdown(sockets.SHUT_WR)
        out = listener.communicate(timeout=20).stdout
    assert hashlib.sha256(data).hexdigest() in out


def test_router_advertisements_that_are_wrong_on_demand() -> None:
    """A router that says it is none any more is no default route; when it says so no longer, it is again."""
    with Guest(template=True, address6=f"{GATEWAY}/64", vsock=False) as guest:
        guest.wait_until("ip -6 route | grep -q ^default", timeout=SECONDS)
        assert guest.services is not None
        assert guest.services.advertiser is not None
        faults = guest.services.advertiser.faults
        ask = "ip link set eth0 down; ip link set eth0 up"  # who comes up asks for routers (RFC 4861 6.3.7)
        with guest.network.lock:
            fault = faults.inject(alter=lambda to, said: dataclasses.replace(said, lifetime=0))
        guest.run(ask, check=True)
        guest.wait_until("ip -6 addr show dev eth0 scope global | grep -q fd00::", timeout=SECONDS)
        assert fault.happened
        assert "default" not in guest.run("ip -6 route", check=True).stdout
        with guest.network.lock:
            faults.clear()
        guest.run(ask, check=True)
        guest.wait_until("ip -6 route | grep -q ^default", timeout=SECONDS)
