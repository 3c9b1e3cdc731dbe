"""Servers of the host that guests see: `Lan.serve`. One line gives a name, an address and a listener; calls are kept.

Three kinds of handler:

* HTTP: a function of a `Request`, or a mapping from paths to replies, or one reply for everything. A reply is text,
  bytes, anything that JSON can hold, a status number, or a `Reply`. Or a `http.server.BaseHTTPRequestHandler` class.
* ``connection=``: a function that is given each connection, a socket of the gateway's, in a thread of its own; the
  connection is closed when it returns.
* ``protocol=``: an `asyncio.Protocol` factory, run in an event loop of the service's own.

What a handler raises is kept in `errors`, for whoever looks why the guest got no answer; over HTTP the guest gets 500.
"""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from qemu.guest.errors import GuestTimeoutError, SetupError

if TYPE_CHECKING:
    from stack import Stack

_BACKLOG: Final = 64
_END_SECONDS: Final = 5.0
#: A request's body is read up to this; what a guest sends beyond is refused (413).
MAX_BODY: Final = 16 << 20
_READ_BYTES: Final = 65536
_STATUS_BAD, _STATUS_TOO_LARGE, _STATUS_ERROR, _STATUS_NOT_FOUND = 400, 413, 500, 404


@dataclass(slots=True)
class Request:
    """One HTTP request of a guest."""

    method: str
    path: str  #: without the query
    query: str
    headers: dict[str, str]  #: names in lower case
    body: bytes
    peer: tuple[str, int]

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body. Raises ValueError if it is no JSON."""
        return json.loads(self.body)


@dataclass(slots=True)
class Reply:
    """An HTTP answer."""

    body: bytes | str = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Connected:
    """A connection that a handler was given."""

    peer: tuple[str, int]


class Service:
    """One server on the LAN. A context manager whose value is the list of calls; `close` is idempotent."""

    def __init__(
        self,
        stack: Stack,
        name: str,
        address: str,
        port: int,
        handler: Any = None,
        *,
        connection: Callable[[Any], object] | None = None,
        protocol: Callable[[], asyncio.BaseProtocol] | None = None,
    ) -> None:
        """Raises SetupError if there is not exactly one handler, or the address cannot be listened on."""
        if sum(kind is not None for kind in (handler, connection, protocol)) != 1:
            raise SetupError(f"{name}:{port} needs one of: a handler of HTTP requests, connection=, protocol=")
        self.name = name
        self.address = address
        self.port = port
        self.calls: list[Any] = []  #: `Request`s, or a `Connected` for each connection; oldest first
        self.errors: list[str] = []  #: what handlers raised, as tracebacks
        self._changed = threading.Condition()
        self._closed = False
        self._connections: set[Any] = set()
        self._serve_one = self._choose(handler, connection, protocol)
        try:
            self._listener = stack.socket.create_server((address, port), backlog=_BACKLOG)
        except OSError as error:
            raise SetupError(f"cannot serve {name}:{port} on {address}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._accept, name=f"serve {name}:{port}", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.name}:{self.port}"

    def wait(self, count: int = 1, *, timeout: float = 30.0) -> list[Any]:
        """Until there were `count` calls; all of them. Raises GuestTimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.calls) >= count, timeout):
                raise GuestTimeoutError(
                    f"waited {timeout:g} s for {count} calls of {self.name}:{self.port}; there were {len(self.calls)}"
                )
            return list(self.calls)

    def close(self) -> None:
        """Stop listening, end the connections, wait for the handlers."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            ending = list(self._connections)
        with suppress(OSError):
            self._listener.close()
        for connection in ending:
            with suppress(OSError):
                connection.shutdown(2)
        self._thread.join(_END_SECONDS)
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, _END_SECONDS)

    def __enter__(self) -> list[Any]:
        return self.calls

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _choose(
        self,
        handler: Any,
        connection: Callable[[Any], object] | None,
        protocol: Callable[[], asyncio.BaseProtocol] | None,
    ) -> Callable[[Any, tuple[str, int]], None]:
        if connection is not None:
            return lambda sock, peer: self._call_connection(connection, sock, peer)
        if protocol is not None:
            return lambda sock, peer: self._call_protocol(protocol, sock, peer)
        if isinstance(handler, type) and issubclass(handler, BaseHTTPRequestHandler):
            return lambda sock, peer: self._call_class(handler, sock, peer)
        answer = handler if callable(handler) else _table(handler)
        return lambda sock, peer: _Http(sock, peer, self, answer).run()

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError:
                return  # closed
            with self._changed:
                if self._closed:
                    sock.close()
                    return
                self._connections.add(sock)
            threading.Thread(
                target=self._serve, args=(sock, (address[0], address[1])), name=f"serve {self.name}", daemon=True
            ).start()

    def _serve(self, sock: Any, peer: tuple[str, int]) -> None:
        try:
            self._serve_one(sock, peer)
        except (ConnectionError, TimeoutError):
            pass  # the guest went away: its business
        except Exception:  # noqa: BLE001 - a handler of the user's, shown where he looks
            self.failed()
        finally:
            with suppress(OSError):
                sock.close()
            with self._changed:
                self._connections.discard(sock)
                self._changed.notify_all()

    def failed(self) -> None:
        """Keep the exception that is being handled, unless we are closing and it is our doing."""
        with self._changed:
            if not self._closed:
                self.errors.append(traceback.format_exc())

    def called(self, call: Any) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()

    def _call_connection(self, function: Callable[[Any], object], sock: Any, peer: tuple[str, int]) -> None:
        self.called(Connected(peer))
        function(sock)

    def _call_class(self, handler: type[BaseHTTPRequestHandler], sock: Any, peer: tuple[str, int]) -> None:
        service = self

        class Recording(handler):  # type: ignore[misc, valid-type]  # the base is the user's class
            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base's name
                pass  # not to our standard error

            def parse_request(self) -> bool:
                parsed = bool(super().parse_request())
                if parsed:
                    url = urlsplit(self.path)
                    headers = {key.lower(): value for key, value in self.headers.items()}
                    service.called(Request(self.command, url.path, url.query, headers, b"", peer))
                return parsed

        Recording(sock, peer, self)  # it asks nothing of its server

    def _call_protocol(self, factory: Callable[[], Any], sock: Any, peer: tuple[str, int]) -> None:
        self.called(Connected(peer))

        async def run() -> None:
            transport = _Transport(asyncio.get_running_loop(), sock, factory(), peer)
            await transport.pump()

        asyncio.run(run())


class _Transport(asyncio.Transport):
    """A protocol's transport over a socket of a Stack. Reading is a thread's; writing is too, a queue between."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: Any, protocol: Any, peer: tuple[str, int]) -> None:
        super().__init__({"peername": peer, "socket": sock, "sockname": sock.getsockname()})
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._out: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._closing = False
        self._done = loop.create_future()

    async def pump(self) -> None:
        """From `connection_made` to `connection_lost`."""
        self._protocol.connection_made(self)
        writer = self._loop.create_task(self._write_all())
        reader = self._loop.create_task(self._read_all())
        failure = await self._done
        with suppress(OSError):
            self._sock.shutdown(2)
        for task in (writer, reader):
            task.cancel()
        await asyncio.gather(writer, reader, return_exceptions=True)
        self._protocol.connection_lost(failure)

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._out.put_nowait(bytes(data))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """Send what is queued, then end."""
        if not self._closing:
            self._closing = True
            self._out.put_nowait(None)

    def abort(self) -> None:
        self._closing = True
        self._finish(None)

    def _finish(self, failure: BaseException | None) -> None:
        if not self._done.done():
            self._done.set_result(failure)

    async def _write_all(self) -> None:
        try:
            while (data := await self._out.get()) is not None:
                await asyncio.to_thread(self._sock.sendall, data)
        except OSError as error:
            self._finish(error)
        self._finish(None)

    async def _read_all(self) -> None:
        try:
            while data := await asyncio.to_thread(self._sock.recv, _READ_BYTES):
                self._protocol.data_received(data)
            if not self._protocol.eof_received():
                self.close()
        except OSError as error:
            self._finish(error)


