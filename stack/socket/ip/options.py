"""IPPROTO_IP: the options of IP sockets, as measured (section 2.2 of the socket semantics).

Multicast groups are in `memberships`, IPPROTO_IPV6 is in `options6`. An IPv6 socket understands both levels: what it
sends over IPv4 goes by this one.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.ip.wire_options import checked_options
from stack.socket.options import SOL_SOCKET, Kind, Option, Value
from stack.socket.options_device import require_admin_or_raw
from stack.socket.options_socket import SO_PRIORITY

if TYPE_CHECKING:
    from stack.socket.base import Socket

IPPROTO_IP: Final = 0
IPPROTO_IPV6: Final = 41

# Linux <linux/in.h>.
IP_TOS: Final = 1
IP_TTL: Final = 2
IP_HDRINCL: Final = 3
IP_OPTIONS: Final = 4
IP_ROUTER_ALERT: Final = 5
IP_RECVOPTS: Final = 6
IP_RETOPTS: Final = 7
IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_RECVTTL: Final = 12
IP_RECVTOS: Final = 13
IP_MTU: Final = 14
IP_FREEBIND: Final = 15
IP_PASSSEC: Final = 18
IP_TRANSPARENT: Final = 19
IP_RECVORIGDSTADDR: Final = 20
IP_MINTTL: Final = 21
IP_NODEFRAG: Final = 22
IP_CHECKSUM: Final = 23
IP_BIND_ADDRESS_NO_PORT: Final = 24
IP_RECVFRAGSIZE: Final = 25
IP_RECVERR_RFC4884: Final = 26
IP_MULTICAST_IF: Final = 32
IP_MULTICAST_TTL: Final = 33
IP_MULTICAST_LOOP: Final = 34
IP_MULTICAST_ALL: Final = 49
IP_UNICAST_IF: Final = 50
IP_LOCAL_PORT_RANGE: Final = 51
IP_PROTOCOL: Final = 52

# Linux <linux/in6.h>; the rest of them are in `options6`.
IPV6_UNICAST_HOPS: Final = 16
IPV6_V6ONLY: Final = 26
IPV6_TCLASS: Final = 67

DEFAULT_TTL: Final = 64

SOCK_STREAM: Final = 1

#: struct ip_mreqn: group, address, interface index.
_MREQN: Final = struct.Struct("@4s4si")
#: By the four bits above the lowest (Linux ip_tos2prio).
_PRIORITY: Final = (0, 0, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 4, 4, 4, 4)


def priority_of(tos: int) -> int:
    """What SO_PRIORITY becomes with IP_TOS."""
    return _PRIORITY[tos >> 1 & 0x0F]


def ip_level() -> list[Option]:
    """The rows that TCP has, too; on TCP sockets the user does not get at the two ECN bits."""
    from stack.socket.ip.memberships import stream_rows  # they need the above

    return [*ip_rows(stream=True), *stream_rows()]


def ip_rows(*, stream: bool) -> list[Option]:
    """The rows of IPPROTO_IP."""

    def tos(socket: Socket, value: int) -> int:
        byte = value & (0xFC if stream else 0xFF)
        if byte != socket.options.value(IPPROTO_IP, IP_TOS):
            socket.options.store(SOL_SOCKET, SO_PRIORITY, priority_of(byte))
        return byte

    def row(number: int, name: str, kind: Kind = Kind.INT, **more: Any) -> Option:
        return Option(IPPROTO_IP, number, name, kind, **{"short_ok": True, **more})

    def flag(number: int, name: str, **more: Any) -> Option:
        return row(number, name, Kind.BOOL, **{"empty_ok": True, **more})

    def raw_only(number: int, name: str, refusal: int) -> Option:
        return row(number, name, writable=False, refusal=refusal)

    return [
        row(IP_TOS, "IP_TOS", empty_ok=True, adjust=tos),
        row(IP_TTL, "IP_TTL", default=DEFAULT_TTL, low=-1, high=255, adjust=_ttl),
        raw_only(IP_HDRINCL, "IP_HDRINCL", errno.ENOPROTOOPT),
        row(IP_OPTIONS, "IP_OPTIONS", Kind.OPAQUE, default=b"", act=_set_options),
        raw_only(IP_ROUTER_ALERT, "IP_ROUTER_ALERT", errno.EINVAL),
        flag(IP_RECVOPTS, "IP_RECVOPTS"),
        flag(IP_RETOPTS, "IP_RETOPTS"),
        flag(IP_PKTINFO, "IP_PKTINFO"),
        row(IP_MTU_DISCOVER, "IP_MTU_DISCOVER", default=1, low=0, high=5, empty_ok=True),
        flag(IP_RECVERR, "IP_RECVERR"),
        flag(IP_RECVTTL, "IP_RECVTTL"),
        flag(IP_RECVTOS, "IP_RECVTOS"),
        row(IP_MTU, "IP_MTU", writable=False, get=_mtu),
        row(IP_FREEBIND, "IP_FREEBIND", Kind.BOOL),
        flag(IP_PASSSEC, "IP_PASSSEC"),
        row(IP_TRANSPARENT, "IP_TRANSPARENT", Kind.BOOL, check=_transparent),
        flag(IP_RECVORIGDSTADDR, "IP_RECVORIGDSTADDR"),
        row(IP_MINTTL, "IP_MINTTL", low=0, high=255),
        raw_only(IP_NODEFRAG, "IP_NODEFRAG", errno.ENOPROTOOPT),
        flag(IP_CHECKSUM, "IP_CHECKSUM"),
        flag(IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT"),
        raw_only(IP_RECVFRAGSIZE, "IP_RECVFRAGSIZE", errno.EINVAL)
        if stream
        else flag(IP_RECVFRAGSIZE, "IP_RECVFRAGSIZE"),
        row(IP_RECVERR_RFC4884, "IP_RECVERR_RFC4884", low=0, high=1, empty_ok=True),
        row(IP_MULTICAST_IF, "IP_MULTICAST_IF", Kind.OPAQUE, act=_set_multicast_if, show=_multicast_if),
        row(IP_MULTICAST_TTL, "IP_MULTICAST_TTL", default=1, low=-1, high=255, adjust=_multicast_ttl, check=_no_stream),
        row(IP_MULTICAST_LOOP, "IP_MULTICAST_LOOP", Kind.BOOL, default=1),
        row(IP_MULTICAST_ALL, "IP_MULTICAST_ALL", default=1, low=0, high=1),
        row(IP_UNICAST_IF, "IP_UNICAST_IF", act=_set_unicast_if),
        row(IP_LOCAL_PORT_RANGE, "IP_LOCAL_PORT_RANGE", act=_set_port_range),
        row(IP_PROTOCOL, "IP_PROTOCOL", writable=False, get=_protocol),
    ]


def rows_beside6(rows: list[Option]) -> list[Option]:
    """As AF_INET6 sockets have them: there, Linux lets IP_MULTICAST_ALL begin with 0."""
    return [
        replace(row, default=0) if (row.level, row.number) == (IPPROTO_IP, IP_MULTICAST_ALL) else row for row in rows
    ]


def ttl_of(socket: Socket, *, version: int) -> int:
    """The hop limit this socket's packets get."""
    if version == 4:
        return int(socket.options.value(IPPROTO_IP, IP_TTL))
    hops = int(socket.options.value(IPPROTO_IPV6, IPV6_UNICAST_HOPS))
    return DEFAULT_TTL if hops < 0 else hops


