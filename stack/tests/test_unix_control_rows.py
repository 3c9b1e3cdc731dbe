"""Rows CTRL-01..CTRL-10 of the socket semantics: files and identities, on the kernel's AF_UNIX and on a Stack's.

Differences: a pidfd of a Stack's socket is of the process the Stack lives in. SO_PASSRIGHTS is Linux 6.16's, and since
then a listener's SO_PASSCRED counts at connect (before, at accept). SO_PASSPIDFD is Linux 6.5's.
"""

from __future__ import annotations

import errno
import gc
import os
import socket as kernel
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.tests.kernel_twin import code
from stack.tests.unix_world import (
    CONNECTED_KINDS,
    DGRAM,
    KERNEL,
    KINDS,
    SCM_PIDFD,
    SEQPACKET,
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
    SO_PEERGROUPS,
    SO_PEERPIDFD,
    STREAM,
    UnixWorld,
    identity,
    kernel_world,
    outcome,
    stack_world,
)

SOL_SOCKET = kernel.SOL_SOCKET
SCM_RIGHTS = kernel.SCM_RIGHTS
SCM_CREDENTIALS = kernel.SCM_CREDENTIALS


DIFFERENCES = {
    "CTRL-01": "the headers of control messages are CPython's: what a malformed one does cannot be asked",
    "CTRL-02": "Linux collects circles of sockets on their way when it likes, a Stack at the end of the call",
    "CTRL-03": "SO_PASSRIGHTS is Linux 6.16's",
    "CTRL-04": "the processes there are, are those that act for the Stack",
    "CTRL-07": "before Linux 6.16 what counts is SO_PASSCRED at accept",
    "CTRL-10": "a pidfd is of the process the Stack lives in; Linux before 6.5 has none",
}


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnixWorld]:
    with kernel_world(tmp_path) if request.param == "kernel" else stack_world() as made:
        yield made


def rights(*fds: int) -> tuple[int, int, bytes]:
    return SOL_SOCKET, SCM_RIGHTS, struct.pack(f"@{len(fds)}i", *fds)


