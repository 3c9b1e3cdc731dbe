"""The options of TCP_REPAIR (section 2.3): a connection is saved, or restored without a handshake.

With repair on, a connect makes the connection at once and sends nothing, sends fill the queue that was chosen, reads
only look (MSG_PEEK), and close says nothing to the peer. Turning it off with 0 asks the peer for its window, with -1
it does not.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import astuple
from typing import TYPE_CHECKING, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.scheduler import NS_PER_MS
from stack.socket.options import Kind, Option
from stack.tcp import TcpState
from stack.tcp.repair import Window, agree, probe, set_window, window_of
from stack.tcp.seqnum import MASK

if TYPE_CHECKING:
    from stack.socket.ip.stream import StreamSocket
    from stack.tcp import Connection

IPPROTO_TCP: Final = 6
# Linux <linux/tcp.h>.
TCP_REPAIR: Final = 19
TCP_REPAIR_QUEUE: Final = 20
TCP_QUEUE_SEQ: Final = 21
TCP_REPAIR_OPTIONS: Final = 22
TCP_REPAIR_WINDOW: Final = 29
TCP_REPAIR_OFF_NO_WP: Final = -1
TCP_NO_QUEUE: Final = 0
TCP_RECV_QUEUE: Final = 1
TCP_SEND_QUEUE: Final = 2

_WINDOW: Final = struct.Struct("@5I")
_SETTLED: Final = struct.Struct("@II")  # struct tcp_repair_opt
_INT: Final = 4


class Repair:
    """What a socket was told. The numbers are those of a socket that is not connected."""

    __slots__ = ("on", "queue", "rcv_nxt", "timestamp_offset", "window", "write_seq")

    def __init__(self) -> None:
        self.on = False
        self.queue = TCP_NO_QUEUE  #: stays when repair is turned off
        self.write_seq = 0
        self.rcv_nxt = 0
        self.window = Window()
        self.timestamp_offset: int | None = None  #: TCP_TIMESTAMP's


def repair_timestamp(socket: StreamSocket) -> int:
    """Of a socket that is not connected: the clock as TCP_TIMESTAMP has set it."""
    return socket.host.netns.tcp.scheduler.now // NS_PER_MS + (socket.repair.timestamp_offset or 0) & MASK


def _permitted(socket: StreamSocket, value: object) -> None:
    if socket.phase.listening or not socket.host.credentials.may(Capability.NET_ADMIN):
        raise NetError(errno.EPERM)
    if value not in (0, 1, TCP_REPAIR_OFF_NO_WP):
        raise NetError(errno.EINVAL)


def _switch(socket: StreamSocket, value: int) -> None:
    from stack.socket.ip.stream_connected import StreamConnected
    from stack.socket.ip.stream_repair import StreamRepairing

    repair, phase = socket.repair, socket.phase
    repair.on = value == 1
    if repair.on:
        repair.queue = TCP_NO_QUEUE
    if isinstance(phase, StreamConnected):
        kind = StreamRepairing if repair.on else StreamConnected
        fresh = kind(socket, phase.connection, announced=phase.announced)
        fresh.finished = phase.finished
        socket.phase = fresh
        if value == 0:
            probe(phase.connection)


def _while_on(socket: StreamSocket, value: object) -> None:
    if not socket.repair.on:
        raise NetError(errno.EPERM)


def _queue(socket: StreamSocket, value: object) -> None:
    _while_on(socket, value)
    if value not in (TCP_NO_QUEUE, TCP_RECV_QUEUE, TCP_SEND_QUEUE):
        raise NetError(errno.EINVAL)
    assert isinstance(value, int)
    socket.repair.queue = value


def _get_queue(socket: StreamSocket) -> int:
    if not socket.repair.on:
        raise NetError(errno.EINVAL)
    return socket.repair.queue


def _connection(socket: StreamSocket) -> Connection | None:
    connection = socket.connection
    return None if connection is None or connection.state is TcpState.CLOSED else connection


def _sequence(socket: StreamSocket, value: object) -> None:
    """Only numbers of queues without a connection may be set."""
    repair = socket.repair
    if _connection(socket) is not None or socket.phase.listening:
        raise NetError(errno.EPERM)
    assert isinstance(value, int)
    if repair.queue == TCP_SEND_QUEUE:
        repair.write_seq = value & MASK
    elif repair.queue == TCP_RECV_QUEUE:
        repair.rcv_nxt = value & MASK
    else:
        raise NetError(errno.EINVAL)


def _get_sequence(socket: StreamSocket) -> int:
    repair, connection = socket.repair, _connection(socket)
    if repair.queue == TCP_NO_QUEUE:
        raise NetError(errno.EINVAL)
    if repair.queue == TCP_SEND_QUEUE:
        number = repair.write_seq if connection is None else connection.sender.queue.end
    else:
        number = repair.rcv_nxt if connection is None else connection.receiver.rcv_nxt
    number &= MASK
    return number - (1 << 32) if number >> 31 else number


def _settle(socket: StreamSocket, data: bytes) -> None:
    """Pairs of option and value; a piece of one at the end is not looked at."""
    if len(data) < _INT or not socket.repair.on:
        raise NetError(errno.EINVAL)
    connection = socket.connection
    if connection is None or connection.state is not TcpState.ESTABLISHED or connection.sender.data_segments:
        raise NetError(errno.EPERM)
    agree(connection, _SETTLED.iter_unpack(data[: len(data) // _SETTLED.size * _SETTLED.size]))


def _set_window(socket: StreamSocket, data: bytes) -> None:
    if len(data) < _INT:
        raise NetError(errno.EINVAL)
    _while_on(socket, data)
    if len(data) != _WINDOW.size:
        raise NetError(errno.EINVAL)
    window, connection = Window(*_WINDOW.unpack(data)), _connection(socket)
    if connection is None:
        window.check(socket.repair.rcv_nxt)
        socket.repair.window = window
    else:
        set_window(connection, window)


def _show_window(socket: StreamSocket, room: int) -> bytes:
    if room != _WINDOW.size:
        raise NetError(errno.EINVAL)
    _while_on(socket, room)
    connection = _connection(socket)
    return _WINDOW.pack(*astuple(socket.repair.window if connection is None else window_of(connection)))


def set_clock(socket: StreamSocket, value: object) -> None:
    """TCP_TIMESTAMP, with repair on."""
    _while_on(socket, value)
    assert isinstance(value, int)
    offset = value - socket.host.netns.tcp.scheduler.now // NS_PER_MS & MASK
    socket.repair.timestamp_offset = offset
    if socket.connection is not None:
        socket.connection.timestamp_offset = offset


def _is_on(socket: StreamSocket) -> int:
    return int(socket.repair.on)


REPAIR_ROWS: Final = (
    Option(IPPROTO_TCP, TCP_REPAIR, "TCP_REPAIR", check=_permitted, get=_is_on, effect=_switch),
    Option(IPPROTO_TCP, TCP_REPAIR_QUEUE, "TCP_REPAIR_QUEUE", check=_queue, get=_get_queue),
    Option(IPPROTO_TCP, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ", check=_sequence, get=_get_sequence),
    Option(IPPROTO_TCP, TCP_REPAIR_OPTIONS, "TCP_REPAIR_OPTIONS", Kind.OPAQUE, readable=False, act=_settle),
    Option(IPPROTO_TCP, TCP_REPAIR_WINDOW, "TCP_REPAIR_WINDOW", Kind.OPAQUE, act=_set_window, show=_show_window),
)
