"""Control messages that come with a received datagram (recvmsg): which, in which order, and what is in them.

A socket's options say which it wants; `reporters` makes of them a list of functions once per change, so that a socket
that wants none pays for an empty list. The order is Linux's: time stamps, drops, UDP_GRO, then the IP level's.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.iface.loopback import mark_and_priority
from stack.ip.packet import PacketKind
from stack.scheduler import NS_PER_S, NS_PER_US
from stack.socket.cmsg import of_int
from stack.socket.families import AF_INET, AF_INET6
from stack.socket.ip.options import (
    IP_PKTINFO,
    IP_RECVFRAGSIZE,
    IP_RECVOPTS,
    IP_RECVORIGDSTADDR,
    IP_RECVTOS,
    IP_RECVTTL,
    IP_RETOPTS,
    IP_TOS,
    IP_TTL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_TCLASS,
)
from stack.socket.ip.options6 import (
    IPV6_2292HOPLIMIT,
    IPV6_2292PKTINFO,
    IPV6_DSTOPTS,
    IPV6_FLOWINFO,
    IPV6_HOPLIMIT,
    IPV6_HOPOPTS,
    IPV6_PKTINFO,
    IPV6_RECVDSTOPTS,
    IPV6_RECVFRAGSIZE,
    IPV6_RECVHOPLIMIT,
    IPV6_RECVHOPOPTS,
    IPV6_RECVORIGDSTADDR,
    IPV6_RECVPKTINFO,
    IPV6_RECVRTHDR,
    IPV6_RECVTCLASS,
    IPV6_RTHDR,
)
from stack.socket.ip.options_udp import IPPROTO_UDP, UDP_GRO
from stack.socket.ip.wire_options import DESTINATION, HOP_BY_HOP, ROUTING
from stack.socket.message import Ancillary
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import (
    OPT_RX_FILTER,
    RX_SOFTWARE,
    SO_MARK,
    SO_TIMESTAMP,
    SO_TIMESTAMPING,
    SO_TIMESTAMPNS,
    SO_TIMESTAMPNS_NEW,
    SOFTWARE,
    stamp_flags,
    stamp_option,
    stamping_type,
)
from stack.socket.options_socket import SO_PRIORITY, SO_RCVMARK, SO_RCVPRIORITY, SO_RXQ_OVFL
from stack.wire.ipoptions import echoed, milliseconds, recorded

if TYPE_CHECKING:
    from stack.socket.base import Socket
    from stack.udp.datagram import Datagram

#: Makes one control message of a datagram; None if it has nothing to tell.
Reporter = Callable[["Datagram"], Ancillary | None]

_TIME: Final = struct.Struct("@qq")  # struct timeval, struct timespec
_STAMPS: Final = struct.Struct("@6q")  # struct scm_timestamping
_PKTINFO4: Final = struct.Struct("@i4s4s")  # struct in_pktinfo: index, address the route prefers, address it was for
_PKTINFO6: Final = struct.Struct("@16si")  # struct in6_pktinfo
_SOCKADDR4: Final = struct.Struct("@H")
_MAPPED: Final = bytes(10) + b"\xff\xff"


def reporters(socket: Socket) -> list[Reporter]:
    """What `socket` wants to be told of each datagram."""
    return [*_common(socket), *_level4(socket), *_level6(socket)]


def report(wanted: list[Reporter], datagram: Datagram) -> list[Ancillary]:
    """The control messages for one datagram."""
    return [message for reporter in wanted if (message := reporter(datagram)) is not None]


# -- SOL_SOCKET and IPPROTO_UDP ---------------------------------------------------------------------------------------


def time_stamps(socket: Socket, stamp: int) -> list[Ancillary]:
    """For a moment of the Network's clock, in ns: what SO_TIMESTAMP and its likes ask for."""
    scheduler = socket.host.netns.ip.scheduler
    seconds, nanoseconds = divmod(stamp + scheduler.epoch, NS_PER_S)
    messages: list[Ancillary] = []
    option = stamp_option(socket)
    if option in (SO_TIMESTAMPNS, SO_TIMESTAMPNS_NEW):
        messages.append((SOL_SOCKET, option, _TIME.pack(seconds, nanoseconds)))
    elif option:
        messages.append((SOL_SOCKET, option, _TIME.pack(seconds, nanoseconds // NS_PER_US)))
    return messages


def stamping(socket: Socket, stamp: int) -> Ancillary:
    """SCM_TIMESTAMPING: software, (nothing), hardware; of the last there is none."""
    seconds, nanoseconds = divmod(stamp + socket.host.netns.ip.scheduler.epoch, NS_PER_S)
    return SOL_SOCKET, stamping_type(socket), _STAMPS.pack(seconds, nanoseconds, 0, 0, 0, 0)


def arrival(socket: Socket, stamp: int) -> list[Ancillary]:
    """For bytes of a stream: as SO_TIMESTAMP ask for it, then as SO_TIMESTAMPING.

    Software stamps that are there for the former are told by the latter without RX_SOFTWARE, too.
    """
    messages = time_stamps(socket, stamp)
    flags = stamp_flags(socket)
    if flags & SOFTWARE and (flags & RX_SOFTWARE or not flags & OPT_RX_FILTER):
        messages.append(stamping(socket, stamp))
    return messages


def wants_arrivals(socket: Socket) -> bool:
    """Whether any option asks for the time at which data comes."""
    set_before = socket.options.explicit
    if not set_before(SOL_SOCKET, SO_TIMESTAMP) and not set_before(SOL_SOCKET, SO_TIMESTAMPING):
        return False
    return bool(stamp_option(socket)) or stamp_flags(socket) & (RX_SOFTWARE | SOFTWARE) == RX_SOFTWARE | SOFTWARE


def of_packet(socket: Socket, datagram: Datagram) -> list[Ancillary]:
    """What the IP level's options ask for, of one packet."""
    return report([*_level6(socket), *_level4(socket)], datagram)


def _common(socket: Socket) -> list[Reporter]:
    value = socket.options.value
    wanted: list[Reporter] = []
    if stamp_option(socket):
        wanted.append(lambda datagram: time_stamps(socket, datagram.stamp)[0])
    if stamp_flags(socket) & (RX_SOFTWARE | SOFTWARE) == RX_SOFTWARE | SOFTWARE:
        wanted.append(lambda datagram: stamping(socket, datagram.stamp))
    if value(SOL_SOCKET, SO_RXQ_OVFL):
        wanted.append(_overflow)
    if value(SOL_SOCKET, SO_RCVMARK):
        wanted.append(lambda datagram: noted(SO_MARK, datagram.note))
    if value(SOL_SOCKET, SO_RCVPRIORITY):
        wanted.append(lambda datagram: noted(SO_PRIORITY, datagram.note))
    if (IPPROTO_UDP, UDP_GRO) in socket.options.table and value(IPPROTO_UDP, UDP_GRO):
        wanted.append(_segment)
    return wanted


def noted(kind: int, note: int) -> Ancillary:
    """SO_MARK or SO_PRIORITY as the sender set it; 0 unless that is on this host."""
    mark, priority = mark_and_priority(note)
    return SOL_SOCKET, kind, (mark if kind == SO_MARK else priority).to_bytes(4, sys.byteorder)


def _overflow(datagram: Datagram) -> Ancillary | None:
    return of_int(SOL_SOCKET, SO_RXQ_OVFL, datagram.overflow) if datagram.overflow else None


def _segment(datagram: Datagram) -> Ancillary | None:
    return of_int(IPPROTO_UDP, UDP_GRO, datagram.segment) if datagram.segment else None


def _fragment(datagram: Datagram, level: int, kind: int) -> Ancillary | None:
    """How long the longest fragment was that it came in."""
    return of_int(level, kind, datagram.fragment) if datagram.fragment else None


# -- IPPROTO_IP -------------------------------------------------------------------------------------------------------


def _level4(socket: Socket) -> list[Reporter]:
    def packet_info(datagram: Datagram) -> Ancillary:
        dst = datagram.dst[0]
        local = dst
        if datagram.kind is not PacketKind.UNICAST:
            local = socket.host.netns.ip.route(datagram.src[0]).src
        return IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(datagram.ifindex, local, dst)

    def options(datagram: Datagram) -> bytes:
        """As the last host on the way, this one, has written into them."""
        scheduler = socket.host.netns.ip.scheduler
        address = datagram.dst[0]
        if datagram.kind is not PacketKind.UNICAST:
            address = socket.host.netns.ip.route(datagram.src[0]).src
        return recorded(datagram.header[20:], address, milliseconds(datagram.stamp + scheduler.epoch))

    def way_back(datagram: Datagram) -> Ancillary | None:
        if not datagram.header:
            return None
        return IPPROTO_IP, IP_RETOPTS, echoed(options(datagram), datagram.src[0])

    table: dict[int, Reporter] = {
        IP_PKTINFO: packet_info,
        IP_RECVTTL: lambda datagram: of_int(IPPROTO_IP, IP_TTL, datagram.ttl),
        IP_RECVTOS: lambda datagram: (IPPROTO_IP, IP_TOS, bytes((datagram.tos,))),
        IP_RECVOPTS: lambda datagram: (IPPROTO_IP, IP_RECVOPTS, options(datagram)) if datagram.header else None,
        IP_RETOPTS: way_back,
        IP_RECVORIGDSTADDR: lambda datagram: (IPPROTO_IP, IP_RECVORIGDSTADDR, sockaddr(*datagram.dst)),
        IP_RECVFRAGSIZE: lambda datagram: _fragment(datagram, IPPROTO_IP, IP_RECVFRAGSIZE),
    }
    return [_only(4, reporter) for number, reporter in table.items() if _on(socket, IPPROTO_IP, number)]


def _on(socket: Socket, level: int, number: int) -> bool:
    """Whether it is set; kinds of sockets differ in what there is."""
    return (level, number) in socket.options.table and bool(socket.options.value(level, number))


def _only(width: int, reporter: Reporter) -> Reporter:
    """`reporter`, for datagrams of one IP version."""
    return lambda datagram: reporter(datagram) if len(datagram.dst[0]) == width else None


# -- IPPROTO_IPV6 -----------------------------------------------------------------------------------------------------


def _level6(socket: Socket) -> list[Reporter]:
    if socket.family != AF_INET6:
        return []
    both: dict[int, Reporter] = {
        IPV6_RECVPKTINFO: lambda datagram: (IPPROTO_IPV6, IPV6_PKTINFO, _packet_info6(datagram)),
    }
    six: dict[int, Reporter] = {
        IPV6_RECVHOPLIMIT: lambda datagram: of_int(IPPROTO_IPV6, IPV6_HOPLIMIT, datagram.ttl),
        IPV6_RECVTCLASS: lambda datagram: of_int(IPPROTO_IPV6, IPV6_TCLASS, datagram.tos),
        IPV6_FLOWINFO: _flow,
        IPV6_RECVHOPOPTS: lambda datagram: _extension(datagram, HOP_BY_HOP, IPV6_HOPOPTS),
        IPV6_RECVDSTOPTS: lambda datagram: _extension(datagram, DESTINATION, IPV6_DSTOPTS),
        IPV6_RECVRTHDR: lambda datagram: _extension(datagram, ROUTING, IPV6_RTHDR),
        IPV6_2292PKTINFO: lambda datagram: (IPPROTO_IPV6, IPV6_2292PKTINFO, _packet_info6(datagram)),
        IPV6_2292HOPLIMIT: lambda datagram: of_int(IPPROTO_IPV6, IPV6_2292HOPLIMIT, datagram.ttl),
        IPV6_RECVORIGDSTADDR: lambda datagram: (IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, sockaddr(*datagram.dst)),
        IPV6_RECVFRAGSIZE: lambda datagram: _fragment(datagram, IPPROTO_IPV6, IPV6_RECVFRAGSIZE),
    }
    return [
        *(reporter for number, reporter in both.items() if _on(socket, IPPROTO_IPV6, number)),
        *(_only(16, reporter) for number, reporter in six.items() if _on(socket, IPPROTO_IPV6, number)),
    ]


def _packet_info6(datagram: Datagram) -> bytes:
    dst = datagram.dst[0]
    return _PKTINFO6.pack(_MAPPED + dst if len(dst) == 4 else dst, datagram.ifindex)


def _flow(datagram: Datagram) -> Ancillary | None:
    """Traffic class and flow label, in network order, if there is any of them."""
    label = int.from_bytes(datagram.header[1:4], "big") & 0xFFFFF if datagram.header else 0
    word = datagram.tos << 20 | label
    return (IPPROTO_IPV6, IPV6_FLOWINFO, word.to_bytes(4, "big")) if word else None


def _extension(datagram: Datagram, wanted: int, kind: int) -> Ancillary | None:
    """The first extension header of one sort."""
    header = datagram.header
    if len(header) <= 40:
        return None
    number, at = header[6], 40
    while at + 8 <= len(header) and number in (HOP_BY_HOP, ROUTING, DESTINATION):
        length = (header[at + 1] + 1) * 8
        if number == wanted:
            return IPPROTO_IPV6, kind, header[at : at + length]
        number, at = header[at], at + length
    return None


def sockaddr(address: bytes, port: int, scope: int = 0) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    if len(address) == 4:
        return _SOCKADDR4.pack(AF_INET) + port.to_bytes(2, "big") + address + bytes(8)
    return _SOCKADDR4.pack(AF_INET6) + port.to_bytes(2, "big") + bytes(4) + address + struct.pack("@I", scope)
