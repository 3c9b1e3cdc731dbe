"""Reno: slow start and congestion avoidance of RFC 5681 section 3.1, the halving of RFC 6582, ABE (RFC 8511)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.tcp.algorithm import WindowBased

if TYPE_CHECKING:
    from stack.tcp.rtt import RttEstimator

BETA_ECN: Final = 0.8  # RFC 8511 section 3: a mark comes from a short queue, and asks for less than a loss does


class NewReno(WindowBased):
    __slots__ = ("_counted",)

    def __init__(self, mss: int, segments: int = 10) -> None:
        super().__init__("reno", mss, segments)
        self._counted = 0  # bytes acknowledged since cwnd last grew in congestion avoidance

    def on_ack(self, acked: int, _now: int, _rtt: RttEstimator | None, /) -> None:
        if self.cwnd < self.ssthresh:
            acked = self.slow_start(acked)
        # RFC 3465 section 2.1: one MSS for each cwnd's worth of bytes acknowledged.
        self._counted += acked
        if self._counted >= self.cwnd:
            self._counted -= self.cwnd
            self.cwnd += self.mss

    def on_loss(self, flight: int, _now: int, /, *, ecn: bool = False) -> None:
        self.save()
        left = int(flight * BETA_ECN) if ecn else flight // 2
        self.ssthresh = max(left, 2 * self.mss)  # RFC 5681 equation 4
        self.cwnd = self.ssthresh
        self._counted = 0

    def on_timeout(self, flight: int, _now: int, /, *, first: bool) -> None:
        if first:
            self.save()
            self.ssthresh = max(flight // 2, 2 * self.mss)
        self.cwnd = self.mss  # the loss window, RFC 5681 section 3.1
        self._counted = 0
