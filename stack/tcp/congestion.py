"""Congestion control: how much may be in flight. An object per connection, chosen by name (TCP_CONGESTION).

The sender owns *what* is in flight, `recovery` decides *when* something counts as lost; an object here only turns
those events into ``cwnd`` and ``ssthresh``. Both are bytes: a superframe counts as the bytes it carries, and an ACK
for the bytes it newly covers (appropriate byte counting, RFC 3465).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

UNLIMITED: Final = 1 << 40  # bytes: "arbitrarily high" initial ssthresh (RFC 5681 section 3.1)


class CongestionControl(Protocol):
    """What the sender and the recovery ask of an algorithm. Times are nanoseconds, sizes bytes."""

    name: str
    cwnd: int
    ssthresh: int

    def on_ack(self, acked: int, now: int, srtt: int, /) -> None:
        """`acked` new bytes outside of fast recovery, while cwnd was the limit."""
        ...

    def on_loss(self, flight: int, now: int, /) -> None:
        """Fast retransmit with `flight` bytes outstanding: set ssthresh and cwnd for recovery."""
        ...

    def on_timeout(self, flight: int, now: int, /, *, first: bool) -> None:
        """The retransmission timer fired; `first`: for data that had not timed out before."""
        ...

    def on_idle(self) -> None:
        """Nothing was sent for longer than an RTO: begin again from the restart window (RFC 5681 section 4.1)."""
        ...

    def set_mss(self, mss: int) -> None: ...


def initial_window(mss: int, segments: int = 10) -> int:
    """RFC 6928 section 2: min(10 MSS, max(2 MSS, 14600)) for the default of ten segments."""
    return min(segments * mss, max(2 * mss, segments * 1460))


class NewReno:
    """Slow start, congestion avoidance (RFC 5681 section 3.1) and the halving of RFC 6582."""

    __slots__ = ("_counted", "_initial", "cwnd", "mss", "name", "ssthresh")

    def __init__(self, mss: int, segments: int = 10) -> None:
        self.name = "reno"
        self.mss = mss
        self._initial = segments
        self.cwnd = initial_window(mss, segments)
        self.ssthresh = UNLIMITED
        self._counted = 0  # bytes acknowledged since cwnd last grew in congestion avoidance

    def on_ack(self, acked: int, _now: int, _srtt: int, /) -> None:
        cwnd = self.cwnd
        if cwnd < self.ssthresh:
            # RFC 3465 limits the growth per ACK to 2 MSS against bursts; with ACKs that cover superframes that would
            # be no slow start at all. As Linux and RFC 9002 section 7.3.1: by the bytes acknowledged, up to ssthresh.
            grown = cwnd + acked
            if grown <= self.ssthresh:
                self.cwnd = grown
                return
            acked = grown - self.ssthresh
            self.cwnd = cwnd = self.ssthresh
        # RFC 3465 section 2.1: one MSS for each cwnd's worth of bytes acknowledged.
        self._counted += acked
        if self._counted >= cwnd:
            self._counted -= cwnd
            self.cwnd = cwnd + self.mss

    def on_loss(self, flight: int, _now: int, /) -> None:
        self.ssthresh = max(flight // 2, 2 * self.mss)  # RFC 5681 equation 4
        self.cwnd = self.ssthresh
        self._counted = 0

    def on_timeout(self, flight: int, _now: int, /, *, first: bool) -> None:
        if first:
            self.ssthresh = max(flight // 2, 2 * self.mss)
        self.cwnd = self.mss  # the loss window, RFC 5681 section 3.1
        self._counted = 0

    def on_idle(self) -> None:
        self.cwnd = min(self.cwnd, initial_window(self.mss, self._initial))

    def set_mss(self, mss: int) -> None:
        if mss < self.mss:
            # RFC 5681 section 3.1: after a smaller path MTU keep the number of segments.
            self.cwnd = max(self.cwnd * mss // self.mss, 2 * mss)
        self.mss = mss


#: TCP_CONGESTION names this package knows.
ALGORITHMS: Final[dict[str, Callable[[int, int], CongestionControl]]] = {"reno": NewReno}
