"""Rows UNX-01..UNX-10 of the socket semantics, on the kernel's AF_UNIX and on a Stack's by the same bodies.

There are no differences here but where paths are: a Stack's are in a tree of its own.
"""

from __future__ import annotations

import errno
import random
import socket as kernel
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import Credentials
from stack.errors import NetError
from stack.scheduler import Scheduler
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.task import CLONE_NEWNET
from stack.tests.kernel_twin import code
from stack.tests.unix_world import (
    CONNECTED_KINDS,
    DGRAM,
    KINDS,
    SEQPACKET,
    STREAM,
    UnixWorld,
    kernel_world,
    outcome,
    stack_world,
)
from stack.unix import AbstractNames, StreamEndpoint, UnixSpace

DIFFERENCES = {
    "UNX-02": "paths of a Stack are in a tree of its own, in memory",
    "UNX-09": "a Stack calls a hook where Linux sends SIGPIPE",
}

both_connected = pytest.mark.parametrize("kind", CONNECTED_KINDS)


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnixWorld]:
    with kernel_world(tmp_path) if request.param == "kernel" else stack_world() as made:
        yield made


@pytest.fixture
def ours() -> Iterator[UnixWorld]:
    with stack_world() as made:
        yield made


@both_connected
def test_unx_01_phases(world: UnixWorld, kind: int) -> None:
    """One type of socket goes from fresh to bound, and from there to listening or connected."""
    listener = world.make(kind)
    assert listener.type == kind
    listener.bind(world.path())
    assert listener.getsockopt(kernel.SOL_SOCKET, kernel.SO_ACCEPTCONN) == 0
    listener.listen(1)
    assert listener.getsockopt(kernel.SOL_SOCKET, kernel.SO_ACCEPTCONN) == 1
    client = world.make(kind)
    client.connect(listener.getsockname())
    assert client.send(b"x") == 1
    assert world.keep(listener.accept()[0]).recv(9) == b"x"


def test_unx_02_bind_path(world: UnixWorld) -> None:
    """Binding a path makes a socket node of mode 0777 less the umask, whose name getsockname gives."""
    sock = world.make()
    path = world.path()
    old = world.files.umask(0o022)
    try:
        sock.bind(path)
    finally:
        world.files.umask(old)
    assert world.files.stat(path).st_mode == stat.S_IFSOCK | 0o755
    assert sock.getsockname() == path
    assert world.make().getsockname() == ""


def test_unx_02_what_is_in_the_way(world: UnixWorld) -> None:
    """Any file there is EADDRINUSE, a missing directory ENOENT, a file in place of one ENOTDIR."""
    taken = world.listening().getsockname()
    file = world.path()
    world.touch(file)
    directory = world.path()
    world.files.mkdir(directory)
    for path in (taken, file, directory, "/", directory + "/.", directory + "/.."):
        assert code(world.make().bind, path) == errno.EADDRINUSE, path
    assert code(world.make().bind, world.path() + "/below") == errno.ENOENT
    assert code(world.make().bind, file + "/below") == errno.ENOTDIR
    assert code(world.make().bind, world.path() + "/") == errno.ENOENT


def test_unx_02_path_length(world: UnixWorld) -> None:
    """A path is at most 107 bytes through CPython, an abstract name 108; a zero ends a path."""
    for long in ("/" + "x" * 107, b"/" + b"x" * 107, b"\0" + b"x" * 108):
        with pytest.raises(OSError, match="AF_UNIX path too long"):
            world.make().bind(long)
    name = world.abstract().ljust(108, b"x")
    sock = world.make()
    sock.bind(name)
    assert sock.getsockname() == name
    path = world.path()
    cut = world.make()
    cut.bind(path.encode() + b"\0rest")
    assert cut.getsockname() == path


def test_unx_02_no_permission_to_make(ours: UnixWorld) -> None:
    """Without write permission on the directory bind is EACCES."""
    assert ours.stack is not None
    with ours.stack.acting(Credentials.user(1000)):
        assert code(ours.make().bind, "/run/x") == errno.EACCES
        ours.make().bind("/tmp/x")


def test_unx_02_bind_while_connected(world: UnixWorld) -> None:
    """A connected socket without a name may be bound."""
    client, served = world.connected()
    client.bind(path := world.path())
    assert client.getsockname() == path
    assert served.getpeername() == path


