"""The two worlds that tests of Unix sockets run in: the kernel's, in a temporary directory, and a Stack's."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import socket as kernel
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stack import Credentials, Network, Stack
from stack.socket.poll import ERR, HUP, PRI
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import ASKED, World

AF_UNIX: Final = kernel.AF_UNIX
STREAM: Final = kernel.SOCK_STREAM
DGRAM: Final = kernel.SOCK_DGRAM
SEQPACKET: Final = kernel.SOCK_SEQPACKET
KINDS: Final = (STREAM, SEQPACKET, DGRAM)
CONNECTED_KINDS: Final = (STREAM, SEQPACKET)

FIONREAD: Final = 0x541B
SIOCOUTQ: Final = 0x5411
SIOCATMARK: Final = 0x8905

# <asm-generic/socket.h>
SO_PEEK_OFF: Final = 42
SO_PEERGROUPS: Final = 59
SO_PASSPIDFD: Final = 76
SO_PEERPIDFD: Final = 77
SO_PASSRIGHTS: Final = 83
SCM_PIDFD: Final = 4

#: (major, minor) of the kernel that runs the tests.
KERNEL: Final = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])

_UCRED: Final = struct.Struct("=iII")
_fresh = itertools.count()


def ourselves() -> Credentials:
    """Credentials of a Stack's first task that are those of this process."""
    uid = os.getuid()
    groups = tuple(os.getgroups())
    if uid == 0:
        return Credentials(0, os.getgid(), groups, os.getpid())
    return Credentials(uid, os.getgid(), groups, os.getpid(), frozenset())


class UnixWorld(World):
    """Names, paths and ioctls besides what the base has."""

    def __init__(self, module: Any, stack: Stack | None, directory: str) -> None:
        super().__init__(module, None if stack is None else stack.network)  # type: ignore[arg-type]  # made by Network
        self.stack = stack
        self.directory = directory
        #: Abstract names of one run are nobody else's.
        self.prefix = b"\0guestwire-%d-%d-" % (os.getpid(), next(_fresh))
        self._open: list[Any] = []

    @property
    def ours(self) -> bool:
        return self.stack is not None

    # -- sockets, closed with the world -------------------------------------------------------------------------------

    def make(self, kind: int = STREAM, *, blocking: bool = False) -> Any:
        """A socket; not blocking unless asked for."""
        return self.keep(self.socket.socket(AF_UNIX, kind), blocking=blocking)

    def keep(self, sock: Any, *, blocking: bool = False) -> Any:
        sock.setblocking(blocking)
        self._open.append(sock)
        return sock

    def make_pair(self, kind: int = STREAM, *, blocking: bool = False) -> tuple[Any, Any]:
        one, other = self.socket.socketpair(AF_UNIX, kind)
        return self.keep(one, blocking=blocking), self.keep(other, blocking=blocking)

    def listening(self, name: Any = None, *, kind: int = STREAM, backlog: int = 5) -> Any:
        sock = self.make(kind)
        sock.bind(self.path() if name is None else name)
        sock.listen(backlog)
        return sock

    def connected(self, kind: int = STREAM, name: Any = None) -> tuple[Any, Any]:
        """A client and what its listener accepted."""
        listener = self.listening(name, kind=kind)
        client = self.make(kind)
        client.connect(listener.getsockname())
        served = self.keep(listener.accept()[0])
        listener.close()
        return client, served

    def close(self) -> None:
        for sock in self._open:
            sock.close()

    # -- names --------------------------------------------------------------------------------------------------------

    def path(self, name: str | None = None) -> str:
        return f"{self.directory}/{f's{next(_fresh)}' if name is None else name}"

    def abstract(self, name: bytes | None = None) -> bytes:
        return self.prefix + (b"%d" % next(_fresh) if name is None else name)

    # -- paths --------------------------------------------------------------------------------------------------------

    @property
    def files(self) -> Any:
        """What has mkdir, unlink, stat, chmod, rmdir, symlink, umask."""
        return os if self.stack is None else self.stack.files

    def touch(self, path: str) -> None:
        if self.stack is None:
            Path(path).touch()
        else:
            self.stack.files.touch(path)

    # -- what poll and ioctl say --------------------------------------------------------------------------------------

    def bits(self, sock: Any) -> int:
        if self.ours:
            return int(sock._sock.poll()) & (ASKED | ERR | HUP | PRI)
        import select

        poll = select.poll()
        poll.register(sock, ASKED | PRI)
        return sum(bits for _, bits in poll.poll(0))

    def ask(self, sock: Any, request: int) -> int:
        room = bytes(4)
        raw = sock.ioctl(request, room) if self.ours else fcntl.ioctl(sock, request, room)
        return int(struct.unpack("@i", raw)[0])


@contextmanager
def kernel_world(directory: Path) -> Iterator[UnixWorld]:
    world = UnixWorld(kernel, None, str(directory))
    try:
        yield world
    finally:
        world.close()


@contextmanager
def stack_world(
    directory: str = "/tmp/t", *, virtual: bool = True, credentials: Credentials | None = None
) -> Iterator[UnixWorld]:
    """In virtual time a call that would block for ever is an error at once. `credentials` are else our own."""
    network = Network(clock=ManualClock()) if virtual else Network()
    with network:
        stack = Stack("gw", network=network, credentials=credentials or ourselves())
        stack.files.makedirs(directory)
        world = UnixWorld(stack.socket, stack, directory)
        try:
            yield world
        finally:
            world.close()


def outcome(call: Any, *args: Any) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else str(error)


def identity(pid: int | None = None, uid: int | None = None, gid: int | None = None) -> bytes:
    """struct ucred; this process's own but for what is given."""
    return _UCRED.pack(
        os.getpid() if pid is None else pid,
        os.getuid() if uid is None else uid,
        os.getgid() if gid is None else gid,
    )
