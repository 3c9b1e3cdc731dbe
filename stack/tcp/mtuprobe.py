"""Packetization-layer path MTU discovery (RFC 4821, RFC 8899) with probes of real data, as Linux's tcp_mtu_probing.

Theory of operation
-------------------
ICMP may never come. Without it a path that is narrower than its ends believe swallows every full-sized segment and
nothing else. Two remedies, by `TcpConfig.mtu_probing`: 1, when nothing gets through for `retries1` (R1 of RFC 9293) the
segments are made small (`base_mss`, then half of that, ...), and grow from there; 2, they start small.

Growing is a binary search between `low`, which is known to pass and is what ordinary segments are cut to, and `high`.
A probe is one segment of new data, larger than the others, with enough of those behind it that its loss is found at
once and cannot be mistaken: then it goes again in pieces that fit, and congestion had nothing to do with it. When the
range is narrow enough the search rests, until `probe_interval` later the path may have become wider.

A connection without it has `Sender.prober` None. RFC 4821 section 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.tcp.segmentsize import largest_mtu, resegment
from stack.tcp.singles import send_mtu_probe

if TYPE_CHECKING:
    from stack.tcp.scoreboard import Scoreboard
    from stack.tcp.sender import Sender

BEHIND: Final = 4  # segments that must follow a probe: DupThresh and one more
CWND_LEAST: Final = 11  # segments: a smaller window has better things to do


class MtuProber:
    """The search of one connection. `low`, `high` and `size` are MTUs in bytes."""

    __slots__ = ("high", "low", "sender", "since", "size", "start")

    def __init__(self, sender: Sender) -> None:
        connection = sender.connection
        self.sender = sender
        self.high = largest_mtu(connection)
        self.low = min(connection.layer.config.base_mss + connection.overhead, self.high)
        self.size = 0  #: what is being probed, 0: nothing
        self.start = 0  #: sequence number of the probe
        self.since = connection.scheduler.now  #: when the search began, ns

    def black_hole(self) -> None:
        """Even this does not get through: half of it."""
        connection = self.sender.connection
        config = connection.layer.config
        mss = min((self.low - connection.overhead) >> 1, config.base_mss)
        self.low = max(mss, config.mtu_probe_floor) + connection.overhead

    def turn(self, now: int) -> bool:
        """Called before new data is sent: judge the probe under way, or send one. True: nothing else may leave now."""
        sender = self.sender
        if self.size:
            connection = sender.connection
            if sender.snd_una >= self.start + self.size - connection.overhead:
                self.low, self.size = self.size, 0
                resegment(connection)
            elif sender.recovery.phase:
                self.size = 0  # other things were lost: this proves nothing
            return False
        if self.high - self.low < sender.connection.layer.config.probe_threshold:
            self._rest(now)
            return False
        if sender.snd_nxt < sender.snd_max or sender.recovery.phase or sender.recovery.extra:
            return False
        return self._probe(now)

    def _probe(self, now: int) -> bool:
        sender = self.sender
        mss, nxt, cwnd = sender.mss, sender.snd_nxt, sender.congestion.cwnd
        size = (self.high + self.low) >> 1
        payload = size - sender.connection.overhead
        needed = payload + BEHIND * mss
        if cwnd < CWND_LEAST * mss or sender.queue.end - nxt < needed or sender.snd_wnd < needed:
            return False
        flight = nxt - sender.snd_una
        if flight + needed > sender.snd_wnd or flight + 2 * mss > cwnd:
            return flight > 0  # there will be room when what is in flight is acknowledged
        self.size = size
        self.start = nxt
        send_mtu_probe(sender, payload, now)
        return False

    def _rest(self, now: int) -> None:
        connection = self.sender.connection
        if now - self.since >= connection.layer.config.probe_interval:
            self.since = now
            self.high = largest_mtu(connection)

    def lost_alone(self, board: Scoreboard) -> bool:
        """Whether of all that is in flight the probe is what did not arrive."""
        run = board.runs[0]
        return bool(self.size) and run.lost and run.start == self.start and board.lost == run.end - run.start

    def first_in_flight(self) -> bool:
        """The same as far as duplicate ACKs can tell."""
        return bool(self.size) and self.sender.snd_una == self.start

    def failed(self) -> None:
        """Too long for the path."""
        self.high, self.size = self.size - 1, 0
