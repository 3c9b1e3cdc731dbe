"""Descriptors of our sockets that users detach or duplicate: which open socket each stands for.

Theory of operation
-------------------
The descriptor of a socket of ours is one end of a kernel socketpair (`stack.socket.mirror`). A user may `detach` it and
make a socket of it again; that is a table. Or he may duplicate it with `os.dup` behind our back, close the socket, and
make another of the duplicate, as libraries do that must not lose a socket to a garbage collector. A duplicate is known
by its inode number, which the whole open file description shares. When a socket is closed whose descriptor has a
duplicate, which our end of the pair can tell, the open socket lives on, as the kernel's would, until somebody takes it
up or the last duplicate is closed; the latter is noticed when sockets are next closed.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from stack.socket.base import CLOSED

if TYPE_CHECKING:
    from stack.socket.base import Socket
    from stack.socket.mirror import Mirror


class Descriptors:
    """One per Stack. The lock of the Network is not held, but where it says so."""

    def __init__(self) -> None:
        self._parked: dict[int, tuple[Socket, Mirror]] = {}  # detached, by descriptor
        self._mirrored: dict[int, Socket] = {}  # by inode
        self._strays: dict[int, tuple[Socket, Mirror]] = {}  # closed but for a duplicate, by inode

    def park(self, fd: int, sock: Socket, mirror: Mirror) -> None:
        """`detach` gave `fd` to the user: keep what it stands for."""
        self._parked[fd] = (sock, mirror)

    def add(self, sock: Socket, mirror: Mirror) -> None:
        """`sock` has a descriptor now."""
        self._mirrored[mirror.inode] = sock

    def known(self, fd: int) -> bool:
        """Is `fd` of one of our sockets: detached, or a duplicate?"""
        if fd in self._parked:
            return True
        try:
            return _inode(fd) in self._mirrored
        except OSError:
            return False

    def reclaim(self, fd: int) -> tuple[Socket, Mirror]:
        """The open socket that `fd` stands for, which is the caller's to close now. Raises OSError(EBADF)."""
        found = self._parked.pop(fd, None)
        if found is not None:
            return found
        sock = self._mirrored.get(_inode(fd))
        if sock is None or sock.phase is CLOSED:
            raise OSError(errno.EBADF, f"descriptor {fd} is of no socket of this stack")
        mirror = sock.call(sock.share().mirror)
        mirror.move_to(fd)
        self.add(sock, mirror)
        self.sweep()
        return sock, mirror

    def close(self, sock: Socket, mirror: Mirror | None) -> None:
        """As `Socket.close`, unless a duplicate of the descriptor keeps the socket open. Never raises."""
        if self._strays:
            self.sweep()
        if mirror is not None:
            inode = mirror.inode
            try:
                duplicated = sock.call(mirror.leave)
            except OSError:  # the Network is closed
                duplicated = False
            if duplicated:
                self._strays[inode] = (sock, mirror)
                return
            self._mirrored.pop(inode, None)
        sock.close(mirror)

    def sweep(self) -> None:
        """Close what nobody has a duplicate of any more."""
        for inode, (sock, mirror) in list(self._strays.items()):
            if not mirror.duplicated():
                del self._strays[inode]
                self._mirrored.pop(inode, None)
                sock.close(mirror)

    def forget(self) -> None:
        """The lock is held: the Stack is closed, and with it what was kept for duplicates."""
        strays, self._strays = self._strays, {}
        self._mirrored.clear()
        for sock, mirror in strays.values():
            sock.end(mirror)


def _inode(fd: int) -> int:
    """Of a socket's descriptor; -1 for a file's, whose numbers are others. Raises OSError(EBADF)."""
    status = os.fstat(fd)
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else -1
