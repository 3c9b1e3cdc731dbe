"""The protocol control block: the frame that holds the two halves of a connection together.

Theory of operation
-------------------
A connection is three objects: `Sender` and `Receiver` own the two directions, `Pcb` owns what they share (state,
addresses, route, timers, error); `connection.Connection` adds what the user calls. Three things make it move: segments
(`fast` for the common case, `STATES` for the rest), the user's calls, and timers. None of them sends data on the spot.
They change state and `schedule` the flush, which runs once at the end of the turn: data if possible, else as many bare
ACKs as are due, then one `on_event`.

`fast` is Van Jacobson's header prediction: in a connection that is simply transferring data, a segment that is next in
sequence, with nothing but ACK and PSH set and timestamps in order, needs neither ladder nor `Segment`.

`enter(CLOSED)` takes a connection out of the tables, stops its timers and releases its port.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.link.device import GSO_TCPV4, GSO_TCPV6
from stack.scheduler import NS_PER_MS
from stack.tcp.bare import acknowledge
from stack.tcp.closing import send_fin
from stack.tcp.congestion import ALGORITHMS
from stack.tcp.delay import DelayLine
from stack.tcp.ecn import Ecn
from stack.tcp.lone import busy, send_lone
from stack.tcp.mib import Mib
from stack.tcp.mtuprobe import MtuProber
from stack.tcp.options import TcpOptions
from stack.tcp.output import emit, emit_acks
from stack.tcp.receiver import Receiver, window_shift
from stack.tcp.release import leave, rest
from stack.tcp.segmentsize import MSS_DEFAULT_V4, MSS_DEFAULT_V6, MSS_MINIMUM, TIMESTAMPS_LENGTH, resegment
from stack.tcp.sender import Sender
from stack.tcp.seqnum import HALF, MASK
from stack.tcp.signatures import OPTION_LENGTH as SIGNATURE_LENGTH
from stack.tcp.states import STATES, State
from stack.tcp.timers import Timers
from stack.tcp.transitions import MOVES, IllegalTransitionError, TcpState
from stack.tcp.urgent import UrgentByte
from stack.wire.tcp import ACK, RST

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IpPacket
    from stack.ip.ports import BoundPort
    from stack.ip.route import Route
    from stack.ip.template import HeaderTemplate
    from stack.tcp.express import Flow
    from stack.tcp.fastopen import FastOpen
    from stack.tcp.layer import TcpLayer
    from stack.tcp.listener import Listener
    from stack.tcp.segment import Segment
    from stack.tcp.signatures import Keys
    from stack.tcp.urgent import Urgent

OUT_OF_WINDOW_INTERVAL: Final = 500 * NS_PER_MS  # ns between answers to bare segments; Linux tcp_invalid_ratelimit
PLAIN_OFFSET: Final = 0x50  # data offset byte of a header without options
STAMPED_OFFSET: Final = 0x80  # ... and of one with a timestamp option and its padding


class Pcb:
    """The TCB of RFC 9293 section 3.3.1. Lock held by whoever calls; nothing waits."""

    __slots__ = (
        "__weakref__",
        "advmss",
        "bound",
        "came",
        "ecn",
        "error",
        "event",
        "fastopen",
        "flow",
        "gso_type",
        "ip",
        "ip_header",
        "key",
        "ladder",
        "last_heard",
        "layer",
        "listener",
        "local",
        "next_answer",
        "oif",
        "on_event",
        "options",
        "orphan",
        "path_mtu",
        "peer_mss",
        "ports",
        "predicted",
        "pseudo",
        "read_shut",
        "receiver",
        "remote",
        "route",
        "sack",
        "scheduled",
        "scheduler",
        "sender",
        "soft_error",
        "state",
        "template",
        "timers",
        "timestamp_offset",
        "timestamps",
        "urgent",
        "usual",
        "window_scaling",
    )

    def __init__(
        self,
        layer: TcpLayer,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        route: Route,
        options: TcpOptions,
        bound: BoundPort | None,
        iss: int,
        timestamp_offset: int,
        oif: int,
    ) -> None:
        self.flow: Flow | None = None  #: see `express`
        config = layer.config
        six = len(remote[0]) == 16
        self.layer = layer
        self.scheduler = layer.scheduler
        self.ip: IpLayer | DelayLine = layer.ip  #: where segments go
        self.local = local  #: (address, port), address of 4 or 16 bytes
        self.remote = remote
        self.options = options  #: live; call options_changed() after setting a field
        self.bound = bound
        #: (interface index, TTL, TOS) of the handshake's last packet, or of the latest one (`TcpOptions.watching`)
        self.came: tuple[int, int, int] | None = None
        self.oif = oif  #: index of the interface to send through, 0: any
        self.listener: Listener | None = None  #: by Fast Open and in SYN-RECEIVED: whose child this is
        self.on_event: Callable[[], None] | None = None
        self.fastopen: FastOpen | None = None  #: None: not asked for
        self.ecn: Ecn | None = None  #: None: not agreed on
        self.urgent: Urgent | None = None  #: None: no urgent data yet in either direction
        self.error = 0  #: pending errno, 0 for none
        self.soft_error = 0  #: what ICMP said, in case the connection times out
        self.state = TcpState.CLOSED
        self.ladder: State = STATES[TcpState.CLOSED]  #: what segments meet in this state
        #: data offset (as it stands in the header) of segments for which header prediction may be tried; 0: of none
        self.predicted = 0
        self.orphan = False  #: the user has closed
        self.read_shut = False
        self.scheduled = False  #: the flush is deferred to the end of this turn
        self.event = False  #: the flush is to call on_event
        self.usual = False  #: nothing is peculiar, or was when that was last asked: see `conversation.usual`
        self.key = layer.demux.tied((remote[0], local[0], remote[1] << 16 | local[1]), options.device)
        self.ports = local[1] << 16 | remote[1]  #: first word of every header sent
        self.pseudo = layer.pseudo_sum(local[0], remote[0])
        self.ip_header = 40 if six else 20
        self.gso_type = GSO_TCPV6 if six else GSO_TCPV4
        self.route = route
        self.template: HeaderTemplate | None = None  #: what all segments sent on that route begin with; None: not made
        self.path_mtu = route.mtu  #: bytes; lower than the route's after "fragmentation needed"
        self.peer_mss = MSS_DEFAULT_V6 if six else MSS_DEFAULT_V4
        self.advmss = min(max(route.mtu - self.ip_header - 20, MSS_MINIMUM), 65535)
        if options.maxseg:
            self.advmss = min(self.advmss, options.maxseg)
        self.timestamps = config.timestamps and not self.signed  #: wanted; after the handshake: agreed on
        self.window_scaling = config.window_scaling
        self.sack = config.sack  #: the same: selective acknowledgments
        self.timestamp_offset = timestamp_offset
        self.last_heard = layer.scheduler.now  #: ns
        self.next_answer = 0  #: no bare out-of-window segment is answered before, ns
        algorithm = ALGORITHMS[options.congestion or config.congestion]
        congestion = algorithm(self.advmss, config.initial_window)
        self.sender = Sender(self, iss, self.advmss, congestion, options.sndbuf or config.sndbuf)
        receiver = self.receiver = Receiver(self, options.rcvbuf or config.rcvbuf)
        if self.window_scaling:
            receiver.shift = window_shift(options.fixed_rcvbuf or config.rcvbuf_max)
        receiver.resize(receiver.rcvbuf, options.window_clamp)
        if not options.quickack:
            receiver.quick = -1
        receiver.make_room(options.rcvlowat)
        self.sender.rtt.limit(options.rto_min, options.rto_max)
        if options.tx_delay:
            self.ip = DelayLine(layer, options.tx_delay)
        self.timers = Timers(self)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.local[0].hex()}:{self.local[1]} - {self.remote[0].hex()}:{self.remote[1]} "
            f"{self.state.name})"
        )

    @property
    def connected(self) -> bool:
        """The handshake completed and the connection is not CLOSED (or as good as: TIME-WAIT)."""
        return self.state not in (
            TcpState.CLOSED,
            TcpState.SYN_SENT,
            TcpState.SYN_RECEIVED,
            TcpState.TIME_WAIT,
        )

    # --- moving --------------------------------------------------------------------------------------------------

    def enter(self, state: TcpState) -> None:
        """The one place where the state changes."""
        if state not in MOVES[self.state]:
            raise IllegalTransitionError(f"{self.state.name} to {state.name}")
        self.state = state
        self.ladder = STATES[state]
        self.predict()
        self.event = True
        if state is TcpState.CLOSED:
            leave(self)
        elif state is TcpState.ESTABLISHED:
            self.listener = None
            if self.layer.config.mtu_probing > 1:
                self.sender.prober = MtuProber(self.sender)
            resegment(self)
            if self.options.keepalive:
                self.timers.watch()
            if self.sender.fin_queued:
                self.enter(TcpState.FIN_WAIT_1)
        elif state is TcpState.TIME_WAIT:
            rest(self)
        elif state is TcpState.FIN_WAIT_2 and self.orphan:
            if self.options.fin_timeout < 0:
                self.abort()
                return
            self.timers.watch()
        self.schedule()

    def predict(self) -> None:
        """Decide anew whether header prediction may be tried."""
        if (
            self.state not in _FAST_STATES
            or self.orphan
            or (self.read_shut and self.state is TcpState.FIN_WAIT_2)
            or (self.urgent is not None and self.urgent.state is UrgentByte.AWAITED)
            or self.options.min_ttl
            or self.options.watching
        ):
            self.predicted = 0
        else:
            self.predicted = STAMPED_OFFSET if self.timestamps else PLAIN_OFFSET

    def fail(self, error: int) -> None:
        """The connection ends with `error`, without a word to the peer."""
        self.error = error
        self.enter(TcpState.CLOSED)

    def abort_with(self, error: int) -> None:
        """As `fail`, after a RST where RFC 9293 section 3.10.5 asks for one."""
        state = self.state
        if state is TcpState.CLOSED:
            return
        if state not in (TcpState.SYN_SENT, TcpState.TIME_WAIT, TcpState.CLOSING, TcpState.LAST_ACK):
            emit(self, self.sender.bare_seq, RST | ACK)
        self.error = error
        self.enter(TcpState.CLOSED)

    def abort(self) -> None:
        """ABORT (RFC 9293 section 3.10.5): RST where the state calls for one, and CLOSED."""
        self.abort_with(0)

    def schedule(self) -> None:
        """See to it that the flush runs at the end of this turn."""
        self.usual = False
        if not self.scheduled:
            self.scheduled = True
            self.scheduler.defer(self.flush)

    def flush(self) -> None:
        """Send what is due and tell the user: once per turn."""
        self.scheduled = False
        sent = False
        receiver = self.receiver
        if self.sack and receiver.acks_owed and (receiver.reassembly.length or receiver.dsack):
            # What is out of order or came twice is said by bare ACKs, which have room for it.
            emit_acks(self, self.sender.bare_seq, receiver.acks_owed)
        sender = self.sender
        if self.ladder.sends and busy(sender):
            sent = send_lone(sender) or send_fin(sender) or sender.output()
            if sent and self.options.notsent_lowat:
                self.event = True  # less waits to be sent: perhaps more is taken now
        if not sent and self.state is not TcpState.CLOSED:
            count = receiver.ack_due()
            if count:
                acknowledge(self, count)
        if self.event:
            self.event = False
            self.last_heard = self.scheduler.now
            self.layer.ip.confirm(self.route)
            if self.on_event is not None:
                self.on_event()

    def notify(self) -> None:
        if self.on_event is not None:
            self.on_event()

    # --- segments in ---------------------------------------------------------------------------------------------

    def segment(self, seg: Segment) -> None:
        """A segment for this connection, by the ladder of its state."""
        self.usual = False
        options = self.options
        if options.min_ttl and seg.packet.ttl < options.min_ttl:
            self.layer.mib.count(Mib.MIN_TTL_DROP)
            return
        if options.watching:
            self.watch(seg.packet)
        self.ladder.segment(self, seg)

    def watch(self, packet: IpPacket) -> None:
        """Remember what a packet can tell besides its segment."""
        self.came = self.layer.ip.arrival(packet), packet.ttl, packet.tos

    def fast(
        self, data: memoryview, size: int, seq: int, ack: int, window: int, value: int, echo: int, gso_size: int
    ) -> bool:
        """Header prediction for a segment with ACK (and PSH) set and, if agreed on, a timestamp option. False: take the
        ladder.

        `data` ends with the `size` bytes of payload; `seq` and `ack` are wire values; `value` and `echo` those of the
        timestamp option, if there is one.
        """
        receiver = self.receiver
        nxt = receiver.rcv_nxt
        if seq != nxt & MASK or receiver.reassembly.length:
            return False
        stamped = self.timestamps
        if stamped and (value - receiver.ts_recent) & MASK >= HALF:
            return False
        sender = self.sender
        una = sender.snd_una
        acked = (ack - una) & MASK
        if size and (size > receiver.rcv_adv - nxt or receiver.fin_seq is not None):
            return False
        if acked:
            if acked > sender.snd_max - una:
                return False
            sender.acknowledge(una + acked, echo if stamped else None)
        elif not size:
            return False  # duplicate ACKs, window updates, answers to probes
        if stamped and nxt <= receiver.last_ack_sent:
            # RFC 7323 section 4.3 (2)
            receiver.ts_recent = value
            receiver.ts_recent_at = self.scheduler.now
        if window != sender.raw_window:
            sender.update_window(window, nxt, una + acked)
        if size:
            receiver.accept(data[-size:], size, gso_size)
        else:
            receiver.segments += 1
        self.soft_error = 0
        self.usual = False
        self.event = True
        if not self.scheduled:
            self.scheduled = True
            self.scheduler.defer(self.flush)
        return True

    def heard(self) -> None:
        """The peer is alive."""
        self.last_heard = self.scheduler.now
        self.soft_error = 0

    def challenge(self) -> None:
        """A challenge ACK (RFC 5961), if the layer has not sent too many this second (section 7)."""
        if self.layer.may_challenge():
            self.answer()

    def may_answer(self, seg: Segment) -> bool:
        """Whether an out-of-window segment is answered: bare ones at most twice a second, against ACK loops."""
        if seg.payload and not seg.is_bare_syn:
            return True
        now = self.scheduler.now
        if now < self.next_answer:
            self.layer.drops.count("out-of-window")
            return False
        self.next_answer = now + OUT_OF_WINDOW_INTERVAL
        return True

    def answer(self) -> None:
        """An ACK for a segment that is not taken."""
        self.receiver.owe_ack()
        self.schedule()

    # --- segments out --------------------------------------------------------------------------------------------

    def timestamp(self) -> int:
        """TSval now: milliseconds (RFC 7323 section 5.4) from an offset of this connection's own."""
        return (self.scheduler.now // NS_PER_MS + self.timestamp_offset) & MASK

    def send_probe(self) -> None:
        """A segment the peer must answer: one sequence number before its window (RFC 9293 section 3.8.4)."""
        una = self.sender.snd_una
        if self.urgent is not None and self.urgent.worth_probing(una):
            emit(self, una, ACK)
        emit(self, una - 1, ACK)

    def doubt_path(self) -> None:
        """R1 of RFC 9293 section 3.8.3: nothing gets through. Too long for the path? Is there another way?"""
        sender = self.sender
        if sender.prober is not None:
            sender.prober.black_hole()
        elif self.layer.config.mtu_probing:
            sender.prober = MtuProber(sender)
        try:
            self.layer.reroute(self)
        except NetError as failure:
            self.soft_error = failure.errno

    @property
    def signing(self) -> Keys | None:
        """TCP_MD5SIG."""
        return self.options.keys

    @property
    def signed(self) -> bool:
        """Whether there is a key for the peer."""
        keys = self.options.keys
        return keys is not None and keys.find(self.remote[0]) is not None

    @property
    def overhead(self) -> int:
        """Bytes of each packet that are headers."""
        length = self.ip_header + (20 + TIMESTAMPS_LENGTH if self.timestamps else 20)
        if self.options.keys is not None and self.signed:
            length += SIGNATURE_LENGTH
        return length + len(self.ip_options)

    @property
    def ip_options(self) -> bytes:
        """IP_OPTIONS, which IPv6 has not."""
        return self.options.ip_options if self.ip_header == 20 else b""


_FAST_STATES: Final = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.FIN_WAIT_2)
