"""TLS over a Stack's sockets: what `ssl.SSLContext.wrap_socket` makes of one.

Theory of operation
-------------------
`ssl.SSLSocket` is a subclass of the kernel's socket class, and the C type below it reads and writes that class's
descriptor: neither can be had over a socket of ours. But a context asks its `sslsocket_class` for what it makes, and
OpenSSL is content with two memory buffers. So:

* `SSLContext.sslsocket_class` becomes a class that makes ours for a socket of a Stack and the standard one otherwise;
* ours has the interpreter's own methods, rebuilt over the Stack's class `socket` (what they call `super()` is a cell);
* `TlsStream` is what they take for the C object: the C object over memory buffers, and the pump between those and the
  socket below. It has the C type's behaviour towards time-outs and non-blocking sockets.

That the thread that wants data fetches and decrypts it itself costs one more copy than OpenSSL's own reading, and no
hand-over between threads; what the other way costs is in docs/decisions/0019-tls.md. asyncio needs none of this: its
TLS works on memory buffers by itself.
"""

from __future__ import annotations

import errno
import ssl
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any, Final

from stack.socket.api import StackSocket
from stack.socket.arguments import readable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Bytes fetched from the socket at a time, and encrypted at a time where waiting is allowed: some TLS records.
_CHUNK: Final = 256 * 1024
#: Bytes of one TLS record (RFC 8446 section 5.1): what a call that must not wait takes.
_RECORD: Final = 16384


class TlsStream:
    """Stands in for `_ssl._SSLSocket`; everything that does no input or output is that object's own."""

    def __init__(self, sock: Any, context: ssl.SSLContext, *, server_side: bool, hostname: str | None, session: Any):
        self._owner = weakref.ref(sock)  # which owns us
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context._wrap_bio(  # type: ignore[attr-defined]  # noqa: SLF001 - as SSLObject does
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=hostname,
            owner=sock,
            session=session,
        )
        self._unsent = memoryview(b"")  # encrypted, not taken by the socket yet
        self._written = 0  # bytes of the caller's in there, for whom he will ask again

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ssl, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("context", "session"):
            setattr(self._ssl, name, value)
        else:
            super().__setattr__(name, value)

    def read(self, size: int = 1024, buffer: Any = None) -> Any:
        return self._run("read", self._ssl.read, *((size,) if buffer is None else (size, buffer)))

    def do_handshake(self) -> None:
        self._run("handshake", self._ssl.do_handshake)

    def verify_client_post_handshake(self) -> Any:
        return self._run("write", self._ssl.verify_client_post_handshake)

    def shutdown(self) -> Any:
        """Say goodbye, hear it; the socket is plain again. What it got beyond the end of TLS is for its reader."""
        self._run("shutdown", self._ssl.shutdown)
        sock = self._socket()
        sock._beyond += self._incoming.read()  # noqa: SLF001 - of our own class
        return sock

    def write(self, data: ReadableBuffer) -> int:
        """As of the C type: who was told to try again tries with the same data, and hears how much of it went."""
        limit = self._limit()
        self._flush("write", limit)
        if self._written:
            written, self._written = self._written, 0
            return written
        view = memoryview(readable(data))[: _CHUNK if limit is None or limit else _RECORD]
        written = self._run("write", self._encrypt, view)
        self._written = 0
        return int(written)

    def _encrypt(self, view: memoryview) -> int:
        self._written = self._ssl.write(view)
        return self._written

    # -- the pump -----------------------------------------------------------------------------------------------------

    def _socket(self) -> Any:
        sock = self._owner()
        if sock is None:
            raise ssl.SSLError("Underlying socket connection gone")
        return sock

    def _limit(self) -> int | None:
        """When (ns) to give up: 0 at once, None never."""
        sock = self._socket()
        timeout: int | None = sock._patience()  # noqa: SLF001 - of our own class
        return timeout + sock._sock.waiting.clock() if timeout else timeout  # noqa: SLF001

    def _left(self, what: str, limit: int | None) -> int | None:
        if not limit:
            return limit
        left = limit - int(self._socket()._sock.waiting.clock())  # noqa: SLF001
        if left <= 0:
            raise TimeoutError(f"The {what} operation timed out")
        return left

    def _run(self, what: str, step: Callable[..., Any], *args: Any) -> Any:
        limit = self._limit()
        while True:
            try:
                result = step(*args)
            except ssl.SSLWantReadError:
                self._flush(what, limit)
                self._fetch(what, limit)
            except ssl.SSLError:
                with suppress(OSError):  # the alert that tells the peer why
                    self._flush(what, limit)
                raise
            else:
                self._flush(what, limit)
                return result

    def _fetch(self, what: str, limit: int | None) -> None:
        """More from the socket, or its end."""
        left = self._left(what, limit)
        try:
            data = self._socket()._sock.recv(_CHUNK, 0, left)  # noqa: SLF001 - of our own class
        except BlockingIOError:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, f"The operation did not complete ({what})") from None
        except TimeoutError as error:
            if error.errno is not None:  # the connection's, not ours
                raise
            raise TimeoutError(f"The {what} operation timed out") from None
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self, what: str, limit: int | None) -> None:
        """What is encrypted, to the socket."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            left = self._left(what, limit)
            try:
                sent = self._socket()._sock.send(self._unsent, 0, left)  # noqa: SLF001 - of our own class
            except BlockingIOError:
                raise ssl.SSLWantWriteError(
                    ssl.SSL_ERROR_WANT_WRITE, f"The operation did not complete ({what})"
                ) from None
            except TimeoutError as error:
                if error.errno is not None:
                    raise
                raise TimeoutError(f"The {what} operation timed out") from None
            self._unsent = self._unsent[sent:]


class _TlsSocket(StackSocket):
    """What our class has besides the interpreter's methods."""

    __slots__ = ()

    _beyond: bytes  #: plain bytes that came with the last of TLS

    @classmethod
    def _create(
        cls,
        sock: StackSocket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        context: Any = None,
        session: Any = None,
    ) -> Any:
        """As `ssl.SSLSocket._create`: takes `sock` over."""
        if sock.type != ssl.SOCK_STREAM:
            raise NotImplementedError("only stream sockets are supported")
        if server_side and server_hostname:
            raise ValueError("server_hostname can only be specified in client mode")
        if server_side and session is not None:
            raise ValueError("session can only be specified in client mode")
        if context.check_hostname and not server_hostname:
            raise ValueError("check_hostname requires server_hostname")
        self: Any = cls.__new__(cls)
        self._take(sock)
        self._io_refs, self._closed, self._beyond = 0, False, b""
        sock.close()
        self._context, self._session, self._sslobj = context, session, None
        self.server_side = server_side
        self.server_hostname = context._encode_hostname(server_hostname)  # noqa: SLF001 - as SSLSocket does
        self.do_handshake_on_connect = do_handshake_on_connect
        self.suppress_ragged_eofs = suppress_ragged_eofs
        try:
            self._connected = self._is_connected()
            if self._connected:
                self._wrap()
                if do_handshake_on_connect:
                    if self.gettimeout() == 0.0:
                        raise ValueError("do_handshake_on_connect should not be specified for non-blocking sockets")
                    self.do_handshake()
        except (OSError, ValueError):
            self.close()
            raise
        return self

    def _is_connected(self) -> bool:
        try:
            self.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            with suppress(OSError):
                if self._sock.recv(1, 0, 0):
                    reason = "Closed before TLS handshake with data in recv buffer."
                    failure = ssl.SSLError(errno.ENOTCONN, reason)
                    failure.reason = reason
                    raise failure from None
            return False
        return True

    def _wrap(self: Any) -> None:
        self._sslobj = TlsStream(
            self, self._context, server_side=self.server_side, hostname=self.server_hostname, session=self._session
        )

    def _real_connect(self: Any, addr: Any, connect_ex: bool) -> int | None:
        if self.server_side:
            raise ValueError("can't connect in server-side mode")
        if self._connected or self._sslobj is not None:
            raise ValueError("attempt to connect already-connected SSLSocket!")
        self._wrap()
        try:
            result: int | None = (StackSocket.connect_ex if connect_ex else StackSocket.connect)(self, addr)
            if not result:
                self._connected = True
                if self.do_handshake_on_connect:
                    self.do_handshake()
        except (OSError, ValueError):
            self._sslobj = None
            raise
        return result


