"""Clauses of rows UDP-01 to UDP-18 that no other test asserts, on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Credentials, Network
from stack.link.cable import cable
from stack.socket.poll import IN, OUT
from stack.testing.kernel_host import KernelHost, NoKernelHostError
from stack.tests.kernel_twin import LOOPBACK, World, code

SOL = kernel.SOL_SOCKET
IP = kernel.IPPROTO_IP
UDP = kernel.IPPROTO_UDP
IP_LOCAL_PORT_RANGE, UDP_CORK, UDP_SEGMENT, UDP_GRO = 51, 1, 103, 104


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def datagram(world: World, *, bind: bool = False) -> Any:
    sock = world.socket.socket(type=kernel.SOCK_DGRAM)
    sock.settimeout(10)
    if bind:
        sock.bind((LOOPBACK, 0))
    return sock


def test_udp_01_no_port_left(world: World) -> None:
    """Of a range without a free port bind to port 0 is EADDRINUSE; connect and send, which bind themselves, EAGAIN."""
    with datagram(world, bind=True) as taken, datagram(world) as sock:
        port = taken.getsockname()[1]
        sock.setsockopt(IP, IP_LOCAL_PORT_RANGE, struct.pack("=HH", port, port))
        assert code(sock.bind, ("0.0.0.0", 0)) == errno.EADDRINUSE
        sock.settimeout(None)
        assert code(sock.sendto, b"x", taken.getsockname()) == errno.EAGAIN
        assert code(sock.connect, taken.getsockname()) == errno.EAGAIN
        assert sock.getsockname()[1] == 0


def test_udp_01_a_range_beyond_what_is_allowed(world: World) -> None:
    """An end of IP_LOCAL_PORT_RANGE that lies outside ip_local_port_range counts for nothing."""
    for first, last in ((1, 2), (61_000, 62_000), (1, 62_000)):
        with datagram(world) as sock:
            sock.setsockopt(IP, IP_LOCAL_PORT_RANGE, struct.pack("=HH", first, last))
            sock.bind((LOOPBACK, 0))
            assert 32_768 <= sock.getsockname()[1] <= 60_999


def test_udp_01_a_receive_without_a_port_waits(world: World) -> None:
    """Unbound, a receive waits for as long as SO_RCVTIMEO says, and takes no port."""
    with datagram(world) as sock:
        sock.settimeout(None)
        sock.setsockopt(SOL, kernel.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
        assert code(sock.recv, 1) == errno.EAGAIN
        assert sock.getsockname() == ("0.0.0.0", 0)


def test_udp_01_low_ports_and_ports_of_tcp(world: World) -> None:
    """A port of TCP's is free for UDP. On a Stack, which may act for anybody: below 1024 without
    CAP_NET_BIND_SERVICE is EACCES.
    """
    with world.listener() as listener, datagram(world) as sock:
        sock.bind(listener.getsockname())
    if world.network is not None:
        with world.network.stacks["gw"].acting(Credentials.user(1000)), datagram(world) as sock:
            assert code(sock.bind, (LOOPBACK, 1023)) == errno.EACCES
            sock.bind((LOOPBACK, 1024))


def test_udp_02_connecting_in_any_state(world: World) -> None:
    """Unbound, bound, connected, shut for writing: connect is answered by nobody and works; sending stays EPIPE."""
    with datagram(world, bind=True) as one, datagram(world, bind=True) as other, datagram(world) as sock:
        for target in (one, other, one):
            sock.connect(target.getsockname())
            assert sock.getpeername() == target.getsockname()
        sock.shutdown(kernel.SHUT_WR)
        sock.connect(other.getsockname())
        assert sock.getpeername() == other.getsockname()
        assert code(sock.send, b"x") == errno.EPIPE


def test_udp_02_what_waited_before_connect_is_read(world: World) -> None:
    """The filter holds for what comes after it: a stranger's datagram that was here already is received."""
    with datagram(world, bind=True) as one, datagram(world, bind=True) as other, datagram(world) as stranger:
        stranger.sendto(b"early", one.getsockname())
        world.settle(one, IN)
        one.connect(other.getsockname())
        stranger.sendto(b"late", one.getsockname())
        other.sendto(b"peer", one.getsockname())
        assert [one.recv(10), one.recv(10)] == [b"early", b"peer"]


