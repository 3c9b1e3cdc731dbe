"""HyStart++ (RFC 9406): leaving the first slow start when the round trips grow, before the queue overflows.

A round is what RFC 9406 section 4.2 measures with windowEnd: here, as many bytes acknowledged as cwnd was at its
beginning, which comes to the same while cwnd is what limits the sender (and nobody asks otherwise).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from stack.scheduler import NS_PER_MS

MIN_RTT_THRESH: Final = 4 * NS_PER_MS  # ns; these five: RFC 9406 section 4.3
MAX_RTT_THRESH: Final = 16 * NS_PER_MS  # ns
MIN_RTT_DIVISOR: Final = 8
N_RTT_SAMPLE: Final = 8
CSS_GROWTH_DIVISOR: Final = 4
CSS_ROUNDS: Final = 5
_NONE: Final = 1 << 62  # ns: no sample yet


class Phase(Enum):
    STANDARD = "standard slow start"
    CONSERVATIVE = "conservative slow start"
    DONE = "congestion avoidance"


class HyStart:
    __slots__ = ("_baseline", "_css_rounds", "_current", "_last", "_left", "_samples", "phase")

    def __init__(self) -> None:
        self.phase = Phase.STANDARD
        self._left = 0  # bytes until the round ends
        self._last = _NONE  # lastRoundMinRTT, ns
        self._current = _NONE  # currentRoundMinRTT, ns
        self._samples = 0  # rttSampleCount
        self._baseline = _NONE  # cssBaselineMinRtt, ns
        self._css_rounds = 0  # rounds completed in conservative slow start

    def growth(self, acked: int, cwnd: int, rtt: int) -> int:
        """By how many bytes cwnd may grow for `acked` ones; `rtt`: the newest sample, ns. DONE: ssthresh is cwnd."""
        if self._left <= 0:
            self._begin_round(cwnd)
        self._left -= acked
        if rtt < self._current:
            self._current = rtt
        self._samples += 1
        if self.phase is Phase.STANDARD:
            if self._samples >= N_RTT_SAMPLE and self._current < _NONE and self._last < _NONE:
                thresh = max(MIN_RTT_THRESH, min(self._last // MIN_RTT_DIVISOR, MAX_RTT_THRESH))
                if self._current >= self._last + thresh:
                    self._baseline = self._current
                    self.phase = Phase.CONSERVATIVE
                    self._css_rounds = 0
        elif self._samples >= N_RTT_SAMPLE and self._current < self._baseline:
            self._baseline = _NONE
            self.phase = Phase.STANDARD  # it was jitter
        if self.phase is Phase.CONSERVATIVE:
            if self._left <= 0:
                self._css_rounds += 1
                if self._css_rounds >= CSS_ROUNDS:
                    self.phase = Phase.DONE
            return acked // CSS_GROWTH_DIVISOR
        return acked

    def _begin_round(self, cwnd: int) -> None:
        self._left = cwnd
        self._last = self._current
        self._current = _NONE
        self._samples = 0
