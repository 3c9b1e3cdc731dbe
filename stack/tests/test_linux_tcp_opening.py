"""How connections begin, our TCP against Linux's own: SYN cookies, Fast Open, many in a row."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from stack.tests.linux_world import LinuxWorld

TCP_FASTOPEN, MSG_FASTOPEN = 23, 0x20000000
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
CLIENTS = pytest.mark.parametrize("client", ["ours", "linux"])


def echo(one: Any, other: Any, data: bytes) -> None:
    """`data` to and fro."""
    one.sendall(data)
    got = b""
    while len(got) < len(data):
        got += other.recv(65536)
    other.sendall(got)
    got = b""
    while len(got) < len(data):
        got += one.recv(65536)
    assert got == data


@VERSIONS
@pytest.mark.parametrize("timestamps", ["1", "0"])
def test_tcp_35_linux_gets_in_by_our_cookies(version: int, timestamps: str) -> None:
    """tcp_syncookies 2: window scale and SACK survive in the timestamps, without those the MSS alone."""
    with LinuxWorld() as world:
        world.linux.sysctl("net.ipv4.tcp_timestamps", timestamps)
        tcp = world.gw.netns.tcp
        tcp.config.syncookies = 2
        with world.listener("ours", version) as listener:
            for number in range(1, 4):
                one = world.connect("linux", listener.getsockname(), version)
                other, _ = listener.accept()
                with other:
                    echo(one, other, bytes(range(256)) * 40)
                    options = other.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
                    assert bool(options & 7) is (timestamps == "1")
                assert tcp.mib["TcpExtSyncookiesRecv"] == tcp.mib["TcpExtSyncookiesSent"] == number


def fast(client: Any, listener: Any, data: bytes) -> Any:
    """A client that sends `data` with its SYN if it can, echoed by the listener's side."""
    client.settimeout(None)  # with a time-out Python's sockets do not block, and sendto tells of the SYN alone
    assert client.sendto(data, MSG_FASTOPEN, listener.getsockname()[:2]) == len(data)
    served, _ = listener.accept()
    got = b""
    while len(got) < len(data):
        got += served.recv(65536)
    assert got == data
    served.sendall(b"answer")
    client.settimeout(20)
    assert client.recv(6) == b"answer"
    served.close()


@VERSIONS
@CLIENTS
def test_fast_open_with_linux(client: str, version: int) -> None:
    """The first connection brings a cookie, each later one takes data along in its SYN."""
    server = "linux" if client == "ours" else "ours"
    with LinuxWorld() as world:
        tcp = world.gw.netns.tcp
        tcp.config.fastopen = 3
        world.linux.sysctl("net.ipv4.tcp_fastopen", "3")
        with world.listener(server, version) as listener:
            listener.settimeout(20)
            listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
            for number in range(4):
                fast(world.socket(client, version), listener, b"question" * (1 + 300 * number))
        counter = "TcpExtTCPFastOpenActive" if client == "ours" else "TcpExtTCPFastOpenPassive"
        assert tcp.mib[counter] == 3
        assert tcp.mib[f"{counter}Fail"] == 0


def test_fast_open_falls_back_where_linux_has_it_off() -> None:
    """No cookie is given; data follows the handshake."""
    with LinuxWorld() as world, world.listener("linux", 4) as listener:
        for _ in range(2):
            fast(world.socket("ours", 4), listener, b"question")
        assert len(world.gw.netns.tcp.fastopen) == 0
        assert world.gw.netns.tcp.mib["TcpExtTCPFastOpenActive"] == 0


@CLIENTS
def test_connections_in_a_row(client: str) -> None:
    """Two hundred, one after the other, each end closing first in turn: TIME-WAIT is where it belongs."""
    server = "linux" if client == "ours" else "ours"
    with LinuxWorld() as world, world.listener(server, 4) as listener:
        for number in range(200):
            one = world.connect(client, listener.getsockname(), 4)
            other, _ = listener.accept()
            echo(one, other, number.to_bytes(2, "big"))
            first, second = (one, other) if number % 2 else (other, one)
            first.close()
            assert second.recv(1) == b""
            second.close()
        limits: Any = world.gw.stats["limits"]
        assert 95 <= limits["tcp-time-waits"]["used"] <= 105
        assert limits["tcp-half-open"]["used"] == 0


def test_tcp_14_linux_waits_for_room_in_our_accept_queue() -> None:
    """listen(0) takes one; the next is only let in when that was accepted."""
    with LinuxWorld() as world, world.listener("ours", 4, backlog=0) as listener:
        first = world.connect("linux", listener.getsockname(), 4)
        late: list[Any] = []
        world.spawn(lambda: late.append(world.connect("linux", listener.getsockname(), 4)))
        one, _ = listener.accept()
        with one:
            echo(first, one, b"first")
            other, _ = listener.accept()
            world.join()
            with other:
                echo(late[0], other, b"second")
