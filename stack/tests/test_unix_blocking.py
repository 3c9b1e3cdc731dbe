"""Calls on Unix sockets that wait: in threads, on the kernel's sockets and on ours; and in virtual time, where a call
that would wait for ever says so (EDEADLK).
"""

from __future__ import annotations

import errno
import os
import socket as kernel
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stack.tests.kernel_twin import code
from stack.tests.unix_world import (
    CONNECTED_KINDS,
    DGRAM,
    KINDS,
    SO_PEEK_OFF,
    STREAM,
    UnixWorld,
    kernel_world,
    outcome,
    stack_world,
)

PATIENCE = 20  # seconds; a test that takes as long has failed


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnixWorld]:
    with kernel_world(tmp_path) if request.param == "kernel" else stack_world(virtual=False) as made:
        yield made


@pytest.fixture
def virtual() -> Iterator[UnixWorld]:
    with stack_world() as made:
        yield made


class Waiting:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self._answers: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(outcome(call, *args)))
        self._thread.start()

    def answer(self) -> Any:
        self._thread.join(PATIENCE)
        return self._answers[0]


def full_listener(world: UnixWorld) -> Any:
    listener = world.listening(backlog=0)
    world.make().connect(listener.getsockname())
    return listener


def test_unx_07_connect_waits_for_accept(world: UnixWorld) -> None:
    """A connect that may wait does until a place in the backlog is free."""
    listener = full_listener(world)
    client = world.make(blocking=True)
    waiting = Waiting(client.connect, listener.getsockname())
    world.keep(listener.accept()[0])
    assert waiting.answer() is None
    assert client.getpeername() == listener.getsockname()


def test_unx_06_connect_waits_for_a_larger_backlog(world: UnixWorld) -> None:
    """listen with a larger backlog lets waiting connectors in."""
    listener = full_listener(world)
    waiting = Waiting(world.make(blocking=True).connect, listener.getsockname())
    listener.listen(5)
    assert waiting.answer() is None


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_unx_07_connect_waits_in_vain(world: UnixWorld, end: str) -> None:
    """Waiting connectors of a listener that is closed or shut down get ECONNREFUSED."""
    listener = full_listener(world)
    waiting = Waiting(world.make(blocking=True).connect, listener.getsockname())
    if end == "close":
        listener.close()
        assert waiting.answer() == "ECONNREFUSED"
        return
    listener.shutdown(kernel.SHUT_RD)
    world.keep(listener.accept()[0])
    assert waiting.answer() == "ECONNREFUSED"


def test_unx_07_connect_really_waits(virtual: UnixWorld) -> None:
    """Without anybody to let it in it would wait for ever; with SO_SNDTIMEO it is EAGAIN when that is over."""
    listener = full_listener(virtual)
    client = virtual.make(blocking=True)
    assert code(client.connect, listener.getsockname()) == errno.EDEADLK
    client.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, struct.pack("@ll", 5, 0))
    before = virtual.stack.network.scheduler.now if virtual.stack else 0
    assert code(client.connect, listener.getsockname()) == errno.EAGAIN
    assert virtual.stack is not None
    assert virtual.stack.network.clock() - before == 5_000_000_000


def test_unx_07_send_timeout_of_connect(world: UnixWorld) -> None:
    """SO_SNDTIMEO ends a connect with EAGAIN."""
    listener = full_listener(world)
    client = world.make(blocking=True)
    client.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, struct.pack("@ll", 0, 2000))
    assert code(client.connect, listener.getsockname()) == errno.EAGAIN


@pytest.mark.parametrize("kind", CONNECTED_KINDS)
def test_unx_08_blocking_accept(world: UnixWorld, kind: int) -> None:
    """accept waits for a connection; on a shut down listener it is EINVAL."""
    listener = world.listening(kind=kind)
    listener.setblocking(True)
    waiting = Waiting(listener.accept)
    world.make(kind).connect(listener.getsockname())
    served, address = waiting.answer()
    world.keep(served)
    assert address == ""
    waiting = Waiting(listener.accept)
    listener.shutdown(kernel.SHUT_RD)
    assert waiting.answer() == "EINVAL"


@pytest.mark.parametrize("kind", KINDS)
def test_unx_10_recv_waits(world: UnixWorld, kind: int) -> None:
    """recv waits for data; MSG_DONTWAIT does not."""
    one, other = world.make_pair(kind, blocking=True)
    assert code(other.recv, 9, kernel.MSG_DONTWAIT) == errno.EAGAIN
    waiting = Waiting(other.recv, 9)
    one.send(b"x")
    assert waiting.answer() == b"x"
    waiting = Waiting(other.recv, 9)
    other.shutdown(kernel.SHUT_RD)
    assert waiting.answer() == b""


