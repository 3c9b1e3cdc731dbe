"""UDP sockets row by row, on the kernel's and on ours (rows UDP-01..18 of the socket semantics)."""

from __future__ import annotations

import errno
import os
import socket as kernel
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Network
from stack.errors import NetError
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.tests.kernel_twin import LOOPBACK, World, code

FAMILIES = pytest.mark.parametrize("family", [kernel.AF_INET, kernel.AF_INET6], ids=["v4", "v6"])
LOCAL: dict[int, str] = {kernel.AF_INET: LOOPBACK, kernel.AF_INET6: "::1"}


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        stack = network.stack("gw")
        yield World(stack.socket, network)


def datagram(world: World, family: int = kernel.AF_INET) -> Any:
    sock = world.socket.socket(family, kernel.SOCK_DGRAM)
    sock.settimeout(10)
    return sock


def bound(world: World, family: int = kernel.AF_INET) -> Any:
    sock = datagram(world, family)
    sock.bind((LOCAL[family], 0))
    return sock


def empty(sock: Any) -> bool:
    """Nothing waits to be received."""
    sock.setblocking(False)
    try:
        return code(sock.recv, 1) == errno.EAGAIN
    finally:
        sock.settimeout(10)


@FAMILIES
def test_udp_01_bind_and_ephemeral_ports(world: World, family: int) -> None:
    """Bind takes an ephemeral port for 0, in use is EADDRINUSE, twice EINVAL, others' addresses EADDRNOTAVAIL; connect
    and send bind by themselves, recv waits without binding.
    """
    with datagram(world, family) as one, datagram(world, family) as other:
        assert one.getsockname()[1] == 0
        one.setblocking(False)
        assert code(one.recv, 1) == errno.EAGAIN
        assert one.getsockname()[1] == 0
        one.bind((LOCAL[family], 0))
        port = one.getsockname()[1]
        assert 32768 <= port <= 60999
        assert code(one.bind, (LOCAL[family], 0)) == errno.EINVAL
        assert code(other.bind, (LOCAL[family], port)) == errno.EADDRINUSE
        foreign = "192.0.2.77" if family == kernel.AF_INET else "2001:db8::77"
        assert code(other.bind, (foreign, 0)) == errno.EADDRNOTAVAIL
        other.connect(one.getsockname())
        assert other.getsockname()[0] == LOCAL[family]
        assert other.getsockname()[1] not in (0, port)
    with datagram(world, family) as sender, bound(world, family) as target:
        sender.sendto(b"x", target.getsockname())
        assert sender.getsockname()[1] != 0
        assert sender.getsockname()[0] == ("0.0.0.0" if family == kernel.AF_INET else "::")


@FAMILIES
def test_udp_02_connect(world: World, family: int) -> None:
    """Connect sets filter and default destination, again at will; a failure leaves the old peer; a broadcast address
    without SO_BROADCAST is EACCES; port 0 is connected to nobody.
    """
    with bound(world, family) as one, bound(world, family) as other, bound(world, family) as stranger:
        one.connect(other.getsockname())
        assert one.getpeername() == other.getsockname()
        stranger.sendto(b"no", one.getsockname())
        other.sendto(b"yes", one.getsockname())
        assert one.recv(10) == b"yes"
        assert one.send(b"back") == 4
        assert other.recvfrom(10) == (b"back", one.getsockname())
        one.connect(stranger.getsockname())
        assert one.getpeername() == stranger.getsockname()
        one.send(b"to the other")
        assert stranger.recv(20) == b"to the other"
        if family == kernel.AF_INET:
            assert code(one.connect, ("127.255.255.255", 9)) == errno.EACCES
            assert one.getpeername() == stranger.getsockname()
            one.setsockopt(kernel.SOL_SOCKET, kernel.SO_BROADCAST, 1)
            one.connect(("127.255.255.255", 9))
            assert one.getpeername() == ("127.255.255.255", 9)
        one.connect((LOCAL[family], 0))
        assert code(one.getpeername) == errno.ENOTCONN


@FAMILIES
def test_udp_03_send_without_destination(world: World, family: int) -> None:
    """Unconnected and without an address, sending is EDESTADDRREQ, though it takes a port."""
    with datagram(world, family) as sock:
        assert code(sock.send, b"x") == errno.EDESTADDRREQ
        assert code(sock.sendmsg, [b"x"]) == errno.EDESTADDRREQ