def make_class(base: type) -> type:
    """The class for the sockets of one Stack; `base` is its class `socket`."""
    cell = CellType()
    own = {**vars(_TlsSocket), "__class__": property(lambda _: ssl.SSLSocket)}
    theirs = {name: _rebuilt(value, cell) for name, value in vars(ssl.SSLSocket).items()}
    for name in ("__dict__", "__weakref__", "__slots__", "_sock", "_end", "_timeout"):
        own.pop(name, None)
        theirs.pop(name, None)
    cell.cell_contents = made = type("SSLSocket", (_Beyond, base), {**theirs, **own, "__module__": "ssl"})
    return made


class _Beyond(StackSocket):
    """Reads first what came with the last of TLS, once that is over."""

    __slots__ = ()

    def recv(self: Any, bufsize: int, flags: int = 0, /) -> bytes:
        if self._beyond and bufsize > 0:
            data: bytes = self._beyond[:bufsize]
            self._beyond = self._beyond[bufsize:]
            return data
        return super().recv(bufsize, flags)

    def recv_into(self: Any, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if self._beyond:
            view = memoryview(buffer).cast("B")
            data = self.recv(min(nbytes or len(view), len(view)))
            view[: len(data)] = data
            return len(data)
        return super().recv_into(buffer, nbytes, flags)


def _rebuilt(value: Any, cell: CellType) -> Any:
    """A method of SSLSocket whose `super()` is that of the class in `cell`."""
    if isinstance(value, property):
        fget, fset, fdel = (each and _rebuilt(each, cell) for each in (value.fget, value.fset, value.fdel))
        return property(fget, fset, fdel)
    if not isinstance(value, FunctionType) or "__class__" not in value.__code__.co_freevars:
        return value
    closure = tuple(
        cell if name == "__class__" else each
        for name, each in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    )
    copy = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
    copy.__kwdefaults__, copy.__doc__ = value.__kwdefaults__, value.__doc__
    return copy


class _Chooser(ssl.SSLSocket):
    """What contexts make their sockets by; nothing is ever an instance of it."""

    @classmethod
    def _create(cls, sock: Any, *args: Any, **kwargs: Any) -> Any:
        make: Any = sock.surface.tls_class if isinstance(sock, StackSocket) else ssl.SSLSocket
        return make._create(sock, *args, **kwargs)  # noqa: SLF001 - SSLContext calls it


def hook() -> None:
    """Have `SSLContext.wrap_socket` take sockets of Stacks. Idempotent; other sockets see no difference."""
    if ssl.SSLContext.sslsocket_class is ssl.SSLSocket:
        ssl.SSLContext.sslsocket_class = _Chooser
