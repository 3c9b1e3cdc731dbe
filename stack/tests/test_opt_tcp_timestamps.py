"""Time stamps of TCP sockets (SO_TIMESTAMP and its likes, section 2.1) on the kernel's sockets and on ours."""

from __future__ import annotations

import select
import socket as kernel
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Network
from stack.socket.poll import IN
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import World, has_ipv6_loopback

SOL = kernel.SOL_SOCKET
SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING = 29, 35, 37
SO_TIMESTAMP_NEW, SO_TIMESTAMPNS_NEW, SO_TIMESTAMPING_NEW = 63, 64, 65
RX_SOFTWARE, SOFTWARE = 8, 16
SO_PEEK_OFF = 42
TCP_INQ = 36
SECOND = 1_000_000_000

#: Where a Stack and the kernel part.
DIFFERENCES = {
    "segments put together": "Linux gives bytes the time of the last segment of the buffer they were put into; "
    "a Stack of the segment they came in",
    "segments out of order": "Linux tells when they came, a Stack when the gap before them was filled",
    "bytes before the option": "Linux has their time if any other socket had asked for time stamps, a Stack never",
}


def _kernel_goes_back() -> bool:
    with kernel.socket() as sock:
        sock.setsockopt(SOL, SO_TIMESTAMP_NEW, 1)
        sock.setsockopt(SOL, SO_TIMESTAMPING, SOFTWARE)
        return sock.getsockopt(SOL, SO_TIMESTAMP) == 1


#: SO_TIMESTAMPING makes new messages old ones again, in new kernels.
KERNEL_GOES_BACK = _kernel_goes_back()


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def told(sock: Any, size: int = 9, flags: int = 0) -> list[tuple[int, int, bytes]]:
    """The control messages of the next bytes."""
    _, ancillary, _, _ = sock.recvmsg(size, 300, flags)
    return list(ancillary)


def stamped(world: World, client: Any, served: Any) -> list[tuple[int, int, bytes]]:
    """Those of a byte sent now; the kernel switches its clock on a little after it was asked to."""
    for _ in range(1000):
        client.send(b"x")
        messages = told(served)
        if messages or world.network is not None:
            break
        select.select([], [], [], 0.001)
    return messages


@pytest.mark.parametrize(
    ("number", "unit"),
    [(SO_TIMESTAMP, 10**6), (SO_TIMESTAMP_NEW, 10**6), (SO_TIMESTAMPNS, 10**9), (SO_TIMESTAMPNS_NEW, 10**9)],
)
def test_opt_so_timestamp_of_tcp_tells_when_it_came(world: World, number: int, unit: int) -> None:
    """SO_TIMESTAMP(NS), old and new, on a TCP socket: a control message of the option's number with the time since
    1970 at which the last of the bytes came; none once it is off.
    """
    client, served = world.pair()
    with client, served:
        client.send(b"y")
        assert told(served) == []
        served.setsockopt(SOL, number, 1)
        ((level, kind, data),) = stamped(world, client, served)
        assert (level, kind, len(data)) == (SOL, number, 16)
        seconds, fraction = struct.unpack("@qq", data)
        assert 0 <= fraction < unit
        assert abs(seconds - time.time()) < 60
        served.setsockopt(SOL, number, 0)
        client.send(b"z")
        assert told(served) == []


def test_opt_so_timestamp_of_tcp_before_it_was_asked_for(world: World) -> None:
    """What came before SO_TIMESTAMP was set on a TCP socket has no time stamp, what comes after it has."""
    client, served = world.pair()
    with client, served:
        client.send(b"early")
        world.settle(served, IN)
        served.setsockopt(SOL, SO_TIMESTAMP, 1)
        messages = told(served)
        if world.network is not None:  # see DIFFERENCES
            assert messages == []
        assert [kind for _, kind, _ in stamped(world, client, served)] == [SO_TIMESTAMP]


