"""`installed(stack)`: for a while the process's `socket` module makes a Stack's sockets.

Theory of operation
-------------------
Modules that said `import socket` long ago hold the module object, so its attributes are replaced and put back, not the
module itself. What is replaced is what comes from `_socket`: the class `socket`, and the functions that resolve names
or ask for interfaces. The functions of Lib/socket.py (create_connection, create_server, fromfd, getfqdn ...) look
those up in the module when they are called, so they follow, also for who imported them by name.

It is process-wide by nature: every thread sees it. Nested and overlapping uses are counted; the latest that is still
open is in force, and when the last one ends everything is as it was.

Which families are the Stack's is the user's choice; the others, and descriptors that are not of a Stack, go to the
kernel's class. AF_UNIX and socketpair() stay the kernel's unless asked for, because asyncio's self-pipe, signal wake-up
and QMP live on them. Code of this project that needs kernel sockets has bound them at import.

Descriptors of the Stack's sockets are real, but to read, write or ask the kernel by them is to speak to a mirror
(`stack.socket.mirror`): so os.read, os.write, os.sendfile and fcntl.ioctl are replaced as well, by functions that look
whose descriptor it is (`stack.socket.syscalls`). TLS is no part of this: see `stack.socket.tls`.
"""

from __future__ import annotations

import socket as _kernel
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from stack.socket import syscalls
from stack.socket.api import Arrival, StackSocket
from stack.socket.descriptors import find
from stack.socket.families import AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, AF_VSOCK

if TYPE_CHECKING:
    from stack.core import Stack

S = TypeVar("S", bound="Stack")

#: The families of a Stack's network. AF_UNIX may be added.
NETWORK_FAMILIES: Final = frozenset({AF_INET, AF_INET6, AF_VSOCK, AF_NETLINK, AF_PACKET})

#: (what has the attribute, its name, its value meanwhile)
_Patch = tuple[Any, str, Any]

#: Open uses, oldest first.
_uses: list[tuple[object, list[_Patch]]] = []
#: What there was before the first use.
_originals: dict[tuple[int, str], _Patch] = {}

_KernelSocket: Final = _kernel.socket
#: Of what `_socket` has, what stays the kernel's: descriptors are told apart by their users.
_KEPT: Final = frozenset({"dup", "close", "socketpair", "has_ipv6"})


@contextmanager
def installed(stack: S, families: Collection[int] = NETWORK_FAMILIES) -> Iterator[S]:
    """See the module's text. Yields the Stack."""
    use = (object(), _patches(stack, frozenset(families)))
    for owner, name, _ in use[1]:
        _originals.setdefault((id(owner), name), (owner, name, getattr(owner, name)))
    _uses.append(use)
    _apply()
    try:
        yield stack
    finally:
        _uses.remove(use)
        _apply()


def _patches(stack: Stack, families: frozenset[int]) -> list[_Patch]:
    module = stack.socket
    front = _OursOrKernels(
        "socket",
        (_Front, module.socket),
        {"families": families, "__slots__": (), "__module__": "socket", "__doc__": module.socket.__doc__},
    )
    names = {**module.surface.own(), "socket": front, "SocketType": front, "getaddrinfo": module.getaddrinfo}
    patches = [(_kernel, name, value) for name, value in names.items() if name not in _KEPT]
    if AF_UNIX in families:
        patches.append((_kernel, "socketpair", module.socketpair))
    return patches + syscalls.PATCHES


def _apply() -> None:
    """Put the latest use in force. Another thread may be at it too: whoever comes last has seen the latest."""
    while True:
        latest = _uses[-1] if _uses else None
        for patch in _originals.values():
            setattr(*patch)
        if latest is not None:
            for patch in latest[1]:
                setattr(*patch)
        if latest is (_uses[-1] if _uses else None):
            return


class _OursOrKernels(type):
    """While `socket.socket` is ours, all sockets are its instances: the kernel's, and ours made without the front."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or (
            "families" in cls.__dict__ and isinstance(instance, (_KernelSocket, StackSocket))
        )

    def __subclasscheck__(cls, subclass: type) -> bool:
        return super().__subclasscheck__(subclass) or (
            "families" in cls.__dict__ and issubclass(subclass, (_KernelSocket, StackSocket))
        )


class _Front:
    """Makes the kernel's sockets for families that are not the Stack's, and for the kernel's descriptors."""

    __slots__ = ()
    families: frozenset[int]

    def __new__(
        cls,
        family: Any = -1,
        type: Any = -1,  # noqa: A002 - as the standard library's
        proto: Any = -1,
        fileno: Any = None,
        *_more: Any,
        **_named: Any,
    ) -> Any:
        """Subclasses may have constructors of their own: what looks like no family and no descriptor is ours."""
        if fileno is not None:
            ours = isinstance(fileno, Arrival) or _is_ours(fileno)
        else:
            ours = not isinstance(family, int) or (AF_INET if family == -1 else family) in cls.families
        return super().__new__(cls) if ours else _KernelSocket(family, type, proto, fileno)


def _is_ours(fd: int) -> bool:
    try:
        return find(fd) is not None
    except (OSError, OverflowError, TypeError):  # the kernel's class says what is wrong with it
        return False