def test_udp_03_a_peer_and_an_address(world: World) -> None:
    """Connected, an address given with a datagram goes before the peer, for this one only."""
    with datagram(world, bind=True) as one, datagram(world, bind=True) as other, datagram(world) as sock:
        sock.connect(one.getsockname())
        sock.sendto(b"other", other.getsockname())
        sock.send(b"one")
        assert (one.recv(10), other.recv(10)) == (b"one", b"other")


def test_udp_13_cork_and_more(world: World) -> None:
    """MSG_MORE and UDP_CORK append to one datagram, until a send without, or UDP_CORK 0; for nothing else it waits."""
    with datagram(world, bind=True) as one, datagram(world) as sock:
        sock.connect(one.getsockname())
        sock.send(b"a", kernel.MSG_MORE)
        sock.send(b"b", kernel.MSG_MORE)
        assert world.bits(one) == OUT
        sock.send(b"c")
        assert one.recv(10) == b"abc"
        sock.setsockopt(UDP, UDP_CORK, 1)
        sock.send(b"d")
        sock.send(b"e")
        assert world.bits(one) == OUT
        sock.setsockopt(UDP, UDP_CORK, 0)
        assert one.recv(10) == b"de"
        sock.send(b"f")
        assert one.recv(10) == b"f"


def test_udp_13_segment_and_gro(world: World) -> None:
    """UDP_SEGMENT cuts one send into datagrams; with UDP_GRO they come as one, with a control message of their size."""
    with datagram(world, bind=True) as one, datagram(world) as sock:
        sock.connect(one.getsockname())
        sock.setsockopt(UDP, UDP_SEGMENT, 3)
        assert sock.getsockopt(UDP, UDP_SEGMENT) == 3
        sock.send(b"abcdefgh")
        assert [one.recv(10) for _ in range(3)] == [b"abc", b"def", b"gh"]
        one.setsockopt(UDP, UDP_GRO, 1)
        sock.send(b"abcdefgh")
        assert one.recvmsg(20, 64)[:2] == (b"abcdefgh", [(UDP, UDP_GRO, struct.pack("i", 3))])
        for bad in (-1, 65_536):
            assert code(sock.setsockopt, UDP, UDP_SEGMENT, bad) == errno.EINVAL


def test_udp_18_needs_cap_net_raw() -> None:
    """SOCK_RAW without CAP_NET_RAW is EPERM."""
    with Network() as network:
        stack = network.stack("gw")
        with stack.acting(Credentials.user(1000)):
            assert code(stack.socket.socket, kernel.AF_INET, kernel.SOCK_RAW, 200) == errno.EPERM
        stack.socket.socket(kernel.AF_INET, kernel.SOCK_RAW, 200).close()


def test_udp_06_tcp_05_where_no_route_leads() -> None:
    """No route, to a host or to a group: ENETUNREACH, of a Stack and of a namespace of the kernel's with one link."""
    try:
        linux = KernelHost("10.9.0.2/24")
    except NoKernelHostError as error:
        pytest.skip(str(error))
    with linux, Network() as network:
        left, _ = cable(network.scheduler)
        gw = network.stack("gw")
        gw.add_interface(left, addresses=["10.9.0.2/24"])
        for module in (linux, gw.socket):
            with module.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as udp, module.socket(kernel.AF_INET) as tcp:
                for target in ("192.0.2.1", "224.1.2.3"):
                    assert code(udp.sendto, b"x", (target, 9)) == errno.ENETUNREACH
                    assert code(udp.connect, (target, 9)) == errno.ENETUNREACH
                for target in ("192.0.2.1", "224.1.2.3", "10.9.0.255", "255.255.255.255"):
                    assert code(tcp.connect, (target, 9)) == errno.ENETUNREACH
                assert code(udp.sendto, b"x", ("10.9.0.255", 9)) == errno.EACCES
