"""Sending, receiving, shutting down and closing TCP connections, on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest

from stack import Network
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.tests.kernel_twin import World, code


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        stack = network.stack("gw")
        yield World(stack.socket, network)


# -- transfer ---------------------------------------------------------------------------------------------------------


def test_tcp_18_39_poll_matrix_of_a_connection(world: World) -> None:
    """Data is IN; a FIN is IN and RDHUP; both directions finished are HUP as well."""
    client, served = world.pair()
    with client, served:
        assert world.bits(served) == OUT
        client.send(b"x")
        assert world.settle(served, IN) == IN | OUT
        assert served.recv(10) == b"x"
        assert world.bits(served) == OUT
        client.shutdown(kernel.SHUT_WR)
        assert world.settle(served, RDHUP) == IN | OUT | RDHUP
        assert world.bits(client) == OUT
        assert code(client.send, b"x") == errno.EPIPE
        assert served.recv(10) == b""
        assert served.recv(10) == b""
        served.send(b"still")
        assert client.recv(10) == b"still"
        served.shutdown(kernel.SHUT_WR)
        assert world.settle(client, HUP) == IN | OUT | RDHUP | HUP
        assert world.settle(served, HUP) == IN | OUT | RDHUP | HUP


def test_tcp_18_39_shutdown_read(world: World) -> None:
    """After SHUT_RD queued data is read, then the end, but what arrives later is still there to be read."""
    client, served = world.pair()
    with client, served:
        client.send(b"before")
        world.settle(served, IN)
        served.shutdown(kernel.SHUT_RD)
        assert world.bits(served) == IN | OUT | RDHUP
        assert world.bits(client) == OUT
        assert served.recv(10) == b"before"
        assert served.recv(10) == b""
        client.send(b"after")
        world.until(lambda: bool(served.recv(10, kernel.MSG_PEEK)))
        assert served.recv(10) == b"after"


def test_tcp_20_nothing_to_read(world: World) -> None:
    """Without data recv is EAGAIN, even for zero bytes."""
    client, served = world.pair()
    with client, served:
        client.setblocking(False)
        assert code(client.recv, 10) == errno.EAGAIN
        assert code(client.recvfrom, 0) == errno.EAGAIN
        assert client.recv(0) == b""  # Python asks nobody for nothing
        assert code(client.recv_into, bytearray(4)) == errno.EAGAIN
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(None)
        assert code(client.recv, 10, kernel.MSG_DONTWAIT) == errno.EAGAIN
        client.settimeout(0.01)
        with pytest.raises(TimeoutError):
            client.recv(10, kernel.MSG_DONTWAIT)  # Python waits before it asks


def test_tcp_19_zero_byte_send(world: World) -> None:
    """Sending nothing on a connection returns 0."""
    client, served = world.pair()
    with client, served:
        assert client.send(b"") == 0


def test_tcp_19_sendto_on_a_connection_ignores_the_address(world: World) -> None:
    """sendto ignores the address, recvfrom gives none (MM-04)."""
    client, served = world.pair()
    with client, served:
        assert client.sendto(b"abc", ("192.0.2.1", 9)) == 3
        assert served.recvfrom(10) == (b"abc", None)
        served.sendmsg([b"de", bytearray(b"f"), memoryview(b"gh")])
        assert client.recvmsg(10) == (b"defgh", [], 0, None)


def test_peek_waitall_and_trunc(world: World) -> None:
    client, served = world.pair()
    with client, served:
        client.sendall(b"abcdef")
        world.settle(served, IN)
        assert served.recv(3, kernel.MSG_PEEK) == b"abc"
        assert served.recv(3, kernel.MSG_PEEK) == b"abc"
        assert len(served.recv(2, kernel.MSG_TRUNC)) == 2  # discarded
        assert served.recv(2) == b"cd"
        client.sendall(b"gh")
        client.shutdown(kernel.SHUT_WR)
        assert served.recv(100, kernel.MSG_WAITALL) == b"efgh"


def test_recv_into_a_part(world: World) -> None:
    client, served = world.pair()
    with client, served:
        client.sendall(b"abcdef")
        buffer = bytearray(10)
        assert served.recv_into(buffer, 4) == 4
        assert served.recv_into(memoryview(buffer)[4:]) == 2
        assert buffer == b"abcdef\0\0\0\0"
        with pytest.raises(ValueError, match="buffer too small"):
            served.recv_into(buffer, 11)
        with pytest.raises(ValueError, match="negative"):
            served.recv(-1)
        with pytest.raises(TypeError):
            served.recv_into(b"read only")


def test_tcp_19_39_sending_until_full(world: World) -> None:
    """A full buffer is EAGAIN and not writable; room makes it writable again."""
    client, served = world.pair()
    with client, served:
        client.setblocking(False)
        total = 0

        def full() -> bool:
            """What the peer's side has taken since the last send may have made room again."""
            nonlocal total
            with suppress(BlockingIOError):
                while total < 1 << 26:
                    total += client.send(bytes(1 << 16))
            return not world.bits(client) & OUT

        world.until(full)
        assert 1 << 16 <= total < 1 << 26
        assert world.bits(client) & OUT == 0
        got = 0
        while got < total:
            got += len(served.recv(1 << 20))
        assert world.settle(client, OUT) == OUT


