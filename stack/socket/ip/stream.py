"""TCP sockets (rows TCP-01..39): the socket object; its phases are `stream_init`, `stream_connecting`,
`stream_connected` and `stream_listen`.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

from stack.errors import NetError
from stack.ip.errorqueue import ErrorQueue
from stack.ip.listening import Listening
from stack.scheduler import NS_PER_S
from stack.socket.base import AGAIN, CLOSED, Address, Again, Socket, Timeout
from stack.socket.families import AF_INET
from stack.socket.ip import IPPROTO_TCP, SOCK_STREAM
from stack.socket.ip.address import IpAddress, address_in, address_out, scope_of
from stack.socket.ip.binding import any_address
from stack.socket.ip.fastopen_options import TCP_FASTOPEN_CONNECT
from stack.socket.ip.options import IP_OPTIONS, IPPROTO_IP
from stack.socket.ip.repair_options import Repair
from stack.socket.ip.scope import ScopedAddress, needs_link
from stack.socket.ip.stream_connected import IN_PARTS, StreamConnected
from stack.socket.ip.stream_fastopen import StreamDeferred, send_deferred, send_with_syn
from stack.socket.ip.stream_init import StreamInit
from stack.socket.ip.stream_options import STREAM6_OPTIONS, STREAM_OPTIONS, fill, timeouts
from stack.socket.ip.stream_transmitted import stamps_asked
from stack.socket.message import MSG_DONTWAIT, MSG_ERRQUEUE, MSG_FASTOPEN, MSG_OOB, Message
from stack.socket.options import SOL_SOCKET, OptionTable, OptionValues
from stack.socket.options_device import SO_BINDTOIFINDEX, bound_interface
from stack.socket.options_socket import SO_LINGER, SO_RCVLOWAT
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP, Pollee
from stack.tcp import TcpState
from stack.tcp.buffers import KEEP_ABOVE
from stack.tcp.conversation import say
from stack.tcp.options import TcpOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import Buffer
    from stack.socket.base import Host, Timeout
    from stack.socket.message import Ancillary
    from stack.socket.mirror import End
    from stack.tcp import Connection
    from stack.tcp.landing import Landing
    from stack.tcp.signatures import Keys


#: The peer has our FIN, or there is no peer any more.
_ACKNOWLEDGED: Final = (TcpState.FIN_WAIT_2, TcpState.TIME_WAIT, TcpState.CLOSED)
#: Linux tcp_need_reset, and SYN-SENT.
_RESET_BY_DISCONNECT: Final = (
    *(TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.FIN_WAIT_1, TcpState.FIN_WAIT_2),
    *(TcpState.SYN_SENT, TcpState.SYN_RECEIVED),
)
#: Seconds; what a clock can count.
LINGER_MAX: Final = 1 << 31
#: Bytes in one write after which the writer has a look at what came meanwhile: a superframe's worth.
A_LOT: Final = 64 << 10


def _receive(socket: StreamSocket, size: int) -> bytes | Again:
    """The commonest attempt: a function needs no binding to each socket, each time."""
    return socket.phase.recv(size, 0)


class StreamSocket(Socket):
    """socket(AF_INET or AF_INET6, SOCK_STREAM)."""

    options_table: ClassVar[OptionTable] = STREAM_OPTIONS
    #: Of who reads in bulk; the phase's business. Of the class, for what is left of a closed socket has it, too.
    landing: Landing | None = None

    def __init__(self, host: Host, family: int) -> None:
        super().__init__(host, SOCK_STREAM, IPPROTO_TCP)
        if family != AF_INET:
            self.options = OptionValues(STREAM6_OPTIONS)
        self.family = family
        self.low_water_max = host.netns.tcp.config.rcvbuf_max // 2
        self.peeked_from = 0  #: bytes that had been read when SO_PEEK_OFF was set, or moved by a peek
        self.chose_port = False  #: bind was given a port, not 0
        self.repair = Repair()  #: TCP_REPAIR
        self.keys: Keys | None = None  #: TCP_MD5SIG
        self.chose_address = False  #: bind was given an address, not "any"
        self.groups: Listening | None = None  #: see `listening`
        self.errors: ErrorQueue | None = None  #: what MSG_ERRQUEUE reads, once there was something
        self._zero_copies = 0  # sends by MSG_ZEROCOPY so far
        self._first_stamped: int | None = None  # see `first_stamped`
        self.phase = StreamInit(self)

    def address_in(self, address: object) -> ScopedAddress:
        target, port = address_in(self.host, self.family, address)
        return target, port, 0 if self.family == AF_INET else scope_of(self.host, address)

    def address_out(self, address: IpAddress) -> object:
        return address_out(self.family, address, bound_interface(self) if needs_link(address[0]) else 0)

    @property
    def listening(self) -> Listening:
        """The multicast groups joined, which only routers learn of; they are left with the socket."""
        if self.groups is None:
            self.groups = Listening(self.host.netns.ip)
        return self.groups

    @property
    def fastopen_connect(self) -> bool:
        """Whether connect() waits for data to send along (TCP_FASTOPEN_CONNECT)."""
        return bool(self.options.value(IPPROTO_TCP, TCP_FASTOPEN_CONNECT))

    def send_to(self, data: Buffer, flags: int, address: object, timeout: Timeout) -> int:
        if flags & MSG_FASTOPEN:
            return send_with_syn(self, data, flags, address, timeout)
        if self._deferred:
            return self.send(data, flags, timeout)
        return super().send_to(data, flags, address, timeout)

    def send(self, data: Buffer, flags: int, timeout: Timeout) -> int:
        if self._deferred:
            taken = send_deferred(self, data, flags, timeout)
            if taken is not None:
                return taken
        taken = super().send(data, flags, timeout)
        if taken >= A_LOT:
            self.waiting.attend()
        return taken

    def send_all(self, data: Buffer, flags: int, timeout: Timeout) -> None:
        phase = self.phase
        if type(phase) is StreamConnected:
            # Not under the lock: should the phase end meanwhile, so does what is usual about its connection.
            brief = not flags and self.mirror is None and len(data) <= KEEP_ABOVE
            if brief and self.waiting.briefly(say, phase.connection, data):
                return
        elif type(phase) is StreamDeferred:
            data = memoryview(data).cast("B")[self.send(data, flags, timeout) :]
            if not data:
                return
        if flags:
            super().send_all(data, flags | IN_PARTS, timeout)
            return
        try:
            self.wait(OUT, timeout, self._send_rest, ([data], IN_PARTS))
        except BrokenPipeError:
            self._broken_pipe(flags)
            raise
        if len(data) >= A_LOT:
            self.waiting.attend()

    def _send_rest(self, rest: list[Buffer], flags: int) -> Again | None:
        phase = self.phase
        if flags == IN_PARTS and type(phase) is StreamConnected and say(phase.connection, rest[0]):
            return None
        return super()._send_rest(rest, flags)

    def _send(self, data: Buffer, flags: int, address: Address | None) -> int | Again:
        phase = self.phase
        if not flags and type(phase) is StreamConnected and say(phase.connection, data):
            return len(data)
        return super()._send(data, flags, address)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: object, timeout: Timeout
    ) -> int:
        if flags & MSG_FASTOPEN or self._deferred:
            self.call(stamps_asked, self, ancillary)
            return self.send_to(data, flags, address, timeout)
        return super().send_message(data, ancillary, flags, address, timeout)

    @property
    def _deferred(self) -> bool:
        return type(self.phase) is StreamDeferred

    @property
    def connection(self) -> Connection | None:
        """The connection, while there is one."""
        connection: Connection | None = getattr(self.phase, "connection", None)
        return connection

    def tcp_options(self, peer: bytes | None = None) -> TcpOptions:
        """What this socket's options ask of TCP, towards `peer` if that is known."""
        return fill(TcpOptions(), self, peer)

    def apply_options(self, connection: Connection) -> None:
        """An option was set on a live connection."""
        fill(connection.options, self, connection.remote[0])
        connection.options_changed()

    def close(self, end: End | None = None) -> None:
        """As `Socket.close`; with SO_LINGER it then waits until the peer has everything, as long as was asked for."""
        connection = self.connection
        on, seconds = self.options.value(SOL_SOCKET, SO_LINGER)
        super().close(end)
        if connection is not None and self.phase is CLOSED and on and seconds > 0:
            self._linger(connection, min(seconds, LINGER_MAX) * NS_PER_S)

    def _let_go(self, end: End | None) -> None:
        super()._let_go(end)
        if self.phase is CLOSED and self.groups is not None:
            self.groups.close()

    def _linger(self, connection: Connection, timeout: int) -> None:
        def done() -> bool:
            return connection.state in _ACKNOWLEDGED

        pollee = Pollee(lambda: IN if done() else 0, self.waiting.marks)
        with suppress(NetError):  # a Network that closes meanwhile ends the wait too
            self.waiting.call(setattr, (connection, "on_event", pollee.notify))
            self.waiting.block_on(pollee, IN, timeout, lambda: None if done() else AGAIN, ())

    # -- the error queue ----------------------------------------------------------------------------------------------

    def error_queue(self) -> ErrorQueue:
        """`errors`, which from now on there is."""
        if self.errors is None:
            self.errors = ErrorQueue()
        return self.errors

    def next_zero_copy(self) -> int:
        """The number of a send by MSG_ZEROCOPY."""
        number, self._zero_copies = self._zero_copies, self._zero_copies + 1
        return number

    def number_stamps(self, *, written: bool) -> None:
        """Bytes are counted from the first that is not acknowledged, or from the next to be written. In phases that
        have neither it is NetError(EINVAL), as it is once the connection is over.
        """
        connection = self.connection
        if connection is None or connection.state in (TcpState.CLOSED, TcpState.TIME_WAIT):
            raise NetError(errno.EINVAL)
        sender = connection.sender
        self._first_stamped = sender.queue.end if written else sender.snd_una

    def first_stamped(self, connection: Connection) -> int:
        """Sequence number of the byte whose transmit time stamps have number 0."""
        return connection.sender.iss + 1 if self._first_stamped is None else self._first_stamped

    # -- receiving ----------------------------------------------------------------------------------------------------

    def recv(self, size: int, flags: int, timeout: Timeout) -> bytes:
        if self.options.explicit(SOL_SOCKET, SO_RCVLOWAT):
            self._await_low_water(size, flags, timeout)
        if not flags:  # by far the commonest
            return self.wait(IN, timeout, _receive, (self, size))
        return super().recv(size, flags, timeout)

    def recv_into(self, target: memoryview, flags: int, timeout: Timeout) -> int:
        if self.options.explicit(SOL_SOCKET, SO_RCVLOWAT):
            self._await_low_water(len(target), flags, timeout)
        try:
            return super().recv_into(target, flags, timeout)
        except BaseException:
            self._leave_ground()
            raise

    def _leave_ground(self) -> None:
        """A wait with a buffer has ended without a read."""
        landing = self.landing
        if landing is not None:
            try:
                self.call(landing.end)
            except NetError:  # the Network is closed
                landing.end()

    def receive(self, size: int, flags: int, timeout: Timeout, room: int = 0) -> Message:
        if self.options.explicit(SOL_SOCKET, SO_RCVLOWAT):
            self._await_low_water(size, flags, timeout)
        return super().receive(size, flags, timeout, room)

    def _await_low_water(self, size: int, flags: int, timeout: Timeout) -> None:
        """SO_RCVLOWAT: a call that may wait does so until that much has come, or all that was asked for, or the end."""
        if timeout == 0 or flags & (MSG_DONTWAIT | MSG_OOB | MSG_ERRQUEUE):
            return
        enough = min(size, self.options.value(SOL_SOCKET, SO_RCVLOWAT))

        def attempt() -> Again | None:
            connection = self.connection
            if connection is None or connection.readable >= enough or self.phase.poll() & (RDHUP | ERR | HUP):
                return None
            receiver = connection.receiver
            return None if connection.readable and receiver.window <= receiver.mss else AGAIN

        with suppress(BlockingIOError):  # SO_RCVTIMEO is over: what there is must do
            self.block_on(IN, timeout, attempt)

    def _recv_all(self, parts: list[bytes], size: int, flags: int) -> Again | None:
        """MSG_WAITALL ends at the urgent byte, too."""
        connection = self.connection
        if connection is None or connection.urgent is None:
            return super()._recv_all(parts, size, flags)
        if parts and connection.at_mark:
            return None
        data = self.phase.recv(size - sum(map(len, parts)), flags)
        if data is AGAIN:
            return AGAIN
        parts.append(data)
        return self._recv_all(parts, size, flags) if data and sum(map(len, parts)) < size else None

    # -- disconnecting ------------------------------------------------------------------------------------------------

    def disconnect(self) -> None:
        """connect() to an address of family AF_UNSPEC, which Python's `connect` cannot say (row TCP-10).

        Whatever the socket was, it is fresh afterwards, at a port its user chose if he did; a peer gets a RST.
        """
        self.call(self._disconnect)

    def _disconnect(self) -> None:
        phase, connection = self.phase, self.connection
        if phase is CLOSED:
            raise NetError(errno.EBADF)
        if isinstance(phase, StreamInit):
            phase.refused, phase.error = False, 0
        elif connection is None:
            phase.shutdown(0)  # a listener's way
        else:
            error = errno.ECONNRESET if connection.state in _RESET_BY_DISCONNECT else 0
            bound = connection.bound.retain() if self.chose_port and connection.bound is not None else None
            shown = connection.local if self.chose_address else (any_address(self), connection.local[1])
            phase.close()
            connection.abort()
            self.phase = StreamInit(self, bound, error=error, before=shown)
        self.pollee.notify()

    # -- what ioctl asks ----------------------------------------------------------------------------------------------

    def at_mark(self) -> bool:
        """SIOCATMARK: the urgent byte is next."""
        connection = self.connection
        return connection is not None and connection.at_mark

    def input_queue(self) -> int:
        """SIOCINQ: bytes to be read, up to the urgent byte. Raises NetError(EINVAL) when listening."""
        connection = self._queues()
        return 0 if connection is None else connection.before_mark

    def output_queue(self) -> int:
        """SIOCOUTQ: bytes written and not acknowledged. Raises NetError(EINVAL) when listening."""
        connection = self._queues()
        return 0 if connection is None else connection.unacknowledged

    def unsent_queue(self) -> int:
        """SIOCOUTQNSD: bytes written and not sent. Raises NetError(EINVAL) when listening."""
        connection = self._queues()
        return 0 if connection is None else connection.unsent

    def _queues(self) -> Connection | None:
        if self.phase.listening:
            raise NetError(errno.EINVAL)
        return self.connection

    def is_bound(self) -> bool:
        return not isinstance(self.phase, StreamInit) or self.phase.bound is not None

    def path_mtu(self) -> int:
        """IP_MTU: of the route to the peer, bytes. Raises NetError(ENOTCONN)."""
        connection = self.connection
        if connection is None or not connection.connected:
            raise NetError(errno.ENOTCONN)
        return connection.info().pmtu

    def accepted(self, connection: Connection) -> StreamSocket:
        """The socket for a connection this listening one has accepted; options are inherited (row TCP-16)."""
        from stack.socket.ip.stream_repair import StreamRepairing

        child = StreamSocket(self.host, self.family)
        told = connection.options.told
        child.options.inherit(told)
        if connection.options.ip_options or told.explicit(IPPROTO_IP, IP_OPTIONS):
            child.options.store(IPPROTO_IP, IP_OPTIONS, connection.options.ip_options)
        if connection.options.device:
            child.options.store(SOL_SOCKET, SO_BINDTOIFINDEX, connection.options.device)
        child.receive_timeout, child.send_timeout = timeouts(told)
        connection.options.told = None
        child.keys = connection.options.keys
        child.repair.on, child.repair.queue = self.repair.on, self.repair.queue
        child.phase = (StreamRepairing if child.repair.on else StreamConnected)(child, connection)
        return child
