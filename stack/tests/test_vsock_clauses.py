"""Clauses of rows VS and section 2.6 that no other test asserts, on a Stack with a model guest, in virtual time."""

from __future__ import annotations

import errno
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from stack import Network
from stack.socket import syscalls
from stack.testing.vsock import GUEST_CID
from stack.tests.test_vsock_kernel_twin import Maker, get, make, put, refused  # noqa: F401 - a fixture
from stack.tests.test_vsock_socket import ANY, World, bits
from stack.tests.unix_world import outcome
from stack.wire import vsock as wire

SOL = socket.SOL_SOCKET
STREAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for each in made.open:
        each.close()
    made.network.close()
    assert made.guest.model.broken == []


def test_vs_02_numbers_that_have_names() -> None:
    """CID ANY is 0xFFFFFFFF, HYPERVISOR 0, LOCAL 1, HOST 2; PORT ANY 0xFFFFFFFF; the last reserved port 1023."""
    assert (wire.CID_ANY, wire.CID_LOCAL, wire.CID_HOST) == (ANY, 1, 2)
    assert (wire.PORT_ANY, wire.LAST_RESERVED_PORT) == (ANY, 1023)
    assert (socket.VMADDR_CID_ANY, socket.VMADDR_CID_HOST, socket.VMADDR_PORT_ANY) == (ANY, 2, ANY)


def test_vs_02_numbers_are_taken_modulo_two_to_the_32(make: Maker) -> None:  # noqa: F811
    """-1 is ANY, as CID and as port; what is no pair of numbers is TypeError."""
    made = make()
    made.bind((-1, -1))
    assert made.getsockname()[0] == ANY
    assert 1024 <= made.getsockname()[1] < ANY
    for wrong in (5, "x", (1,), (1, 2, 3), (1, "x"), None):
        with pytest.raises(TypeError):
            make().bind(wrong)


def test_vs_03_bound_as_said(make: Maker) -> None:  # noqa: F811
    """A port that was asked for is the one that getsockname() tells; a listener keeps it, and closing gives it back."""
    made = make()
    made.bind((ANY, ANY))
    port = made.getsockname()[1]
    made.listen(1)
    with refused(errno.EADDRINUSE):
        make().bind((ANY, port))
    with refused(errno.EINVAL):
        made.bind((ANY, port + 1))
    made.close()
    again = make()
    again.bind((ANY, port))
    assert again.getsockname() == (ANY, port)


def test_vs_04_the_port_nobody_can_have(world: World) -> None:
    """connect() to PORT_ANY is accepted, and times out when nobody answers; to CID ANY or 0 there is no way: ENODEV."""
    world.guest.answers = False
    made = world.socket()
    began = world.clock()
    with refused(errno.ETIMEDOUT):
        made.connect((GUEST_CID, ANY))
    assert world.clock() - began == 2_000_000_000
    assert world.guest.ops()[0] == "REQUEST"
    for cid in (0, ANY):
        with refused(errno.ENODEV):
            made.connect((cid, 1))


def test_vs_04_connected_and_bound_once(world: World) -> None:
    """Connected: connect() is EISCONN, bind() and listen() are EINVAL, accept() too."""
    made, _ = world.connected()
    for call, arguments, error in (
        (made.connect, ((GUEST_CID, 99),), errno.EISCONN),
        (made.bind, ((ANY, 7777),), errno.EINVAL),
        (made.listen, (1,), errno.EINVAL),
        (made.accept, (), errno.EINVAL),
    ):
        with refused(error):
            call(*arguments)


def test_vs_04_a_signal_ends_a_blocking_connect() -> None:
    """A signal whose handler raises ends a connect() that waits."""

    def refuse(*_: object) -> None:
        raise ZeroDivisionError

    from stack.testing.vsock import ScriptedGuest

    before = signal.signal(signal.SIGUSR1, refuse)
    try:
        with Network() as network:
            stack = network.stack("host")
            stack.add_vsock(ScriptedGuest())
            with stack.socket.socket(socket.AF_VSOCK, STREAM) as made:
                made.setsockopt(socket.AF_VSOCK, 8, struct.pack("ll", 20, 0))
                timer = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
                timer.start()
                with pytest.raises(ZeroDivisionError):
                    made.connect((GUEST_CID, 1))
                timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_vs_05_the_longest_backlog() -> None:
    """A backlog is at most net.core.somaxconn, 4096; a negative one is as long."""
    from stack.tests.vsock_world import VsockWorld

    world = VsockWorld()
    listener = world.engine.listen(5000)
    for backlog in (-1, 4096, 4097, 1 << 30):
        listener.backlog = backlog
        found = []
        for count in (4096, 4097):
            listener._queue.extend([None] * (count - listener.ready))  # type: ignore[list-item]  # they only count
            found.append(listener.full)
        assert found == [False, True]
        listener._queue.clear()
    world.engine.close()


def test_vs_06_reading_nothing(world: World) -> None:
    """read() of 0 bytes of an unconnected socket is 0, of more ENOTCONN; write() of nothing is ENOTCONN."""
    made = world.socket()
    fd = made.fileno()
    assert syscalls.read(fd, 0) == b""
    assert outcome(syscalls.read, fd, 1) == "ENOTCONN"
    assert outcome(syscalls.write, fd, b"") == "ENOTCONN"


