"""DNS over TCP (RFC 1035 section 4.2.2, RFC 7766): messages with two bytes of length before each, in any number.

Connections, what each may have unanswered, and what it may leave unread are bounded; one that is idle too long is
closed, and the one that is idle for longest gives way to a new one. Answers go out as they come, each with its id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.errors import Drops
from stack.scheduler import NS_PER_S, Scheduler
from stack.wire.dns import MAXIMUM_STREAM

if TYPE_CHECKING:
    from stack.services.dns_server import DnsServer
    from stack.tcp.connection import Connection
    from stack.tcp.listener import Listener

MAX_CONNECTIONS: Final = 64
#: Of one connection, asked and not yet answered; beyond it nothing more is read (RFC 7766 section 6.2.1.1).
MAX_PENDING: Final = 16
#: Of one connection, answered and not yet taken by the network, bytes.
MAX_UNSENT: Final = 4 * (2 + MAXIMUM_STREAM)
#: Messages of one connection answered in one turn; others want their share of it too.
BUDGET: Final = 16
IDLE: Final = 10 * NS_PER_S  # RFC 7766 section 6.2.3: "on the order of seconds"
_LENGTH: Final = 2


class DnsStreams:
    """The connections of one listener, which is closed with them."""

    def __init__(self, listener: Listener, server: DnsServer, scheduler: Scheduler, drops: Drops) -> None:
        self.listener = listener
        self.server = server
        self.scheduler = scheduler
        self.drops = drops
        self._streams: dict[DnsStream, None] = {}  # idle longest first
        listener.on_event = self._arrived

    def __len__(self) -> int:
        return len(self._streams)

    def close(self) -> None:
        """Idempotent. Connections end at once."""
        self.listener.on_event = None
        for stream in tuple(self._streams):
            stream.end(abort=True)
        self.listener.close()

    def forget(self, stream: DnsStream) -> None:
        self._streams.pop(stream, None)

    def used(self, stream: DnsStream) -> None:
        """It is now the one idle for the shortest time."""
        if stream in self._streams:
            del self._streams[stream]
            self._streams[stream] = None

    def _arrived(self) -> None:
        self.scheduler.defer(self._accept)

    def _accept(self) -> None:
        while (connection := self.listener.accept()) is not None:
            if len(self._streams) >= MAX_CONNECTIONS:
                self.drops.count("too-many-connections")
                next(iter(self._streams)).end(abort=True)
            self._streams[DnsStream(self, connection)] = None


class DnsStream:
    """One connection."""

    def __init__(self, owner: DnsStreams, connection: Connection) -> None:
        self._owner = owner
        self._connection = connection
        self._input = bytearray()
        self._output = bytearray()
        self._pending = 0
        self._open = True
        self._idle = owner.scheduler.timer(self.end)
        self._more = owner.scheduler.timer(self._run)
        connection.on_event = self._event
        self._touch()
        self._event()

    @property
    def live(self) -> bool:
        return self._open

    def end(self, *, abort: bool = False) -> None:
        """Idempotent."""
        if not self._open:
            return
        self._open = False
        self._idle.cancel()
        self._more.cancel()
        self._connection.on_event = None
        self._connection.close(0 if abort else None)
        self._owner.forget(self)

    def _touch(self) -> None:
        self._idle.arm_in(IDLE)
        self._owner.used(self)

    def _event(self) -> None:
        self._owner.scheduler.defer(self._run)

    def _run(self) -> None:
        if not self._open:
            return
        connection = self._connection
        if connection.error or not (connection.can_write or connection.eof):
            self.end(abort=True)
            return
        self._write()
        budget = BUDGET
        while self.live and self._pending < MAX_PENDING and len(self._output) < MAX_UNSENT:
            if not budget:
                self._more.arm_in(0)
                return
            if self._take_message():
                budget -= 1
            elif not self._read():
                break
        if self.live and connection.eof and not (connection.readable or self._pending or self._output):
            self.end()

    def _read(self) -> bool:
        """Whether there was more of the message begun, or of the next."""
        data = self._connection.read(MAXIMUM_STREAM)
        self._input += data
        return bool(data)

    def _take_message(self) -> bool:
        """Answer the first message, if it is complete."""
        if len(self._input) < _LENGTH:
            return False
        length = int.from_bytes(self._input[:_LENGTH], "big")
        if len(self._input) < _LENGTH + length:
            return False
        message = bytes(self._input[_LENGTH : _LENGTH + length])
        del self._input[: _LENGTH + length]
        self._touch()
        self._pending += 1
        self._owner.server.handle(message, self._answered, client=self._connection.remote[0], stream=True)
        return True

    def _answered(self, answer: bytes | None) -> None:
        self._pending -= 1
        if answer is not None and self._open:
            self._output += len(answer).to_bytes(_LENGTH, "big") + answer
        self._event()

    def _write(self) -> None:
        connection = self._connection
        if self._output and connection.can_write:
            taken = connection.write(bytes(self._output))
            if taken:
                del self._output[:taken]
                self._touch()
        elif self._output:
            self._output.clear()
