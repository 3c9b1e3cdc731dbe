"""Files on their way that can never arrive, and what a close leaves behind: nothing (rows CTRL-02, SEC-09)."""

from __future__ import annotations

import os
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Credentials
from stack.tests.unix_world import DGRAM, KINDS, SEQPACKET, STREAM, UnixWorld, identity, outcome, stack_world


@pytest.fixture
def world() -> Iterator[UnixWorld]:
    with stack_world() as made:
        yield made


def rights(*socks: Any) -> list[tuple[int, int, bytes]]:
    fds = [each if isinstance(each, int) else each.fileno() for each in socks]
    return [(kernel.SOL_SOCKET, kernel.SCM_RIGHTS, struct.pack(f"@{len(fds)}i", *fds))]


class Probe:
    """A pipe whose reading end is sent along: it is closed once everybody has let go of the writing end."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)

    def sent(self) -> None:
        os.close(self.write)
        self.write = -1

    def closed(self) -> bool:
        return bool(outcome(os.read, self.read, 1) == b"")

    def end(self) -> None:
        for fd in (self.read, self.write):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def probe() -> Iterator[Probe]:
    made = Probe()
    yield made
    made.end()


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_02_a_socket_in_its_own_queue(world: UnixWorld, probe: Probe, kind: int) -> None:
    """A socket that waits in its own queue is closed with its last descriptor, and what is with it."""
    one, other = world.make_pair(kind)
    one.sendmsg([b"x"], rights(other, probe.write))
    probe.sent()
    one.close()
    assert not probe.closed()
    other.close()
    assert probe.closed()


def test_ctrl_02_a_circle_of_two(world: UnixWorld, probe: Probe) -> None:
    """Two sockets in each other's queues are closed together."""
    one, one_end = world.make_pair()
    two, two_end = world.make_pair()
    one.sendmsg([b"x"], rights(two_end, probe.write))
    two.sendmsg([b"x"], rights(one_end))
    probe.sent()
    one_end.close()
    assert not probe.closed()
    two_end.close()
    assert probe.closed()
    for each in (one, two):  # who could send there is told
        assert outcome(each.recv, 9) == "ECONNRESET"
        assert outcome(each.send, b"x") == "EPIPE"


def test_ctrl_02_a_circle_somebody_can_open(world: UnixWorld, probe: Probe) -> None:
    """A circle that hangs on a living socket lives."""
    one, one_end = world.make_pair()
    two, two_end = world.make_pair()
    one.sendmsg([b"x"], rights(two_end))
    two.sendmsg([b"x"], rights(one_end, probe.write))
    probe.sent()
    two_end.close()
    one.close()
    two.close()
    assert not probe.closed()
    _, messages, _, _ = one_end.recvmsg(9, 100)
    (fd,) = struct.unpack("@i", messages[0][2])
    with world.socket.socket(fileno=fd) as arrived:
        for number in struct.unpack("@2i", arrived.recvmsg(9, 100)[1][0][2]):
            os.close(number)
    assert probe.closed()


def test_ctrl_02_unaccepted_connections_belong_to_their_listener(world: UnixWorld, probe: Probe) -> None:
    """A listener in the queue of a connection nobody accepted is a circle, too."""
    listener = world.listening()
    client = world.make()
    client.connect(listener.getsockname())
    client.sendmsg([b"x"], rights(listener, probe.write))
    probe.sent()
    client.close()
    assert not probe.closed()
    listener.close()
    assert probe.closed()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=14),
    st.sets(st.integers(0, 5)),
)
def test_ctrl_02_any_graph(edges: list[tuple[int, int]], kept: set[int]) -> None:
    """Of sockets that wait in each other's queues those live that can be reached from one that is held."""
    with stack_world() as world:
        assert world.stack is not None
        pairs = [world.make_pair(DGRAM) for _ in range(6)]
        for queue, cargo in edges:
            pairs[queue][0].sendmsg([b"x"], rights(pairs[cargo][1]))
        ends = [end._sock for _, end in pairs]
        for number, (_, end) in enumerate(pairs):
            if number not in kept:
                end.close()
        alive = set(kept)
        while True:
            more = {cargo for queue, cargo in edges if queue in alive} - alive
            if not more:
                break
            alive |= more
        assert {number for number, end in enumerate(ends) if not end.endpoint.dead} == alive


