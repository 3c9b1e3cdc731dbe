"""The sending half of a connection: send queue, window, what is in flight, when it is sent again.

Theory of operation
-------------------
The user's writes and the peer's ACKs only change what `output` will find; it runs once per turn, from the connection's
flush. It cuts the queue into superframes: as many full segments as queue, peer's window, congestion window and the
link's largest superframe allow, handed down as one header and views of the queue with ``gso_size`` = MSS. Only the
last piece may be shorter than a multiple of the MSS, and only if Nagle's algorithm lets it (with Minshall's variant:
a short segment waits only for an earlier *short* segment, so that bulk writes end without a delay).

``flights`` remembers (end, time) of what was sent at once, for round-trip times: as in Linux's tcp_clean_rtx_queue,
the acknowledgment of a part of it is a sample. SND.NXT goes back after a time-out (the peer may have dropped
everything), SND.MAX never does. Bytes below ``karn`` were sent more than once, and give no RTT sample except by
timestamp.

One timer serves all that can be waited for: the RTO while something is in flight; otherwise, with data that may not be
sent, zero-window probing (RFC 9293 section 3.8.6.1), which is also the ceiling on how long corked data stays.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_MS
from stack.tcp.acktrain import take_last
from stack.tcp.buffers import SendQueue
from stack.tcp.congestion import Bbr, CongestionControl
from stack.tcp.limits import NEVER_LIMITED, Limit, account
from stack.tcp.output import emit_burst
from stack.tcp.pacing import Pacer, sent_paced, set_pace
from stack.tcp.plan import fit, whole
from stack.tcp.recovery import LossRecovery, RecoveryPhase
from stack.tcp.rtt import RTO_MIN, RttEstimator
from stack.tcp.sack_recovery import SackRecovery
from stack.tcp.seqnum import MASK
from stack.tcp.volley import crowded, send_volley
from stack.wire.tcp import ACK, FIN, PSH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import RxFrame
    from stack.tcp.mtuprobe import MtuProber
    from stack.tcp.pcb import Pcb
    from stack.tcp.sendmarks import SendMarks

CORK_CEILING: Final = 200 * NS_PER_MS  # ns; tcp(7), TCP_CORK
THIN_SEGMENTS: Final = 4  # in flight; a stream with fewer is thin (Linux tcp_stream_is_thin)
THIN_RETRIES: Final = 6  # Linux TCP_THIN_LINEAR_RETRIES


class Sender:
    __slots__ = (
        "backoff",
        "busy_at",
        "busy_time",
        "bytes_acked",
        "bytes_resent",
        "clogged",
        "congestion",
        "connection",
        "cwnd_limited",
        "data_segments",
        "fin_queued",
        "flights",
        "iss",
        "karn",
        "last_sent",
        "limit_at",
        "limited",
        "limited_times",
        "marks",
        "max_window",
        "model",
        "more",
        "mss",
        "pacer",
        "prober",
        "progress_at",
        "push",
        "queue",
        "raw_window",
        "recovery",
        "retransmitted",
        "retries",
        "rto_recoveries",
        "rto_time",
        "rtos",
        "rtt",
        "segments",
        "shift",
        "small_end",
        "snd_max",
        "snd_nxt",
        "snd_una",
        "snd_wl1",
        "snd_wl2",
        "snd_wnd",
        "sndbuf",
        "stalled_at",
        "starved",
        "superframe",
        "tail_probe",
    )

    def __init__(self, connection: Pcb, iss: int, mss: int, congestion: CongestionControl, sndbuf: int) -> None:
        self.connection = connection
        self.iss = iss  #: initial send sequence number
        self.snd_una = iss  #: SND.UNA
        self.snd_nxt = iss  #: SND.NXT
        self.snd_max = iss  #: one past the highest sequence number ever sent
        self.snd_wnd = 0  #: SND.WND, bytes
        self.snd_wl1 = 0  #: SEG.SEQ of the last window update
        self.snd_wl2 = 0  #: SEG.ACK of it
        self.raw_window = 0  #: its window field as it was on the wire
        self.max_window = 0  #: largest SND.WND seen (Max(SND.WND) of RFC 9293 section 3.8.6.2.1)
        self.shift = 0  #: Snd.Wind.Shift, the peer's
        self.mss = mss  #: payload of a full-sized segment
        self.superframe = mss  #: payload of the largest superframe, a multiple of mss
        self.queue = SendQueue(iss + 1)
        self.sndbuf = sndbuf
        self.prober: MtuProber | None = None  #: searches the path MTU; None: does not
        self.fin_queued = False  #: FIN goes out behind the last byte of the queue
        self.push = False  #: send what is there whatever Nagle and cork say, once
        self.more = False  #: the last write said MSG_MORE
        self.small_end = iss  #: end of the last short segment sent (Minshall)
        self.flights: deque[tuple[int, int]] = deque()  #: (end, sent at ns), oldest first, each from the end before it
        self.karn = iss  #: end of the highest range ever retransmitted
        self.rtt = RttEstimator()
        self.model: Bbr | None = None  #: `congestion`, if that wants to see every turn
        self.pacer: Pacer | None = None
        self.use(congestion)
        self.recovery: LossRecovery | SackRecovery = LossRecovery(self)
        self.tail_probe = False  #: the timer is set for a tail-loss probe, not for the RTO
        self.cwnd_limited = False  #: the congestion window held the last output back
        self.clogged = False  #: the card was full; an acknowledgment of what it took will say that it has room
        self.backoff = 0  #: doublings of the timer
        self.retries = 0  #: expiries in a row without news from the peer
        self.progress_at = 0  #: when the oldest unacknowledged byte began to wait, ns
        self.stalled_at = 0  #: when `backoff` left 0: the first retransmission or window probe without success, ns
        self.last_sent = 0  #: ns
        self.bytes_acked = 0
        self.retransmitted = 0  #: segments, all in all
        self.bytes_resent = 0
        self.segments = 0  #: segments sent, as the wire counts them
        self.data_segments = 0  #: those with payload
        self.rtos = 0  #: retransmission time-outs, all in all
        self.rto_recoveries = 0  #: ... in how many spells
        self.rto_time = 0  #: ... how long the spells took that are over, ns
        self.busy_at = 0  #: since when there has been data outstanding, ns; 0: there is none
        self.busy_time = 0  #: ns, without the present spell
        self.starved = False  #: the user was refused room in the send buffer since it was last empty of unsent data
        self.limited = Limit.NOTHING  #: what keeps data from leaving, besides cwnd
        self.limit_at = 0  #: since when, ns
        self.limited_times = NEVER_LIMITED  #: ns of past spells, by Limit
        self.marks: SendMarks | None = None  #: who wants to be told of which bytes; None: nobody

    @property
    def flight(self) -> int:
        """FlightSize: sequence numbers sent and not acknowledged."""
        return self.snd_nxt - self.snd_una

    @property
    def bare_seq(self) -> int:
        """Sequence number for a segment without data: the highest one the peer will find acceptable.

        Not SND.NXT: after a time-out that is behind what the peer may have received, and a bare ACK with an old
        sequence number is dropped before its acknowledgment is looked at. Two ends in that situation would never
        hear each other again.
        """
        edge = self.snd_una + self.snd_wnd
        return min(self.snd_max, edge) if edge > self.snd_una else self.snd_max

    @property
    def writable(self) -> int:
        return max(0, self.sndbuf - (self.queue.end - self.queue.start))

    @property
    def unsent(self) -> int:
        """Bytes in the queue that were never sent."""
        return max(0, self.queue.end - self.snd_max)

    @property
    def fin_sent(self) -> bool:
        return self.snd_max > self.queue.end

    @property
    def fin_acked(self) -> bool:
        return self.snd_una > self.queue.end

    def syn_sent(self) -> None:
        """SND.NXT passes the SYN."""
        self.snd_nxt = self.snd_max = self.iss + 1
        self.progress_at = self.connection.scheduler.now

    def handshake_done(self, window: int, *, shift: int) -> None:
        """A segment acknowledges our SYN; `window` is its field, to be shifted by so much."""
        connection = self.connection
        now = connection.scheduler.now
        if self.retries == 0:
            if self.progress_at:  # not after a SYN cookie
                self.rtt.sample(now - self.progress_at)
        else:
            self.rtt.syn_was_lost()
            if self.retries > 1:
                # RFC 6928 section 2 leaves this to the sender; as Linux: one loss may be chance, two are congestion.
                self.congestion.cwnd = self.mss
        self.snd_una = self.iss + 1
        self.retries = self.backoff = 0
        self.progress_at = now
        connection.timers.retransmit.deadline = None
        self.raw_window = window
        self.snd_wnd = self.max_window = window << shift
        self.snd_wl1 = connection.receiver.rcv_nxt - 1
        self.snd_wl2 = self.snd_una

    def set_mss(self, mss: int, superframe: int) -> None:
        """A full-sized segment carries `mss` bytes, a superframe up to `superframe`."""
        self.mss = mss
        self.superframe = max(superframe // mss, 1) * mss
        self.congestion.set_mss(mss)

    def use(self, congestion: CongestionControl) -> None:
        """From now on cwnd is `congestion`'s."""
        self.congestion = congestion
        self.model = self.pacer = None
        connection = self.connection
        if isinstance(congestion, Bbr):
            self.model = congestion
            self.pacer = Pacer(connection.scheduler, connection.schedule, congestion.pacing_rate(0))
        elif connection.options.max_pacing_rate:
            self.pace(connection.options.max_pacing_rate)

    def pace(self, most: int) -> None:
        """SO_MAX_PACING_RATE: at most so many bytes per second; 0: as the algorithm says."""
        connection = self.connection
        if most and self.pacer is None:
            self.pacer = Pacer(connection.scheduler, connection.schedule, most)
        elif not most and self.model is None:
            self.pacer = None

    def use_sack(self) -> None:
        """The handshake agreed on selective acknowledgments."""
        self.recovery = SackRecovery(self)
        self.tail_probe = True

    # --- what the peer says -------------------------------------------------------------------------------------

    def acknowledge(self, ack: int, echo: int | None) -> None:
        """SND.UNA < `ack` <= SND.MAX. `echo`: TSecr of the segment, None without timestamps."""
        connection = self.connection
        now = connection.scheduler.now
        una = self.snd_una
        acked = ack - una
        sent_at = 0
        flights = self.flights
        edge = una
        while edge < ack and flights:
            edge, sent_at = flights[0]
            if edge <= ack:
                flights.popleft()
        if una >= self.karn:
            if sent_at:
                self.rtt.sample(now - sent_at)
        elif echo:
            # RFC 7323 section 4.1: the echo tells which transmission was meant. In milliseconds, though.
            age = (connection.timestamp() - echo) & MASK
            if age < 0x7FFFFFFF // 2:
                self.rtt.sample(age * NS_PER_MS)
        if self.marks is not None:
            self.marks.acknowledged(ack)
        self.snd_una = ack
        self.clogged = False
        if self.snd_nxt < ack:
            self.snd_nxt = ack
        queue = self.queue
        queue.release(min(ack, queue.end))
        self.bytes_acked += acked
        if self.backoff:
            if self.retries:
                self.rto_time += now - self.stalled_at
            self.retries = self.backoff = 0
        self.progress_at = now
        recovery = self.recovery
        congestion = self.congestion
        recovering = False
        if recovery.engaged:
            recovering = recovery.phase == RecoveryPhase.RECOVERY
            acked = recovery.on_ack(acked, echo)
        if self.cwnd_limited and not recovering:
            congestion.on_ack(acked, now, self.rtt)
            want = 2 * congestion.cwnd
            if want > self.sndbuf and not connection.options.fixed_sndbuf:
                self.sndbuf = min(want, connection.layer.config.sndbuf_max)
        # RFC 6298 section 5: (5.2) all acknowledged: off; (5.3) something new acknowledged: restart.
        timer = connection.timers.retransmit
        if ack >= self.snd_max:
            timer.deadline = None
            if queue.end <= ack and self.busy_at:
                self.busy_time += now - self.busy_at
                self.busy_at = 0
                self.starved = False
        else:
            timer.arm(now + (self.rtt.pto if self.tail_probe else self.rtt.rto))

    def follow(self, burst: Sequence[RxFrame], at: int) -> int:
        """`stack.iface.hooks.Taker`: for the acknowledgments that continue one which header prediction took."""
        return take_last(self, burst, at)

    def update_window(self, window: int, seq: int, ack: int) -> bool:
        """RFC 9293 section 3.10.7.4, fifth step: SND.WND from the field `window`. True if it changed."""
        if self.snd_wl1 < seq or (self.snd_wl1 == seq and self.snd_wl2 <= ack):
            self.snd_wl1 = seq
            self.snd_wl2 = ack
            self.raw_window = window
            window <<= self.shift
            if window != self.snd_wnd:
                self.snd_wnd = window
                if window > self.max_window:
                    self.max_window = window
                return True
        return False

    # --- what is sent -------------------------------------------------------------------------------------------

    def output(self) -> bool:
        """Send what may be sent now. True if any segment left (it carried the acknowledgment)."""
        connection = self.connection
        now = connection.scheduler.now
        sent = False
        recovery = self.recovery
        self.cwnd_limited = False
        pacer = self.pacer
        if pacer is not None:
            set_pace(self, pacer, now)
        if recovery.engaged:
            sent = recovery.transmit(now)
        prober = self.prober
        if prober is not None and prober.turn(now):
            return sent
        queue = self.queue
        una = self.snd_una
        nxt = self.snd_nxt
        idle = self.snd_max == una
        if idle and nxt < queue.end and now - self.last_sent > self.rtt.rto:
            self.congestion.on_idle()
        window_end = una + self.snd_wnd
        cwnd_end = una + self.congestion.cwnd + recovery.extra
        unpaced_end = cwnd_end
        if pacer is not None and queue.end > nxt:
            cwnd_end = min(cwnd_end, nxt + pacer.budget(now, self.mss, self.superframe))
        plan: list[tuple[int, int, int]] = []
        flights = self.flights
        small_end = self.small_end
        unsent = queue.end - nxt
        superframe = self.superframe
        held = nxt > una and (self.clogged or (unsent >= superframe and crowded(connection)))
        if unsent > superframe and not held:
            plan = whole(self, nxt, unsent, min(window_end, cwnd_end) - nxt, now)
        run = len(plan)
        nxt += run * superframe
        while not held and (unsent := queue.end - nxt) > 0:
            size = fit(self, nxt, unsent, window_end, cwnd_end)
            if not size:
                break
            flags = ACK
            end = nxt + size
            if size == unsent:
                flags = ACK | PSH
                if self.fin_queued:
                    flags = ACK | PSH | FIN
                    end += 1
            plan.append((nxt, size, flags))
            flights.append((end, now))
            nxt = end
        if unsent == 0 and self.fin_queued:
            plan.append((nxt, 0, ACK | FIN))
            nxt += 1
            flights.append((nxt, now))
        if plan:
            if pacer is not None:
                sent_paced(self, pacer, plan[0][0], nxt, min(unpaced_end, window_end), now)
            self._depart(plan, run, now, idle, small_end)
            nxt = self.snd_nxt
            unsent = max(0, queue.end - nxt)
            sent = True
        if connection.timers.retransmit.deadline is None:
            self.arm(now)
        if unsent or self.starved or self.limited:
            account(self, nxt, unsent, window_end, unpaced_end, now)
        return sent

    def _depart(self, plan: list[tuple[int, int, int]], run: int, now: int, idle: bool, small_end: int) -> None:
        """Send `plan`, or as much of it as a card takes that takes volleys; it begins with so many superframes (`run`).
        `small_end` is what it was before.
        """
        start, count, fresh_from = plan[0][0], len(plan), self.snd_max
        rest = send_volley(self.connection, plan, run) if run and count > 1 and self.pacer is None else plan
        flights = self.flights
        if len(plan) < count:  # the card is full
            while flights and flights[-1][0] > start:
                flights.pop()
            flights.append((plan[-1][0] + plan[-1][1], now))
            self.small_end = small_end
            self.cwnd_limited = False
            self.clogged = True
        self.leaving(start, flights[-1][0], now, idle)
        if rest:
            emit_burst(self.connection, rest, start >= fresh_from)

    def leaving(self, start: int, end: int, now: int, idle: bool) -> None:
        """[start, end) is about to leave; `idle`: nothing was in flight."""
        if start < self.snd_max:
            self.sent_again(start, min(end, self.snd_max))
        self.snd_nxt = end
        if end > self.snd_max:
            self.snd_max = end
        if idle:
            self.progress_at = now
            self.busy_at = self.busy_at or now
            self.connection.timers.retransmit.deadline = None  # it was waiting for a window or a cork
        self.last_sent = now
        self.push = False
        if self.recovery.engaged:
            self.recovery.on_sent(now)

    def sent_again(self, start: int, end: int) -> None:
        """[start, end) leaves not for the first time."""
        if end > self.karn:
            self.karn = end
        self.bytes_resent += end - start
        segments = max(1, -(-(end - start) // self.mss))
        self.retransmitted += segments
        self.connection.layer.stats.retransmitted += segments

    def arm(self, now: int) -> None:
        """Something in flight: RTO. Something that may not be sent: probe the window, or uncork in the end."""
        timer = self.connection.timers.retransmit
        if self.snd_una < self.snd_max:
            delay = self.rtt.pto if self.tail_probe else self.rtt.backed_off(self.doublings)
            timer.arm(now + self._bounded(delay, now))
        elif self.queue.end > self.snd_nxt:
            if self.snd_wnd >= self.mss or self.snd_wnd >= self.queue.end - self.snd_nxt:
                timer.arm(now + CORK_CEILING)
            else:
                timer.arm(now + self._bounded(max(self.rtt.backed_off(self.backoff), RTO_MIN), now))

    def _bounded(self, delay: int, now: int) -> int:
        """`delay`, but not past the end of the user's patience, which counts from the first failure (as Linux)."""
        patience = self.connection.options.user_timeout
        if patience and self.backoff:
            left = self.stalled_at + patience - now
            if left < delay:
                return max(left, 1)
        return delay

    def rearm(self, now: int) -> None:
        """Back to the RTO, after the timer stood for something else."""
        self.connection.timers.retransmit.arm(now + self._bounded(self.rtt.backed_off(self.doublings), now))

    @property
    def doublings(self) -> int:
        """Of the RTO: one for each expiry in a row, but see TCP_THIN_LINEAR_TIMEOUTS."""
        backoff = self.backoff
        if backoff and self.connection.options.thin_linear and self.snd_max - self.snd_una < THIN_SEGMENTS * self.mss:
            return max(backoff - THIN_RETRIES, 0)
        return backoff

    # --- the timer ----------------------------------------------------------------------------------------------

    def timed_out(self) -> None:
        """RFC 6298 section 5.4 to 5.6: the oldest segment again, timer doubled."""
        connection = self.connection
        now = connection.scheduler.now
        if self.recovery.on_timer(now):
            return
        self.congestion.on_timeout(self.flight, now, first=self.backoff == 0)
        self.recovery.on_timeout()
        self.rtos += 1
        if not self.backoff:
            self.rto_recoveries += 1
        self.failed(now)
        self.recovery.resend_first(now)
        self.cwnd_limited = True  # slow start from one segment: every ACK counts
        self.arm(now)

    def probe(self) -> None:
        """Nothing in flight, something to send: corked data goes, a closed window is probed.

        The probe is an old sequence number without data, as Linux sends it: never acceptable, so that the peer
        answers with its window (RFC 9293 section 3.10.7.4, first step), and nothing needs to be undone.
        """
        connection = self.connection
        self.push = True
        if self.output():
            return
        now = connection.scheduler.now
        self.failed(now)
        connection.send_probe()
        self.arm(now)

    def failed(self, now: int) -> None:
        """The timer expired without an answer."""
        if not self.backoff:
            self.stalled_at = now
        self.retries += 1
        self.backoff += 1