def test_udp_04_largest_payload(world: World) -> None:
    """Over IPv4 65507 bytes go, 65508 are EMSGSIZE."""
    with bound(world) as one, datagram(world) as other:
        assert other.sendto(bytes(65507), one.getsockname()) == 65507
        assert len(one.recv(70000)) == 65507
        assert code(other.sendto, bytes(65508), one.getsockname()) == errno.EMSGSIZE
        other.connect(one.getsockname())
        assert code(other.send, bytes(65508)) == errno.EMSGSIZE
        assert empty(one)


@FAMILIES
def test_udp_05_send_to_port_0(world: World, family: int) -> None:
    """Port 0 as destination is EINVAL."""
    with datagram(world, family) as sock:
        assert code(sock.sendto, b"x", (LOCAL[family], 0)) == errno.EINVAL


def test_udp_06_routing_of_a_send(world: World) -> None:
    """A broadcast address without SO_BROADCAST is EACCES, with it the datagram goes out and reaches local receivers;
    where no route leads is ENETUNREACH.
    """
    with datagram(world) as one, datagram(world) as other:
        one.bind(("0.0.0.0", 0))
        target = ("127.255.255.255", one.getsockname()[1])
        assert code(other.sendto, b"x", target) == errno.EACCES
        other.setsockopt(kernel.SOL_SOCKET, kernel.SO_BROADCAST, 1)
        assert other.sendto(b"to all", target) == 6
        assert one.recv(10) == b"to all"
        if world.network is not None:  # which routes the kernel has is not for a test to say
            assert code(other.sendto, b"x", ("192.0.2.1", 9)) == errno.ENETUNREACH
            assert code(other.sendto, b"x", ("224.1.2.3", 9)) == errno.ENETUNREACH


@FAMILIES
def test_udp_07_receive(world: World, family: int) -> None:
    """Datagrams keep their boundaries, what does not fit is discarded and told by MSG_TRUNC, empty ones arrive, each
    with its sender's address.
    """
    with bound(world, family) as one, bound(world, family) as other:
        for data in (b"first", b"", b"third", b"fourth"):
            assert other.sendto(data, one.getsockname()) == len(data)
        assert world.settle(one, IN) == IN | OUT
        sender = other.getsockname()
        assert one.recvfrom(3) == (b"fir", sender)
        assert one.recvfrom(100) == (b"", sender)
        data, ancillary, flags, address = one.recvmsg(2)
        assert (data, ancillary, flags, address) == (b"th", [], kernel.MSG_TRUNC, sender)
        data, _, flags, _ = one.recvmsg(6)
        assert (data, flags) == (b"fourth", 0)
        assert empty(one)


@FAMILIES
def test_udp_08_icmp_errors(world: World, family: int) -> None:
    """A refusal reaches a connected socket once, by the next send or recv or by SO_ERROR; an unconnected one only with
    IP_RECVERR.
    """
    level, option = (kernel.IPPROTO_IP, 11) if family == kernel.AF_INET else (kernel.IPPROTO_IPV6, 25)
    with datagram(world, family) as sock:
        nobody = world.deaf_address(LOCAL[family])
        sock.connect(nobody)
        sock.send(b"into the void")
        assert world.settle(sock, ERR) == OUT | ERR
        assert code(sock.send, b"x") == errno.ECONNREFUSED
        assert world.bits(sock) == OUT
        sock.send(b"again")
        assert code(sock.recv, 1) == errno.ECONNREFUSED
        sock.send(b"once more")
        world.settle(sock, ERR)
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNREFUSED
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == 0
        assert world.bits(sock) == OUT
    with datagram(world, family) as sock:
        sock.sendto(b"x", nobody)
        assert world.bits(sock) == OUT
        sock.sendto(b"x", nobody)
        sock.setsockopt(level, option, 1)
        sock.sendto(b"x", nobody)
        assert world.settle(sock, ERR) == OUT | ERR
        assert code(sock.sendto, b"x", nobody) == errno.ECONNREFUSED


@FAMILIES
def test_udp_09_listen_and_accept(world: World, family: int) -> None:
    """Listen and accept are EOPNOTSUPP."""
    with datagram(world, family) as sock:
        assert code(sock.listen, 1) == errno.EOPNOTSUPP
        sock.settimeout(None)
        assert code(sock.accept) == errno.EOPNOTSUPP


