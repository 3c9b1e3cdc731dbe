"""Making sockets, and how bytes and messages pass: rows CORE-01..06 and 12..17, on the kernel's sockets and on ours."""

from __future__ import annotations

import array
import errno
import gc
import os
import socket as kernel
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Credentials, Network
from stack.socket import syscalls
from stack.socket.poll import IN
from stack.tests.kernel_twin import (
    DGRAM,
    INET,
    INET6,
    LOOPBACK,
    NETLINK,
    RAW,
    SEQPACKET,
    STREAM,
    UNIX,
    VSOCK,
    Calls,
    World,
    code,
    twin,
)

DIFFERENCES = {
    "CORE-02": "SOCK_PACKET (type 10), obsolete since Linux 2.0, is ESOCKTNOSUPPORT on a Stack",
    "CORE-17": "Python ignores SIGPIPE, so a Stack calls a hook where the kernel would send it",
}

NONBLOCK, CLOEXEC = 0x800, 0x80000


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from twin(request.param)


@pytest.fixture
def calls(world: World) -> Calls:
    return Calls(os if world.network is None else syscalls)


@pytest.fixture
def pair(world: World) -> Iterator[tuple[Any, Any]]:
    one, other = world.pair()
    with one, other:
        yield one, other


# -- CORE-01..04 ------------------------------------------------------------------------------------------------------


def test_core_01_what_a_family_lacks(world: World) -> None:
    """What a family does not define is EOPNOTSUPP."""
    with world.socket.socket(INET, DGRAM) as udp:
        assert code(udp.listen) == errno.EOPNOTSUPP
        assert code(udp.accept) == errno.EOPNOTSUPP
    with world.socket.socket(NETLINK, RAW, 0) as netlink:
        for call, *arguments in ((netlink.listen,), (netlink.accept,), (netlink.shutdown, 2)):
            assert code(call, *arguments) == errno.EOPNOTSUPP
    with world.socket.socket(UNIX, DGRAM) as datagram:
        assert code(datagram.listen) == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "expected"),
    [
        (INET, STREAM, 0, 0),
        (INET, STREAM, 6, 0),
        (INET, DGRAM, 17, 0),
        (INET6, STREAM, 0, 0),
        (INET6, DGRAM, 0, 0),
        (INET, SEQPACKET, 0, errno.ESOCKTNOSUPPORT),
        (INET, STREAM, 17, errno.EPROTONOSUPPORT),
        (INET, DGRAM, 6, errno.EPROTONOSUPPORT),
        (INET, 9, 0, errno.ESOCKTNOSUPPORT),
        (INET, STREAM, 256, errno.EPROTONOSUPPORT),
        (99, STREAM, 0, errno.EAFNOSUPPORT),
        (-5, STREAM, 0, errno.EAFNOSUPPORT),
        (NETLINK, RAW, 0, 0),
        (NETLINK, DGRAM, 0, 0),
        (NETLINK, RAW, 31, errno.EPROTONOSUPPORT),
        (NETLINK, RAW, 32, errno.EPROTONOSUPPORT),
        (NETLINK, STREAM, 0, errno.ESOCKTNOSUPPORT),
        (UNIX, STREAM, 0, 0),
        (UNIX, SEQPACKET, 0, 0),
        (UNIX, DGRAM, 0, 0),
        (UNIX, RAW, 0, 0),
        (UNIX, STREAM, 1, 0),
        (UNIX, STREAM, 2, errno.EPROTONOSUPPORT),
        (UNIX, 4, 0, errno.ESOCKTNOSUPPORT),
        (VSOCK, STREAM, 0, 0),
        (VSOCK, SEQPACKET, 0, 0),
        (VSOCK, STREAM, 40, 0),
        (VSOCK, STREAM, 1, errno.EPROTONOSUPPORT),
        (VSOCK, DGRAM, 0, errno.ENODEV),
        (VSOCK, RAW, 0, errno.ESOCKTNOSUPPORT),
        (INET, STREAM | 0x1000, 0, errno.EINVAL),
        (INET, STREAM | NONBLOCK | CLOEXEC, 0, 0),
    ],
)
def test_core_02_socket(world: World, family: int, kind: int, protocol: int, expected: int) -> None:
    """socket() takes the families, types and protocols of Linux and refuses each other with its own errno."""
    if expected:
        assert code(world.socket.socket, family, kind, protocol) == expected
        return
    with world.socket.socket(family, kind, protocol) as sock:
        assert sock.family == family
        assert sock.type == (DGRAM if (family, kind) == (UNIX, RAW) and sock.type == DGRAM else kind & 0xF)
        assert sock.getblocking() is not bool(kind & NONBLOCK)
        assert not sock.get_inheritable()


