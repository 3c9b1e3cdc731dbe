"""What a TCP socket tells of the packets its data came in: IP_PKTOPTIONS, IPV6_2292PKTOPTIONS (Linux).

A stream has no control messages of its own packets. Instead, the flags that ask a UDP socket for them (IP_PKTINFO,
IPV6_RECVPKTINFO ...) make these two options read as control messages: of the handshake's last packet over IPv4, for
connections that were accepted; of the latest one over IPv6.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from stack.socket.cmsg import HEADER, fit, of_int, space
from stack.socket.ip.options import IP_PKTINFO, IP_RECVTOS, IP_RECVTTL, IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_IPV6
from stack.socket.ip.options import IPV6_TCLASS as TCLASS
from stack.socket.ip.options6 import (
    IPV6_2292HOPLIMIT,
    IPV6_2292PKTINFO,
    IPV6_HOPLIMIT,
    IPV6_PKTINFO,
    IPV6_RECVHOPLIMIT,
    IPV6_RECVPKTINFO,
    IPV6_RECVTCLASS,
)
from stack.socket.options import Kind, Option

if TYPE_CHECKING:
    from stack.socket.message import Ancillary

IP_PKTOPTIONS: Final = 9
IPV6_2292PKTOPTIONS: Final = 6

_HEADER: Final = struct.Struct("@Nii")  # struct cmsghdr
_MULTICAST_TTL: Final = 1  # what Linux has there for a connection that was not accepted

#: The flags that make a connection look at each of its packets.
WATCHING: Final = (IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS, IPV6_2292PKTINFO, IPV6_2292HOPLIMIT)


def packet_options4() -> Option:
    return Option(IPPROTO_IP, IP_PKTOPTIONS, "IP_PKTOPTIONS", Kind.OPAQUE, writable=False, show=_show4)


def packet_options6() -> Option:
    return Option(IPPROTO_IPV6, IPV6_2292PKTOPTIONS, "IPV6_2292PKTOPTIONS", Kind.OPAQUE, writable=False, show=_show6)


def _show4(socket: Any, room: int) -> bytes:
    value = socket.options.value
    connection = socket.connection
    ifindex, ttl, tos = (0, _MULTICAST_TTL, 0) if connection is None else connection.came or (0, _MULTICAST_TTL, 0)
    messages: list[Ancillary] = []
    if value(IPPROTO_IP, IP_PKTINFO):
        local = socket.phase.local_address()[0]
        messages.append((IPPROTO_IP, IP_PKTINFO, struct.pack("@i4s4s", ifindex, local, local)))
    if value(IPPROTO_IP, IP_RECVTTL):
        messages.append(of_int(IPPROTO_IP, IP_TTL, ttl))
    if value(IPPROTO_IP, IP_RECVTOS):
        messages.append(of_int(IPPROTO_IP, IP_TOS, tos))
    return _laid_out(messages, room)


def _show6(socket: Any, room: int) -> bytes:
    def on(number: int) -> bool:
        return bool(socket.options.value(IPPROTO_IPV6, number))

    connection = socket.connection
    came = None if connection is None else connection.came
    ifindex, hops, tos = came or (0, _MULTICAST_TTL, 0)
    address = bytes(16)
    if came is not None:
        address = connection.remote[0]  # as Linux: the peer's
        address = bytes(10) + b"\xff\xff" + address if len(address) == 4 else address
    info = struct.pack("@16si", address, ifindex)
    messages: list[Ancillary] = []
    if on(IPV6_RECVPKTINFO):
        messages.append((IPPROTO_IPV6, IPV6_PKTINFO, info))
    if on(IPV6_RECVHOPLIMIT):
        messages.append(of_int(IPPROTO_IPV6, IPV6_HOPLIMIT, hops))
    if on(IPV6_RECVTCLASS):
        messages.append(of_int(IPPROTO_IPV6, TCLASS, tos))
    if on(IPV6_2292PKTINFO):
        messages.append((IPPROTO_IPV6, IPV6_2292PKTINFO, info))
    if on(IPV6_2292HOPLIMIT):
        messages.append(of_int(IPPROTO_IPV6, IPV6_2292HOPLIMIT, hops))
    return _laid_out(messages, room)


def _laid_out(messages: list[Ancillary], room: int) -> bytes:
    """As a control buffer of `room` bytes has them."""
    whole = b""
    for level, kind, data in fit(messages, room)[0]:
        length = HEADER + len(data)
        whole += (_HEADER.pack(length, level, kind) + data).ljust(space(len(data)), b"\0")
    return whole[:room]
