"""Where on the host: addresses of servers that a guest's ports are forwarded to, and of listeners for it.

tcp:HOST:PORT      a TCP server; HOST may be a name, or an IPv6 address in brackets
unix:PATH          a Unix stream socket; unix:@NAME for an abstract one
vsock:CID:PORT     AF_VSOCK of the host's own kernel, where it has one
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass
from typing import Any, Final

_MAX_PORT: Final = 0xFFFF
_MAX_U32: Final = 0xFFFFFFFF
#: sockaddr_un.sun_path holds 108 bytes, a NUL included (unix(7)).
_MAX_PATH: Final = 107


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of the host's kernel. `address` is what `socket.connect` takes."""

    family: int
    address: Any
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def path(self) -> str | None:
        """The socket file, if it is one."""
        is_file = self.family == socket.AF_UNIX and isinstance(self.address, str)
        return self.address if is_file and not self.address.startswith("\0") else None

    def open(self) -> socket.socket:
        """A new non-blocking socket of the family. Raises OSError: EAFNOSUPPORT where the kernel has none, EMFILE."""
        return socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def listen(self, backlog: int = 128) -> socket.socket:
        """A non-blocking listener. A socket file nobody listens on any more is replaced. Raises OSError."""
        sock = self.open()
        try:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.path is not None:
                _remove_stale(self.path)
            sock.bind(self.address)
            sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
        return sock


def unix_address(path: str | os.PathLike[str]) -> HostAddress:
    """A socket file. Raises ValueError for a path no socket can have."""
    text = os.fspath(path)
    size = len(os.fsencode(text))
    if not 0 < size <= _MAX_PATH:
        raise ValueError(f"socket path of {size} bytes: Unix sockets allow 1 to {_MAX_PATH}: {text}")
    return HostAddress(socket.AF_UNIX, text, f"unix:{text}")


def vsock_address(cid: int, port: int) -> HostAddress:
    """AF_VSOCK of the host's own kernel, where it has one; neither number is checked."""
    return HostAddress(socket.AF_VSOCK, (cid, port), f"vsock:{cid}:{port}")


def host_address(text: str) -> HostAddress:
    """Read one of the forms above; names are looked up, which may wait. Raises ValueError saying what is wrong."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        if rest.startswith("@"):
            return HostAddress(socket.AF_UNIX, "\0" + rest[1:], text)
        return unix_address(rest)
    if kind == "vsock":
        cid, _, port = rest.partition(":")
        return vsock_address(_number(cid, _MAX_U32, text), _number(port, _MAX_U32, text))
    if kind == "tcp":
        host, _, port = rest.rpartition(":")
        number = _number(port, _MAX_PORT, text)
        try:
            found = socket.getaddrinfo(host.strip("[]") or None, number, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ValueError(f"{text}: {host} cannot be found: {error.strerror}") from error
        family, _, _, _, address = found[0]
        return HostAddress(family, address, text)
    raise ValueError(f"{text!r} is no address: tcp:HOST:PORT, unix:PATH and vsock:CID:PORT are")


def _number(text: str, most: int, whole: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > most:
        raise ValueError(f"{whole}: {text!r} is no number from 0 to {most}")
    return int(text)


def _remove_stale(path: str) -> None:
    """Remove a socket file that no process listens on. Anything else is left for bind() to complain about."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                os.unlink(path)
    except FileNotFoundError:
        return
