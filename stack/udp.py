"""UDP: endpoints, demultiplexing, bounded receive queues, errors (RFC 768, RFC 1122 4.1; rows UDP-01..17).

Theory of operation
-------------------
`UdpLayer` keeps endpoints by local port. A datagram goes to the endpoint that fits it best: connected to its sender,
then bound to its destination address, then bound to any; of equals the last bound (UDP-11), or, with SO_REUSEPORT, one
chosen by a hash of the flow. Broadcasts and multicasts go to every endpoint that fits.

Payload is copied out of its frame into `bytes` on arrival: a waiting datagram pins nothing, and what it is charged
against the endpoint's limit is what it costs.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, Drops, NetError
from stack.ip.listening import Listening, is_group
from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.ip.route import Route, RouteKind
from stack.wire.checksum import pseudo_sum
from stack.wire.udp import CHECKSUM_OFFSET, HEADER, HEADER_LENGTH, PROTO

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer
    from stack.ip.ports import BoundPort, PortTable
    from stack.link.device import Buffer
    from stack.scheduler import Scheduler

#: net.core.rmem_default of Linux, bytes.
DEFAULT_RECEIVE_LIMIT: Final = 212_992
#: Charged for a waiting datagram besides its payload, bytes: about what the objects around it take.
OVERHEAD: Final = 384
MAX_PAYLOAD4: Final = 65535 - 20 - HEADER_LENGTH  # 65507, row UDP-04
MAX_PAYLOAD6: Final = 65535 - HEADER_LENGTH


#: Looking a member up in its enum costs more than the comparison.
_UNICAST: Final = PacketKind.UNICAST
_MULTICAST: Final = PacketKind.MULTICAST
_BROADCAST_ROUTE: Final = RouteKind.BROADCAST
_MULTICAST_ROUTE: Final = RouteKind.MULTICAST


class Datagram:
    """One received datagram."""

    __slots__ = ("data", "dst", "ifindex", "kind", "src", "tos", "ttl")

    def __init__(
        self,
        data: bytes,
        src: tuple[bytes, int],
        dst: tuple[bytes, int],
        ifindex: int,
        ttl: int,
        tos: int,
        kind: PacketKind,
    ) -> None:
        self.data = data
        self.src = src  #: (address bytes, port)
        self.dst = dst  #: (address bytes, port) it was sent to
        self.ifindex = ifindex
        self.ttl = ttl
        self.tos = tos
        self.kind = kind


class UdpEndpoint:
    """One UDP socket's protocol half. Made by `UdpLayer.bind`; options are plain attributes, live."""

    def __init__(self, layer: UdpLayer, bound: BoundPort) -> None:
        self._layer = layer
        self._ip = layer.ip
        self._bound = bound
        self._queue: deque[Datagram] = deque()
        self._charge = 0
        self._route: Route | None = None
        self.connected_from: bytes | None = None  #: local address a connect() chose
        self.remote: tuple[bytes, int] | None = None
        self.error = 0  #: pending errno, see `take_error`
        self.on_event: Callable[[], None] | None = None  #: readiness may have changed
        self.on_icmp: Callable[[IcmpError], None] | None = None  #: every error, also unconnected (IP_RECVERR)
        self.receive_limit = DEFAULT_RECEIVE_LIMIT  #: bytes
        self.broadcast = False  #: SO_BROADCAST
        self.no_checksum = False  #: SO_NO_CHECK, IPv4 only
        self.dont_fragment = False
        self.ttl = 64
        self.multicast_ttl = 1
        self.tos = 0
        self.bind_ifindex = 0  #: SO_BINDTODEVICE: only this interface, 0: any
        self.multicast_ifindex = 0
        self.multicast_loop = True  #: IP_MULTICAST_LOOP: our own sockets get what we send to groups
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

    # --- sending ------------------------------------------------------------------------------------------------

    def connect(self, addr: bytes, port: int) -> None:
        """Send to and receive from (`addr`, `port`) only; again at will (UDP-02).

        Raises NetError: what `IpLayer.route` does, EACCES for a broadcast address without ``broadcast``.
        A failed call leaves the endpoint unconnected.
        """
        self.disconnect()
        route = self._find_route(addr)
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
        *,
        src: bytes | None = None,
        ttl: int | None = None,
        tos: int | None = None,
        oif: int = 0,
    ) -> int:
        """Send one datagram; returns the bytes of `data`. `data` must not change afterwards (pass `bytes`).

        Raises NetError: EDESTADDRREQ (UDP-03), EINVAL (port 0, UDP-05), EMSGSIZE (UDP-04), EACCES (broadcast), what
        `IpLayer.route` raises, ENETDOWN, EPIPE once closed.
        """
        if self.closed:
            raise NetError(errno.EPIPE)
        if dst is None:
            if self.remote is None:
                raise NetError(errno.EDESTADDRREQ)
            address, port = self.remote
            route = self._route
            if route is None or route.generation != self._ip.generation or src is not None or oif:
                route = self._find_route(address, src=src, oif=oif)
                if src is None and not oif:
                    self._route = route
        else:
            address, port = dst
            route = self._find_route(address, src=src, oif=oif)
            address = route.dst
        if not port:
            raise NetError(errno.EINVAL)
        size = len(data)
        if size > (MAX_PAYLOAD4 if len(address) == 4 else MAX_PAYLOAD6):
            raise NetError(errno.EMSGSIZE)
        self._check_broadcast(route)
        length = size + HEADER_LENGTH
        source = route.src
        checksum_offset: int | None = CHECKSUM_OFFSET
        partial = 0
        if self.no_checksum and len(address) == 4:
            checksum_offset = None
        else:
            partial = pseudo_sum(source, address, PROTO, length)
        header = HEADER.pack(self._bound.port, port, length, partial)
        if ttl is None:
            ttl = self.multicast_ttl if route.kind is _MULTICAST_ROUTE else self.ttl
        self._ip.output(
            route,
            source,
            address,
            PROTO,
            (header, data),
            length,
            ttl=ttl,
            tos=self.tos if tos is None else tos,
            dont_fragment=self.dont_fragment,
            csum_start_offset=checksum_offset,
            loop=self.multicast_loop,
        )
        return size

    def _find_route(self, address: bytes, *, src: bytes | None = None, oif: int = 0) -> Route:
        oif = oif or self.bind_ifindex
        if not oif and self.multicast_ifindex and (address[0] == 0xFF or 224 <= address[0] <= 239):
            oif = self.multicast_ifindex
        bound = self._bound.addr
        if src is None:
            if self.connected_from is not None:
                src = self.connected_from
            elif len(bound) == len(address) and any(bound) and self._ip.is_own_unicast(bound):
                src = bound
        return self._ip.route(address, src=src, oif=oif)

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
        return self._charge

    def peek(self) -> Datagram | None:
        """The next datagram, left in place."""
        return self._queue[0] if self._queue else None

    def recv(self) -> Datagram | None:
        """Take the next datagram, None if there is none."""
        if not self._queue:
            return None
        datagram = self._queue.popleft()
        self._charge -= len(datagram.data) + OVERHEAD
        return datagram

    def take_error(self) -> int:
        """The pending errno, cleared (SO_ERROR, or the next send or recv; UDP-08)."""
        error, self.error = self.error, 0
        return error

    def accepts(self, packet: IpPacket, src_port: int, dst: bytes) -> int:
        """How well `packet` fits: 0 not at all, else the more the better."""
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
        if packet.kind is _MULTICAST and groups is not None and is_group(dst) and not groups.hears(packet):
            return 0
        if self.bind_ifindex:
            if packet.iface.index != self.bind_ifindex:
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

    def deliver(self, datagram: Datagram) -> bool:
        """Queue a datagram unless the memory limit is reached; one always fits into an empty queue."""
        charge = len(datagram.data) + OVERHEAD
        if self._charge + charge > self.receive_limit and self._queue:
            self.drops.count(DropReason.RECEIVE_BUFFER_FULL)
            return False
        self._charge += charge
        self._queue.append(datagram)
        if self.on_event is not None:
            self.on_event()
        return True

    def failed(self, error: IcmpError) -> None:
        """An ICMP error about a datagram of ours; a connected endpoint learns of hard ones (UDP-08).

        As Linux: what may pass (host or network unreachable) is for those who asked for every error (IP_RECVERR).
        """
        if self.on_icmp is not None:
            self.on_icmp(error)
        if self.remote is not None and error.hard:
            self.error = error.errno
            if self.on_event is not None:
                self.on_event()

    def close(self) -> None:
        """Give up the port and what is queued. Idempotent."""
        if not self.closed:
            self.closed = True
            self._queue.clear()
            self._charge = 0
            if self.groups is not None:
                self.groups.close()
            self._layer.forget(self)
            self._bound.release()


