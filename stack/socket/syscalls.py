"""System calls on descriptors of a Stack's sockets: read, write, readv, writev, sendfile, ioctl.

A descriptor of ours is an end of a socketpair that shows readiness (`stack.socket.mirror`); the kernel would read and
write that. These functions have the signatures of those in `os` and `fcntl`, act on our sockets as Linux does on its
own (rows CORE-05, CORE-06, MM-06, section 1.5), and leave every other descriptor to the kernel. Whether a call waits
is up to O_NONBLOCK of the descriptor, which is the kernel's own flag.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from stack.socket.arguments import IOV_MAX, readable, writable
from stack.socket.descriptors import find
from stack.socket.ioctl import ioctl as socket_ioctl

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from stack.socket.base import Socket

_SENDFILE_BLOCK: Final = 256 * 1024  # bytes read and sent at a time


def _of(fd: Any) -> Socket | None:
    if type(fd) is not int or fd < 0:
        return None
    try:
        return find(fd)
    except OSError:  # a bad descriptor: the kernel's function says so
        return None


def _patience(fd: int) -> int | None:
    return None if os.get_blocking(fd) else 0


def read(fd: int, length: int, /) -> bytes:
    """recv() without flags; of nothing, nothing, whatever the socket's state (row CORE-05)."""
    sock = _of(fd)
    if sock is None:
        return _read(fd, length)
    if length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return sock.receive(length, 0, _patience(fd)).data if length else b""


def write(fd: int, data: ReadableBuffer, /) -> int:
    """send() without flags, of nothing too."""
    sock = _of(fd)
    return _write(fd, data) if sock is None else sock.send(readable(data), 0, _patience(fd))


def readv(fd: int, buffers: Sequence[WriteableBuffer], /) -> int:
    sock = _of(fd)
    if sock is None:
        return _readv(fd, buffers)
    views = [writable(each, "readv() arg 2 must be a sequence of") for each in _vector(buffers)]
    data = memoryview(read(fd, sum(map(len, views))))
    size = len(data)
    for view in views:
        part = data[: len(view)]
        view[: len(part)] = part
        data = data[len(part) :]
    return size


def writev(fd: int, buffers: Sequence[ReadableBuffer], /) -> int:
    sock = _of(fd)
    if sock is None:
        return _writev(fd, buffers)
    return sock.send(b"".join(readable(each) for each in _vector(buffers)), 0, _patience(fd))


def _vector(buffers: Sequence[Any]) -> Sequence[Any]:
    if len(buffers) > IOV_MAX:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return buffers


def sendfile(out_fd: int, in_fd: int, offset: int | None, count: int, **more: Any) -> int:
    """From a file to a socket (row MM-06). `offset` None: from where the file is, which moves on."""
    sock = _of(out_fd)
    if sock is None:
        return _sendfile(out_fd, in_fd, offset, count, **more)
    size = min(count, _SENDFILE_BLOCK)
    data = os.pread(in_fd, size, os.lseek(in_fd, 0, os.SEEK_CUR) if offset is None else offset)
    if not data:
        return 0
    sent = sock.send(data, 0, _patience(out_fd))
    if offset is None:
        os.lseek(in_fd, sent, os.SEEK_CUR)
    return sent


def ioctl(fd: Any, request: int, arg: Any = 0, mutate_flag: bool = True, /) -> Any:
    """As fcntl.ioctl; requests that are any file's (FIONBIO, FIOASYNC, FIOCLEX) are the kernel's descriptor's."""
    number = fd if isinstance(fd, int) else fd.fileno()
    sock = _of(number)
    if sock is None:
        return _ioctl(fd, request, arg, mutate_flag)
    return socket_ioctl(sock, lambda: number, request, arg, mutate_flag)


_read: Final = os.read
_write: Final = os.write
_readv: Final = os.readv
_writev: Final = os.writev
_sendfile: Final = os.sendfile
_ioctl: Final = fcntl.ioctl

#: What `installed` puts in place.
PATCHES: Final[list[tuple[Any, str, Any]]] = [
    *((os, function.__name__, function) for function in (read, write, readv, writev, sendfile)),
    (fcntl, "ioctl", ioctl),
]
