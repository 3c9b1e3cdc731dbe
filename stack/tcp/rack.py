"""RACK: loss detection by time (RFC 8985 section 6). A segment is lost when one sent later arrived, and a while passed.

Works on the scoreboard's runs: a superframe is one transmission, its segments are told apart by their place.
The reordering window is zero until the path has shown that it reorders, and three segments beyond a hole are then as
good as three duplicate ACKs; once reordering was seen, it is a quarter of the smallest round trip, more if D-SACKs show
that it was too little, never more than a smoothed round trip.
"""

from __future__ import annotations

from typing import Final

from stack.tcp.scoreboard import Run, Scoreboard

DUPLICATE_THRESHOLD: Final = 3  # DupThresh; RFC 8985 section 6.2 step 4
PERSIST: Final = 16  # loss recoveries for which a larger window stays; RFC 8985 section 6.2 step 4


class Rack:
    __slots__ = ("dsack_round", "end", "fack", "multiplier", "persist", "reordering_seen", "rtt", "sent_at")

    def __init__(self, una: int) -> None:
        self.sent_at = -1  #: RACK.xmit_ts: of the most recently sent segment that was delivered, ns
        self.end = una  #: RACK.end_seq: end of it
        self.rtt = 0  #: RACK.rtt, ns
        self.fack = una  #: RACK.fack: the highest sequence number sacked or acknowledged
        self.reordering_seen = False
        self.multiplier = 1  #: RACK.reo_wnd_mult
        self.persist = PERSIST  #: RACK.reo_wnd_persist
        self.dsack_round: int | None = None  #: no second D-SACK counts before this is acknowledged

    def delivered(self, run: Run, now: int, min_rtt: int, original: bool) -> None:
        """Steps 2 and 3. `run` was acknowledged or sacked; `original`: its first transmission, by the time stamp."""
        end = run.end
        if end >= self.fack:
            self.fack = end
        elif not run.retransmitted:
            self.reordering_seen = True
        rtt = now - run.sent_at
        if run.retransmitted and (original or rtt < min_rtt):
            return  # an ACK too early for the retransmission: it is for the first one
        self.rtt = rtt
        if run.sent_at > self.sent_at or (run.sent_at == self.sent_at and end > self.end):
            self.sent_at = run.sent_at
            self.end = end

    def dsack(self, una: int, snd_max: int) -> None:
        """Step 4: a retransmission was not needed. Wait longer, growing once per round trip."""
        if self.dsack_round is None or una >= self.dsack_round:
            self.dsack_round = snd_max
            self.multiplier += 1
            self.persist = PERSIST

    def recovered(self) -> None:
        """Step 4: a loss recovery ended; a window that was made larger for D-SACKs shrinks again in the end."""
        self.persist -= 1
        if self.persist <= 0:
            self.persist = PERSIST
            self.multiplier = 1

    def window(self, srtt: int, min_rtt: int, recovering: bool, sacked: int, mss: int) -> int:
        """Step 4, the reordering window in ns."""
        if not self.reordering_seen and (recovering or sacked >= DUPLICATE_THRESHOLD * mss):
            return 0
        return min(self.multiplier * (min_rtt >> 2), srtt)

    def detect(self, board: Scoreboard, now: int, window: int) -> tuple[int, int]:
        """Step 5. Marks runs as lost; returns (bytes newly lost, ns until more may be, 0 for nothing pending)."""
        sent_at = self.sent_at
        patience = self.rtt + window
        before = board.lost
        timeout = 0
        for run in board.runs:
            if run.sacked or run.lost or run.sent_at > sent_at:
                continue
            if run.sent_at == sent_at and (run.end >= self.end or (run.retransmitted and sent_at == now)):
                continue  # (the latter on a path without delay: sent again in this very instant)
            remaining = run.sent_at + patience - now
            if remaining <= 0:
                board.lose(run)
            elif remaining > timeout:
                timeout = remaining
        return board.lost - before, timeout
