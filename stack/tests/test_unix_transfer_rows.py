"""Rows UNX-11..UNX-19 of the socket semantics, on the kernel's AF_UNIX and on a Stack's by the same bodies.

Differences: an urgent byte exists since Linux 5.15, and what a read does at its
mark is Linux 6.11's.
"""

from __future__ import annotations

import errno
import os
import socket as kernel
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.socket.poll import HUP, IN, OUT, PRI, RDHUP
from stack.tests.kernel_twin import code
from stack.tests.unix_world import (
    CONNECTED_KINDS,
    DGRAM,
    FIONREAD,
    KERNEL,
    KINDS,
    SEQPACKET,
    SIOCATMARK,
    SIOCOUTQ,
    SO_PEEK_OFF,
    STREAM,
    UnixWorld,
    kernel_world,
    outcome,
    stack_world,
)

DIFFERENCES = {
    "UNX-17": "before Linux 5.15 a stream has no urgent byte, before 6.11 a read does not stop at its mark; Linux goes "
    "on counting one in SIOCINQ that a read has passed over, and SIOCATMARK of a listener with embryos is 1",
    "UNX-19": "having waited, a peek with SO_PEEK_OFF begins at the first byte on Linux, on a Stack where it stopped; "
    "SIOCUNIXFILE is ENOTTY on a Stack, which has no such file",
}

both_connected = pytest.mark.parametrize("kind", CONNECTED_KINDS)


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnixWorld]:
    with kernel_world(tmp_path) if request.param == "kernel" else stack_world() as made:
        yield made


@pytest.fixture
def ours() -> Iterator[UnixWorld]:
    with stack_world() as made:
        yield made


def test_unx_11_records(world: UnixWorld) -> None:
    """Records stay apart, are cut with MSG_TRUNC, may be empty; one larger than the send buffer is EMSGSIZE."""
    one, other = world.make_pair(SEQPACKET)
    for record in (b"first", b"", b"third"):
        assert one.send(record, kernel.MSG_EOR) == len(record)
    assert other.recvmsg(2) == (b"fi", [], kernel.MSG_TRUNC, None)
    assert other.recvmsg(2) == (b"", [], 0, None)
    assert other.recvmsg(9) == (b"third", [], 0, None)  # no MSG_EOR comes back
    assert one.send(bytes(212960)) == 212960
    assert other.recv(212960) == bytes(212960)
    assert code(one.send, bytes(212961)) == errno.EMSGSIZE


def test_unx_12_buffer(world: UnixWorld) -> None:
    """The send buffer counts memory: 219264 bytes of a large write, 278 writes of one byte, and SO_SNDBUF matters."""
    one, other = world.make_pair()
    assert one.send(bytes(1 << 20)) == 219264
    assert world.bits(one) == 0
    assert code(one.send, b"x") == errno.EAGAIN
    other.recv(36544)
    assert outcome(one.send, b"x") == 1  # there is room as soon as one piece is read
    small, _ = world.make_pair()
    count = 0
    while outcome(small.send, b"x") == 1:
        count += 1
    assert count == 278
    assert world.ask(small, SIOCOUTQ) == 278 * 768
    tiny, peer = world.make_pair()
    tiny.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDBUF, 1)
    assert tiny.getsockopt(kernel.SOL_SOCKET, kernel.SO_SNDBUF) == 4608
    sent = tiny.send(bytes(100000))
    assert 0 < sent < 8192
    assert len(peer.recv(100000)) == sent
    peer.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 1)  # no effect: it is the sender's memory
    assert tiny.send(bytes(100000)) == sent


@pytest.mark.parametrize("kind", KINDS)
def test_unx_12_truesize(world: UnixWorld, kind: int) -> None:
    """What a message of any length costs its sender, as SIOCOUTQ tells."""
    from stack.unix.truesize import record_truesize, stream_truesize

    expected = stream_truesize if kind == STREAM else record_truesize
    lengths = [1, 192, 193, 704, 705, 1728, 1729, 3776, 3777, 7872, 7873, 16064, 16065, 20160, 20161, 36544]
    if kind != STREAM:
        lengths += [85696, 85697, 102080, 102081, 200385]
    for length in lengths:
        one, other = world.make_pair(kind)
        assert one.send(bytes(length)) == length
        assert world.ask(one, SIOCOUTQ) == expected(length), length
        other.recv(length)
        assert world.ask(one, SIOCOUTQ) == 0
        one.close()
        other.close()


