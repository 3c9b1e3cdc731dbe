"""A connection whose user repairs it: what its calls do then. See `repair_options`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import Again
from stack.socket.ip.repair_options import TCP_NO_QUEUE, TCP_SEND_QUEUE
from stack.socket.ip.stream_connected import StreamConnected
from stack.socket.message import MSG_PEEK
from stack.tcp import TcpState
from stack.tcp.repair import queue_received, queue_sent, resume, sent

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort
    from stack.link.device import Buffer
    from stack.socket.ip.address import IpAddress
    from stack.socket.ip.stream import StreamSocket


class StreamRepairing(StreamConnected):
    """A connection while it is repaired."""

    __slots__ = ()

    def send(self, data: Buffer, flags: int, address: IpAddress | None) -> int | Again:
        connection, queue = self.connection, self.socket.repair.queue
        if not connection.can_write or queue == TCP_SEND_QUEUE:
            return queue_sent(connection, data)  # or EPIPE
        if queue == TCP_NO_QUEUE:
            raise NetError(errno.EINVAL)
        return queue_received(connection, data)

    def recv(self, size: int, flags: int) -> bytes | Again:
        queue = self.socket.repair.queue
        if not flags & MSG_PEEK:
            raise NetError(errno.EPERM)
        if queue == TCP_SEND_QUEUE:
            return sent(self.connection, size)
        if queue == TCP_NO_QUEUE:
            raise NetError(errno.EINVAL)
        return super().recv(size, flags)

    def recv_into(self, target: memoryview, flags: int) -> int | Again:
        data = self.recv(len(target), flags)
        if isinstance(data, bytes):
            target[: len(data)] = data
            return len(data)
        return data

    def close(self) -> None:
        connection = self.connection
        connection.on_event = None
        connection.orphan = True
        if connection.state is not TcpState.CLOSED:
            connection.fail(0)


def connect_repaired(
    socket: StreamSocket, bound: BoundPort | None, source: bytes | None, remote: IpAddress, oif: int
) -> None:
    """connect() with repair on: connected at once, at the sequence numbers that were set. Raises NetError."""
    tcp, repair = socket.host.netns.tcp, socket.repair
    iss = repair.write_seq - 1
    connection = tcp.connect(bound, source, remote, options=socket.tcp_options(remote[0]), oif=oif, hold=True, iss=iss)
    if repair.timestamp_offset is not None:
        connection.timestamp_offset = repair.timestamp_offset
    resume(connection, repair.rcv_nxt)
    socket.phase = StreamRepairing(socket, connection)