def test_opt_so_timestamp_of_tcp_with_other_messages(world: World) -> None:
    """SO_TIMESTAMP, SO_TIMESTAMPING and TCP_INQ on a TCP socket: three messages in this order; peeking and throwing
    away tell the time too, recvmsg with MSG_OOB does not.
    """
    client, served = world.pair()
    with client, served:
        served.setsockopt(SOL, SO_TIMESTAMPNS, 1)
        served.setsockopt(SOL, SO_TIMESTAMPING, RX_SOFTWARE | SOFTWARE)
        stamped(world, client, served)
        served.setsockopt(kernel.IPPROTO_TCP, TCP_INQ, 1)
        client.send(b"xyz")
        world.settle(served, IN)
        messages = told(served, 2, kernel.MSG_PEEK)
        assert [(level, kind) for level, kind, _ in messages] == [
            (SOL, SO_TIMESTAMPNS),
            (SOL, SO_TIMESTAMPING),
            (kernel.IPPROTO_TCP, TCP_INQ),
        ]
        assert messages[1][2] == messages[0][2] + bytes(32)
        assert told(served, 2, kernel.MSG_TRUNC)[:2] == messages[:2]
        assert told(served, 2)[:2] == messages[:2]
        served.setblocking(False)  # a timeout would wait for IN, which an urgent byte does not give
        client.send(b"!", kernel.MSG_OOB)
        for _ in range(1000):
            with suppress(OSError):
                messages = told(served, 1, kernel.MSG_OOB)
                break
            select.select([], [], [], 0.001)
        assert not {SO_TIMESTAMPNS, SO_TIMESTAMPING} & {kind for _, kind, _ in messages}


@pytest.mark.parametrize("number", [SO_TIMESTAMPING, SO_TIMESTAMPING_NEW])
def test_opt_so_timestamping_of_tcp_received(world: World, number: int) -> None:
    """SO_TIMESTAMPING, old and new, on a TCP socket: RX_SOFTWARE and SOFTWARE make a control message of three times, of
    which the first is set; RX_SOFTWARE alone makes none; SOFTWARE alone does with SO_TIMESTAMP.
    """
    client, served = world.pair()
    with client, served:
        served.setsockopt(SOL, number, RX_SOFTWARE | SOFTWARE)
        ((level, kind, data),) = stamped(world, client, served)
        assert (level, kind, len(data)) == (SOL, number, 48)
        assert abs(struct.unpack("@6q", data)[0] - time.time()) < 60
        assert data[16:] == bytes(32)
        served.setsockopt(SOL, number, RX_SOFTWARE)
        client.send(b"x")
        assert told(served) == []
        served.setsockopt(SOL, SO_TIMESTAMP, 1)
        assert [kind for _, kind, _ in stamped(world, client, served)] == [SO_TIMESTAMP]
        served.setsockopt(SOL, SO_TIMESTAMPING, SOFTWARE)
        assert [kind for _, kind, _ in stamped(world, client, served)] == [SO_TIMESTAMP, SO_TIMESTAMPING]


def test_opt_so_timestamp_of_tcp_old_and_new(world: World) -> None:
    """The option set last says whether messages have the old or the new numbers: all of them, SO_TIMESTAMP's and
    SO_TIMESTAMPING's. Switching off changes nothing of that.
    """
    client, served = world.pair()
    with client, served:
        for number, kinds in (
            (SO_TIMESTAMP, [SO_TIMESTAMP, SO_TIMESTAMPING]),
            (SO_TIMESTAMPNS_NEW, [SO_TIMESTAMPNS_NEW, SO_TIMESTAMPING_NEW]),
            (SO_TIMESTAMPING, [SO_TIMESTAMPNS, SO_TIMESTAMPING]),
            (SO_TIMESTAMPING_NEW, [SO_TIMESTAMPNS_NEW, SO_TIMESTAMPING_NEW]),
        ):
            if number == SO_TIMESTAMPING and world.network is None and not KERNEL_GOES_BACK:
                continue
            served.setsockopt(SOL, number, RX_SOFTWARE | SOFTWARE)
            served.setsockopt(SOL, SO_TIMESTAMPING if number == SO_TIMESTAMP else number, RX_SOFTWARE | SOFTWARE)
            if number == SO_TIMESTAMPNS_NEW:
                served.setsockopt(SOL, SO_TIMESTAMPING_NEW, RX_SOFTWARE | SOFTWARE)
            assert [kind for _, kind, _ in stamped(world, client, served)] == kinds
            shown = [served.getsockopt(SOL, each) for each in (29, 35, 63, 64)]
            assert shown == [kinds[0] == 29, kinds[0] == 35, kinds[0] in (63, 64), kinds[0] == 64]
        served.setsockopt(SOL, SO_TIMESTAMP, 0)
        assert [kind for _, kind, _ in stamped(world, client, served)] == [SO_TIMESTAMPING_NEW]


