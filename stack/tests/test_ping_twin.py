"""Ping sockets, the kernel's and ours: SOCK_DGRAM with protocol ICMP or ICMPv6 (icmp(7))."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any, Final

import pytest

from stack.credentials import Credentials
from stack.testing.builders import inet_checksum
from stack.tests.kernel_twin import code
from stack.tests.packet_world import HUP, IN, ME4, OUT, PEER4, RDHUP, OurWorld, World, worlds

INET: Final = kernel.AF_INET
INET6: Final = kernel.AF_INET6
DGRAM: Final = kernel.SOCK_DGRAM
LO4: Final = "127.0.0.1"
LO6: Final = "::1"
#: family, protocol, type of a request, of a reply, loopback address, any address
FAMILIES: Final = [(INET, 1, 8, 0, LO4, "0.0.0.0"), (INET6, 58, 128, 129, LO6, "::")]


@pytest.fixture(params=["kernel", "ours"], scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[World]:
    for world in worlds(request):
        world.set_ping_groups(0, 0)
        yield world


@pytest.fixture
def world(node: World) -> Iterator[World]:
    yield node
    node.tidy()


def ping(world: World, family: int = INET) -> Any:
    return world.socket(family, DGRAM, 1 if family == INET else 58)


def request(kind: int = 8, sequence: int = 5, data: bytes = b"hey", code_: int = 0) -> bytes:
    """Identifier and checksum are the system's to fill in."""
    return struct.pack("!BBHHH", kind, code_, 0xDEAD, 0xBEEF, sequence) + data


def test_ping_socket_types(world: World) -> None:
    """ICMP for AF_INET, ICMPv6 for AF_INET6, SOCK_DGRAM only; the other way round is EPROTONOSUPPORT."""
    for family, proto, *_ in FAMILIES:
        sock = world.socket(family, DGRAM, proto)
        assert (sock.type, sock.proto) == (DGRAM, proto)
    assert code(world.socket, INET, DGRAM, 58) == errno.EPROTONOSUPPORT
    assert code(world.socket, INET6, DGRAM, 1) == errno.EPROTONOSUPPORT
    assert code(world.socket, INET, kernel.SOCK_STREAM, 1) == errno.EPROTONOSUPPORT


@pytest.mark.parametrize(("family", "proto", "asked", "answered", "lo", "anyone"), FAMILIES, ids=["4", "6"])
def test_ping_gets_its_replies(
    world: World, family: int, proto: int, asked: int, answered: int, lo: str, anyone: str
) -> None:
    """The identifier is the port, taken by the first send; the reply comes without an IP header, checksum right."""
    sock, other = ping(world, family), ping(world, family)
    assert sock.getsockname()[:2] == (anyone, 0)
    assert sock.sendto(request(asked), (lo, 99)) == 11
    name = sock.getsockname()
    assert name[0] == anyone
    assert name[1] != 0
    data, address = sock.recvfrom(100)
    assert address[:2] == (lo, 0)
    assert (data[:2], data[6:]) == (bytes((answered, 0)), b"\0\x05hey")
    assert struct.unpack_from("!H", data, 4)[0] == name[1]
    if family == INET:
        assert inet_checksum(data) == 0
    assert world.nothing(other)
    assert world.nothing(sock)  # the request itself is not shown


@pytest.mark.parametrize(("family", "proto", "asked", "answered", "lo", "anyone"), FAMILIES, ids=["4", "6"])
def test_ping_sends_echo_requests_only(
    world: World, family: int, proto: int, asked: int, answered: int, lo: str, anyone: str
) -> None:
    """Anything but an echo request with code 0 and a whole header is EINVAL, more than 65535 bytes EMSGSIZE."""
    sock = ping(world, family)
    for data in (
        b"",
        request(asked)[:7],
        request(answered),
        request(asked, code_=1),
        request(13),
        request(asked ^ 0x80 ^ 8),
    ):
        assert code(sock.sendto, data, (lo, 0)) == errno.EINVAL, data
    assert code(sock.sendto, request(asked, data=bytes(65528)), (lo, 0)) == errno.EMSGSIZE
    assert sock.sendto(request(42 if family == INET else 160, data=b""), (lo, 0)) == 8


def test_ping_bind(world: World) -> None:
    """The port of a bound address is the identifier; bind again is EINVAL, a foreign address EADDRNOTAVAIL."""
    sock = ping(world)
    sock.bind((LO4, 4242))
    assert sock.getsockname() == (LO4, 4242)
    assert code(sock.bind, (LO4, 4243)) == errno.EINVAL
    for wrong in ("192.0.2.1", "224.0.0.1", "10.9.0.255"):
        assert code(ping(world).bind, (wrong, 4244)) == errno.EADDRNOTAVAIL
    ping(world).bind(("0.0.0.0", 7))  # no privilege for low ones
    sock.sendto(request(), (LO4, 0))
    assert struct.unpack_from("!H", sock.recv(100), 4)[0] == 4242