def files(messages: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of the SCM_RIGHTS among `messages`."""
    found: list[int] = []
    for level, kind, data in messages:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            found += struct.unpack(f"@{len(data) // 4}i", data)
    return found


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def open_count() -> int:
    gc.collect()  # what others left goes now, not in between
    return len(os.listdir("/proc/self/fd"))


def test_ctrl_01_layout(world: UnixWorld) -> None:
    """A credentials message of another length is EINVAL; files are as many ints as there are whole ones."""
    one, other = world.make_pair()
    for data in (b"", identity()[:8], identity() + b"\0\0\0\0"):
        assert code(one.sendmsg, [b"x"], [(SOL_SOCKET, SCM_CREDENTIALS, data)]) == errno.EINVAL
    assert one.sendmsg([b"x"], [(SOL_SOCKET, SCM_RIGHTS, b"")]) == 1
    assert one.sendmsg([b"x"], [(SOL_SOCKET, SCM_RIGHTS, b"\1\0\0")]) == 1
    assert other.recvmsg(9, 100) == (b"xx", [], 0, None)


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_02_files(world: UnixWorld, kind: int, pipe: tuple[int, int]) -> None:
    """Files travel with a message: descriptors of the kernel's, and sockets, which are the same open socket there."""
    one, other = world.make_pair(kind)
    cargo, far = world.make_pair()
    assert one.sendmsg([b"x"], [rights(pipe[0]), rights(cargo.fileno())]) == 1
    cargo.close()
    data, messages, flags, _ = other.recvmsg(9, 100)
    assert (data, flags, len(messages)) == (b"x", 0, 1)  # several are one
    read, sock = files(messages)
    os.write(pipe[1], b"through")
    assert os.read(read, 9) == b"through"
    os.close(read)
    arrived = world.keep(world.socket.socket(fileno=sock))
    far.send(b"still there")
    assert arrived.recv(99) == b"still there"
    assert arrived.type == STREAM


def test_ctrl_02_limits(world: UnixWorld, pipe: tuple[int, int]) -> None:
    """253 files are the most, 254 EINVAL, together too; what is no descriptor is EBADF; nothing is sent then."""
    one, other = world.make_pair()
    assert code(one.sendmsg, [b"x"], [rights(*[pipe[0]] * 254)]) == errno.EINVAL
    assert code(one.sendmsg, [b"x"], [rights(*[pipe[0]] * 200), rights(*[pipe[0]] * 54)]) == errno.EINVAL
    for bad in (-1, 1 << 20):
        assert code(one.sendmsg, [b"x"], [rights(pipe[0], bad)]) == errno.EBADF
    assert code(other.recv, 9) == errno.EAGAIN
    before = open_count()
    assert one.sendmsg([b"x"], [rights(*[pipe[0]] * 253)]) == 1
    received = files(other.recvmsg(9, 2000)[1])
    assert len(received) == 253
    assert open_count() == before + 253
    for fd in received:
        os.close(fd)


def test_ctrl_02_too_many_on_their_way(pipe: tuple[int, int]) -> None:
    """More files on their way than RLIMIT_NOFILE are ETOOMANYREFS, but with CAP_SYS_RESOURCE or CAP_SYS_ADMIN."""
    from stack import Credentials

    with stack_world(credentials=Credentials()) as world:
        assert world.stack is not None
        world.stack.unix.in_flight.limit = 4
        one, other = world.make_pair(DGRAM)
        with world.stack.acting(Credentials.user(1000)):
            outcomes = [outcome(one.sendmsg, [b"x"], [rights(pipe[0], pipe[0])]) for _ in range(4)]
            assert outcomes == [1, 1, 1, "ETOOMANYREFS"]  # it is looked at before they are counted
        assert one.sendmsg([b"x"], [rights(pipe[0])]) == 1
        assert world.stack.unix.in_flight.of_user(1000) == 6
        other.recv(9)
        assert world.stack.unix.in_flight.of_user(1000) == 4
        with world.stack.acting(Credentials.user(1000)):
            assert one.sendmsg([b"x"], [rights(pipe[0])]) == 1


@pytest.mark.parametrize(("room", "count"), [(0, 0), (16, 0), (20, 1), (24, 2), (28, 3), (100, 3)])
def test_ctrl_03_room(world: UnixWorld, pipe: tuple[int, int], room: int, count: int) -> None:
    """As many files as the buffer has room for arrive, the rest are closed, and MSG_CTRUNC tells."""
    one, other = world.make_pair()
    before = open_count()
    one.sendmsg([b"x"], [rights(pipe[0], pipe[0], pipe[0])])
    data, messages, flags, _ = other.recvmsg(9, room)
    received = files(messages)
    assert (data, len(received)) == (b"x", count)
    assert flags == (0 if count == 3 else kernel.MSG_CTRUNC)
    for fd in received:
        os.close(fd)
    assert open_count() <= before  # what others left may have gone meanwhile


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_03_read_without_room(world: UnixWorld, kind: int, pipe: tuple[int, int]) -> None:
    """A receive call that takes no control messages closes what comes along."""
    one, other = world.make_pair(kind)
    before = open_count()
    one.sendmsg([b"x"], [rights(pipe[0])])
    assert other.recv(9) == b"x"
    assert open_count() <= before  # what others left may have gone meanwhile
    one.sendmsg([b"x"], [rights(pipe[0])])
    other.close()
    assert open_count() <= before


def test_ctrl_03_a_read_stops_behind_files(world: UnixWorld, pipe: tuple[int, int]) -> None:
    """A stream's read may take what was before a message with files, and stops after it."""
    one, other = world.make_pair()
    one.send(b"a")
    one.sendmsg([b"bc"], [rights(pipe[0])])
    one.send(b"d")
    data, messages, _, _ = other.recvmsg(2, 100)
    assert data == b"ab"
    (first,) = files(messages)  # with the first byte of its message
    assert other.recvmsg(99, 100) == (b"cd", [], 0, None)
    os.close(first)
    one.sendmsg([b"x"], [rights(pipe[0])])
    one.sendmsg([b"y"], [rights(pipe[0])])
    for expected in (b"x", b"y"):
        data, messages, _, _ = other.recvmsg(99, 100)
        assert data == expected
        os.close(files(messages)[0])


def test_ctrl_03_peek(world: UnixWorld, pipe: tuple[int, int]) -> None:
    """Every peek brings the files anew, and leaves them."""
    one, other = world.make_pair()
    cargo, far = world.make_pair()
    one.sendmsg([b"x"], [rights(pipe[0], cargo.fileno())])
    cargo.close()
    for flags in (kernel.MSG_PEEK, kernel.MSG_PEEK, 0):
        data, messages, _, _ = other.recvmsg(9, 100, flags)
        assert data == b"x"
        fd, sock = files(messages)
        os.close(fd)
        with world.socket.socket(fileno=sock) as arrived:
            far.send(b"y")
            assert arrived.recv(9) == b"y"
    assert code(other.recv, 9) == errno.EAGAIN
    assert far.recv(9) == b""  # that was the last of it


def test_ctrl_03_close_on_exec(world: UnixWorld, pipe: tuple[int, int]) -> None:
    """MSG_CMSG_CLOEXEC sets the flag on what arrives, and comes back; without it descriptors are inherited."""
    one, other = world.make_pair()
    for flags in (kernel.MSG_CMSG_CLOEXEC, 0):
        one.sendmsg([b"x"], [rights(pipe[0])])
        _, messages, out, _ = other.recvmsg(9, 100, flags)
        (fd,) = files(messages)
        assert out == flags
        assert os.get_inheritable(fd) is not bool(flags)
        os.close(fd)


def test_ctrl_03_lowest_free(world: UnixWorld, pipe: tuple[int, int]) -> None:
    """Files of the kernel take the lowest free descriptors, in order, those given back while it was on its way too."""
    one, other = world.make_pair()
    one.fileno()
    gaps = [os.dup(pipe[0]) for _ in range(2)]
    one.sendmsg([b"x"], [rights(*gaps)])
    for gap in gaps:
        os.close(gap)
    received = files(other.recvmsg(9, 100)[1])
    assert received == gaps
    for fd in received:
        os.close(fd)


def test_ctrl_03_no_descriptors_left(world: UnixWorld, pipe: tuple[int, int]) -> None:
    """When the process has no descriptors left, fewer files arrive, and MSG_CTRUNC tells; the others are closed."""
    import resource

    one, other = world.make_pair()
    cargo, far = world.make_pair()
    one.sendmsg([b"x"], [rights(*[cargo.fileno()] * 3)])
    cargo.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.dup(pipe[0])]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 2, hard))
        while outcome(lambda: held.append(os.dup(pipe[0]))) is None:
            pass
        os.close(held.pop())
        data, messages, flags, _ = other.recvmsg(9, 100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    received = files(messages)
    assert (data, flags) == (b"x", kernel.MSG_CTRUNC)
    assert len(received) < 3
    for fd in received:
        with world.socket.socket(fileno=fd):
            pass
    assert far.recv(9) == b""


@pytest.mark.skipif(KERNEL < (6, 16), reason="SO_PASSRIGHTS is Linux 6.16's")
def test_ctrl_03_receiver_that_takes_no_files(world: UnixWorld, pipe: tuple[int, int]) -> None:
    """SO_PASSRIGHTS off: sending files there is EPERM, other messages arrive."""
    for kind in KINDS:
        one, other = world.make_pair(kind)
        assert other.getsockopt(SOL_SOCKET, SO_PASSRIGHTS) == 1
        other.setsockopt(SOL_SOCKET, SO_PASSRIGHTS, 0)
        assert code(one.sendmsg, [b"x"], [rights(pipe[0])]) == errno.EPERM
        assert one.send(b"y") == 1


def test_ctrl_04_credentials_sent(world: UnixWorld) -> None:
    """One's own ids may be sent; with privileges any ids, and any process there is, ESRCH else."""
    one, other = world.make_pair(DGRAM)
    other.setsockopt(SOL_SOCKET, kernel.SO_PASSCRED, 1)

    def send(ucred: bytes) -> Any:
        return outcome(one.sendmsg, [b"x"], [(SOL_SOCKET, SCM_CREDENTIALS, ucred)])

    assert send(identity()) == 1
    privileged = os.getuid() == 0
    assert send(identity(uid=12345, gid=54321)) == (1 if privileged else "EPERM")
    assert send(identity(pid=4_000_000)) == ("ESRCH" if privileged else "EPERM")
    assert other.recvmsg(9, 100)[1] == [(SOL_SOCKET, SCM_CREDENTIALS, identity())]
    if privileged:
        assert other.recvmsg(9, 100)[1] == [(SOL_SOCKET, SCM_CREDENTIALS, identity(uid=12345, gid=54321))]


def test_ctrl_05_credentials_received(world: UnixWorld) -> None:
    """With SO_PASSCRED each message tells who sent it; sent while nobody asked, it is nobody: 0, 65534, 65534."""
    for kind in KINDS:
        one, other = world.make_pair(kind)
        one.send(b"before")
        other.setsockopt(SOL_SOCKET, kernel.SO_PASSCRED, 1)
        one.send(b"after")
        told = []
        for size in (6, 5):
            data, messages, flags, _ = other.recvmsg(size, 100)
            assert len(data) == size
            assert flags == 0
            told += messages
        assert told == [
            (SOL_SOCKET, SCM_CREDENTIALS, identity(0, 65534, 65534)),
            (SOL_SOCKET, SCM_CREDENTIALS, identity()),
        ]
        one.send(b"x")
        assert other.recvmsg(9)[2] == kernel.MSG_CTRUNC  # no room for it


def test_ctrl_05_bytes_of_different_senders_stay_apart(world: UnixWorld) -> None:
    """A stream's read does not join bytes that were sent with different credentials."""
    one, other = world.make_pair()
    one.send(b"unknown")
    other.setsockopt(SOL_SOCKET, kernel.SO_PASSCRED, 1)
    one.send(b"known")
    assert other.recvmsg(99, 100)[0] == b"unknown"
    assert other.recvmsg(99, 100)[0] == b"known"
    one.send(b"a")
    one.send(b"b")
    assert other.recvmsg(99, 100)[0] == b"ab"


def test_ctrl_06_other_types(world: UnixWorld) -> None:
    """Another type of SOL_SOCKET is EINVAL, another level passes unseen."""
    for kind in KINDS:
        one, other = world.make_pair(kind)
        assert code(one.sendmsg, [b"x"], [(SOL_SOCKET, 99, bytes(4))]) == errno.EINVAL
        assert one.sendmsg([b"x"], [(kernel.IPPROTO_IP, 99, bytes(4))]) == 1
        assert other.recvmsg(9, 100) == (b"x", [], 0, None)


@pytest.mark.skipif(KERNEL < (6, 16), reason="older kernels look at accept")
@pytest.mark.parametrize("kind", CONNECTED_KINDS)
def test_ctrl_07_inheritance(world: UnixWorld, kind: int) -> None:
    """An accepted socket has the SO_PASSCRED its listener had when it connected."""
    listener = world.make(kind)
    listener.bind("")

    def passes() -> int:
        return int(world.keep(listener.accept()[0]).getsockopt(SOL_SOCKET, kernel.SO_PASSCRED))

    def switch(on: int) -> None:
        listener.setsockopt(SOL_SOCKET, kernel.SO_PASSCRED, on)

    switch(1)
    listener.listen(5)
    switch(0)
    world.make(kind).connect(listener.getsockname())
    assert passes() == 0
    switch(1)
    world.make(kind).connect(listener.getsockname())
    switch(0)
    assert passes() == 1
    world.make(kind).connect(listener.getsockname())
    switch(1)
    assert passes() == 0


def test_ctrl_08_peercred(world: UnixWorld) -> None:
    """SO_PEERCRED: both ends of a connection or pair, a listener itself, nobody else: 0, -1, -1; it cannot be set."""

    def peer(sock: Any) -> bytes:
        return bytes(sock.getsockopt(SOL_SOCKET, kernel.SO_PEERCRED, 12))

    nobody = struct.pack("=iii", 0, -1, -1)
    for kind in CONNECTED_KINDS:
        fresh = world.make(kind)
        assert peer(fresh) == nobody
        client, served = world.connected(kind)
        assert peer(client) == peer(served) == identity()
        assert peer(world.listening(kind=kind)) == identity()
        assert code(fresh.setsockopt, SOL_SOCKET, kernel.SO_PEERCRED, identity()) == errno.ENOPROTOOPT
    receiver, sender = world.make(DGRAM), world.make(DGRAM)
    receiver.bind("")
    sender.connect(receiver.getsockname())
    assert peer(sender) == nobody
    assert peer(world.make_pair(DGRAM)[0]) == identity()


def test_ctrl_08_whose_credentials() -> None:
    """The connector sees who listened last, the acceptor who connected, whoever accepts."""
    from stack import Credentials

    with stack_world() as world:
        assert world.stack is not None
        acting = world.stack.acting
        with acting(Credentials.user(1, 11, pid=101)):
            listener = world.listening(world.abstract())
        with acting(Credentials.user(2, 22, pid=102)):
            listener.listen(5)
        with acting(Credentials.user(3, 33, pid=103)):
            client = world.make()
            client.connect(listener.getsockname())
        served = world.keep(listener.accept()[0])
        assert client.getsockopt(SOL_SOCKET, kernel.SO_PEERCRED, 12) == identity(102, 2, 22)
        assert served.getsockopt(SOL_SOCKET, kernel.SO_PEERCRED, 12) == identity(103, 3, 33)


def test_ctrl_09_peergroups(world: UnixWorld) -> None:
    """SO_PEERGROUPS: the peer's supplementary groups; unconnected ENODATA, no room ERANGE; it cannot be set."""
    one, _ = world.make_pair()
    expected = b"".join(struct.pack("=I", gid) for gid in os.getgroups())
    assert one.getsockopt(SOL_SOCKET, SO_PEERGROUPS, 1024) == expected
    for kind in KINDS:
        assert code(world.make(kind).getsockopt, SOL_SOCKET, SO_PEERGROUPS, 64) == errno.ENODATA
    assert code(one.setsockopt, SOL_SOCKET, SO_PEERGROUPS, bytes(4)) == errno.ENOPROTOOPT


def test_ctrl_09_groups_of_others() -> None:
    """The groups are those of the moment of connecting; too little room is ERANGE."""
    from stack import Credentials

    with stack_world() as world:
        assert world.stack is not None
        with world.stack.acting(Credentials(5, 5, (10, 20, 30))):
            one, _ = world.make_pair()
        assert one.getsockopt(SOL_SOCKET, SO_PEERGROUPS, 64) == struct.pack("=3I", 10, 20, 30)
        assert code(one.getsockopt, SOL_SOCKET, SO_PEERGROUPS, 8) == errno.ERANGE


@pytest.mark.skipif(KERNEL < (6, 5), reason="pidfds over sockets are Linux 6.5's")
def test_ctrl_10_pidfd(world: UnixWorld) -> None:
    """SO_PEERPIDFD and SCM_PIDFD: descriptors of the peer's process; unconnected ENODATA."""
    for kind in CONNECTED_KINDS:
        assert code(world.make(kind).getsockopt, SOL_SOCKET, SO_PEERPIDFD) == errno.ENODATA
        one, other = world.make_pair(kind)
        assert _process(one.getsockopt(SOL_SOCKET, SO_PEERPIDFD)) == os.getpid()
        other.setsockopt(SOL_SOCKET, SO_PASSPIDFD, 1)
        one.send(b"x")
        data, messages, flags, _ = other.recvmsg(9, 100)
        assert (data, flags) == (b"x", 0)
        ((level, number, raw),) = messages
        assert (level, number) == (SOL_SOCKET, SCM_PIDFD)
        assert _process(struct.unpack("@i", raw)[0]) == os.getpid()


def _process(pidfd: int) -> int:
    """The process of a pidfd, which is closed."""
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
    finally:
        os.close(pidfd)


def test_ctrl_10_passsec(world: UnixWorld) -> None:
    """SO_PASSSEC is a switch without effect where there is no security module."""
    one, _ = world.make_pair()
    assert one.getsockopt(SOL_SOCKET, kernel.SO_PASSSEC if hasattr(kernel, "SO_PASSSEC") else 34) == 0
    one.setsockopt(SOL_SOCKET, 34, 1)
    assert one.getsockopt(SOL_SOCKET, 34) == 1


def test_ctrl_10_order(world: UnixWorld, pipe: tuple[int, int]) -> None:
    """With credentials and files, credentials come first; room for them alone leaves the files out."""
    for room in (100, 40, 32):
        one, other = world.make_pair(SEQPACKET)
        other.setsockopt(SOL_SOCKET, kernel.SO_PASSCRED, 1)
        one.sendmsg([b"x"], [rights(pipe[0])])
        _, messages, flags, _ = other.recvmsg(9, room)
        assert messages[0] == (SOL_SOCKET, SCM_CREDENTIALS, identity())
        received = files(messages)
        assert len(received) == (1 if room == 100 else 0)
        assert flags == (0 if received else kernel.MSG_CTRUNC)
        for fd in received:
            os.close(fd)
