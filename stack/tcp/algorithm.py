"""What every congestion-control algorithm is to the sender, and what the window-based ones share.

The sender owns *what* is in flight, the recovery decides *when* something counts as lost; an algorithm only turns
those events into ``cwnd`` and ``ssthresh``. Both are bytes: a superframe counts as the bytes it carries, and an ACK
for the bytes it newly covers (appropriate byte counting, RFC 3465).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from stack.tcp.rtt import RttEstimator

UNLIMITED: Final = 1 << 40  # bytes: "arbitrarily high" initial ssthresh (RFC 5681 section 3.1)


class CongestionControl(Protocol):
    """What the sender and the recovery ask of an algorithm. Times are nanoseconds, sizes bytes."""

    name: str
    cwnd: int
    ssthresh: int
    model_based: bool  #: cwnd is the algorithm's alone: no rate reduction by the recovery

    def on_ack(self, acked: int, now: int, rtt: RttEstimator, /) -> None:
        """`acked` new bytes outside of fast recovery, while cwnd was the limit."""
        ...

    def on_loss(self, flight: int, now: int, /, *, ecn: bool = False) -> None:
        """Fast retransmit with `flight` bytes outstanding, or an ECN echo: set ssthresh and cwnd for recovery."""
        ...

    def on_recovered(self) -> None:
        """Fast recovery is over; cwnd has been set to ssthresh unless `model_based`."""
        ...

    def on_timeout(self, flight: int, now: int, /, *, first: bool) -> None:
        """The retransmission timer fired; `first`: for data that had not timed out before."""
        ...

    def on_idle(self) -> None:
        """Nothing was sent for longer than an RTO: begin again from the restart window (RFC 5681 section 4.1)."""
        ...

    def undo(self) -> None:
        """The last `on_loss` or `on_timeout` was answered in vain: nothing had been lost."""
        ...

    def set_mss(self, mss: int) -> None: ...


def initial_window(mss: int, segments: int = 10) -> int:
    """RFC 6928 section 2: min(10 MSS, max(2 MSS, 14600)) for the default of ten segments."""
    return min(segments * mss, max(2 * mss, segments * 1460))


class WindowBased:
    """The part of slow start, restart and undo in which window-based algorithms agree."""

    __slots__ = ("_initial", "_saved", "cwnd", "model_based", "mss", "name", "ssthresh")

    def __init__(self, name: str, mss: int, segments: int) -> None:
        self.name = name
        self.mss = mss
        self.model_based = False
        self.cwnd = initial_window(mss, segments)
        self.ssthresh = UNLIMITED
        self._initial = segments
        self._saved = (self.cwnd, self.ssthresh)  # before the last reduction

    def slow_start(self, acked: int) -> int:
        """Grow by the bytes acknowledged; returns those left over once ssthresh is reached.

        RFC 3465 limits the growth per ACK to 2 MSS against bursts; with ACKs that cover superframes that would be no
        slow start at all. As Linux and RFC 9002 section 7.3.1: by the bytes acknowledged, up to ssthresh.
        """
        grown = self.cwnd + acked
        if grown <= self.ssthresh:
            self.cwnd = grown
            return 0
        self.cwnd = self.ssthresh
        return grown - self.ssthresh

    def save(self) -> None:
        """Before a reduction."""
        self._saved = (self.cwnd, self.ssthresh)

    def undo(self) -> None:
        cwnd, ssthresh = self._saved
        self.cwnd = max(self.cwnd, cwnd)
        self.ssthresh = max(self.ssthresh, ssthresh)

    def on_recovered(self) -> None:
        pass

    def on_idle(self) -> None:
        self.cwnd = min(self.cwnd, initial_window(self.mss, self._initial))

    def set_mss(self, mss: int) -> None:
        if mss < self.mss:
            # RFC 5681 section 3.1: after a smaller path MTU keep the number of segments.
            self.cwnd = max(self.cwnd * mss // self.mss, 2 * mss)
        self.mss = mss
