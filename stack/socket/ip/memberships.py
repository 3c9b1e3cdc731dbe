"""Multicast groups of a socket: memberships and source filters of both IP versions (section 2.2; RFC 3678).

Three generations of options say the same: IP_ADD_MEMBERSHIP and its likes with IPv4 addresses, IPV6_JOIN_GROUP with an
interface's index, and MCAST_JOIN_GROUP and its likes, on both levels, with whole socket addresses. All end in the
socket's `Listening`, and so in IGMPv3 and MLDv2 reports.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.ip.listening import Listening, is_group
from stack.socket.families import AF_INET, AF_INET6
from stack.socket.ip.options import IPPROTO_IP, IPPROTO_IPV6, interface_of
from stack.socket.options import Kind, Option

if TYPE_CHECKING:
    from stack.socket.base import Socket

# Linux <linux/in.h>, <linux/in6.h>.
IP_ADD_MEMBERSHIP: Final = 35
IP_DROP_MEMBERSHIP: Final = 36
IP_UNBLOCK_SOURCE: Final = 37
IP_BLOCK_SOURCE: Final = 38
IP_ADD_SOURCE_MEMBERSHIP: Final = 39
IP_DROP_SOURCE_MEMBERSHIP: Final = 40
IP_MSFILTER: Final = 41
MCAST_JOIN_GROUP: Final = 42
MCAST_BLOCK_SOURCE: Final = 43
MCAST_UNBLOCK_SOURCE: Final = 44
MCAST_LEAVE_GROUP: Final = 45
MCAST_JOIN_SOURCE_GROUP: Final = 46
MCAST_LEAVE_SOURCE_GROUP: Final = 47
MCAST_MSFILTER: Final = 48
IPV6_JOIN_GROUP: Final = 20
IPV6_LEAVE_GROUP: Final = 21

#: net.ipv4.igmp_max_msf: sources of one filter.
MAX_SOURCES4: Final = 10
#: net.ipv6.mld_max_msf.
MAX_SOURCES6: Final = 64

_MREQ: Final = struct.Struct("@4s4s")  # struct ip_mreq
_MREQN: Final = struct.Struct("@4s4si")  # struct ip_mreqn
_SOURCE: Final = struct.Struct("@4s4s4s")  # struct ip_mreq_source: group, interface, source
_FILTER4: Final = struct.Struct("@4s4sII")  # struct ip_msfilter: group, interface, mode, sources
_MREQ6: Final = struct.Struct("@16si")  # struct ipv6_mreq
_STORAGE: Final = 128  # bytes of struct sockaddr_storage
_GROUP: Final = 8 + _STORAGE  # struct group_req: index, padding, address
_GROUP_SOURCE: Final = _GROUP + _STORAGE  # struct group_source_req
_FILTER: Final = _GROUP + 8  # struct group_filter: as group_req, then mode and number of sources
_INCLUDE: Final = 1  # MCAST_INCLUDE
_EXCLUDE: Final = 0


def rows4() -> list[Option]:
    """The rows of IPPROTO_IP."""
    return _rows(
        IPPROTO_IP,
        {
            IP_ADD_MEMBERSHIP: ("IP_ADD_MEMBERSHIP", _add4),
            IP_DROP_MEMBERSHIP: ("IP_DROP_MEMBERSHIP", _drop4),
            IP_UNBLOCK_SOURCE: ("IP_UNBLOCK_SOURCE", _source4(Listening.unblock)),
            IP_BLOCK_SOURCE: ("IP_BLOCK_SOURCE", _source4(Listening.block)),
            IP_ADD_SOURCE_MEMBERSHIP: ("IP_ADD_SOURCE_MEMBERSHIP", _source4(Listening.add_source)),
            IP_DROP_SOURCE_MEMBERSHIP: ("IP_DROP_SOURCE_MEMBERSHIP", _source4(Listening.drop_source)),
            IP_MSFILTER: ("IP_MSFILTER", _filter4),
            **_protocol_independent(AF_INET),
        },
    )


def rows6() -> list[Option]:
    """The rows of IPPROTO_IPV6."""
    return _rows(
        IPPROTO_IPV6,
        {
            IPV6_JOIN_GROUP: ("IPV6_JOIN_GROUP", _member6(Listening.join)),
            IPV6_LEAVE_GROUP: ("IPV6_LEAVE_GROUP", _member6(Listening.leave)),
            **_protocol_independent(AF_INET6),
        },
    )


_Act = Callable[[Any, bytes], None]


def _rows(level: int, acts: dict[int, tuple[str, _Act]]) -> list[Option]:
    return [
        Option(level, number, name, Kind.OPAQUE, act=act, **_READING.get(number, {"readable": False}))
        for number, (name, act) in acts.items()
    ]


def stream_rows() -> list[Option]:
    """The rows of IPPROTO_IP for TCP: as measured, only the oldest way to join is refused."""
    return [_refused(row, 0) if row.number in (IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP) else row for row in rows4()]


def stream_rows6() -> list[Option]:
    """The rows of IPPROTO_IPV6 for TCP, likewise."""
    least = _MREQ6.size
    return [_refused(row, least) if row.number in (IPV6_JOIN_GROUP, IPV6_LEAVE_GROUP) else row for row in rows6()]


def _refused(row: Option, least: int) -> Option:
    def act(socket: Socket, data: bytes) -> None:
        raise NetError(errno.EINVAL if len(data) < least else errno.EPROTO)

    return replace(row, act=act)


def _show_filter(socket: Socket, room: int) -> bytes:
    """A filter is asked for with the group in the very buffer that takes the answer; without one it is an error."""
    raise NetError(errno.EINVAL)


_READING: Final[dict[int, dict[str, Any]]] = {
    IP_MSFILTER: {"show": _show_filter},
    MCAST_MSFILTER: {"show": _show_filter},
}


def _protocol_independent(family: int) -> dict[int, tuple[str, _Act]]:
    return {
        MCAST_JOIN_GROUP: ("MCAST_JOIN_GROUP", _member(family, Listening.join)),
        MCAST_LEAVE_GROUP: ("MCAST_LEAVE_GROUP", _member(family, Listening.leave)),
        MCAST_BLOCK_SOURCE: ("MCAST_BLOCK_SOURCE", _source(family, Listening.block)),
        MCAST_UNBLOCK_SOURCE: ("MCAST_UNBLOCK_SOURCE", _source(family, Listening.unblock)),
        MCAST_JOIN_SOURCE_GROUP: ("MCAST_JOIN_SOURCE_GROUP", _source(family, Listening.add_source)),
        MCAST_LEAVE_SOURCE_GROUP: ("MCAST_LEAVE_SOURCE_GROUP", _source(family, Listening.drop_source)),
        MCAST_MSFILTER: ("MCAST_MSFILTER", _filter(family)),
    }


# -- IPv4's own -------------------------------------------------------------------------------------------------------


def _parse_mreq(socket: Socket, data: bytes) -> tuple[bytes, int]:
    """(group, interface index or 0) of a struct ip_mreq or ip_mreqn."""
    if len(data) < _MREQ.size:
        raise NetError(errno.EINVAL)
    if len(data) >= _MREQN.size:
        group, address, index = _MREQN.unpack_from(data)
    else:
        group, address = _MREQ.unpack_from(data)
        index = 0
    return group, index or _index_of(socket, group, address)


def _index_of(socket: Socket, group: bytes, address: bytes) -> int:
    if not is_group(group):
        raise NetError(errno.EINVAL)
    if not any(address):
        return 0
    index = interface_of(socket, address)
    if not index:
        raise NetError(errno.ENODEV)
    return index


def _add4(socket: Any, data: bytes) -> None:
    socket.listening.join(*_parse_mreq(socket, data))


def _drop4(socket: Any, data: bytes) -> None:
    if len(data) < _MREQ.size:
        raise NetError(errno.EINVAL)
    try:
        group, index = _parse_mreq(socket, data)
        socket.listening.leave(group, index)
    except NetError:
        raise NetError(errno.EADDRNOTAVAIL) from None  # whatever is wrong with it, it was not joined


def _source4(do: Callable[[Listening, bytes, bytes, int], None]) -> _Act:
    def act(socket: Any, data: bytes) -> None:
        if len(data) != _SOURCE.size:
            raise NetError(errno.EINVAL)
        group, address, source = _SOURCE.unpack(data)
        do(socket.listening, group, source, _index_of(socket, group, address))

    return act


def _filter4(socket: Any, data: bytes) -> None:
    if len(data) < _FILTER4.size:
        raise NetError(errno.EINVAL)
    group, address, mode, count = _FILTER4.unpack_from(data)
    if count > MAX_SOURCES4:
        raise NetError(errno.ENOBUFS)
    if len(data) < _FILTER4.size + 4 * count:
        raise NetError(errno.EINVAL)
    sources = [data[at : at + 4] for at in range(_FILTER4.size, _FILTER4.size + 4 * count, 4)]
    _set_filter(socket, group, _index_of(socket, group, address), mode, sources)


def _set_filter(socket: Any, group: bytes, index: int, mode: int, sources: list[bytes]) -> None:
    if mode not in (_INCLUDE, _EXCLUDE):
        raise NetError(errno.EINVAL)
    socket.listening.set_filter(group, index, exclude=mode == _EXCLUDE, sources=sources)


# -- IPv6's own -------------------------------------------------------------------------------------------------------


def _member6(do: Callable[[Listening, bytes, int], None]) -> _Act:
    def act(socket: Any, data: bytes) -> None:
        if len(data) < _MREQ6.size:
            raise NetError(errno.EINVAL)
        group, index = _MREQ6.unpack_from(data)
        do(socket.listening, group, index)

    return act


# -- for both ---------------------------------------------------------------------------------------------------------


def _address(data: bytes, family: int, refusal: int = errno.EADDRNOTAVAIL) -> bytes:
    """The address in a struct sockaddr_storage. Raises NetError(`refusal`): of another family."""
    if struct.unpack_from("@H", data)[0] != family:
        raise NetError(refusal)
    return data[4:8] if family == AF_INET else data[8:24]


def _member(family: int, do: Callable[[Listening, bytes, int], None]) -> _Act:
    refusal = errno.EINVAL if family == AF_INET else errno.EADDRNOTAVAIL

    def act(socket: Any, data: bytes) -> None:
        if len(data) < _GROUP:
            raise NetError(errno.EINVAL)
        do(socket.listening, _address(data[8:], family, refusal), struct.unpack_from("@I", data)[0])

    return act


def _source(family: int, do: Callable[[Listening, bytes, bytes, int], None]) -> _Act:
    def act(socket: Any, data: bytes) -> None:
        if len(data) < _GROUP_SOURCE or (len(data) > _GROUP_SOURCE and family == AF_INET):
            raise NetError(errno.EINVAL)
        group, source = _address(data[8:], family), _address(data[8 + _STORAGE :], family)
        do(socket.listening, group, source, struct.unpack_from("@I", data)[0])

    return act


def _filter(family: int) -> _Act:
    most = MAX_SOURCES4 if family == AF_INET else MAX_SOURCES6

    def act(socket: Any, data: bytes) -> None:
        if len(data) < _FILTER:
            raise NetError(errno.EINVAL)
        index = struct.unpack_from("@I", data)[0]
        mode, count = struct.unpack_from("@II", data, _GROUP)
        if count > most:
            raise NetError(errno.ENOBUFS)
        if len(data) < _FILTER + _STORAGE * count:
            raise NetError(errno.EINVAL)
        refusal = errno.EADDRNOTAVAIL if family == AF_INET else errno.EINVAL
        group = _address(data[8:], family, refusal)
        sources = [_address(data[_FILTER + _STORAGE * each :], family, refusal) for each in range(count)]
        _set_filter(socket, group, index, mode, sources)

    return act
