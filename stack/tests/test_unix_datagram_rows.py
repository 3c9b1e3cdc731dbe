"""Rows UDG-01..UDG-08 of the socket semantics, on the kernel's AF_UNIX and on a Stack's by the same bodies.

Differences: connect(AF_UNSPEC) cannot be said through CPython; the kernel is asked by the C library, a Stack's socket
has `disconnect` below. Before Linux 6.16 SO_PASSCRED alone made a sender bind itself, now SO_PASSPIDFD does as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket as kernel
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.tests.kernel_twin import code
from stack.tests.unix_world import (
    DGRAM,
    SEQPACKET,
    SO_PASSPIDFD,
    STREAM,
    UnixWorld,
    identity,
    kernel_world,
    outcome,
    stack_world,
)

DIFFERENCES = {
    "UDG-01": "connect(AF_UNSPEC), which CPython cannot say here, is a method below the socket of a Stack",
    "UDG-08": "before Linux 6.16 SO_PASSPIDFD does not make a sender bind itself",
}


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnixWorld]:
    with kernel_world(tmp_path) if request.param == "kernel" else stack_world() as made:
        yield made


def bound(world: UnixWorld, name: Any = None) -> Any:
    sock = world.make(DGRAM)
    sock.bind(world.path() if name is None else name)
    return sock


def disconnect(world: UnixWorld, sock: Any) -> None:
    """connect(AF_UNSPEC)."""
    if world.ours:
        sock._sock.call(sock._sock.phase.disconnect)
    else:
        unspec = ctypes.create_string_buffer(16)
        assert ctypes.CDLL(None).connect(sock.fileno(), unspec, 16) == 0


def test_udg_01_connect(world: UnixWorld) -> None:
    """Connecting takes a bound datagram socket, which need not listen; it may be done again."""
    first, second, sender = bound(world), bound(world, world.abstract()), world.make(DGRAM)
    for peer in (first, second):
        sender.connect(peer.getsockname())
        assert sender.getpeername() == peer.getsockname()
        assert sender.send(b"x") == 1
        assert peer.recv(9) == b"x"


def test_udg_01_nobody_there(world: UnixWorld) -> None:
    """Abstract names nobody has, and stale paths, are ECONNREFUSED, others ENOENT; for connect and sendto alike."""
    sender = world.make(DGRAM)
    stale = bound(world)
    name = stale.getsockname()
    stale.close()
    for address, answer in (
        (world.abstract(), errno.ECONNREFUSED),
        (name, errno.ECONNREFUSED),
        (world.directory, errno.ECONNREFUSED),
        (world.path(), errno.ENOENT),
        ("", errno.EINVAL),
    ):
        assert code(sender.connect, address) == answer
        assert code(sender.sendto, b"x", address) == answer
    for kind in (STREAM, SEQPACKET):
        for address, answer in ((world.path(), errno.EPROTOTYPE), (world.abstract(), errno.ECONNREFUSED)):
            world.make(kind).bind(address)
            assert code(sender.sendto, b"x", address) == answer
    assert code(world.make(DGRAM).accept) == errno.EOPNOTSUPP


def test_udg_01_taken_by_somebody_else(world: UnixWorld) -> None:
    """A socket that is connected takes datagrams of its peer alone: others get EPERM from connect and sendto."""
    one, other, stranger = bound(world), bound(world), world.make(DGRAM)
    one.connect(other.getsockname())
    assert code(stranger.connect, one.getsockname()) == errno.EPERM
    assert code(stranger.sendto, b"x", one.getsockname()) == errno.EPERM
    assert other.sendto(b"x", one.getsockname()) == 1


def test_udg_01_reconnecting_loses_what_the_old_peer_sent(world: UnixWorld) -> None:
    """Leaving a peer that is connected back throws the queue away, and the peer gets ECONNRESET."""
    one, other, third = bound(world), bound(world), bound(world)
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    other.send(b"lost")
    one.connect(third.getsockname())
    assert code(one.recv, 9) == errno.EAGAIN
    assert world.bits(other) & ERR
    assert other.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNRESET
    assert code(other.send, b"x") == errno.EPERM


def test_udg_01_disconnect(world: UnixWorld) -> None:
    """connect(AF_UNSPEC) ends a connection; the name stays, and strangers may send again."""
    one, other, stranger = bound(world), bound(world), world.make(DGRAM)
    one.connect(other.getsockname())
    disconnect(world, one)
    assert code(one.getpeername) == errno.ENOTCONN
    assert code(one.send, b"x") == errno.ENOTCONN
    assert one.getsockname()
    assert stranger.sendto(b"x", one.getsockname()) == 1


def test_udg_02_send(world: UnixWorld) -> None:
    """No peer ENOTCONN; closed ECONNREFUSED once, then ENOTCONN; a deaf one EPIPE, still connected; mute EPIPE."""
    sender = world.make(DGRAM)
    assert code(sender.send, b"x") == errno.ENOTCONN
    peer = bound(world)
    sender.connect(peer.getsockname())
    peer.shutdown(kernel.SHUT_RD)
    assert code(sender.send, b"x") == errno.EPIPE
    assert sender.getpeername() == peer.getsockname()
    peer.close()
    assert code(sender.send, b"x") == errno.ECONNREFUSED
    assert code(sender.send, b"x") == errno.ENOTCONN
    assert code(sender.getpeername) == errno.ENOTCONN
    one, _ = world.make_pair(DGRAM)
    one.shutdown(kernel.SHUT_WR)
    assert code(one.send, b"x") == errno.EPIPE


def test_udg_03_size(world: UnixWorld) -> None:
    """At most the send buffer less 32 bytes, else EMSGSIZE; empty datagrams are datagrams."""
    one, other = world.make_pair(DGRAM)
    assert code(one.send, bytes(212961)) == errno.EMSGSIZE
    assert one.send(bytes(212960)) == 212960
    assert len(other.recv(300000)) == 212960
    assert one.send(b"") == 0
    assert other.recv(9) == b""
    one.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDBUF, 4096)
    assert code(one.send, bytes(8192 - 31)) == errno.EMSGSIZE
    assert one.send(bytes(8192 - 32)) == 8192 - 32


def test_udg_04_queue(world: UnixWorld) -> None:
    """A receiver queues eleven datagrams of strangers (max_dgram_qlen), of its peer what the buffer takes: 278."""
    receiver, sender, stranger = bound(world), world.make(DGRAM), world.make(DGRAM)
    sender.connect(receiver.getsockname())
    assert [outcome(sender.send, b"x") for _ in range(13)] == [1] * 11 + ["EAGAIN"] * 2
    assert code(stranger.sendto, b"x", receiver.getsockname()) == errno.EAGAIN
    assert world.bits(sender) == 0  # connected: poll knows
    assert world.bits(stranger) == OUT
    receiver.recv(9)
    assert world.bits(sender) == OUT
    assert sender.send(b"x") == 1
    one, _ = world.make_pair(DGRAM)
    count = 0
    while outcome(one.send, b"x") == 1:
        count += 1
    assert count == 278


def test_udg_04_limit_is_the_stacks() -> None:
    """max_dgram_qlen counts for sockets made after it was changed."""
    with stack_world() as world:
        assert world.stack is not None
        world.stack.unix.max_dgram_qlen = 2
        receiver, sender = bound(world), world.make(DGRAM)
        outcomes = [outcome(sender.sendto, b"x", receiver.getsockname()) for _ in range(4)]
        assert outcomes == [1, 1, 1, "EAGAIN"]


def test_udg_05_recv(world: UnixWorld) -> None:
    """The sender's name comes along, None if it has none; what is too long is cut; a closed peer is no end."""
    receiver, named, nameless = bound(world), bound(world, world.abstract()), world.make(DGRAM)
    named.sendto(b"abc", receiver.getsockname())
    nameless.sendto(b"def", receiver.getsockname())
    assert receiver.recvfrom(9, kernel.MSG_PEEK) == (b"abc", named.getsockname())
    assert receiver.recvfrom(9) == (b"abc", named.getsockname())
    assert receiver.recvmsg(2) == (b"de", [], kernel.MSG_TRUNC, None)
    one, other = world.make_pair(DGRAM)
    other.close()
    assert code(one.recv, 9) == errno.EAGAIN
    one.shutdown(kernel.SHUT_RD)
    assert code(one.recv, 9, kernel.MSG_DONTWAIT) == errno.EAGAIN
    one.settimeout(None)
    assert one.recv(9) == b""  # a call that may wait finds the end
    assert one.recvfrom(9) == (b"", None)


