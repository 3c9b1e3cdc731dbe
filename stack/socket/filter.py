"""SO_ATTACH_FILTER and its companions: classic BPF programs on a socket (section 2.1, options 26, 27 and 44).

The value is a struct sock_fprog, which holds an *address* of this process's memory: that is how programs written for
the kernel pass it. It is read through /proc/self/mem, so that a wrong address is EFAULT here as there, and no crash.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from stack.bpf import Program, check
from stack.bpf.program import INSTRUCTION, MAX_INSTRUCTIONS
from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.options import SOL_SOCKET, Kind, Option, OptionValues, Value

if TYPE_CHECKING:
    from stack.socket.base import Socket

# Linux <asm-generic/socket.h>.
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
SO_LOCK_FILTER: Final = 44

#: struct sock_fprog: number of instructions, where they are.
_PROGRAM: Final = struct.Struct("@HP")
_INT: Final = 4  # bytes
_SOCK_STREAM: Final = 1


#: Options after which a phase asks for `attached` again.
FILTER_OPTIONS: Final = ((SOL_SOCKET, SO_ATTACH_FILTER), (SOL_SOCKET, SO_DETACH_FILTER))


def filter_level() -> list[Option]:
    """The rows, for sockets whose phases apply what `attached` says. The stored value is the program itself."""
    return [
        Option(
            SOL_SOCKET,
            SO_ATTACH_FILTER,
            "SO_ATTACH_FILTER",
            Kind.OPAQUE,
            default=b"",
            check=_attachable,
            effect=lambda socket, value: socket.options.store(SOL_SOCKET, SO_ATTACH_FILTER, _fetch(value).raw),
            get=_shown,
        ),
        Option(
            SOL_SOCKET,
            SO_DETACH_FILTER,
            "SO_DETACH_FILTER",
            readable=False,
            check=_detachable,
            effect=lambda socket, _: socket.options.store(SOL_SOCKET, SO_ATTACH_FILTER, b""),
        ),
        Option(SOL_SOCKET, SO_LOCK_FILTER, "SO_LOCK_FILTER", Kind.BOOL, check=_lockable),
    ]


def attached(options: OptionValues) -> Program | None:
    """The socket's filter."""
    raw = options.value(SOL_SOCKET, SO_ATTACH_FILTER)
    return check(raw) if raw else None


def _attachable(socket: Socket, value: Any) -> None:
    if len(value) < _INT:
        raise NetError(errno.EINVAL)
    if socket.type == _SOCK_STREAM and not socket.host.credentials.may(Capability.NET_ADMIN):
        raise NetError(errno.EPERM)  # of TCP, as Linux 6.18 measured
    _fetch(value)
    _unlocked(socket)


def _detachable(socket: Socket, _: Value) -> None:
    _unlocked(socket)
    if not socket.options.value(SOL_SOCKET, SO_ATTACH_FILTER):
        raise NetError(errno.ENOENT)


def _lockable(socket: Socket, value: Value) -> None:
    if not value:
        _unlocked(socket)


def _unlocked(socket: Socket) -> None:
    if socket.options.value(SOL_SOCKET, SO_LOCK_FILTER):
        raise NetError(errno.EPERM)


def _shown(socket: Socket) -> bytes:
    """Linux counts the length it answers in instructions and Python takes that for bytes, so this is what is seen."""
    raw: bytes = socket.options.value(SOL_SOCKET, SO_ATTACH_FILTER)
    return raw[: len(raw) // INSTRUCTION.size]


def _fetch(value: bytes) -> Program:
    """The program a struct sock_fprog points at. Raises NetError: EINVAL, EFAULT."""
    if len(value) != _PROGRAM.size:
        raise NetError(errno.EINVAL)
    count, address = _PROGRAM.unpack(value)
    if not address or not 0 < count <= MAX_INSTRUCTIONS:
        raise NetError(errno.EINVAL)
    size = count * INSTRUCTION.size
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.pread(memory, size, address)
        finally:
            os.close(memory)
    except (OSError, OverflowError):
        raise NetError(errno.EFAULT) from None
    if len(raw) != size:
        raise NetError(errno.EFAULT)
    return check(raw)
