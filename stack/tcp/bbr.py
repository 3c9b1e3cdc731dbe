"""BBR version 1, as in Linux (draft-cardwell-iccrg-bbr-congestion-control-00): a model of the path, not of its losses.

Theory of operation
-------------------
The path is described by two numbers that cannot be measured at the same time: its bandwidth (the largest delivery rate
of the last ten round trips) and its round-trip time without queue (the smallest of the last ten seconds). Data is paced
at about that bandwidth, and about twice their product may be in flight. STARTUP doubles the rate each round trip until
it does not bring more bandwidth, DRAIN empties the queue this built, PROBE_BW sends a quarter faster for a round trip
and a quarter slower for the next every eight, PROBE_RTT stops almost entirely for 200 ms if the smallest round trip is
ten seconds old.

Delivery rates are measured per superframe (draft-cheng-iccrg-delivery-rate-estimation): each remembers what had been
delivered when it left, and when it arrives the difference over the time between, whichever of the sending and the
acknowledging time is longer, is a sample. Samples during which there was nothing to send count only upwards.

Left out of Linux's version: the long-term model of a policer, and the extra window for aggregated ACKs (the
superframe headroom in cwnd is what ours amount to).
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp.algorithm import UNLIMITED, initial_window
from stack.tcp.recovery import RecoveryPhase

if TYPE_CHECKING:
    from stack.tcp.rtt import RttEstimator
    from stack.tcp.sender import Sender

HIGH_GAIN: Final = 2885 / 1000  # 2 / ln 2: the smallest that doubles each round trip
DRAIN_GAIN: Final = 1000 / 2885
CWND_GAIN: Final = 2.0
CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # pacing gains of PROBE_BW, one minimal round trip each
BANDWIDTH_ROUNDS: Final = 10
MIN_RTT_WINDOW: Final = 10 * NS_PER_S  # ns
PROBE_RTT_TIME: Final = 200 * NS_PER_MS  # ns
MIN_WINDOW: Final = 4  # segments
FULL_GROWTH: Final = 1.25  # bandwidth growth that keeps STARTUP going
FULL_ROUNDS: Final = 3  # rounds without it that end STARTUP
MARGIN: Final = 0.99  # of the bandwidth, so that a queue does not build by chance
HEADROOM: Final = 3  # quanta beyond the product: one at each end, one under way
FIRST_RTT: Final = NS_PER_MS  # ns, before any is measured


class Mode(Enum):
    STARTUP = "startup"
    DRAIN = "drain"
    PROBE_BW = "probe bandwidth"
    PROBE_RTT = "probe round-trip time"


class Bbr:
    __slots__ = (
        "_app_limited",
        "_cycle",
        "_cycle_at",
        "_delivered",
        "_delivered_at",
        "_first_sent",
        "_full",
        "_full_rounds",
        "_marks",
        "_min_rtt_at",
        "_peaks",
        "_prior",
        "_probe_until",
        "_recovering",
        "_round_end",
        "bandwidth",
        "cwnd",
        "cwnd_gain",
        "filled",
        "min_rtt",
        "mode",
        "model_based",
        "mss",
        "name",
        "pacing_gain",
        "rate",
        "rounds",
        "ssthresh",
    )

    def __init__(self, mss: int, segments: int = 10) -> None:
        self.name = "bbr"
        self.model_based = True
        self.mss = mss
        self.cwnd = initial_window(mss, segments)
        self.ssthresh = UNLIMITED
        self.mode = Mode.STARTUP
        self.pacing_gain = self.cwnd_gain = HIGH_GAIN
        self.bandwidth = 0  #: bytes/s: BtlBw, 0 before the first sample
        self.min_rtt = 0  #: ns: RTprop, 0 before the first sample
        self.rounds = 0  #: packet-timed round trips so far
        self.filled = False  #: STARTUP found the bandwidth
        self.rate = 0  #: the last delivery-rate sample, bytes/s
        self._peaks: deque[tuple[int, int]] = deque()  # (round, bandwidth), falling: the maximum filter
        self._marks: deque[tuple[int, int, int, int, int, bool]] = deque()  # see `sent`
        self._delivered = 0  # bytes delivered so far
        self._delivered_at = 0  # when that was, ns
        self._first_sent = 0  # when what was delivered last had been sent, ns
        self._app_limited = 0  # samples of what was sent before this much was delivered tell too little
        self._round_end = 0  # the round ends when something sent after this much was delivered arrives
        self._full = 0  # bandwidth when it last grew, bytes/s
        self._full_rounds = 0
        self._min_rtt_at = 0
        self._probe_until: int | None = None  # end of PROBE_RTT, ns
        self._cycle = 0
        self._cycle_at = 0
        self._prior = 0  # cwnd before recovery or PROBE_RTT
        self._recovering = 0  # round in which recovery began, + 1; 0: not recovering

    # --- per turn, from the sender -------------------------------------------------------------------------------

    def pacing_rate(self, srtt: int) -> int:
        """Bytes per second."""
        if not self.bandwidth:
            return max(int(HIGH_GAIN * self.cwnd * NS_PER_S / (srtt or FIRST_RTT)), 1)
        return max(int(self.pacing_gain * self.bandwidth * MARGIN), 1)

    def sent(self, end: int, size: int, flight: int, more: bool, now: int) -> None:
        """`size` new bytes up to `end` leave on top of `flight`; `more`: there is still something to send."""
        if not flight:
            self._first_sent = self._delivered_at = now
        if not more:
            self._app_limited = self._delivered + flight + size
        limited = bool(self._app_limited)
        self._marks.append((end, now, self._delivered, self._delivered_at, self._first_sent, limited))

    def update(self, sender: Sender, now: int, quantum: int) -> None:
        """What this turn's ACKs say about the path. `quantum`: bytes that leave together."""
        recovery = sender.recovery
        una = sender.snd_una
        board = recovery.board
        delivered = una - sender.iss
        flight = sender.flight
        edge = una
        if board is not None:
            delivered += board.sacked
            flight -= board.sacked + board.lost
            edge = max(una, board.highest_sacked)
        acked = delivered - self._delivered
        if acked <= 0:
            return
        self._delivered = delivered
        self._delivered_at = now
        if self._app_limited and delivered > self._app_limited:
            self._app_limited = 0
        mark = None
        marks = self._marks
        while marks and marks[0][0] <= edge:
            mark = marks.popleft()
        round_start = False
        if mark is not None:
            _, sent_at, before, before_at, first_sent, limited = mark
            self._first_sent = sent_at
            if before >= self._round_end:
                self._round_end = delivered
                self.rounds += 1
                round_start = True
            self._sample_rtt(now - sent_at, now)
            interval = max(sent_at - first_sent, now - before_at)
            if interval >= self.min_rtt > 0:
                self._sample_rate((delivered - before) * NS_PER_S // interval, limited)
            self._check_full(round_start, limited)
        self._move(flight, now, quantum)
        self._set_window(acked, flight, quantum, RecoveryPhase(recovery.phase))

    # --- the model -----------------------------------------------------------------------------------------------

    def _sample_rate(self, rate: int, limited: bool) -> None:
        self.rate = rate
        peaks = self._peaks
        if limited and rate < self.bandwidth:
            return
        while peaks and peaks[-1][1] <= rate:
            peaks.pop()
        peaks.append((self.rounds, rate))
        while peaks[0][0] <= self.rounds - BANDWIDTH_ROUNDS:
            peaks.popleft()
        self.bandwidth = peaks[0][1]

    def _sample_rtt(self, rtt: int, now: int) -> None:
        expired = now > self._min_rtt_at + MIN_RTT_WINDOW
        if not self.min_rtt or rtt <= self.min_rtt or expired:
            if expired and self.min_rtt and self.mode is not Mode.PROBE_RTT and rtt > self.min_rtt:
                self._begin_probe_rtt()
            self.min_rtt = max(rtt, 1)
            self._min_rtt_at = now

    def _check_full(self, round_start: bool, limited: bool) -> None:
        if self.filled or not round_start or limited:
            return
        if self.bandwidth >= self._full * FULL_GROWTH:
            self._full = self.bandwidth
            self._full_rounds = 0
            return
        self._full_rounds += 1
        self.filled = self._full_rounds >= FULL_ROUNDS

    def product(self, gain: float = 1.0) -> int:
        """The bandwidth-delay product times `gain`, bytes."""
        return int(gain * self.bandwidth * self.min_rtt / NS_PER_S)

    # --- the modes -----------------------------------------------------------------------------------------------

    def _move(self, flight: int, now: int, quantum: int) -> None:
        if self.mode is Mode.STARTUP and self.filled:
            self.mode = Mode.DRAIN
            self.pacing_gain = DRAIN_GAIN
        if self.mode is Mode.DRAIN and flight <= self.product() + HEADROOM * quantum:
            self._begin_probe_bw(now)
        elif self.mode is Mode.PROBE_BW:
            self._next_gain(flight, now)
        elif self.mode is Mode.PROBE_RTT:
            self._probe_rtt(flight, now)

    def _begin_probe_bw(self, now: int) -> None:
        self.mode = Mode.PROBE_BW
        self.cwnd_gain = CWND_GAIN
        # Linux begins anywhere but in the draining phase; which one matters only where several flows could agree.
        self._cycle = 2
        self._cycle_at = now
        self.pacing_gain = CYCLE[self._cycle]

    def _next_gain(self, flight: int, now: int) -> None:
        passed = now - self._cycle_at > self.min_rtt
        if self.pacing_gain > 1:
            over = passed and flight >= self.product(self.pacing_gain)
            over = over or (passed and now - self._cycle_at > 2 * self.min_rtt)  # losses keep it from getting there
        elif self.pacing_gain < 1:
            over = passed or flight <= self.product()
        else:
            over = passed
        if over:
            self._cycle = (self._cycle + 1) % len(CYCLE)
            self._cycle_at = now
            self.pacing_gain = CYCLE[self._cycle]

    def _begin_probe_rtt(self) -> None:
        self._prior = max(self.cwnd, self._prior if self._recovering else 0)
        self.mode = Mode.PROBE_RTT
        self.pacing_gain = self.cwnd_gain = 1.0
        self._probe_until = None

    def _probe_rtt(self, flight: int, now: int) -> None:
        """Four segments for 200 ms (a round trip at least passes until that is so)."""
        if self._probe_until is None:
            if flight <= MIN_WINDOW * self.mss:
                self._probe_until = now + max(PROBE_RTT_TIME, self.min_rtt)
        elif now >= self._probe_until:
            self._min_rtt_at = now
            self.cwnd = max(self.cwnd, self._prior)
            if self.filled:
                self._begin_probe_bw(now)
            else:
                self.mode = Mode.STARTUP
                self.pacing_gain = self.cwnd_gain = HIGH_GAIN

    def _set_window(self, acked: int, flight: int, quantum: int, phase: RecoveryPhase) -> None:
        if phase is RecoveryPhase.RECOVERY and self._recovering == self.rounds + 1:
            # Packet conservation for one round trip, then the model again.
            self.cwnd = max(self.cwnd, flight + acked)
        elif self.bandwidth:
            target = self.product(self.cwnd_gain) + HEADROOM * quantum
            if self.filled:
                self.cwnd = min(self.cwnd + acked, target)
            elif self.cwnd < target:
                self.cwnd += acked
        else:
            self.cwnd += acked
        self.cwnd = max(self.cwnd, MIN_WINDOW * self.mss)
        if self.mode is Mode.PROBE_RTT:
            self.cwnd = min(self.cwnd, MIN_WINDOW * self.mss)

    # --- events --------------------------------------------------------------------------------------------------

    def on_ack(self, acked: int, now: int, rtt: RttEstimator, /) -> None:
        """Nothing: `update` looks at every turn, whether cwnd was the limit or not."""

    def on_loss(self, flight: int, _now: int, /, *, ecn: bool = False) -> None:
        if ecn:
            return  # version 1 does not look at marks
        self._prior = max(self.cwnd, self._prior if self._recovering else 0)
        self._recovering = self.rounds + 1
        self.cwnd = max(min(flight, self.cwnd), MIN_WINDOW * self.mss)

    def on_recovered(self) -> None:
        if self._recovering:
            self._recovering = 0
            self.cwnd = max(self.cwnd, self._prior)

    def on_timeout(self, _flight: int, _now: int, /, *, first: bool) -> None:
        if first:
            self._prior = max(self.cwnd, self._prior if self._recovering else 0)
        self._recovering = self.rounds + 1
        self.cwnd = self.mss

    def on_idle(self) -> None:
        """The model stays true, and pacing keeps its window from leaving as a burst."""

    def undo(self) -> None:
        self.on_recovered()
        self._full = self._full_rounds = 0  # what was found meanwhile may have been too little

    def set_mss(self, mss: int) -> None:
        self.mss = mss
