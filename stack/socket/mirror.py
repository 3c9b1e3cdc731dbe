"""`Mirror`: real descriptors that are ready when a socket of ours is, for `select`, `epoll`, `selectors`, `asyncio`.

Theory of operation
-------------------
A user who asks a socket for its `fileno` is going to wait for it in the kernel. He gets an end of a socketpair whose
readiness follows the socket's, level by level:

* readable: there is a byte to read in the user's end, put there through ours;
* not writable: the user's end has sent until its buffer was full, and we have not read it;
* an error is both readable and writable, as `select` reports it;
* urgent data (POLLPRI) is an out-of-band byte behind the one to read. Such a byte is readable, too, so it is shown
  only while the socket is: a lone one of TCP, which Linux shows as POLLPRI alone, would let readers block or spin.
  Kernels whose Unix sockets have none (CONFIG_AF_UNIX_OOB) do not show any;
* a hang-up cannot be taken back, so it is shown only in phases where it is final: our end is shut down, for sending
  (the user sees RDHUP) or altogether (HUP).

An eventfd could not express "neither", and a pipe has no end that can be both. The mirror observes the socket's pollee,
so it is brought up to date at the end of every turn and of every call on the socket, before that returns. Somebody who
waits for edges gets one whenever something arrived, also if he left something unread: the byte is replaced.

An open socket has one mirror, made when a descriptor is first asked for. Every holder that wants a descriptor has an
*end*: the kernel's duplicates of one open file, known by its inode number. That the last of them was closed our end of
the pair can tell.
"""

from __future__ import annotations

import os
import socket as _kernel
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from stack.socket.poll import ERR, HUP, IN, OUT, PRI, RDHUP

if TYPE_CHECKING:
    from stack.socket.poll import Pollee

#: A descriptor of a user's, owned by a holder of the open socket.
End: TypeAlias = _kernel.socket

_READABLE: Final = IN | ERR
_WRITABLE: Final = OUT | ERR | HUP
_CHUNK: Final = bytes(4096)
_NOW: Final = _kernel.MSG_DONTWAIT


def inode_of(fd: int) -> int:
    """Of a socket's descriptor; -1 for a file's, whose numbers are others. Raises OSError(EBADF)."""
    status = os.fstat(fd)
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else -1


