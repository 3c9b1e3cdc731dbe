"""A connected TCP socket, until it is closed (rows TCP-18..22)."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.ip.failed import take_failure
from stack.socket.ip.received import arrival
from stack.socket.ip.stream_options import peek_offset, reuse, set_peek_offset
from stack.socket.ip.stream_transmitted import StreamTransmitted, stamps_asked
from stack.socket.message import (
    MSG_EOR,
    MSG_ERRQUEUE,
    MSG_MORE,
    MSG_OOB,
    MSG_PEEK,
    MSG_TRUNC,
    MSG_ZEROCOPY,
    Message,
)
from stack.socket.options import SOL_SOCKET
from stack.socket.options_socket import SO_LINGER, SO_ZEROCOPY
from stack.socket.poll import ERR, HUP, IN, OUT, PRI, RDHUP, RDNORM, WRNORM
from stack.tcp import TcpState
from stack.tcp.landing import BULK, Landing

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.ip.address import IpAddress
    from stack.socket.ip.stream import StreamSocket
    from stack.socket.message import Ancillary
    from stack.tcp import Connection
    from stack.tcp.receiver import Receiver

IPPROTO_TCP: Final = 6
TCP_CM_INQ: Final = 36  # Linux: of TCP_INQ, an int

#: Both sides have ended, and each knows it: to its socket a connection in TIME-WAIT is gone (row TCP-18).
_OVER: Final = (TcpState.CLOSED, TcpState.TIME_WAIT)
#: A flag of our own: the call does not return before everything is sent, so that it counts as one send.
IN_PARTS: Final = 1 << 32
_ESTABLISHED: Final = TcpState.ESTABLISHED
_SPECIAL: Final = MSG_MORE | MSG_OOB | MSG_ZEROCOPY
_UNUSUAL: Final = MSG_OOB | MSG_PEEK | MSG_TRUNC | MSG_ERRQUEUE
_READ: Final = 0
_WRITE: Final = 1


class StreamConnected(Phase):
    """`announced`: connect() has reported success; until then the next one answers 0 once (row TCP-06)."""

    final = True
    __slots__ = ("_transmitted", "announced", "connection", "finished", "socket")

    def __init__(self, socket: StreamSocket, connection: Connection, *, announced: bool = True) -> None:
        self.socket = socket
        self.connection = connection
        self.announced = announced
        self.finished = False  #: we have shut our sending side down
        self._transmitted: StreamTransmitted | None = None  # once a send asked for anything
        connection.on_event = socket.pollee.notify

    def bind(self, address: IpAddress) -> None:
        raise NetError(errno.EINVAL)

    def connect(self, address: IpAddress) -> None:
        if self.announced:
            raise NetError(errno.EISCONN)
        self.announced = True

    def connecting(self) -> None:
        self.announced = True

    def listen(self, backlog: int) -> None:
        raise NetError(errno.EINVAL)

    def accept(self) -> Again:
        raise NetError(errno.EINVAL)

    def send(self, data: Buffer, flags: int, address: IpAddress | None) -> int | Again:
        connection = self.connection
        if connection.error:
            raise NetError(connection.take_error())
        stamps = connection.options.stamps
        if stamps or flags & _SPECIAL:
            taken = self._send_special(data, flags, stamps)
        else:
            taken = connection.write(data)  # raises EPIPE once nothing can be sent
        return taken if taken or not data else AGAIN

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: IpAddress | None
    ) -> int | Again:
        connection = self.connection
        if not ancillary or connection.error or not connection.can_write:
            return self.send(data, flags, address)
        stamps = stamps_asked(self.socket, ancillary)
        return self._send_special(data, flags, stamps) or (AGAIN if data else 0)

    def _send_special(self, data: Buffer, flags: int, stamps: int) -> int:
        """Sends of which there is more to say than the bytes."""
        taken = self.connection.write(data, more=flags & MSG_MORE != 0, urgent=flags & MSG_OOB != 0)
        zero_copy = bool(flags & MSG_ZEROCOPY and self.socket.options.value(SOL_SOCKET, SO_ZEROCOPY))
        if not taken or not (stamps or zero_copy) or (flags & IN_PARTS and taken < memoryview(data).nbytes):
            return taken
        if self._transmitted is None:
            self._transmitted = StreamTransmitted(self.socket, self.connection)
        self._transmitted.note(taken, stamps, apart=flags & MSG_EOR != 0, zero_copy=zero_copy)
        return taken

    def recv(self, size: int, flags: int) -> bytes | Again:
        connection = self.connection
        if flags & _UNUSUAL:
            return self._special(size, flags)
        receiver = connection.receiver
        if receiver.queue.length:
            data = connection.read(size)
            if data or not size:  # nothing: only the urgent byte was there
                return data
        elif (
            connection.state is _ESTABLISHED
            and receiver.fin_seq is None
            and not connection.error
            and not connection.read_shut
        ):
            return AGAIN  # by far the commonest
        return self._nothing()

    def recv_into(self, target: memoryview, flags: int) -> int | Again:
        connection = self.connection
        if connection.receiver.queue.length:
            count = connection.read_into(target)
            if count or not target:
                landing = self.socket.landing
                if landing is not None:
                    landing.end()
                    if count < BULK:
                        self.socket.landing = None
                elif count >= BULK:
                    self.socket.landing = Landing(connection)
                return count
        landing = self.socket.landing
        if self._nothing() is AGAIN:
            if landing is not None:
                landing.wait(target)
            return AGAIN
        if landing is not None:
            landing.end()
        return 0

    def receive(self, size: int, flags: int) -> Message | Again:
        if flags & MSG_ERRQUEUE:
            return self._failure(size, flags)
        connection = self.connection
        data = self.recv(size, flags)
        if data is AGAIN:
            return AGAIN
        out = 0
        if flags & MSG_OOB and data:
            out = MSG_OOB if size else MSG_OOB | MSG_TRUNC
            data = data[:size]
        message = Message(data, flags=out, length=len(data))
        if connection.receiver.times is not None and data and not flags & MSG_OOB:
            message.ancillary += self._arrival(connection.receiver, len(data) if flags & MSG_PEEK else 0)
        if connection.options.inq and not flags & MSG_OOB:
            left = connection.readable or int(connection.finished)  # as if there were something, so that one reads on
            message.ancillary.append((IPPROTO_TCP, TCP_CM_INQ, left.to_bytes(4, sys.byteorder)))
        return message

    def _arrival(self, receiver: Receiver, peeked: int) -> list[Ancillary]:
        """When the last byte given came: that before the next to be read, or of the `peeked` ones that follow."""
        assert receiver.times is not None
        end = receiver.read_seq
        if peeked:
            offset = peek_offset(self.socket)  # the peek has moved it
            end += offset if offset >= 0 else peeked
        stamp = receiver.times.before(end)
        return [] if stamp is None else arrival(self.socket, stamp)

    def _failure(self, size: int, flags: int) -> Message | Again:
        errors = self.socket.errors
        return AGAIN if errors is None else take_failure(self.socket, errors, size, flags)

    def _special(self, size: int, flags: int) -> bytes | Again:
        connection = self.connection
        if flags & MSG_ERRQUEUE:
            message = self._failure(size, flags)
            return AGAIN if message is AGAIN else message.data
        if flags & MSG_OOB:
            return connection.urgent_byte(keep=flags & MSG_PEEK != 0)
        if not connection.readable:
            return self._nothing()
        if flags & MSG_PEEK:
            offset = peek_offset(self.socket)
            data = connection.peek(size, max(offset, 0))
            if offset >= 0 and data:
                set_peek_offset(self.socket, offset + len(data))
        else:  # MSG_TRUNC: the bytes are thrown away, only their number counts
            data = bytes(connection.discard(size))
        return data if data or not size else self._nothing()

    def _nothing(self) -> bytes | Again:
        """No data: an error, the end, or not yet."""
        connection = self.connection
        if connection.error:
            raise NetError(connection.take_error())
        return b"" if connection.eof else AGAIN

    def shutdown(self, how: int) -> None:
        connection = self.connection
        if connection.state in _OVER:
            raise NetError(errno.ENOTCONN)
        if how != _WRITE:
            connection.shutdown_read()
        if how != _READ:
            self.finished = True
            connection.shutdown_write()

    def local_address(self) -> IpAddress:
        return self.connection.local

    def peer_address(self) -> IpAddress:
        if self.connection.state in _OVER:
            raise NetError(errno.ENOTCONN)
        return self.connection.remote

    def take_error(self) -> int:
        """As Linux SO_ERROR also tells, once, what has not been fatal so far."""
        connection = self.connection
        error = connection.take_error()
        if not error:
            error, connection.soft_error = connection.soft_error, 0
        return error

    def poll(self) -> int:
        connection = self.connection
        bits = 0
        eof = connection.eof
        closed = connection.state is TcpState.CLOSED
        readable = connection.readable
        if eof:
            bits = IN | RDNORM | RDHUP
        elif readable:
            if connection.at_mark and not connection.options.oob_inline:
                readable -= 1  # no read gives the urgent byte
            # Also when the peer cannot send so much (Linux tcp_stream_is_readable).
            receiver = connection.receiver
            if readable and (readable >= connection.options.rcvlowat or receiver.window <= receiver.mss):
                bits = IN | RDNORM
        if connection.urgent_pending:
            bits |= PRI
        if closed or self.finished:
            bits |= OUT | WRNORM
            if eof or closed:
                bits |= HUP
        else:
            if connection.roomy:
                bits |= OUT | WRNORM
        if connection.error:
            bits |= ERR
        if self.socket.errors:
            bits |= ERR  # and no PRI by SO_SELECT_ERR_QUEUE, of which Linux's TCP knows nothing
        return bits

    def option_changed(self, level: int, name: int) -> None:
        self.socket.apply_options(self.connection)
        if self.connection.bound is not None:
            reuse(self.socket, self.connection.bound)

    def close(self) -> None:
        connection = self.connection
        connection.on_event = None
        connection.sender.marks = None
        if self.socket.landing is not None:
            self.socket.landing.end()
            self.socket.landing = None
        on, seconds = self.socket.options.value(SOL_SOCKET, SO_LINGER)
        connection.close(seconds * NS_PER_S if on else None)
