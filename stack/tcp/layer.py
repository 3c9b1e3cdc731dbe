"""TCP of one network namespace: segments to connections, resets for the rest, ICMP errors, new connections.

Theory of operation
-------------------
`input` is the hot entry. One `unpack_from` reads the header together with the place where the timestamp option sits in
practically every segment of an established connection that agreed on it; one dictionary look-up finds the connection;
`Connection.fast` takes it from there. Whatever does not fit goes through `_slow`: exact checks, a `Segment`, the
state's ladder.

No segment, however malformed, makes `input` raise; what cannot be used is counted in `drops`.
"""

from __future__ import annotations

import errno
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, Drops, NetError
from stack.ip.packet import PacketKind
from stack.ip.source_route import answer_options
from stack.scheduler import NS_PER_S
from stack.tcp.connection import Connection
from stack.tcp.demux import Demux, Key, flow_key
from stack.tcp.discovery import believes_icmp, resends
from stack.tcp.ecn import CE, ECN_MASK
from stack.tcp.fastopen import CLIENT, KEY_LENGTH, FastOpenClient
from stack.tcp.filtering import Filtering
from stack.tcp.handshake import send_syn
from stack.tcp.isn import SequenceSource
from stack.tcp.listener import Listener
from stack.tcp.mib import Mib, MibCounters
from stack.tcp.minisock import Minisock, send_single
from stack.tcp.options import TcpConfig, TcpOptions
from stack.tcp.pcb import PLAIN_OFFSET
from stack.tcp.segment import Segment
from stack.tcp.segmentsize import resegment
from stack.tcp.seqnum import MASK, unwrap
from stack.tcp.signatures import Signatures
from stack.tcp.syncookies import SynCookies
from stack.tcp.synqueue import SynQueue
from stack.tcp.timewait import TimeWait, TimeWaits
from stack.tcp.transitions import TcpState
from stack.wire.checksum import partial_sum, pseudo_sum
from stack.wire.ipoptions import first_hop
from stack.wire.tcp import ACK, HEADER, HEADER_LENGTH, PROTO, RST, TIMESTAMPS_WORD, parse_options

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IcmpError, IpPacket
    from stack.ip.ports import BoundPort, PortTable
    from stack.ip.route import Route
    from stack.link.device import Buffer
    from stack.scheduler import Scheduler
    from stack.tcp.express import Flow
    from stack.tcp.pcb import Pcb
    from stack.tcp.receiver import Receiver
    from stack.tcp.sender import Sender

#: both ports, seq, ack, data offset, flags, window, checksum, urgent, first option word, TSval, TSecr
_STAMPED: Final = struct.Struct("!IIIBBHHHIII")
_PLAIN: Final = struct.Struct("!IIIBBHHH")  # the same without an option
_QUOTED: Final = struct.Struct("!II")  # what an ICMP error quotes at least: ports and sequence number
_PSH_OFF: Final = 0xF7
_SHARED_KEPT: Final = 256  # ports connect() chose, before those released are looked for
_PROVEN_MAX: Final = 1024  # addresses remembered that have completed a handshake


@dataclass(slots=True)
class TcpStats:
    """Counted over the layer's life; named after RFC 4022 where that has them."""

    ladder_in: int = 0  #: segments that were looked at by a state's ladder, or by nobody
    fast_in: int = 0  #: segments (a superframe is one) that took the header-prediction path
    segments_out: int = 0
    retransmitted: int = 0
    active_opens: int = 0
    passive_opens: int = 0
    resets_sent: int = 0
    tail_probes: int = 0  #: RFC 8985 section 7
    dsacks_in: int = 0  #: duplicates our peers reported (RFC 2883)
    spurious: int = 0  #: congestion responses taken back

    @property
    def segments_in(self) -> int:
        return self.ladder_in + self.fast_in