class Mirror:
    """Observes `pollee` until closed. All methods under the Network's lock. The kernel's names are bound at import."""

    __slots__ = ("_ends", "_final", "_hung", "_loose", "_ours", "_pollee", "_readable", "_urgent", "_writable", "inode")

    def __init__(self, pollee: Pollee, final: Callable[[], bool] = lambda: False) -> None:
        """`final` tells whether a hang-up is for good. Raises OSError (EMFILE)."""
        user, self._ours = _socketpair()
        self._ends = [user]  # whose owner closes it through us
        self._loose: set[int] = set()  # descriptors of the user's own, if they are still what they were
        self._final = final
        self._ours.setblocking(False)
        user.setsockopt(_kernel.SOL_SOCKET, _kernel.SO_SNDBUF, 1)  # the smallest there is
        self.inode = inode_of(user.fileno())  #: of every end
        self._readable = False
        self._writable = True
        self._urgent = False
        self._hung = 0  # RDHUP, HUP shown
        self._pollee = pollee
        pollee.observe(self)
        self.update(pollee.bits())

    # -- ends ---------------------------------------------------------------------------------------------------------

    def first(self) -> End:
        """The end made with the mirror."""
        return self._ends[0]

    def another(self) -> End:
        """One more end. Raises OSError (EMFILE)."""
        end = self._some_end()
        if end is None:
            raise RuntimeError("a mirror nobody has an end of")
        with end:
            copy = end.dup()
        self._ends.append(copy)
        return copy

    def adopt(self, fd: int) -> End:
        """`fd`, a duplicate, is an end from now on."""
        self._loose.discard(fd)
        end = _socket(_kernel.AF_UNIX, _kernel.SOCK_STREAM, 0, fd)
        self._ends.append(end)
        return end

    def give(self, end: End) -> int:
        """The end's descriptor is the user's own from now on."""
        self._ends.remove(end)
        fd = end.detach()
        self._loose.add(fd)
        return fd

    def drop(self, end: End) -> None:
        self._ends.remove(end)
        self._close(end)

    def _close(self, end: End) -> None:
        """Close it, unless the user has done that by number, and the number may be somebody else's by now."""
        if self._is_ours(end.fileno()):
            end.close()
        else:
            end.detach()

    def _is_ours(self, fd: int) -> bool:
        try:
            return inode_of(fd) == self.inode
        except OSError:
            return False

    def _live(self) -> End | None:
        """An end that is still one, of those that have an owner."""
        return next((end for end in self._ends if self._is_ours(end.fileno())), None)

    @property
    def owned(self) -> bool:
        """There are ends besides those users have."""
        return bool(self._ends)

    def fileno(self) -> int:
        """Of our own end, which hangs up when all others are closed."""
        return self._ours.fileno()

    def duplicated(self) -> bool:
        """Without ends of ours: somebody has a duplicate."""
        if self._ours.fileno() < 0:
            return False
        if self._hung & HUP:  # our end was shut down, but for the byte it left unread a close would be a reset
            return not self._ours.getsockopt(_kernel.SOL_SOCKET, _kernel.SO_ERROR)
        self._drain(self._ours)
        try:
            return bool(self._ours.recv(1, _kernel.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:  # reset: the last end was closed with something unread in it
            return False

    def _some_end(self) -> End | None:
        """A duplicate of any end, to be closed after use; None if we know of none."""
        end = self._live()
        if end is not None:
            return end.dup()
        for fd in tuple(self._loose):
            try:
                copy = os.dup(fd)
            except OSError:
                self._loose.discard(fd)
                continue
            if inode_of(copy) == self.inode:
                return _socket(_kernel.AF_UNIX, _kernel.SOCK_STREAM, 0, copy)
            os.close(copy)
            self._loose.discard(fd)
        return None

    # -- readiness ----------------------------------------------------------------------------------------------------

    def update(self, bits: int) -> None:
        readable = bool(bits & _READABLE)
        writable = bool(bits & _WRITABLE)
        urgent = readable and bool(bits & PRI)
        if readable is not self._readable or writable is not self._writable or urgent is not self._urgent:
            self._change(readable, writable, urgent)
        elif readable and self._pollee.fresh and not self._hung:
            self._again()
        hangups = bits & (RDHUP | HUP)
        if hangups & ~self._hung and self._final():
            self._hang_up(hangups)

    def _change(self, readable: bool, writable: bool, urgent: bool) -> None:
        if readable and not self._readable:
            self._readable = True
            self._put()
        if urgent and not self._urgent:
            self._urgent = True
            self._put(_kernel.MSG_OOB)
        if writable and not self._writable:
            self._writable = True
            self._drain(self._ours)
        if readable is self._readable and writable is self._writable and urgent is self._urgent:
            return
        owned = self._live()
        end = self._some_end() if owned is None else owned
        if end is None:
            return  # nobody we know of is looking
        if not urgent and self._urgent:
            self._urgent = False
            if readable:  # what is there may be the urgent byte alone, and no level is to go down
                self._put()
            with suppress(OSError):  # the kernel has none
                end.recv(1, _kernel.MSG_OOB | _NOW)
        if not readable and self._readable:
            self._readable = False
            self._drain(end)
        if not writable and self._writable:
            self._writable = False
            self._fill(end)
        if owned is None:
            end.close()

    def _put(self, flags: int = 0) -> None:
        with suppress(OSError):  # the last end was closed, or so much was left unread that this byte is not missed
            self._ours.send(b"\0", flags | _NOW)

    def _again(self) -> None:
        """An edge for those who wait for edges: another byte, and only then one away, so that no level goes down."""
        if self._urgent:  # reading would pass over the urgent byte; a newer one takes its place
            self._put(_kernel.MSG_OOB)
            return
        end = self._live()
        if end is not None:
            self._put()
            with suppress(OSError):
                end.recv(1, _NOW)

    def _hang_up(self, hangups: int) -> None:
        if not self._readable:
            self._readable = True
            self._put()
        with suppress(OSError):  # the last end is closed
            self._ours.shutdown(_kernel.SHUT_RDWR if hangups & HUP else _kernel.SHUT_WR)
        self._hung |= hangups

    @staticmethod
    def _fill(end: End) -> None:
        with suppress(BlockingIOError, BrokenPipeError):
            while end.send(_CHUNK, _NOW):
                pass

    @staticmethod
    def _drain(end: End) -> None:
        with suppress(BlockingIOError, ConnectionResetError):
            while end.recv(65536, _NOW):
                pass

    def close(self) -> None:
        """Idempotent."""
        self._pollee.forget(self)
        for end in self._ends:
            self._close(end)
        self._ends.clear()
        self._ours.close()


_socketpair: Final = _kernel.socketpair
_socket: Final = _kernel.socket
