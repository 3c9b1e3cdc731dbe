"""The core socket layer, rows CORE-01..19 and section 1.2 (ADDR), on the kernel's sockets and on ours."""

from __future__ import annotations

import array
import errno
import fcntl
import gc
import os
import select
import signal
import socket as kernel
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stack import Credentials, Network
from stack.link import cable
from stack.socket import syscalls
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import LOOPBACK, World, code

DIFFERENCES = {
    "CORE-02": "SOCK_PACKET (type 10), obsolete since Linux 2.0, is ESOCKTNOSUPPORT on a Stack",
    "CORE-09": "an error of a socket (POLLERR) shows in its descriptor as readable and writable, not as POLLERR: the "
    "descriptor is one end of a kernel's socketpair; hang-ups show where they are final",
    "CORE-17": "Python ignores SIGPIPE, so a Stack calls a hook where the kernel would send it",
}

INET, INET6, UNIX, NETLINK, VSOCK = 2, 10, 1, 16, 40
STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5
NONBLOCK, CLOEXEC = 0x800, 0x80000


class Calls:
    """The system calls on descriptors that sockets share with files: the kernel's, or ours."""

    def __init__(self, source: Any) -> None:
        self.read: Callable[[int, int], bytes] = source.read
        self.write: Callable[[int, bytes], int] = source.write
        self.readv: Callable[..., int] = source.readv
        self.writev: Callable[..., int] = source.writev
        self.sendfile: Callable[..., int] = source.sendfile
        self.ioctl: Callable[..., Any] = fcntl.ioctl if source is os else source.ioctl


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


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


# -- CORE-05..10 ------------------------------------------------------------------------------------------------------


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


def test_core_07_non_blocking(world: World, calls: Calls) -> None:
    """O_NONBLOCK is of the open file: set by socket(), F_SETFL, FIONBIO and setblocking(), shared by duplicates, and
    not inherited by an accepted socket.
    """
    with world.listener() as listener, world.socket.socket() as client:
        client.connect(listener.getsockname())
        world.settle(listener, IN)
        listener.setblocking(False)
        served, _ = listener.accept()
        with served:
            assert served.getblocking()
            assert os.get_blocking(served.fileno())
            fd = served.fileno()
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
            assert code(served.recv, 1) == errno.EAGAIN
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
            calls.ioctl(fd, 0x5421, struct.pack("i", 1))  # FIONBIO
            assert not os.get_blocking(fd)
            assert code(served.recv, 1) == errno.EAGAIN
            copy = os.dup(fd)
            assert not os.get_blocking(copy)
            os.close(copy)
            served.setblocking(True)
            assert os.get_blocking(fd)
            served.settimeout(3)
            assert not os.get_blocking(fd)
    with world.socket.socket(INET, STREAM | NONBLOCK) as sock:
        assert not sock.getblocking()
        assert sock.gettimeout() == 0
        assert not os.get_blocking(sock.fileno())


def test_core_08_block_on(world: World, pair: tuple[Any, Any]) -> None:
    """Non-blocking calls try once: EAGAIN. A time-out of the program's is TimeoutError, one of SO_RCVTIMEO or
    SO_SNDTIMEO is EAGAIN, of connect() EINPROGRESS.
    """
    one, other = pair
    moment = struct.pack("ll", 0, 1000)
    one.setblocking(False)
    assert code(one.recv, 1) == errno.EAGAIN
    one.settimeout(0.001)
    with pytest.raises(TimeoutError, match="timed out"):
        one.recv(1)
    one.settimeout(None)
    one.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, moment)
    one.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, moment)
    assert code(one.recv, 1) == errno.EAGAIN
    one.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDBUF, 4608)
    other.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 2304)
    assert code(lambda: [one.send(bytes(1 << 20)) for _ in range(100)]) == errno.EAGAIN
    with world.listener() as listener:
        listener.settimeout(None)
        listener.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVTIMEO, moment)
        assert code(listener.accept) == errno.EAGAIN


def test_core_08_connect_in_vain() -> None:
    """SO_SNDTIMEO ends a connect() with EINPROGRESS (in virtual time, towards nobody)."""
    with Network(clock=ManualClock()) as network:
        stack = network.stack("gw")
        left, _ = cable(network.scheduler)
        stack.add_interface(left, addresses=["10.0.0.1/24"])
        with stack.socket.socket() as sock:
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, struct.pack("ll", 1, 0))
            assert code(sock.connect, ("10.0.0.2", 80)) == errno.EINPROGRESS