@pytest.mark.parametrize("kind", KINDS)
def test_unx_03_abstract_names(world: UnixWorld, kind: int) -> None:
    """An abstract name is any bytes; taken it is EADDRINUSE, and free again when its socket is closed."""
    name = world.abstract(b"\0\xff with / and \0 in it")
    sock = world.make(kind)
    sock.bind(name)
    assert sock.getsockname() == name
    assert code(world.make(kind).bind, name) == errno.EADDRINUSE
    world.make(KINDS[KINDS.index(kind) - 1]).bind(name)  # another type has names of its own
    sock.close()
    world.make(kind).bind(name)


@pytest.mark.parametrize("kind", KINDS)
def test_unx_03_autobind(world: UnixWorld, kind: int) -> None:
    """Binding no name gives a zero and five hexadecimal digits, another one to each socket."""
    first, second = world.make(kind), world.make(kind)
    for sock in (first, second):
        sock.bind("")
        name = sock.getsockname()
        assert name[:1] == b"\0"
        assert len(name) == 6
        assert set(name[1:]) <= set(b"0123456789abcdef")
    assert first.getsockname() != second.getsockname()


def test_unx_03_autobind_begins_at_random_and_ends() -> None:
    """Automatic names go on from a random one, and around; when all are taken it is ENOSPC."""
    scheduler = Scheduler(rng=random.Random(7))
    space = UnixSpace(scheduler)
    names = AbstractNames(scheduler.rng, digits=2)
    found = [names.autobind(STREAM, StreamEndpoint(space, names)) for _ in range(256)]
    assert sorted(found) == [b"\0%02x" % number for number in range(256)]
    assert found[0] != b"\x0000"
    with pytest.raises(NetError) as caught:
        names.autobind(STREAM, StreamEndpoint(space, names))
    assert caught.value.errno == errno.ENOSPC
    names.autobind(DGRAM, StreamEndpoint(space, names))  # names of other types are others


def test_unx_03_names_under_a_race() -> None:
    """Threads that bind, find and close one name see it taken once, or free: never two owners."""
    import threading

    with stack_world(virtual=False) as world:
        name = world.abstract()
        owners: list[int] = []
        worst: list[int] = []

        def contend() -> None:
            for _ in range(60):
                sock = world.socket.socket(kernel.AF_UNIX, DGRAM)
                if outcome(sock.bind, name) is None:
                    owners.append(1)
                    worst.append(len(owners))
                    owners.pop()
                else:
                    assert outcome(sock.connect, name) in (None, "ECONNREFUSED")
                sock.close()

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert worst
        assert max(worst) == 1
        world.make(DGRAM).bind(name)


def test_unx_04_rebind(world: UnixWorld) -> None:
    """A bound socket bound to no name stays as it is; to another name is EINVAL, and leaves no node behind."""
    for name in (world.path(), world.abstract()):
        sock = world.make()
        sock.bind(name)
        sock.bind("")
        assert sock.getsockname() == name
        assert code(sock.bind, again := world.path()) == errno.EINVAL
        assert code(world.files.stat, again) == errno.ENOENT
        assert code(sock.bind, world.abstract()) == errno.EINVAL


def test_unx_05_names_of_namespaces(ours: UnixWorld) -> None:
    """Abstract names are of a network namespace; paths are found from all of them."""
    stack = ours.stack
    assert stack is not None
    name, path = ours.abstract(), ours.path()
    ours.listening(name)
    ours.listening(path)
    with stack.acting(Credentials()):
        stack.unshare(CLONE_NEWNET)
        stranger = ours.make()
        assert code(stranger.connect, name) == errno.ECONNREFUSED
        ours.listening(name)  # the same name, a different socket
        stranger.connect(path)
    with stack_world() as other:
        assert code(other.make().connect, path) == errno.ENOENT


@both_connected
def test_unx_06_listen(world: UnixWorld, kind: int) -> None:
    """Listening takes a name, and no connection (EINVAL); again it changes the backlog, which holds one more."""
    assert code(world.make(kind).listen, 1) == errno.EINVAL
    one, _ = world.make_pair(kind)
    one.bind("")
    assert code(one.listen, 1) == errno.EINVAL
    listener = world.listening(kind=kind, backlog=0)
    clients = [world.make(kind) for _ in range(4)]
    assert [outcome(each.connect, listener.getsockname()) for each in clients] == [None, *["EAGAIN"] * 3]
    listener.listen(2)
    assert [outcome(each.connect, listener.getsockname()) for each in clients[1:]] == [None, None, "EAGAIN"]
    assert code(world.make(DGRAM).listen, 1) == errno.EOPNOTSUPP


