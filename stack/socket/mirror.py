"""`Mirror`: a real descriptor that is ready when a socket of ours is, for `select`, `selectors`, `asyncio`.

Theory of operation
-------------------
A user who asks a socket for its `fileno` is going to wait for it in the kernel. He gets one end of a socketpair whose
readiness follows the socket's, level by level:

* readable: there is one byte to read in the user's end, put there through ours;
* not writable: the user's end has sent until its buffer was full, and we have not read it;
* an error or hang-up is both readable and writable, as `select` reports it.

An eventfd could not express "neither", and a pipe has no end that can be both. The mirror observes the socket's pollee,
so it is brought up to date at the end of every turn and of every call on the socket, before that returns.
"""

from __future__ import annotations

import os
import socket as _kernel
from typing import TYPE_CHECKING, Final

from stack.socket.poll import ERR, HUP, IN, OUT

if TYPE_CHECKING:
    from stack.socket.poll import Pollee

_READABLE: Final = IN | ERR
_WRITABLE: Final = OUT | ERR | HUP
_CHUNK: Final = bytes(4096)


class Mirror:
    """Observes `pollee` until closed. The kernel's socketpair is bound here, at import."""

    __slots__ = ("_ours", "_pollee", "_readable", "_user", "_writable", "inode")

    def __init__(self, pollee: Pollee) -> None:
        """Lock held. Raises OSError (EMFILE)."""
        self._user, self._ours = _socketpair()
        self._user.setblocking(False)
        self._ours.setblocking(False)
        self._user.setsockopt(_kernel.SOL_SOCKET, _kernel.SO_SNDBUF, 1)  # the smallest there is
        self.inode = os.fstat(self._user.fileno()).st_ino  #: of the user's end, and of every duplicate of it
        self._readable = False
        self._writable = True
        self._pollee = pollee
        pollee.observe(self)
        self.update(pollee.bits())

    def fileno(self) -> int:
        return self._user.fileno()

    def move_to(self, fd: int) -> None:
        """Make `fd`, which is open, the user's end."""
        os.dup2(self._user.fileno(), fd, inheritable=False)
        self._user.close()
        self._user = _socket(fileno=fd)

    def leave(self) -> bool:
        """Lock held: close the user's end. True: a duplicate of it is still open, and sees readiness as it was."""
        self._pollee.forget(self)
        self._user.close()
        return self.duplicated()

    def duplicated(self) -> bool:
        """After `leave`: somebody has a duplicate of the user's end."""
        if self._ours.fileno() < 0:
            return False
        self._drain(self._ours)
        try:
            return bool(self._ours.recv(1, _kernel.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:  # reset: the user's end was closed with something unread in it
            return False

    def update(self, bits: int) -> None:
        readable = bool(bits & _READABLE)
        if readable is not self._readable:
            self._readable = readable
            if readable:
                self._ours.send(b"\0")
            else:
                self._drain(self._user)
        writable = bool(bits & _WRITABLE)
        if writable is not self._writable:
            self._writable = writable
            if writable:
                self._drain(self._ours)
            else:
                self._fill()

    def _fill(self) -> None:
        try:
            while self._user.send(_CHUNK):
                pass
        except BlockingIOError:
            pass

    @staticmethod
    def _drain(end: _kernel.socket) -> None:
        try:
            while end.recv(65536):
                pass
        except (BlockingIOError, ConnectionResetError):
            pass

    def close(self) -> None:
        """Lock held. Idempotent."""
        self._pollee.forget(self)
        self._user.close()
        self._ours.close()


_socketpair: Final = _kernel.socketpair
_socket: Final = _kernel.socket
