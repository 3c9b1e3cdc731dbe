"""IPPROTO_IPV6: the options of IPv6 sockets, as Linux has them (RFC 3493 5, RFC 3542)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.families import AF_INET6
from stack.socket.ip.options import (
    DEFAULT_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_TCLASS,
    IPV6_UNICAST_HOPS,
    IPV6_V6ONLY,
    SOCK_STREAM,
    set_unicast_interface,
    ttl_of,
)
from stack.socket.ip.wire_options import checked_extension, checked_routing
from stack.socket.options import Kind, Option, Value
from stack.socket.options_device import bound_interface, require_admin_or_raw

if TYPE_CHECKING:
    from stack.socket.base import Socket

# Linux <linux/in6.h>.
IPV6_2292PKTINFO: Final = 2
IPV6_2292HOPLIMIT: Final = 8
IPV6_FLOWINFO: Final = 11
IPV6_MULTICAST_IF: Final = 17
IPV6_MULTICAST_HOPS: Final = 18
IPV6_MULTICAST_LOOP: Final = 19
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
IPV6_RECVERR: Final = 25
IPV6_MULTICAST_ALL: Final = 29
IPV6_RECVERR_RFC4884: Final = 31
IPV6_FLOWINFO_SEND: Final = 33
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
IPV6_RECVHOPLIMIT: Final = 51
IPV6_HOPLIMIT: Final = 52
IPV6_RECVHOPOPTS: Final = 53
IPV6_HOPOPTS: Final = 54
IPV6_RECVRTHDR: Final = 56
IPV6_RTHDR: Final = 57
IPV6_RECVDSTOPTS: Final = 58
IPV6_DSTOPTS: Final = 59
IPV6_RECVPATHMTU: Final = 60
IPV6_PATHMTU: Final = 61
IPV6_DONTFRAG: Final = 62
IPV6_RECVTCLASS: Final = 66
IPV6_AUTOFLOWLABEL: Final = 70
IPV6_ADDR_PREFERENCES: Final = 72
IPV6_MINHOPCOUNT: Final = 73
IPV6_RECVORIGDSTADDR: Final = 74
IPV6_TRANSPARENT: Final = 75
IPV6_UNICAST_IF: Final = 76
IPV6_RECVFRAGSIZE: Final = 77
IPV6_FREEBIND: Final = 78

#: struct ip6_mtuinfo: sockaddr_in6, MTU.
_PATH_MTU: Final = struct.Struct("@HHI16sII")
MIN_MTU: Final = 1280

# IPV6_PREFER_SRC_* of <linux/in6.h> (RFC 5014).
_PREFER_TEMPORARY: Final = 0x1
_PREFER_PUBLIC: Final = 0x2
_PREFER_EITHER: Final = 0x100
_PREFER_CARE_OF: Final = 0x4
_PREFER_HOME: Final = 0x400
_PREFER_CGA: Final = 0x8
_PREFER_NON_CGA: Final = 0x800
_PREFERENCES: Final = ((_PREFER_PUBLIC, _PREFER_TEMPORARY, _PREFER_EITHER), (_PREFER_HOME, _PREFER_CARE_OF), (
    _PREFER_CGA, _PREFER_NON_CGA))  # fmt: skip


def _row(number: int, name: str, kind: Kind = Kind.INT, **more: Any) -> Option:
    return Option(IPPROTO_IPV6, number, name, kind, **more)


def basic_rows6(*, tos_keeps_ecn: bool) -> list[Option]:
    """The rows that sockets of every type have."""

    def traffic_class(socket: Socket, value: int) -> int:
        byte = max(value, 0)
        return byte & ~3 if tos_keeps_ecn else byte

    return [
        _row(IPV6_V6ONLY, "IPV6_V6ONLY", Kind.BOOL, check=_v6_unbound),
        _row(IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS", default=-1, low=-1, high=255, get=_hops),
        _row(IPV6_TCLASS, "IPV6_TCLASS", low=-1, high=255, adjust=traffic_class),
    ]


#: Options of TCP sockets, too. Those of the last two lines are about datagrams: Linux takes them, and they do nothing.
_OF_STREAMS: Final = (
    *(IPV6_2292PKTINFO, IPV6_2292HOPLIMIT, IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS, IPV6_MINHOPCOUNT),
    *(IPV6_UNICAST_IF, IPV6_TRANSPARENT, IPV6_FREEBIND, IPV6_RECVERR, IPV6_MTU_DISCOVER),
    *(IPV6_MTU, IPV6_PATHMTU, IPV6_ADDR_PREFERENCES),
    *(IPV6_MULTICAST_IF, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP, IPV6_MULTICAST_ALL, IPV6_RECVERR_RFC4884),
    *(IPV6_RECVPATHMTU, IPV6_DONTFRAG, IPV6_RECVORIGDSTADDR, IPV6_RECVFRAGSIZE),
)


def stream_rows6() -> list[Option]:
    """The rows of TCP sockets of AF_INET6."""
    from stack.socket.ip import memberships  # they need what is here

    rows = (row for row in datagram_rows6() if row.number in _OF_STREAMS)
    return [*basic_rows6(tos_keeps_ecn=True), *rows, *memberships.stream_rows6()]


def datagram_rows6() -> list[Option]:
    """The rows of UDP sockets of AF_INET6."""
    flags = {
        IPV6_2292PKTINFO: "IPV6_2292PKTINFO",
        IPV6_2292HOPLIMIT: "IPV6_2292HOPLIMIT",
        IPV6_FLOWINFO: "IPV6_FLOWINFO",
        IPV6_RECVERR: "IPV6_RECVERR",
        IPV6_FLOWINFO_SEND: "IPV6_FLOWINFO_SEND",
        IPV6_RECVPKTINFO: "IPV6_RECVPKTINFO",
        IPV6_RECVHOPLIMIT: "IPV6_RECVHOPLIMIT",
        IPV6_RECVHOPOPTS: "IPV6_RECVHOPOPTS",
        IPV6_RECVRTHDR: "IPV6_RECVRTHDR",
        IPV6_RECVDSTOPTS: "IPV6_RECVDSTOPTS",
        IPV6_RECVPATHMTU: "IPV6_RECVPATHMTU",
        IPV6_RECVTCLASS: "IPV6_RECVTCLASS",
        IPV6_RECVORIGDSTADDR: "IPV6_RECVORIGDSTADDR",
        IPV6_FREEBIND: "IPV6_FREEBIND",
    }
    return [
        *basic_rows6(tos_keeps_ecn=False),
        *(_row(number, name, Kind.BOOL) for number, name in flags.items()),
        _row(IPV6_RECVFRAGSIZE, "IPV6_RECVFRAGSIZE", Kind.BOOL, short_ok=True, empty_ok=True),
        _row(IPV6_MULTICAST_IF, "IPV6_MULTICAST_IF", adjust=_multicast_if),
        _row(IPV6_MULTICAST_HOPS, "IPV6_MULTICAST_HOPS", default=1, low=-1, high=255, adjust=_multicast_hops),
        _row(IPV6_MULTICAST_LOOP, "IPV6_MULTICAST_LOOP", default=1, low=0, high=1),
        _row(IPV6_MULTICAST_ALL, "IPV6_MULTICAST_ALL", Kind.BOOL, default=1),
        _row(IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER", default=1, low=0, high=5),
        _row(IPV6_MTU, "IPV6_MTU", adjust=_set_mtu, get=_mtu),
        _row(IPV6_RECVERR_RFC4884, "IPV6_RECVERR_RFC4884", low=0, high=1),
        _row(IPV6_PKTINFO, "IPV6_PKTINFO", Kind.OPAQUE, readable=False, act=_set_packet_info),
        _row(IPV6_HOPOPTS, "IPV6_HOPOPTS", Kind.OPAQUE, default=b"", act=_set_extension(IPV6_HOPOPTS)),
        _row(IPV6_RTHDR, "IPV6_RTHDR", Kind.OPAQUE, default=b"", act=_set_extension(IPV6_RTHDR)),
        _row(IPV6_DSTOPTS, "IPV6_DSTOPTS", Kind.OPAQUE, default=b"", act=_set_extension(IPV6_DSTOPTS)),
        _row(IPV6_PATHMTU, "IPV6_PATHMTU", Kind.OPAQUE, show=_path_mtu, act=_read_only),
        _row(IPV6_DONTFRAG, "IPV6_DONTFRAG", Kind.BOOL, short_ok=True, empty_ok=True),
        _row(IPV6_AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL", Kind.BOOL, default=1, short_ok=True, empty_ok=True),
        _row(IPV6_ADDR_PREFERENCES, "IPV6_ADDR_PREFERENCES", default=0, adjust=_prefer, get=_preferences),
        _row(IPV6_MINHOPCOUNT, "IPV6_MINHOPCOUNT", low=0, high=255),
        _row(IPV6_TRANSPARENT, "IPV6_TRANSPARENT", Kind.BOOL, check=_transparent),
        _row(IPV6_UNICAST_IF, "IPV6_UNICAST_IF", act=_set_unicast_if),
    ]


def _hops(socket: Socket) -> int:
    return ttl_of(socket, version=6)


def _v6_unbound(socket: Any, value: object) -> None:
    if socket.family != AF_INET6:
        raise NetError(errno.ENOPROTOOPT)
    if socket.is_bound():
        raise NetError(errno.EINVAL)


def _multicast_if(socket: Socket, value: int) -> int:
    """An interface's index; 0 for what routing says."""
    if socket.type == SOCK_STREAM:
        raise NetError(errno.ENOPROTOOPT)
    bound = bound_interface(socket)
    if value and value not in socket.host.netns.ip.interfaces:
        raise NetError(errno.ENODEV)
    if bound and value and value != bound:
        raise NetError(errno.EINVAL)
    return value