class TcpLayer:
    """`drops` counts by reason, `stats` the rest."""

    def __init__(
        self, scheduler: Scheduler, ip: IpLayer, *, ports: PortTable | None = None, config: TcpConfig | None = None
    ) -> None:
        """`ports`: the namespace's TCP ports; `ip`'s own if not given."""
        self.scheduler = scheduler
        self.ip = ip
        self.ports = ip.ports[PROTO] if ports is None else ports
        self.config = TcpConfig() if config is None else config
        self.drops = Drops()
        self.stats = TcpStats()
        self.demux = Demux()
        self.connections = self.demux.connections
        self.mib = MibCounters()  #: what `stats` has not, under Linux's names
        self.flows: dict[bytes, Flow] = {}  #: by addresses and ports as they are in a frame, see `express`
        self.syn_queue = SynQueue(self)
        self.time_waits = TimeWaits(self)
        self.fastopen = FastOpenClient(self)
        self.proven: dict[bytes, None] = {}  #: peers that are no flood's invention, the latest last
        self._sequence = SequenceSource(scheduler.rng)
        self._cookies: SynCookies | None = None
        self._fastopen_key = b""
        self._shared: dict[tuple[bytes, int], BoundPort] = {}  # ports connect() chose, some released since
        self._shared_most = _SHARED_KEPT
        self._orphans: dict[Pcb, None] = {}  # closed by their users, not in TIME-WAIT
        self._challenge_second = -1
        self._challenges = 0
        self.filtering = Filtering(self)
        self.signatures = Signatures(self)
        ip.register(PROTO, self.input, self.icmp_error)

    # --- for users -----------------------------------------------------------------------------------------------

    def connect(
        self,
        bound: BoundPort | None,
        src: bytes | None,
        remote: tuple[bytes, int],
        *,
        options: TcpOptions | None = None,
        oif: int = 0,
        fastopen: Buffer | None = None,
        hold: bool = False,
        iss: int | None = None,
        span: tuple[int, int] | None = None,
    ) -> Connection:
        """A connection in SYN-SENT; the outcome comes through on_event (`connected` or `error`).

        Takes over `bound` (released when the connection is CLOSED); without it an ephemeral port is taken. On an
        error `bound` stays the caller's. `fastopen`: data for the SYN if Fast Open allows (b"": just get a
        cookie); how much of it was taken is `unacknowledged`. `hold`: send nothing before `launch`. `iss`: as if drawn.
        `span`: the first and last port to choose from, None for the system's.

        Raises NetError: what routing says (ENETUNREACH ...), EADDRNOTAVAIL (4-tuple in use, or no port free).
        """
        if src is None and bound is not None and any(bound.addr):
            src = bound.addr
        hop = first_hop(options.ip_options) if options is not None and len(remote[0]) == 4 else None
        route = self.ip.route(hop or remote[0], src=src, oif=oif, mark=0 if options is None else options.mark)
        if route.kind not in _CONNECTABLE or (
            options is not None and options.direct and len(route.dst) == 4 and route.next_hop != route.dst
        ):
            raise NetError(errno.ENETUNREACH)
        source = route.src if src is None else src
        remote = (remote[0] if hop else route.dst, remote[1])
        device = 0 if options is None else options.device
        held = self._ephemeral(source, remote, device, span) if bound is None else bound
        local = (source, held.port)
        key = self.demux.tied((remote[0], source, remote[1] << 16 | local[1]), device)
        drawn, offset = self.draw(key)
        before = self.demux.minisocks.get(key)
        if key in self.connections or not self._gives_way(before, bound=bound is not None):
            if bound is None:
                held.release()
            raise NetError(errno.EADDRNOTAVAIL, "a connection between these two ports exists")
        if isinstance(before, TimeWait):
            drawn = before.next_isn
            self.time_waits.recycle(before)
        iss = drawn if iss is None else iss
        options = TcpOptions() if options is None else options
        connection = Connection(self, local, remote, route, options, held, iss, offset, oif)
        if isinstance(before, TimeWait):
            connection.receiver.ts_recent = before.ts_recent
        self.connections[key] = connection
        self.stats.active_opens += 1
        connection.enter(TcpState.SYN_SENT)
        if not hold:
            self.launch(connection, fastopen)
        return connection

    def launch(self, connection: Connection, data: Buffer | None) -> int:
        """Send the SYN, by Fast Open if `data` is not None; returns how much of it went along."""
        if data is not None and self.config.fastopen & CLIENT:
            self.fastopen.begin(connection, data)
        send_syn(connection)
        return connection.unacknowledged

    def listen(self, bound: BoundPort, backlog: int, *, options: TcpOptions | None = None) -> Listener:
        """Accept connections on `bound`, which is taken over. Raises NetError(EADDRINUSE): someone listens there."""
        bound.listen()
        listener = Listener(self, bound, backlog, TcpOptions() if options is None else options)
        self.demux.add_listener(listener)
        return listener

    def _gives_way(self, mini: Minisock | None, *, bound: bool) -> bool:
        """Whether `mini` does not keep a connect from using its 4-tuple."""
        return mini is None or (isinstance(mini, TimeWait) and mini.recyclable(bound=bound))

    def _ephemeral(
        self, source: bytes, remote: tuple[bytes, int], device: int, span: tuple[int, int] | None
    ) -> BoundPort:
        """A port of its own if one is left, else one whose connections all go elsewhere."""
        try:
            bound = self.ports.bind(source, 0, span=span)
        except NetError as failure:
            if failure.errno != errno.EADDRINUSE:
                raise
            return self._shared_port(source, remote, device, span)
        shared = self._shared
        shared[source, bound.port] = bound
        if len(shared) > self._shared_most:
            self._shared = shared = {place: one for place, one in shared.items() if not one.released}
            self._shared_most = max(2 * len(shared), _SHARED_KEPT)
        return bound

    def _shared_port(
        self, source: bytes, remote: tuple[bytes, int], device: int, span: tuple[int, int] | None
    ) -> BoundPort:
        first, last = span or (self.ports.ephemeral_first, self.ports.ephemeral_last)
        count = last - first + 1
        start = self.scheduler.rng.randrange(0, count)
        for step in range(count):
            port = first + (start + step) % count
            bound = self._shared.get((source, port))
            if bound is None:
                continue
            if bound.released:
                del self._shared[source, port]
                continue
            key = self.demux.tied((remote[0], source, remote[1] << 16 | port), device)
            if key not in self.connections and self._gives_way(self.demux.minisocks.get(key), bound=False):
                return bound.retain()
        raise NetError(errno.EADDRNOTAVAIL, "no port is free")  # as connect() says it, row TCP-02

    # --- segments in ---------------------------------------------------------------------------------------------

    def input(self, packet: IpPacket) -> Receiver | Sender | None:
        """One received segment or superframe. Never raises. The answer takes what continues it, if anybody does."""
        data = packet.payload
        length = len(data)
        if length >= 32:
            ports, seq, ack, offset, flags, window, _, _, option, value, echo = _STAMPED.unpack_from(data)
        elif length >= HEADER_LENGTH:
            ports, seq, ack, offset, flags, window, _, _ = _PLAIN.unpack_from(data)
            option = value = echo = 0
        else:
            self._slow(packet, data)
            return None
        connection = self.connections.get((packet.src, packet.dst, ports))
        if (
            connection is not None
            and offset == connection.predicted
            and (option == TIMESTAMPS_WORD or offset == PLAIN_OFFSET)
            and flags & _PSH_OFF == ACK
            and packet.csum_ok
            and (connection.ecn is None or packet.tos & ECN_MASK != CE)
            and connection.fast(data, length - (offset >> 2), seq, ack, window, value, echo, packet.gso_size)
        ):
            self.stats.fast_in += 1
            return connection.receiver if length > offset >> 2 else connection.sender
        self._slow(packet, data)
        return None

    def _slow(self, packet: IpPacket, data: memoryview) -> None:
        self.stats.ladder_in += 1
        length = len(data)
        if length < HEADER_LENGTH:
            self.drops.count(DropReason.TOO_SHORT)
            return
        _, _, seq, ack, offset, flags, window, _, _ = HEADER.unpack_from(data)
        start = offset >> 4 << 2
        if not HEADER_LENGTH <= start <= length:
            self.drops.count(DropReason.BAD_HEADER)
            return
        if not packet.csum_ok and partial_sum(data, pseudo_sum(packet.src, packet.dst, PROTO, length)) != 0xFFFF:
            self.drops.count(DropReason.BAD_CHECKSUM)
            return
        options = parse_options(data[HEADER_LENGTH:start])
        if options.signature is not None and not self.signatures.installed:
            self.mib.count(Mib.MD5_UNEXPECTED)
            self.drops.count("md5-signature")
            return
        seg = Segment(seq, ack, flags, window, data[start:], options, packet)
        key: Key = (packet.src, packet.dst, int.from_bytes(data[:4], "big"))
        connection = self.connections.get(key) or self.demux.minisocks.get(key)
        if connection is None and self.demux.ties:
            connection = self.demux.found(key, self.ip.arrival(packet))
        if connection is not None:
            connection.segment(seg)
            return
        listener = self.demux.listener(key, self.ip.arrival(packet))
        if listener is not None:
            listener.segment(seg, key)
        else:
            self.drops.count(DropReason.NO_SOCKET)
            self.refuse(seg)

    def refuse(self, seg: Segment) -> None:
        """RFC 9293 section 3.10.7.1: a reset in reply to a segment that fits nothing, unless it is one itself."""
        packet = seg.packet
        if seg.flags & RST or packet.kind != PacketKind.UNICAST:
            return
        if seg.flags & ACK:
            # <SEQ=SEG.ACK><CTL=RST>
            seq, ack, flags = seg.ack, 0, RST
        else:
            # <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>
            seq, ack, flags = 0, seg.end, RST | ACK
        key = (packet.src, packet.dst, int.from_bytes(packet.payload[:4], "big"))
        if send_single(self, key, self.scope(packet), seq, ack, flags, 0, ip_options=answer_options(self.ip, packet)):
            self.stats.resets_sent += 1

    def icmp_error(self, error: IcmpError) -> None:
        """Something we sent did not arrive. Believed only if it quotes data in flight (RFC 5927 section 4)."""
        if len(error.payload) < _QUOTED.size:
            return
        ports, seq = _QUOTED.unpack_from(error.payload)
        swapped = (ports & 0xFFFF) << 16 | ports >> 16
        key = (error.remote, error.local, swapped)
        keys = [key, *(self.demux.tied(key, index) for index in self.ip.interfaces)] if self.demux.ties else [key]
        for key in keys:
            mini = self.demux.minisocks.get(key)
            if mini is not None:
                mini.icmp_error(error, seq)
            connection = self.connections.get(key)
            if connection is not None:
                self._failed(connection, error, seq)

    def _failed(self, connection: Connection, error: IcmpError, seq: int) -> None:
        sender = connection.sender
        seq = unwrap(seq, sender.snd_una)
        if not sender.snd_una <= seq <= sender.snd_max:
            self.drops.count("icmp-out-of-window")
            self.mib.count(Mib.OUT_OF_WINDOW_ICMPS)
            return
        if error.mtu:
            self._path_mtu(connection, error.mtu)
        elif connection.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
            # As Linux: while the connection is being set up any error ends the attempt.
            connection.fail(error.errno)
        else:
            # RFC 5927 section 5.2: hard errors are soft ones in a synchronized state.
            connection.soft_error = error.errno
            if connection.options.report_errors:
                connection.error = error.errno
                connection.notify()

    def _path_mtu(self, connection: Pcb, mtu: int) -> None:
        """RFC 1191 section 6.4: smaller segments from now on, and what was too big again, without congestion."""
        options, remote = connection.options, connection.remote[0]
        if mtu >= connection.path_mtu or not believes_icmp(options, remote):
            return
        try:
            self.ip.update_path_mtu(remote, mtu)
            self.reroute(connection)
        except NetError as failure:
            connection.soft_error = failure.errno
            return
        sender = connection.sender
        if sender.snd_una > sender.iss and resends(options, remote):
            sender.recovery.resend_everything()
            connection.schedule()

    # --- for connections and listeners ---------------------------------------------------------------------------

    def pseudo_sum(self, src: bytes, dst: bytes) -> int:
        """The pseudo-header's partial sum without the length."""
        return pseudo_sum(src, dst, PROTO, 0)

    def reroute(self, connection: Pcb) -> Route:
        """The connection's route anew, after the routing changed. Raises NetError."""
        mark = connection.options.mark
        hop = first_hop(connection.ip_options) or connection.remote[0]
        route = self.ip.route(hop, src=connection.local[0], oif=connection.oif, mark=mark)
        connection.route = route
        if route.mtu != connection.path_mtu:
            connection.path_mtu = route.mtu
        resegment(connection)
        return route

    def may_challenge(self) -> bool:
        """One challenge ACK more this second? RFC 5961 section 7."""
        second = self.scheduler.now // NS_PER_S
        if second != self._challenge_second:
            self._challenge_second = second
            self._challenges = 0
        self._challenges += 1
        if self._challenges > self.config.challenge_acks:
            self.drops.count("challenge-limit")
            return False
        self.mib.count(Mib.CHALLENGE_ACK)
        return True

    def draw(self, key: Key) -> tuple[int, int]:
        """(ISN, timestamp offset) for a connection between these two (RFC 6528)."""
        local, remote = (key[1], key[2] & 0xFFFF), (key[0], key[2] >> 16 & 0xFFFF)
        return self._sequence.draw(local, remote, self.scheduler.now)

    @property
    def cookies(self) -> SynCookies:
        """The secret is drawn when it is first needed."""
        if self._cookies is None:
            self._cookies = SynCookies(self.scheduler.rng.getrandbits(256).to_bytes(32, "big"))
        return self._cookies

    @property
    def fastopen_key_known(self) -> bytes:
        """`fastopen_key` if there is one already, else b""."""
        return self.config.fastopen_key or self._fastopen_key

    @property
    def fastopen_key(self) -> bytes:
        """What Fast Open cookies are made with where a listener has no key of its own; drawn when first needed."""
        if self.config.fastopen_key:
            return self.config.fastopen_key
        if not self._fastopen_key:
            self._fastopen_key = self.scheduler.rng.getrandbits(8 * KEY_LENGTH).to_bytes(KEY_LENGTH, "big")
        return self._fastopen_key

    def prove(self, address: bytes) -> None:
        """The peer at `address` has completed a handshake: it can receive what we send there."""
        proven = self.proven
        proven.pop(address, None)
        proven[address] = None
        if len(proven) > _PROVEN_MAX:
            del proven[next(iter(proven))]

    def scope(self, packet: IpPacket) -> int:
        """Index of the interface through which to answer: only a link-local peer is bound to one (RFC 4007)."""
        src = packet.src
        if len(src) == 16 and src[0] == 0xFE and src[1] & 0xC0 == 0x80:
            return self.ip.arrival(packet)
        return 0

    def forget(self, connection: Pcb) -> None:
        """`connection` is CLOSED, or a `TimeWait` has taken its place."""
        if self.connections.get(connection.key) is connection:
            del self.connections[connection.key]
        if self.flows and len(connection.key[0]) == 4:
            self.flows.pop(flow_key(connection.key), None)
        self._orphans.pop(connection, None)

    def tie(self, connection: Connection) -> None:
        """SO_BINDTODEVICE was set on a live connection: segments through other interfaces are not for it any more.

        If another connection is there already it stays what it was.
        """
        remote, local, ports = connection.key
        device = connection.options.device
        key = self.demux.tied((remote, local, ports & MASK), device)
        if key not in self.connections and self.connections.get(connection.key) is connection:
            del self.connections[connection.key]
            connection.key = key
            self.connections[key] = connection
            connection.oif = device
            with suppress(NetError):  # no way there through it: as if the link were cut
                self.reroute(connection)

    def unlisten(self, listener: Listener) -> None:
        self.demux.remove_listener(listener)

    def orphaned(self, connection: Pcb) -> bool:
        """Nobody holds `connection` any more. False: there are too many of that kind (Linux tcp_max_orphans)."""
        if len(self._orphans) >= self.config.orphans_max:
            self.drops.count("too-many-orphans")
            return False
        self._orphans[connection] = None
        return True

    def reopen(self, wait: TimeWait, seg: Segment) -> bool:
        """A new SYN for a connection in TIME-WAIT (RFC 6191): to the listener. False if there is none."""
        listener = self.demux.listener(wait.key, self.ip.arrival(seg.packet))
        if listener is None:
            return False
        iss = wait.next_isn
        self.time_waits.remove(wait)
        listener.segment(seg, wait.key, iss=iss)
        return True


_CONNECTABLE: Final = frozenset((1, 2))  # RouteKind.UNICAST and LOCAL
