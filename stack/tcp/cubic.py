"""CUBIC (RFC 9438) with HyStart++ (RFC 9406) and ABE (RFC 8511): the default, as on Linux.

The window is a cubic function of the time since the last reduction: quickly back to near where it was (W_max), then
slowly across, then faster again. Where Reno would have more, it takes what Reno would have.

Sizes in the formulas are bytes, so C, which RFC 9438 gives in segments per second cubed, is multiplied by the MSS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_S
from stack.tcp.algorithm import UNLIMITED, WindowBased
from stack.tcp.hystart import HyStart, Phase

if TYPE_CHECKING:
    from stack.tcp.rtt import RttEstimator

C: Final = 0.4  # segments/s^3; RFC 9438 section 4.1
BETA: Final = 0.7  # section 4.6
BETA_ECN: Final = 0.85  # RFC 8511 section 3
ALPHA: Final = 3 * (1 - BETA) / (1 + BETA)  # segments per round trip of the Reno-friendly window; section 4.3


class Cubic(WindowBased):
    __slots__ = ("_epoch", "_fraction", "_k", "_last_ack", "_prior", "_reno", "_saved_max", "_w_max", "hystart")

    def __init__(self, mss: int, segments: int = 10) -> None:
        super().__init__("cubic", mss, segments)
        self.hystart = HyStart()
        self._w_max = 0.0  # W_max, bytes
        self._prior = 0.0  # cwnd_prior, bytes
        self._epoch: int | None = None  # t = 0 of the cubic function, ns; None: begins with the next ACK
        self._k = 0.0  # K, s
        self._reno = 0.0  # W_est, bytes
        self._fraction = 0.0  # of a byte, by which cwnd should be larger
        self._last_ack = 0  # ns
        self._saved_max = 0.0

    def on_ack(self, acked: int, now: int, rtt: RttEstimator, /) -> None:
        if self.cwnd < self.ssthresh:
            acked = self._slow_start(acked, rtt.latest)
            if not acked:
                return
        self._avoid(acked, now, rtt.srtt)

    def _slow_start(self, acked: int, rtt: int) -> int:
        if self.ssthresh < UNLIMITED:
            return self.slow_start(acked)  # RFC 9406 section 4.3: ssthresh is known after the first time
        self.cwnd += self.hystart.growth(acked, self.cwnd, rtt)
        if self.hystart.phase is Phase.DONE:
            self.ssthresh = self.cwnd
        return 0

    def _avoid(self, acked: int, now: int, srtt: int) -> None:
        """Section 4.2 to 4.5."""
        mss = self.mss
        cwnd = self.cwnd + self._fraction
        epoch = self._epoch
        if epoch is None:
            epoch = self._epoch = now
            self._reno = cwnd
            if cwnd < self._w_max:
                self._k = ((self._w_max - cwnd) / (C * mss)) ** (1 / 3)
            else:
                self._k = 0.0
                self._w_max = cwnd
        elif now - self._last_ack > 2 * srtt:
            # Section 5.8: time in which the application did not use the window does not count.
            epoch = self._epoch = epoch + now - self._last_ack - srtt
        self._last_ack = now
        t = (now - epoch) / NS_PER_S
        # Section 4.3: what Reno would have by now.
        alpha = 1.0 if self._reno >= self._prior else ALPHA
        self._reno += alpha * mss * acked / cwnd
        if self._window(t) < self._reno:
            cwnd = max(cwnd, self._reno)
        else:
            target = min(max(self._window(t + srtt / NS_PER_S), cwnd), 1.5 * cwnd)
            cwnd += (target - cwnd) * acked / cwnd
        self.cwnd = int(cwnd)
        self._fraction = cwnd - self.cwnd

    def _window(self, t: float) -> float:
        """W_cubic(t), figure 1."""
        return float(C * self.mss * (t - self._k) ** 3 + self._w_max)

    def on_loss(self, _flight: int, _now: int, /, *, ecn: bool = False) -> None:
        """Section 4.6 and 4.7."""
        self.save()
        cwnd = self.cwnd
        self._prior = float(cwnd)
        self._w_max = cwnd * (1 + BETA) / 2 if cwnd < self._w_max else float(cwnd)
        self.ssthresh = max(int(cwnd * (BETA_ECN if ecn else BETA)), 2 * self.mss)
        self.cwnd = self.ssthresh
        self._fraction = 0.0
        self._epoch = None

    def on_timeout(self, _flight: int, _now: int, /, *, first: bool) -> None:
        """Section 4.8: slow start up to ssthresh; from there as if there had been nothing before."""
        if first:
            self.save()
            self._prior = float(self.cwnd)
            self.ssthresh = max(int(self.cwnd * BETA), 2 * self.mss)
        self.cwnd = self.mss
        self._w_max = 0.0
        self._fraction = 0.0
        self._epoch = None

    def save(self) -> None:
        super().save()
        self._saved_max = self._w_max

    def undo(self) -> None:
        """Section 4.9."""
        super().undo()
        self._w_max = self._saved_max
        self._epoch = None
