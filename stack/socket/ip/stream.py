"""TCP sockets (rows TCP-01..39): the socket object; its phases are `stream_init`, `stream_connecting`,
`stream_connected` and `stream_listen`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from stack.errors import NetError
from stack.socket.base import Socket
from stack.socket.ip import IPPROTO_TCP, SOCK_STREAM
from stack.socket.ip.address import IpAddress, address_in, address_out
from stack.socket.ip.stream_init import StreamInit
from stack.socket.ip.stream_options import NOT_INHERITED, STREAM_OPTIONS, fill
from stack.socket.options import OptionTable
from stack.tcp.options import TcpOptions

if TYPE_CHECKING:
    from stack.socket.base import Host
    from stack.tcp import Connection


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