def test_core_02_sec_03_raw_needs_a_capability() -> None:
    """A raw socket without CAP_NET_RAW is EPERM (an ordinary user; the kernel's is not asked, tests run as root)."""
    with Network() as network:
        stack = network.stack("gw")
        with stack.acting(Credentials.user(1000)):
            for family, protocol in ((INET, 1), (INET6, 58), (17, 0x0300)):
                assert code(stack.socket.socket, family, RAW, protocol) == errno.EPERM


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET, DGRAM, RAW])
def test_core_03_socketpair(world: World, kind: int) -> None:
    """Two connected AF_UNIX sockets of every type; other families EOPNOTSUPP."""
    one, other = world.socket.socketpair(UNIX, kind)
    with one, other:
        assert one.family == UNIX
        one.send(b"there")
        other.send(b"and back")
        assert (other.recv(20), one.recv(20)) == (b"there", b"and back")
        assert type(one) is world.socket.socket


@pytest.mark.parametrize(
    ("family", "kind", "expected"),
    [
        (INET, STREAM, errno.EOPNOTSUPP),
        (INET6, STREAM, errno.EOPNOTSUPP),
        (INET, DGRAM, errno.EOPNOTSUPP),
        (NETLINK, RAW, errno.EOPNOTSUPP),
        (99, STREAM, errno.EAFNOSUPPORT),
        (UNIX, 4, errno.ESOCKTNOSUPPORT),
    ],
)
def test_core_03_socketpair_refused(world: World, family: int, kind: int, expected: int) -> None:
    """No descriptor is left behind by a pair that could not be made."""
    gc.collect()  # what others left goes now, not in between
    before = len(os.listdir("/proc/self/fd"))
    assert code(world.socket.socketpair, family, kind) == expected
    assert len(os.listdir("/proc/self/fd")) <= before  # what others left may have gone meanwhile


def test_core_04_wrong_descriptors(world: World) -> None:
    """A file is ENOTSOCK, a number that is nobody's EBADF; every call on a closed socket is EBADF."""
    reading, writing = os.pipe()
    try:
        assert code(lambda: world.socket.socket(fileno=reading)) == errno.ENOTSOCK
    finally:
        os.close(reading)
        os.close(writing)
    assert code(lambda: world.socket.socket(fileno=writing)) == errno.EBADF
    sock = world.socket.socket()
    sock.close()
    buffer = bytearray(4)
    for call, *arguments in (
        (sock.bind, (LOOPBACK, 0)),
        (sock.connect, (LOOPBACK, 1)),
        (sock.listen,),
        (sock.accept,),
        (sock.send, b"x"),
        (sock.sendall, b"x"),
        (sock.sendto, b"x", (LOOPBACK, 1)),
        (sock.sendmsg, [b"x"]),
        (sock.recv, 1),
        (sock.recv_into, buffer),
        (sock.recvfrom, 1),
        (sock.recvmsg, 1),
        (sock.shutdown, 2),
        (sock.getsockname,),
        (sock.getpeername,),
        (sock.getsockopt, 1, 3),
        (sock.setsockopt, 1, 2, 1),
        (sock.dup,),
    ):
        assert code(call, *arguments) == errno.EBADF, call
    assert sock.connect_ex((LOOPBACK, 1)) == errno.EBADF
    assert (sock.fileno(), sock.detach()) == (-1, -1)
    assert (sock.family, sock.type) == (INET, STREAM)
    sock.close()