def tos_of(socket: Socket, *, version: int) -> int:
    """The TOS or traffic class byte this socket's packets get."""
    if version == 4:
        return int(socket.options.value(IPPROTO_IP, IP_TOS))
    return int(socket.options.value(IPPROTO_IPV6, IPV6_TCLASS))


def port_range(socket: Socket) -> tuple[int, int] | None:
    """IP_LOCAL_PORT_RANGE: the first and last port; an end beyond what the system allows counts for nothing.
    None: nothing was asked for.
    """
    value = int(socket.options.value(IPPROTO_IP, IP_LOCAL_PORT_RANGE)) & 0xFFFFFFFF
    if not value:
        return None
    table = socket.host.netns.ip.ports[socket.protocol]
    first, last = table.ephemeral_first, table.ephemeral_last
    low, high = value & 0xFFFF, value >> 16
    if first <= low <= last:
        first = low
    if first <= high <= last:
        last = high
    return first, last


def _ttl(socket: Socket, value: int) -> int:
    if value == 0:
        raise NetError(errno.EINVAL)
    return DEFAULT_TTL if value < 0 else value


def _multicast_ttl(socket: Socket, value: int) -> int:
    return 1 if value < 0 else value


def _no_stream(socket: Socket, value: Value) -> None:
    if socket.type == SOCK_STREAM:
        raise NetError(errno.EINVAL)


