"""System calls that cannot block, made without giving up the GIL.

Theory of operation
-------------------
CPython releases the GIL around every system call it wraps, and cffi around every C call. That is right for calls that
wait. For a call of half a microsecond beside a compute-bound thread it is a bad bargain: whoever wants the GIL gets it
then, and we wait a switch interval (5 ms) or one whole long C call of that thread to get it back, several times per
message. QEMU stands still meanwhile. Measured at the default switch interval, from the first message of a net device's
start to its last reply, front-end in another process (medians): beside a spinning Python thread 156 ms with
`socket.recvmsg` and friends, 12 ms with these; beside that and one that holds the GIL for 9 ms at a time, 650 and 74.

So the control thread makes its short calls through `ctypes.PyDLL`, which keeps the GIL. Only calls that are sure to
return at once belong here: receiving and sending with MSG_DONTWAIT, questions about a descriptor, closing an eventfd.
Closing the last descriptor of a big memory file, or unmapping it, is not among them.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import socket
import sys
from struct import Struct
from typing import Final

_libc: Final = ctypes.PyDLL(None, use_errno=True)
for _name in ("recvmsg", "send", "readlink"):
    getattr(_libc, _name).restype = ctypes.c_ssize_t

#: The kernel passes at most this many descriptors at once (SCM_MAX_FD). There is room for all of them, so that a peer
#: which sends too many gets a clear error and nothing is ever truncated for want of room.
_SCM_MAX_FD: Final = 253
_FD_SIZE: Final = array.array("i").itemsize
_CONTROL_SIZE: Final = socket.CMSG_SPACE(_SCM_MAX_FD * _FD_SIZE)
_CMSG_HEADER: Final = Struct("@Nii")  #: struct cmsghdr: length with header, level, type
_CMSG_ALIGN: Final = ctypes.sizeof(ctypes.c_size_t)


_ONE: Final = (1).to_bytes(8, sys.byteorder)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Receiver:
    """The buffers of one socket's recvmsg. Not for two threads at once."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: the most bytes one `receive` will ask for."""
        self._data = ctypes.create_string_buffer(capacity)
        self._control = ctypes.create_string_buffer(_CONTROL_SIZE)
        self._iov = _IoVec(ctypes.addressof(self._data), 0)
        self._header = _MsgHdr(None, 0, ctypes.pointer(self._iov), 1, ctypes.addressof(self._control), 0, 0)
        self._argument = ctypes.byref(self._header)

    def receive(self, fd: int, size: int) -> tuple[bytes, list[int], bool]:
        """(up to `size` bytes, descriptors that came along, some were lost). Never waits.

        The descriptors are close-on-exec and the caller's from here on. Raises BlockingIOError when nothing is there,
        OSError as recvmsg does.
        """
        header = self._header
        self._iov.length = min(size, len(self._data))
        header.control_length = _CONTROL_SIZE
        header.flags = 0
        count = _libc.recvmsg(fd, self._argument, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
        if count < 0:
            _fail()
        fds = self._rights(header.control_length) if header.control_length else []
        return ctypes.string_at(self._data, count), fds, bool(header.flags & socket.MSG_CTRUNC)

    def _rights(self, length: int) -> list[int]:
        """The descriptors in the control buffer. Other messages in it carry nothing that would need closing."""
        control = ctypes.string_at(self._control, length)
        fds = array.array("i")
        at = 0
        while at + _CMSG_HEADER.size <= length:
            size, level, kind = _CMSG_HEADER.unpack_from(control, at)
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                body = control[at + socket.CMSG_LEN(0) : at + size]
                fds.frombytes(body[: len(body) - len(body) % _FD_SIZE])
            at += -(-max(size, _CMSG_HEADER.size) // _CMSG_ALIGN) * _CMSG_ALIGN
        return fds.tolist()


def send(fd: int, data: bytes) -> int:
    """How many bytes of `data` the socket took. Never waits, no SIGPIPE; raises OSError as send does."""
    count: int = _libc.send(fd, data, ctypes.c_size_t(len(data)), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    if count < 0:
        _fail()
    return count


def signal(eventfd: int) -> None:
    """Add 1 to a non-blocking eventfd. A full counter stays full: whoever waits for it is awake anyway."""
    _libc.write(eventfd, _ONE, ctypes.c_size_t(len(_ONE)))


def close(fd: int) -> None:
    """Close a descriptor whose last closing is quick: an eventfd, a socket. Raises OSError as close does."""
    if _libc.close(fd) < 0:
        _fail()


def kind(fd: int) -> str:
    """What a descriptor of ours is, as /proc names it: ``anon_inode:[eventfd]``, a path... Raises OSError."""
    target = ctypes.create_string_buffer(256)
    count = _libc.readlink(b"/proc/self/fd/%d" % fd, target, ctypes.c_size_t(len(target)))
    if count < 0:
        _fail()
    return os.fsdecode(target.raw[:count])


def set_nonblocking(fd: int) -> None:
    """Set O_NONBLOCK on the open file behind `fd`. Raises OSError."""
    flags = _libc.fcntl(fd, fcntl.F_GETFL)
    if flags < 0 or (not flags & os.O_NONBLOCK and _libc.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK) < 0):
        _fail()


def _fail() -> None:
    code = ctypes.get_errno()
    if code == errno.EAGAIN:
        raise BlockingIOError(code, os.strerror(code))
    raise OSError(code, os.strerror(code))
