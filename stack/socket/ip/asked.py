"""Control messages that go with a datagram to send (sendmsg): checked, as `SendOptions`.

What Linux refuses is NetError(EINVAL): unknown types of a level that this kind of socket has, wrong lengths, values out
of range. Messages of other levels pass unseen.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.cmsg import SCM_CREDENTIALS, SCM_RIGHTS, integer
from stack.socket.ip.options import (
    IP_PKTINFO,
    IP_RETOPTS,
    IP_TOS,
    IP_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_TCLASS,
    priority_of,
)
from stack.socket.ip.options6 import (
    IPV6_2292HOPLIMIT,
    IPV6_2292PKTINFO,
    IPV6_DONTFRAG,
    IPV6_DSTOPTS,
    IPV6_FLOWINFO,
    IPV6_HOPLIMIT,
    IPV6_HOPOPTS,
    IPV6_PKTINFO,
    IPV6_RTHDR,
)
from stack.socket.ip.options_udp import IPPROTO_UDP, UDP_SEGMENT
from stack.socket.ip.wire_options import chain, checked_extension, checked_options, checked_routing
from stack.socket.message import Ancillary
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import SO_MARK, SO_TIMESTAMPING, SO_TIMESTAMPING_NEW, require_admin_or_raw
from stack.socket.options_socket import SO_PRIORITY, SO_TXTIME
from stack.udp.sending import SendOptions

if TYPE_CHECKING:
    from stack.socket.base import Socket

_PKTINFO4: Final = struct.Struct("@i4s4s")
_PKTINFO6: Final = struct.Struct("@16sI")
_MAPPED: Final = bytes(10) + b"\xff\xff"
#: SOF_TIMESTAMPING_TX_*: the flags one message may ask for by itself.
TX_STAMPS: Final = 1 | 2 | 1 << 8 | 1 << 9 | 1 << 18


def take(socket: Socket, messages: Sequence[Ancillary], how: SendOptions, *, version: int) -> int:
    """Put what `messages` ask for into `how`; `version` is that of the packet to be sent.

    Returns SOF_TIMESTAMPING_* flags asked for, or -1. Raises NetError(EINVAL, EPERM).
    """
    stamps = -1
    extensions: dict[int, bytes] = {}
    for level, kind, data in messages:
        if level == SOL_SOCKET:
            stamps = socket_level(socket, kind, data, how, stamps)
        elif level == IPPROTO_UDP and socket.protocol == IPPROTO_UDP:
            if kind != UDP_SEGMENT or len(data) != 2:
                raise NetError(errno.EINVAL)
            how.segment = struct.unpack("@H", data)[0]
        elif level == IPPROTO_IP and version == 4:
            _level4(socket, kind, data, how)
        elif level == IPPROTO_IPV6 and version == 6:
            _level6(socket, kind, data, how, extensions)
        elif level == IPPROTO_IPV6 and socket.family != _AF_INET and kind == IPV6_PKTINFO:
            _mapped_source(data, how)
    if extensions:
        how.extension = chain(
            extensions.get(IPV6_HOPOPTS, b""), extensions.get(IPV6_RTHDR, b""), extensions.get(IPV6_DSTOPTS, b"")
        )
    return stamps


_AF_INET: Final = 2


def socket_level(socket: Socket, kind: int, data: bytes, how: SendOptions, stamps: int) -> int:
    """A message of level SOL_SOCKET: returns `stamps`, or the SOF_TIMESTAMPING_* flags it asks for."""
    if kind == SO_MARK:
        require_admin_or_raw(socket)
        how.mark = integer(data)
    elif kind in (SO_TIMESTAMPING, SO_TIMESTAMPING_NEW):
        flags = integer(data)
        if flags & ~TX_STAMPS:
            raise NetError(errno.EINVAL)
        return flags
    elif kind == SO_PRIORITY:
        if not 0 <= integer(data) <= 6:
            require_admin_or_raw(socket)
        how.priority = integer(data)
    elif kind == SO_TXTIME:
        if len(data) != 8 or not socket.options.explicit(SOL_SOCKET, SO_TXTIME):
            raise NetError(errno.EINVAL)
    elif kind not in (SCM_RIGHTS, SCM_CREDENTIALS):
        raise NetError(errno.EINVAL)
    return stamps


def _level4(socket: Socket, kind: int, data: bytes, how: SendOptions) -> None:
    if kind == IP_TTL:
        how.ttl = _within(data, 1, 255)
    elif kind == IP_TOS:
        how.tos = data[0] if len(data) == 1 else _within(data, 0, 255)
        how.priority = priority_of(how.tos)
    elif kind == IP_PKTINFO:
        if len(data) != _PKTINFO4.size:
            raise NetError(errno.EINVAL)
        index, source, _ = _PKTINFO4.unpack(data)
        if index:
            how.oif = index
        how.src = source if any(source) else None
    elif kind == IP_RETOPTS:
        privileged = socket.host.credentials.may(Capability.NET_RAW)
        how.options = checked_options(data[:40], privileged=privileged)
    else:
        raise NetError(errno.EINVAL)


def _level6(socket: Socket, kind: int, data: bytes, how: SendOptions, extensions: dict[int, bytes]) -> None:
    if kind in (IPV6_PKTINFO, IPV6_2292PKTINFO):
        _source6(socket, data, how)
    elif kind in (IPV6_HOPLIMIT, IPV6_2292HOPLIMIT):
        hops = _within(data, -1, 255)
        how.ttl = None if hops < 0 else hops
    elif kind == IPV6_TCLASS:
        tos = _within(data, -1, 255)
        how.tos = max(tos, 0)
    elif kind == IPV6_DONTFRAG:
        how.dont_fragment = bool(_within(data, 0, 1))
    elif kind == IPV6_FLOWINFO:
        if len(data) < 4:
            raise NetError(errno.EINVAL)
        how.flow = int.from_bytes(data[:4], "big") & 0xFFFFF
    elif kind in (IPV6_HOPOPTS, IPV6_DSTOPTS):
        if not socket.host.credentials.may(Capability.NET_RAW):
            raise NetError(errno.EPERM)
        extensions[kind] = checked_extension(data)
    elif kind == IPV6_RTHDR:
        extensions[kind] = checked_routing(data)
    else:
        raise NetError(errno.EINVAL)


def _source6(socket: Socket, data: bytes, how: SendOptions) -> None:
    """struct in6_pktinfo: an address of ours to send from, an interface to send through."""
    if len(data) < _PKTINFO6.size:
        raise NetError(errno.EINVAL)
    source, index = _PKTINFO6.unpack_from(data)
    if index:
        if how.oif and index != how.oif:
            raise NetError(errno.EINVAL)
        if index not in socket.host.netns.ip.interfaces:
            raise NetError(errno.ENODEV)
        how.oif = index
    if any(source):
        if not socket.host.netns.ip.is_own_unicast(source) and not may_lie(socket):
            raise NetError(errno.EINVAL)
        how.src = source


def _mapped_source(data: bytes, how: SendOptions) -> None:
    """The same on an IPv6 socket that sends over IPv4: a mapped address."""
    if len(data) < _PKTINFO6.size:
        raise NetError(errno.EINVAL)
    source, index = _PKTINFO6.unpack_from(data)
    if not source.startswith(_MAPPED):
        raise NetError(errno.EINVAL)
    how.oif = index or how.oif
    how.src = source[12:] if any(source[12:]) else None


def may_lie(socket: Socket) -> bool:
    """May the source address be one that is not ours (IP_FREEBIND, IP_TRANSPARENT and their likes)?"""
    from stack.socket.ip.binding import any_source_allowed

    return any_source_allowed(socket)


def _within(data: bytes, low: int, high: int) -> int:
    value = integer(data)
    if not low <= value <= high:
        raise NetError(errno.EINVAL)
    return value