@FAMILIES
def test_udp_10_shutdown(world: World, family: int) -> None:
    """WR makes sends EPIPE, RD makes recv return nothing once what waits is read; after both, poll says IN, OUT, RDHUP
    and HUP.
    """
    with bound(world, family) as one, bound(world, family) as other:
        one.connect(other.getsockname())
        other.sendto(b"early", one.getsockname())
        world.settle(one, IN)
        one.shutdown(kernel.SHUT_WR)
        assert world.bits(one) == IN | OUT
        assert code(one.send, b"x") == errno.EPIPE
        one.shutdown(kernel.SHUT_RD)
        one.settimeout(None)
        assert one.recv(10) == b"early"
        assert one.recv(10) == b""
        assert one.recv(10, kernel.MSG_PEEK) == b""
        assert world.bits(one) == IN | OUT | RDHUP | HUP


def test_udp_10_shutdown_of_one_side(world: World) -> None:
    """RD alone adds IN and RDHUP, WR alone nothing."""
    with bound(world) as one, bound(world) as other:
        one.connect(other.getsockname())
        one.shutdown(kernel.SHUT_WR)
        assert world.bits(one) == OUT
        other.connect(one.getsockname())
        other.shutdown(kernel.SHUT_RD)
        assert world.bits(other) == IN | OUT | RDHUP
        assert other.send(b"still") == 5


def shared(world: World, option: int, address: tuple[str, int] = (LOOPBACK, 0)) -> Any:
    sock = datagram(world)
    sock.setsockopt(kernel.SOL_SOCKET, option, 1)
    sock.bind(address)
    return sock


def test_udp_11_reuseaddr(world: World) -> None:
    """SO_REUSEADDR on both shares the port, and the last bound gets what comes; one without it is refused."""
    with shared(world, kernel.SO_REUSEADDR) as first, datagram(world) as plain, datagram(world) as sender:
        assert code(plain.bind, first.getsockname()) == errno.EADDRINUSE
        with shared(world, kernel.SO_REUSEADDR, first.getsockname()) as last:
            sender.sendto(b"x", first.getsockname())
            assert last.recv(10) == b"x"
            assert empty(first)
        sender.sendto(b"y", first.getsockname())
        assert first.recv(10) == b"y"


def test_udp_11_reuseport(world: World) -> None:
    """SO_REUSEPORT is needed on both; flows are spread over the sockets, each flow keeps to one."""
    with shared(world, kernel.SO_REUSEPORT) as first, datagram(world) as plain:
        address = first.getsockname()
        assert code(plain.bind, address) == errno.EADDRINUSE
        plain.setsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEADDR, 1)
        assert code(plain.bind, address) == errno.EADDRINUSE
        with shared(world, kernel.SO_REUSEPORT, address) as second:
            senders = [datagram(world) for _ in range(32)]
            for number, sender in enumerate(senders * 2):
                sender.sendto(bytes((number % 32,)), address)
            shares: list[list[bytes]] = [[], []]
            first.setblocking(False)
            second.setblocking(False)

            def all_came() -> bool:
                for sock, share in zip((first, second), shares, strict=True):
                    with suppress(BlockingIOError):
                        while True:
                            share.append(sock.recv(1))
                return sum(map(len, shares)) == 64

            world.until(all_came)
            assert sum(map(len, shares)) == 64
            assert all(2 * len(set(share)) == len(share) for share in shares)
            assert all(len(share) >= 4 for share in shares)
            for sender in senders:
                sender.close()


@pytest.mark.parametrize("bind", [False, True])
def test_udp_10_shutdown_unconnected(world: World, bind: bool) -> None:
    """Unconnected it is ENOTCONN, and done all the same."""
    with datagram(world) as sock:
        if bind:
            sock.bind((LOOPBACK, 0))
        assert code(sock.shutdown, kernel.SHUT_RD) == errno.ENOTCONN
        assert world.bits(sock) == IN | OUT | RDHUP
        sock.settimeout(None)
        assert sock.recv(1) == b""
        sock.setblocking(False)
        assert code(sock.recv, 1) == errno.EAGAIN  # a call that may not wait does not look at it
        assert code(sock.shutdown, kernel.SHUT_WR) == errno.ENOTCONN
        assert world.bits(sock) == IN | OUT | RDHUP | HUP
        assert code(sock.sendto, b"x", (LOOPBACK, 9)) == errno.EPIPE


@FAMILIES
def test_udp_12_out_of_band(world: World, family: int) -> None:
    """Sending with MSG_OOB is EOPNOTSUPP over IPv4, which Linux does not ask over IPv6; receiving is as without."""
    with bound(world, family) as one, datagram(world, family) as other:
        if family == kernel.AF_INET:
            assert code(other.sendto, b"x", kernel.MSG_OOB, one.getsockname()) == errno.EOPNOTSUPP
        else:
            assert other.sendto(b"y", kernel.MSG_OOB, one.getsockname()) == 1
            assert one.recv(10) == b"y"
        other.sendto(b"x", one.getsockname())
        assert one.recv(10, kernel.MSG_OOB) == b"x"