class UdpLayer:
    """UDP of one network namespace."""

    def __init__(self, scheduler: Scheduler, ip: IpLayer) -> None:
        self.scheduler = scheduler
        self.ip = ip
        self.ports: PortTable = ip.ports[PROTO]
        self.drops = Drops()
        self._endpoints: dict[int, list[UdpEndpoint]] = {}
        self._secret = scheduler.rng.getrandbits(64)
        ip.register(PROTO, self.receive, self._error)

    def bind(
        self,
        addr: bytes,
        port: int = 0,
        *,
        reuse_addr: bool = False,
        reuse_port: bool = False,
        v6only: bool = False,
        owner: int = 0,
        privileged: bool = True,
        freebind: bool = False,
    ) -> UdpEndpoint:
        """An endpoint on (`addr`, `port`); all-zero `addr`: any, port 0: ephemeral. See `PortTable.bind` for errors."""
        bound = self.ports.bind(
            addr,
            port,
            reuse_addr=reuse_addr,
            reuse_port=reuse_port,
            v6only=v6only,
            owner=owner,
            privileged=privileged,
            freebind=freebind,
        )
        return self.adopt(bound)

    def adopt(self, bound: BoundPort) -> UdpEndpoint:
        """An endpoint on a claim made already; takes over its release."""
        endpoint = UdpEndpoint(self, bound)
        self._endpoints.setdefault(bound.port, []).append(endpoint)
        return endpoint

    def receive(self, packet: IpPacket) -> None:
        """One packet with protocol 17."""
        payload = packet.payload
        if len(payload) < HEADER_LENGTH:
            self.drops.count(DropReason.TOO_SHORT)
            return
        src_port, dst_port, length, _ = HEADER.unpack_from(payload)
        if not HEADER_LENGTH <= length <= len(payload):
            self.drops.count(DropReason.TRUNCATED)
            return
        if not packet.csum_ok:
            self.drops.count(DropReason.BAD_CHECKSUM)
            return
        endpoints = self._endpoints.get(dst_port)
        if endpoints is None:
            self._nobody(packet)
            return
        dst = packet.dst
        datagram = Datagram(
            bytes(payload[HEADER_LENGTH:length]),
            (packet.src, src_port),
            (dst, dst_port),
            packet.iface.index,
            packet.ttl,
            packet.tos,
            packet.kind,
        )
        if packet.kind is not _UNICAST:
            delivered = False
            for endpoint in list(endpoints):
                if endpoint.accepts(packet, src_port, dst):
                    endpoint.deliver(datagram)
                    delivered = True
            if not delivered:
                self.drops.count(DropReason.NO_SOCKET)
            return
        chosen = self._choose(endpoints, packet, src_port, dst_port)
        if chosen is None:
            self._nobody(packet)
        elif not chosen.deliver(datagram):
            self.drops.count(DropReason.RECEIVE_BUFFER_FULL)

    def _choose(
        self, endpoints: list[UdpEndpoint], packet: IpPacket, src_port: int, dst_port: int
    ) -> UdpEndpoint | None:
        best: UdpEndpoint | None = None
        best_score = 0
        group: list[UdpEndpoint] = []
        for endpoint in endpoints:
            score = endpoint.accepts(packet, src_port, packet.dst)
            if score and score >= best_score:
                if score > best_score:
                    group.clear()
                best, best_score = endpoint, score
                if endpoint.bound.reuse_port:
                    group.append(endpoint)
        if len(group) > 1:
            flow = hash((self._secret, packet.src, src_port, packet.dst, dst_port))
            return group[flow % len(group)]
        return best

    def _nobody(self, packet: IpPacket) -> None:
        """RFC 1122 4.1.3.1, row IF-10."""
        self.drops.count(DropReason.NO_SOCKET)
        if packet.kind is _UNICAST:
            self.ip.send_port_unreachable(packet)

    def _error(self, error: IcmpError) -> None:
        if len(error.payload) < 4:
            return
        local_port = error.payload[0] << 8 | error.payload[1]
        remote_port = error.payload[2] << 8 | error.payload[3]
        if error.mtu and local_port in self._endpoints:
            self.ip.update_path_mtu(error.remote, error.mtu)
        for endpoint in list(self._endpoints.get(local_port, ())):
            remote = endpoint.remote
            if remote is None:
                if endpoint.on_icmp is not None:
                    endpoint.failed(error)
            elif remote == (error.remote, remote_port) and endpoint.local[0] in (error.local, bytes(len(error.local))):
                endpoint.failed(error)

    def forget(self, endpoint: UdpEndpoint) -> None:
        """Called by a closing endpoint."""
        endpoints = self._endpoints[endpoint.bound.port]
        endpoints.remove(endpoint)
        if not endpoints:
            del self._endpoints[endpoint.bound.port]