class _Http:
    """HTTP/1.x on one connection, as far as a test's server needs it."""

    def __init__(self, sock: Any, peer: tuple[str, int], service: Service, answer: Callable[[Request], Any]) -> None:
        self._sock = sock
        self._peer = peer
        self._service = service
        self._answer = answer

    def run(self) -> None:
        with self._sock.makefile("rb") as stream:
            while self._one(stream):
                pass

    def _one(self, stream: Any) -> bool:
        """Answer one request; whether there may be another."""
        line = stream.readline(_READ_BYTES)
        if not line.strip():
            return False
        try:
            method, target, version = line.decode("latin-1").split()
            headers = _headers(stream)
            length = int(headers.get("content-length", "0"))
        except ValueError:
            self._send(Reply("not a request\n", _STATUS_BAD), close=True)
            return False
        if not 0 <= length <= MAX_BODY:
            self._send(Reply("too large\n", _STATUS_TOO_LARGE), close=True)
            return False
        if headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _chunks(stream) if headers.get("transfer-encoding", "").lower() == "chunked" else stream.read(length)
        url = urlsplit(target)
        request = Request(method, url.path, url.query, headers, body, self._peer)
        try:
            reply = _reply(self._answer(request))
        except Exception:  # noqa: BLE001 - a handler of the user's
            self._service.failed()
            reply = Reply("the test's handler failed\n", _STATUS_ERROR)
        close = version == "HTTP/1.0" or headers.get("connection", "").lower() == "close"
        self._send(reply, close=close, head=method == "HEAD")
        self._service.called(request)
        return not close

    def _send(self, reply: Reply, *, close: bool, head: bool = False) -> None:
        from http import HTTPStatus

        body = reply.body.encode() if isinstance(reply.body, str) else reply.body
        try:
            phrase = HTTPStatus(reply.status).phrase
        except ValueError:
            phrase = "Status"
        headers = {"Content-Length": str(len(body)), "Connection": "close" if close else "keep-alive", **reply.headers}
        lines = [f"HTTP/1.1 {reply.status} {phrase}", *(f"{key}: {value}" for key, value in headers.items()), "", ""]
        self._sock.sendall("\r\n".join(lines).encode("latin-1") + (b"" if head else body))