def test_udp_15_poll(world: World) -> None:
    """Idle is OUT, data adds IN, a pending error ERR, which reading it takes away."""
    with datagram(world) as sock:
        assert world.bits(sock) == OUT
        sock.bind((LOOPBACK, 0))
        assert world.bits(sock) == OUT
        sock.sendto(b"", sock.getsockname())
        assert world.settle(sock, IN) == IN | OUT
        assert sock.recv(1) == b""
        assert world.bits(sock) == OUT
        sock.connect(world.deaf_address())
        sock.send(b"x")
        assert world.settle(sock, ERR) == OUT | ERR


def test_udp_16_bad_buffers(world: World) -> None:
    """What is no buffer is TypeError, nothing is sent, and nothing that waits is lost."""
    with bound(world) as one, datagram(world) as other:
        for bad in ("text", 5, None):
            with pytest.raises(TypeError):
                other.sendto(bad, one.getsockname())
            with pytest.raises(TypeError):
                other.sendmsg([b"good", bad], [], 0, one.getsockname())
        assert empty(one)
        other.sendto(b"kept", one.getsockname())
        with pytest.raises(TypeError):
            one.recv_into(b"read only")
        with pytest.raises((TypeError, BufferError)):
            one.recvmsg_into([bytearray(2), b"read only"])
        assert one.recv(10) == b"kept"


@FAMILIES
def test_udp_17_self_connect(world: World, family: int) -> None:
    """A socket connected to its own address talks to itself."""
    with bound(world, family) as sock:
        sock.connect(sock.getsockname())
        assert sock.getpeername() == sock.getsockname()
        assert sock.send(b"me") == 2
        assert sock.recv(10) == b"me"
        with bound(world, family) as stranger:
            stranger.sendto(b"no", sock.getsockname())
        sock.send(b"me again")
        assert sock.recv(10) == b"me again"


def test_udp_07_dual_stack(world: World) -> None:
    """An IPv6 socket bound to any hears IPv4 and sees mapped addresses, unless IPV6_V6ONLY."""
    with datagram(world, kernel.AF_INET6) as both, bound(world) as four:
        both.bind(("::", 0))
        port = both.getsockname()[1]
        four.sendto(b"x", (LOOPBACK, port))
        data, address = both.recvfrom(10)
        assert (data, address[:2]) == (b"x", ("::ffff:127.0.0.1", four.getsockname()[1]))
        both.sendto(b"back", address)
        assert four.recvfrom(10) == (b"back", (LOOPBACK, port))
    with datagram(world, kernel.AF_INET6) as six, bound(world) as four:
        six.setsockopt(kernel.IPPROTO_IPV6, kernel.IPV6_V6ONLY, 1)
        six.bind(("::", 0))
        four.connect((LOOPBACK, six.getsockname()[1]))
        four.send(b"x")
        assert code(four.recv, 1) == errno.ECONNREFUSED
        assert code(six.sendto, b"x", ("::ffff:127.0.0.1", 9)) == errno.ENETUNREACH


def test_sec_07_sharing_a_port_needs_the_same_user() -> None:
    """SO_REUSEPORT of another user's socket is EADDRINUSE."""
    with Network() as network:
        stack = network.stack("gw")
        with shared(World(stack.socket, network), kernel.SO_REUSEPORT) as first:
            port = first.getsockname()[1]
            ports = stack.netns.udp.ports
            with pytest.raises(NetError) as caught:
                ports.bind(bytes(4), port, reuse_port=True, owner=1000)
            assert caught.value.errno == errno.EADDRINUSE
            ports.bind(bytes(4), port, reuse_port=True, owner=0).release()


def test_udp_02_disconnect() -> None:
    """Connecting to AF_UNSPEC takes filter and destination away (which Python's connect cannot ask for)."""
    import ctypes

    unspec = bytes(16)
    libc = ctypes.CDLL(None, use_errno=True)
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as theirs, Network() as network:
        ours = network.stack("gw").socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
        for sock in (theirs, ours):
            sock.bind((LOOPBACK, 0))
            sock.connect((LOOPBACK, 9))
        assert libc.connect(theirs.fileno(), unspec, len(unspec)) == 0, os.strerror(ctypes.get_errno())
        ours._sock.phase.endpoint.disconnect()
        for sock in (theirs, ours):
            assert code(sock.getpeername) == errno.ENOTCONN
            assert code(sock.send, b"x") == errno.EDESTADDRREQ
        ours.close()
