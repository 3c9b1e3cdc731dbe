"""Open files on their way through Unix sockets (rows CTRL-02, CTRL-03): `stack.unix.control.File` for what there is.

An integer in SCM_RIGHTS is a descriptor of this process. If it is of a socket of a Stack in the same Network, the open
socket itself travels, as one more holder, so that circles can be told (`stack.unix.inflight`); anything else is a
descriptor of the kernel's, which is duplicated and travels as such, a socket of another Network included.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.phase import CLOSED
from stack.unix.control import Rights

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stack.socket.base import Socket
    from stack.unix.control import File
    from stack.unix.endpoint import Endpoint

_AF_UNIX: Final = 1


class KernelFile:
    """A descriptor of the kernel's; owned."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def endpoint(self) -> None:
        return None

    def copy(self) -> KernelFile:
        return KernelFile(os.dup(self._fd))

    def install(self, *, inheritable: bool) -> int:
        """The lowest number free: the one it has waited under, or one below that somebody has given back meanwhile."""
        fd, self._fd = self._fd, -1
        with suppress(OSError):  # without another number this one is kept
            fd, spare = sorted((fd, os.dup(fd)))
            os.close(spare)
        os.set_inheritable(fd, inheritable)
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class StackFile:
    """One holder of an open socket of a Stack. The Network's lock is held throughout."""

    __slots__ = ("_sock",)

    def __init__(self, sock: Socket) -> None:
        self._sock: Socket = sock.share()

    @property
    def endpoint(self) -> Endpoint | None:
        found: Endpoint | None = getattr(self._sock, "endpoint", None) if self._sock.family == _AF_UNIX else None
        return found

    def copy(self) -> StackFile:
        return StackFile(self._sock)

    def install(self, *, inheritable: bool) -> int:
        sock = self._sock
        fd = sock.host.descriptors.open_loose(sock)
        os.set_inheritable(fd, inheritable)
        sock.end()  # the descriptor holds it now
        return fd

    def close(self) -> None:
        self._sock.end()


def gather(fds: Iterable[int], beside: Socket, uid: int) -> Rights:
    """The files of `fds`, for a message sent through `beside`. Raises NetError(EBADF), or EMFILE."""
    rights = Rights([], uid)
    try:
        for fd in fds:
            rights.files.append(_file(fd, beside))
    except OSError as error:
        rights.close()
        raise NetError(error.errno or errno.EBADF) from None
    return rights


def _file(fd: int, beside: Socket) -> File:
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sock = beside.host.descriptors.find(fd)
    if sock is not None and sock.waiting is beside.waiting and sock.phase is not CLOSED:
        return StackFile(sock)
    return KernelFile(os.dup(fd))


def install(rights: Rights, room: int, *, inheritable: bool) -> list[int]:
    """Make the first `room` files descriptors of the receiver's; the rest are closed. Stops without an error when the
    process has no descriptors left (EMFILE).
    """
    fds: list[int] = []
    files = rights.files
    with suppress(OSError, NetError):
        fds.extend(file.install(inheritable=inheritable) for file in files[:room])
    rights.files = files[len(fds) :]
    rights.close()
    return fds
