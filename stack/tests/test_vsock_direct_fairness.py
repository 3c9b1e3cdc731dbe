"""Sockets of the host received straight into a guest's buffers: who has a turn when there are few (VS-12)."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from stack.scheduler import Scheduler
from stack.services.host_sockets import HostSockets
from stack.services.vsock_pump import Pump
from stack.testing.vsock import ModelGuest
from stack.testing.vsock_direct import BUFFERS, DirectGuest
from stack.vsock import VsockConnection, VsockEngine

BULK = 16
PIECE = bytes(1 << 16)


class Forwards:
    """Streams of one guest, each pumped from a socket pair; a turn is what the guest takes and everybody's turn."""

    def __init__(self, undo: ExitStack, *, buffers: int, credit: int) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler)
        self.guest = DirectGuest(buffers=buffers)
        self.model = ModelGuest(self.guest, buffer=credit)
        self.port = self.engine.add_guest(self.guest)
        self.hosts = HostSockets()
        self.streams: list[VsockConnection] = []
        self.undo = undo
        undo.callback(self.hosts.close)

    def forward(self) -> socket.socket:
        """One more stream; the host program's end of it."""
        connection = self.engine.connect(self.guest.guest_cid, 1000 + len(self.streams))
        for _ in range(3):
            self.turn(BUFFERS)
        assert connection.connected
        ours, theirs = (self.undo.enter_context(sock) for sock in socket.socketpair())
        for sock in (ours, theirs):
            sock.setblocking(False)
        pump = Pump(self.register(ours), connection, ours, on_end=lambda _: None)
        self.undo.callback(pump.abort)
        self.streams.append(connection)
        return theirs

    def register(self, sock: socket.socket) -> HostSockets:
        self.hosts.add(sock, Unowned())
        return self.hosts

    def turn(self, drain: int) -> None:
        self.guest.drain(drain)
        self.model.run()
        for stream in self.model.streams.values():
            stream.consume(stream.unread)
        for _ in range(2):
            self.port.service(256)
            self.hosts.service(256)
            self.scheduler.run_deferred()

    def received(self, number: int) -> int:
        connection = self.streams[number]
        return len(self.model.streams[connection.local[1], connection.remote[1]].received)

    def answer(self, number: int, data: bytes) -> None:
        connection = self.streams[number]
        self.model.streams[connection.local[1], connection.remote[1]].write(data)


class Unowned:
    """Whose socket it is until a pump has it."""

    def hint(self, *, hung_up: bool) -> None:
        raise AssertionError

    def run(self) -> bool:
        raise AssertionError


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as undo:
        yield undo


def fill(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            sock.send(PIECE)


def round_trips(world: Forwards, small: socket.socket, drain: int, count: int, bulk: list[socket.socket]) -> list[int]:
    """Turns from a short message of the small stream, which is the first, to its answer."""
    times = []
    for _ in range(count):
        there = world.received(0)
        small.send(b"ping")
        for turns in range(1, 1000):
            for sock in bulk:
                fill(sock)
            world.turn(drain)
            if world.received(0) > there:
                there = world.received(0)
                world.answer(0, b"pong")
            with suppress(BlockingIOError):
                assert small.recv(10) == b"pong"
                times.append(turns)
                break
    assert len(times) == count
    return times


def p99(times: list[int]) -> int:
    return sorted(times)[len(times) * 99 // 100]


@pytest.mark.parametrize("credit", [1 << 18, 16 << 20], ids=["credit of a Linux guest", "more credit than ring"])
@pytest.mark.parametrize("drain", [BUFFERS // 4, BUFFERS // 2, BUFFERS])
def test_a_small_forwarded_stream_among_sixteen_bulk_ones_answers_within_five_times_its_idle_time(
    undo: ExitStack, drain: int, credit: int
) -> None:
    """In turns: the guest takes `drain` buffers of its ring in each."""
    world = Forwards(undo, buffers=BUFFERS, credit=credit)
    small = world.forward()
    bulk = [world.forward() for _ in range(BULK)]
    idle = p99(round_trips(world, small, drain, 20, []))
    loaded = round_trips(world, small, drain, 100, bulk)
    assert p99(loaded) <= 5 * idle
    sent = [each.credit.sent for each in world.streams[1:]]
    assert min(sent) * 2 > max(sent) > 0, "and they share what there is evenly"
    assert world.model.broken == []


@pytest.mark.parametrize("buffers", [1, 2, 16])
def test_every_stream_has_its_turn_however_few_buffers_there_are(undo: ExitStack, buffers: int) -> None:
    """Whoever goes on sending for ever with credit for ever keeps nobody from the ring."""
    world = Forwards(undo, buffers=buffers, credit=16 << 20)
    bulk = [world.forward() for _ in range(4)]
    for _ in range(200):
        for sock in bulk:
            fill(sock)
        world.turn(buffers)
    sent = [each.credit.sent for each in world.streams]
    assert min(sent) * 2 > max(sent) > 0
    assert sum(sent) >= 200 * 0.9 * buffers * 4000, "and no buffer is left idle"
