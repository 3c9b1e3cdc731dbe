"""The type `socket` of our `_socket`: CPython's C type is the kernel's sockets, `StackSocket` is a Stack's.

It plays the descriptor: it has a time-out, and may share the open socket below (`stack.socket.base.Socket`) with a
duplicate. Arguments, return values and exceptions are those of the C type, on which the interpreter's own class
`socket.socket` is then built (`stack.socket.lib`): so here are numbers, not enums, `_accept` and not `accept`.

What goes from here to that class without becoming the user's (`_accept`, socketpair) is an `Arrival`, an int that
carries the open socket: a real descriptor costs two system calls and is made when somebody asks for `fileno`.
"""

from __future__ import annotations

import errno
import os
import socket as _kernel
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.socket.arguments import IOV_MAX, c_bool, c_int, c_size, readable, target, timeout_ns, writable
from stack.socket.base import CLOSED, Socket, os_error
from stack.socket.batch import Outgoing, receive_many, send_many
from stack.socket.families import AF_INET, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, create
from stack.socket.ioctl import ioctl
from stack.socket.message import MSG_ERRQUEUE, MSG_TRUNC, Ancillary, Message, Received

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from stack.socket.mirror import End
    from stack.socket.surface import Surface

_FLAG_BITS: Final = SOCK_NONBLOCK | SOCK_CLOEXEC
_SOCKLEN_MAX: Final = 0x7FFFFFFF


class Arrival(int):
    """A descriptor number that stands for an open socket nobody has asked a real one of."""

    open: Socket

    @classmethod
    def of(cls, sock: Socket) -> Arrival:
        arrival = cls(_UNNUMBERED)
        arrival.open = sock
        return arrival


#: No process has this many descriptors.
_UNNUMBERED: Final = 0x7FFFFFFF