def test_unx_06_backlog_is_capped(ours: UnixWorld) -> None:
    """The backlog is at most net.core.somaxconn, 4096 unless changed."""
    assert ours.stack is not None
    assert ours.stack.unix.somaxconn == 4096
    ours.stack.unix.somaxconn = 1
    listener = ours.listening(backlog=100)
    outcomes = [outcome(ours.make().connect, listener.getsockname()) for _ in range(3)]
    assert outcomes == [None, None, "EAGAIN"]


@both_connected
def test_unx_07_connect_errors(world: UnixWorld, kind: int) -> None:
    """No file ENOENT; no socket, or nobody listening, ECONNREFUSED; no name, itself EINVAL; connected EISCONN."""
    client = world.make(kind)
    assert code(client.connect, world.path()) == errno.ENOENT
    file = world.path()
    world.touch(file)
    bound = world.make(kind)
    bound.bind(world.path())
    stale = world.listening(kind=kind)
    stale_name = stale.getsockname()
    stale.close()
    for name in (file, world.directory, bound.getsockname(), stale_name, world.abstract()):
        assert code(client.connect, name) == errno.ECONNREFUSED, name
    assert code(client.connect, file + "/x") == errno.ENOTDIR
    assert code(client.connect, "") == errno.EINVAL
    listener = world.listening(kind=kind)
    assert code(listener.connect, listener.getsockname()) == errno.EINVAL
    client.connect(listener.getsockname())
    assert code(client.connect, listener.getsockname()) == errno.EISCONN
    assert code(client.connect, world.path()) == errno.ENOENT  # the other end is looked for first


def test_unx_07_types_do_not_mix(world: UnixWorld) -> None:
    """Another type at a path is EPROTOTYPE, at an abstract name ECONNREFUSED: each type has names of its own."""
    for kind in KINDS:
        for name, answer in ((world.path(), errno.EPROTOTYPE), (world.abstract(), errno.ECONNREFUSED)):
            sock = world.make(kind)
            sock.bind(name)
            for other in set(KINDS) - {kind}:
                assert code(world.make(other).connect, name) == answer


def test_unx_07_full_backlog(world: UnixWorld) -> None:
    """A full backlog is EAGAIN for a connect that may not wait, whatever its time-out."""
    listener = world.listening(backlog=0)
    world.make().connect(listener.getsockname())
    late = world.make()
    assert code(late.connect, listener.getsockname()) == errno.EAGAIN
    late.settimeout(5)
    with pytest.raises(BlockingIOError):
        late.connect(listener.getsockname())
    assert late.connect_ex(listener.getsockname()) == errno.EAGAIN


@both_connected
def test_unx_08_accept(world: UnixWorld, kind: int) -> None:
    """Accepting gives the connector's name, and a socket with the listener's; not listening is EINVAL, empty EAGAIN."""
    assert code(world.make(kind).accept) == errno.EINVAL
    listener = world.listening(kind=kind)
    assert code(listener.accept) == errno.EAGAIN
    nameless, named = world.make(kind), world.make(kind)
    named.bind(name := world.path())
    for each in (nameless, named):
        each.connect(listener.getsockname())
    for expected in ("", name):  # first come first served
        served, address = listener.accept()
        world.keep(served)
        assert address == expected
        assert served.getsockname() == listener.getsockname()
        assert served.getpeername() == expected
    assert code(named.accept) == errno.EINVAL
    listener.shutdown(kernel.SHUT_RD)
    assert code(listener.accept) == errno.EAGAIN  # a call that may wait gets EINVAL: test_unx_08_blocking_accept


@both_connected
def test_unx_09_send(world: UnixWorld, kind: int) -> None:
    """Unconnected ENOTCONN, also for nothing; after the end of either side EPIPE; the backlog takes bytes."""
    fresh = world.make(kind)
    for data in (b"x", b""):
        assert code(fresh.send, data) == errno.ENOTCONN
    listener = world.listening(kind=kind)
    assert code(listener.send, b"x") == errno.ENOTCONN
    client = world.make(kind)
    client.connect(listener.getsockname())
    assert client.send(b"early") == 5
    for end in ("peer closed", "peer deaf", "mute"):
        one, other = world.make_pair(kind)
        if end == "peer closed":
            other.close()
        else:
            (other if end == "peer deaf" else one).shutdown(kernel.SHUT_RD if end == "peer deaf" else kernel.SHUT_WR)
        for data in (b"x", b""):
            assert code(one.send, data) == errno.EPIPE, end