def test_core_08_signals(world: World, pair: tuple[Any, Any]) -> None:
    """A signal whose handler returns does not end a blocked call (PEP 475); one whose handler raises does."""
    one, other = pair
    one.settimeout(None)
    heard: list[int] = []

    def answer(*_: object) -> None:
        heard.append(1)
        other.send(b"woken")

    def refuse(*_: object) -> None:
        raise ZeroDivisionError

    before = signal.signal(signal.SIGUSR1, answer)
    main = threading.get_ident()
    try:
        for handler in (answer, refuse):
            signal.signal(signal.SIGUSR1, handler)
            timer = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGUSR1))
            timer.start()
            if handler is answer:
                assert one.recv(10) == b"woken"
            else:
                with pytest.raises(ZeroDivisionError):
                    one.recv(10)
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]


def test_core_09_poll_bits(world: World) -> None:
    """The poll bits of one socket in its states; ERR and HUP are told unasked."""
    with world.socket.socket() as sock:
        assert world.bits(sock) == OUT | HUP
        sock.bind((LOOPBACK, 0))
        assert world.bits(sock) == OUT | HUP
        sock.listen()
        assert world.bits(sock) == 0
        with world.socket.socket() as client:
            client.connect(sock.getsockname())
            assert world.settle(sock, IN) == IN
            served, _ = sock.accept()
            assert world.bits(sock) == 0
            assert world.bits(served) == OUT
            client.send(b"x")
            assert world.settle(served, IN) == IN | OUT
            client.shutdown(kernel.SHUT_WR)
            assert world.settle(served, RDHUP) == IN | OUT | RDHUP
            served.close()


def test_core_09_all_bits_at_once() -> None:
    """Refused, a socket is readable, writable, hung up and in error, and poll() of a Stack's socket says so."""
    with Network() as network, network.stack("gw").socket.socket() as sock:
        sock.setblocking(False)
        assert code(sock.connect, (LOOPBACK, 9)) == errno.EINPROGRESS
        assert sock.poll() & (IN | OUT | ERR | HUP | RDHUP) == IN | OUT | ERR | HUP | RDHUP
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNREFUSED
        assert not sock.poll() & ERR


@pytest.mark.parametrize("edge", [0, select.EPOLLET])
def test_core_09_epoll(world: World, pair: tuple[Any, Any], edge: int) -> None:
    """epoll tells of levels, and of edges: each arrival is one, also when something was left unread."""
    one, other = pair
    with select.epoll() as epoll:
        epoll.register(other.fileno(), select.EPOLLIN | edge)
        assert epoll.poll(0) == []
        for number in range(3):
            one.send(b"x")
            world.settle(other, IN)
            assert epoll.poll(10) == [(other.fileno(), select.EPOLLIN)], number
            assert bool(epoll.poll(0)) is not bool(edge)
        other.recv(10)
        assert epoll.poll(0) == []
        one.send(b"x")
        world.settle(other, IN)
        assert epoll.poll(10) == [(other.fileno(), select.EPOLLIN)]
        one.shutdown(kernel.SHUT_WR)
        other.recv(10)
        epoll.modify(other.fileno(), select.EPOLLIN | select.EPOLLRDHUP | edge)
        world.settle(other, RDHUP)
        assert epoll.poll(10) == [(other.fileno(), select.EPOLLIN | select.EPOLLRDHUP)]


def test_core_09_a_descriptor_through_the_states_of_its_socket(world: World) -> None:
    """One registration hears of unbound, listening, and back; and of a connection's end, which is a hang-up."""
    with world.socket.socket() as sock, select.epoll() as epoll, world.socket.socket() as client:
        epoll.register(sock.fileno(), select.EPOLLIN)
        sock.bind((LOOPBACK, 0))
        sock.listen()
        client.connect(sock.getsockname())
        assert epoll.poll(10) == [(sock.fileno(), select.EPOLLIN)] or world.network is None
        served, _ = sock.accept()
        with served:
            served.fileno()
            epoll.register(served.fileno(), 0)
            assert epoll.poll(0) == [] or world.network is None
            client.shutdown(kernel.SHUT_WR)
            world.settle(served, RDHUP)
            served.shutdown(kernel.SHUT_WR)
            world.settle(served, HUP)
            events = dict(epoll.poll(10))
            assert events[served.fileno()] & select.EPOLLHUP


def test_core_10_sigio(world: World, pair: tuple[Any, Any]) -> None:
    """With O_ASYNC and F_SETOWN, readiness sends SIGIO."""
    one, other = pair
    heard = threading.Event()
    before = signal.signal(signal.SIGIO, lambda *_: heard.set())
    try:
        fd = other.fileno()
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        one.send(b"x")
        assert heard.wait(10)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_ASYNC)
    finally:
        signal.signal(signal.SIGIO, before)


# -- CORE-12..19 ------------------------------------------------------------------------------------------------------


def test_core_12_shutdown_how(world: World, pair: tuple[Any, Any]) -> None:
    """SHUT_RD is 0, SHUT_WR 1, SHUT_RDWR 2; anything else EINVAL."""
    one, _ = pair
    for how in (3, -1, 99):
        assert code(one.shutdown, how) == errno.EINVAL
    for how in (0, 1, 2):
        one.shutdown(how)
    with pytest.raises(OverflowError):
        one.shutdown(1 << 40)


