"""Our TCP against Linux's own where it is seldom seen: urgent data, black holes, patience, low-water marks."""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import Any

import pytest

from stack.link import Impairment
from stack.socket.poll import PRI
from stack.tests.linux_world import LinuxWorld, receive_all, send_all

TCP = socket.IPPROTO_TCP
WAYS = pytest.mark.parametrize("sender", ["ours", "linux"])


def await_urgent(sock: Any) -> None:
    """Until POLLPRI."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if hasattr(sock, "_sock"):
            if sock._sock.poll() & PRI:
                return
            time.sleep(0.001)
        else:
            poll = select.poll()
            poll.register(sock, select.POLLPRI)
            if poll.poll(100):
                return
    pytest.fail("no urgent data")


@WAYS
@pytest.mark.parametrize("offload", [True, False], ids=["superframes", "packets"])
def test_tcp_34_urgent_byte_behind_bulk_data_to_and_from_linux(sender: str, offload: bool) -> None:
    """Behind a megabyte: the mark is where it belongs, the byte is right, the stream goes on without it."""
    with LinuxWorld(offload=offload) as world:
        one, other = world.pair(sender, 4)
        data = bytes(range(256)) * 4096
        world.spawn(one.sendall, data)
        got = bytearray()
        while len(got) < len(data):
            got += other.recv(1 << 18)
        assert bytes(got) == data
        one.send(b"12345!", socket.MSG_OOB)
        one.send(b"after")
        await_urgent(other)
        read = b""
        while len(read) < 5:
            read += other.recv(100)
        assert read == b"12345"
        assert other.recv(1, socket.MSG_OOB) == b"!"
        while len(read) < 10:
            read += other.recv(100)
        assert read == b"12345after"


@pytest.mark.long
def test_a_black_hole_on_the_way_to_linux() -> None:
    """Packets above 1300 bytes vanish on the way there: found without ICMP, every byte arrives."""
    with LinuxWorld(to_linux=Impairment(mtu=1300), to_us=Impairment()) as world:
        world.gw.netns.tcp.config.mtu_probing = 1
        one, other = world.pair("ours", 4)
        sent: list[str] = []
        world.spawn(lambda: sent.append(send_all(one, 300_000, 1)))
        size, digest = receive_all(other)
        world.join()
        assert (size, digest) == (300_000, sent[0])
        assert one.getsockopt(TCP, socket.TCP_MAXSEG) <= 1300 - 52


def ends_after(world: LinuxWorld, side: str, what: str) -> float:
    """Seconds until a connection of `side` gives its peer up: set to 1.5 s without ACK, or to three of silence."""
    one, _ = world.pair(side, 4)
    interface = next(each for name, each in world.gw.netns.interfaces.items() if name != "lo")
    one.settimeout(None)
    if what == "silence":
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
            one.setsockopt(TCP, option, value)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    else:
        one.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1500)
    start = time.monotonic()
    if what == "closed window":
        with pytest.raises(OSError) as caught:  # noqa: PT011, PT012 - which one is asserted below
            while True:
                one.send(bytes(65_536))
    else:
        world.network.call(interface.set_up, (False,))
        if what == "dead line":
            one.send(b"unheard")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is asserted below
            one.recv(1)
    assert caught.value.errno in (errno.ETIMEDOUT, errno.ENETUNREACH)  # the latter: our own interface is down
    return time.monotonic() - start


@pytest.mark.long
@pytest.mark.parametrize("what", ["dead line", "closed window", "silence"])
def test_tcp_26_27_patience_is_as_long_as_linuxs(what: str) -> None:
    """TCP_USER_TIMEOUT and keep-alive end a connection when Linux would end it, to a good half second."""
    took = {}
    for side in ("linux", "ours"):
        with LinuxWorld() as world:
            took[side] = ends_after(world, side, what)
    assert abs(took["ours"] - took["linux"]) < 0.7, took
    assert 1.5 < took["ours"] < 4
