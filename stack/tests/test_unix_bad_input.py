"""Bad input on Unix sockets: the same exception class and errno as the kernel's sockets give through CPython."""

from __future__ import annotations

import socket as kernel
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.tests.unix_world import KINDS, SO_PEEK_OFF, SO_PEERGROUPS, UnixWorld, kernel_world, stack_world

SOL_SOCKET = kernel.SOL_SOCKET
MISUSES: dict[str, Callable[[UnixWorld, Any], Any]] = {
    "bind a tuple": lambda world, sock: sock.bind(("127.0.0.1", 80)),
    "bind an int": lambda world, sock: sock.bind(5),
    "bind None": lambda world, sock: sock.bind(None),
    "bind a list": lambda world, sock: sock.bind([1, 2]),
    "bind too long": lambda world, sock: sock.bind("x" * 200),
    "bind a zero in str": lambda world, sock: sock.bind(world.path() + "\0x"),
    "bind surrogates": lambda world, sock: sock.bind(world.path() + "\udcff"),
    "bind unencodable": lambda world, sock: sock.bind("\ud800"),
    "bind a bytearray": lambda world, sock: sock.bind(bytearray(world.path().encode())),
    "bind words": lambda world, sock: sock.bind(memoryview(world.path().encode().ljust(80, b"/")).cast("H")),
    "connect a tuple": lambda world, sock: sock.connect(("127.0.0.1", 80)),
    "connect nothing": lambda world, sock: sock.connect(b""),
    "connect_ex a tuple": lambda world, sock: sock.connect_ex(("127.0.0.1", 80)),
    "connect_ex no file": lambda world, sock: sock.connect_ex(world.path()),
    "sendto a tuple": lambda world, sock: sock.sendto(b"x", ("127.0.0.1", 80)),
    "sendto a str": lambda world, sock: sock.sendto("x", world.path()),
    "sendto None": lambda world, sock: sock.sendto(b"x", None),
    "sendto flags": lambda world, sock: sock.sendto(b"x", "flags", world.path()),
    "send a str": lambda world, sock: sock.send("x"),
    "send unconnected": lambda world, sock: sock.send(b"x"),
    "sendmsg a bytes": lambda world, sock: sock.sendmsg(b"x"),
    "sendmsg bad level": lambda world, sock: sock.sendmsg([b"x"], [("a", 1, b"")]),
    "sendmsg two": lambda world, sock: sock.sendmsg([b"x"], [(1, 1)]),
    "sendmsg a tuple": lambda world, sock: sock.sendmsg([b"x"], [], 0, ("127.0.0.1", 80)),
    "recv negative": lambda world, sock: sock.recv(-1),
    "recv unconnected": lambda world, sock: sock.recv(1),
    "recvmsg negative room": lambda world, sock: sock.recvmsg(1, -1),
    "recv into bytes": lambda world, sock: sock.recv_into(b"xx"),
    "recvfrom_into too much": lambda world, sock: sock.recvfrom_into(bytearray(2), 3),
    "shutdown 7": lambda world, sock: sock.shutdown(7),
    "listen unbound": lambda world, sock: sock.listen(),
    "listen negative": lambda world, sock: (sock.bind(""), sock.listen(-5)),
    "accept unbound": lambda world, sock: sock.accept(),
    "getpeername": lambda world, sock: sock.getpeername(),
    "an unknown level": lambda world, sock: sock.getsockopt(6, 1),
    "set an unknown level": lambda world, sock: sock.setsockopt(6, 1, 1),
    "an unknown option": lambda world, sock: sock.getsockopt(SOL_SOCKET, 4000),
    "set an unknown option": lambda world, sock: sock.setsockopt(SOL_SOCKET, 4000, 1),
    "SO_REUSEPORT": lambda world, sock: sock.setsockopt(SOL_SOCKET, kernel.SO_REUSEPORT, 1),
    "SO_REUSEPORT read": lambda world, sock: sock.getsockopt(SOL_SOCKET, kernel.SO_REUSEPORT),
    "SO_ZEROCOPY": lambda world, sock: sock.setsockopt(SOL_SOCKET, 60, 1),
    "SO_PASSCRED short": lambda world, sock: sock.setsockopt(SOL_SOCKET, kernel.SO_PASSCRED, b"\1"),
    "SO_PASSCRED read short": lambda world, sock: sock.getsockopt(SOL_SOCKET, kernel.SO_PASSCRED, 1),
    "SO_PEERCRED read short": lambda world, sock: sock.getsockopt(SOL_SOCKET, kernel.SO_PEERCRED, 5),
    "SO_PEERCRED set": lambda world, sock: sock.setsockopt(SOL_SOCKET, kernel.SO_PEERCRED, b"\1" * 12),
    "SO_PEERGROUPS": lambda world, sock: sock.getsockopt(SOL_SOCKET, SO_PEERGROUPS),
    "SO_PEEK_OFF short": lambda world, sock: sock.setsockopt(SOL_SOCKET, SO_PEEK_OFF, b"\1"),
    "SO_PEERNAME": lambda world, sock: sock.getsockopt(SOL_SOCKET, 28, 110),
    "SO_SNDBUF huge": lambda world, sock: (
        sock.setsockopt(SOL_SOCKET, kernel.SO_SNDBUF, -1),
        sock.getsockopt(SOL_SOCKET, kernel.SO_SNDBUF) > 1 << 20,
    ),
    "SO_ERROR set": lambda world, sock: sock.setsockopt(SOL_SOCKET, kernel.SO_ERROR, 1),
    "SO_PROTOCOL": lambda world, sock: sock.getsockopt(SOL_SOCKET, 38),
    "SO_DOMAIN": lambda world, sock: sock.getsockopt(SOL_SOCKET, 39),
    "closed": lambda world, sock: (sock.close(), sock.bind(world.path())),
    "closed send": lambda world, sock: (sock.close(), sock.send(b"x")),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[UnixWorld, UnixWorld]]:
    directory: Path = tmp_path_factory.mktemp("unix")
    with kernel_world(directory) as theirs, stack_world() as ours:
        yield theirs, ours