def test_sec_09_nothing_is_left(world: UnixWorld, probe: Probe) -> None:
    """Closing frees names, and files in messages nobody read."""
    assert world.stack is not None
    before = len(world.stack.netns.abstract)
    for kind in KINDS:
        one, other = world.make_pair(kind)
        one.bind("")
        one.sendmsg([b"x"], rights(probe.write))
        one.close()
        other.close()
    probe.sent()
    assert probe.closed()
    assert len(world.stack.netns.abstract) == before
    assert world.stack.unix.in_flight.of_user(os.getuid()) == 0


def test_sec_09_a_stack_that_closes(probe: Probe) -> None:
    """Files in messages are closed with their Stack, whoever still has its sockets."""
    with stack_world() as world:
        one, other = world.make_pair()
        one.sendmsg([b"x"], rights(other, probe.write))
        probe.sent()
        assert world.stack is not None
        world.stack.network.close()
        assert probe.closed()


def test_ctrl_02_sockets_of_other_stacks(world: UnixWorld) -> None:
    """A socket of another Stack travels as a descriptor, and is itself where it arrives."""
    assert world.stack is not None
    with stack_world() as elsewhere:
        one, other = world.make_pair()
        cargo, far = elsewhere.make_pair(SEQPACKET)
        one.sendmsg([b"x"], rights(cargo))
        cargo.close()
        (fd,) = struct.unpack("@i", other.recvmsg(9, 100)[1][0][2])
        with world.socket.socket(fileno=fd) as arrived:
            far.send(b"hello")
            assert arrived.recv(9) == b"hello"
            assert arrived.type == SEQPACKET


def test_ctrl_02_sockets_of_other_families(world: UnixWorld) -> None:
    """A UDP socket travels as well."""
    one, other = world.make_pair()
    with world.socket.socket(kernel.AF_INET, DGRAM) as udp, world.socket.socket(kernel.AF_INET, DGRAM) as far:
        udp.bind(("127.0.0.1", 0))
        name = udp.getsockname()
        one.sendmsg([b"x"], rights(udp))
        udp.close()
        (fd,) = struct.unpack("@i", other.recvmsg(9, 100)[1][0][2])
        with world.socket.socket(fileno=fd) as arrived:
            far.sendto(b"hello", name)
            assert arrived.recv(9) == b"hello"


def test_sec_06_forged_credentials(world: UnixWorld) -> None:
    """Another uid, gid or pid in SCM_CREDENTIALS is EPERM without the capability for it."""
    assert world.stack is not None
    one, _ = world.make_pair()

    def forge(ucred: bytes) -> Any:
        return outcome(one.sendmsg, [b"x"], [(kernel.SOL_SOCKET, kernel.SCM_CREDENTIALS, ucred)])

    with world.stack.acting(Credentials.user(1000, pid=77)):
        assert forge(identity(77, 1000, 1000)) == 1
        for ucred in (identity(77, 0, 1000), identity(77, 1000, 0), identity(os.getpid(), 1000, 1000)):
            assert forge(ucred) == "EPERM"
        with world.stack.acting(Credentials(uid=0, gid=0, pid=78)):
            assert forge(identity(77, 1000, 1000)) == 1  # there is a task of that pid
            assert forge(identity(79, 0, 0)) == "ESRCH"


def test_sec_06_peer_is_captured(world: UnixWorld) -> None:
    """SO_PEERCRED is of the moment of connecting, whoever has the socket later."""
    assert world.stack is not None
    with world.stack.acting(Credentials.user(1000, pid=77)):
        one, _ = world.make_pair(STREAM)
    assert one.getsockopt(kernel.SOL_SOCKET, kernel.SO_PEERCRED, 12) == identity(77, 1000, 1000)
