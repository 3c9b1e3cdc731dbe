"""AF_UNIX streams: the socket object and its connected phase (rows UNX-09, 10, 12..17, CTRL-03, CTRL-05)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from stack.errors import NetError
from stack.socket.cmsg import SCM_RIGHTS
from stack.socket.message import MSG_DONTWAIT, MSG_NOSIGNAL, MSG_OOB, MSG_PEEK, MSG_WAITALL, Ancillary, Message
from stack.socket.phase import AGAIN, Again, Timeout
from stack.socket.poll import IN, PRI
from stack.socket.unix import SOCK_STREAM
from stack.socket.unix.connecting import UnixConnected, UnixInit, UnixListen
from stack.socket.unix.control import NOTHING
from stack.socket.unix.socket import UnixSocket
from stack.unix.control import NOBODY
from stack.unix.reading import Reading
from stack.unix.stream import StreamEndpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import Buffer
    from stack.socket.base import Host
    from stack.socket.unix.control import Attached
    from stack.unix.endpoint import Endpoint


class StreamConnected(UnixConnected[StreamEndpoint]):
    """Until it is closed, whatever the peer does."""

    __slots__ = ()
    sends_nothing: ClassVar[bool] = False

    def send(self, data: Buffer, flags: int, address: bytes | None) -> int | Again:
        """The hot path."""
        if address is not None or flags & MSG_OOB:
            return self.transmit(data, flags, address, NOTHING)
        taken = self.endpoint.write(data if type(data) is bytes else bytes(data))
        return AGAIN if taken is None else taken

    def transmit(self, data: Buffer, flags: int, address: bytes | None, attached: Attached) -> int | Again:
        if flags & MSG_OOB and not data:
            raise NetError(errno.EOPNOTSUPP)
        if address is not None:
            raise NetError(errno.EISCONN)
        content = data if type(data) is bytes else bytes(data)
        taken = self.endpoint.write(content, attached.identity, attached.rights, urgent=bool(flags & MSG_OOB))
        return AGAIN if taken is None else taken

    def recv(self, size: int, flags: int) -> bytes | Again:
        """The hot path."""
        if flags:
            message = self.receive(size, flags)
            return AGAIN if message is AGAIN else message.data
        data = self.endpoint.read(size)
        return AGAIN if data is None else data

    def receive(self, size: int, flags: int, room: int = 0) -> Message | Again:
        reading = self.reading(size, flags)
        if flags & MSG_OOB:
            self.endpoint.read_urgent(reading)
        elif not self.endpoint.advance(reading) and not reading.copied:
            return AGAIN
        return self.finish(reading, flags, room)

    def reading(self, size: int, flags: int) -> Reading:
        """What a receive call begins with."""
        target = size if flags & MSG_WAITALL else self.socket.low_water
        return Reading(size, peek=bool(flags & MSG_PEEK), target=target)

    def finish(self, reading: Reading, flags: int, room: int) -> Message:
        """What a reading has become."""
        if reading.oob:  # nothing else comes with it
            return Message(reading.data(), None, MSG_OOB, reading.copied)
        identity = reading.identity if reading.source is not None else NOBODY
        return self.message(reading.data(), reading.source, identity, reading.rights, flags, room)

    def poll(self) -> int:
        return self.readiness() | (PRI if self.endpoint.urgent is not None else 0)


class UnixStreamSocket(UnixSocket[StreamEndpoint]):
    """socket(AF_UNIX, SOCK_STREAM)."""

    unconnected = errno.EINVAL

    def __init__(self, host: Host, protocol: int, endpoint: StreamEndpoint | None = None) -> None:
        super().__init__(host, SOCK_STREAM, protocol, endpoint or StreamEndpoint(host.unix, host.netns.abstract))
        self.phase = UnixInit(self, self.endpoint) if endpoint is None else StreamConnected(self, endpoint)

    def accepted(self, endpoint: Endpoint) -> UnixStreamSocket:
        assert isinstance(endpoint, StreamEndpoint)
        return UnixStreamSocket(self.host, self.protocol, endpoint)

    def connected(self) -> StreamConnected:
        return StreamConnected(self, self.endpoint)

    def listening(self) -> UnixListen[StreamEndpoint]:
        return UnixListen(self, self.endpoint)

    def refuse_send(self, data: Buffer, flags: int, address: bytes | None) -> None:
        if (flags & MSG_OOB and not data) or address is not None:
            raise NetError(errno.EOPNOTSUPP)

    def set_inline(self, inline: bool) -> None:
        self.endpoint.inline = inline

    # -- sending: a call that may wait waits until everything is taken ------------------------------------------------

    def send(self, data: Buffer, flags: int, timeout: Timeout) -> int:
        taken = super().send(data, flags, timeout)
        return taken if taken == len(data) or timeout is not None else self._send_on(data, taken, flags)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: object, timeout: Timeout
    ) -> int:
        taken = super().send_message(data, ancillary, flags, address, timeout)
        if taken == len(data) or timeout is not None:
            return taken
        return self._send_on(data, taken, flags, [each for each in ancillary if each[1] != SCM_RIGHTS])

    def _send_on(self, data: Buffer, taken: int, flags: int, ancillary: Sequence[Ancillary] = ()) -> int:
        """Part of it is sent: nothing that happens now makes the call fail."""
        if flags & MSG_DONTWAIT:
            return taken
        rest = memoryview(data)
        try:
            while taken < len(data):
                if ancillary:
                    taken += super().send_message(rest[taken:], ancillary, flags | MSG_NOSIGNAL, None, None)
                else:
                    taken += super().send(rest[taken:], flags | MSG_NOSIGNAL, None)
        except OSError:
            pass
        return taken

    # -- receiving ----------------------------------------------------------------------------------------------------

    def recv(self, size: int, flags: int, timeout: Timeout) -> bytes:
        if not flags and self.low_water == 1:
            return self.block_on(IN, timeout, self._recv, size, 0)
        return self.receive(size, flags, timeout).data

    def receive(self, size: int, flags: int, timeout: Timeout, room: int = 0) -> Message:
        phase = self.phase
        patient = timeout is None and not flags & (MSG_DONTWAIT | MSG_OOB)
        if not patient or not isinstance(phase, StreamConnected) or (self.low_water <= 1 and not flags & MSG_WAITALL):
            return super().receive(size, flags, timeout, room)
        reading = phase.reading(size, flags)
        try:
            self.block_on(IN, None, self._advance, reading)
        except OSError:
            if not reading.copied:
                raise
        return self.call(self._finish, reading, flags, room)

    def _advance(self, reading: Reading) -> Again | None:
        phase = self.phase
        if not isinstance(phase, StreamConnected):
            phase.receive(reading.size, 0)  # raises what it has to
            return None
        return None if self.endpoint.advance(reading) else AGAIN

    def _finish(self, reading: Reading, flags: int, room: int) -> Message:
        phase = self.phase
        if not isinstance(phase, StreamConnected):  # closed meanwhile
            if reading.rights is not None:
                reading.rights.close()
            return Message(reading.data())
        return phase.finish(reading, flags, room)

    # -- ioctl --------------------------------------------------------------------------------------------------------

    def input_queue(self) -> int:
        return self.endpoint.unread()

    def at_mark(self) -> bool:
        return self.endpoint.at_mark()
