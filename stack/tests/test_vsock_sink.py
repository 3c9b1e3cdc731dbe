"""Streams that a guest opens to report: received whole, in bounded memory, and without anybody waiting."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from stack.scheduler import Scheduler
from stack.services.vsock_sink import STREAM_LIMIT, VsockSink
from stack.testing.vsock import ModelGuest, ScriptedGuest
from stack.vsock import VsockEngine
from stack.wire.vsock import PORT_ANY, SHUTDOWN_BOTH, SHUTDOWN_SEND, Op


class Heard:
    """A receiver that takes everything but b"bad"."""

    def __init__(self, done: list[bytes]) -> None:
        self._done = done
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data += data
        if b"bad" in self._data:
            raise ValueError("bad")

    def end(self) -> None:
        self._done.append(self._data)


class World:
    def __init__(self) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler)
        self.transport = ScriptedGuest()
        self.guest = ModelGuest(self.transport)
        self.port = self.engine.add_guest(self.transport)
        self.done: list[bytes] = []
        self.sink = VsockSink(self.engine, PORT_ANY, lambda: Heard(self.done))

    def settle(self) -> None:
        while self.port.service(64) + self.scheduler.run_deferred() + self.guest.run():
            pass


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    assert world.guest.broken == []
    world.engine.close()


def test_a_message_ends_with_the_guests_half_close_and_is_answered_by_closing(world: World) -> None:
    stream = world.guest.connect(world.sink.port, 1)
    world.settle()
    stream.write(b"READY")
    world.settle()
    stream.write(b"=1")
    world.settle()
    assert world.done == []
    stream.send(Op.SHUTDOWN, flags=SHUTDOWN_SEND)
    world.settle()
    assert world.done == [b"READY=1"]
    assert stream.shutdown == SHUTDOWN_BOTH  # systemd waits for it


def test_a_guest_that_closes_at_once_is_heard_as_well(world: World) -> None:
    stream = world.guest.connect(world.sink.port, 1)
    world.settle()
    stream.write(b"bye")
    stream.send(Op.SHUTDOWN, flags=SHUTDOWN_BOTH)
    world.settle()
    assert world.done == [b"bye"]


def test_more_than_a_buffer_arrives_whole(world: World) -> None:
    data = random.Random(2).randbytes(1 << 20)
    stream = world.guest.connect(world.sink.port, 1)
    world.settle()
    sent = 0
    while sent < len(data):
        sent += stream.write(data[sent:])
        world.settle()
    stream.send(Op.SHUTDOWN, flags=SHUTDOWN_SEND)
    world.settle()
    assert world.done == [data]


def test_nonsense_resets_its_stream_and_no_other(world: World) -> None:
    good, bad = world.guest.connect(world.sink.port, 1), world.guest.connect(world.sink.port, 2)
    world.settle()
    bad.write(b"bad")
    good.write(b"good")
    world.settle()
    assert (bad.state, good.state) == ("reset", "connected")
    assert world.sink.drops["malformed"] == 1


def test_a_stream_cut_off_by_a_driver_reset_is_no_message(world: World) -> None:
    stream = world.guest.connect(world.sink.port, 1)
    world.settle()
    stream.write(b"half a mess")
    world.settle()
    world.transport.generation += 1
    world.transport.changed()
    world.settle()
    assert (world.done, world.sink.drops["cut-off"]) == ([], 1)


def test_streams_are_limited_and_closing_ends_them(world: World) -> None:
    streams = [world.guest.connect(world.sink.port, port) for port in range(STREAM_LIMIT + 5)]
    world.settle()
    assert [stream.state for stream in streams].count("reset") == 5
    world.sink.close()
    world.settle()
    assert {stream.state for stream in streams} == {"reset"}
    assert world.port.connections == {}
    world.sink.close()
