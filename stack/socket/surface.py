"""`Surface`: what CPython's C module `_socket` offers, over one Stack.

Constants, exceptions and functions that only compute are the C module's own objects, so that `except socket.timeout`
and `family == socket.AF_INET` mean the same everywhere. What makes or resolves something is here.
"""

from __future__ import annotations

import errno
import inspect
import os
import socket as _kernel
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.socket import resolve, services
from stack.socket.api import Arrival, StackSocket
from stack.socket.arguments import c_int, timeout_ns
from stack.socket.base import Socket, os_error
from stack.socket.families import AF_INET, AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, create_pair
from stack.socket.options import OptionTable

if TYPE_CHECKING:
    from stack.core import Stack

_C: Final[dict[str, Any]] = dict(vars(vars(_kernel)["_socket"]))
_FLAG_BITS: Final = SOCK_NONBLOCK | SOCK_CLOEXEC
_BROADCAST: Final = "<broadcast>"
#: Names that CPython itself knows.
_SPECIAL: Final = {"": "0.0.0.0", _BROADCAST: "255.255.255.255"}  # noqa: S104 - an answer


class Surface:
    """Behind a Stack's `_socket`: its state, and the functions that differ from the C module's."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.default_timeout: int | None = None  #: ns
        self.type = type("socket", (StackSocket,), {"surface": self, "__slots__": (), "__module__": "_socket"})
        self._halves = type("socket", (_Half,), {"surface": self, "__slots__": (), "__module__": "_socket"})
        self.tls_class: type | None = None  #: what `ssl` wraps sockets of this Stack in (`stack.socket.tls`)
        self._corpses: dict[tuple[object, int, int, int], Socket] = {}

    def module(self) -> ModuleType:
        """A module `_socket`."""
        module = ModuleType("_socket", _C["__doc__"])
        module.__dict__.update((name, value) for name, value in _C.items() if not name.startswith("__"))
        module.__dict__.update(self.own())
        return module

    def own(self) -> dict[str, Any]:
        """What differs from the C module."""
        names: dict[str, Any] = {"socket": self.type, "SocketType": self.type, "has_ipv6": True}
        for function in (
            *(self.socketpair, self.dup, self.close, self.getdefaulttimeout, self.setdefaulttimeout),
            *(self.getaddrinfo, self.gethostbyname, self.gethostbyname_ex, self.gethostbyaddr, self.getnameinfo),
            *(self.gethostname, self.sethostname, self.getservbyname, self.getservbyport, self.getprotobyname),
            *(self.if_nameindex, self.if_nametoindex, self.if_indextoname),
        ):
            names[function.__name__] = function
        return names

    def corpse(self, sock: Socket) -> Socket:
        """What is left of an open socket for an object that let go of it: every operation is EBADF."""
        key = (type(sock), sock.family, sock.type, sock.protocol)
        corpse = self._corpses.get(key)
        if corpse is None:
            corpse = object.__new__(type(sock))
            plain = {name: value for name, value in vars(sock).items() if isinstance(value, (int, OptionTable))}
            vars(corpse).update(plain)
            Socket.__init__(corpse, sock.host, sock.type, sock.protocol, held=False)
            self._corpses[key] = corpse
        return corpse

    # -- sockets and descriptors --------------------------------------------------------------------------------------

    def socketpair(
        self,
        family: int = AF_UNIX,
        type: int = SOCK_STREAM,  # noqa: A002 - CPython's signature
        proto: int = 0,
        /,
    ) -> tuple[StackSocket, StackSocket]:
        """Two connected sockets. Raises OSError: EOPNOTSUPP but for AF_UNIX (row CORE-03)."""
        family, kind, proto = c_int(family), c_int(type), c_int(proto)
        host = self.stack.socket_host()
        try:
            pair = create_pair(host, family, kind & ~_FLAG_BITS, proto)
        except NetError as error:
            raise os_error(error) from None
        one, other = (self._halves(family, kind, proto, Arrival.of(each)) for each in pair)
        return one, other

    def dup(self, fd: int, /) -> int:
        """As os.dup: the duplicate stands for the same open socket, ours or the kernel's."""
        return os.dup(c_int(fd))

    def close(self, fd: int, /) -> None:
        """As os.close. The open socket ends with its last descriptor."""
        os.close(c_int(fd))

    def getdefaulttimeout(self) -> float | None:
        return None if self.default_timeout is None else self.default_timeout / NS_PER_S

    def setdefaulttimeout(self, timeout: float | None, /) -> None:
        self.default_timeout = timeout_ns(timeout)

    # -- names --------------------------------------------------------------------------------------------------------

    def getaddrinfo(
        self,
        host: str | bytes | None,
        port: str | bytes | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - CPython's signature
        proto: int = 0,
        flags: int = 0,
    ) -> list[resolve.AddressInfo]:
        return resolve.getaddrinfo(self.stack, host, port, c_int(family), c_int(type), c_int(proto), c_int(flags))

    def gethostbyname(self, hostname: str | bytes, /) -> str:
        return self._addresses(_host(hostname, "gethostbyname"))[0]

    def gethostbyname_ex(self, hostname: str | bytes, /) -> tuple[str, list[str], list[str]]:
        name = _host(hostname, "gethostbyname_ex")
        addresses = self._addresses(name)
        if not name:
            raise _kernel.herror(3, "Unknown server error")
        if name == _BROADCAST:
            raise _kernel.herror(1, "Unknown host")
        return name, [], addresses

    def _addresses(self, name: str) -> list[str]:
        if name in _SPECIAL:
            return [_SPECIAL[name]]
        return [text for _, text in resolve.lookup(self.stack, name, AF_INET)]

    def gethostbyaddr(self, ip_address: str | bytes, /) -> tuple[str, list[str], list[str]]:
        asked = _host(ip_address, "gethostbyaddr")
        if not asked:
            raise OSError("wildcard resolved to multiple address")
        text = _SPECIAL[asked] if asked == _BROADCAST else resolve.lookup(self.stack, asked)[0][1]
        name = resolve.reverse(self.stack, text)
        if asked.lower() in self.stack.names():  # a node without a card has the address of localhost, and its name
            name = asked
        if name is None:
            raise _kernel.herror(1, "Unknown host")
        return name, [], [text]

    def getnameinfo(self, sockaddr: tuple[Any, ...], flags: int, /) -> tuple[str, str]:
        return resolve.getnameinfo(self.stack, sockaddr, c_int(flags))

    def gethostname(self) -> str:
        return self.stack.uts.nodename

    def sethostname(self, name: str | bytes, /) -> None:
        """Of the UTS namespace of whoever acts. Raises OSError: EPERM, EINVAL."""
        if not isinstance(name, (str, bytes)):
            raise TypeError(f"sethostname() argument 1 must be str or bytes, not {type(name).__name__}")
        self.stack.sethostname(name)

    def getservbyname(self, servicename: str, protocolname: str | None = None, /) -> int:
        return services.port_of(servicename, protocolname)

    def getservbyport(self, port: int, protocolname: str | None = None, /) -> str:
        return services.service_at(c_int(port), protocolname)

    def getprotobyname(self, name: str, /) -> int:
        return services.protocol(name)

    # -- interfaces ---------------------------------------------------------------------------------------------------

    def if_nameindex(self) -> list[tuple[int, str]]:
        return [(interface.index, name) for name, interface in self.stack.netns.interfaces.items()]

    def if_nametoindex(self, if_name: str | bytes, /) -> int:
        name = os.fsdecode(if_name)
        if "\0" in name:
            raise ValueError("embedded null byte")
        for index, known in self.if_nameindex():
            if known == name:
                return index
        raise OSError("no interface with this name")

    def if_indextoname(self, if_index: int, /) -> str:
        index = resolve.unsigned(if_index)
        for known, name in self.if_nameindex():
            if known == index:
                return name
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))


def _sign() -> None:
    """Later interpreters know signatures of what is written in C: those of ours are to be the same."""
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    for ours, theirs, first in ((Surface, _C, [this]), (StackSocket, vars(_C["SocketType"]), [])):
        for name, function in vars(ours).items():
            if name.startswith("__") or name not in theirs:
                continue
            try:
                known = inspect.signature(theirs[name])
            except (TypeError, ValueError):  # no function, or the interpreter knows none
                continue
            function.__signature__ = known.replace(parameters=[*first, *known.parameters.values()])


_sign()


def _host(name: str | bytes, function: str) -> str:
    """An argument of the gethostby family. Raises TypeError, UnicodeError."""
    text = resolve.encoded(name)
    if "\0" in text:
        shown = type(name).__name__
        raise TypeError(f"{function}() argument 1 must be encoded string without null bytes, not {shown}")
    return text


class _Half(StackSocket):
    """One of a `socketpair`, on its way to the class `socket`."""

    __slots__ = ()

    def detach(self) -> int:
        sock, self._sock = self._sock, self.surface.corpse(self._sock)
        return Arrival.of(sock)