@both_connected
def test_unx_13_shutdown(world: UnixWorld, kind: int) -> None:
    """Allowed in every state and again; deafness makes the peer mute, muteness gives it the end after the data."""
    for sock in (world.make(kind), world.listening(kind=kind), world.make_pair(kind)[0]):
        for how in (kernel.SHUT_RD, kernel.SHUT_WR, kernel.SHUT_RDWR, kernel.SHUT_RDWR):
            assert sock.shutdown(how) is None
        assert code(sock.shutdown, 3) == errno.EINVAL
    one, other = world.make_pair(kind)
    one.send(b"x")
    one.shutdown(kernel.SHUT_WR)
    assert other.recv(9) == b"x"
    assert other.recv(9) == b""
    assert other.send(b"y") == 1
    assert one.recv(9) == b"y"
    one.shutdown(kernel.SHUT_RD)
    assert code(other.send, b"z") == errno.EPIPE
    assert one.getpeername() == ""
    deaf = world.make(kind)
    deaf.shutdown(kernel.SHUT_RD)  # before connecting: it stays
    deaf.connect(world.listening(kind=kind).getsockname())
    assert deaf.recv(9) == b""


@both_connected
def test_unx_14_poll(world: UnixWorld, kind: int) -> None:
    """Poll bits of every state."""
    bits = world.bits
    fresh = world.make(kind)
    assert bits(fresh) == OUT | HUP
    fresh.shutdown(kernel.SHUT_RD)
    assert bits(fresh) == IN | OUT | RDHUP | HUP
    listener = world.listening(kind=kind)
    assert bits(listener) == 0
    world.make(kind).connect(listener.getsockname())
    assert bits(listener) == IN
    world.keep(listener.accept()[0])
    listener.shutdown(kernel.SHUT_RD)
    assert bits(listener) == IN | RDHUP
    listener.shutdown(kernel.SHUT_WR)
    assert bits(listener) == IN | RDHUP | HUP
    later = world.make(kind)
    later.shutdown(kernel.SHUT_RDWR)
    later.bind("")
    later.listen(1)
    assert bits(later) == IN | RDHUP | HUP
    one, other = world.make_pair(kind)
    assert (bits(one), bits(other)) == (OUT, OUT)
    one.shutdown(kernel.SHUT_RD)
    assert (bits(one), bits(other)) == (IN | OUT | RDHUP, OUT)
    one, other = world.make_pair(kind)
    one.shutdown(kernel.SHUT_WR)
    assert (bits(one), bits(other)) == (OUT, IN | OUT | RDHUP)
    one.shutdown(kernel.SHUT_RD)
    assert bits(one) == bits(other) == IN | OUT | RDHUP | HUP
    one, other = world.make_pair(kind)
    one.close()
    assert bits(other) == IN | OUT | RDHUP | HUP


@pytest.mark.parametrize("place", ["kernel", "ours"])
@both_connected
def test_unx_15_epoll_across_states(tmp_path: Path, kind: int, place: str) -> None:
    """A descriptor registered with epoll before listen or connect shows what comes after."""
    import select

    with kernel_world(tmp_path) if place == "kernel" else stack_world(virtual=False) as world:
        listener, client = world.make(kind), world.make(kind)
        with select.epoll() as epoll:
            epoll.register(listener.fileno(), select.EPOLLIN)
            epoll.register(client.fileno(), select.EPOLLIN | select.EPOLLOUT)
            assert not dict(epoll.poll(0)).get(listener.fileno(), 0) & select.EPOLLIN
            listener.bind(world.path())
            listener.listen(1)
            assert not dict(epoll.poll(0)).get(listener.fileno(), 0) & select.EPOLLIN
            client.connect(listener.getsockname())
            ready = dict(epoll.poll(0))
            assert ready[listener.fileno()] & select.EPOLLIN
            assert ready[client.fileno()] & (select.EPOLLIN | select.EPOLLOUT) == select.EPOLLOUT
            served = world.keep(listener.accept()[0])
            assert not dict(epoll.poll(0)).get(listener.fileno(), 0) & select.EPOLLIN
            served.send(b"x")
            assert dict(epoll.poll(0))[client.fileno()] & select.EPOLLIN
            client.recv(9)
            assert not dict(epoll.poll(0))[client.fileno()] & select.EPOLLIN
            served.close()
            assert dict(epoll.poll(0))[client.fileno()] & select.EPOLLIN


@pytest.mark.parametrize("kind", KINDS)
def test_unx_16_socketpair(world: UnixWorld, kind: int) -> None:
    """Both ends are nameless, connected to each other, and of whoever made them."""
    one, other = world.make_pair(kind)
    for end in (one, other):
        assert end.getsockname() == end.getpeername() == ""
        assert end.getsockopt(kernel.SOL_SOCKET, kernel.SO_PEERCRED) == os.getpid()
    one.send(b"x")
    assert other.recv(9) == b"x"