def parse_where(where: str) -> tuple[str, int]:
    """(name, port) of ``name:port``; without a port, 80. Raises SetupError."""
    name, colon, port = where.rpartition(":")
    if not colon:
        name, port = where, "80"
    labels = name.rstrip(".").split(".")
    if not all(0 < len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() for label in labels):
        raise SetupError(f"{where!r}: {name!r} is no name of a host; say name:port")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise SetupError(f"{where!r}: {port!r} is no port")
    return name.rstrip(".").lower(), int(port)


def _headers(stream: Any) -> dict[str, str]:
    headers: dict[str, str] = {}
    while (line := stream.readline(_READ_BYTES).decode("latin-1").rstrip("\r\n")) and len(headers) < 200:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(line)
        headers[name.strip().lower()] = value.strip()
    return headers


def _chunks(stream: Any) -> bytes:
    body = b""
    while (size := int(stream.readline(_READ_BYTES).split(b";")[0] or b"0", 16)) and len(body) + size <= MAX_BODY:
        body += stream.read(size)
        stream.readline(_READ_BYTES)
    while stream.readline(_READ_BYTES).strip():
        pass  # trailers
    return body


def _table(table: Any) -> Callable[[Request], Any]:
    """A mapping whose keys are paths answers by path; anything else is the one reply."""
    if isinstance(table, Mapping) and table and all(isinstance(key, str) and key.startswith("/") for key in table):
        missing = Reply("not found\n", _STATUS_NOT_FOUND)
        return lambda request: table.get(request.path, missing)
    return lambda _: table


def _reply(value: Any) -> Reply:
    match value:
        case Reply():
            return value
        case bool() | None:
            return Reply(json.dumps(value), headers={"Content-Type": "application/json"})
        case int():
            return Reply(status=value)
        case str() | bytes():
            return Reply(value)
        case _:
            return Reply(json.dumps(value), headers={"Content-Type": "application/json"})
