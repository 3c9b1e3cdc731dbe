"""`UdpLayer`: demultiplexing and errors of UDP in one network namespace (RFC 768, RFC 1122 4.1; rows UDP-01..17).

Theory of operation
-------------------
Endpoints are kept by local port. A datagram goes to the endpoint that fits it best: connected to its sender, then bound
to its destination address, then bound to any; of equals the last bound (UDP-11), or, with SO_REUSEPORT, one chosen by a
hash of the flow. Broadcasts and multicasts go to every endpoint that fits.

A superframe (a driver or our own loopback did not cut what UDP_SEGMENT put together, or a device joined neighbours) is
looked up once. Endpoints that asked for it (UDP_GRO) are given it as it is, to others it is a run of datagrams, see
`stack.udp.datagram`; what is counted are always datagrams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, Drops
from stack.ip.filtering import verdict
from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.ip.superframe import packets_of
from stack.udp.datagram import Datagram
from stack.udp.endpoint import UdpEndpoint
from stack.wire.udp import HEADER, HEADER_LENGTH, PROTO

if TYPE_CHECKING:
    from stack.bpf import Program
    from stack.ip.layer import IpLayer
    from stack.ip.ports import BoundPort, PortTable
    from stack.scheduler import Scheduler

#: Looking a member up in its enum costs more than the comparison.
_UNICAST: Final = PacketKind.UNICAST
_PLAIN4: Final = 20  #: bytes of an IPv4 header without options
_LENGTH_FIELD: Final = 4  #: offset in the UDP header


class UdpLayer:
    """UDP of one network namespace."""

    def __init__(self, scheduler: Scheduler, ip: IpLayer) -> None:
        self.scheduler = scheduler
        self.ip = ip
        self.ports: PortTable = ip.ports[PROTO]
        self.drops = Drops()
        self._endpoints: dict[int, list[UdpEndpoint]] = {}
        self.secret = scheduler.rng.getrandbits(64)
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
        ifindex: int = 0,
        span: tuple[int, int] | None = None,
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
            ifindex=ifindex,
            span=span,
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
        src_port, dst_port, length, check = HEADER.unpack_from(payload)
        if not HEADER_LENGTH <= length <= len(payload):
            self.drops.count(DropReason.TRUNCATED)
            return
        bare = not check and packet.version == 6  # RFC 8200 8.1: only where it was agreed upon (RFC 6936)
        if not packet.csum_ok and not bare:
            self.drops.count(DropReason.BAD_CHECKSUM)
            return
        endpoints = self._endpoints.get(dst_port)
        if endpoints is None:
            if bare:
                self.drops.count(DropReason.BAD_CHECKSUM)
            else:
                self._nobody(packet)
            return
        dst = packet.dst
        iface = packet.iface
        ifindex = iface.index
        kind = packet.kind
        if iface.loopback:
            ifindex = self.ip.arrival(packet)
        datagram = Datagram(
            bytes(payload[HEADER_LENGTH:length]),
            (packet.src, src_port),
            (dst, dst_port),
            ifindex,
            packet.ttl,
            packet.tos,
            kind,
            self.scheduler.now,
            _telling_header(packet),
            packet.gso_size,
            packet.largest,
            packet.note,
        )
        if kind is not _UNICAST:
            delivered = False
            for endpoint in list(endpoints):
                if endpoint.accepts(packet, src_port, dst, ifindex) and not (bare and not endpoint.zero_checksum6):
                    copy = datagram.copy(datagram.data, datagram.segment)
                    if endpoint.filter is None:
                        endpoint.deliver(copy)
                    else:
                        self._deliver_filtered(endpoint, endpoint.filter, packet, copy)
                    delivered = True
            if not delivered:
                self.drops.count(DropReason.NO_SOCKET, len(packets_of(packet)))
            return
        chosen = self._choose(endpoints, packet, src_port, dst_port, ifindex)
        if chosen is None:
            self._nobody(packet)
        elif bare and not chosen.zero_checksum6:
            self.drops.count(DropReason.BAD_CHECKSUM)
        elif chosen.filter is not None:
            self._deliver_filtered(chosen, chosen.filter, packet, datagram)
        elif lost := chosen.deliver(datagram):
            self.drops.count(DropReason.RECEIVE_BUFFER_FULL, lost)

    def _deliver_filtered(self, endpoint: UdpEndpoint, program: Program, packet: IpPacket, datagram: Datagram) -> None:
        """Through a filter (SO_ATTACH_FILTER), which sees header and data, and may keep less of the data.

        Of a superframe each datagram that it stands for passes by itself.
        """
        header = bytes(packet.payload[:_LENGTH_FIELD])
        for piece in datagram.pieces() if datagram.segment else (datagram,):
            length = (HEADER_LENGTH + len(piece.data)).to_bytes(2, "big")
            whole = b"".join((header, length, packet.payload[_LENGTH_FIELD + 2 : HEADER_LENGTH], piece.data))
            keep = verdict(program, packet, whole, self.scheduler.rng)
            if not keep:
                self.drops.count(DropReason.FILTERED)
                continue
            piece.data = piece.data[: max(keep - HEADER_LENGTH, 0)]
            if endpoint.deliver(piece):
                self.drops.count(DropReason.RECEIVE_BUFFER_FULL)

    def _choose(
        self, endpoints: list[UdpEndpoint], packet: IpPacket, src_port: int, dst_port: int, ifindex: int
    ) -> UdpEndpoint | None:
        if len(endpoints) == 1:
            only = endpoints[0]
            return only if only.accepts(packet, src_port, packet.dst, ifindex) else None
        best: UdpEndpoint | None = None
        best_score = 0
        group: list[UdpEndpoint] = []
        for endpoint in endpoints:
            score = endpoint.accepts(packet, src_port, packet.dst, ifindex)
            if score and score >= best_score:
                if score > best_score:
                    group.clear()
                best, best_score = endpoint, score
                if endpoint.bound.reuse_port:
                    group.append(endpoint)
        if len(group) > 1:
            flow = hash((self.secret, packet.src, src_port, packet.dst, dst_port))
            return group[flow % len(group)]
        return best

    def _nobody(self, packet: IpPacket) -> None:
        """RFC 1122 4.1.3.1, row IF-10."""
        for each in packets_of(packet):
            self.drops.count(DropReason.NO_SOCKET)
            if packet.kind is _UNICAST:
                self.ip.send_port_unreachable(each)

    def _error(self, error: IcmpError) -> None:
        if len(error.payload) < 4:
            return
        local_port = error.payload[0] << 8 | error.payload[1]
        remote_port = error.payload[2] << 8 | error.payload[3]
        if error.mtu and local_port in self._endpoints:
            self.ip.update_path_mtu(error.remote, error.mtu)
        here = (error.local, bytes(len(error.local)))
        for endpoint in list(self._endpoints.get(local_port, ())):
            remote = endpoint.remote
            if remote is None or (remote == (error.remote, remote_port) and endpoint.local[0] in here):
                endpoint.failed(error)

    def forget(self, endpoint: UdpEndpoint) -> None:
        """Called by a closing endpoint."""
        endpoints = self._endpoints[endpoint.bound.port]
        endpoints.remove(endpoint)
        if not endpoints:
            del self._endpoints[endpoint.bound.port]


def _telling_header(packet: IpPacket) -> bytes:
    """The IP header, if it has more to tell than addresses, hop limit and traffic class: options, a flow label."""
    if packet.version == 4:
        return bytes(packet.header) if packet.header_length > _PLAIN4 else b""
    header = packet.header
    plain = packet.header_length == 40 and not (header[1] & 0x0F or header[2] or header[3])
    return b"" if plain else bytes(header)