def test_unx_09_addresses_of_sends(world: UnixWorld) -> None:
    """sendto: a stream is EOPNOTSUPP, connected EISCONN; seqpacket is ENOTCONN, and connected ignores the address."""
    assert code(world.make().sendto, b"x", world.path()) == errno.EOPNOTSUPP
    assert code(world.make(SEQPACKET).sendto, b"x", world.path()) == errno.ENOTCONN
    one, _ = world.make_pair()
    assert code(one.sendto, b"x", world.path()) == errno.EISCONN
    one, other = world.make_pair(SEQPACKET)
    assert one.sendto(b"x", world.path()) == 1
    assert other.recv(9) == b"x"


def test_unx_09_nothing_on_a_stream(world: UnixWorld) -> None:
    """Zero bytes on a stream are no event, and what was attached is lost; a seqpacket record may be empty."""
    one, other = world.make_pair()
    rights = (kernel.SOL_SOCKET, kernel.SCM_RIGHTS, one.fileno().to_bytes(4, "little"))
    assert one.sendmsg([b""], [rights]) == 0
    assert code(other.recv, 9) == errno.EAGAIN
    one, other = world.make_pair(SEQPACKET)
    assert one.send(b"") == 0
    assert other.recv(9) == b""
    assert code(other.recv, 9) == errno.EAGAIN


def test_unx_09_sigpipe(world: UnixWorld) -> None:
    """A stream's EPIPE comes with SIGPIPE, unless MSG_NOSIGNAL; a record's does not."""
    import signal

    seen: list[int] = []
    old = None
    if world.stack is None:
        old = signal.signal(signal.SIGPIPE, lambda number, frame: seen.append(1))
    else:
        world.stack.on_sigpipe = lambda: seen.append(1)
    try:
        for kind, flags, signals in ((STREAM, 0, 1), (STREAM, kernel.MSG_NOSIGNAL, 0), (SEQPACKET, 0, 0)):
            one, other = world.make_pair(kind)
            other.close()
            seen.clear()
            assert code(one.send, b"x", flags) == errno.EPIPE
            assert len(seen) == signals
    finally:
        if old is not None:
            signal.signal(signal.SIGPIPE, old)


def test_unx_10_recv_unconnected(world: UnixWorld) -> None:
    """Without a connection a stream is EINVAL, seqpacket ENOTCONN; so is a listener."""
    for kind, answer in ((STREAM, errno.EINVAL), (SEQPACKET, errno.ENOTCONN)):
        for sock in (world.make(kind), world.listening(kind=kind)):
            assert code(sock.recv, 9) == answer
            assert code(sock.recvfrom, 0) == answer


@both_connected
def test_unx_10_recv(world: UnixWorld, kind: int) -> None:
    """Empty is EAGAIN, for zero bytes as well; after the peer's close what it sent, then the end."""
    one, other = world.make_pair(kind)
    assert code(other.recv, 9) == errno.EAGAIN
    assert code(other.recvfrom, 0) == errno.EAGAIN
    one.send(b"last")
    one.close()
    assert other.recv(9) == b"last"
    assert other.recv(9) == b""
    assert other.recv(9) == b""


@both_connected
def test_unx_10_reset(world: UnixWorld, kind: int) -> None:
    """A peer that closes with something unread gives ECONNRESET once, then the end; so does an unaccepted one."""
    one, other = world.make_pair(kind)
    one.send(b"x")
    other.close()
    assert world.bits(one) == IN | OUT | RDHUP | HUP | ERR
    assert code(one.recv, 9) == errno.ECONNRESET
    assert one.recv(9) == b""
    listener = world.listening(kind=kind)
    client = world.make(kind)
    client.connect(listener.getsockname())
    listener.close()
    assert client.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNRESET
    assert client.recv(9) == b""


def test_unx_10_names_of_senders(world: UnixWorld) -> None:
    """recvfrom tells the name of a peer that has one, None else."""
    client, served = world.connected()
    client.send(b"x")
    served.send(b"y")
    assert served.recvfrom(9) == (b"x", None)
    assert client.recvfrom(9) == (b"y", served.getsockname())