def test_core_13_addresses(world: World, pair: tuple[Any, Any]) -> None:
    """Each family's addresses come out as they went in."""
    one, other = pair
    assert one.getsockname() == other.getpeername()
    assert one.getsockname()[0] == LOOPBACK
    with world.socket.socket(INET6, DGRAM) as sock:
        sock.bind(("::1", 0))
        address = sock.getsockname()
        assert (address[0], address[2:]) == ("::1", (0, 0))
    with world.socket.socket(UNIX, DGRAM) as sock:
        assert sock.getsockname() == ""
        sock.bind("\0guestwire-core-13")
        assert sock.getsockname() == b"\0guestwire-core-13"
    with world.socket.socket(NETLINK, RAW, 0) as sock:
        sock.bind((0, 1))
        port, groups = sock.getsockname()
        assert port
        assert groups == 1
    with world.socket.socket(VSOCK, STREAM) as sock:
        assert sock.getsockname() == (0xFFFFFFFF, 0xFFFFFFFF)


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


def test_core_19_bind_twice(world: World, tmp_path: Any) -> None:
    """A second bind() is EINVAL."""
    for kind in (STREAM, DGRAM):
        with world.socket.socket(INET, kind) as sock:
            sock.bind((LOOPBACK, 0))
            assert code(sock.bind, (LOOPBACK, 0)) == errno.EINVAL
    with world.socket.socket(UNIX, STREAM) as sock:
        sock.bind("\0guestwire-core-19")
        assert code(sock.bind, "\0guestwire-other") == errno.EINVAL
    with world.socket.socket(VSOCK, STREAM) as sock:
        sock.bind((0xFFFFFFFF, 34567))
        assert code(sock.bind, (0xFFFFFFFF, 34568)) == errno.EINVAL
    with world.socket.socket(NETLINK, RAW, 0) as sock:
        sock.bind((0, 0))
        sock.bind(sock.getsockname())


# -- section 1.2: addresses -------------------------------------------------------------------------------------------


def test_addr_inet(world: World) -> None:
    """AF_INET: the address is a pair of host and port."""
    with world.socket.socket() as sock:
        for wrong in (None, "text", 5, (LOOPBACK,), (LOOPBACK, 0, 0), (LOOPBACK, "0"), (5, 0), [LOOPBACK, 0]):
            with pytest.raises(TypeError):
                sock.bind(wrong)
        for port in (-1, 65536, 1 << 40):
            with pytest.raises(OverflowError):
                sock.bind((LOOPBACK, port))
        assert code(sock.bind, ("192.0.2.77", 0)) == errno.EADDRNOTAVAIL
        sock.bind((LOOPBACK.encode(), 0))


def test_addr_inet6(world: World) -> None:
    """AF_INET6: host and port, and perhaps flow label and scope; a bound specific address sets IPV6_V6ONLY."""
    with world.socket.socket(INET6, STREAM) as sock:
        for wrong in (None, ("::1",), ("::1", 0, 0, 0, 0), ("::1", "0"), (b"::1", 0, "x")):
            with pytest.raises(TypeError):
                sock.bind(wrong)
        for wrong_number in (("::1", -1), ("::1", 65536), ("::1", 0, 1 << 20), ("::1", 0, -1)):
            with pytest.raises(OverflowError):
                sock.bind(wrong_number)
        with pytest.raises(kernel.gaierror):
            sock.bind((LOOPBACK, 0))
        with pytest.raises(OSError, match="address family mismatched"):
            sock.bind(("<broadcast>", 0))
        sock.bind(("::1", 0, 0, 0))


def test_addr_unix(world: World) -> None:
    """AF_UNIX: a path of at most 107 bytes, or a name behind a NUL of at most 107; nothing else is an address."""
    with world.socket.socket(UNIX, STREAM) as sock:
        for wrong in (None, 5, ("path",)):
            with pytest.raises(TypeError):
                sock.bind(wrong)
        for long in ("x" * 109, "\0" + "x" * 108):
            with pytest.raises(OSError, match="too long"):
                sock.bind(long)
        name = "\0" + "x" * 107
        sock.bind(name)
        assert sock.getsockname() == name.encode()


def test_addr_netlink_and_vsock(world: World) -> None:
    """AF_NETLINK and AF_VSOCK: pairs of numbers, each cut to 32 bits."""
    for family, kind in ((NETLINK, RAW), (VSOCK, STREAM)):
        with world.socket.socket(family, kind, 0) as sock:
            for wrong in (None, "text", (1,), (1, 2, 3), ("1", 2)):
                with pytest.raises(TypeError):
                    sock.bind(wrong)
    with world.socket.socket(VSOCK, STREAM) as sock:
        sock.bind((-1, 0x1_0000_8765))
        assert sock.getsockname() == (0xFFFFFFFF, 0x8765)
