"""Entries of the error queue as messages (MSG_ERRQUEUE): struct sock_extended_err, the offender's address (ip(7))."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from stack.ip.errorqueue import ORIGIN_TIMESTAMPING, ErrorQueue
from stack.ip.packet import PacketKind
from stack.socket.families import AF_INET
from stack.socket.ip.options import IP_RECVERR, IPPROTO_IP, IPPROTO_IPV6
from stack.socket.ip.options6 import IPV6_RECVERR
from stack.socket.ip.received import of_packet, sockaddr, stamping, time_stamps
from stack.socket.message import MSG_ERRQUEUE, MSG_PEEK, MSG_TRUNC, Ancillary, Message
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import OPT_CMSG, RX_SOFTWARE, SOFTWARE, stamp_flags
from stack.socket.phase import AGAIN, Again
from stack.udp.datagram import Datagram
from stack.wire import ethernet

if TYPE_CHECKING:
    from stack.ip.errorqueue import QueuedError
    from stack.socket.base import Socket

#: Control message of level SOL_SOCKET (Linux <asm-generic/socket.h>).
SCM_TIMESTAMPING_OPT_STATS: Final = 54
_EXTENDED: Final = struct.Struct("@IBBBBII")  # struct sock_extended_err
_NOBODY4: Final = bytes(16)  # struct sockaddr_in of family AF_UNSPEC
_NOBODY6: Final = bytes(28)
_MAPPED: Final = bytes(10) + b"\xff\xff"


def take_failure(socket: Socket, errors: ErrorQueue, size: int, flags: int) -> Message | Again:
    """The oldest entry: its data, whom the packet was for, and what became of it. AGAIN if there is none."""
    entry = errors.take(peek=bool(flags & MSG_PEEK))
    if entry is None:
        return AGAIN
    ancillary = [*_times(socket, entry), *_of_frame(socket, entry), _extended(socket, entry)]
    data = entry.payload
    out = MSG_ERRQUEUE
    if len(data) > size:
        out |= MSG_TRUNC
    return Message(data[:size], entry.remote, out, len(data), ancillary)


def _times(socket: Socket, entry: QueuedError) -> list[Ancillary]:
    """When it was, as far as anybody asked the clock."""
    ancillary = time_stamps(socket, entry.stamp)
    asked = stamp_flags(socket)
    known = ancillary or entry.origin == ORIGIN_TIMESTAMPING or (entry.icmp and asked & RX_SOFTWARE)
    if asked & SOFTWARE and known:
        ancillary.append(stamping(socket, entry.stamp))
        if entry.statistics:
            ancillary.append((SOL_SOCKET, SCM_TIMESTAMPING_OPT_STATS, entry.payload))
    return ancillary


def _of_frame(socket: Socket, entry: QueuedError) -> list[Ancillary]:
    """SOF_TIMESTAMPING_OPT_CMSG: what IP_PKTINFO and its likes tell of a packet of our own that left. Over IPv6 Linux
    tells without being asked.
    """
    if not entry.ifindex or (socket.family == AF_INET and not stamp_flags(socket) & OPT_CMSG):
        return []
    packet = memoryview(entry.payload)[ethernet.HEADER_LENGTH :]
    if packet[0] >> 4 == 4:
        tos, ttl, src, dst, header = packet[1], packet[8], bytes(packet[12:16]), bytes(packet[16:20]), b""
    else:
        tos, ttl = (packet[0] << 8 | packet[1]) >> 4 & 0xFF, packet[7]
        src, dst, header = bytes(packet[8:24]), bytes(packet[24:40]), bytes(packet[:40])
    kind = PacketKind.MULTICAST  # not for us, so that its "local" address is the one it left from
    return of_packet(socket, Datagram(b"", (src, 0), (dst, 0), entry.ifindex, ttl, tos, kind, header=header))


def _extended(socket: Socket, entry: QueuedError) -> Ancillary:
    packed = _EXTENDED.pack(entry.errno, entry.origin, entry.type, entry.code, 0, entry.info, entry.extra)
    offender = entry.offender
    if socket.family == AF_INET:
        address = _NOBODY4 if offender is None else sockaddr(offender, 0)
        return IPPROTO_IP, IP_RECVERR, packed + address
    if offender is None:
        address = _NOBODY6
    else:
        address = sockaddr(offender if len(offender) == 16 else _MAPPED + offender, 0)
    return IPPROTO_IPV6, IPV6_RECVERR, packed + address
