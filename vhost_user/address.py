"""Where a front-end finds us: Unix socket paths and abstract names, bound safely and taken away again.

A socket file outlives its process, so "address in use" has two meanings. Here a file nobody listens on is replaced, a
file somebody listens on is an error that says so, and anything that is no socket is never touched. On closing, the
file is removed only if it is still the one we made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Final

#: sizeof(sockaddr_un.sun_path) less the terminating (or, for abstract names, leading) NUL byte.
MAX_PATH: Final = 107
#: Front-ends that may wait while we are busy with another message; each takes no more than one connect().
_BACKLOG: Final = 16


class ListenError(OSError):
    """The address cannot be listened on; the text names it and says what to do."""


class BoundSocket:
    """A listening socket together with the file it must take away. Close exactly once per owner; idempotent."""

    def __init__(self, sock: socket.socket, address: str, path: str | None = None) -> None:
        """`address` is for people (abstract names start with @); `path` is the file to unlink, if any."""
        sock.setblocking(False)
        self.sock = sock
        self.address = address
        self._path = path
        self._identity = _identity(path) if path is not None else None

    def unlink(self) -> None:
        """Take the socket file away, if it is still ours. Connections, made or waiting, are not affected."""
        if self._path is not None and self._identity is not None and _identity(self._path) == self._identity:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._path = None

    def close(self) -> None:
        self.unlink()
        self.sock.close()


def bind_path(path: str | os.PathLike[str]) -> BoundSocket:
    """Listen on a socket file. Raises `ListenError`."""
    name = os.fspath(path)
    length = len(os.fsencode(name))
    if length > MAX_PATH:
        raise ListenError(
            errno.ENAMETOOLONG,
            f"socket path is {length} bytes long, the system allows {MAX_PATH}: use a shorter one, or a relative path",
            name,
        )
    _remove_stale(name)
    return _listen(name, name, name)


def bind_abstract(name: str) -> BoundSocket:
    """Listen on an abstract name (Linux: no file, gone with its last descriptor). Raises `ListenError`."""
    length = len(os.fsencode(name))
    if not 0 < length <= MAX_PATH:
        raise ListenError(
            errno.ENAMETOOLONG, f"abstract socket name is {length} bytes long, 1 to {MAX_PATH} are allowed", name
        )
    return _listen("\0" + name, "@" + name, None)


def take_listener(listener: socket.socket | int) -> BoundSocket:
    """Take over a Unix stream socket that listens already. Raises `ListenError`; then the socket stays the caller's."""
    sock = listener if isinstance(listener, socket.socket) else _socket_from(listener)
    try:
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        usable = listening and sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
    except OSError:
        usable = False
    if not usable:
        number = sock.fileno()
        if sock is not listener:
            sock.detach()
        raise ListenError(errno.EINVAL, f"descriptor {number} is not a listening Unix stream socket")
    address = os.fsdecode(sock.getsockname())
    return BoundSocket(
        sock, "@" + address[1:] if address.startswith("\0") else address or f"descriptor {sock.fileno()}"
    )


def _socket_from(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(error.errno, f"descriptor {fd} is not a socket") from error


def _listen(target: str, address: str, path: str | None) -> BoundSocket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(target)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "somebody is listening there already: stop that process or choose another address"
        raise ListenError(error.errno, f"cannot listen: {reason}", address) from error
    return BoundSocket(sock, address, path)


def _remove_stale(path: str) -> None:
    """Make room at `path` if what is there is a socket file without a listener."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # nothing there; if the directory is the trouble, bind says so
    if not stat.S_ISSOCK(mode):
        raise ListenError(errno.EEXIST, "there is a file which is no socket: remove it or choose another path", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError:  # EAGAIN: alive with a full backlog; EPROTOTYPE: alive and no stream; EACCES: not ours to judge
            pass
    raise ListenError(
        errno.EADDRINUSE, "somebody is listening there already: stop that process or choose another path", path
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
