"""The Python face of a socket: what `socket.socket` is for the kernel's, `StackSocket` is for a Stack's.

A `StackSocket` plays the descriptor: it has a timeout, counts the files made from it, and may share the open socket
below (`stack.socket.base.Socket`) with a duplicate. Signatures, return values and exceptions are those of the standard
library's class (Python 3.11), so code written for that runs unchanged.
"""

from __future__ import annotations

import errno
import io
import socket as _kernel
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.socket.base import CLOSED, Socket, os_error
from stack.socket.batch import Outgoing, receive_many, send_many
from stack.socket.families import SOCK_CLOEXEC, SOCK_NONBLOCK, create
from stack.socket.message import Ancillary, Message
from stack.socket.mirror import Mirror

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from stack.socket.module import SocketModule

_FLAG_BITS: Final = SOCK_NONBLOCK | SOCK_CLOEXEC
_SENDFILE_BLOCK: Final = 256 * 1024  # bytes read and sent at a time


class StackSocket:
    """Base of the class `socket` in a Stack's stand-in for the `socket` module; subclasses know their module."""

    module: ClassVar[SocketModule]

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 - the standard library's signature
        proto: int = -1,
        fileno: int | None = None,
        *,
        _open: Socket | None = None,
    ) -> None:
        """As `socket.socket`. `fileno` is what `detach` returned, or a duplicate of a descriptor. Raises OSError."""
        self._closed = True  # until there is something to close
        self._io_refs = 0
        self._mirror: Mirror | None = None
        if fileno is not None:
            _open, self._mirror = self.module.descriptors.reclaim(fileno)
        elif _open is None:
            kind = _kernel.SOCK_STREAM if type == -1 else type
            family = _kernel.AF_INET if family == -1 else family
            try:
                _open = create(self.module.stack.socket_host(), family, kind & ~_FLAG_BITS, 0 if proto == -1 else proto)
            except NetError as error:
                raise os_error(error) from None
        self._sock = _open
        self._closed = False
        default = self.module.getdefaulttimeout()
        self._timeout: int | None = None if default is None else _nanoseconds(default)
        if type != -1 and type & SOCK_NONBLOCK:
            self._timeout = 0

    # -- about it -----------------------------------------------------------------------------------------------------

    @property
    def family(self) -> int:
        return _kernel.AddressFamily(self._sock.family)

    @property
    def type(self) -> int:
        return _kernel.SocketKind(self._sock.type)

    @property
    def proto(self) -> int:
        return self._sock.protocol

    @property
    def timeout(self) -> float | None:
        return self.gettimeout()

    def __repr__(self) -> str:
        parts = [f"family={int(self.family)}, type={int(self.type)}, proto={self.proto}"]
        for label, ask in (("laddr", self._sock.phase.local_address), ("raddr", self._sock.phase.peer_address)):
            with suppress(NetError):  # without the lock: a repr must work anywhere, a finaliser included
                parts.append(f"{label}={self._sock.address_out(ask())}")
        state = "[closed] " if self._closed else ""
        return f"<{type(self).__module__}.socket {state}of {self.module.stack.name!r}, {', '.join(parts)}>"

    def getsockname(self) -> Any:
        return self._sock.local_address()

    def getpeername(self) -> Any:
        return self._sock.peer_address()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def settimeout(self, value: float | None, /) -> None:
        self._timeout = None if value is None else _nanoseconds(value)

    def gettimeout(self) -> float | None:
        return None if self._timeout is None else self._timeout / NS_PER_S

    def setblocking(self, flag: bool, /) -> None:
        self._timeout = None if flag else 0

    def getblocking(self) -> bool:
        return self._timeout != 0

    def fileno(self) -> int:
        """A real descriptor that is readable and writable when the socket is (see `stack.socket.mirror`); -1 if closed.

        From now on somebody waits without polling, so the Network's background thread is started.
        """
        if self._closed and self._io_refs <= 0:
            return -1
        if self._mirror is None:
            self._mirror = self._sock.call(self._sock.mirror)
            self.module.descriptors.add(self._sock, self._mirror)
            self._sock.waiting.start()
        return self._mirror.fileno()

    # -- connecting ---------------------------------------------------------------------------------------------------

    def bind(self, address: Any, /) -> None:
        self._sock.bind(address)

    def listen(self, backlog: int = 128, /) -> None:
        self._sock.listen(backlog)

    def accept(self) -> tuple[Self, Any]:
        child, address = self._sock.accept(self._timeout)
        return type(self)(_open=child), address

    def connect(self, address: Any, /) -> None:
        self._sock.connect(address, self._timeout)

    def connect_ex(self, address: Any, /) -> int:
        try:
            self._sock.connect(address, self._timeout)
        except TimeoutError as error:
            return error.errno or errno.EAGAIN
        except _kernel.gaierror:
            raise
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def shutdown(self, how: int, /) -> None:
        self._sock.shutdown(how)

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        return self._sock.send(data if type(data) is bytes else _bytes_view(data), flags, self._timeout)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        self._sock.send_all(data if type(data) is bytes else _bytes_view(data), flags, self._timeout)

    def sendto(self, data: ReadableBuffer, *args: Any) -> int:
        """sendto(data, address) or sendto(data, flags, address)."""
        if not 1 <= len(args) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(args) + 1} given)")
        flags = args[0] if len(args) == 2 else 0
        return self._sock.send_to(_bytes_view(data), flags, args[-1], self._timeout)

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Iterable[tuple[int, int, ReadableBuffer]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        ancillary = [(int(level), int(kind), bytes(_bytes_view(each))) for level, kind, each in ancdata]
        data = b"".join(bytes(_bytes_view(each)) for each in buffers)
        return self._sock.send_message(data, ancillary, flags, address, self._timeout)

    def sendmmsg(self, messages: Iterable[Any], flags: int = 0, /) -> list[int]:
        """Send several messages with one call (sendmmsg(2)); answers the bytes sent of each, as far as it got.

        A message is its data, or a sequence (buffers[, ancdata[, address]]) as for `sendmsg`.
        """
        return send_many(self._sock, [_outgoing(each) for each in messages], flags, self._timeout)

    def recvmmsg(
        self, vlen: int, bufsize: int, ancbufsize: int = 0, flags: int = 0, timeout: float | None = None, /
    ) -> list[tuple[bytes, list[Ancillary], int, Any]]:
        """Up to `vlen` messages with one call (recvmmsg(2)), each as `recvmsg` answers it.

        `timeout`, in seconds, ends the call once a message came after it was over, not before: as on Linux.
        """
        if vlen < 0 or bufsize < 0 or ancbufsize < 0:
            raise ValueError("negative number or buffer size in recvmmsg()")
        limit = None if timeout is None else int(timeout * NS_PER_S)
        messages = receive_many(self._sock, vlen, bufsize, ancbufsize, flags, self._timeout, limit)
        return [(each.data, each.ancillary, each.flags, self._address(each)) for each in messages]

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a binary file from `offset`, at most `count` bytes, as `socket.sendfile`; answers their number."""
        if "b" not in getattr(file, "mode", "b"):
            raise ValueError("file should be opened in binary mode")
        if not self._sock.type & _kernel.SOCK_STREAM:
            raise ValueError("only SOCK_STREAM type sockets are supported")
        if count is not None and count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")
        if self._timeout == 0:
            raise ValueError("non-blocking sockets are not supported")
        if offset or (hasattr(file, "seekable") and file.seekable()):
            file.seek(offset)
        sent = 0
        try:
            while count is None or sent < count:
                block = file.read(_SENDFILE_BLOCK if count is None else min(_SENDFILE_BLOCK, count - sent))
                if not block:
                    break
                self.sendall(block)
                sent += len(block)
            return sent
        finally:
            if hasattr(file, "seek"):
                file.seek(offset + sent)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        if not bufsize:
            return b""  # Python's own class does not ask the kernel either
        return self._sock.recv(bufsize, flags, self._timeout)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        view = _target(buffer, nbytes, "recv_into")
        if not view:
            return 0
        return self._sock.recv_into(view, flags, self._timeout)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        message = self._sock.receive(bufsize, flags, self._timeout)
        return message.data, self._address(message)

    def recvfrom_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        view = _target(buffer, nbytes, "recvfrom_into")
        message = self._sock.receive(len(view), flags, self._timeout)
        view[: len(message.data)] = message.data
        return len(message.data), self._address(message)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Ancillary], int, Any]:
        if bufsize < 0 or ancbufsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        message = self._sock.receive(bufsize, flags, self._timeout, ancbufsize)
        return message.data, message.ancillary, message.flags, self._address(message)

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Ancillary], int, Any]:
        views = [_target(each, 0, "recvmsg_into") for each in buffers]
        data, ancillary, out, address = self.recvmsg(sum(map(len, views)), ancbufsize, flags)
        rest = memoryview(data)
        for view in views:
            part = rest[: len(view)]
            view[: len(part)] = part
            rest = rest[len(part) :]
        return len(data), ancillary, out, address

    def _address(self, message: Message) -> Any:
        return None if message.address is None else self._sock.address_out(message.address)

    # -- options ------------------------------------------------------------------------------------------------------

    def getsockopt(self, level: int, optname: int, buflen: int | None = None, /) -> Any:
        """An int, or with `buflen` up to that many bytes."""
        if buflen is not None and not 0 < buflen <= 1024:
            raise OSError("getsockopt buflen out of range")
        return self._sock.get_option(level, optname, buflen)

    def setsockopt(
        self, level: int, optname: int, value: int | ReadableBuffer | None, optlen: int | None = None, /
    ) -> None:
        if value is None:
            if optlen is None:
                raise TypeError("setsockopt() with None needs the length")
            value = bytes(optlen)
        self._sock.set_option(level, optname, value if isinstance(value, int) else bytes(value))

    def get_inheritable(self) -> bool:
        return False

    def set_inheritable(self, inheritable: bool, /) -> None:
        if inheritable:
            raise OSError(errno.EOPNOTSUPP, "a socket of a Stack lives in this process only")

    # -- files --------------------------------------------------------------------------------------------------------

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """As `socket.socket.makefile`."""
        if not set(mode) <= set("rwb"):
            raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
        writing, binary = "w" in mode, "b" in mode
        reading = "r" in mode or not writing
        raw = _kernel.SocketIO(self, "r" * reading + "w" * writing)  # type: ignore[arg-type]  # it asks for the shape
        self._io_refs += 1
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        if size == 0:
            if not binary:
                raise ValueError("unbuffered streams must be binary")
            return raw
        buffer: Any
        if reading and writing:
            buffer = io.BufferedRWPair(raw, raw, size)
        else:
            buffer = io.BufferedReader(raw, size) if reading else io.BufferedWriter(raw, size)
        if binary:
            return buffer
        text = io.TextIOWrapper(buffer, encoding, errors, newline)
        text.mode = mode  # type: ignore[misc]  # as the standard library does
        return text

    def _decref_socketios(self) -> None:
        """Called by SocketIO when it is closed."""
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._closed:
            self.close()

    # -- life ---------------------------------------------------------------------------------------------------------

    def dup(self) -> Self:
        """A second socket object for the same open socket."""
        copy = type(self)(_open=self._sock.share())
        copy._timeout = self._timeout  # noqa: SLF001 - another of us
        return copy

    def detach(self) -> int:
        """Let go of the socket without closing it; `socket(fileno=...)` of this module takes it up again."""
        fd = self.fileno()
        if fd >= 0:
            assert self._mirror is not None
            self.module.descriptors.park(fd, self._sock, self._mirror)
            self._mirror = None
            self._sock = self._corpse()
            self._closed = True
        return fd

    def close(self) -> None:
        """Files made with `makefile` keep the connection open until they are closed too. Idempotent."""
        self._closed = True
        if self._io_refs <= 0:
            self._really_close()

    def _really_close(self) -> None:
        sock, mirror = self._sock, self._mirror
        if sock.phase is CLOSED and mirror is None:
            return
        self._sock, self._mirror = self._corpse(), None
        self.module.descriptors.close(sock, mirror)

    def _corpse(self) -> Socket:
        """What is left of the open socket for this object: every operation is EBADF."""
        sock = self._sock
        corpse = object.__new__(type(sock))
        Socket.__init__(corpse, sock.host, sock.type, sock.protocol)
        corpse.family = sock.family
        return corpse

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._closed:
            self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._sock.phase is not CLOSED:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
            self._sock.abandon(self._mirror)

    def __getstate__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


def _nanoseconds(seconds: float) -> int:
    if seconds < 0:
        raise ValueError("Timeout value out of range")
    # A timeout that is not zero must not become "non-blocking".
    return max(int(seconds * NS_PER_S), 1) if seconds else 0


def _bytes_view(data: ReadableBuffer) -> bytes | memoryview:
    if isinstance(data, str):
        raise TypeError("a bytes-like object is required, not 'str'")
    if type(data) is bytes:
        return data
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")


def _outgoing(message: Any) -> Outgoing:
    """A message of `sendmmsg` as its parts."""
    if not isinstance(message, (tuple, list)):
        return bytes(_bytes_view(message)), (), None
    parts: list[Any] = [*message]
    buffers, ancdata, address = parts + [(), None][len(parts) - 1 :]
    ancillary = [(int(level), int(kind), bytes(_bytes_view(each))) for level, kind, each in ancdata]
    return b"".join(bytes(_bytes_view(each)) for each in buffers), ancillary, address


def _target(buffer: WriteableBuffer, nbytes: int, caller: str) -> memoryview:
    view = memoryview(buffer)
    if view.readonly:
        raise TypeError(f"{caller}() argument 1 must be read-write bytes-like object, not {type(buffer).__name__}")
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    if nbytes < 0:
        raise ValueError(f"negative buffersize in {caller}")
    if nbytes > len(view):
        raise ValueError("buffer too small for requested bytes")
    return view[:nbytes] if nbytes else view
