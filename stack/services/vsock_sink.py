"""A port that guests report to: every stream's bytes go to a receiver, in the Network's turns, without a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from stack.errors import Drops
from stack.vsock import VsockConnection, VsockEngine, VsockState

#: Streams at a time: a guest's services report one after the other, and each may leave a receiver half full.
STREAM_LIMIT: Final = 16
_PIECE: Final = 256 << 10


class Receiver(Protocol):
    """What becomes of one stream. Lock held by the caller; nothing waits."""

    def feed(self, data: bytes) -> None:
        """More bytes. Raises ValueError if they make no sense: the stream is reset then."""
        ...

    def end(self) -> None:
        """The guest has sent everything. Raises ValueError as `feed` does."""
        ...


class VsockSink:
    """Listens on `port` (PORT_ANY chooses) until `close`. Raises NetError if that is taken. Lock held by the caller."""

    def __init__(self, engine: VsockEngine, port: int, receiver: Callable[[], Receiver]) -> None:
        self.drops = Drops()
        self._scheduler = engine.scheduler
        self._receiver = receiver
        self._streams: dict[VsockConnection, Receiver] = {}
        self._listener = engine.listen(port)
        self._listener.on_event = self._accept
        self.port: int = self._listener.local[1]

    def close(self) -> None:
        """Streams under way are reset. Idempotent."""
        self._listener.close()
        for connection in tuple(self._streams):
            connection.close(0)
        self._streams.clear()

    def _accept(self) -> None:
        while (connection := self._listener.accept()) is not None:
            if len(self._streams) >= STREAM_LIMIT:
                self.drops.count("stream-limit")
                connection.close(0)
                continue
            self._streams[connection] = self._receiver()
            connection.on_event = self._event
            self._event()

    def _event(self) -> None:
        self._scheduler.defer(self._run)

    def _run(self) -> None:
        for connection, receiver in tuple(self._streams.items()):
            try:
                while data := connection.read(_PIECE):
                    receiver.feed(data)
                if connection.eof:
                    failed = connection.state is VsockState.CLOSED and connection.take_error() != 0
                    if failed:
                        self.drops.count("cut-off")
                    else:
                        receiver.end()
                    del self._streams[connection]
                    connection.close()
            except ValueError:
                self.drops.count("malformed")
                del self._streams[connection]
                connection.close(0)
