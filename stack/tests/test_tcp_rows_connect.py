"""Rows TCP-01 to TCP-17 and TCP-36, TCP-38 clause by clause: binding, connecting, listening, accepting; on the
kernel's sockets and ours. More of them: `test_socket_twin_connect.py`; in virtual time: `tcp/test_tcp_handshake.py`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket as kernel
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Credentials, Network, Stack
from stack.link.cable import cable
from stack.scheduler import NS_PER_S
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import LOOPBACK, World, code

SOL = kernel.SOL_SOCKET
TCP = kernel.IPPROTO_TCP


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def option(sock: Any, number: int, level: int = SOL) -> int:
    return int(sock.getsockopt(level, number))


def disconnect(world: World, sock: Any) -> None:
    """connect() to AF_UNSPEC; Python's own class cannot say it."""
    if world.network is not None:
        sock._sock.disconnect()
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("=H14x", kernel.AF_UNSPEC), 16):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# -- ports ------------------------------------------------------------------------------------------------------------


def test_tcp_01_bind_after_connect_or_listen_is_einval(world: World) -> None:
    """A socket that is connected or listening cannot be bound; TCP and UDP have ports of their own."""
    client, served = world.pair()
    with client, served, world.listener() as listener:
        for sock in (client, served, listener):
            assert code(sock.bind, (LOOPBACK, 0)) == errno.EINVAL
        with world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as datagram:
            datagram.bind(listener.getsockname())


def test_tcp_01_privileged_ports(stack: Stack) -> None:
    """Ports below 1024 need CAP_NET_BIND_SERVICE: EACCES without; root has it."""
    user = Stack("user", network=stack.network, credentials=Credentials.user(1000))
    with user.socket.socket() as sock, stack.socket.socket() as root:
        assert code(sock.bind, (LOOPBACK, 1023)) == errno.EACCES
        sock.bind((LOOPBACK, 1024))
        root.bind((LOOPBACK, 1023))
    user.close()


def test_tcp_02_exhausted_ports(stack: Stack) -> None:
    """With every ephemeral port taken bind(0) is EADDRINUSE, connect EADDRNOTAVAIL; a freed port is found again."""
    ports = stack.netns.tcp.ports
    ports.ephemeral_first, ports.ephemeral_last = 40_000, 40_003
    taken = [stack.socket.socket() for _ in range(4)]
    with stack.socket.socket() as server, stack.socket.socket() as sock:
        server.bind((LOOPBACK, 80))
        server.listen()
        for each in taken:
            each.bind((LOOPBACK, 0))
        assert {each.getsockname()[1] for each in taken} == {40_000, 40_001, 40_002, 40_003}
        assert code(sock.bind, (LOOPBACK, 0)) == errno.EADDRINUSE
        assert code(sock.connect, server.getsockname()) == errno.EADDRNOTAVAIL
        taken[2].close()
        sock.connect(server.getsockname())
    for each in taken:
        each.close()


def test_tcp_03_reuse_may_be_enabled_and_disabled_after_binding(world: World) -> None:
    """Enabling takes effect on a bound socket; disabling closes the port to the next bind; a specific address conflicts
    with the wildcard.
    """
    with world.socket.socket() as one, world.socket.socket() as two, world.socket.socket() as three:
        two.setsockopt(SOL, kernel.SO_REUSEADDR, 1)
        three.setsockopt(SOL, kernel.SO_REUSEADDR, 1)
        one.bind((LOOPBACK, 0))
        assert code(two.bind, one.getsockname()) == errno.EADDRINUSE
        one.setsockopt(SOL, kernel.SO_REUSEADDR, 1)
        two.bind(one.getsockname())
        one.setsockopt(SOL, kernel.SO_REUSEADDR, 0)
        assert code(three.bind, one.getsockname()) == errno.EADDRINUSE
    with world.socket.socket() as one, world.socket.socket() as two:
        one.bind((LOOPBACK, 0))
        assert code(two.bind, ("0.0.0.0", one.getsockname()[1])) == errno.EADDRINUSE


def test_tcp_04_reuseport_needs_everybody_and_shares_the_load(world: World) -> None:
    """All sockets of the port must have it; connections are shared between the listeners, each goes to one."""
    listeners = [world.socket.socket() for _ in range(2)]
    for sock in listeners:
        sock.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
        sock.bind((LOOPBACK, 0) if sock is listeners[0] else listeners[0].getsockname())
        sock.listen(64)
        sock.setblocking(False)
    clients = [world.socket.create_connection(listeners[0].getsockname(), timeout=10) for _ in range(40)]
    counts = [0, 0]

    def all_accepted() -> bool:
        for number, listener in enumerate(listeners):
            with suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    counts[number] += 1
        return sum(counts) == 40

    world.until(all_accepted)
    assert sum(counts) == 40
    assert min(counts) > 0
    for sock in (*clients, *listeners):
        sock.close()
    with world.socket.socket() as without, world.socket.socket() as having:
        without.bind((LOOPBACK, 0))
        having.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
        assert code(having.bind, without.getsockname()) == errno.EADDRINUSE


