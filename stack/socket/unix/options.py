"""SOL_SOCKET as Unix sockets have it; there is no level of their own (section 2.7 of the socket semantics)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.socket.options import SOL_SOCKET, Kind, Option, OptionTable
from stack.socket.options_socket import (
    SO_OOBINLINE,
    SO_PASSCRED,
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
    SO_PASSSEC,
    SO_PEEK_OFF,
    SO_PEERCRED,
    SO_PEERGROUPS,
    SO_PEERNAME,
    SO_PEERPIDFD,
    SO_RCVLOWAT,
    SO_REUSEPORT,
    SO_SNDBUF,
    SO_SNDBUFFORCE,
    SO_TYPE,
    SO_ZEROCOPY,
    socket_level,
)
from stack.socket.unix.control import own_pidfd
from stack.unix.endpoint import PASS_IDENTITY, PASS_PIDFD, PASS_RIGHTS

if TYPE_CHECKING:
    from stack.socket.unix.socket import UnixSocket

_UCRED: Final = struct.Struct("=iii")
_GID: Final = struct.Struct("=I")
_INT: Final = struct.Struct("@i")
_FAMILY: Final = struct.Struct("@H")
_AF_UNIX: Final = 1


def _send_buffer(socket: UnixSocket[Any]) -> None:
    socket.endpoint.sndbuf = int(socket.options.value(SOL_SOCKET, SO_SNDBUF))


def _peek_offset(socket: UnixSocket[Any], value: int) -> None:
    socket.endpoint.peek_offset = value


def _peer_identity(socket: UnixSocket[Any]) -> bytes:
    known = socket.endpoint.peer_identity
    return _UCRED.pack(0, -1, -1) if known is None else _UCRED.pack(*known.identity)


def _peer_groups(socket: UnixSocket[Any], room: int) -> bytes:
    known = socket.endpoint.peer_identity
    if known is None:
        raise NetError(errno.ENODATA)
    packed = b"".join(map(_GID.pack, known.groups))
    if room < len(packed):
        raise NetError(errno.ERANGE)
    return packed


def _peer_pidfd(socket: UnixSocket[Any]) -> bytes:
    if socket.endpoint.peer_identity is None:
        raise NetError(errno.ENODATA)
    try:
        return _INT.pack(own_pidfd())
    except OSError as error:
        raise NetError(error.errno or errno.EMFILE) from None


def _peer_name(socket: UnixSocket[Any], room: int) -> bytes:
    """As getpeername: struct sockaddr_un, with the zero at the end of a path."""
    address = socket.phase.peer_address()
    packed: bytes = _FAMILY.pack(_AF_UNIX) + address
    if address and address[0]:
        packed += b"\0"
    if room > len(packed):
        raise NetError(errno.EINVAL)
    return packed


def _row(number: int, name: str, kind: Kind = Kind.BOOL, **more: Any) -> Option:
    return Option(SOL_SOCKET, number, name, kind, **more)


def _passing(number: int, name: str, bit: int) -> Option:
    """An option that is a bit of what the endpoint passes."""

    def effect(socket: UnixSocket[Any], value: int) -> None:
        endpoint = socket.endpoint
        endpoint.passing = endpoint.passing | bit if value else endpoint.passing & ~bit

    return _row(number, name, effect=effect, get=lambda socket: int(bool(socket.endpoint.passing & bit)))


UNIX_OPTIONS: Final = OptionTable(
    [
        *socket_level(without=(SO_REUSEPORT, SO_ZEROCOPY)),
        _row(SO_ZEROCOPY, "SO_ZEROCOPY", writable=False, refusal=errno.EOPNOTSUPP),
        _row(SO_TYPE, "SO_TYPE", Kind.INT, writable=False, get=lambda s: s.endpoint.kind),
        _passing(SO_PASSCRED, "SO_PASSCRED", PASS_IDENTITY),
        _passing(SO_PASSPIDFD, "SO_PASSPIDFD", PASS_PIDFD),
        _passing(SO_PASSRIGHTS, "SO_PASSRIGHTS", PASS_RIGHTS),
        _row(SO_PASSSEC, "SO_PASSSEC"),
        _row(
            SO_PEEK_OFF, "SO_PEEK_OFF", Kind.INT, default=-1, effect=_peek_offset, get=lambda s: s.endpoint.peek_offset
        ),
        _row(SO_PEERCRED, "SO_PEERCRED", Kind.OPAQUE, writable=False, get=_peer_identity),
        _row(SO_PEERGROUPS, "SO_PEERGROUPS", Kind.OPAQUE, writable=False, show=_peer_groups),
        _row(SO_PEERPIDFD, "SO_PEERPIDFD", Kind.OPAQUE, writable=False, get=_peer_pidfd),
        _row(SO_PEERNAME, "SO_PEERNAME", Kind.OPAQUE, writable=False, show=_peer_name),
    ],
    unknown_level_get=errno.EOPNOTSUPP,
    unknown_level_set=errno.EOPNOTSUPP,
)


def changed(socket: UnixSocket[Any], level: int, number: int) -> None:
    """After a store: what the endpoint is to know."""
    if level != SOL_SOCKET:
        return
    if number in (SO_SNDBUF, SO_SNDBUFFORCE):
        _send_buffer(socket)
        socket.endpoint.changed()
    elif number == SO_RCVLOWAT:
        socket.low_water = int(socket.options.value(SOL_SOCKET, SO_RCVLOWAT))
    elif number == SO_OOBINLINE:
        socket.set_inline(bool(socket.options.value(SOL_SOCKET, SO_OOBINLINE)))