def test_udg_06_poll(world: UnixWorld) -> None:
    """Poll bits of every state; peers are not concerned."""
    bits = world.bits
    assert bits(world.make(DGRAM)) == OUT
    one, other = world.make_pair(DGRAM)
    other.send(b"x")
    assert bits(one) == IN | OUT
    one.recv(9)
    one.shutdown(kernel.SHUT_RD)
    assert (bits(one), bits(other)) == (IN | OUT | RDHUP, OUT)
    one.shutdown(kernel.SHUT_WR)
    assert (bits(one), bits(other)) == (IN | OUT | RDHUP | HUP, OUT)
    one, other = world.make_pair(DGRAM)
    other.close()
    assert bits(one) == OUT


def test_udg_07_bind_after_socketpair(world: UnixWorld) -> None:
    """The ends of a pair may be given names, which receivers see."""
    one, other = world.make_pair(DGRAM)
    one.bind(name := world.path())
    one.send(b"x")
    assert other.recvfrom(9) == (b"x", name)
    assert other.getpeername() == name


def test_udg_08_autobind(world: UnixWorld) -> None:
    """Who wants credentials gets a name at its first send, or connect."""
    receiver = bound(world)
    sender = world.make(DGRAM)
    sender.setsockopt(kernel.SOL_SOCKET, kernel.SO_PASSCRED, 1)
    assert sender.getsockname() == ""
    sender.sendto(b"x", receiver.getsockname())
    data, ancillary, flags, name = receiver.recvmsg(9)
    assert (data, ancillary, flags) == (b"x", [], 0)
    assert name == sender.getsockname()
    assert len(name) == 6
    connecting = world.make(DGRAM)
    connecting.setsockopt(kernel.SOL_SOCKET, kernel.SO_PASSCRED, 1)
    connecting.connect(receiver.getsockname())
    assert len(connecting.getsockname()) == 6
    listener = world.listening()
    client = world.make()
    client.setsockopt(kernel.SOL_SOCKET, kernel.SO_PASSCRED, 1)
    client.connect(listener.getsockname())
    assert len(client.getsockname()) == 6


def test_udg_08_pidfd_autobinds_too() -> None:
    """SO_PASSPIDFD counts as wanting credentials (Linux 6.16)."""
    with stack_world() as world:
        sender, receiver = world.make(DGRAM), bound(world)
        sender.setsockopt(kernel.SOL_SOCKET, SO_PASSPIDFD, 1)
        sender.sendto(b"x", receiver.getsockname())
        assert len(sender.getsockname()) == 6


def test_udg_08_credentials_come_with_datagrams(world: UnixWorld) -> None:
    """CTRL-05 on datagrams: each has its sender's."""
    receiver, sender = bound(world), world.make(DGRAM)
    receiver.setsockopt(kernel.SOL_SOCKET, kernel.SO_PASSCRED, 1)
    sender.sendto(b"x", receiver.getsockname())
    told = [(kernel.SOL_SOCKET, kernel.SCM_CREDENTIALS, identity())]
    assert receiver.recvmsg(9, 100)[:3] == (b"x", told, 0)
    assert struct.unpack("=iII", told[0][2])[0] == os.getpid()