# -- CORE-05..06 ------------------------------------------------------------------------------------------------------


def test_core_05_read_and_write(world: World, calls: Calls, pair: tuple[Any, Any]) -> None:
    """read() is recv() and write() is send(), without flags; read() of nothing does not touch the socket, recv() of
    nothing and write() of nothing do.
    """
    one, other = pair
    assert calls.write(one.fileno(), b"hello") == 5
    world.settle(other, IN)
    assert calls.read(other.fileno(), 3) == b"hel"
    assert calls.read(other.fileno(), 30) == b"lo"
    with world.socket.socket() as fresh:
        assert calls.read(fresh.fileno(), 0) == b""
        assert code(calls.read, fresh.fileno(), 1) == errno.ENOTCONN
        assert code(fresh.recvfrom, 0) == errno.ENOTCONN
        assert code(calls.write, fresh.fileno(), b"") == errno.EPIPE
    other.setblocking(False)
    assert code(other.recvfrom, 0) == errno.EAGAIN
    assert code(calls.read, other.fileno(), 1) == errno.EAGAIN


def test_core_05_mm_06_sendfile(world: World, calls: Calls, pair: tuple[Any, Any], tmp_path: Any) -> None:
    """sendfile() sends from a file, at an offset or from where it is, which then moves on."""
    one, other = pair
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb", buffering=0) as file:
        assert calls.sendfile(one.fileno(), file.fileno(), 2, 3) == 3
        assert file.tell() == 0
        assert calls.sendfile(one.fileno(), file.fileno(), None, 4) == 4
        assert file.tell() == 4
        assert calls.sendfile(one.fileno(), file.fileno(), 10, 4) == 0
    assert other.recv(7, kernel.MSG_WAITALL) == b"2340123"


def test_core_06_vectors(calls: Calls, pair: tuple[Any, Any], world: World) -> None:
    """Many buffers gather and scatter; more than 1024 are EMSGSIZE for messages and EINVAL for readv and writev."""
    one, other = pair
    assert calls.writev(one.fileno(), [b"ab", b"", b"cde"]) == 5
    assert one.sendmsg([b"fg", memoryview(b"h")]) == 3
    world.settle(other, IN)
    parts = [bytearray(2), bytearray(0), bytearray(4)]
    assert calls.readv(other.fileno(), parts) == 6
    assert parts == [b"ab", b"", b"cdef"]
    more = [bytearray(1), bytearray(5)]
    assert other.recvmsg_into(more)[0] == 2
    assert more == [b"g", b"h\0\0\0\0"]
    assert one.sendmsg([b"x"] * 1024) == 1024
    assert code(one.sendmsg, [b"x"] * 1025) == errno.EMSGSIZE
    assert code(other.recvmsg_into, [bytearray(1)] * 1025) == errno.EMSGSIZE
    assert code(calls.writev, one.fileno(), [b"x"] * 1025) == errno.EINVAL
    assert code(calls.readv, other.fileno(), [bytearray(1)] * 1025) == errno.EINVAL


# -- CORE-12..17 ------------------------------------------------------------------------------------------------------


def test_core_12_shutdown_how(world: World, pair: tuple[Any, Any]) -> None:
    """SHUT_RD is 0, SHUT_WR 1, SHUT_RDWR 2; anything else EINVAL."""
    one, _ = pair
    for how in (3, -1, 99):
        assert code(one.shutdown, how) == errno.EINVAL
    for how in (0, 1, 2):
        one.shutdown(how)
    with pytest.raises(OverflowError):
        one.shutdown(1 << 40)


