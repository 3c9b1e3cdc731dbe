"""How datagrams are sent: what an endpoint is set to per IP version, and what one call asks for besides."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.iface.loopback import note_of
from stack.wire.checksum import checksum
from stack.wire.ipoptions import first_hop, is_strict

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack.ip.route import Route
    from stack.link.device import Buffer

#: Datagrams one call may be cut into (UDP_SEGMENT): UDP_MAX_SEGMENTS of Linux since 6.9; it was 64 before.
MAX_SEGMENTS: Final = 128


class Discover(IntEnum):
    """IP_PMTUDISC_* of <linux/in.h>: what is done about packets longer than the path takes."""

    DONT = 0  #: let routers cut them
    WANT = 1  #: cut them here
    DO = 2  #: EMSGSIZE
    PROBE = 3  #: EMSGSIZE, but go by the link's MTU alone: the caller looks for the path's
    INTERFACE = 4  #: as PROBE, and routers may cut
    OMIT = 5  #: as INTERFACE, and cut here


class Settings:
    """What an endpoint sends IPv4, or IPv6, with. Plain attributes, live."""

    __slots__ = ("discover", "dont_fragment", "extension", "flow_label", "hops", "longest", "loop",
                 "multicast_hops", "multicast_ifindex", "multicast_source", "options", "report_errors",
                 "report_extensions", "report_mtu", "source", "temporary", "tos",
                 "unicast_ifindex")  # fmt: skip

    def __init__(self) -> None:
        self.discover = int(Discover.WANT)
        self.dont_fragment = False  #: IPV6_DONTFRAG
        self.flow_label = False  #: IPV6_AUTOFLOWLABEL: every flow has one
        self.hops = 64
        self.longest = 0  #: IPV6_MTU: the longest packet, bytes; 0: what the path takes
        self.loop = True  #: IP_MULTICAST_LOOP: our own sockets get what we send to groups
        self.multicast_hops = 1
        self.multicast_ifindex = 0
        self.multicast_source: bytes | None = None  #: the address IP_MULTICAST_IF named
        self.options = b""  #: IPv4 options, padded to whole words
        self.extension: tuple[int, bytes] | None = None  #: IPv6 extension headers, see `SendOptions.extension`
        self.report_errors = False  #: IP_RECVERR
        self.report_extensions = False  #: IP_RECVERR_RFC4884: and where their extensions are
        self.report_mtu = False  #: IPV6_RECVPATHMTU
        self.source: bytes | None = None  #: IPV6_PKTINFO: source address
        self.temporary: bool | None = None  #: IPV6_ADDR_PREFERENCES: source addresses of that sort, None: as configured
        self.tos = 0
        self.unicast_ifindex = 0


class SendOptions:
    """What one call asks for besides; None and 0 leave it to the endpoint."""

    __slots__ = ("confirm", "direct", "dont_fragment", "extension", "flow", "mark", "more", "oif", "options",
                 "priority", "segment", "src", "tos", "ttl")  # fmt: skip

    def __init__(
        self,
        *,
        src: bytes | None = None,
        oif: int = 0,
        ttl: int | None = None,
        tos: int | None = None,
        segment: int | None = None,
        mark: int | None = None,
        priority: int | None = None,
        dont_fragment: bool | None = None,
        flow: int = 0,
        options: bytes | None = None,
        extension: tuple[int, bytes] | None = None,
        direct: bool = False,
        more: bool = False,
        confirm: bool = False,
    ) -> None:
        self.src = src  #: source address
        self.oif = oif  #: interface index
        self.ttl = ttl
        self.tos = tos
        self.segment = segment  #: UDP_SEGMENT: cut the data into datagrams of this many bytes
        self.mark = mark  #: SO_MARK
        self.priority = priority  #: SO_PRIORITY
        self.dont_fragment = dont_fragment  #: IPV6_DONTFRAG
        self.flow = flow  #: IPv6 flow label
        self.options = options  #: IPv4 options, padded to whole words
        #: IPv6 extension headers, as (number of the first, their bytes); the last one's next header is UDP's.
        self.extension = extension
        self.direct = direct  #: MSG_DONTROUTE: hosts on our links only
        self.more = more  #: MSG_MORE: the datagram is not complete yet
        self.confirm = confirm  #: MSG_CONFIRM: the next hop is alive

    def note(self, mark: int, priority: int) -> int:
        """What is noted on the packet, of the socket's `mark` and `priority` where the call did not ask for others."""
        if self.mark is not None:
            mark = self.mark
        if self.priority is not None:
            priority = self.priority
        return note_of(mark, priority) if mark or priority else 0


PLAIN: Final = SendOptions()


def way(find: Callable[[bytes, SendOptions], Route], address: bytes, options: bytes, how: SendOptions) -> Route:
    """What `find` says of `address`, or of the first host of a source route among the IPv4 `options`.

    Raises NetError: as `find` does, EINVAL (a source route to nowhere), ENETUNREACH (a strict one by way of a gateway).
    """
    hop = first_hop(options) if options and len(address) == 4 else None
    if hop is None:
        return find(address, how)
    if not any(address):
        raise NetError(errno.EINVAL)
    route = find(hop, how)
    if is_strict(options) and route.next_hop != hop:
        raise NetError(errno.ENETUNREACH)
    return route


def extended(
    extension: tuple[int, bytes], parts: tuple[Buffer, ...], offset: int | None, length: int
) -> tuple[int, tuple[Buffer, ...], int]:
    """Behind IPv6 extension headers no device finishes a checksum: it is made here."""
    first, headers = extension
    datagram = bytearray(b"".join(parts))
    if offset is not None:
        datagram[offset : offset + 2] = (checksum(datagram) or 0xFFFF).to_bytes(2, "big")
    return first, (headers, bytes(datagram)), len(headers) + length


class CongestedError(NetError):
    """The link does not take more for now; `UdpEndpoint.on_event` tells when it does."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN)


class Corked:
    """A datagram that is not complete yet."""

    __slots__ = ("address", "how", "parts", "port", "route", "size")

    def __init__(self, route: Route, address: bytes, port: int, how: SendOptions) -> None:
        self.route = route
        self.address = address
        self.port = port
        self.how = how
        self.parts: list[Buffer] = []
        self.size = 0