class StackSocket:
    """Base of the type `socket` of one Stack's `_socket`; subclasses know their surface."""

    __slots__ = ("_end", "_sock", "_timeout")

    surface: ClassVar[Surface]

    _end: End | None
    _sock: Socket
    _timeout: int | None  #: ns

    if TYPE_CHECKING:  # what Lib/socket.py adds

        def __enter__(self) -> Self: ...
        def __exit__(self, *_: object) -> None: ...
        def accept(self) -> tuple[StackSocket, Any]: ...
        def dup(self) -> Self: ...
        def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any: ...
        def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int: ...
        def get_inheritable(self) -> bool: ...
        def set_inheritable(self, inheritable: bool) -> None: ...

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 - CPython's signature
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        """As `_socket.socket`. `fileno` is a descriptor of a socket of any Stack. Raises OSError."""
        family, type, proto = c_int(family), c_int(type), c_int(proto)  # noqa: A001
        surface = self.surface
        self._end = None
        if fileno is None:
            kind = SOCK_STREAM if type == -1 else type
            host = surface.stack.socket_host()
            try:
                host.descriptors.sweep(host)
                self._sock = create(
                    host, AF_INET if family == -1 else family, kind & ~_FLAG_BITS, 0 if proto == -1 else proto
                )
            except NetError as error:
                raise os_error(error) from None
        elif isinstance(fileno, Arrival):
            self._sock = fileno.open
        else:
            if isinstance(fileno, float):
                raise TypeError("integer argument expected, got float")
            number = c_int(fileno)
            if number < 0:
                raise ValueError("negative file descriptor")
            self._sock, self._end = surface.stack.descriptors.reclaim(number)
        self._timeout = surface.default_timeout
        if type != -1 and type & SOCK_NONBLOCK:
            self._timeout = 0
        if self._end is not None and self._timeout is not None:
            os.set_blocking(self._end.fileno(), False)

    def _take(self, other: StackSocket) -> None:
        """Be what `other` was, which has nothing any more."""
        self._sock, self._end, self._timeout = other._sock, other._end, other._timeout
        other._sock, other._end = self.surface.corpse(other._sock), None

    # -- about it -----------------------------------------------------------------------------------------------------

    @property
    def family(self) -> int:
        """the socket family"""
        return self._sock.family

    @property
    def type(self) -> int:
        """the socket type"""
        return self._sock.type

    @property
    def proto(self) -> int:
        """the socket protocol"""
        return self._sock.protocol

    @property
    def timeout(self) -> float | None:
        """the socket timeout"""
        return self.gettimeout()

    def __repr__(self) -> str:
        fd = -1 if self._end is None else self._end.fileno()
        return f"<socket object, fd={fd}, family={self._sock.family}, type={self._sock.type}, proto={self.proto}>"

    def getsockname(self) -> Any:
        return self._sock.local_address()

    def getpeername(self) -> Any:
        return self._sock.peer_address()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def settimeout(self, timeout: float | None, /) -> None:
        self._timeout = timeout_ns(timeout)
        if self._sock.phase is CLOSED:
            raise _closed()
        if self._end is not None:
            os.set_blocking(self._end.fileno(), timeout is None)

    def gettimeout(self) -> float | None:
        return None if self._timeout is None else self._timeout / NS_PER_S

    def setblocking(self, flag: object, /) -> None:
        self.settimeout(None if c_bool(flag) else 0)

    def getblocking(self) -> bool:
        return self._timeout != 0

    def _patience(self) -> int | None:
        """How long a call may wait, ns: a descriptor can be made non-blocking behind our back (row CORE-07)."""
        if self._timeout is None and self._end is not None and not os.get_blocking(self._end.fileno()):
            return 0
        return self._timeout

    def fileno(self) -> int:
        """A real descriptor that is ready when the socket is (see `stack.socket.mirror`); -1 if closed.

        From now on somebody waits without polling, so the Network's background thread is started. Raises OSError
        (EMFILE) if there is no descriptor to be had.
        """
        end = self._end
        if end is None:
            sock = self._sock
            if sock.phase is CLOSED:
                return -1
            end = self._end = sock.host.descriptors.open(sock)
            if self._timeout is not None:
                os.set_blocking(end.fileno(), False)
            sock.waiting.start()
        return end.fileno()

    def poll(self) -> int:
        """The poll(2) bits now, all of them: `stack.socket.poll` has their names. A descriptor shows fewer."""
        return self._sock.poll()

    # -- connecting ---------------------------------------------------------------------------------------------------

    def bind(self, address: Any, /) -> None:
        self._sock.bind(address)

    def listen(self, backlog: int = 128, /) -> None:
        self._sock.listen(max(c_int(backlog), 0))

    def _accept(self) -> tuple[int, Any]:
        child, address = self._sock.accept(self._timeout if self._end is None else self._patience())
        return Arrival.of(child), address

    def connect(self, address: Any, /) -> None:
        self._sock.connect(address, self._timeout if self._end is None else self._patience())

    def connect_ex(self, address: Any, /) -> int:
        try:
            self.connect(address)
        except TimeoutError as error:
            return error.errno or errno.EAGAIN
        except _kernel.gaierror:
            raise
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
        return 0

    def shutdown(self, how: int, /) -> None:
        self._sock.shutdown(c_int(how))

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        if flags or type(flags) is not int:
            flags = c_int(flags)
        return self._sock.send(
            data if type(data) is bytes else readable(data),
            flags,
            self._timeout if self._end is None else self._patience(),
        )

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        if flags or type(flags) is not int:
            flags = c_int(flags)
        self._sock.send_all(
            data if type(data) is bytes else readable(data),
            flags,
            self._timeout if self._end is None else self._patience(),
        )

    def sendto(self, data: ReadableBuffer, *args: Any) -> int:
        """sendto(data, address) or sendto(data, flags, address)."""
        if not 1 <= len(args) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(args) + 1} given)")
        view = readable(data)
        flags = c_int(args[0]) if len(args) == 2 else 0
        address = args[-1]
        if address is None:  # which is no address here, and for `sendmsg` means none
            self._sock.address_in(None)
        return self._sock.send_to(view, flags, address, self._patience())

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[tuple[int, int, ReadableBuffer]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        flags = c_int(flags)
        data = _gathered(buffers)
        return self._sock.send_message(data, _ancillary(ancdata), flags, address, self._patience())

    def sendmsg_afalg(self, *args: Any, **kwargs: Any) -> int:
        raise OSError("algset is only supported for AF_ALG")

    def sendmmsg(self, messages: Iterable[Any], flags: int = 0, /) -> list[int]:
        """Send several messages with one call (sendmmsg(2)); answers the bytes sent of each, as far as it got.

        A message is its data, or a sequence (buffers[, ancdata[, address]]) as for `sendmsg`.
        """
        return send_many(self._sock, [_outgoing(each) for each in messages], c_int(flags), self._patience())

    # -- receiving ----------------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if type(bufsize) is not int or not 0 < bufsize <= _SOCKLEN_MAX:
            bufsize = c_size(bufsize)
            if bufsize < 0:
                raise ValueError("negative buffersize in recv")
            if not bufsize:
                return b""  # CPython does not ask the kernel either
        if flags or type(flags) is not int:
            flags = c_int(flags)
            if flags & MSG_TRUNC and self._sock.type != SOCK_STREAM:
                return self.recvfrom(bufsize, flags)[0]
        return self._sock.recv(bufsize, flags, self._timeout if self._end is None else self._patience())

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        view = target(buffer, nbytes, "recv_into", "buffer too small for requested bytes")
        if not view:
            return 0
        if flags or type(flags) is not int:
            flags = c_int(flags)
            if flags & MSG_TRUNC and self._sock.type != SOCK_STREAM:
                return self.recvfrom_into(view, 0, flags)[0]
        return self._sock.recv_into(view, flags, self._timeout if self._end is None else self._patience())

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        size = c_size(bufsize)
        if size < 0:
            raise ValueError("negative buffersize in recvfrom")
        message = self._sock.receive(size, c_int(flags), self._patience())
        # CPython makes the bytes as long as the call says; what lies behind the buffer's end is anything there.
        return message.data.ljust(_told(message, flags), b"\0"), self._address(message)

    def recvfrom_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        view = target(buffer, nbytes, "recvfrom_into", "nbytes is greater than the length of the buffer")
        message = self._sock.receive(len(view), c_int(flags), self._patience())
        view[: len(message.data)] = message.data
        return _told(message, flags), self._address(message)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Ancillary], int, Any]:
        size = c_size(bufsize)
        if size < 0:
            raise ValueError("negative buffer size in recvmsg()")
        message = self._sock.receive(size, c_int(flags), self._patience(), _room(ancbufsize, "recvmsg"))
        return message.data, message.ancillary, message.flags, self._address(message)

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Ancillary], int, Any]:
        expected = "recvmsg_into() argument 1 must be an iterable of single-segment"
        views = [writable(each, expected) for each in _sequence(buffers, "recvmsg_into() argument 1")]
        if len(views) > IOV_MAX:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        size = sum(map(len, views))
        message = self._sock.receive(size, c_int(flags), self._patience(), _room(ancbufsize, "recvmsg_into"))
        rest = memoryview(message.data)
        for view in views:
            part = rest[: len(view)]
            view[: len(part)] = part
            rest = rest[len(part) :]
        return _told(message, flags), message.ancillary, message.flags, self._address(message)

    def recvmmsg(
        self, vlen: int, bufsize: int, ancbufsize: int = 0, flags: int = 0, timeout: float | None = None, /
    ) -> list[Received]:
        """Up to `vlen` messages with one call (recvmmsg(2)), each as `recvmsg` answers it.

        `timeout`, in seconds, ends the call once a message came after it was over, not before: as on Linux.
        """
        if vlen < 0 or bufsize < 0 or ancbufsize < 0:
            raise ValueError("negative number or buffer size in recvmmsg()")
        limit = None if timeout is None else int(timeout * NS_PER_S)
        return receive_many(self._sock, vlen, bufsize, ancbufsize, flags, self._patience(), limit)

    def _address(self, message: Message) -> Any:
        return None if message.address is None else self._sock.address_out(message.address)

    # -- options ------------------------------------------------------------------------------------------------------

    def getsockopt(self, level: int, optname: int, buflen: int | None = None, /) -> Any:
        """An int, or with `buflen` up to that many bytes."""
        level, optname = c_int(level), c_int(optname)
        if buflen is not None:
            buflen = c_int(buflen)
            if not 0 <= buflen <= 1024:
                raise OSError("getsockopt buflen out of range")
        return self._sock.get_option(level, optname, buflen or None)

    def setsockopt(
        self, level: int, optname: int, value: int | ReadableBuffer | None, optlen: int | None = None, /
    ) -> None:
        level, optname = c_int(level), c_int(optname)
        if value is None and optlen is not None:
            if self._sock.phase is CLOSED:
                raise _closed()
            if self._sock.family == _kernel.AF_VSOCK:
                raise TypeError("setsockopt() argument 3 must be int for AF_VSOCK, not NoneType")
            if optlen:  # a null pointer of some length
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            value = b""
        elif optlen is not None or value is None:
            raise TypeError(f"a bytes-like object is required, not '{type(value).__name__}'")
        if isinstance(value, int):
            if self._sock.family != _kernel.AF_VSOCK:
                try:
                    value = c_int(value)
                except OverflowError:
                    raise TypeError("a bytes-like object is required, not 'int'") from None
            self._sock.set_option(level, optname, value)
        else:
            self._sock.set_option(level, optname, bytes(readable(value)))

    def ioctl(self, request: int, arg: Any = 0, mutate_flag: bool = True, /) -> Any:
        """As `fcntl.ioctl(sock, ...)` on a kernel's socket (see `stack.socket.ioctl`)."""
        return ioctl(self._sock, self.fileno, request, arg, mutate_flag)

    # -- life ---------------------------------------------------------------------------------------------------------

    def detach(self) -> int:
        """Let go of the socket without closing it; `socket(fileno=...)` takes it up again."""
        try:
            fd = self.fileno()
        except OSError:  # there is none to be had; Lib/socket.py has marked us closed, for the kernel's always has one
            setattr(self, "_closed", False)  # noqa: B010 - an attribute of its class, not of this one
            raise
        end = self._end
        if end is not None:
            sock, self._sock, self._end = self._sock, self.surface.corpse(self._sock), None
            sock.call(self._detach, sock, end)
        return fd

    @staticmethod
    def _detach(sock: Socket, end: End) -> None:
        sock.host.descriptors.give(sock, end)
        sock.end()  # the descriptor holds it now

    def close(self) -> None:
        """Idempotent."""
        sock, end = self._sock, self._end
        if sock.phase is CLOSED and end is None:
            return
        self._sock, self._end = self.surface.corpse(sock), None
        sock.close(end)

    def __del__(self) -> None:
        with suppress(AttributeError):  # a constructor that failed
            sock = self._sock
            if sock.phase is not CLOSED:
                try:
                    warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
                finally:
                    sock.abandon(self._end)