def answer(call: Callable[..., Any], *args: Any) -> Any:
    try:
        found = call(*args)
    except Exception as error:  # noqa: BLE001 - what class it is, is the question
        return type(error), getattr(error, "errno", None)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_answered_as_by_the_kernel(worlds: tuple[UnixWorld, UnixWorld], name: str, kind: int) -> None:
    theirs, ours = worlds
    misuse = MISUSES[name]
    assert answer(misuse, ours, ours.make(kind)) == answer(misuse, theirs, theirs.make(kind))


@pytest.mark.parametrize(
    "arguments",
    [(1, 4), (1, 3), (1, 0), (1, 9), (1, 1, 1), (1, 1, 2), (1, 2, 17), (1, 0x40), (1, 1 | kernel.SOCK_NONBLOCK)],
)
def test_making_is_answered_as_by_the_kernel(worlds: tuple[UnixWorld, UnixWorld], arguments: tuple[int, ...]) -> None:
    """CORE-02: type and protocol are checked; SOCK_RAW is a datagram socket."""

    def make(world: UnixWorld) -> Any:
        with world.socket.socket(*arguments) as sock:
            return sock.type, sock.getblocking(), sock.getsockopt(SOL_SOCKET, kernel.SO_TYPE)

    theirs, ours = worlds
    assert answer(make, ours) == answer(make, theirs)


def test_pairs_are_unix_only(worlds: tuple[UnixWorld, UnixWorld]) -> None:
    """CORE-03: socketpair of another family is EOPNOTSUPP."""
    theirs, ours = worlds
    for family in (kernel.AF_INET, kernel.AF_INET6):
        assert answer(ours.socket.socketpair, family) == answer(theirs.socket.socketpair, family)


@pytest.mark.parametrize("cut", [0, 1, 4, 11, 13, 16])
def test_cut_control_messages(worlds: tuple[UnixWorld, UnixWorld], cut: int) -> None:
    """CTRL-01: A credentials message of a wrong length is EINVAL."""

    def send(world: UnixWorld) -> Any:
        one, _ = world.make_pair()
        data = struct.pack("@5i", *[0] * 5)[:cut]
        return one.sendmsg([b"x"], [(SOL_SOCKET, kernel.SCM_CREDENTIALS, data)])

    theirs, ours = worlds
    assert answer(send, ours) == answer(send, theirs)
