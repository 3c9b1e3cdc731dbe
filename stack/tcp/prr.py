"""Proportional Rate Reduction (RFC 9937): how much leaves per ACK during fast recovery.

Instead of halving at once and falling silent, for every byte the peer reports delivered a proportional part goes out,
so that at the end of recovery as much is in flight as ssthresh says. Sizes are bytes; a turn's ACKs count as one.
"""

from __future__ import annotations


class RateReduction:
    __slots__ = ("delivered", "flight", "sent")

    def __init__(self, flight: int) -> None:
        self.flight = max(flight, 1)  #: RecoverFS: outstanding when recovery began
        self.delivered = 0  #: prr_delivered
        self.sent = 0  #: prr_out

    def on_ack(self, delivered: int, pipe: int, ssthresh: int, mss: int, *, safe: bool) -> int:
        """SndCnt: how much may be sent now. `safe` (safeACK): SND.UNA advanced and no new loss was found."""
        self.delivered += delivered
        if pipe > ssthresh:
            count = -(-self.delivered * ssthresh // self.flight) - self.sent
        else:
            count = max(self.delivered - self.sent, delivered)
            if safe:
                count += mss
            count = min(ssthresh - pipe, count)
        if not self.sent:
            count = max(count, mss)  # the fast retransmit
        return max(count, 0)
