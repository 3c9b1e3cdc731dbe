"""Descriptors of our sockets: which open socket an integer stands for.

Theory of operation
-------------------
A descriptor of a socket of ours is an end of a kernel socketpair (`stack.socket.mirror`). What it stands for is known
by what fstat says: the inode number, which every duplicate of the open file shares. So it does not matter whether a
user got it from `fileno`, from `detach`, from `os.dup` or from a message: `socket(fileno=...)` finds the open socket,
and it lives, as the kernel's would, until its last descriptor is closed. Those that users have without a socket object
above (detached, or duplicates that outlived their original) are *strays*: one epoll of their own tells the Network when
the last duplicate of one is closed.

The table of inode numbers is the process's, as descriptors are; everything else is the Stack's.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.mirror import inode_of
from stack.socket.phase import CLOSED

if TYPE_CHECKING:
    from stack.socket.base import Host, Socket
    from stack.socket.mirror import End, Mirror

#: Open sockets by the inode number of their descriptors.
_OPEN: Final[dict[int, Socket]] = {}


def find(fd: int) -> Socket | None:
    """The open socket, of whichever Stack, that `fd` is a descriptor of. Raises OSError(EBADF)."""
    return _OPEN.get(inode_of(fd))


class Descriptors:
    """One per Stack; a source of work for its Network while there are strays. The lock is taken where it says so."""

    def __init__(self, attach: Callable[[Descriptors], None], detach: Callable[[Descriptors], None]) -> None:
        """`attach` and `detach` make the Network poll this source, and end it; called with the lock held."""
        self._attach = attach
        self._detach = detach
        self._strays: dict[int, Socket] = {}  # by inode
        self._epoll: select.epoll | None = None
        self.on_ready: Callable[[], None] | None = None

    # -- for sockets --------------------------------------------------------------------------------------------------

    def find(self, fd: int) -> Socket | None:
        """As the function of this name."""
        return find(fd)

    def open(self, sock: Socket) -> End:
        """Takes the lock. A descriptor for one holder of `sock`. Raises OSError (EMFILE)."""
        return sock.call(self._open, sock)

    def _open(self, sock: Socket) -> End:
        mirror = sock.mirror
        if mirror is not None and not mirror.owned:
            self.check(mirror.inode)  # its last descriptor may be closed, and nobody noticed yet
            mirror = sock.mirror
        if mirror is not None:
            return mirror.another()
        if sock.phase is CLOSED:
            raise NetError(errno.EBADF)
        mirror = sock.make_mirror()
        _OPEN[mirror.inode] = sock
        return mirror.first()

    def open_loose(self, sock: Socket) -> int:
        """Lock held. As `open` and `give`: a holder becomes a descriptor of the user's, as SCM_RIGHTS brings them."""
        end = self._open(sock)
        return self.give(sock, end)

    def give(self, sock: Socket, end: End) -> int:
        """Lock held. The holder lives on as a descriptor that is the user's own (detach)."""
        mirror = sock.mirror
        assert mirror is not None
        fd = mirror.give(end)
        self._keep(sock, mirror)
        return fd

    def reclaim(self, fd: int) -> tuple[Socket, End]:
        """Takes the lock. The open socket that `fd` stands for, as one more holder, and its end, which has `fd`.

        Raises OSError: EBADF, or ENOTSOCK for what is no socket of a Stack.
        """
        sock = find(fd)
        if sock is None:
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        return sock, sock.call(self._reclaim, sock, fd)

    def _reclaim(self, sock: Socket, fd: int) -> End:
        mirror = sock.mirror
        if mirror is None:
            raise NetError(errno.EBADF)
        end = mirror.adopt(fd)
        sock.share()
        sock.host.descriptors.check(mirror.inode)
        return end

    def let_go(self, sock: Socket, end: End) -> None:
        """Lock held. A holder closes its end; whether the socket lives on is up to who has a duplicate."""
        mirror = sock.mirror
        if mirror is None:
            return
        mirror.drop(end)
        if mirror.owned or mirror.inode in self._strays:
            return
        if mirror.duplicated():
            self._keep(sock, mirror)
        else:
            sock.drop_mirror()

    def sweep(self, host: Host) -> None:
        """Takes the lock. Before a new socket is made: what a user has closed by its descriptor is closed by now."""
        if self._strays:
            host.waiting.call(self._sweep, ())

    # -- strays, lock held --------------------------------------------------------------------------------------------

    def _keep(self, sock: Socket, mirror: Mirror) -> None:
        if mirror.inode in self._strays:
            return
        self._strays[mirror.inode] = sock.share()
        if self._epoll is None:
            self._epoll = select.epoll()
            self._attach(self)
        self._epoll.register(mirror.fileno(), select.EPOLLET)  # nothing but hang-ups and resets

    def check(self, inode: int) -> None:
        """If the stray of this inode has no descriptor any more that is not a holder's, it is none."""
        sock = self._strays.get(inode)
        if sock is None:
            return
        mirror = sock.mirror
        if mirror is not None:
            if not mirror.owned and mirror.duplicated():
                return
            if self._epoll is not None:
                self._epoll.unregister(mirror.fileno())
            if not mirror.owned:
                sock.drop_mirror()
        del self._strays[inode]
        sock.end()
        if not self._strays:
            self._rest()

    def _rest(self) -> None:
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._detach(self)
            epoll.close()

    def forget(self) -> None:
        """The Stack is closed, and with it what was kept for duplicates."""
        strays, self._strays = self._strays, {}
        self._rest()
        for sock in strays.values():
            sock.end()

    # -- as a source of work ------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def service(self, budget: int) -> int:
        """Some descriptors may have been closed for the last time."""
        if self._epoll is None or not self._epoll.poll(0, budget):
            return 0
        self._sweep()
        return 1

    def _sweep(self) -> None:
        for inode in tuple(self._strays):
            self.check(inode)

    def suppress(self) -> None:
        """There is nothing to suppress."""

    def arm(self) -> bool:
        return False


def forget(mirror: Mirror) -> None:
    """A mirror is closed."""
    _OPEN.pop(mirror.inode, None)