@pytest.mark.skipif(KERNEL < (6, 11), reason="the mark is Linux 6.11's")
def test_unx_17_urgent_byte(world: UnixWorld) -> None:
    """MSG_OOB: the last byte is urgent, comes once by MSG_OOB, is passed over by others, and shows as POLLPRI."""
    one, other = world.make_pair()
    assert code(other.recv, 1, kernel.MSG_OOB) == errno.EINVAL
    assert one.send(b"abc", kernel.MSG_OOB) == 3
    assert world.bits(other) == IN | OUT | PRI
    assert other.recv(9) == b"ab"  # up to the mark
    assert world.ask(other, SIOCATMARK) == 1
    assert other.recvmsg(9, 0, kernel.MSG_OOB) == (b"c", [], kernel.MSG_OOB, None)
    assert world.bits(other) & PRI == 0
    assert code(other.recv, 1, kernel.MSG_OOB) == errno.EINVAL
    assert code(other.recv, 9) == errno.EAGAIN
    one.send(b"d", kernel.MSG_OOB)
    one.send(b"e")
    assert other.recv(9, kernel.MSG_OOB | kernel.MSG_PEEK) == b"d"
    assert other.recv(9) == b"e"  # the urgent byte is passed over, and lost
    assert code(other.recv, 1, kernel.MSG_OOB) == errno.EINVAL
    other.setsockopt(kernel.SOL_SOCKET, kernel.SO_OOBINLINE, 1)
    one.send(b"fg", kernel.MSG_OOB)
    assert code(other.recv, 1, kernel.MSG_OOB) == errno.EINVAL
    assert other.recv(9) == b"f"
    assert other.recv(9) == b"g"
    assert code(one.send, b"", kernel.MSG_OOB) == errno.EOPNOTSUPP
    for kind in (SEQPACKET, DGRAM):
        one, other = world.make_pair(kind)
        assert code(one.send, b"x", kernel.MSG_OOB) == errno.EOPNOTSUPP
        assert code(other.recv, 1, kernel.MSG_OOB) == errno.EOPNOTSUPP


@both_connected
def test_unx_18_backlog(world: UnixWorld, kind: int) -> None:
    """The backlog is first in first out; a shut down listener refuses; connections in it outlive their clients."""
    listener = world.listening(kind=kind)
    for number in range(3):
        client = world.make(kind)
        client.bind(world.abstract(b"%d-%d" % (kind, number)))
        client.connect(listener.getsockname())
        client.send(b"%d" % number)
        client.close()
    for number in range(3):
        served, address = listener.accept()
        world.keep(served)
        assert address == world.abstract(b"%d-%d" % (kind, number))
        assert served.recv(9) == b"%d" % number
        assert served.recv(9) == b""
    waiting = world.make(kind)
    waiting.connect(listener.getsockname())
    listener.shutdown(kernel.SHUT_RD)
    assert code(world.make(kind).connect, listener.getsockname()) == errno.ECONNREFUSED
    world.keep(listener.accept()[0])  # those who are in come out


def test_unx_19_peek_offset(world: UnixWorld) -> None:
    """SO_PEEK_OFF: each peek begins where the last one ended, reading moves it back; -1 switches it off."""
    one, other = world.make_pair()
    one.send(b"abc")
    one.send(b"defg")
    assert other.getsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF) == -1
    other.setsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF, 0)
    assert [other.recv(2, kernel.MSG_PEEK) for _ in range(3)] == [b"ab", b"cd", b"ef"]
    assert other.getsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF) == 6
    assert other.recv(3) == b"abc"
    assert other.getsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF) == 3
    assert other.recv(9, kernel.MSG_PEEK) == b"g"
    assert code(other.recv, 9, kernel.MSG_PEEK) == errno.EAGAIN
    other.setsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF, -1)
    assert other.recv(9, kernel.MSG_PEEK) == b"defg"
    for kind in (SEQPACKET, DGRAM):
        one, other = world.make_pair(kind)
        one.send(b"abc")
        one.send(b"de")
        other.setsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF, 0)
        assert [other.recv(2, kernel.MSG_PEEK) for _ in range(3)] == [b"ab", b"c", b"de"]
        assert other.recv(9) == b"abc"
        assert other.getsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF) == 2


def test_unx_19_queued_bytes(world: UnixWorld) -> None:
    """SIOCINQ: bytes of a stream or of all records, of the first datagram; SIOCOUTQ: memory; a listener EINVAL."""
    for kind, unread in ((STREAM, 8), (SEQPACKET, 8), (DGRAM, 5)):
        one, other = world.make_pair(kind)
        assert world.ask(other, FIONREAD) == 0
        one.send(b"12345")
        one.send(b"678")
        assert world.ask(other, FIONREAD) == unread
        assert world.ask(one, SIOCOUTQ) == 2 * 768
    for kind in CONNECTED_KINDS:
        assert outcome(world.ask, world.listening(kind=kind), FIONREAD) == "EINVAL"
