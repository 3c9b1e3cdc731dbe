"""Entries of the error queue as messages (MSG_ERRQUEUE): struct sock_extended_err, the offender's address (ip(7))."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from stack.ip.errorqueue import ORIGIN_TIMESTAMPING, ErrorQueue
from stack.socket.families import AF_INET
from stack.socket.ip.options import IP_RECVERR, IPPROTO_IP, IPPROTO_IPV6
from stack.socket.ip.options6 import IPV6_RECVERR
from stack.socket.ip.received import sockaddr, stamping, time_stamps
from stack.socket.message import MSG_ERRQUEUE, MSG_PEEK, MSG_TRUNC, Ancillary, Message
from stack.socket.options_device import SOFTWARE, stamp_flags, stamp_option
from stack.socket.phase import AGAIN, Again

if TYPE_CHECKING:
    from stack.ip.errorqueue import QueuedError
    from stack.socket.base import Socket

_EXTENDED: Final = struct.Struct("@IBBBBII")  # struct sock_extended_err
_NOBODY4: Final = bytes(16)  # struct sockaddr_in of family AF_UNSPEC
_NOBODY6: Final = bytes(28)
_MAPPED: Final = bytes(10) + b"\xff\xff"


def take_failure(socket: Socket, errors: ErrorQueue, size: int, flags: int) -> Message | Again:
    """The oldest entry: its data, whom the packet was for, and what became of it. AGAIN if there is none."""
    entry = errors.take(peek=bool(flags & MSG_PEEK))
    if entry is None:
        return AGAIN
    ancillary: list[Ancillary] = []
    asked = stamp_flags(socket)
    if entry.origin == ORIGIN_TIMESTAMPING:
        if asked & SOFTWARE:
            ancillary.append(stamping(socket, entry.stamp))
    elif stamp_option(socket):
        ancillary += time_stamps(socket, entry.stamp)
    ancillary.append(_extended(socket, entry))
    data = entry.payload
    out = MSG_ERRQUEUE
    if len(data) > size:
        out |= MSG_TRUNC
    return Message(data[:size], entry.remote, out, len(data), ancillary)


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