def test_unx_10_waitall(world: UnixWorld) -> None:
    """MSG_WAITALL waits for all of it, or the end; SO_RCVLOWAT for as much."""
    one, other = world.make_pair(blocking=True)
    waiting = Waiting(other.recv, 6, kernel.MSG_WAITALL)
    for part in (b"ab", b"cd", b"ef"):
        one.send(part)
    assert waiting.answer() == b"abcdef"
    waiting = Waiting(other.recv, 6, kernel.MSG_WAITALL)
    one.send(b"gh")
    one.shutdown(kernel.SHUT_WR)
    assert waiting.answer() == b"gh"
    one, other = world.make_pair(blocking=True)
    other.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVLOWAT, 3)
    waiting = Waiting(other.recv, 100)
    one.send(b"ab")
    one.send(b"c")
    assert waiting.answer() == b"abc"


def test_unx_10_waitall_stops_at_files(world: UnixWorld) -> None:
    """MSG_WAITALL does not read past a message with files."""
    one, other = world.make_pair(blocking=True)
    one.send(b"a")
    one.sendmsg([b"b"], [(kernel.SOL_SOCKET, kernel.SCM_RIGHTS, struct.pack("@i", one.fileno()))])
    one.send(b"c")
    data, messages, flags, _ = other.recvmsg(9, 100, kernel.MSG_WAITALL)
    assert (data, flags, len(messages)) == (b"ab", 0, 1)
    os.close(struct.unpack("@i", messages[0][2])[0])


def test_unx_12_a_blocking_send_sends_all(world: UnixWorld) -> None:
    """send of a socket that may wait returns when all of it is taken."""
    one, other = world.make_pair(blocking=True)
    waiting = Waiting(one.send, bytes(2_000_000))
    received = 0
    while received < 2_000_000:
        received += len(other.recv(50_000))
    assert waiting.answer() == 2_000_000


def test_unx_12_a_send_cut_short(world: UnixWorld) -> None:
    """What was taken before the peer went away, or before SO_SNDTIMEO, is the answer; the error comes next time."""
    one, other = world.make_pair(blocking=True)
    waiting = Waiting(one.send, bytes(2_000_000))
    received = 0
    while received < 100_000:
        received += len(other.recv(50_000))
    other.close()
    assert 100_000 < waiting.answer() < 2_000_000
    assert code(one.send, b"x") == errno.EPIPE
    one, _ = world.make_pair(blocking=True)
    one.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, struct.pack("@ll", 0, 2000))
    assert one.send(bytes(2_000_000)) == 219264
    assert code(one.send, b"x") == errno.EAGAIN


def _send_to(sock: Any, name: Any, data: bytes) -> Any:
    return sock.sendto(data, name)


def test_udg_04_send_waits_for_the_receiver(world: UnixWorld) -> None:
    """A sender that may wait does until the receiver's queue has room, connected or not."""
    receiver = world.make(DGRAM)
    receiver.bind(world.path())
    for connected in (False, True):
        sender = world.make(DGRAM, blocking=True)
        if connected:
            sender.connect(receiver.getsockname())
        send = sender.send if connected else partial(_send_to, sender, receiver.getsockname())
        for _ in range(11):
            send(b"x")
        waiting = Waiting(send, b"last")
        received = [receiver.recv(9)]
        assert waiting.answer() == 4
        received += [receiver.recv(9) for _ in range(11)]
        assert received == [b"x"] * 11 + [b"last"]


def test_udg_04_send_really_waits(virtual: UnixWorld) -> None:
    """Without anybody to read, a datagram to a full queue would wait for ever."""
    receiver, sender = virtual.make(DGRAM), virtual.make(DGRAM, blocking=True)
    receiver.bind(virtual.path())
    for _ in range(11):
        sender.sendto(b"x", receiver.getsockname())
    assert code(sender.sendto, b"x", receiver.getsockname()) == errno.EDEADLK
    sender.settimeout(3)
    with pytest.raises(TimeoutError):
        sender.sendto(b"x", receiver.getsockname())


def test_unx_19_a_peek_that_waits(world: UnixWorld) -> None:
    """A peek beyond what there is waits for more."""
    one, other = world.make_pair(STREAM, blocking=True)
    one.send(b"ab")
    other.setsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF, 0)
    assert other.recv(9, kernel.MSG_PEEK) == b"ab"
    if world.ours:  # Linux, having waited, begins at the first byte again
        waiting = Waiting(other.recv, 9, kernel.MSG_PEEK)
        one.send(b"cd")
        assert waiting.answer() == b"cd"


@pytest.mark.parametrize("kind", KINDS)
def test_unx_13_closing_ends_a_call_that_waits(kind: int) -> None:
    """A thread in recv gets EBADF when its own socket is closed; Linux leaves it there (row CORE-04)."""
    with stack_world(virtual=False) as world:
        one, other = world.make_pair(kind, blocking=True)
        waiting = Waiting(other.recv, 9)
        other.close()
        assert waiting.answer() in ("EBADF", "ECONNRESET")
        one.close()