def test_vs_06_what_a_connected_stream_refuses(world: World) -> None:
    """sendto() is EISCONN, MSG_OOB EOPNOTSUPP both ways; MSG_PEEK leaves what it saw."""
    made, stream = world.connected()
    with refused(errno.EISCONN):
        made.sendto(b"x", (GUEST_CID, 99))
    with refused(errno.EOPNOTSUPP):
        made.send(b"x", socket.MSG_OOB)
    with refused(errno.EOPNOTSUPP):
        made.recv(1, socket.MSG_OOB)
    stream.write(b"abc")
    assert [made.recv(2, socket.MSG_PEEK), made.recv(9)] == [b"ab", b"abc"]


def test_vs_06_core_17_sigpipe(world: World) -> None:
    """EPIPE after the peer's RCV shutdown, or one's own SHUT_WR, comes with SIGPIPE unless MSG_NOSIGNAL."""
    seen: list[int] = []
    world.stack.on_sigpipe = lambda: seen.append(1)
    for end in ("own", "peer"):
        made, stream = world.connected(100 if end == "own" else 101)
        if end == "own":
            made.shutdown(socket.SHUT_WR)
        else:
            stream.send(wire.Op.SHUTDOWN, flags=1)
            world.settle()
        for flags, signals in ((0, 1), (socket.MSG_NOSIGNAL, 1)):
            with pytest.raises(BrokenPipeError):
                made.send(b"x", flags)
            assert len(seen) == signals
        seen.clear()


@pytest.mark.parametrize(
    ("how", "flags"),
    [((0,), [1]), ((1,), [2]), ((2,), [3]), ((0, 1), [1, 3]), ((1, 0), [2, 3]), ((0, 0), [1, 1])],
)
def test_vs_07_shutdown_on_the_wire(world: World, how: tuple[int, ...], flags: list[int]) -> None:
    """SHUT_RD sends SHUTDOWN with RCV, 1, SHUT_WR with SEND, 2, SHUT_RDWR with both; flags said once stay."""
    made, stream = world.connected()
    said = []
    for each in how:
        made.shutdown(each)
        world.settle()
        said.append(stream.shutdown)
    assert said == flags
    with refused(errno.EINVAL):
        made.shutdown(3)
    if 0 in how:
        assert made.recv(1) == b""


def test_vs_16_buffers_of_the_socket_level_do_nothing(world: World) -> None:
    """SO_SNDBUF and SO_RCVBUF are kept, and what the guest may send ahead is as before."""
    made, stream = world.connected()
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        before = made.getsockopt(SOL, option)
        made.setsockopt(SOL, option, 4096)
        assert made.getsockopt(SOL, option) != before
    world.settle()
    assert stream.peer_buf_alloc == 1 << 18
    made.setblocking(False)
    assert made.send(bytes(1 << 20)) == 1 << 18


def test_vs_16_timeouts_and_zerocopy(make: Maker) -> None:  # noqa: F811
    """SO_ZEROCOPY is 0 or 1, else EINVAL; short values of time-outs and SO_LINGER are EINVAL; SO_PROTOCOL is 0."""
    made = make()
    assert made.getsockopt(SOL, socket.SO_PROTOCOL) == 0
    assert made.getsockopt(SOL, 60) == 0
    for value in (1, 0):
        made.setsockopt(SOL, 60, value)
        assert made.getsockopt(SOL, 60) == value
    for value in (2, -1):
        with refused(errno.EINVAL):
            made.setsockopt(SOL, 60, value)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO, socket.SO_LINGER):
        with refused(errno.EINVAL):
            put(made, SOL, option, b"abc")
        size = 8 if option == socket.SO_LINGER else 16
        assert get(made, SOL, option, 32) == bytes(size)


def test_vs_17_failed_and_waiting(world: World) -> None:
    """Connecting polls nothing, refused OUT and ERR, until SO_ERROR has told; then OUT as at first."""
    made = world.socket()
    made.setblocking(False)
    world.guest.answers = False
    with pytest.raises(BlockingIOError):
        made.connect((GUEST_CID, 1))
    assert bits(made) == 0
    world.settle()
    world.guest.feed(wire.Op.RST, made.getsockname()[1], 1)
    world.settle()
    assert bits(made) & ~select.POLLWRNORM == select.POLLOUT | select.POLLERR
    assert made.getsockopt(SOL, socket.SO_ERROR) == errno.ECONNRESET
    assert bits(made) & ~select.POLLWRNORM == select.POLLOUT


def test_vs_18_names_in_every_phase(world: World) -> None:
    """Unbound {ANY, ANY}; bound to ANY it is shown as ANY; connected the port stays, and the peer is the guest."""
    made = world.socket()
    assert made.getsockname() == (ANY, ANY)
    made.bind((ANY, 4000))
    assert made.getsockname() == (ANY, 4000)
    with refused(errno.ENOTCONN):
        made.getpeername()
    made.connect((GUEST_CID, 9))
    assert (made.getsockname()[1], made.getpeername()) == (4000, (GUEST_CID, 9))