def _multicast_hops(socket: Socket, value: int) -> int:
    if socket.type == SOCK_STREAM:
        raise NetError(errno.ENOPROTOOPT)
    return 1 if value < 0 else value


def _set_mtu(socket: Socket, value: int) -> int:
    """The longest packet to send, bytes; 0: what the path takes."""
    if value and value < MIN_MTU:
        raise NetError(errno.EINVAL)
    return value


def _mtu(socket: Any) -> int:
    return int(socket.path_mtu())


def _path_mtu(socket: Any, room: int) -> bytes:
    if room < _PATH_MTU.size:
        raise NetError(errno.EINVAL)
    mtu = int(socket.path_mtu())
    return path_mtu_info(socket.phase.peer_address()[0], mtu)


def path_mtu_info(address: bytes, mtu: int) -> bytes:
    """struct ip6_mtuinfo."""
    if len(address) == 4:
        address = bytes(10) + b"\xff\xff" + address
    return _PATH_MTU.pack(AF_INET6, 0, 0, address, 0, mtu)


def _read_only(socket: Any, data: bytes) -> None:
    raise NetError(errno.ENOPROTOOPT)


def _set_packet_info(socket: Socket, data: bytes) -> None:
    """struct in6_pktinfo: the source address and interface of everything this socket sends."""
    if len(data) < 20:
        raise NetError(errno.EINVAL)
    index = struct.unpack_from("@I", data, 16)[0]
    bound = bound_interface(socket)
    if bound and index and index != bound:
        raise NetError(errno.EINVAL)
    socket.options.store(IPPROTO_IPV6, IPV6_PKTINFO, data[:20])