def test_ping_identifiers_are_shared_if_all_agree(world: World) -> None:
    """SO_REUSEADDR is set from the start; the youngest gets the reply; without it EADDRINUSE."""
    old, young, alone = ping(world), ping(world), ping(world)
    assert old.getsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEADDR) == 1
    old.bind(("0.0.0.0", 500))
    young.bind((LO4, 500))
    alone.setsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEADDR, 0)
    assert code(alone.bind, (LO4, 500)) == errno.EADDRINUSE
    old.sendto(request(), (LO4, 0))
    assert young.recv(100)[6:] == b"\0\x05hey"
    assert world.nothing(old)
    old.sendto(request(), (ME4, 0))  # the reply goes to an address the youngest is not bound to
    assert old.recv(100)[6:] == b"\0\x05hey"


def test_ping_connected(world: World) -> None:
    """connect names the target of send; replies are taken from anybody all the same."""
    sock = ping(world)
    assert code(sock.send, request()) == errno.EDESTADDRREQ
    assert code(sock.getpeername) == errno.ENOTCONN
    sock.connect((LO4, 80))
    assert sock.getpeername() == (LO4, 80)
    assert sock.getsockname()[0] == LO4
    assert sock.send(request()) == 11
    assert sock.recv(100)[6:] == b"\0\x05hey"
    assert code(sock.listen, 1) == errno.EOPNOTSUPP


def test_ping_routes_and_lengths(world: World) -> None:
    """ENETUNREACH without a route, EACCES for a broadcast, fragments for what is long, EINVAL for the other family."""
    sock = ping(world)
    assert code(sock.sendto, request(), ("192.0.2.1", 0)) == errno.ENETUNREACH
    assert code(sock.sendto, request(), ("10.9.0.255", 0)) == errno.EACCES
    watcher = world.packet(kernel.SOCK_RAW, 0x0800, "vb")
    assert sock.sendto(request(data=bytes(3000)), (PEER4, 0)) == 3008
    assert [watcher.recv(2000)[20] >> 5 & 1 for _ in range(3)] == [1, 1, 0]
    assert code(ping(world, INET6).sendto, request(128), (f"::ffff:{LO4}", 0)) == errno.EINVAL


def test_ping_flags_and_shutdown(world: World) -> None:
    """MSG_OOB is EOPNOTSUPP; shutdown unconnected ENOTCONN; a socket shut for writing is EPIPE."""
    sock = ping(world)
    sock.settimeout(None)
    assert code(sock.recv, 1, kernel.MSG_OOB) == errno.EOPNOTSUPP
    assert code(sock.sendto, request(), kernel.MSG_OOB, (LO4, 0)) == errno.EOPNOTSUPP
    assert code(sock.recv, 1, kernel.MSG_ERRQUEUE) == errno.EAGAIN
    assert world.bits(sock) == OUT
    assert code(sock.shutdown, kernel.SHUT_WR) == errno.ENOTCONN
    assert code(sock.sendto, request(), (LO4, 0)) == errno.EPIPE
    sock.connect((LO4, 0))
    sock.shutdown(kernel.SHUT_RDWR)
    assert world.bits(sock) == IN | OUT | RDHUP | HUP


def test_ping_truncation(world: World) -> None:
    """What does not fit is lost and MSG_TRUNC tells; asked for, the true length is not told all the same."""
    sock = ping(world)
    sock.sendto(request(), (LO4, 0))
    data, _, flags, address = sock.recvmsg(4, 0, kernel.MSG_PEEK)
    assert (len(data), flags, address) == (4, kernel.MSG_TRUNC, (LO4, 0))
    assert sock.recv_into(bytearray(4), 4, kernel.MSG_TRUNC) == 4


def test_ping_options(world: World) -> None:
    """Those of raw sockets are not there: IP_HDRINCL, ICMP filters, checksum offsets."""
    four, six = ping(world), ping(world, INET6)
    assert four.getsockopt(0, 3) == 0
    assert code(four.setsockopt, 0, 3, 1) == errno.ENOPROTOOPT
    assert code(four.getsockopt, 255, 1) == errno.EOPNOTSUPP
    assert code(four.setsockopt, 255, 1, 1) == errno.ENOPROTOOPT
    assert code(six.getsockopt, 58, 1) == errno.ENOPROTOOPT
    assert code(six.setsockopt, 58, 1, bytes(32)) == errno.ENOPROTOOPT
    assert code(six.getsockopt, 41, 7) == errno.ENOPROTOOPT


def test_ping_group_range(world: World) -> None:
    """net.ipv4.ping_group_range says whose groups may ping: others are EACCES, root among them."""
    world.set_ping_groups(1, 0)
    try:
        assert code(ping, world) == errno.EACCES
        assert code(ping, world, INET6) == errno.EACCES
        world.set_ping_groups(0, 0)
        assert ping(world).getsockname() == ("0.0.0.0", 0)
    finally:
        world.set_ping_groups(0, 0)


def test_sec_03_pinging_needs_no_privilege() -> None:
    """SEC-03: a user whose group is in the range may ping, with any of the groups."""
    world = OurWorld()
    try:
        with world.stack.acting(Credentials.user(1000)):
            ping(world)
            world.set_ping_groups(100, 200)
            assert code(ping, world) == errno.EACCES
        with world.stack.acting(Credentials(uid=1000, gid=1000, groups=(150,), capabilities=frozenset())):
            ping(world)
    finally:
        world.close()