def _protocol(socket: Any) -> int:
    """As Linux: what a raw socket is numbered by, which is its protocol; others are numbered by their port."""
    try:
        return int(socket.phase.local_address()[1])
    except NetError:
        return 0


def _mtu(socket: Any) -> int:
    return int(socket.path_mtu())


def _set_options(socket: Socket, data: bytes) -> None:
    privileged = socket.host.credentials.may(Capability.NET_RAW)
    socket.options.store(IPPROTO_IP, IP_OPTIONS, checked_options(data, privileged=privileged))


def _transparent(socket: Socket, value: Value) -> None:
    if value:
        require_admin_or_raw(socket)


def _set_port_range(socket: Socket, data: bytes) -> None:
    """Lower end in the lower half, upper end in the upper; 0 leaves an end to the system."""
    if len(data) != 4:
        raise NetError(errno.EINVAL)
    value = struct.unpack("@i", data)[0]
    low, high = value & 0xFFFF, value >> 16 & 0xFFFF
    if low and high and low > high:
        raise NetError(errno.EINVAL)
    socket.options.store(IPPROTO_IP, IP_LOCAL_PORT_RANGE, value)


def _set_unicast_if(socket: Socket, data: bytes) -> None:
    """The index, in network order, of the interface that packets to unicast addresses leave through."""
    if len(data) != 4:
        raise NetError(errno.EINVAL)
    set_unicast_interface(socket, IPPROTO_IP, IP_UNICAST_IF, data)


def set_unicast_interface(socket: Socket, level: int, number: int, data: bytes) -> None:
    """For both levels. Raises NetError: EADDRNOTAVAIL (no such interface), EINVAL (another one is bound to)."""
    from stack.socket.options_device import bound_interface

    index = int.from_bytes(data, "big")
    if index:
        if index not in socket.host.netns.ip.interfaces:
            raise NetError(errno.EADDRNOTAVAIL)
        if bound_interface(socket):
            raise NetError(errno.EINVAL)
    socket.options.store(level, number, struct.unpack("@i", data)[0])


def unicast_interface(socket: Socket, level: int, number: int) -> int:
    """The index that IP_UNICAST_IF, or its like, was set to."""
    return int.from_bytes(struct.pack("@i", int(socket.options.value(level, number))), "big")


# -- IP_MULTICAST_IF: an address, or an interface, or both; kept as (index, address) ----------------------------------


def multicast_interface(socket: Socket) -> tuple[int, bytes]:
    """(index or 0, address or four zeros) that IP_MULTICAST_IF was set to."""
    stored = socket.options.value(IPPROTO_IP, IP_MULTICAST_IF) or b""
    if not isinstance(stored, bytes) or len(stored) != _MREQN.size:
        return 0, bytes(4)
    _, address, index = _MREQN.unpack(stored)
    return index, address


def interface_of(socket: Socket, address: bytes) -> int:
    """The index of the interface that has the IPv4 `address`, 0 if there is none."""
    for iface in socket.host.netns.ip.interfaces.values():
        if any(each.address == address for each in iface.addresses):
            return iface.index
    return 0


def _set_multicast_if(socket: Socket, data: bytes) -> None:
    if socket.type == SOCK_STREAM or len(data) < 4:
        raise NetError(errno.EINVAL)
    if len(data) >= _MREQN.size:
        _, address, index = _MREQN.unpack_from(data)
    else:
        index = 0
        address = data[4:8] if len(data) >= 8 else data[:4]
    interfaces = socket.host.netns.ip.interfaces
    if index:
        if index not in interfaces:
            raise NetError(errno.EADDRNOTAVAIL)
    elif any(address):
        index = interface_of(socket, address)
        if not index:
            raise NetError(errno.EADDRNOTAVAIL)
    socket.options.store(IPPROTO_IP, IP_MULTICAST_IF, _MREQN.pack(bytes(4), address, index))


def _multicast_if(socket: Socket, room: int) -> bytes:
    return multicast_interface(socket)[1]
