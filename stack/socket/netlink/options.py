"""What an AF_NETLINK socket understands: SOL_SOCKET and SOL_NETLINK (section 2.5 of the socket semantics, measured)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.socket.netlink.endpoint import SOL_NETLINK
from stack.socket.options import SOL_SOCKET, Kind, Option, OptionTable, Value
from stack.socket.options_socket import (
    SO_PASSSEC,
    SO_PEEK_OFF,
    SO_PEERNAME,
    SO_REUSEPORT,
    SO_ZEROCOPY,
    socket_level,
)

if TYPE_CHECKING:
    from stack.socket.netlink.socket import NetlinkSocket

SO_PASSCRED: Final = 16
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_DROP_MEMBERSHIP: Final = 2
NETLINK_PKTINFO: Final = 3
NETLINK_BROADCAST_ERROR: Final = 4
NETLINK_NO_ENOBUFS: Final = 5
NETLINK_LIST_MEMBERSHIPS: Final = 9
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12

_U32: Final = struct.Struct("=I")


def _group(socket: NetlinkSocket, value: Value) -> int:
    """A number, not a mask. Raises NetError(EINVAL) for one there is not."""
    if not isinstance(value, bytes) or len(value) < _U32.size:
        raise NetError(errno.EINVAL)
    (group,) = _U32.unpack_from(value)
    protocol = socket.table.protocol
    if not protocol.anyone_receives and not socket.capable:
        raise NetError(errno.EPERM)
    if not 1 <= group <= protocol.groups:
        raise NetError(errno.EINVAL)
    return int(group)


def _may_join(socket: NetlinkSocket, value: Value) -> None:
    socket.check_group(_group(socket, value))


def _join(socket: NetlinkSocket, value: bytes) -> None:
    socket.table.join(socket.endpoint, _group(socket, value))


def _leave(socket: NetlinkSocket, value: bytes) -> None:
    socket.table.leave(socket.endpoint, _group(socket, value))


def _memberships(socket: NetlinkSocket) -> bytes:
    """A bitmap of 32-bit words, as long as the protocol has groups."""
    words = [0] * -(-socket.table.protocol.groups // 32)
    for group in socket.endpoint.groups:
        words[(group - 1) // 32] |= 1 << (group - 1) % 32
    return b"".join(map(_U32.pack, words))


def _peer_name(socket: NetlinkSocket, room: int) -> bytes:
    if room > _SOCKADDR_NL.size:
        raise NetError(errno.EINVAL)
    endpoint = socket.endpoint
    return _SOCKADDR_NL.pack(socket.family, endpoint.peer, socket.peer_groups)


#: struct sockaddr_nl
_SOCKADDR_NL: Final = struct.Struct("=HxxII")


def _no_enobufs(socket: NetlinkSocket, value: int) -> None:
    socket.endpoint.no_enobufs = bool(value)
    if value:
        socket.endpoint.congested = False


def _row(number: int, name: str, kind: Kind = Kind.BOOL, **more: Any) -> Option:
    return Option(SOL_NETLINK, number, name, kind, **more)


NETLINK_OPTIONS: Final = OptionTable(
    [
        *socket_level(without=(SO_REUSEPORT, SO_PEEK_OFF)),
        Option(SOL_SOCKET, SO_PASSSEC, "SO_PASSSEC", Kind.BOOL),
        Option(SOL_SOCKET, SO_ZEROCOPY, "SO_ZEROCOPY", Kind.BOOL, writable=False, refusal=errno.EOPNOTSUPP),
        Option(SOL_SOCKET, SO_PEERNAME, "SO_PEERNAME", Kind.OPAQUE, writable=False, show=_peer_name),
        Option(SOL_SOCKET, SO_PASSCRED, "SO_PASSCRED", Kind.BOOL),
        _row(
            NETLINK_ADD_MEMBERSHIP,
            "NETLINK_ADD_MEMBERSHIP",
            Kind.OPAQUE,
            readable=False,
            check=_may_join,
            effect=_join,
        ),
        _row(
            NETLINK_DROP_MEMBERSHIP,
            "NETLINK_DROP_MEMBERSHIP",
            Kind.OPAQUE,
            readable=False,
            check=_may_join,
            effect=_leave,
        ),
        _row(NETLINK_PKTINFO, "NETLINK_PKTINFO"),
        _row(NETLINK_BROADCAST_ERROR, "NETLINK_BROADCAST_ERROR"),
        _row(NETLINK_NO_ENOBUFS, "NETLINK_NO_ENOBUFS", effect=_no_enobufs),
        _row(NETLINK_LIST_MEMBERSHIPS, "NETLINK_LIST_MEMBERSHIPS", Kind.OPAQUE, writable=False, get=_memberships),
        _row(NETLINK_CAP_ACK, "NETLINK_CAP_ACK"),
        _row(NETLINK_EXT_ACK, "NETLINK_EXT_ACK"),
        _row(NETLINK_GET_STRICT_CHK, "NETLINK_GET_STRICT_CHK"),
    ],
    unknown_level_get=errno.ENOPROTOOPT,
    unknown_level_set=errno.ENOPROTOOPT,
)
