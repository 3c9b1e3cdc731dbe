"""Clauses of rows TCP-02 to TCP-38 that no other test asserts, on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import random
import socket as kernel
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from stack import Credentials, Network
from stack.link.cable import cable
from stack.link.impairment import Impairment
from stack.scheduler import NS_PER_MS
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import LOOPBACK, World, code, has_ipv6_loopback

DIFFERENCES = {
    "TCP-30": "Linux 6.18 sets TCP_WINDOW_CLAMP anew, to what the receive buffer holds, as soon as data comes; a Stack "
    "keeps to it",
}

SOL = kernel.SOL_SOCKET
TCP = kernel.IPPROTO_TCP
IP_LOCAL_PORT_RANGE = 51
RESET = struct.pack("ii", 1, 0)  # SO_LINGER that makes close() a RST


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture
def full(world: World) -> Iterator[Any]:
    """A listener whose accept queue is full: who connects waits."""
    with world.listener(0) as listener, world.socket.create_connection(listener.getsockname(), timeout=10):
        world.settle(listener, IN)
        yield listener


def slow_pair() -> tuple[Network, Any, Any]:
    """In virtual time: a network, a client's socket module, and a listener a tenth of a second away from it."""
    network = Network(clock=ManualClock(), rng=random.Random(1))
    delay = Impairment(delay_ns=100 * NS_PER_MS, seed=1)
    left, right = cable(network.scheduler, a_to_b=delay, b_to_a=delay)
    one, other = network.stack("one"), network.stack("other")
    one.add_interface(left, addresses=["10.0.0.1/24"])
    other.add_interface(right, addresses=["10.0.0.2/24"])
    return network, one.socket, other.socket.create_server(("10.0.0.2", 80))


# -- ports ------------------------------------------------------------------------------------------------------------


