"""A half-open connection in a listener's SYN queue: what the SYN said, and no more.

A request answers by itself what may come in SYN-RECEIVED after LISTEN (RFC 9293 section 3.10.7.4, as RFC 5961 has it):
the SYN again, resets, an ACK that is wrong. The ACK that is right makes the `Connection` and is given to it. Sequence
numbers here are those of the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, NetError
from stack.ip.source_route import answer_options
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp.connection import Connection
from stack.tcp.discovery import dont_fragment
from stack.tcp.ecn import OFF, agreed
from stack.tcp.handshake import peer_syn
from stack.tcp.mib import Mib
from stack.tcp.minisock import Minisock, send_single
from stack.tcp.receiver import window_shift
from stack.tcp.segmentsize import MSS_MINIMUM
from stack.tcp.seqnum import HALF, MASK, older
from stack.tcp.transitions import TcpState
from stack.wire.ipoptions import first_hop
from stack.wire.tcp import ACK, ECE, RST, SYN, HeaderOptions

if TYPE_CHECKING:
    from stack.ip.packet import IcmpError
    from stack.ip.route import Route
    from stack.tcp.demux import Key
    from stack.tcp.listener import Listener
    from stack.tcp.opening import Opening
    from stack.tcp.segment import Segment
    from stack.tcp.signatures import Keys

MAX_FIELD: Final = 65535
TIMEOUT_INITIAL: Final = NS_PER_S  # ns before the SYN|ACK goes again; Linux TCP_TIMEOUT_INIT
TIMEOUT_MAX: Final = 120 * NS_PER_S  # ns; Linux TCP_RTO_MAX


class Request(Minisock):
    """Made for a SYN; in the SYN queue unless it only carries a cookie's answer out."""

    __slots__ = (
        "acked",
        "ecn",
        "fastopen",
        "first_stamp",
        "ip_options",
        "irs",
        "iss",
        "last_stamp",
        "level",
        "listener",
        "mss",
        "opening",
        "retransmitted",
        "sack",
        "scale",
        "sent_at",
        "shift",
        "stamped",
        "syn",
        "timestamp_offset",
        "ts_recent",
        "window",
    )

    def __init__(self, listener: Listener, key: Key, seg: Segment, oif: int) -> None:
        layer = listener.layer
        super().__init__(layer, key, oif)
        config = layer.config
        options = seg.options
        given = listener.options
        self.listener = listener
        self.irs = seg.seq  #: the peer's initial sequence number
        self.iss = 0  #: ours
        self.timestamp_offset = 0
        self.mss = options.mss  #: the peer's, None if it said none
        self.scale = options.window_scale if config.window_scaling else None  #: the peer's, None: no scaling
        self.sack = config.sack and options.sack_permitted
        self.stamped = config.timestamps and options.timestamps is not None
        if given.keys is not None and given.keys.find(key[0]) is not None:
            self.stamped = False
        self.ts_recent = options.timestamps[0] if self.stamped and options.timestamps is not None else 0
        self.ecn = agreed(seg, config.ecn)
        #: As Linux: what the SYN asked to be recorded goes back and forth, and its source route back.
        self.ip_options = answer_options(layer.ip, seg.packet)
        self.syn = _headers(seg, link=given.save_syn > 1) if given.save_syn else b""
        self.fastopen: bytes | None = None  #: cookie to be told with the SYN|ACK
        rcvbuf = given.rcvbuf or config.rcvbuf
        self.shift = 0 if self.scale is None else window_shift(given.fixed_rcvbuf or config.rcvbuf_max)
        self.window = min(rcvbuf, given.window_clamp or rcvbuf, MAX_FIELD)  #: as said in the SYN|ACK
        self.level = 0  #: time-outs so far
        self.retransmitted = 0  #: SYN|ACKs sent again
        self.acked = False  #: a good ACK came, but there was no room or it was deferred
        self.sent_at = layer.scheduler.now  #: ns
        self.opening: Opening | None = None  #: a short way for the ACK that ends the handshake
        self.first_stamp = self.last_stamp = 0  #: TSval of the first and of the last SYN|ACK

    def __repr__(self) -> str:
        return f"Request({self.remote[0].hex()}:{self.remote[1]} to {self.local[0].hex()}:{self.local[1]})"

    @property
    def signing(self) -> Keys | None:
        """TCP_MD5SIG."""
        return self.listener.options.keys

    @property
    def timeout(self) -> int:
        """ns from the last SYN|ACK until the next; doubles each time."""
        return min(TIMEOUT_INITIAL << self.level, TIMEOUT_MAX)

    # --- out -----------------------------------------------------------------------------------------------------

    def send_syn_ack(self, clock: int | None = None) -> bool:
        """SYN|ACK. `clock` instead of the time, for the timestamp. False: no way there."""
        given = self.listener.options
        layer = self.layer
        try:
            hop = first_hop(self.ip_options) or self.key[0]
            mtu = layer.ip.route(hop, src=self.key[1], oif=self.oif, mark=given.mark).mtu
        except NetError:
            layer.drops.count(DropReason.NO_ROUTE)
            return False
        mss = min(max(mtu - (60 if len(self.key[0]) == 16 else 40), MSS_MINIMUM), MAX_FIELD)
        options = HeaderOptions(mss=min(mss, given.maxseg) if given.maxseg else mss)
        if self.scale is not None:
            options.window_scale = self.shift
        if self.stamped:
            if clock is None:
                clock = layer.scheduler.now // NS_PER_MS
            self.last_stamp = (clock + self.timestamp_offset) & MASK
            if not self.retransmitted:
                self.first_stamp = self.last_stamp
            options.timestamps = (self.last_stamp, self.ts_recent)
        options.sack_permitted = self.sack
        options.fastopen = self.fastopen
        flags = SYN | ACK | (ECE if self.ecn else 0)
        return self._send(self.iss, flags, self.window, options)

    def send_again(self) -> bool:
        """SYN|ACK once more."""
        self.retransmitted += 1
        self.layer.stats.retransmitted += 1
        self.layer.mib.count(Mib.SYN_RETRANS)
        return self.send_syn_ack()

    def _send_ack(self) -> None:
        options = None
        if self.stamped:
            stamp = (self.layer.scheduler.now // NS_PER_MS + self.timestamp_offset) & MASK
            options = HeaderOptions(timestamps=(stamp, self.ts_recent))
        self._send(self.iss + 1, ACK, self.window >> self.shift, options)

    def _send(self, seq: int, flags: int, window: int, options: HeaderOptions | None) -> bool:
        given = self.listener.options
        ttl, tos, _, _ = given.towards(self.key[0])
        return send_single(
            self.layer,
            self.key,
            self.oif,
            seq,
            self.irs + 1,
            flags,
            window,
            options,
            ttl=ttl,
            tos=tos,
            whole=not flags & SYN or dont_fragment(given, self.key[0]),
            ip_options=self.ip_options,
        )

    # --- in ------------------------------------------------------------------------------------------------------

    def segment(self, seg: Segment) -> None:
        layer = self.layer
        flags = seg.flags
        stamps = seg.options.timestamps if self.stamped else None
        old = stamps is not None and not flags & RST and older(stamps[0], self.ts_recent)
        if seg.is_bare_syn and seg.seq == self.irs and not old:
            # Our SYN|ACK was lost. Data on it, if any, is not looked at: the peer sends it again.
            if self.may_answer(seg, Mib.ACK_SKIPPED_SYN_RECV) and self.send_again():
                layer.syn_queue.restart(self)
            return
        if flags & ACK and seg.ack != (self.iss + 1) & MASK:
            layer.refuse(seg)  # unless it is a reset
            return
        if self.stamped and stamps is None and not flags & RST:
            layer.drops.count("no-timestamp")
            return
        ahead = ((seg.seq - self.irs - 1 + HALF) & MASK) - HALF
        echo = stamps[1] if stamps is not None and not flags & RST else 0
        strange = echo and (echo - self.first_stamp) & MASK > (self.last_stamp - self.first_stamp) & MASK
        if old or strange or not self._in_window(ahead, seg.length):
            if old:
                layer.mib.count(Mib.PAWS_ESTAB)
                layer.drops.count("paws")
            elif strange:
                layer.mib.count(Mib.TSECR_REJECTED)
            if not flags & RST and self.may_answer(seg, Mib.ACK_SKIPPED_SYN_RECV):
                self._send_ack()
            return
        if flags & (RST | SYN):
            # RFC 5961 section 3.2 and 4.2; an exact reset returns to LISTEN.
            if flags & RST and not ahead:
                layer.mib.count(Mib.EMBRYONIC_RSTS)
                layer.syn_queue.fail(self)
            elif layer.may_challenge():
                self._send_ack()
            return
        if flags & ACK:
            if stamps is not None and ahead <= 0:
                self.ts_recent = stamps[0]
            self.listener.completed(self, seg)

    def _in_window(self, ahead: int, length: int) -> bool:
        """RFC 9293 section 3.10.7.4, first, for a segment that begins `ahead` of RCV.NXT."""
        window = self.window
        return ahead == 0 or (ahead + length > 0 and ahead < window) or (ahead == window and not length)

    def reset(self) -> None:
        """End it, and tell the peer (RFC 9293 section 3.10.5)."""
        self._send(self.iss + 1, RST | ACK, 0, None)
        self.layer.stats.resets_sent += 1
        self.layer.syn_queue.fail(self)

    def icmp_error(self, error: IcmpError, seq: int) -> None:
        """As Linux: what says that the peer cannot be reached ends the attempt."""
        if seq != self.iss:
            self.layer.drops.count("icmp-out-of-window")
            self.layer.mib.count(Mib.OUT_OF_WINDOW_ICMPS)
        elif not error.mtu:
            self.layer.mib.count(Mib.LISTEN_DROPS)
            self.layer.syn_queue.fail(self)

    # --- the connection ------------------------------------------------------------------------------------------

    def connection(self) -> Connection | None:
        """The connection in SYN-RECEIVED, as if it had taken the SYN itself. None if there is no way to the peer."""
        layer = self.layer
        try:
            hop = first_hop(self.ip_options) or self.key[0]
            route = layer.ip.route(hop, src=self.key[1], oif=self.oif, mark=self.listener.options.mark)
        except NetError:
            layer.drops.count(DropReason.NO_ROUTE)
            return None
        connection = self.prepared(route)
        connection.bound = self.listener.bound.retain()
        layer.connections[self.key] = connection
        layer.stats.passive_opens += 1
        connection.enter(TcpState.SYN_RECEIVED)
        return connection

    def prepared(self, route: Route) -> Connection:
        """The same, but it is in no table, has no port, and is CLOSED as far as it knows."""
        layer = self.layer
        options = self.listener.options.copy()
        options.ttl, options.tos, options.min_ttl, options.report_errors = options.towards(self.key[0])
        options.defer_accept = 0  # not inherited, row TCP-16
        options.saved_syn = self.syn
        options.ip_options = self.ip_options
        options.device = self.oif
        connection = Connection(
            layer,
            self.local,
            self.remote,
            route,
            options,
            None,
            self.iss,
            self.timestamp_offset,
            self.oif,
        )
        said = HeaderOptions(self.mss, self.scale, self.sack, (self.ts_recent, 0) if self.stamped else None)
        peer_syn(connection, self.irs, said, ecn=self.ecn and layer.config.ecn != OFF)
        sender, receiver = connection.sender, connection.receiver
        sender.syn_sent()
        sender.progress_at = self.sent_at
        sender.retries = self.retransmitted
        receiver.rcv_adv = max(receiver.rcv_adv, receiver.rcv_nxt + self.window)
        return connection


def _headers(seg: Segment, *, link: bool) -> bytes:
    """The IP and TCP headers of a SYN as it came, behind the link's if asked for (TCP_SAVED_SYN)."""
    packet = seg.packet
    segment = packet.payload
    headers = bytes(packet.header) + bytes(segment[: segment[12] >> 4 << 2])
    return bytes(packet.frame[: packet.start]) + headers if link else headers
