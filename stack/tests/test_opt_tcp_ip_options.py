"""IP_OPTIONS of TCP sockets: in every packet, recorded on the way, given back by who accepts. Linux is the oracle."""

from __future__ import annotations

import socket as kernel
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.tests.kernel_twin import LOOPBACK, World
from stack.tests.linux_world import LINUX, OURS, LinuxWorld

IP, OPTIONS = kernel.IPPROTO_IP, 4
HERE = kernel.inet_aton(LOOPBACK)
NOPS = bytes((1, 1, 1, 1))


def route(*slots: bytes, used: int = 0) -> bytes:
    """A record-route option, with an end of list behind it."""
    return bytes((7, 3 + 4 * len(slots), 4 + 4 * used)) + b"".join(slots) + b"\0"


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.mark.parametrize("listening", [b"", NOPS])
@pytest.mark.parametrize(
    ("asked", "answered"),
    [(b"", b""), (NOPS, b""), (route(bytes(4), bytes(4)), route(HERE, HERE, used=2))],
    ids=["none", "nops", "route"],
)
def test_opt_ip_options_of_accepted_tcp(world: World, asked: bytes, answered: bytes, listening: bytes) -> None:
    """IP_OPTIONS of an accepted socket are the records of the SYN, whatever the listener has."""
    with world.listener() as listener, world.socket.socket() as client:
        listener.setsockopt(IP, OPTIONS, listening)
        client.setsockopt(IP, OPTIONS, asked)
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with served:
            assert served.getsockopt(IP, OPTIONS, 40) == answered
            assert client.getsockopt(IP, OPTIONS, 40) == asked
            client.sendall(b"question" * 1000)
            assert served.recv(8000, kernel.MSG_WAITALL) == b"question" * 1000
            served.sendall(b"answer")
            assert client.recv(9) == b"answer"


class Tap:
    """(IPv4 header length, packet length) of TCP on an interface, by direction."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.came: list[tuple[int, int]] = []

    def received(self, burst: Any) -> None:
        for frame, *_ in burst:
            self._note(bytes(frame), self.came)

    def transmitted(self, burst: Any) -> None:
        for parts, *_ in burst:
            self._note(b"".join(parts), self.sent)

    def _note(self, frame: bytes, seen: list[tuple[int, int]]) -> None:
        if frame[12:14] == b"\x08\x00" and frame[23] == 6:
            seen.append(((frame[14] & 15) * 4, int.from_bytes(frame[16:18], "big")))


@pytest.mark.parametrize("client", ["ours", "linux"])
def test_opt_ip_options_of_tcp_on_the_wire(client: str) -> None:
    """IP_OPTIONS go with every packet of a connection, SYN and data, and shorten its segments; the peer answers with
    its records.
    """
    with LinuxWorld() as world:
        tap = Tap()
        with world.network.lock:
            next(each for each in world.gw.netns.ip.interfaces.values() if each.name == "eth0").taps.append(tap)
        asked = route(bytes(4), bytes(4), bytes(4))
        one, other = world.pair(client, 4, prepare=lambda sock: sock.setsockopt(IP, OPTIONS, asked))
        world.spawn(one.sendall, bytes(100_000))
        got = 0
        while got < 100_000:
            got += len(other.recv(65536))
        other.sendall(bytes(100_000))
        while got < 200_000:
            got += len(one.recv(65536))
        ends = [LINUX[4], OURS[4]] if client == "linux" else [OURS[4], LINUX[4]]
        first, second = map(kernel.inet_aton, ends)
        assert other.getsockopt(IP, OPTIONS, 40) == route(first, second, bytes(4), used=2)
        for seen in (tap.sent, tap.came):
            assert {header for header, _ in seen} == {36}
        ours = max(length for _, length in tap.sent)
        assert ours == 1500
