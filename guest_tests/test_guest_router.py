"""The gateway as the guest's router: to another node behind a link with a smaller MTU, IPv4 and IPv6."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator

import pytest

from qemu.guest import Guest
from stack import Stack
from stack.link import cable

FAR = {4: "10.9.0.2", 6: "fd09::2"}
FAR_MTU = 1300
BOTH = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def far() -> Iterator[tuple[Guest, Stack]]:
    """A guest, and a node behind its gateway."""
    with Guest(address6="fd00::2/64") as guest:
        network, gateway = guest.network, guest.stack
        node = network.stack("far")
        near_end, far_end = cable(network.scheduler, mtu=FAR_MTU, mac_a=b"\2\0\0\0\x09\1", mac_b=b"\2\0\0\0\x09\2")
        gateway.add_interface(near_end, "far0", ["10.9.0.1/24", "fd09::1/64"])
        node.add_interface(far_end, "eth0", ["10.9.0.2/24", "fd09::2/64"])
        node.add_route("0.0.0.0/0", "10.9.0.1")
        node.add_route("::/0", "fd09::1", metric=1024)
        with network.lock:
            gateway.netns.set_forwarding(True)
        deadline = time.monotonic() + 30
        while guest.run(["ping6", "-c", "1", "-W", "1", FAR[6]]).returncode:
            assert time.monotonic() < deadline, guest.run("ip -6 addr; ip -6 route").stdout
        yield guest, node
        gateway.remove_interface("far0")


@BOTH
@pytest.mark.parametrize("size", [56, 4000])
def test_the_guest_pings_through_the_gateway(family: int, size: int, far: tuple[Guest, Stack]) -> None:
    guest, _ = far
    ping = "ping" if family == 4 else "ping6"
    guest.run([ping, "-c", "2", "-W", "2", "-s", str(size), FAR[family]])  # the path MTU is found on the way
    out = guest.run([ping, "-c", "3", "-i", "0.05", "-s", str(size), FAR[family]], check=True).stdout
    assert "3 packets transmitted, 3 packets received" in out


@BOTH
def test_the_gateway_is_one_hop_of_two(family: int, far: tuple[Guest, Stack]) -> None:
    """RFC 1812 5.3.1, RFC 4443 3.3: time exceeded comes from the gateway's address on the guest's link."""
    guest, _ = far
    command = ["traceroute" if family == 4 else "traceroute6", "-n", "-q", "1", "-w", "2", "-m", "4", FAR[family]]
    hops = [
        line.split()[1] for line in guest.run(command, check=True).stdout.splitlines() if line[:2].strip().isdigit()
    ]
    assert hops == [guest.gateway if family == 4 else "fd00::2", FAR[family]]


@BOTH
def test_tcp_through_the_gateway_finds_the_path_mtu(family: int, far: tuple[Guest, Stack]) -> None:
    """The guest's superframes of 1500-byte segments do not fit: it hears so, and sends smaller ones."""
    guest, node = far
    sockets = node.socket
    kind = sockets.AF_INET if family == 4 else sockets.AF_INET6
    with sockets.create_server((FAR[family], 7001), family=kind) as server:
        server.settimeout(20)
        client = guest.spawn(f"head -c 3000000 /dev/zero | tr '\\0' x | nc {FAR[family]} 7001")
        connection, _ = server.accept()
        received = 0
        with connection:
            connection.settimeout(20)
            while received < 3000000 and (block := connection.recv(1 << 18)):
                assert not block.strip(b"x")
                received += len(block)
        client.communicate(timeout=20)
    assert received == 3000000


def test_tcp_to_the_guest_through_the_gateway(far: tuple[Guest, Stack]) -> None:
    guest, node = far
    data = random.Random(6).randbytes(2_000_000)
    listener = guest.spawn("nc -l -p 7002 | sha256sum")
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = node.socket.create_connection((guest.address, 7002), timeout=20)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.1)
    with connection:
        connection.sendall(data)
        connection.shutdown(node.socket.SHUT_WR)
        out = listener.communicate(timeout=20).stdout
    assert hashlib.sha256(data).hexdigest() in out