def test_tcp_20_21_22_close_with_unread_data_resets(world: World) -> None:
    """The peer reads what had arrived first, then ECONNRESET once, then the end."""
    client, served = world.pair()
    with client, served:
        served.sendall(b"last words")
        world.settle(client, IN)
        client.sendall(b"never read")
        world.settle(served, IN)
        served.close()
        assert world.settle(client, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert client.recv(100) == b"last words"
        assert code(client.recv, 1) == errno.ECONNRESET
        assert client.recv(1) == b""
        assert code(client.send, b"x") == errno.EPIPE
        assert code(client.getpeername) == errno.ENOTCONN
        assert code(client.shutdown, kernel.SHUT_RD) == errno.ENOTCONN


def test_tcp_19_20_send_takes_the_reset_first(world: World) -> None:
    """A send gets ECONNRESET once, then EPIPE; recv then sees the end."""
    client, served = world.pair()
    with client, served:
        served.setsockopt(kernel.SOL_SOCKET, kernel.SO_LINGER, struct.pack("ii", 1, 0))
        served.close()
        world.settle(client, ERR)
        assert code(client.send, b"x") == errno.ECONNRESET
        assert code(client.send, b"x") == errno.EPIPE
        assert client.recv(1) == b""
        assert world.bits(client) == IN | OUT | RDHUP | HUP


def test_tcp_21_so_error_takes_the_reset(world: World) -> None:
    """SO_ERROR takes the reset, and ERR is gone."""
    client, served = world.pair()
    with client, served:
        served.setsockopt(kernel.SOL_SOCKET, kernel.SO_LINGER, struct.pack("ii", 1, 0))
        served.close()
        world.settle(client, ERR)
        assert client.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNRESET
        assert world.bits(client) == IN | OUT | RDHUP | HUP
        assert client.recv(1) == b""


def test_tcp_21_39_writing_to_a_closed_peer(world: World) -> None:
    """The RST for data sent to a closed peer shows as ERR and HUP; after a FIN it is EPIPE."""
    client, served = world.pair()
    with client, served:
        served.close()
        world.settle(client, RDHUP)
        client.send(b"x")
        assert world.settle(client, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert code(client.send, b"x") == errno.EPIPE  # RST in CLOSE-WAIT (TCP-21)


# -- time-outs --------------------------------------------------------------------------------------------------------


def test_timeouts(world: World) -> None:
    """CORE-08: Python's time-out is TimeoutError, the kernel's SO_RCVTIMEO is EAGAIN."""
    client, served = world.pair()
    with client, served, world.listener() as listener:
        client.settimeout(0.01)
        with pytest.raises(TimeoutError, match="timed out"):
            client.recv(1)
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.accept()
        client.settimeout(None)
        client.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, struct.pack("ll", 0, 10_000))
        assert code(client.recv, 1) == errno.EAGAIN
        assert client.getsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, 16) == struct.pack("ll", 0, 12_000) or (
            client.getsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, 16) == struct.pack("ll", 0, 10_000)
        )  # the kernel counts in jiffies


def test_timeout_values(world: World) -> None:
    with world.socket.socket() as sock:
        assert sock.gettimeout() is None
        sock.settimeout(1.5)
        assert (sock.gettimeout(), sock.timeout, sock.getblocking()) == (1.5, 1.5, True)
        sock.setblocking(False)
        assert (sock.gettimeout(), sock.getblocking()) == (0.0, False)
        with pytest.raises(ValueError, match="out of range"):
            sock.settimeout(-1)