# -- connecting -------------------------------------------------------------------------------------------------------


def test_tcp_05_port_zero_is_refused(world: World) -> None:
    """Nobody listens on port 0: ECONNREFUSED."""
    with world.socket.socket() as sock:
        assert code(sock.connect, (LOOPBACK, 0)) == errno.ECONNREFUSED


def test_tcp_05_no_route_and_send_timeout() -> None:
    """ENETUNREACH without a route; with SO_SNDTIMEO a connect that hangs is EINPROGRESS, and goes on."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        left, _ = cable(network.scheduler)
        stack = network.stack("gw")
        stack.add_interface(left, addresses=["10.0.0.1/24"])
        with stack.socket.socket() as sock:
            assert code(sock.connect, ("192.0.2.1", 80)) == errno.ENETUNREACH
        with stack.socket.socket() as sock:
            sock.setsockopt(SOL, kernel.SO_SNDTIMEO, struct.pack("ll", 1, 0))
            before = network.clock()
            assert code(sock.connect, ("10.0.0.9", 80)) == errno.EINPROGRESS
            assert network.clock() - before == NS_PER_S


def test_tcp_06_connect_while_pending_is_ealready() -> None:
    """EINPROGRESS first, then EALREADY for as long as it takes."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        left, _ = cable(network.scheduler)
        stack = network.stack("gw")
        stack.add_interface(left, addresses=["10.0.0.1/24"])
        with stack.socket.socket() as sock:
            sock.setblocking(False)
            assert sock.connect_ex(("10.0.0.9", 80)) == errno.EINPROGRESS
            assert sock.connect_ex(("10.0.0.9", 80)) == errno.EALREADY
            assert World(stack.socket, network).bits(sock) == 0
            assert code(sock.send, b"x") == errno.EAGAIN  # row TCP-19
            assert code(sock.listen, 1) == errno.EINVAL


def test_tcp_09_two_sockets_of_one_port_to_one_peer(world: World) -> None:
    """The second connection with the same four numbers is EADDRNOTAVAIL, with or without waiting."""
    with world.listener() as listener, world.socket.socket() as one, world.socket.socket() as other:
        for sock in (one, other):
            sock.setsockopt(SOL, kernel.SO_REUSEADDR, 1)
        one.bind((LOOPBACK, 0))
        other.bind(one.getsockname())
        one.connect(listener.getsockname())
        assert code(other.connect, listener.getsockname()) == errno.EADDRNOTAVAIL
        other.setblocking(False)
        assert code(other.connect, listener.getsockname()) == errno.EADDRNOTAVAIL
        listener.accept()[0].close()


