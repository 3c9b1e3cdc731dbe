"""UDP sockets, on the kernel's and on ours (rows UDP-01..15)."""

from __future__ import annotations

import errno
import socket as kernel
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.tests.kernel_twin import LOOPBACK, World, code


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        stack = network.stack("gw")
        yield World(stack.socket, network)


# -- UDP --------------------------------------------------------------------------------------------------------------


def datagram(world: World) -> Any:
    sock = world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    sock.settimeout(10)
    return sock


def test_fresh_datagram_socket(world: World) -> None:
    """UDP-01, 03, 09, 10, 12, 15."""
    with datagram(world) as sock:
        assert world.bits(sock) == OUT
        assert sock.getsockname() == ("0.0.0.0", 0)
        assert code(sock.send, b"x") == errno.EDESTADDRREQ
        assert code(sock.listen, 1) == errno.EOPNOTSUPP
        sock.settimeout(None)
        assert code(sock.accept) == errno.EOPNOTSUPP
        assert code(sock.shutdown, kernel.SHUT_RD) == errno.ENOTCONN
        assert code(sock.getpeername) == errno.ENOTCONN
        assert sock.getsockname()[1] != 0  # the send in vain took a port
        sock.setblocking(False)
        assert code(sock.recv, 1) == errno.EAGAIN


def test_datagrams_keep_their_boundaries(world: World) -> None:
    """UDP-07."""
    with datagram(world) as one, datagram(world) as other:
        one.bind((LOOPBACK, 0))
        for data in (b"first", b"", b"third"):
            assert other.sendto(data, one.getsockname()) == len(data)
        assert world.settle(one, IN) == IN | OUT
        sender = (LOOPBACK, other.getsockname()[1])
        assert one.recvfrom(3) == (b"fir", sender)
        assert one.recvfrom(100) == (b"", sender)
        data, _, flags, address = one.recvmsg(2)
        assert (data, flags, address) == (b"th", kernel.MSG_TRUNC, sender)


def test_datagram_limits(world: World) -> None:
    """UDP-04, 05, 06, 12."""
    with datagram(world) as one, datagram(world) as other:
        one.bind((LOOPBACK, 0))
        assert other.sendto(bytes(65507), one.getsockname()) == 65507
        assert len(one.recv(70000)) == 65507
        assert code(other.sendto, bytes(65508), one.getsockname()) == errno.EMSGSIZE
        assert code(other.sendto, b"x", (LOOPBACK, 0)) == errno.EINVAL
        assert code(other.sendto, b"x", kernel.MSG_OOB, one.getsockname()) == errno.EOPNOTSUPP


def test_connected_datagram_socket(world: World) -> None:
    """UDP-02, 08, 10: filter, default destination, refusal reported once."""
    with datagram(world) as one, datagram(world) as other, datagram(world) as stranger:
        one.bind((LOOPBACK, 0))
        other.bind((LOOPBACK, 0))
        one.connect(other.getsockname())
        assert one.getpeername() == other.getsockname()
        stranger.sendto(b"no", one.getsockname())
        other.sendto(b"yes", one.getsockname())
        assert one.recv(10) == b"yes"
        assert one.send(b"back") == 4
        assert other.recvfrom(10) == (b"back", one.getsockname())
        other.close()
        one.send(b"into the void")
        assert world.settle(one, ERR) & ERR
        assert code(one.send, b"x") == errno.ECONNREFUSED
        one.setblocking(False)
        one.shutdown(kernel.SHUT_RDWR)
        assert world.settle(one, HUP) & ~ERR == IN | OUT | RDHUP | HUP


def test_shut_datagram_socket(world: World) -> None:
    """UDP-10."""
    with datagram(world) as one, datagram(world) as other:
        one.settimeout(None)
        other.bind((LOOPBACK, 0))
        one.connect(other.getsockname())
        one.shutdown(kernel.SHUT_WR)
        assert code(one.send, b"x") == errno.EPIPE
        one.shutdown(kernel.SHUT_RD)
        assert one.recv(10) == b""
        assert world.bits(one) == IN | OUT | RDHUP | HUP
