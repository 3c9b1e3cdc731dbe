"""Clauses of rows UNX, UDG, CTRL and section 2.7 that no other test asserts, on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket as kernel
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.socket.poll import IN, OUT, RDHUP
from stack.tests.kernel_twin import code
from stack.tests.unix_world import (
    CONNECTED_KINDS,
    DGRAM,
    FIONREAD,
    KINDS,
    SEQPACKET,
    SIOCOUTQ,
    SO_PEERGROUPS,
    UnixWorld,
    kernel_world,
    outcome,
    stack_world,
)

SOL = kernel.SOL_SOCKET


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnixWorld]:
    with kernel_world(tmp_path) if request.param == "kernel" else stack_world() as made:
        yield made


@pytest.fixture(params=["kernel", "ours"])
def real_time(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnixWorld]:
    with kernel_world(tmp_path) if request.param == "kernel" else stack_world(virtual=False) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_unx_02_names_of_every_kind(world: UnixWorld, kind: int) -> None:
    """A path is a path to all kinds of sockets: in the way of each other, and bound while connected."""
    one, other = world.make_pair(kind)
    one.bind(path := world.path())
    assert (one.getsockname(), other.getpeername()) == (path, path)
    for each in KINDS:
        assert code(world.make(each).bind, path) == errno.EADDRINUSE


def test_unx_06_a_smaller_backlog(world: UnixWorld) -> None:
    """listen() again with a smaller backlog keeps who is in it, and lets nobody else in until it is below that."""
    listener = world.listening(backlog=2)
    address = listener.getsockname()
    for _ in range(3):
        world.make().connect(address)
    listener.listen(0)
    late = world.make()
    for _ in range(3):
        assert code(late.connect, address) == errno.EAGAIN
        world.keep(listener.accept()[0])
    late.connect(address)
    assert code(world.make().connect, address) == errno.EAGAIN


def test_unx_07_connecting_to_another_listener(world: UnixWorld) -> None:
    """A socket that listens may not connect to anybody, nor one that is connected listen."""
    listener, other = world.listening(), world.listening()
    assert code(listener.connect, other.getsockname()) == errno.EINVAL
    client, _ = world.connected()
    assert code(client.listen, 1) == errno.EINVAL


@pytest.mark.parametrize("end", ["mute", "peer deaf"])
def test_unx_09_sigpipe_of_half_closed_streams(world: UnixWorld, end: str) -> None:
    """EPIPE after one's own SHUT_WR, and after the peer's SHUT_RD, comes with SIGPIPE as well, for 0 bytes too."""
    seen: list[int] = []
    old = None
    if world.stack is None:
        old = signal.signal(signal.SIGPIPE, lambda number, frame: seen.append(1))
    else:
        world.stack.on_sigpipe = lambda: seen.append(1)
    try:
        one, other = world.make_pair()
        if end == "mute":
            one.shutdown(kernel.SHUT_WR)
        else:
            other.shutdown(kernel.SHUT_RD)
        for data, flags, signals in ((b"x", 0, 1), (b"", 0, 2), (b"x", kernel.MSG_NOSIGNAL, 2)):
            assert code(one.send, data, flags) == errno.EPIPE
            assert len(seen) == signals
    finally:
        if old is not None:
            signal.signal(signal.SIGPIPE, old)


@pytest.mark.parametrize("kind", [SEQPACKET, DGRAM])
def test_core_16_unx_11_udg_05_the_true_length(world: UnixWorld, kind: int) -> None:
    """MSG_TRUNC as an input flag: the call tells how long the record was, whichever call it is; MSG_PEEK as well."""
    one, other = world.make_pair(kind)
    flags = kernel.MSG_TRUNC
    for extra, times in ((0, 7), (kernel.MSG_PEEK, 1)):
        for _ in range(times):
            one.send(b"hello")
        room = bytearray(2)
        assert other.recv_into(room, 2, flags | extra) == 5
        assert room == b"he"
        assert other.recvfrom_into(room, 2, flags | extra) == (5, None)
        assert other.recvmsg_into([room], 0, flags | extra) == (5, [], kernel.MSG_TRUNC, None)
        assert other.recvmsg(2, 0, flags | extra) == (b"he", [], kernel.MSG_TRUNC, None)
        for data in (other.recv(2, flags | extra), other.recvfrom(2, flags | extra)[0]):
            assert (len(data), data[:2]) == (5, b"he")  # what lies behind the buffer is no data
        assert other.recv_into(room, 1) == 1  # the call returns what it took, without the flag


def test_core_16_streams_have_no_records(world: UnixWorld) -> None:
    """A stream takes MSG_TRUNC for nothing: the answer is what was taken."""
    one, other = world.make_pair()
    one.send(b"hello")
    room = bytearray(2)
    assert other.recv_into(room, 2, kernel.MSG_TRUNC) == 2
    assert other.recv(2, kernel.MSG_TRUNC) == b"ll"
    assert other.recvmsg(9) == (b"o", [], 0, None)


def test_core_16_datagrams_of_other_families(world: UnixWorld) -> None:
    """MSG_TRUNC tells a UDP datagram's and a netlink message's true length by every call."""
    udp = world.keep(world.socket.socket(kernel.AF_INET, DGRAM), blocking=True)
    udp.bind(("127.0.0.1", 0))
    udp.connect(udp.getsockname())
    route = world.keep(world.socket.socket(kernel.AF_NETLINK, kernel.SOCK_RAW, 0), blocking=True)
    for sock, message, length in ((udp, b"hello", 5), (route, struct.pack("=IHHII", 16, 99, 5, 1, 0), 36)):
        room = bytearray(3)
        for call in (sock.recv_into, sock.recvfrom_into):
            sock.send(message)
            got = call(room, 3, kernel.MSG_TRUNC)
            assert (got if isinstance(got, int) else got[0]) == length
        sock.send(message)
        assert sock.recvmsg_into([room], 0, kernel.MSG_TRUNC)[0] == length
        for receive in (sock.recv, sock.recvfrom):
            sock.send(message)
            got = receive(3, kernel.MSG_TRUNC)
            data = got if isinstance(got, bytes) else got[0]
            assert (len(data), data[:3]) == (length, bytes(room))


def test_unx_12_pages(world: UnixWorld) -> None:
    """Writes of a page each fill the buffer with 180224 bytes; then it is EAGAIN."""
    one, _ = world.make_pair()
    sent = 0
    while (taken := outcome(one.send, bytes(4096))) != "EAGAIN":
        sent += taken
    assert sent == 180224


@pytest.mark.parametrize("kind", CONNECTED_KINDS)
def test_unx_14_listening_after_shutdown(world: UnixWorld, kind: int) -> None:
    """SHUT_RD before bind and listen stays: IN and RDHUP, without HUP."""
    early = world.make(kind)
    early.shutdown(kernel.SHUT_RD)
    early.bind("")
    early.listen(1)
    assert world.bits(early) == IN | RDHUP
    assert code(world.make(kind).connect, early.getsockname()) == errno.ECONNREFUSED


@pytest.mark.parametrize("kind", CONNECTED_KINDS)
def test_unx_15_edges_across_states(real_time: UnixWorld, kind: int) -> None:
    """Registered with epoll for edges before listen or connect, a descriptor tells of each change that comes after."""
    world = real_time
    listener, client = world.make(kind), world.make(kind)
    wanted = select.EPOLLIN | select.EPOLLOUT
    with select.epoll() as epoll:
        epoll.register(listener.fileno(), select.EPOLLIN | select.EPOLLET)
        epoll.register(client.fileno(), wanted | select.EPOLLET)
        epoll.poll(0)  # a fresh socket is writable, and hung up
        listener.bind(world.path())
        listener.listen(1)
        assert not dict(epoll.poll(0)).get(listener.fileno(), 0) & select.EPOLLIN
        client.connect(listener.getsockname())
        assert [fd for fd, _ in epoll.poll(0)] == [listener.fileno()]  # a connect that has returned is no event
        served = world.keep(listener.accept()[0])
        while epoll.poll(0):
            pass
        served.send(b"x")
        assert dict(epoll.poll(0))[client.fileno()] & wanted == wanted
        assert epoll.poll(0) == []
        served.shutdown(kernel.SHUT_WR)
        assert dict(epoll.poll(0))[client.fileno()] & select.EPOLLIN


def test_udg_01_connecting_to_oneself(world: UnixWorld) -> None:
    """A datagram socket may be its own peer."""
    sock = world.make(DGRAM)
    sock.bind(name := world.abstract())
    sock.connect(name)
    assert sock.send(b"x") == 1
    assert sock.recvfrom(9) == (b"x", name)


def test_udg_05_shut_and_waiting(world: UnixWorld) -> None:
    """What was queued before SHUT_RD is still received; then a call that may wait finds the end."""
    one, other = world.make_pair(DGRAM, blocking=True)
    one.send(b"before")
    other.shutdown(kernel.SHUT_RD)
    assert code(one.send, b"late") == errno.EPIPE
    assert [other.recv(9), other.recv(9)] == [b"before", b""]


@pytest.mark.parametrize("kind", KINDS)
def test_udg_06_unx_14_datagrams_are_never_hung_up_on(world: UnixWorld, kind: int) -> None:
    """A peer that shuts down or closes hangs a stream up, a datagram socket not."""
    one, other = world.make_pair(kind)
    other.shutdown(kernel.SHUT_RDWR)
    assert bool(world.bits(one) & RDHUP) == (kind != DGRAM)
    if kind == DGRAM:
        assert world.bits(one) == OUT


def test_ctrl_09_room_for_groups(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Too little room for the groups is ERANGE, just enough is enough: with groups of this process's, on both."""
    groups = os.getgroups()
    if os.geteuid() == 0:
        try:
            os.setgroups([10, 20, 30])
        except OSError:
            pytest.skip("this user namespace does not let groups be set")
        request.addfinalizer(lambda: os.setgroups(groups))
    if not (mine := os.getgroups()):
        pytest.skip("this user is in no group")
    whole = struct.pack(f"={len(mine)}I", *mine)
    with kernel_world(tmp_path) as theirs, stack_world() as ours:
        for world in (theirs, ours):
            one, _ = world.make_pair()
            assert code(one.getsockopt, SOL, SO_PEERGROUPS, len(whole) - 1) == errno.ERANGE, world.ours
            assert one.getsockopt(SOL, SO_PEERGROUPS, len(whole)) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_opt_levels_of_others(world: UnixWorld, kind: int) -> None:
    """Section 2.7: Unix sockets have no options but SOL_SOCKET's, every other level is EOPNOTSUPP; SO_REUSEPORT cannot
    be switched on, EOPNOTSUPP, and SO_ACCEPTCONN tells who listens.
    """
    sock = world.make(kind)
    for level in (0, 6, 17, 40, 41, 270, 999):
        assert code(sock.getsockopt, level, 1) == errno.EOPNOTSUPP
        assert code(sock.setsockopt, level, 1, 1) == errno.EOPNOTSUPP
    assert code(sock.setsockopt, SOL, kernel.SO_REUSEPORT, 1) == errno.EOPNOTSUPP
    assert sock.setsockopt(SOL, kernel.SO_REUSEPORT, 0) is None
    assert sock.getsockopt(SOL, kernel.SO_REUSEPORT) == 0
    if kind != DGRAM:
        sock.bind("")
        sock.listen(1)
        assert sock.getsockopt(SOL, kernel.SO_ACCEPTCONN) == 1


def test_unx_19_the_queues_of_every_state(world: UnixWorld) -> None:
    """SIOCINQ and SIOCOUTQ of a fresh socket are 0; five bytes are 768 of memory; a listener's SIOCINQ is EINVAL."""
    for kind in KINDS:
        fresh = world.make(kind)
        assert (world.ask(fresh, FIONREAD), world.ask(fresh, SIOCOUTQ)) == (0, 0)
        one, other = world.make_pair(kind)
        one.send(b"12345")
        assert (world.ask(other, FIONREAD), world.ask(one, SIOCOUTQ)) == (5, 768)
    assert outcome(world.ask, world.listening(), FIONREAD) == "EINVAL"