def test_tcp_10_connecting_to_unspec_dissolves(world: World) -> None:
    """connect() to AF_UNSPEC resets the peer and leaves ECONNRESET once, then a socket as good as new, at the port its
    user chose if he did; a listener listens no more; for an idle socket nothing happens.
    """
    with world.socket.socket() as idle:
        disconnect(world, idle)
        assert world.bits(idle) == OUT | HUP
    client, served = world.pair()
    with client, served, world.listener() as listener:
        port = client.getsockname()[1]
        client.settimeout(None)
        disconnect(world, client)
        assert world.settle(client, ERR) == OUT | HUP | ERR
        assert world.settle(served, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert code(served.recv, 1) == errno.ECONNRESET
        assert client.getsockname() == ("0.0.0.0", port)
        assert code(client.getpeername) == errno.ENOTCONN
        assert code(client.recv, 1) == errno.ECONNRESET
        assert code(client.recv, 1) == errno.ENOTCONN
        assert code(client.send, b"x") == errno.EPIPE
        client.connect(listener.getsockname())
        again, _ = listener.accept()
        with again:
            client.send(b"new")
            assert again.recv(10) == b"new"
    with world.socket.socket() as chosen, world.listener() as listener:
        chosen.setsockopt(SOL, kernel.SO_REUSEADDR, 1)
        chosen.bind(world.refused_address())
        address = chosen.getsockname()
        chosen.connect(listener.getsockname())
        disconnect(world, chosen)
        assert chosen.getsockname() == address
        disconnect(world, listener)
        assert code(listener.accept) == errno.EINVAL
        assert world.bits(listener) == OUT | HUP


# -- listening --------------------------------------------------------------------------------------------------------


def test_tcp_13_listening_again_changes_the_backlog(world: World) -> None:
    """listen() twice is fine and counts from then on; the port is one listener's; on a connection it is EINVAL."""
    with world.listener(0) as listener:
        listener.listen(4)
        for _ in range(3):
            world.socket.create_connection(listener.getsockname(), timeout=10).close()
        listener.settimeout(10)
        for _ in range(3):
            listener.accept()[0].close()
        with world.socket.socket() as second:
            assert code(second.bind, listener.getsockname()) == errno.EADDRINUSE
    client, served = world.pair()
    with client, served:
        assert code(served.listen, 1) == errno.EINVAL


def test_tcp_13_a_negative_or_huge_backlog_is_somaxconn(stack: Stack) -> None:
    """4096; Python's own listen() makes zero of what is negative."""
    with World(stack.socket, None).listener() as listener:
        for backlog in (-1, 1 << 20):
            listener._sock.listen(backlog)
            assert listener._sock.phase.listener.backlog == 4096


def test_tcp_14_a_backlog_of_zero_holds_one(world: World) -> None:
    """backlog + 1 connections wait; the next client's handshake does not finish until one is accepted."""
    with world.listener(0) as listener, world.socket.socket() as late:
        first = world.socket.create_connection(listener.getsockname(), timeout=10)
        world.settle(listener, IN)
        late.settimeout(0.05)
        assert code(late.connect, listener.getsockname()) is None  # TimeoutError has no errno
        first.close()


def test_tcp_15_accept_gives_up_after_rcvtimeo(world: World) -> None:
    """SO_RCVTIMEO bounds accept: EAGAIN; without waiting EAGAIN at once; on what does not listen EINVAL."""
    with world.listener() as listener:
        listener.setsockopt(SOL, kernel.SO_RCVTIMEO, struct.pack("ll", 0, 10_000))
        assert code(listener.accept) == errno.EAGAIN
        listener.setblocking(False)
        assert code(listener.accept) == errno.EAGAIN
    with world.socket.socket() as sock:
        assert code(sock.accept) == errno.EINVAL


def test_tcp_15_a_connection_reset_in_the_queue_is_still_accepted(world: World) -> None:
    """It tells of the reset when it is read."""
    with world.listener() as listener:
        client = world.socket.create_connection(listener.getsockname(), timeout=10)
        world.settle(listener, IN)
        client.setsockopt(SOL, kernel.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        served, _ = listener.accept()
        with served:
            world.settle(served, ERR)
            assert code(served.recv, 1) == errno.ECONNRESET


INHERITED = [
    (SOL, kernel.SO_REUSEADDR, 1),
    (SOL, kernel.SO_REUSEPORT, 1),
    (SOL, kernel.SO_KEEPALIVE, 1),
    (SOL, kernel.SO_BROADCAST, 1),
    (SOL, kernel.SO_OOBINLINE, 1),
    (SOL, kernel.SO_SNDBUF, 50_000),
    (SOL, kernel.SO_RCVBUF, 60_000),
    (TCP, kernel.TCP_NODELAY, 1),
    (TCP, kernel.TCP_KEEPIDLE, 33),
    (TCP, kernel.TCP_KEEPINTVL, 34),
    (TCP, kernel.TCP_KEEPCNT, 5),
    (TCP, kernel.TCP_USER_TIMEOUT, 4321),
    (TCP, kernel.TCP_SYNCNT, 3),
    (TCP, kernel.TCP_WINDOW_CLAMP, 50_000),
    (TCP, 36, 1),  # TCP_INQ
    (kernel.IPPROTO_IP, kernel.IP_TOS, 0x10),
    (kernel.IPPROTO_IP, kernel.IP_TTL, 44),
]


def test_tcp_16_what_an_accepted_socket_inherits(world: World) -> None:
    """Options of every level, lingering, the congestion control and the effective MSS; not priority, TCP_DEFER_ACCEPT,
    O_NONBLOCK or SO_ERROR.
    """
    with world.socket.socket() as listener:
        for level, number, value in INHERITED:
            listener.setsockopt(level, number, value)
        listener.setsockopt(SOL, kernel.SO_LINGER, struct.pack("ii", 1, 7))
        listener.setsockopt(TCP, kernel.TCP_CONGESTION, b"reno")
        listener.setsockopt(TCP, kernel.TCP_MAXSEG, 1000)
        listener.setsockopt(TCP, kernel.TCP_DEFER_ACCEPT, 3)
        listener.setsockopt(SOL, kernel.SO_PRIORITY, 5)
        listener.bind((LOOPBACK, 0))
        listener.listen()
        with world.socket.create_connection(listener.getsockname(), timeout=10) as client:
            client.sendall(b"!")
            served, _ = listener.accept()
        with served:
            for level, number, _ in INHERITED:
                assert option(served, number, level) == option(listener, number, level), (level, number)
            assert served.getsockopt(SOL, kernel.SO_LINGER, 8) == struct.pack("ii", 1, 7)
            assert served.getsockopt(TCP, kernel.TCP_CONGESTION, 4) == b"reno"
            assert option(served, kernel.TCP_MAXSEG, TCP) == 988
            assert option(served, kernel.TCP_DEFER_ACCEPT, TCP) == 0
            assert option(served, kernel.SO_PRIORITY) == 0
            assert option(served, kernel.SO_ERROR) == 0
            served.setsockopt(SOL, kernel.SO_LINGER, struct.pack("ii", 0, 0))
        listener.setblocking(False)
        with world.socket.create_connection(listener.getsockname(), timeout=10) as client:
            client.sendall(b"!")
            world.settle(listener, IN)
            served, _ = listener.accept()
            with served:
                assert served.getblocking()


def test_tcp_16_timeouts_are_those_of_the_handshake(world: World) -> None:
    """SO_RCVTIMEO and SO_SNDTIMEO as they were when the SYN came, not at accept()."""
    with world.listener() as listener:
        listener.setsockopt(SOL, kernel.SO_RCVTIMEO, struct.pack("ll", 7, 0))
        with world.socket.create_connection(listener.getsockname(), timeout=10):
            world.settle(listener, IN)
            listener.setsockopt(SOL, kernel.SO_RCVTIMEO, struct.pack("ll", 9, 0))
            served, _ = listener.accept()
            with served:
                assert served.getsockopt(SOL, kernel.SO_RCVTIMEO, 16) == struct.pack("ll", 7, 0)


def test_tcp_17_closing_resets_every_connection_that_waits(world: World) -> None:
    """All of the queue, and whoever sends afterwards hears ECONNRESET."""
    listener = world.listener(8)
    clients = [world.socket.create_connection(listener.getsockname(), timeout=10) for _ in range(3)]
    listener.close()
    for client in clients:
        with client:
            world.settle(client, ERR)
            assert code(client.send, b"x") == errno.ECONNRESET
            assert code(client.send, b"x") == errno.EPIPE


# -- finding ----------------------------------------------------------------------------------------------------------


def test_tcp_38_connections_first_then_listeners_then_a_reset(world: World) -> None:
    """A listener on the exact address before the wildcard's; connections survive their listener; nobody is a RST."""
    with world.socket.socket() as wild, world.socket.socket() as exact:
        for sock in (wild, exact):
            sock.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
        wild.bind(("0.0.0.0", 0))
        port = wild.getsockname()[1]
        exact.bind((LOOPBACK, port))
        wild.listen()
        exact.listen()
        with world.socket.create_connection((LOOPBACK, port), timeout=10) as client:
            exact.settimeout(10)
            served, _ = exact.accept()
            exact.close()
            wild.close()
            with served:
                client.sendall(b"still here")
                assert served.recv(20) == b"still here"
                with world.socket.socket() as late:
                    assert code(late.connect, (LOOPBACK, port)) == errno.ECONNREFUSED


def test_tcp_36_ipv6_beside_ipv4(stack: Stack) -> None:
    """AF_INET6 over ::1 does what AF_INET does over 127.0.0.1: same results, bits and errors."""
    with stack.socket.create_server(("::1", 0), family=kernel.AF_INET6) as server:
        with stack.socket.socket(kernel.AF_INET6) as client:
            client.connect(server.getsockname())
            served, address = server.accept()
            with served:
                assert address == client.getsockname()
                client.sendall(b"six")
                assert served.recv(10) == b"six"
                client.close()
                assert served.recv(10) == b""
        address = server.getsockname()
    with stack.socket.socket(kernel.AF_INET6) as client:
        assert code(client.connect, address) == errno.ECONNREFUSED
    with stack.socket.socket(kernel.AF_INET6) as only:
        only.setsockopt(kernel.IPPROTO_IPV6, kernel.IPV6_V6ONLY, 1)
        assert code(only.connect, ("::ffff:127.0.0.1", 80)) == errno.ENETUNREACH
