"""What the writer to a stream is told through its error queue: transmit time stamps, and when memory is free.

Each send that asks for time stamps gets them for its last byte: scheduled, sent (again each time it is sent again, as
on Linux), acknowledged. The first two quote the packet, the last what of its data was not acknowledged yet. Sends by
MSG_ZEROCOPY are told of when they are acknowledged; the notice says that a copy was made, which is so on every way:
into the guest's memory, into the reader's, or to the wire by the kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.ip.errorqueue import ORIGIN_TIMESTAMPING, QueuedError
from stack.socket.ip.asked import TX_STAMPS, socket_level
from stack.socket.ip.stream_stats import statistics
from stack.socket.ip.transmitted import SCHEDULED, SENT, frame, zero_copied
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import (
    OPT_ID,
    OPT_STATS,
    OPT_TSONLY,
    SO_TIMESTAMPING,
    TX_ACK,
    TX_SCHED,
    TX_SOFTWARE,
    stamp_flags,
)
from stack.tcp.delay import DelayLine
from stack.tcp.sendmarks import SendMarks, payload, segment
from stack.udp.sending import SendOptions
from stack.wire.tcp import PROTO

if TYPE_CHECKING:
    from stack.socket.ip.stream import StreamSocket
    from stack.socket.message import Ancillary
    from stack.tcp import Connection
    from stack.tcp.sendmarks import Mark

_ACKNOWLEDGED: Final = 2  # SCM_TSTAMP_ACK
_ANY_ROOM: Final = 1 << 62  # bytes; Linux has room for notices whatever the limit


def stamps_of(socket: StreamSocket) -> int:
    """SOF_TIMESTAMPING_TX_* of every send."""
    return stamp_flags(socket) & TX_STAMPS if socket.options.explicit(SOL_SOCKET, SO_TIMESTAMPING) else 0


def stamps_asked(socket: StreamSocket, messages: Sequence[Ancillary]) -> int:
    """SOF_TIMESTAMPING_TX_* of one send, as its control messages say, or all do. Raises NetError(EINVAL) for messages
    of level SOL_SOCKET that are unknown, wrong or not allowed; the others pass unseen (Linux sock_cmsg_send).
    """
    how, asked = SendOptions(), -1
    try:
        for level, kind, data in messages:
            if level == SOL_SOCKET:
                asked = socket_level(socket, kind, data, how, asked)
    except NetError:
        raise NetError(errno.EINVAL) from None
    return stamps_of(socket) if asked < 0 else asked


class StreamTransmitted:
    """Of one connection of `socket`; a `stack.tcp.sendmarks.Watcher`."""

    __slots__ = ("_connection", "_marks", "_socket")

    def __init__(self, socket: StreamSocket, connection: Connection) -> None:
        self._socket = socket
        self._connection = connection
        self._marks = SendMarks(connection, self)

    def note(self, taken: int, stamps: int, *, apart: bool, zero_copy: bool) -> None:
        """A send put `taken` bytes into the queue; `apart`: with MSG_EOR."""
        if stamps:
            self._marks.stamp(taken, stamps, apart=apart)
        if zero_copy:
            self._marks.lend(taken, self._socket.next_zero_copy())

    def left(self, mark: Mark, flags: int) -> None:
        connection, asked = self._connection, stamp_flags(self._socket)
        quoted, ifindex = b"", 0
        if not asked & OPT_TSONLY:
            ip, options, route = connection.layer.ip, connection.options, connection.route
            src, dst = connection.local[0], connection.remote[0]
            quoted = frame(ip, route, src, dst, PROTO, segment(connection, mark, flags), options.ttl, options.tos)
            ifindex = route.iface.index
        if mark.kinds & TX_SCHED:
            self._put(SCHEDULED, mark.end, quoted, ifindex)
        if mark.kinds & TX_SOFTWARE:
            if isinstance(connection.ip, DelayLine):
                connection.ip.then(partial(self._put, SENT, mark.end, quoted, ifindex))
            else:
                self._put(SENT, mark.end, quoted, ifindex)

    def acknowledged(self, mark: Mark) -> None:
        if mark.kinds & TX_ACK:
            only = stamp_flags(self._socket) & OPT_TSONLY
            self._put(_ACKNOWLEDGED, mark.end, b"" if only else payload(self._connection, mark), 0)

    def freed(self, first: int, last: int, *, copied: bool) -> None:
        errors = self._socket.error_queue()
        notice = zero_copied(errors, first, last)
        if notice is not None:
            if not copied:
                notice.code = 0
            notice.stamp = self._connection.scheduler.now
            errors.put(notice, _ANY_ROOM)
        self._socket.pollee.notify()

    def _put(self, kind: int, end: int, quoted: bytes, ifindex: int) -> None:
        connection = self._connection
        asked = stamp_flags(self._socket)
        now = connection.scheduler.now
        entry = QueuedError(errno.ENOMSG, ORIGIN_TIMESTAMPING, info=kind, payload=quoted, stamp=now, ifindex=ifindex)
        if asked & OPT_ID:
            entry.extra = end - 1 - self._socket.first_stamped(connection) & 0xFFFFFFFF
        if asked & OPT_STATS:
            entry.payload, entry.statistics = statistics(connection, connection.sender.last_sent), True
        self._socket.error_queue().put(entry, connection.rcvbuf)
        self._socket.pollee.notify()
