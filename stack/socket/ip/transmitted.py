"""What a sender is told of its own packets through the error queue: when they left, and when their memory is free.

Transmit time stamps (SO_TIMESTAMPING): a datagram is handed to the link at the end of the turn it was sent in, so the
moment it is scheduled and the moment it is sent are one. MSG_ZEROCOPY: a datagram is copied when it is sent, so the
notice that the memory is free comes at once and says that a copy was made; notices not fetched yet are put together.
What streams add to this is in `stream_transmitted`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.ip.errorqueue import ORIGIN_TIMESTAMPING, ORIGIN_ZEROCOPY, ErrorQueue, QueuedError
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import OPT_ID, OPT_TSONLY, TX_SCHED, TX_SOFTWARE, stamp_flags
from stack.socket.options_socket import SO_ZEROCOPY
from stack.wire import ethernet, ipv4, ipv6, udp

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer
    from stack.ip.route import Route
    from stack.socket.ip.datagram import DatagramSocket
    from stack.udp import UdpEndpoint

SENT: Final = 0  # SCM_TSTAMP_SND
SCHEDULED: Final = 1  # SCM_TSTAMP_SCHED
_COPIED: Final = 1  # SO_EE_CODE_ZEROCOPY_COPIED


def zero_copied(errors: ErrorQueue, first: int, last: int) -> QueuedError | None:
    """The notice that the memory of the sends of these numbers is free: a new entry, None if the youngest one says it
    now.
    """
    youngest = errors.last
    if youngest is not None and youngest.origin == ORIGIN_ZEROCOPY and youngest.extra == first - 1 & 0xFFFFFFFF:
        youngest.extra = last & 0xFFFFFFFF
        return None
    return QueuedError(0, ORIGIN_ZEROCOPY, code=_COPIED, info=first & 0xFFFFFFFF, extra=last & 0xFFFFFFFF)


def frame(ip: IpLayer, route: Route, src: bytes, dst: bytes, proto: int, segment: bytes, hops: int, tos: int) -> bytes:
    """The packet with this `segment` as it leaves, link header and all."""
    macs = ip.neighbour(route).header or bytes(2 * ethernet.MAC_LENGTH)
    if len(dst) == 4:
        size = 20 + len(segment)
        header = ipv4.Ipv4Header(src, dst, proto, size, 0, ipv4.FLAG_DF, hops, tos).emit()
        return macs + b"\x08\x00" + header + segment
    return macs + b"\x86\xdd" + ipv6.Ipv6Header(src, dst, proto, len(segment), hops, tos).emit() + segment


class Transmitted:
    """The notices of one socket."""

    __slots__ = ("_endpoint", "_key", "_notices", "_numbered", "_socket", "wanted")

    def __init__(self, socket: DatagramSocket, endpoint: UdpEndpoint) -> None:
        self._socket = socket
        self._endpoint = endpoint
        self._key = 0  # of the next datagram (SOF_TIMESTAMPING_OPT_ID)
        self._numbered = False
        self._notices = 0  # zero-copy sends so far
        self.wanted = False  #: every datagram's time stamps
        self.flags_changed()

    def flags_changed(self) -> None:
        """SO_TIMESTAMPING was set. Numbering begins at 0 when it is switched on."""
        flags = stamp_flags(self._socket)
        if flags & OPT_ID and not self._numbered:
            self._key = 0
        self._numbered = bool(flags & OPT_ID)
        self.wanted = bool(flags & (TX_SOFTWARE | TX_SCHED)) or self._numbered

    def note(self, data: bytes, remote: tuple[bytes, int] | None, asked: int, *, zero_copy: bool, more: bool) -> None:
        """A datagram was sent; `asked` are the flags it came with, -1 for the socket's own."""
        flags = stamp_flags(self._socket)
        kinds = flags if asked < 0 else asked
        if not more:
            key = self._key if flags & OPT_ID else 0
            if flags & OPT_ID:
                self._key = (self._key + 1) & 0xFFFFFFFF
            ifindex, payload = (0, b"") if flags & OPT_TSONLY or remote is None else self._packet(data, remote)
            for flag, kind in ((TX_SCHED, SCHEDULED), (TX_SOFTWARE, SENT)):
                if kinds & flag:
                    entry = QueuedError(errno.ENOMSG, ORIGIN_TIMESTAMPING, info=kind, extra=key, payload=payload)
                    entry.ifindex = ifindex
                    self._put(entry)
        if zero_copy and self._socket.options.value(SOL_SOCKET, SO_ZEROCOPY):
            number = self._notices
            self._notices = (number + 1) & 0xFFFFFFFF
            fresh = zero_copied(self._endpoint.errors, number, number)
            if fresh is not None:
                self._put(fresh)

    def _put(self, entry: QueuedError) -> None:
        entry.stamp = self._socket.host.netns.ip.scheduler.now
        self._endpoint.put_error(entry)

    def _packet(self, data: bytes, remote: tuple[bytes, int]) -> tuple[int, bytes]:
        """The interface it left through; the packet, its checksum for the link to finish."""
        ip = self._socket.host.netns.ip
        address, port = remote
        route = ip.route(address, src=self._endpoint.connected_from)
        datagram = udp.emit(route.src, address, self._endpoint.local[1], port, data)
        settings = self._endpoint.v4 if len(address) == 4 else self._endpoint.v6
        whole = frame(ip, route, route.src, address, udp.PROTO, datagram, settings.hops, settings.tos)
        return route.iface.index, whole
