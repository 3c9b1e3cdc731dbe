"""The error queue of TCP sockets (MSG_ERRQUEUE of section 1.3) on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.socket.message import MSG_ZEROCOPY
from stack.socket.poll import ERR, HUP, IN, OUT
from stack.tests.kernel_twin import World, code

ERRQUEUE = kernel.MSG_ERRQUEUE
SO_ZEROCOPY = 60


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def notice(sock: Any, room: int = 100) -> tuple[int, ...]:
    """struct sock_extended_err of the next entry, which is about no data."""
    data, ancillary, flags, address = sock.recvmsg(9, room, ERRQUEUE)
    assert (data, flags, address) == (b"", ERRQUEUE, None)
    ((level, kind, told),) = ancillary
    assert (level, kind) == (kernel.IPPROTO_IP, 11)
    return struct.unpack_from("@IBBBBII", told)


def test_msg_errqueue_of_tcp_is_empty_and_takes_no_data(world: World) -> None:
    """MSG_ERRQUEUE on a TCP socket: EAGAIN, whatever waits to be read; IP_RECVERR changes nothing."""
    client, served = world.pair()
    with client, served, world.socket.socket() as fresh, world.listener() as listener:
        for sock in (client, served):
            sock.setsockopt(kernel.IPPROTO_IP, 11, 1)
        client.send(b"data")
        world.settle(served, IN)
        for sock in (served, fresh, listener):
            sock.setblocking(False)
            assert code(sock.recv, 9, ERRQUEUE) == errno.EAGAIN
            assert code(sock.recvmsg, 9, 99, ERRQUEUE) == errno.EAGAIN
        assert code(served.recv_into, bytearray(9), 0, ERRQUEUE | kernel.MSG_PEEK) == errno.EAGAIN
        assert served.recv(9) == b"data"
        served.close()
        client.send(b"to nobody")
        world.settle(client, ERR)
        client.setblocking(False)
        assert code(client.recv, 9, ERRQUEUE) == errno.EAGAIN


def test_msg_zerocopy_of_tcp(world: World) -> None:
    """MSG_ZEROCOPY with SO_ZEROCOPY: sends are numbered, the error queue tells which memory is free, as a range;
    without the option the flag means nothing, and nothing sent is no send.
    """
    client, served = world.pair()
    with client, served:
        assert client.send(b"x", MSG_ZEROCOPY) == 1
        assert served.recv(9) == b"x"
        assert world.bits(client) == OUT
        client.setsockopt(kernel.SOL_SOCKET, SO_ZEROCOPY, 1)
        assert client.send(b"", MSG_ZEROCOPY) == 0
        assert client.send(b"one", MSG_ZEROCOPY) == 3
        assert served.recv(9) == b"one"
        assert world.settle(client, ERR) == OUT | ERR
        assert client.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == 0
        assert notice(client) == (0, 5, 0, 1, 0, 0, 0)
        assert world.bits(client) == OUT
        for data in (b"two", b"three"):
            client.sendmsg([data], [], MSG_ZEROCOPY)
        client.send(b"four")
        assert served.recv(12, kernel.MSG_WAITALL) == b"twothreefour"
        world.settle(client, ERR)
        told = notice(client)
        if told[5:] == (1, 1):  # the kernel may have told of the first before the second was sent
            world.settle(client, ERR)
            told = (*told[:5], 1, notice(client)[6])
        assert told == (0, 5, 0, 1, 0, 1, 2)


def test_msg_zerocopy_notice_without_room_of_tcp(world: World) -> None:
    """A notice for which there is no room is lost, and MSG_CTRUNC says so."""
    client, served = world.pair()
    with client, served:
        client.setsockopt(kernel.SOL_SOCKET, SO_ZEROCOPY, 1)
        client.send(b"x", MSG_ZEROCOPY)
        assert served.recv(9) == b"x"
        world.settle(client, ERR)
        assert client.recvmsg(9, 10, ERRQUEUE) == (b"", [], ERRQUEUE | kernel.MSG_CTRUNC, None)
        client.setblocking(False)
        assert code(client.recvmsg, 9, 99, ERRQUEUE) == errno.EAGAIN


def closed_window(world: World, client: Any, served: Any) -> int:
    """Sends more by MSG_ZEROCOPY than the peer takes unread; how much."""
    served.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 65536)
    client.setsockopt(kernel.SOL_SOCKET, SO_ZEROCOPY, 1)
    client.setblocking(False)
    return int(client.send(bytes(200_000), MSG_ZEROCOPY))


def test_msg_zerocopy_of_tcp_is_told_when_acknowledged(world: World) -> None:
    """The memory of a send by MSG_ZEROCOPY is free when the peer has acknowledged the last byte, not before; those of
    several sends together.
    """
    client, served = world.pair()
    with client, served:
        size = closed_window(world, client, served)
        size += client.send(b"more", MSG_ZEROCOPY)
        assert not world.bits(client) & ERR
        while size:
            data = served.recv(size)
            assert data
            size -= len(data)
        world.settle(client, ERR)
        first, last = notice(client)[5:]
        if (first, last) == (0, 0):  # the kernel may tell of the first before the second is acknowledged
            world.settle(client, ERR)
            first, last = 0, notice(client)[6]
        assert (first, last) == (0, 1)
        assert world.bits(client) & ERR == 0


def test_msg_zerocopy_of_tcp_is_told_when_reset(world: World) -> None:
    """What will never be acknowledged is free when the connection ends."""
    client, served = world.pair()
    with client, served:
        closed_window(world, client, served)
        assert not world.bits(client) & ERR
        served.setsockopt(kernel.SOL_SOCKET, kernel.SO_LINGER, struct.pack("@ii", 1, 0))
        served.close()
        world.settle(client, HUP)
        fields = notice(client)
        assert (fields[:3], fields[4:]) == ((0, 5, 0), (0, 0, 0))
        assert client.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNRESET
        assert code(client.recvmsg, 9, 99, ERRQUEUE) == errno.EAGAIN