def test_tcp_02_a_range_of_one_port_that_is_taken(world: World) -> None:
    """Of a range without a free port bind to port 0 is EADDRINUSE, and connect EADDRNOTAVAIL."""
    with world.listener() as listener, world.socket.socket() as taken, world.socket.socket() as sock:
        taken.bind((LOOPBACK, 0))
        port = taken.getsockname()[1]
        sock.setsockopt(kernel.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=HH", port, port))
        assert code(sock.bind, (LOOPBACK, 0)) == errno.EADDRINUSE
        assert code(sock.connect, listener.getsockname()) == errno.EADDRNOTAVAIL


def test_tcp_02_both_ends_of_the_range_are_given_and_none_twice_in_a_row() -> None:
    """32768 and 60999 are ephemeral ports, the numbers beside them are not; a port given back is not the next."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        stack = network.stack("gw")
        ports = stack.netns.tcp.ports
        assert (ports.ephemeral_first, ports.ephemeral_last) == (32_768, 60_999)
        seen = []
        for _ in range(50):
            with stack.socket.socket() as sock:
                sock.bind((LOOPBACK, 0))
                seen.append(sock.getsockname()[1])
        assert all(one != next_one for one, next_one in pairwise(seen))
        for first in (32_768, 60_998):
            ports.ephemeral_first, ports.ephemeral_last = first, first + 1
            with stack.socket.socket() as one, stack.socket.socket() as other:
                one.bind((LOOPBACK, 0))
                other.bind((LOOPBACK, 0))
                assert {one.getsockname()[1], other.getsockname()[1]} == {first, first + 1}


def test_tcp_04_reuseport_is_for_one_user() -> None:
    """Another user's SO_REUSEPORT socket does not join: EADDRINUSE."""
    with Network() as network:
        stack = network.stack("gw")
        with stack.acting(Credentials.user(1000)):
            theirs = stack.socket.socket()
            theirs.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
            theirs.bind((LOOPBACK, 0))
        with theirs, stack.socket.socket() as ours:
            ours.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
            assert code(ours.bind, theirs.getsockname()) == errno.EADDRINUSE
            with stack.acting(Credentials.user(1000)), stack.socket.socket() as second:
                second.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
                second.bind(theirs.getsockname())


# -- connecting -------------------------------------------------------------------------------------------------------


def test_tcp_05_06_19_a_connect_that_has_to_wait(world: World, full: Any) -> None:
    """With SO_SNDTIMEO it is EINPROGRESS; then connect is EALREADY, a send that may not wait EAGAIN, one that may
    gives up after SO_SNDTIMEO with EAGAIN; nothing is ready.
    """
    with world.socket.socket() as sock:
        sock.setsockopt(SOL, kernel.SO_SNDTIMEO, struct.pack("ll", 0, 20_000))
        assert code(sock.connect, full.getsockname()) == errno.EINPROGRESS
        assert code(sock.send, b"x") == errno.EAGAIN
        assert code(sock.send, b"") == errno.EAGAIN
        sock.setblocking(False)
        assert code(sock.connect, full.getsockname()) == errno.EALREADY
        assert code(sock.send, b"x") == errno.EAGAIN
        assert code(sock.recv, 1) == errno.EAGAIN
        assert world.bits(sock) == 0
        assert code(sock.getpeername) == errno.ENOTCONN
        assert code(sock.listen, 1) == errno.EINVAL


def test_tcp_05_19_connect_and_send_wait_for_the_handshake() -> None:
    """A blocking connect returns with the SYN|ACK, a send on a connecting socket waits for it: a round trip."""
    network, socket, server = slow_pair()
    with network, server, socket.socket() as first, socket.socket() as second:
        first.connect(("10.0.0.2", 80))  # and ARP is done
        before = network.clock()
        second.setblocking(False)
        assert second.connect_ex(("10.0.0.2", 80)) == errno.EINPROGRESS
        second.setblocking(True)
        assert second.send(b"hello") == 5
        assert network.clock() - before == 200 * NS_PER_MS
        for data in (b"", b"hello"):
            with server.accept()[0] as served:
                assert not data or served.recv(10) == data


def test_tcp_06_success_is_pollout(world: World) -> None:
    """A connect that did not wait and succeeded shows as OUT and nothing else."""
    with world.listener() as listener, world.socket.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        assert world.settle(sock, OUT) == OUT
        listener.accept()[0].close()


@pytest.mark.parametrize("call", ["send", "recv", "so_error"])
def test_tcp_07_after_the_abort_an_attempt_succeeds(world: World, call: str) -> None:
    """Refusal taken by send, recv or SO_ERROR: ECONNABORTED once, then connecting to who listens works."""
    with world.listener() as listener, world.socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex(world.refused_address())
        world.settle(sock, ERR)
        if call == "so_error":
            assert sock.getsockopt(SOL, kernel.SO_ERROR) == errno.ECONNREFUSED
        else:
            assert code(getattr(sock, call), b"x" if call == "send" else 1) == errno.ECONNREFUSED
        assert code(sock.getpeername) == errno.ENOTCONN
        sock.setblocking(True)
        assert code(sock.connect, listener.getsockname()) == errno.ECONNABORTED
        sock.connect(listener.getsockname())
        assert sock.getpeername() == listener.getsockname()
        listener.accept()[0].close()


# -- accepting --------------------------------------------------------------------------------------------------------


def test_tcp_16_send_timeout_is_that_of_the_handshake(world: World) -> None:
    """SO_SNDTIMEO as it was when the SYN came, as SO_RCVTIMEO."""
    with world.listener() as listener:
        listener.setsockopt(SOL, kernel.SO_SNDTIMEO, struct.pack("ll", 7, 0))
        with world.socket.create_connection(listener.getsockname(), timeout=10):
            world.settle(listener, IN)
            listener.setsockopt(SOL, kernel.SO_SNDTIMEO, struct.pack("ll", 9, 0))
            with listener.accept()[0] as served:
                assert served.getsockopt(SOL, kernel.SO_SNDTIMEO, 16) == struct.pack("ll", 7, 0)


def test_tcp_16_error_of_a_listener_is_its_own(world: World) -> None:
    """The accepted socket has no error pending, whether the listener had one or not."""
    with world.listener() as listener:
        with world.socket.create_connection(listener.getsockname(), timeout=10), listener.accept()[0] as served:
            assert served.getsockopt(SOL, kernel.SO_ERROR) == 0
        assert listener.getsockopt(SOL, kernel.SO_ERROR) == 0


# -- ending -----------------------------------------------------------------------------------------------------------


def test_tcp_20_what_send_took_leaves_data_and_the_end(world: World) -> None:
    """The reset told to send: what had arrived before it is read, then comes the end."""
    client, served = world.pair()
    with client, served:
        served.sendall(b"before")
        world.settle(client, IN)
        served.setsockopt(SOL, kernel.SO_LINGER, RESET)
        served.close()
        world.settle(client, ERR)
        assert code(client.send, b"x") == errno.ECONNRESET
        assert code(client.send, b"x") == errno.EPIPE
        assert client.recv(100) == b"before"
        assert client.recv(100) == b""
        assert world.bits(client) == IN | OUT | RDHUP | HUP


def test_tcp_22_linger2_bounds_fin_wait_2() -> None:
    """An orphan whose peer says no more is gone after TCP_LINGER2 seconds."""
    network, socket, server = slow_pair()
    with network, server:
        sock = socket.create_connection(("10.0.0.2", 80))
        served, _ = server.accept()
        sock.setsockopt(TCP, kernel.TCP_LINGER2, 7)
        address = sock.getsockname()
        sock.close()
        with served, socket.socket() as probe:
            server.settimeout(5)
            with pytest.raises(TimeoutError):
                server.accept()
            assert code(probe.bind, address) == errno.EADDRINUSE
            server.settimeout(3)
            with pytest.raises(TimeoutError):
                server.accept()
            probe.bind(address)


# -- options that are rows --------------------------------------------------------------------------------------------


def test_tcp_24_buffers_grow_with_what_is_sent(world: World) -> None:
    """A connection's SO_SNDBUF and SO_RCVBUF are tuned, beyond the first 16384, and not when they are set."""
    client, served = world.pair()
    fixed, peer = world.pair()
    with client, served, fixed, peer:
        fixed.setsockopt(SOL, kernel.SO_SNDBUF, 30_000)
        peer.setsockopt(SOL, kernel.SO_RCVBUF, 40_000)
        for sock, other in ((client, served), (fixed, peer)):
            for _ in range(64):
                sock.sendall(bytes(30_000))
                got = 0
                while got < 30_000:
                    got += len(other.recv(30_000 - got))
        assert client.getsockopt(SOL, kernel.SO_SNDBUF) > 16_384
        assert served.getsockopt(SOL, kernel.SO_RCVBUF) >= 131_072
        assert fixed.getsockopt(SOL, kernel.SO_SNDBUF) == 60_000
        assert peer.getsockopt(SOL, kernel.SO_RCVBUF) == 80_000


def test_tcp_28_syncnt_is_six_and_one_to_127(world: World) -> None:
    """TCP_SYNCNT: tcp_syn_retries, 6, unless set to 1..127; what is beyond is EINVAL and changes nothing."""
    with world.socket.socket() as sock:
        assert sock.getsockopt(TCP, kernel.TCP_SYNCNT) == 6
        for good in (1, 127):
            sock.setsockopt(TCP, kernel.TCP_SYNCNT, good)
            assert sock.getsockopt(TCP, kernel.TCP_SYNCNT) == good
        for bad in (-1, 0, 128):
            assert code(sock.setsockopt, TCP, kernel.TCP_SYNCNT, bad) == errno.EINVAL
        assert sock.getsockopt(TCP, kernel.TCP_SYNCNT) == 127


def test_tcp_29_a_listener_is_readable_with_data_only(world: World) -> None:
    """TCP_DEFER_ACCEPT: the handshake alone shows nothing, its client is connected; the first byte does. Seconds are
    rounded up to the next sum of SYN|ACK time-outs.
    """
    with world.listener() as listener:
        for given, shown in ((1, 1), (2, 3), (3, 3), (4, 7), (8, 15), (100, 127), (128, 247), (-5, 0), (20, 31)):
            listener.setsockopt(TCP, kernel.TCP_DEFER_ACCEPT, given)
            assert listener.getsockopt(TCP, kernel.TCP_DEFER_ACCEPT) == shown
        listener.setblocking(False)
        with world.socket.create_connection(listener.getsockname(), timeout=10) as client:
            assert client.getsockopt(TCP, kernel.TCP_INFO, 1) == b"\1"
            assert world.bits(listener) == 0
            assert code(listener.accept) == errno.EAGAIN
            client.send(b"!")
            assert world.settle(listener, IN) == IN
            with listener.accept()[0] as served:
                assert served.recv(10) == b"!"


def test_tcp_30_the_clamp_holds_what_a_peer_may_send(world: World) -> None:
    """TCP_WINDOW_CLAMP of the listener: the client's TCP_INFO tells a send window no wider. Difference: on Linux until
    data has come, on a Stack ever after.
    """

    def window() -> int:
        return int(struct.unpack_from("I", client.getsockopt(TCP, kernel.TCP_INFO, 280), 228)[0])

    with world.socket.socket() as listener:
        listener.setsockopt(TCP, kernel.TCP_WINDOW_CLAMP, 5000)
        listener.bind((LOOPBACK, 0))
        listener.listen()
        client = world.socket.create_connection(listener.getsockname(), timeout=10)
        served, _ = listener.accept()
        with client, served:
            assert 0 < window() <= 5000
            assert served.getsockopt(TCP, kernel.TCP_WINDOW_CLAMP) == 5000
            for _ in range(20):
                client.sendall(bytes(3000))
                assert len(served.recv(3000, kernel.MSG_WAITALL)) == 3000
                assert world.network is None or window() <= 5000


def test_tcp_31_the_default_may_be_named(world: World) -> None:
    """A name nobody knows is ENOENT; the default and others are taken on an unconnected socket and on a connection."""
    client, served = world.pair()
    with client, served, world.socket.socket() as sock:
        for each in (client, sock):
            default = each.getsockopt(TCP, kernel.TCP_CONGESTION, 16).rstrip(b"\0")
            assert code(each.setsockopt, TCP, kernel.TCP_CONGESTION, b"nosuch") == errno.ENOENT
            for name in (b"reno", default):
                each.setsockopt(TCP, kernel.TCP_CONGESTION, name)
                assert each.getsockopt(TCP, kernel.TCP_CONGESTION, 16).rstrip(b"\0") == name
        client.sendall(b"works")
        assert served.recv(5, kernel.MSG_WAITALL) == b"works"


def test_tcp_37_info_is_280_bytes_and_cut(world: World) -> None:
    """The whole structure where there is room, its beginning where there is less."""
    client, served = world.pair()
    with client, served:
        whole = client.getsockopt(TCP, kernel.TCP_INFO, 400)
        assert len(whole) >= 280 if world.network is None else len(whole) == 280
        assert client.getsockopt(TCP, kernel.TCP_INFO, 8) == whole[:8]


def test_tcp_36_over_the_loopback_of_ipv6(world: World) -> None:
    """IPV6_V6ONLY is 0 at first, 1 once bound to an address of IPv6's; connect to a mapped address speaks IPv4."""
    six = kernel.IPPROTO_IPV6, kernel.IPV6_V6ONLY
    with world.socket.socket(kernel.AF_INET6) as sock:
        assert sock.getsockopt(*six) == 0
        if world.network is not None or has_ipv6_loopback():
            sock.bind(("::1", 0))
            assert sock.getsockopt(*six) == 1
            sock.listen()
            client = world.socket.create_connection(sock.getsockname()[:2], timeout=10)
            with client, sock.accept()[0] as served:
                assert served.getpeername() == client.getsockname()
                client.sendall(b"six")
                assert served.recv(3, kernel.MSG_WAITALL) == b"six"
    with world.listener() as four, world.socket.socket(kernel.AF_INET6) as sock:
        sock.connect((f"::ffff:{LOOPBACK}", four.getsockname()[1]))
        served, address = four.accept()
        with served:
            assert address == (LOOPBACK, sock.getsockname()[1])
            assert sock.getsockname()[0] == f"::ffff:{LOOPBACK}"
            assert sock.getpeername()[0] == f"::ffff:{LOOPBACK}"
