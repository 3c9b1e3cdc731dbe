"""The system calls made with the GIL held do what the ones of `os` and `socket` do."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from vhost_user import syscalls


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def test_receives_bytes_and_no_more_than_asked_for(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"0123456789")
    receiver = syscalls.Receiver(8)
    assert receiver.receive(ours.fileno(), 3) == (b"012", [], False)
    assert receiver.receive(ours.fileno(), 1000) == (b"3456789", [], False)


def test_capacity_bounds_what_is_asked_for(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(bytes(100))
    assert len(syscalls.Receiver(8).receive(ours.fileno(), 100)[0]) == 8


@pytest.mark.parametrize("count", [1, 2, 3, 8, 252, 253])
def test_receives_descriptors_close_on_exec(pair: Pair, count: int) -> None:
    ours, theirs = pair
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()] * count))]
    theirs.sendmsg([b"x"], rights)
    data, fds, truncated = syscalls.Receiver(8).receive(ours.fileno(), 8)
    assert (data, len(fds), truncated) == (b"x", count, False)
    for fd in fds:
        assert os.path.sameopenfile(fd, theirs.fileno())
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(fd)


def test_other_control_messages_are_skipped(pair: Pair) -> None:
    """Credentials come first when the socket asks for them; the descriptors behind them must still be found."""
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))])
    _, fds, _ = syscalls.Receiver(8).receive(ours.fileno(), 8)
    assert len(fds) == 2
    for fd in fds:
        os.close(fd)


def test_nothing_there_and_nobody_there(pair: Pair) -> None:
    ours, theirs = pair
    receiver = syscalls.Receiver(8)
    with pytest.raises(BlockingIOError):
        receiver.receive(ours.fileno(), 8)
    theirs.close()
    assert receiver.receive(ours.fileno(), 8) == (b"", [], False)
    with pytest.raises(OSError, match="Broken pipe"):
        syscalls.send(ours.fileno(), b"x")


def test_send_never_waits(pair: Pair) -> None:
    ours, _ = pair
    ours.setblocking(True)

    def flood() -> None:
        while True:
            assert 0 < syscalls.send(ours.fileno(), bytes(4096)) <= 4096

    with pytest.raises(BlockingIOError):
        flood()


def test_kind_names_what_a_descriptor_is(pair: Pair) -> None:
    event = os.eventfd(0)
    assert syscalls.kind(event) == "anon_inode:[eventfd]"
    assert syscalls.kind(pair[0].fileno()).startswith("socket:")
    syscalls.close(event)
    with pytest.raises(FileNotFoundError):
        syscalls.kind(event)


def test_set_nonblocking_and_signal() -> None:
    event = os.eventfd(0)
    syscalls.set_nonblocking(event)
    assert not os.get_blocking(event)
    syscalls.signal(event)
    syscalls.signal(event)
    assert os.eventfd_read(event) == 2
    os.eventfd_write(event, 0xFFFF_FFFF_FFFF_FFFE)
    syscalls.signal(event)  # full: stays full, does not wait
    syscalls.close(event)


def test_failures_are_os_errors() -> None:
    for call in (lambda: syscalls.close(-1), lambda: syscalls.set_nonblocking(-1), lambda: syscalls.send(-1, b"")):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            call()
        assert caught.value.errno == errno.EBADF
