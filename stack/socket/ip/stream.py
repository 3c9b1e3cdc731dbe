"""TCP sockets (rows TCP-01..39): the socket object; its phases are `stream_init`, `stream_connecting`,
`stream_connected` and `stream_listen`.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.socket.base import AGAIN, CLOSED, Socket
from stack.socket.ip import IPPROTO_TCP, SOCK_STREAM
from stack.socket.ip.address import IpAddress, address_in, address_out
from stack.socket.ip.stream_init import StreamInit
from stack.socket.ip.stream_options import NOT_INHERITED, STREAM_OPTIONS, fill
from stack.socket.options import SOL_SOCKET, OptionTable
from stack.socket.options_socket import SO_LINGER
from stack.socket.poll import IN, Pollee
from stack.tcp import TcpState
from stack.tcp.options import TcpOptions

if TYPE_CHECKING:
    from stack.socket.base import Host
    from stack.socket.mirror import End
    from stack.tcp import Connection


#: The peer has our FIN, or there is no peer any more.
_ACKNOWLEDGED: Final = (TcpState.FIN_WAIT_2, TcpState.TIME_WAIT, TcpState.CLOSED)
#: Seconds; what a clock can count.
LINGER_MAX: Final = 1 << 31


class StreamSocket(Socket):
    """socket(AF_INET or AF_INET6, SOCK_STREAM)."""

    options_table: ClassVar[OptionTable] = STREAM_OPTIONS

    def __init__(self, host: Host, family: int) -> None:
        super().__init__(host, SOCK_STREAM, IPPROTO_TCP)
        self.family = family
        self.low_water_max = host.netns.tcp.config.rcvbuf_max // 2
        self.chose_port = False  #: bind was given a port, not 0
        self.phase = StreamInit(self)

    def address_in(self, address: object) -> IpAddress:
        return address_in(self.host, self.family, address)

    def address_out(self, address: IpAddress) -> object:
        return address_out(self.family, address)

    @property
    def connection(self) -> Connection | None:
        """The connection, while there is one."""
        connection: Connection | None = getattr(self.phase, "connection", None)
        return connection

    def tcp_options(self) -> TcpOptions:
        """What this socket's options ask of TCP."""
        return fill(TcpOptions(), self)

    def apply_options(self, connection: Connection) -> None:
        """An option was set on a live connection."""
        fill(connection.options, self)
        connection.options_changed()

    def close(self, end: End | None = None) -> None:
        """As `Socket.close`; with SO_LINGER it then waits until the peer has everything, as long as was asked for."""
        connection = self.connection
        on, seconds = self.options.value(SOL_SOCKET, SO_LINGER)
        super().close(end)
        if connection is not None and self.phase is CLOSED and on and seconds > 0:
            self._linger(connection, min(seconds, LINGER_MAX) * NS_PER_S)

    def _linger(self, connection: Connection, timeout: int) -> None:
        def done() -> bool:
            return connection.state in _ACKNOWLEDGED

        pollee = Pollee(lambda: IN if done() else 0, self.waiting.marks)
        with suppress(NetError):  # a Network that closes meanwhile ends the wait too
            self.waiting.call(setattr, (connection, "on_event", pollee.notify))
            self.waiting.block_on(pollee, IN, timeout, lambda: None if done() else AGAIN, ())

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
        from stack.socket.ip.stream_connected import StreamConnected

        child = StreamSocket(self.host, self.family)
        child.options.inherit(self.options, except_for=NOT_INHERITED)
        child.receive_timeout, child.send_timeout = self.receive_timeout, self.send_timeout
        child.phase = StreamConnected(child, connection)
        return child