def _set_extension(number: int) -> Callable[[Socket, bytes], None]:
    def act(socket: Socket, data: bytes) -> None:
        if number != IPV6_RTHDR and not socket.host.credentials.may(Capability.NET_RAW):
            raise NetError(errno.EPERM)
        checked = checked_routing(data) if number == IPV6_RTHDR else checked_extension(data)
        socket.options.store(IPPROTO_IPV6, number, checked)

    return act


def _prefer(socket: Socket, value: int) -> int:
    """RFC 5014: of each group of opposites at most one. What is said about addresses of home agents, or made by
    cryptography, is taken and ignored: there are none.
    """
    known = 0
    for group in _PREFERENCES:
        if sum(value & flag != 0 for flag in group) > 1:
            raise NetError(errno.EINVAL)
        known |= sum(group)
    chosen = value & (_PREFER_PUBLIC | _PREFER_TEMPORARY | _PREFER_EITHER | _PREFER_CARE_OF)
    before = int(socket.options.value(IPPROTO_IPV6, IPV6_ADDR_PREFERENCES))
    if not value & (_PREFER_PUBLIC | _PREFER_TEMPORARY | _PREFER_EITHER):
        chosen |= before & (_PREFER_PUBLIC | _PREFER_TEMPORARY)
    if not value & (_PREFER_HOME | _PREFER_CARE_OF):
        chosen |= before & _PREFER_CARE_OF
    return chosen & ~_PREFER_EITHER


def _preferences(socket: Socket) -> int:
    stored = int(socket.options.value(IPPROTO_IPV6, IPV6_ADDR_PREFERENCES))
    if not stored & (_PREFER_PUBLIC | _PREFER_TEMPORARY):
        stored |= _PREFER_EITHER
    return stored if stored & _PREFER_CARE_OF else stored | _PREFER_HOME


def prefers_temporary(socket: Socket) -> bool | None:
    """RFC 5014: temporary source addresses, public ones, or (None) whatever is configured."""
    stored = int(socket.options.value(IPPROTO_IPV6, IPV6_ADDR_PREFERENCES))
    return True if stored & _PREFER_TEMPORARY else False if stored & _PREFER_PUBLIC else None


def _transparent(socket: Socket, value: Value) -> None:
    if value:
        require_admin_or_raw(socket)


def _set_unicast_if(socket: Socket, data: bytes) -> None:
    if len(data) != 4:
        raise NetError(errno.EINVAL)
    set_unicast_interface(socket, IPPROTO_IPV6, IPV6_UNICAST_IF, data)


def path_mtu_limit(socket: Socket) -> int:
    """IPV6_MTU as it was set, 0 if it was not."""
    return int(socket.options.value(IPPROTO_IPV6, IPV6_MTU))


def settled(socket: Socket) -> tuple[int, bytes]:
    """What IPV6_PKTINFO was set to: (interface, source address or b"")."""
    stored = bytes(socket.options.value(IPPROTO_IPV6, IPV6_PKTINFO) or b"")
    if len(stored) != 20:
        return 0, b""
    return struct.unpack_from("@I", stored, 16)[0], stored[:16] if any(stored[:16]) else b""


#: Levels an IPv6 socket has.
LEVELS6: Final = (IPPROTO_IP, IPPROTO_IPV6)
DEFAULT_HOPS: Final = DEFAULT_TTL
