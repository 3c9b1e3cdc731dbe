"""What the options of AF_VSOCK do (section 2.6 of the socket semantics), in virtual time; values are in the twin."""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from stack import Network
from stack.testing.clock import ManualClock
from stack.testing.vsock import GUEST_CID, ScriptedGuest
from stack.wire.vsock import Op

AF_VSOCK = socket.AF_VSOCK
BUFFER_SIZE, BUFFER_MIN, BUFFER_MAX, TIMEOUT_OLD, TIMEOUT_NEW = 0, 1, 2, 6, 8
NS = 1_000_000_000
PORT = 5000


class World:
    """A stack and a guest that says what the test says."""

    def __init__(self, undo: ExitStack) -> None:
        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=random.Random(1))
        undo.callback(self.network.close)
        self.undo = undo
        self.stack = self.network.stack("host")
        self.guest = ScriptedGuest()
        self.stack.add_vsock(self.guest)

    def socket(self) -> Any:
        return self.undo.enter_context(self.stack.socket.socket(AF_VSOCK, socket.SOCK_STREAM))

    def hear(self, op: int, **fields: Any) -> list[tuple[int, int]]:
        """A packet of the guest's port 7; (operation, buf_alloc) of what the host answers."""
        self.guest.feed(op, PORT, 7, **fields)
        self.guest.changed()
        return self.said()

    def said(self) -> list[tuple[int, int]]:
        self.network.advance(0)
        return [(packet[5], packet[7]) for packet in self.guest.take()]


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as undo:
        yield World(undo)


def u64(value: int) -> bytes:
    return struct.pack("Q", value)


@pytest.mark.parametrize("option", [TIMEOUT_OLD, TIMEOUT_NEW])
@pytest.mark.parametrize(
    ("seconds", "microseconds", "waits"), [(0, 1, 1000), (1, 500_000, 3 * NS // 2), (0, 0, 2 * NS)]
)
def test_opt_a_connect_that_nobody_answers_ends_after(
    world: World, option: int, seconds: int, microseconds: int, waits: int
) -> None:
    """SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW or SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD is how long connect() waits: ETIMEDOUT."""
    made = world.socket()
    made.setsockopt(AF_VSOCK, option, struct.pack("ll", seconds, microseconds))
    began = world.clock()
    with pytest.raises(TimeoutError) as late:
        made.connect((GUEST_CID, PORT))
    assert late.value.errno == errno.ETIMEDOUT
    assert world.clock() - began == waits


def listening(world: World, *options: tuple[int, int]) -> Any:
    made = world.socket()
    for option, value in options:
        made.setsockopt(AF_VSOCK, option, u64(value))
    made.bind((socket.VMADDR_CID_ANY, PORT))
    made.listen()
    return made


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], 262144),
        ([(BUFFER_SIZE, 5000)], 5000),
        ([(BUFFER_SIZE, 1)], 128),
        ([(BUFFER_MIN, 100), (BUFFER_SIZE, 1)], 100),
        ([(BUFFER_MIN, 300_000)], 262144),
        ([(BUFFER_MAX, 1000)], 1000),
        ([(BUFFER_MAX, 1 << 20), (BUFFER_SIZE, 1 << 30)], 1 << 20),
        ([(BUFFER_MAX, 1 << 20), (BUFFER_MIN, 400_000)], 400_000),
    ],
)
def test_opt_the_buffer_is_what_the_guest_may_send_ahead(
    world: World, options: list[tuple[int, int]], told: int
) -> None:
    """SO_VM_SOCKETS_BUFFER_SIZE, within SO_VM_SOCKETS_BUFFER_MIN_SIZE and SO_VM_SOCKETS_BUFFER_MAX_SIZE, is what the
    guest is told in every packet; a byte more resets the connection.
    """
    listener = listening(world, *options)
    assert world.hear(Op.REQUEST) == [(Op.RESPONSE, told)]
    accepted, _ = listener.accept()
    with accepted:
        left = told
        while left:
            size = min(left, 65536)
            assert world.hear(Op.RW, payload=bytes(size)) == []
            left -= size
        assert world.hear(Op.RW, payload=b"x")[0][0] == Op.RST


def test_opt_an_accepted_socket_has_its_listeners_limits(world: World) -> None:
    """accept() hands on SO_VM_SOCKETS_BUFFER_MIN_SIZE and its like, and SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW."""
    listener = listening(world, (BUFFER_MIN, 1000), (BUFFER_MAX, 9000), (BUFFER_SIZE, 5000))
    listener.setsockopt(AF_VSOCK, TIMEOUT_NEW, struct.pack("ll", 7, 0))
    world.hear(Op.REQUEST)
    accepted, _ = listener.accept()
    with accepted:
        assert [accepted.getsockopt(AF_VSOCK, each) for each in (BUFFER_SIZE, BUFFER_MIN, BUFFER_MAX)] == [
            5000, 1000, 9000,
        ]  # fmt: skip
        assert accepted.getsockopt(AF_VSOCK, TIMEOUT_OLD, 16) == struct.pack("ll", 7, 0)


@pytest.mark.parametrize(("option", "value", "told"), [(BUFFER_SIZE, 5000, 5000), (BUFFER_MAX, 4096, 4096)])
def test_opt_a_connected_sockets_buffer_may_change(world: World, option: int, value: int, told: int) -> None:
    """SO_VM_SOCKETS_BUFFER_SIZE or SO_VM_SOCKETS_BUFFER_MAX_SIZE of a connected socket: the guest is told at once."""
    listener = listening(world)
    world.hear(Op.REQUEST)
    accepted, _ = listener.accept()
    with accepted:
        accepted.setsockopt(AF_VSOCK, option, u64(value))
        assert world.said() == [(Op.CREDIT_UPDATE, told)]
