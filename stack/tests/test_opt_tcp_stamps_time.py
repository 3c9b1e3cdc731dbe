"""Transmit time stamps of TCP sockets (SO_TIMESTAMPING, section 2.1) in virtual time."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from typing import Any

import pytest

from stack import Network
from stack.socket.poll import ERR
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import World, code
from stack.tests.stamps import (
    ACKNOWLEDGED,
    ALL,
    OPT_ID,
    OPT_ID_TCP,
    OPT_TSONLY,
    SCHEDULED,
    SENT,
    SO_TIMESTAMPING,
    SOL,
    TCP_TX_DELAY,
    TX_SCHED,
    Entry,
    entry,
    nothing_more,
    pair,
    told,
)

MILLISECOND = 1_000_000  # ns


def at(each: Entry) -> int:
    """When it was, in milliseconds from midnight 1970."""
    ((_, _, data),) = each.others
    seconds, nanoseconds = struct.unpack_from("@qq", data)
    return int(seconds * 1000 + nanoseconds // MILLISECOND)


def virtual() -> tuple[World, Any, Any]:
    network = Network(clock=ManualClock())
    world = World(network.stack("gw").socket, network)
    client, served = pair(world)
    client.setsockopt(SOL, SO_TIMESTAMPING, ALL | OPT_ID | OPT_TSONLY)
    return world, client, served


def run(world: World, milliseconds: int) -> None:
    """Turn by turn, for so long."""
    network = world.network
    assert network is not None
    end = network.clock() + milliseconds * MILLISECOND
    due = network.poll(network.clock())
    while due is not None and due <= end:
        due = network.poll(due)
    network.poll(end)


def test_opt_so_timestamping_of_tcp_is_when_it_was() -> None:
    """In virtual time, with TCP_TX_DELAY at both ends: scheduled at once, sent after the delay, acknowledged when the
    peer's answer is there.
    """
    world, client, served = virtual()
    assert world.network is not None
    with world.network, client, served:
        client.setsockopt(kernel.IPPROTO_TCP, TCP_TX_DELAY, 30_000)
        served.setsockopt(kernel.IPPROTO_TCP, TCP_TX_DELAY, 50_000)
        client.send(b"abc")
        first = entry(world, client)
        nothing_more(client)
        run(world, 29)
        nothing_more(client)
        run(world, 200)
        then, last = entry(world, client), entry(world, client)
        assert [each.kind for each in (first, then, last)] == [SCHEDULED, SENT, ACKNOWLEDGED]
        assert at(then) - at(first) == 30
        assert at(last) - at(first) == 80


def test_opt_so_timestamping_of_tcp_again_when_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again is scheduled and sent again, as often as it is; acknowledged once."""
    world, client, served = virtual()
    assert world.network is not None
    with world.network, client, served:
        receiver = served._sock.connection
        monkeypatch.setattr(type(receiver), "fast", lambda *_: True)  # nothing arrives
        client.send(b"abc")
        assert told(world, client, SCHEDULED, SENT) == [2, 2]
        run(world, 1500)
        again = []
        while world.bits(client) & ERR:
            again.append(entry(world, client).kind)
        assert len(again) >= 4
        assert again == [SCHEDULED, SENT] * (len(again) // 2)
        monkeypatch.undo()
        run(world, 10_000)
        kinds = []
        while world.bits(client) & ERR:
            kinds.append(entry(world, client).kind)
        assert kinds == [SCHEDULED, SENT, ACKNOWLEDGED]
        assert client._sock.connection.sender.marks is None


def test_opt_so_timestamping_of_tcp_keeps_a_bounded_number_of_marks() -> None:
    """However many sends wait with MSG_EOR, the account of them is bounded; entries beyond SO_RCVBUF are lost."""
    world, client, served = virtual()
    assert world.network is not None
    with world.network, client, served:
        client.setsockopt(SOL, kernel.SO_RCVBUF, 10_000)
        client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_CORK, 1)
        for _ in range(5000):
            client.send(b"x", kernel.MSG_EOR)
        marks = client._sock.connection.sender.marks
        assert len(marks._stamps) == 4096
        client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_CORK, 0)
        numbers = []
        while world.bits(client) & ERR:
            numbers.append(entry(world, client).number)
        assert numbers == [n // 2 for n in range(len(numbers))]
        assert 0 < len(numbers) < 60
        run(world, 1000)
        assert client._sock.connection.sender.marks is None


def test_opt_so_timestamping_of_tcp_closed_before_it_is_acknowledged() -> None:
    """Nobody is told once the socket is closed, and nothing refers to it."""
    world, client, served = virtual()
    assert world.network is not None
    with world.network, served:
        client.setsockopt(kernel.IPPROTO_TCP, TCP_TX_DELAY, 30_000)
        client.send(b"abc")
        connection = client._sock.connection
        client.close()
        assert connection.sender.marks is None
        run(world, 1000)
        assert served.recv(9) == b"abc"


@pytest.mark.parametrize(("more", "number"), [(0, 1), (OPT_ID_TCP, 0)])
def test_opt_so_timestamping_of_tcp_is_numbered_while_connecting(more: int, number: int) -> None:
    """OPT_ID on a TCP socket that is connecting counts the SYN, too, with OPT_ID_TCP it does not."""
    with Network(clock=ManualClock()) as network:
        world = World(network.stack("gw").socket, network)
        with world.listener() as listener, world.socket.socket() as client:
            client.setsockopt(kernel.IPPROTO_TCP, TCP_TX_DELAY, 1000)
            client.setblocking(False)
            assert code(client.connect, listener.getsockname()) == errno.EINPROGRESS
            client.setsockopt(SOL, SO_TIMESTAMPING, TX_SCHED | OPT_ID | OPT_TSONLY | more)
            run(world, 1000)
            client.send(b"a")
            assert told(world, client, SCHEDULED) == [number]
