"""SOL_SOCKET: through which interface a socket works, what its packets are marked with, when they came (2.1)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.options import SOL_SOCKET, Kind, Option, Value

if TYPE_CHECKING:
    from stack.socket.base import Socket

# Linux <asm-generic/socket.h>.
SO_BINDTODEVICE: Final = 25
SO_TIMESTAMP: Final = 29
SO_TIMESTAMPNS: Final = 35
SO_MARK: Final = 36
SO_TIMESTAMPING: Final = 37
SO_BINDTOIFINDEX: Final = 62
SO_TIMESTAMP_NEW: Final = 63
SO_TIMESTAMPNS_NEW: Final = 64
SO_TIMESTAMPING_NEW: Final = 65

# SOF_TIMESTAMPING_* of <linux/net_tstamp.h>: those that do something here.
TX_SOFTWARE: Final = 1 << 1
RX_SOFTWARE: Final = 1 << 3
SOFTWARE: Final = 1 << 4
OPT_ID: Final = 1 << 7
TX_SCHED: Final = 1 << 8
TX_ACK: Final = 1 << 9
OPT_CMSG: Final = 1 << 10
OPT_TSONLY: Final = 1 << 11
OPT_STATS: Final = 1 << 12
_BIND_PHC: Final = 1 << 15
_OPT_ID_TCP: Final = 1 << 16
OPT_RX_FILTER: Final = 1 << 17
_ALL_FLAGS: Final = (1 << 19) - 1  # up to SOF_TIMESTAMPING_TX_COMPLETION of Linux 6.15

IFNAMSIZ: Final = 16
_FLAGS: Final = struct.Struct("@Ii")  # struct so_timestamping


def device_rows() -> list[Option]:
    """The rows."""

    def row(number: int, name: str, kind: Kind = Kind.BOOL, **more: Any) -> Option:
        return Option(SOL_SOCKET, number, name, kind, **more)

    return [
        row(SO_BINDTODEVICE, "SO_BINDTODEVICE", Kind.NAME, act=_bind_to_name, show=_bound_name),
        row(SO_BINDTOIFINDEX, "SO_BINDTOIFINDEX", Kind.INT, low=0, check=_may_rebind),
        row(SO_MARK, "SO_MARK", Kind.INT, check=_mark),
        *(
            row(number, name, get=_stamps(number), effect=_set_stamps(number))
            for number, name in (
                (SO_TIMESTAMP_NEW, "SO_TIMESTAMP_NEW"),
                (SO_TIMESTAMPNS, "SO_TIMESTAMPNS"),
                (SO_TIMESTAMPNS_NEW, "SO_TIMESTAMPNS_NEW"),
                (SO_TIMESTAMP, "SO_TIMESTAMP"),
            )
        ),
        row(SO_TIMESTAMPING, "SO_TIMESTAMPING", Kind.OPAQUE, default=0, act=_set_flags(SO_TIMESTAMPING), show=_flags),
        row(
            SO_TIMESTAMPING_NEW,
            "SO_TIMESTAMPING_NEW",
            Kind.OPAQUE,
            default=0,
            act=_set_flags(SO_TIMESTAMPING_NEW),
            show=_flags,
        ),
    ]


def require_admin_or_raw(socket: Socket) -> None:
    """Raises NetError(EPERM) unless who acts has CAP_NET_ADMIN or CAP_NET_RAW (SEC-04)."""
    credentials = socket.host.credentials
    if not credentials.may(Capability.NET_ADMIN) and not credentials.may(Capability.NET_RAW):
        raise NetError(errno.EPERM)


def _mark(socket: Socket, value: Value) -> None:
    require_admin_or_raw(socket)


# -- interfaces -------------------------------------------------------------------------------------------------------


def bound_interface(socket: Socket) -> int:
    """The interface a socket is bound to, 0 for any."""
    return int(socket.options.value(SOL_SOCKET, SO_BINDTOIFINDEX))


def _may_rebind(socket: Socket, value: Value) -> None:
    """Once bound, only CAP_NET_RAW may change it."""
    if bound_interface(socket) and not socket.host.credentials.may(Capability.NET_RAW):
        raise NetError(errno.EPERM)


def _bind_to_name(socket: Socket, data: bytes) -> None:
    name = data[: IFNAMSIZ - 1].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    index = 0
    if name:
        interfaces = socket.host.netns.ip.interfaces
        index = next((iface.index for iface in interfaces.values() if iface.name == name), 0)
        if not index:
            raise NetError(errno.ENODEV)
    _may_rebind(socket, index)
    socket.options.store(SOL_SOCKET, SO_BINDTOIFINDEX, index)


def _bound_name(socket: Socket, room: int) -> bytes:
    index = bound_interface(socket)
    if not index:
        return b""
    if room < IFNAMSIZ:
        raise NetError(errno.EINVAL)
    iface = socket.host.netns.ip.interfaces.get(index)
    if iface is None:
        raise NetError(errno.ENODEV)
    return iface.name.encode("utf-8", "surrogateescape") + b"\0"


# -- time stamps ------------------------------------------------------------------------------------------------------

# Which receive option is on is kept under SO_TIMESTAMP, as its old number. Whether messages have the new numbers is
# kept under SO_TIMESTAMPING_NEW: the option set last decides for all of them (Linux SOCK_TSTAMP_NEW).

_NEW: Final = {SO_TIMESTAMP: SO_TIMESTAMP_NEW, SO_TIMESTAMPNS: SO_TIMESTAMPNS_NEW}
_OLD: Final = {SO_TIMESTAMP_NEW: SO_TIMESTAMP, SO_TIMESTAMPNS_NEW: SO_TIMESTAMPNS}


def stamp_option(socket: Socket) -> int:
    """The type of the control message that SO_TIMESTAMP or a like of it asks for, 0 for none."""
    option = int(socket.options.value(SOL_SOCKET, SO_TIMESTAMP))
    return _NEW[option] if option and _new(socket) else option


def stamp_flags(socket: Socket) -> int:
    """SOF_TIMESTAMPING_* asked for."""
    return int(socket.options.value(SOL_SOCKET, SO_TIMESTAMPING))


def stamping_type(socket: Socket) -> int:
    """The type of the control message that SO_TIMESTAMPING asks for."""
    return SO_TIMESTAMPING_NEW if _new(socket) else SO_TIMESTAMPING


def _new(socket: Socket) -> bool:
    return bool(socket.options.value(SOL_SOCKET, SO_TIMESTAMPING_NEW))


def _stamps(number: int) -> Callable[[Socket], int]:
    #: What else reads as 1: SO_TIMESTAMPNS_NEW makes SO_TIMESTAMP_NEW do so, too.
    alike = (number, SO_TIMESTAMPNS_NEW) if number == SO_TIMESTAMP_NEW else (number,)
    return lambda socket: int(stamp_option(socket) in alike)


def _set_stamps(number: int) -> Callable[[Socket, int], None]:
    def effect(socket: Socket, value: int) -> None:
        socket.options.store(SOL_SOCKET, SO_TIMESTAMP, _OLD.get(number, number) if value else 0)
        if value:
            socket.options.store(SOL_SOCKET, SO_TIMESTAMPING_NEW, int(number in _OLD))

    return effect


def _set_flags(number: int) -> Callable[[Socket, bytes], None]:
    def act(socket: Socket, data: bytes) -> None:
        if len(data) < 4:
            raise NetError(errno.EINVAL)
        flags = struct.unpack_from("@I", data)[0]
        if flags & ~_ALL_FLAGS:
            raise NetError(errno.EINVAL)
        if flags & _OPT_ID_TCP and not flags & OPT_ID:
            raise NetError(errno.EINVAL)
        if flags & OPT_ID and not stamp_flags(socket) & OPT_ID:
            socket.number_stamps(written=bool(flags & _OPT_ID_TCP))
        if flags & OPT_STATS and not flags & OPT_TSONLY:
            raise NetError(errno.EINVAL)
        if flags & _BIND_PHC:
            raise NetError(errno.EOPNOTSUPP)  # there is no hardware clock
        socket.options.store(SOL_SOCKET, SO_TIMESTAMPING, flags)
        socket.options.store(SOL_SOCKET, SO_TIMESTAMPING_NEW, int(number == SO_TIMESTAMPING_NEW))

    return act


def _flags(socket: Socket, room: int) -> bytes:
    return _FLAGS.pack(stamp_flags(socket), 0)