def test_opt_so_timestamp_of_tcp_over_ipv6(world: World) -> None:
    """The same over IPv6, to addresses of either version."""
    with world.socket.socket(kernel.AF_INET6) as listener:
        listener.setsockopt(kernel.IPPROTO_IPV6, kernel.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        listener.setsockopt(SOL, SO_TIMESTAMPNS, 1)
        hosts = ["::1", "::ffff:127.0.0.1"] if has_ipv6_loopback() else ["::ffff:127.0.0.1"]
        for host in hosts:
            with world.socket.socket(kernel.AF_INET6) as client:
                client.connect((host, listener.getsockname()[1]))
                served, _ = listener.accept()
                with served:
                    served.settimeout(10)
                    assert [kind for _, kind, _ in stamped(world, client, served)] == [SO_TIMESTAMPNS]


def test_opt_so_timestamp_of_tcp_is_inherited(world: World) -> None:
    """An accepted TCP socket has SO_TIMESTAMPNS and SO_TIMESTAMPING of its listener, from the first byte on."""
    with world.listener() as listener:
        listener.setsockopt(SOL, SO_TIMESTAMPNS, 1)
        listener.setsockopt(SOL, SO_TIMESTAMPING, RX_SOFTWARE | SOFTWARE)
        for _ in range(1000):
            with world.socket.socket() as client:
                client.connect(listener.getsockname())
                client.send(b"soon")
                served, _ = listener.accept()
                with served:
                    assert served.getsockopt(SOL, SO_TIMESTAMPNS) == 1
                    served.settimeout(10)
                    messages = told(served)
            if messages or world.network is not None:
                break
            select.select([], [], [], 0.001)
    assert [kind for _, kind, _ in messages] == [SO_TIMESTAMPNS, SO_TIMESTAMPING]


def virtual() -> tuple[Network, Any, Any]:
    network = Network(clock=ManualClock())
    client, served = World(network.stack("gw").socket, network).pair()
    client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_NODELAY, 1)
    return network, client, served


def seconds(messages: list[tuple[int, int, bytes]]) -> int:
    ((_, kind, data),) = messages
    assert kind == SO_TIMESTAMPNS
    return int(struct.unpack("@qq", data)[0])


def test_opt_so_timestamp_of_tcp_is_of_the_last_segment_read() -> None:
    """In virtual time: a read tells when the last segment came of which it gave bytes, a peek by SO_PEEK_OFF as well,
    and reads that take no control messages are counted along.
    """
    network, client, served = virtual()
    with network, client, served:
        served.setsockopt(SOL, SO_TIMESTAMPNS, 1)
        for second in range(1, 6):
            network.poll(second * SECOND)
            client.send(b"abc")
        assert seconds(told(served, 2)) == 1
        assert seconds(told(served, 2, kernel.MSG_PEEK)) == 2
        served.setsockopt(SOL, SO_PEEK_OFF, 2)
        assert seconds(told(served, 3, kernel.MSG_PEEK)) == 3
        served.setsockopt(SOL, SO_PEEK_OFF, -1)
        assert seconds(told(served, 3)) == 2
        assert served.recv(4) == b"cabc"
        assert seconds(told(served, 3)) == 4
        assert seconds(told(served, 9)) == 5


def test_opt_so_timestamp_of_tcp_keeps_a_bounded_number_of_times() -> None:
    """However many segments wait unread, the account of their times is bounded: the newest stands for the rest."""
    network, client, served = virtual()
    with network, client, served:
        served.setsockopt(SOL, SO_TIMESTAMPNS, 1)
        for step in range(1, 1101):
            network.poll(step * SECOND)
            client.send(b"x")
            if step <= 50:
                assert served.recv(1) == b"x"
        connection = served._sock.connection
        assert len(connection.receiver.times._marks) <= 1024
        assert seconds(told(served, 1)) == 51
        served.recv(1047)
        assert seconds(told(served, 1)) == 1100  # together with 1074 and what follows
        for step in range(1101, 1301):
            network.poll(step * SECOND)
            client.send(b"x")
        assert len(connection.receiver.times._marks) <= 1024
        assert seconds(told(served, 2)) == 1101
