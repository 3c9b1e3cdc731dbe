"""`SocketModule`: a Stack's stand-in for `import socket`.

It offers the names of the standard module. What makes or resolves something is the Stack's; constants, exceptions and
functions that only compute are the standard module's own objects, so that `except socket.timeout` and
`family == socket.AF_INET` mean the same everywhere. AF_UNIX stays the kernel's: `socket(AF_UNIX)` and `socketpair()`
give the kernel's sockets.
"""

from __future__ import annotations

import errno
import socket as _kernel
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from stack.socket import resolve
from stack.socket.api import StackSocket
from stack.socket.descriptors import Descriptors

if TYPE_CHECKING:
    from stack.core import Stack

#: Functions of the standard module that ask or change the kernel, and are not offered unless defined below.
_KERNEL_ONLY: Final = frozenset(
    {
        *("fromshare", "fromfd", "send_fds", "recv_fds", "if_nameindex", "if_nametoindex"),
        *("if_indextoname", "close", "dup", "CAPI", "SocketIO"),
    }
)
_KernelSocket: Final = _kernel.socket


class SocketModule(ModuleType):
    """`Stack.socket`. Functions and classes are those a user of `socket` expects."""

    def __init__(self, stack: Stack) -> None:
        super().__init__("socket", f"Sockets of the stack {stack.name!r}, as the standard module `socket`.")
        self.stack = stack
        self._default_timeout: float | None = None
        self.descriptors = Descriptors()  #: those of our sockets that users have
        own = self._own_names()  # before the standard module's functions hide our methods of the same names
        for name, value in vars(_kernel).items():
            if not name.startswith("_") and name not in _KERNEL_ONLY and not isinstance(value, ModuleType):
                self.__dict__[name] = value
        self.__dict__.update(own)
        #: Names that differ from the standard module; `installed` puts exactly these in place.
        self.own_names = tuple(own)

    def _own_names(self) -> dict[str, Any]:
        own = _OursOrKernels(
            "socket",
            (_SocketOrKernels,),
            {"module": self, "__module__": "stack.socket", "__doc__": StackSocket.__doc__},
        )
        names: dict[str, Any] = {"socket": own, "SocketType": own, "has_ipv6": True}
        for function in (
            *(self.create_connection, self.create_server, self.has_dualstack_ipv6, self.fromfd),
            *(self.getaddrinfo, self.gethostbyname, self.gethostbyname_ex, self.gethostbyaddr, self.getnameinfo),
            *(self.gethostname, self.sethostname, self.getfqdn, self.getdefaulttimeout, self.setdefaulttimeout),
            *(self.if_nameindex, self.if_nametoindex, self.if_indextoname),
        ):
            names[function.__name__] = function
        return names

    # -- making sockets -----------------------------------------------------------------------------------------------

    def create_connection(
        self,
        address: tuple[str | None, int],
        timeout: Any = _kernel._GLOBAL_DEFAULT_TIMEOUT,  # type: ignore[attr-defined]  # noqa: SLF001 - http.client passes it
        source_address: tuple[str, int] | None = None,
        *,
        all_errors: bool = False,
    ) -> StackSocket:
        """As `socket.create_connection`: the first of the host's addresses that answers."""
        host, port = address
        errors: list[OSError] = []
        for family, kind, proto, _, target in self.getaddrinfo(host, port, 0, _kernel.SOCK_STREAM):
            sock = self.__dict__["socket"](family, kind, proto)
            try:
                if timeout is not _kernel._GLOBAL_DEFAULT_TIMEOUT:  # type: ignore[attr-defined]  # noqa: SLF001
                    sock.settimeout(timeout)
                if source_address is not None:
                    sock.bind(source_address)
                sock.connect(target)
            except OSError as error:
                sock.close()
                errors.append(error)
            else:
                made: StackSocket = sock
                return made
        try:
            if all_errors:
                raise ExceptionGroup("create_connection failed", errors)
            raise errors[0]
        finally:
            errors.clear()  # no reference cycle through the traceback

    def create_server(
        self,
        address: tuple[Any, ...],
        *,
        family: int = _kernel.AF_INET,
        backlog: int | None = None,
        reuse_port: bool = False,
        dualstack_ipv6: bool = False,
    ) -> StackSocket:
        """As `socket.create_server`."""
        if dualstack_ipv6 and family != _kernel.AF_INET6:
            raise ValueError("dualstack_ipv6 requires AF_INET6 family")
        sock = self.__dict__["socket"](family, _kernel.SOCK_STREAM)
        try:
            sock.setsockopt(_kernel.SOL_SOCKET, _kernel.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(_kernel.SOL_SOCKET, _kernel.SO_REUSEPORT, 1)
            if family == _kernel.AF_INET6:
                sock.setsockopt(_kernel.IPPROTO_IPV6, _kernel.IPV6_V6ONLY, int(not dualstack_ipv6))
            try:
                sock.bind(address)
            except OSError as error:
                raise OSError(
                    error.errno, f"{error.strerror} (while attempting to bind on address {address!r})"
                ) from None
            sock.listen(128 if backlog is None else backlog)
        except BaseException:
            sock.close()
            raise
        made: StackSocket = sock
        return made

    def has_dualstack_ipv6(self) -> bool:
        return True

    def fromfd(self, fd: int, family: int, type: int, proto: int = 0) -> Any:  # noqa: A002 - as the standard library's
        """A kernel's socket of a duplicate of `fd`."""
        if self.descriptors.known(fd):
            raise OSError(errno.EOPNOTSUPP, "use socket(fileno=...) to take up a socket of a Stack")
        return _kernel.fromfd(fd, family, type, proto)

    # -- names --------------------------------------------------------------------------------------------------------

    def getaddrinfo(
        self,
        host: str | bytes | None,
        port: str | bytes | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - as the standard library's
        proto: int = 0,
        flags: int = 0,
    ) -> list[resolve.AddressInfo]:
        return resolve.getaddrinfo(self.stack, host, port, family, type, proto, flags)

    def gethostbyname(self, hostname: str) -> str:
        return _ANY4 if not hostname else resolve.lookup(self.stack, hostname, _kernel.AF_INET)[0][1]

    def gethostbyname_ex(self, hostname: str) -> tuple[str, list[str], list[str]]:
        return hostname, [], [text for _, text in resolve.lookup(self.stack, hostname, _kernel.AF_INET)]

    def gethostbyaddr(self, ip_address: str) -> tuple[str, list[str], list[str]]:
        text = resolve.lookup(self.stack, ip_address)[0][1]
        name = resolve.reverse(self.stack, text)
        if name is None:
            raise _kernel.herror(1, "Unknown host")
        return name, [], [text]

    def getnameinfo(self, sockaddr: tuple[Any, ...], flags: int) -> tuple[str, str]:
        return resolve.getnameinfo(self.stack, sockaddr, flags)

    def gethostname(self) -> str:
        return self.stack.uts.nodename

    def sethostname(self, name: str | bytes, /) -> None:
        """As `socket.sethostname`, of the UTS namespace of whoever acts. Raises OSError: EPERM, EINVAL."""
        self.stack.sethostname(name)

    def getfqdn(self, name: str = "") -> str:
        name = name.strip()
        if not name or name in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            return self.gethostname()
        try:
            return self.gethostbyaddr(name)[0]
        except OSError:
            return name

    # -- the rest -----------------------------------------------------------------------------------------------------

    def getdefaulttimeout(self) -> float | None:
        return self._default_timeout

    def setdefaulttimeout(self, timeout: float | None, /) -> None:
        if timeout is not None and timeout < 0:
            raise ValueError("Timeout value out of range")
        self._default_timeout = timeout

    def if_nameindex(self) -> list[tuple[int, str]]:
        return [(interface.index, name) for name, interface in self.stack.netns.interfaces.items()]

    def if_nametoindex(self, name: str, /) -> int:
        for index, known in self.if_nameindex():
            if known == name:
                return index
        raise OSError(f"no interface with this name: {name!r}")

    def if_indextoname(self, index: int, /) -> str:
        for known, name in self.if_nameindex():
            if known == index:
                return name
        raise OSError(errno.ENXIO, "No such device or address")


_ANY4: Final = "0.0.0.0"  # noqa: S104 - what gethostbyname("") answers


class _OursOrKernels(type):
    """While `socket.socket` is ours, the kernel's sockets that exist beside are still instances of it."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or ("module" in cls.__dict__ and isinstance(instance, _KernelSocket))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return super().__subclasscheck__(subclass) or ("module" in cls.__dict__ and issubclass(subclass, _KernelSocket))


class _SocketOrKernels(StackSocket, metaclass=_OursOrKernels):
    """Makes the kernel's sockets for AF_UNIX and for descriptors of the kernel's sockets."""

    def __new__(
        cls,
        family: int = -1,
        type: int = -1,  # noqa: A002 - as the standard library's
        proto: int = -1,
        fileno: int | None = None,
        **ours: Any,
    ) -> Any:
        if (fileno is not None and not cls.module.descriptors.known(fileno)) or family == _kernel.AF_UNIX:
            return _KernelSocket(family, type, proto, fileno)
        return super().__new__(cls)