def _closed() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def _gathered(buffers: Iterable[ReadableBuffer]) -> bytes | memoryview:
    """The data of a sendmsg. Raises OSError(EMSGSIZE) for more buffers than the kernel takes (row CORE-06)."""
    views = [readable(each) for each in _sequence(buffers, "sendmsg() argument 1")]
    if len(views) > IOV_MAX:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return views[0] if len(views) == 1 else b"".join(views)


def _sequence(items: Any, what: str) -> Sequence[Any]:
    try:
        return items if isinstance(items, (list, tuple)) else list(items)
    except TypeError:
        raise TypeError(f"{what} must be an iterable") from None


def _ancillary(ancdata: Any) -> list[Ancillary]:
    messages: list[Ancillary] = []
    for item in _sequence(ancdata, "sendmsg() argument 2"):
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            raise TypeError("[sendmsg() ancillary data items] must be (level, type, data) tuples")
        level, kind, data = item
        messages.append((c_int(level), c_int(kind), bytes(readable(data))))
    return messages


def _outgoing(message: Any) -> Outgoing:
    """A message of `sendmmsg` as its parts."""
    if not isinstance(message, (tuple, list)):
        return bytes(readable(message)), (), None
    parts: list[Any] = [*message]
    buffers, ancdata, address = parts + [(), None][len(parts) - 1 :]
    return bytes(_gathered(buffers)), _ancillary(ancdata), address


def _told(message: Message, flags: int) -> int:
    """What the kernel's call returns: bytes received; a record's true length if MSG_TRUNC asks for it (row CORE-16)."""
    taken = len(message.data)
    return max(taken, message.length) if flags & MSG_TRUNC and not message.flags & MSG_ERRQUEUE else taken


def _room(ancbufsize: int, caller: str) -> int:
    size = c_size(ancbufsize)
    if not 0 <= size <= _SOCKLEN_MAX:
        raise ValueError(f"invalid ancillary data buffer length in {caller}()")
    return size
