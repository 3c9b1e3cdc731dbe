"""`IpEndpoint`: what raw and ping sockets have in common: addresses, routes, a bounded queue, errors.

It is set the way a UDP endpoint is (`stack.udp.endpoint`): the attributes have the same names and meanings.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, Drops, NetError
from stack.ip.errorqueue import ORIGIN_LOCAL, ErrorQueue, QueuedError, of_icmp
from stack.ip.filtering import verdict
from stack.ip.listening import Listening, is_group
from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.ip.route import Route, RouteKind
from stack.udp.datagram import Datagram, ReceiveQueue
from stack.udp.sending import PLAIN, Discover, SendOptions, Settings, way

if TYPE_CHECKING:
    from stack.bpf import Program
    from stack.ip.layer import IpLayer
    from stack.link.device import Buffer

#: net.core.rmem_default of Linux, bytes.
DEFAULT_RECEIVE_LIMIT: Final = 212_992
MAX_LENGTH: Final = 0xFFFF  # bytes one call may send

_UNICAST: Final = PacketKind.UNICAST
_MULTICAST: Final = PacketKind.MULTICAST
_DO: Final = int(Discover.DO)
_WANT: Final = int(Discover.WANT)
_PROBE: Final = int(Discover.PROBE)
_INTERFACE: Final = int(Discover.INTERFACE)


class IpEndpoint:
    """`version` is 4 or 6: such an endpoint speaks one of them."""

    header = 0  #: bytes at the beginning of what arrives that no filter cuts off

    def __init__(self, ip: IpLayer, version: int, proto: int) -> None:
        self._ip = ip
        self.version = version
        self.proto = proto
        self._queue = ReceiveQueue()
        self.errors = ErrorQueue()
        self.any = bytes(4 if version == 4 else 16)
        self.bound_address = self.any  #: all zero: any
        self.connected_from: bytes | None = None  #: local address a connect() chose
        self.remote: tuple[bytes, int] | None = None  #: address and port; the port is only remembered
        self.error = 0  #: pending errno
        self.on_event: Callable[[], None] | None = None  #: readiness may have changed
        self.receive_limit = DEFAULT_RECEIVE_LIMIT  #: bytes
        self.v4 = Settings()
        self.v6 = Settings()
        self.broadcast = False  #: SO_BROADCAST
        self.bind_ifindex = 0  #: SO_BINDTODEVICE: only this interface, 0: any
        self.mark = 0  #: SO_MARK
        self.priority = 0  #: SO_PRIORITY
        self.direct = False  #: SO_DONTROUTE
        self.filter: Program | None = None  #: SO_ATTACH_FILTER
        self.groups: Listening | None = None
        self.drops = Drops()
        self.closed = False

    @property
    def settings(self) -> Settings:
        """Those of the version it speaks."""
        return self.v4 if self.version == 4 else self.v6

    @property
    def local_address(self) -> bytes:
        return self.connected_from or self.bound_address

    @property
    def listening(self) -> Listening:
        """Joins and leaves groups; left on `close`."""
        if self.groups is None:
            self.groups = Listening(self._ip)
        return self.groups

    # --- sending ------------------------------------------------------------------------------------------------

    def connect(self, address: bytes, port: int, *, oif: int = 0) -> None:
        """Send to and receive from `address` only; `port` is remembered. Raises NetError as a route does, EACCES."""
        self.disconnect()
        route = self.route(address, SendOptions(oif=oif) if oif else PLAIN)
        self.remote = (route.dst, port)
        if not any(self.bound_address):
            self.connected_from = route.src

    def disconnect(self) -> None:
        """Back to no default destination and no filter."""
        self.remote = None
        self.connected_from = None

    def route(self, address: bytes, how: SendOptions) -> Route:
        """Where a packet to `address` goes. Raises NetError: as `IpLayer.route`, EACCES (broadcast)."""
        settings = self.settings
        src = how.src or settings.source
        oif = how.oif or self.bind_ifindex
        if not oif:
            if is_group(address):
                oif = settings.multicast_ifindex
                if src is None:
                    src = settings.multicast_source
            else:
                oif = settings.unicast_ifindex
        if src is None or not any(src):
            bound = self.bound_address
            src = self.connected_from
            if src is None and any(bound) and (self._ip.is_own_unicast(bound) or not self._ip.is_local(bound)):
                src = bound
        mark = self.mark if how.mark is None else how.mark
        if src is None and settings.temporary is not None:
            src = self._ip.preferred_source(address, settings.temporary, oif=oif, mark=mark)
        route = self._ip.route(address, src=src, oif=oif, mark=mark)
        if (self.direct or how.direct) and route.next_hop != route.dst:
            raise NetError(errno.ENETUNREACH)
        if route.kind == RouteKind.BROADCAST and not self.broadcast:
            raise NetError(errno.EACCES)
        if how.confirm:
            self._ip.confirm(route)
        return route

    def way(self, dst: bytes, how: SendOptions) -> tuple[Route, bytes]:
        """The route a packet to `dst` takes, and its destination. Raises NetError as `stack.udp.sending.way`."""
        route = way(self.route, dst, self.v4.options if how.options is None else how.options, how)
        return route, dst if any(dst) else route.dst

    def emit(
        self, route: Route, dst: bytes, proto: int, parts: tuple[Buffer, ...], length: int, how: SendOptions
    ) -> None:
        """Send one packet, cut into fragments where that is allowed. Raises NetError: EMSGSIZE, ENETDOWN."""
        settings = self.settings
        v4 = self.version == 4
        options = settings.options if how.options is None else how.options
        if length > MAX_LENGTH - (20 + len(options) if v4 else 0):
            raise self.too_long(route)
        discover = settings.discover
        if discover >= _PROBE:
            route = _with_mtu(route, min(route.iface.mtu, 65535) if v4 else self._ip.mtu6(route.iface))
        if settings.longest and settings.longest < route.mtu:
            route = _with_mtu(route, settings.longest)
        fits = length + (20 + len(options) if v4 else 40) <= route.mtu
        whole_only = discover in (_DO, _PROBE, _INTERFACE)
        if not v4:
            whole_only = whole_only or (settings.dont_fragment if how.dont_fragment is None else how.dont_fragment)
            extension = settings.extension if how.extension is None else how.extension
            if extension is not None:
                proto, parts, length = extension[0], (extension[1], *parts), len(extension[1]) + length
        if not fits and whole_only:
            raise self.too_long(route)
        if how.ttl is not None:
            hops = how.ttl
        else:
            hops = settings.multicast_hops if route.kind == RouteKind.MULTICAST else settings.hops
        note = how.note(self.mark, self.priority)
        queued = self._ip.loopback.fresh if note else 0
        self._ip.output(
            route,
            route.src,
            dst,
            proto,
            parts,
            length,
            ttl=hops,
            tos=settings.tos if how.tos is None else how.tos,
            dont_fragment=discover in (_DO, _PROBE) or (discover == _WANT and fits and v4),
            loop=settings.loop,
            flow=how.flow,
            options=options if v4 else b"",
        )
        if note:
            self._ip.loopback.annotate(queued, note)

    def too_long(self, route: Route) -> NetError:
        """EMSGSIZE, and an entry in the error queue that tells the MTU."""
        if self.settings.report_errors:
            stamp = self._ip.scheduler.now
            entry = QueuedError(errno.EMSGSIZE, ORIGIN_LOCAL, info=route.mtu, remote=(route.dst, 0), stamp=stamp)
            if self.errors.put(entry, self.receive_limit):
                self.event()
        return NetError(errno.EMSGSIZE)

    # --- receiving ----------------------------------------------------------------------------------------------

    def fits(self, packet: IpPacket) -> bool:
        """Is a packet of our version and protocol for this endpoint, by its addresses and interface?"""
        bound = self.bound_address
        if any(bound) and bound != packet.dst:
            return False
        if self.connected_from is not None and packet.dst != self.connected_from:
            return False
        if self.remote is not None and self.remote[0] != packet.src:
            return False
        if not self.bind_ifindex and (packet.kind is not _MULTICAST or self.groups is None):
            return True
        ifindex = self._ip.arrival(packet)
        if self.bind_ifindex and ifindex != self.bind_ifindex:
            return False
        groups = self.groups
        return groups is None or not is_group(packet.dst) or groups.hears(packet, ifindex)

    def put(self, packet: IpPacket, data: memoryview) -> None:
        """Queue `data`, which begin in `packet`'s frame, unless the filter or the receive limit are against it."""
        if self.filter is not None:
            keep = verdict(self.filter, packet, data, self._ip.scheduler.rng)
            if not keep:
                return
            data = data[: max(keep, self.header)]
        plain = 20 if self.version == 4 else 40
        datagram = Datagram(
            bytes(data),
            (packet.src, 0),
            (packet.dst, 0),
            self._ip.arrival(packet),
            packet.ttl,
            packet.tos,
            packet.kind,
            self._ip.scheduler.now,
            bytes(packet.header) if packet.header_length > plain else b"",
            0,
            packet.largest,
            packet.note,
        )
        if self._queue.put(datagram, self.receive_limit):
            self.event()
        else:
            self.drops.count(DropReason.RECEIVE_BUFFER_FULL)

    @property
    def pending(self) -> int:
        """Packets waiting."""
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        """Memory charged for waiting packets."""
        return self._queue.charge

    @property
    def lost(self) -> int:
        """Packets there was no room for, ever (SO_RXQ_OVFL)."""
        return self._queue.lost

    def peek(self) -> Datagram | None:
        found = self._queue.peek()
        return None if found is None else found[0]

    def recv(self) -> Datagram | None:
        """Take the next packet, None if there is none."""
        return self._queue.take()

    # --- errors -------------------------------------------------------------------------------------------------

    def is_mine(self, error: IcmpError) -> bool:
        """Could we have sent the packet that failed?"""
        if any(self.local_address) and self.local_address != error.local:
            return False
        return self.remote is None or self.remote[0] == error.remote

    def report(self, error: IcmpError) -> None:
        """A packet of ours failed: a connected endpoint learns of what is final, one with IP_RECVERR of everything."""
        settings = self.settings
        if settings.report_errors:
            now, extensions = self._ip.scheduler.now, settings.report_extensions
            entry = of_icmp(error, 0, (error.remote, 0), now, extensions=extensions)
            self.errors.put(entry, self.receive_limit)
        elif self.remote is None or not (error.hard or (error.mtu and settings.discover)):
            return
        self.error = error.errno
        self.event()

    def take_error(self) -> int:
        """The pending errno, cleared."""
        error, self.error = self.error, 0
        return error

    def event(self) -> None:
        if self.on_event is not None:
            self.on_event()

    # --- life ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Idempotent."""
        if not self.closed:
            self.closed = True
            self._queue.clear()
            self.errors.clear()
            self.on_event = None
            if self.groups is not None:
                self.groups.close()
            self.left()

    def left(self) -> None:
        """Take it out of its registry."""
        raise NotImplementedError


def _with_mtu(route: Route, mtu: int) -> Route:
    """`route`, taking packets of up to `mtu` bytes."""
    if mtu == route.mtu:
        return route
    other = Route(route.iface, route.src, route.dst, route.next_hop, mtu, route.kind, route.generation)
    other.neighbour = route.neighbour
    return other
