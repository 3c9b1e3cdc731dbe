"""Clauses of rows CORE-09, CORE-19, MM-03 and MM-04 that no other test asserts, on the kernel's sockets and ours."""

from __future__ import annotations

import errno
import os
import select
import socket as kernel
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.socket.poll import IN
from stack.tests.kernel_twin import World, code

RDNORM, RDBAND, WRNORM, WRBAND = 0x40, 0x80, 0x100, 0x200


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def shown(sock: Any, asked: int) -> int:
    """What poll(2) says of its descriptor."""
    poll = select.poll()
    poll.register(sock, asked)
    return sum(bits for _, bits in poll.poll(0))


@pytest.mark.parametrize("kind", [kernel.SOCK_STREAM, kernel.SOCK_DGRAM])
def test_core_09_normal_data_has_bits_of_its_own(world: World, kind: int) -> None:
    """POLLRDNORM (0x40) goes with POLLIN, POLLWRNORM (0x100) with POLLOUT, by themselves and together."""
    if kind == kernel.SOCK_STREAM:
        one, other = world.pair()
    else:
        one, other = (world.socket.socket(type=kind) for _ in range(2))
        other.bind(("127.0.0.1", 0))
        one.connect(other.getsockname())
    with one, other:
        assert shown(other, RDNORM | WRNORM) == WRNORM
        assert shown(other, RDNORM) == 0
        one.send(b"x")
        world.settle(other, IN)
        assert shown(other, RDNORM) == RDNORM
        assert shown(other, RDNORM | WRNORM) == RDNORM | WRNORM
        assert shown(other, select.POLLIN | RDNORM) == select.POLLIN | RDNORM
        other.recv(1)
        assert shown(other, select.POLLIN | RDNORM) == 0


def test_core_09_the_fullest_of_bits(world: World) -> None:
    """Not writable is neither POLLOUT nor POLLWRNORM."""
    one, other = world.pair()
    with one, other:
        one.setblocking(False)

        def full() -> bool:
            try:
                while True:
                    one.send(bytes(1 << 16))
            except BlockingIOError:
                return not shown(one, select.POLLOUT)

        world.until(full)
        assert shown(one, select.POLLOUT | WRNORM) == 0


def test_core_19_a_name_of_ones_own_again(world: World) -> None:
    """AF_UNIX: to bind to no name is to be given one; once there is a name it does nothing; another name is EINVAL."""
    with world.socket.socket(kernel.AF_UNIX, kernel.SOCK_STREAM) as sock:
        sock.bind("")
        name = sock.getsockname()
        assert len(name) == 6
        sock.bind("")
        assert sock.getsockname() == name
        assert code(sock.bind, f"\0guestwire-other-{os.getpid()}") == errno.EINVAL
    with world.socket.socket(kernel.AF_UNIX, kernel.SOCK_DGRAM) as sock:
        sock.bind(f"\0guestwire-named-{os.getpid()}")
        sock.bind("")
        assert sock.getsockname() == f"\0guestwire-named-{os.getpid()}".encode()


def test_mm_03_an_address_means_nothing_to_a_connection(world: World) -> None:
    """The address of a message is not looked at on a connected TCP socket."""
    one, other = world.pair()
    with one, other:
        assert one.sendmsg([b"he", b"llo"], [], 0, ("192.0.2.1", 9)) == 5
        assert other.recv(5, kernel.MSG_WAITALL) == b"hello"


def test_mm_04_streams_name_nobody(world: World) -> None:
    """A message of a stream comes from nobody: no name, over TCP and between Unix sockets alike."""
    one, other = world.pair()
    with one, other:
        one.send(b"x")
        assert other.recvmsg(9) == (b"x", [], 0, None)
    one, other = world.socket.socketpair()
    with one, other:
        one.send(b"x")
        data, messages, flags, name = other.recvmsg(9)
        assert (data, messages, flags) == (b"x", [], 0)
        assert not name
