"""Round-trip time and retransmission time-out (RFC 6298)."""

from __future__ import annotations

from typing import Final

from stack.scheduler import NS_PER_MS, NS_PER_S

RTO_INITIAL: Final = NS_PER_S  # ns; RFC 6298 section 2.1
RTO_MIN: Final = 200 * NS_PER_MS  # ns; Linux TCP_RTO_MIN. RFC 6298 section 2.4 says 1 s "SHOULD"
PTO_SLACK: Final = 2 * NS_PER_MS  # ns; Linux TCP_TIMEOUT_MIN, two ticks
RTO_MAX: Final = 120 * NS_PER_S  # ns; Linux TCP_RTO_MAX, above the 60 s RFC 6298 section 2.5 asks for at least
RTO_AFTER_SYN_LOSS: Final = 3 * NS_PER_S  # ns; RFC 6298 section 5.7


class RttEstimator:
    """SRTT, RTTVAR and RTO, all in nanoseconds; ``rto`` is without back-off."""

    __slots__ = ("ceiling", "floor", "latest", "minimum", "pto", "rto", "srtt", "variance")

    def __init__(self) -> None:
        self.srtt = 0  #: 0: no measurement yet
        self.variance = 0
        self.rto = RTO_INITIAL
        self.pto = RTO_INITIAL  #: probe time-out (RFC 8985 section 7.2), never above rto
        self.latest = 0  #: the last sample
        self.minimum = 0  #: smallest sample seen, 0 without one
        self.floor = RTO_MIN  #: RTO - SRTT is at least this
        self.ceiling = RTO_MAX

    def sample(self, rtt: int) -> None:
        """One measurement, of a segment sent once only or by its timestamp (RFC 6298 section 3, Karn)."""
        rtt = rtt or 1
        self.latest = rtt
        if self.srtt == 0:
            # (2.2) SRTT <- R, RTTVAR <- R/2
            self.srtt = srtt = rtt
            self.variance = variance = rtt >> 1
            self.minimum = rtt
        else:
            # (2.3) RTTVAR <- 3/4 RTTVAR + 1/4 |SRTT - R'|, then SRTT <- 7/8 SRTT + 1/8 R'
            srtt = self.srtt
            variance = self.variance
            error = srtt - rtt
            self.variance = variance = variance + (((error if error >= 0 else -error) - variance) >> 2)
            self.srtt = srtt = srtt - (error >> 3) or 1
            if rtt < self.minimum:
                self.minimum = rtt
        # Linux's way of the floor: not RTO >= 200 ms but RTO - SRTT >= 200 ms, which leaves room for a peer's
        # delayed ACK whatever the path's own delay is.
        # (Comparisons: each acknowledgment comes through here, and min() costs as much as all the rest.)
        floor = self.floor
        margin = variance << 2
        if margin < floor:
            margin = floor
        rto = srtt + margin
        if rto > self.ceiling:
            rto = self.ceiling
        self.rto = rto
        pto = (srtt << 1) + PTO_SLACK
        if pto > rto:
            pto = rto
        self.pto = pto

    def limit(self, floor: int, ceiling: int) -> None:
        """From now on RTO - SRTT is at least `floor` and RTO at most `ceiling`, ns."""
        self.floor = floor
        self.ceiling = ceiling
        if self.srtt:
            self.rto = self.srtt + max(self.variance << 2, floor)
        self.rto = min(self.rto, ceiling)
        self.pto = min(self.pto, self.rto)

    def syn_was_lost(self) -> None:
        """The SYN had to be sent again: begin data transmission cautiously (RFC 6298 section 5.7)."""
        self.rto = min(max(self.rto, RTO_AFTER_SYN_LOSS), self.ceiling)

    def backed_off(self, times: int) -> int:
        """RTO after `times` expiries in a row (RFC 6298 section 5.5), ns."""
        if times <= 0:
            return self.rto
        return min(self.rto << min(times, 20), self.ceiling)