def test_core_14_16_messages(world: World) -> None:
    """A message header carries the sender's address and control messages both ways; a record cut short says so, and
    MSG_TRUNC asks for its full length; a stream gives bytes.
    """
    with world.socket.socket(INET, DGRAM) as one, world.socket.socket(INET, DGRAM) as other:
        other.settimeout(10)
        other.bind((LOOPBACK, 0))
        one.connect(other.getsockname())
        other.setsockopt(kernel.IPPROTO_IP, 12, 1)  # IP_RECVTTL
        one.sendmsg([b"12345"], [(kernel.IPPROTO_IP, kernel.IP_TTL, array.array("i", [9]).tobytes())])
        data, ancillary, flags, sender = other.recvmsg(3, 100)
        assert (data, flags, sender) == (b"123", kernel.MSG_TRUNC, one.getsockname())
        assert ancillary == [(kernel.IPPROTO_IP, kernel.IP_TTL, array.array("i", [9]).tobytes())]
        one.send(b"12345")
        buffer = bytearray(3)
        assert other.recv_into(buffer, 0, kernel.MSG_TRUNC) == 5
        assert buffer == b"123"


def test_mm_05_sendto_and_recvfrom(world: World) -> None:
    """sendto() without an address is send(), with one it goes there for once; recvfrom() tells the sender, on a stream
    nobody.
    """
    with world.socket.socket(INET, DGRAM) as one, world.socket.socket(INET, DGRAM) as other:
        other.settimeout(10)
        other.bind((LOOPBACK, 0))
        assert code(one.sendmsg, [b"x"]) == errno.EDESTADDRREQ
        assert one.sendto(b"there", other.getsockname()) == 5
        assert code(one.send, b"x") == errno.EDESTADDRREQ
        assert other.recvfrom(10) == (b"there", (LOOPBACK, one.getsockname()[1]))
        buffer = bytearray(3)
        one.sendto(b"12345", 0, other.getsockname())
        assert other.recvfrom_into(buffer) == (3, (LOOPBACK, one.getsockname()[1]))
    one, other = world.pair()
    with one, other:
        assert one.sendto(b"ignored", ("192.0.2.1", 9)) == 7
        assert other.recvfrom(10) == (b"ignored", None)


def test_core_15_accept_answers_the_peer(world: World) -> None:
    """accept() answers the peer's address and a socket that is connected to it."""
    with world.listener() as listener, world.socket.socket() as client:
        client.connect(listener.getsockname())
        served, peer = listener.accept()
        with served:
            assert peer == client.getsockname() == served.getpeername()
            assert type(served) is world.socket.socket
            assert (served.family, served.type, served.proto) == (INET, STREAM, served.proto)


def test_core_17_sigpipe() -> None:
    """EPIPE of a stream raises SIGPIPE unless MSG_NOSIGNAL says otherwise: here, the Stack's hook is called. (Python
    ignores the kernel's signal from the start.)
    """
    with Network() as network:
        stack = network.stack("gw")
        raised: list[None] = []
        stack.on_sigpipe = lambda: raised.append(None)
        with stack.socket.socket() as sock:
            assert code(sock.send, b"x") == errno.EPIPE
            assert len(raised) == 1
            assert code(sock.sendall, b"x") == errno.EPIPE
            assert code(sock.sendto, b"x", (LOOPBACK, 1)) == errno.EPIPE
            assert code(sock.sendmsg, [b"x"]) == errno.EPIPE
            assert len(raised) == 4
            assert code(sock.send, b"x", kernel.MSG_NOSIGNAL) == errno.EPIPE
            assert len(raised) == 4
        one, other = stack.socket.socketpair()
        with one:
            other.close()
            assert code(one.send, b"x") == errno.EPIPE
            assert len(raised) == 5
        stack.on_sigpipe = None
        with stack.socket.socket() as sock:
            assert code(sock.send, b"x") == errno.EPIPE
        assert len(raised) == 5
