"""`UdpEndpoint`: one UDP socket's protocol half. Made by `UdpLayer.bind`; options are plain attributes, live.

Theory of operation
-------------------
Sending: `send` finds the route (a connected endpoint keeps it while the IP layer's generation lasts), and `_emit`
writes one header and hands header and data down, where they stay apart until the device. Data for which UDP_SEGMENT is
set goes down as one superframe: the device cuts it if it offers USO, else `stack.link.offload` does, at the edge. While
corked, data is collected with the route and options of the first call.

Errors: an ICMP error about what we sent becomes the pending `error` if we are connected and it is hard, or if errors
are wanted (IP_RECVERR); then it is queued in `errors`, too.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, Drops, NetError
from stack.ip.errorqueue import ORIGIN_LOCAL, ErrorQueue, QueuedError, of_icmp
from stack.ip.listening import Listening, is_group
from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.ip.route import Route, RouteKind
from stack.link.device import GSO_NONE, GSO_UDP_L4
from stack.udp.datagram import Datagram, ReceiveQueue
from stack.udp.sending import (
    MAX_SEGMENTS,
    PLAIN,
    CongestedError,
    Corked,
    Discover,
    SendOptions,
    Settings,
    extended,
    way,
)
from stack.wire.checksum import pseudo_sum
from stack.wire.udp import CHECKSUM_OFFSET, HEADER, HEADER_LENGTH, PROTO

if TYPE_CHECKING:
    from stack.bpf import Program
    from stack.iface.interface import Interface
    from stack.ip.ports import BoundPort
    from stack.link.device import Buffer
    from stack.udp.layer import UdpLayer

#: net.core.rmem_default of Linux, bytes.
DEFAULT_RECEIVE_LIMIT: Final = 212_992
MAX_PAYLOAD4: Final = 65535 - 20 - HEADER_LENGTH  # 65507, row UDP-04
MAX_PAYLOAD6: Final = 65535 - HEADER_LENGTH

#: Looking a member up in its enum costs more than the comparison.
_UNICAST: Final = PacketKind.UNICAST
_MULTICAST: Final = PacketKind.MULTICAST
_BROADCAST_ROUTE: Final = RouteKind.BROADCAST
_MULTICAST_ROUTE: Final = RouteKind.MULTICAST
_WANT, _DO, _PROBE, _INTERFACE = map(int, (Discover.WANT, Discover.DO, Discover.PROBE, Discover.INTERFACE))


class UdpEndpoint:
    """See above."""

    def __init__(self, layer: UdpLayer, bound: BoundPort) -> None:
        self._layer = layer
        self._ip = layer.ip
        self._bound = bound
        self._queue = ReceiveQueue()
        self._route: Route | None = None
        self._corked: Corked | None = None
        self._congested: Interface | None = None
        self.errors = ErrorQueue()
        self.connected_from: bytes | None = None  #: local address a connect() chose
        self.remote: tuple[bytes, int] | None = None
        self.too_long: tuple[bytes, int] | None = None  #: whom a datagram was too long for, and what the path takes
        self.flow = 0  #: IPv6 flow label of what goes to the peer
        self.error = 0  #: pending errno, see `take_error`
        self.on_event: Callable[[], None] | None = None  #: readiness may have changed
        self.on_icmp: Callable[[IcmpError], None] | None = None  #: every error, also unconnected
        self.receive_limit = DEFAULT_RECEIVE_LIMIT  #: bytes
        self.send_limit = DEFAULT_RECEIVE_LIMIT  #: bytes on their way to the device, see `congested`
        self.v4 = Settings()
        self.v6 = Settings()
        self.broadcast = False  #: SO_BROADCAST
        self.no_checksum = False  #: SO_NO_CHECK: send none over IPv4
        self.no_checksum6 = False  #: UDP_NO_CHECK6_TX: send none over IPv6 (RFC 6936)
        self.zero_checksum6 = False  #: UDP_NO_CHECK6_RX: take datagrams without one over IPv6
        self.segment = 0  #: UDP_SEGMENT, bytes
        self.coalesce = False  #: UDP_GRO
        self.bind_ifindex = 0  #: SO_BINDTODEVICE: only this interface, 0: any
        self.mark = 0  #: SO_MARK
        self.priority = 0  #: SO_PRIORITY
        self.direct = False  #: SO_DONTROUTE
        self.filter: Program | None = None  #: SO_ATTACH_FILTER, applied by the layer
        self.groups: Listening | None = None  #: see `listening`
        self.drops = Drops()
        self.closed = False

    @property
    def local(self) -> tuple[bytes, int]:
        """(address, port); the address is all zero while bound to any and unconnected."""
        return self.connected_from or self._bound.addr, self._bound.port

    @property
    def bound(self) -> BoundPort:
        return self._bound

    @property
    def listening(self) -> Listening:
        """Joins and leaves groups; left on `close`."""
        if self.groups is None:
            self.groups = Listening(self._ip)
        return self.groups

    def settings(self, address: bytes) -> Settings:
        """Those of the address's IP version."""
        return self.v4 if len(address) == 4 else self.v6

    # --- sending ------------------------------------------------------------------------------------------------

    def connect(self, addr: bytes, port: int, *, oif: int = 0, flow: int = 0) -> None:
        """Send to and receive from (`addr`, `port`) only; again at will (UDP-02). Packets carry the flow label `flow`.

        Raises NetError: what `IpLayer.route` does, EACCES for a broadcast address without ``broadcast``.
        A failed call changes nothing.
        """
        before = self.connected_from
        self.connected_from = None
        try:
            self._connect(addr, port, oif)
        except NetError:
            self.connected_from = before
            raise
        self.flow = flow & 0xFFFFF

    def _connect(self, addr: bytes, port: int, oif: int) -> None:
        route = self.find_route(addr, SendOptions(oif=oif) if oif else PLAIN)
        self._check_broadcast(route)
        self._route = route
        self.remote = (route.dst, port)
        if not any(self._bound.addr):
            self.connected_from = route.src

    def disconnect(self) -> None:
        """Back to no default destination and no filter."""
        self.remote = None
        self.connected_from = None
        self._route = None

    def send(
        self,
        data: Buffer,
        dst: tuple[bytes, int] | None = None,
        how: SendOptions = PLAIN,
        *,
        src: bytes | None = None,
        oif: int = 0,
        ttl: int | None = None,
    ) -> int:
        """Send one datagram; returns the bytes of `data`. `data` must not change afterwards (pass `bytes`).

        `src`, `oif` and `ttl` are short for a `how` with nothing else. Raises NetError: EDESTADDRREQ (UDP-03), EINVAL
        (port 0, UDP-05; more than `MAX_SEGMENTS`), EMSGSIZE (UDP-04), EACCES (broadcast), what `IpLayer.route`
        raises, ENETDOWN, EPIPE once closed.
        """
        if self.closed:
            raise NetError(errno.EPIPE)
        if src is not None or oif or ttl is not None:
            how = SendOptions(src=src, oif=oif, ttl=ttl)
        corked = self._corked
        if corked is not None:
            return self._append(corked, data, how)
        if dst is None:
            if self.remote is None:
                raise NetError(errno.EDESTADDRREQ)
            address, port = self.remote
            route = self._route
            options = self.v4.options if how.options is None else how.options
            if route is None or route.generation != self._ip.generation or how is not PLAIN or options:
                route = way(self.find_route, address, options, how)
                if how is PLAIN and not options:
                    self._route = route
        else:
            address, port = dst
            if not port:
                raise NetError(errno.EINVAL)
            options = self.v4.options if how.options is None else how.options
            route = way(self.find_route, address, options, how) if options else self.find_route(address, how)
            if address != route.dst and not any(address):
                address = route.dst
        self._check_broadcast(route)
        backlog = route.iface.backlog
        if backlog and backlog >= self.send_limit:
            self._congested = route.iface
            route.iface.when_drained(self._drained)
            raise CongestedError
        if how.confirm:
            self._ip.confirm(route)
        size = len(data)
        if how.more:
            self._corked = corked = Corked(route, address, port, how)
            return self._append(corked, data, how)
        self._emit(route, address, port, (data,), size, how)
        return size

    def check(self, dst: tuple[bytes, int] | None, how: SendOptions) -> None:
        """Find the way, confirm the next hop if asked to, and send nothing. Raises NetError as `send`."""
        remote = dst or self.remote
        if remote is None:
            raise NetError(errno.EDESTADDRREQ)
        route = self.find_route(remote[0], how)
        if how.confirm:
            self._ip.confirm(route)

    @property
    def congested(self) -> bool:
        """The link was full when a datagram was sent last, and has not drained since (SO_SNDBUF, UDP-15)."""
        return self._congested is not None

    def _drained(self) -> None:
        self._congested = None
        if self.on_event is not None:
            self.on_event()

    def uncork(self) -> None:
        """Send what was collected. Raises NetError as `send`; it is given up in any case."""
        corked, self._corked = self._corked, None
        if corked is not None:
            self._emit(corked.route, corked.address, corked.port, tuple(corked.parts), corked.size, corked.how)

    @property
    def corked(self) -> bool:
        """A datagram is being collected."""
        return self._corked is not None

    def _append(self, corked: Corked, data: Buffer, how: SendOptions) -> int:
        size = len(data)
        if corked.size + size > (MAX_PAYLOAD4 if len(corked.address) == 4 else MAX_PAYLOAD6):
            self._corked = None
            raise NetError(errno.EMSGSIZE)
        if size:
            corked.parts.append(data)
            corked.size += size
        if not how.more:
            self.uncork()
        return size

    def _emit(
        self, route: Route, address: bytes, port: int, data: tuple[Buffer, ...], size: int, how: SendOptions
    ) -> None:
        """Header and data to the IP layer, as one packet or one superframe."""
        v4 = len(address) == 4
        settings = self.v4 if v4 else self.v6
        source = route.src
        length = size + HEADER_LENGTH
        options = settings.options if how.options is None else how.options
        if size > (MAX_PAYLOAD4 - len(options) if v4 else MAX_PAYLOAD6):
            raise self._too_long(route, address, port, settings)
        discover = settings.discover
        if discover >= _PROBE:
            route = route.with_mtu(min(route.iface.mtu, 65535) if v4 else self._ip.mtu6(route.iface))
        if settings.longest and settings.longest < route.mtu:
            route = route.with_mtu(settings.longest)
        fits = length + (20 + len(options) if v4 else 40) <= route.mtu
        segment = self.segment if how.segment is None else how.segment
        gso_type = GSO_NONE
        checksum_offset: int | None = CHECKSUM_OFFSET
        if segment:
            if min(size, segment) + HEADER_LENGTH + (20 + len(options) if v4 else 40) > route.mtu:
                raise self._too_long(route, address, port, settings)
            if size > segment * MAX_SEGMENTS or (self.no_checksum if v4 else self.no_checksum6):
                raise NetError(errno.EINVAL)
            if size > segment:
                gso_type = GSO_UDP_L4
                fits = True
        if not fits and (
            discover in (_DO, _PROBE, _INTERFACE)
            or (not v4 and (settings.dont_fragment if how.dont_fragment is None else how.dont_fragment))
        ):
            if settings.report_mtu:
                self.too_long = (address, route.mtu)
            raise self._too_long(route, address, port, settings)
        if self.no_checksum if v4 else self.no_checksum6:
            checksum_offset = None
            partial = 0
        else:
            partial = pseudo_sum(source, address, PROTO, length)
        header = HEADER.pack(self._bound.port, port, length, partial)
        if how.ttl is not None:
            hops = how.ttl
        else:
            hops = settings.multicast_hops if route.kind is _MULTICAST_ROUTE else settings.hops
        parts: tuple[Buffer, ...] = (header, *data)
        proto = PROTO
        flow = how.flow or (self.flow if how is PLAIN else 0)
        if not v4:
            extension = settings.extension if how.extension is None else how.extension
            if extension is not None:
                proto, parts, length = extended(extension, parts, checksum_offset, length)
                checksum_offset = None
                gso_type = GSO_NONE
            if not flow and settings.flow_label:
                flow = hash((self._layer.secret, source, address, port, self._bound.port)) & 0xFFFFF or 1
        note = how.note(self.mark, self.priority)
        queued = self._ip.loopback.fresh if note else 0
        self._ip.output(
            route,
            source,
            address,
            proto,
            parts,
            length,
            ttl=hops,
            tos=settings.tos if how.tos is None else how.tos,
            dont_fragment=discover in (_DO, _PROBE) or (discover == _WANT and fits and v4),
            csum_start_offset=checksum_offset,
            gso_type=gso_type,
            gso_size=segment if gso_type else 0,
            header_length=HEADER_LENGTH if gso_type else 0,
            loop=settings.loop,
            flow=flow,
            options=options if v4 else b"",
        )
        if note:
            self._ip.loopback.annotate(queued, note)

    def _too_long(self, route: Route, address: bytes, port: int, settings: Settings) -> NetError:
        """EMSGSIZE, and an entry in the error queue that tells the MTU."""
        if settings.report_errors:
            self.put_error(
                QueuedError(
                    errno.EMSGSIZE,
                    ORIGIN_LOCAL,
                    info=route.mtu,
                    remote=(address, port),
                    stamp=self._layer.scheduler.now,
                )
            )
        return NetError(errno.EMSGSIZE)

    def find_route(self, address: bytes, how: SendOptions = PLAIN) -> Route:
        settings = self.v4 if len(address) == 4 else self.v6
        src = how.src or settings.source
        oif = how.oif or self.bind_ifindex
        if not oif:
            if address[0] == 0xFF or 224 <= address[0] <= 239:  # an IPv6 address that begins so is no unicast either
                oif = settings.multicast_ifindex
                if src is None:
                    src = settings.multicast_source
            elif settings.unicast_ifindex:
                oif = settings.unicast_ifindex
        bound = self._bound.addr
        if src is None or not any(src):
            src = None
            if self.connected_from is not None and len(self.connected_from) == len(address):
                src = self.connected_from
            elif len(bound) == len(address) and any(bound) and self._may_send_from(bound):
                src = bound
        mark = self.mark if how.mark is None else how.mark
        if src is None and settings.temporary is not None:
            src = self._ip.preferred_source(address, settings.temporary, oif=oif, mark=mark)
        route = self._ip.route(address, src=src, oif=oif, mark=mark)
        if (self.direct or how.direct) and route.next_hop != route.dst:
            raise NetError(errno.ENETUNREACH)
        return route

    def _may_send_from(self, address: bytes) -> bool:
        """A group or broadcast address one is bound to is no source; one that is not ours (IP_FREEBIND) is."""
        return self._ip.is_own_unicast(address) or not self._ip.is_local(address)

    def _check_broadcast(self, route: Route) -> None:
        if route.kind is _BROADCAST_ROUTE and not self.broadcast:
            raise NetError(errno.EACCES)

    # --- receiving ----------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Datagrams waiting."""
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        """Memory charged for waiting datagrams."""
        return self._queue.charge

    @property
    def lost(self) -> int:
        """Datagrams there was no room for, ever (SO_RXQ_OVFL)."""
        return self._queue.lost

    def peek(self) -> Datagram | None:
        """The next datagram, left in place."""
        found = self._queue.peek()
        return None if found is None else found[0]

    def peek_at(self, skip: int) -> tuple[Datagram, int] | None:
        """As `peek`, `skip` bytes further on; and the bytes to skip of what is found (SO_PEEK_OFF)."""
        return self._queue.peek(skip)

    def recv(self) -> Datagram | None:
        """Take the next datagram, None if there is none."""
        return self._queue.take()

    def recv_data(self) -> bytes | None:
        """As `recv`, but only what is in it."""
        return self._queue.take_data()

    def recv_several(self, most: int) -> tuple[Datagram, list[bytes]] | None:
        """Take up to `most` datagrams that came in one run: one that tells of all of them, and what is in each."""
        return self._queue.take_several(most)

    def take_error(self) -> int:
        """The pending errno, cleared (SO_ERROR, or the next send or recv; UDP-08)."""
        error, self.error = self.error, 0
        return error

    def error_taken(self) -> None:
        """An entry of the error queue was read: what is pending is the next one's errno, as on Linux."""
        self.error = self.errors.next_errno

    def put_error(self, entry: QueuedError) -> None:
        """Queue it for those who ask with MSG_ERRQUEUE; it is lost if the receive limit is reached."""
        if self.errors.put(entry, self.receive_limit) and self.on_event is not None:
            self.on_event()

    def accepts(self, packet: IpPacket, src_port: int, dst: bytes, ifindex: int) -> int:
        """How well `packet`, which came in through `ifindex`, fits: 0 not at all, else the more the better."""
        bound = self._bound
        score = 1
        if len(bound.addr) == len(dst):
            if any(bound.addr):
                if bound.addr != dst:
                    return 0
                score += 2
        elif any(bound.addr) or bound.v6only or len(bound.addr) == 4:
            return 0
        groups = self.groups
        if packet.kind is _MULTICAST and groups is not None and is_group(dst) and not groups.hears(packet, ifindex):
            return 0
        if self.bind_ifindex:
            if ifindex != self.bind_ifindex:
                return 0
            score += 2
        remote = self.remote
        if remote is not None:
            if remote[1] != src_port or remote[0] != packet.src:
                return 0
            if self.connected_from is not None and packet.kind is _UNICAST and self.connected_from != dst:
                return 0
            score += 4
        return score

    def deliver(self, datagram: Datagram) -> int:
        """Queue a datagram, or all a superframe stands for, as far as the memory limit allows; how many are lost."""
        before = len(self._queue)
        if datagram.segment and not self.coalesce:
            datagram.cut, datagram.segment = datagram.segment, 0
            lost = self._queue.put_run(datagram, self.receive_limit)
        else:
            lost = 0 if self._queue.put(datagram, self.receive_limit, coalesce=self.coalesce) else 1
        if lost:
            self.drops.count(DropReason.RECEIVE_BUFFER_FULL, lost)
        if self.on_event is not None and (not lost or len(self._queue) > before):
            self.on_event()
        return lost

    def failed(self, error: IcmpError) -> None:
        """An ICMP error about a datagram of ours (UDP-08).

        As Linux: a connected endpoint learns of hard errors, and of a path MTU it did not ask routers to ignore; one
        that reports errors learns of all of them.
        """
        if self.on_icmp is not None:
            self.on_icmp(error)
        settings = self.v4 if error.version == 4 else self.v6
        if settings.report_errors:
            payload = error.payload
            remote = (error.remote, payload[2] << 8 | payload[3])
            now, extensions = self._layer.scheduler.now, settings.report_extensions
            self.errors.put(of_icmp(error, HEADER_LENGTH, remote, now, extensions=extensions), self.receive_limit)
        elif self.remote is None or not (error.hard or (error.mtu and settings.discover)):
            return
        self.error = error.errno
        if self.on_event is not None:
            self.on_event()

    def close(self) -> None:
        """Give up the port and what is queued. Idempotent."""
        if not self.closed:
            self.closed = True
            self._queue.clear()
            self._corked = None
            self.errors.clear()
            if self.groups is not None:
                self.groups.close()
            self._layer.forget(self)
            self._bound.release()
