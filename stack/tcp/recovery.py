"""Loss recovery without SACK: fast retransmit, NewReno (RFC 5681 section 3.2, RFC 6582), limited transmit (RFC 3042),
F-RTO (RFC 5682 section 2).

Theory of operation
-------------------
`LossRecovery` is told about duplicate ACKs, new ACKs and time-outs; it answers with two things the sender looks at
whenever it sends: ``retransmit_due`` (send the first unacknowledged segment again) and ``extra`` (bytes that may be in
flight beyond cwnd: segments that have left the network as duplicate ACKs tell). The congestion-control object keeps
the plain cwnd; the window inflation of RFC 6582 lives here, so that an algorithm never sees it.

Phases: OPEN (with up to two duplicate ACKs counted), RECOVERY after the third until everything outstanding at that
time is acknowledged, LOSS after a time-out until the same. ``recover`` keeps one loss event from being answered twice.

A time-out sends the first segment again and waits (F-RTO): the first ACK to advance lets two new segments out, and if
the next one advances too, it can only be for data that was never lost. Then the reduction is taken back. In every other
case SND.NXT goes back and everything in doubt goes again.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from stack.tcp.frto import FRTO_SEGMENTS, FRTO_WINDOW
from stack.tcp.singles import retransmit_first

if TYPE_CHECKING:
    from stack.tcp.scoreboard import Scoreboard
    from stack.tcp.sender import Sender

DUPLICATE_THRESHOLD: Final = 3  # DupThresh of RFC 5681 section 3.2


class RecoveryPhase(IntEnum):
    """Numbered as TCP_INFO's ca_state."""

    OPEN = 0
    RECOVERY = 3
    LOSS = 4


class LossRecovery:
    __slots__ = (
        "board",
        "duplicates",
        "engaged",
        "extra",
        "frto",
        "phase",
        "recover",
        "resent",
        "retransmit_due",
        "sender",
    )

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.board: Scoreboard | None = None  #: without SACK there is none
        self.phase = RecoveryPhase.OPEN
        self.duplicates = 0  #: duplicate ACKs in a row
        self.recover = sender.iss  #: RFC 6582: SND.MAX when the last loss event began
        self.extra = 0  #: bytes allowed in flight beyond cwnd
        self.retransmit_due = False
        self.resent = 0  #: end of what the last time-out sent again
        self.frto = 0  #: 1: waiting for the first ACK after a time-out, 2: for the second
        self.engaged = False  #: OPEN without duplicates: nothing to be told about ACKs

    def on_duplicate_ack(self) -> None:
        sender = self.sender
        self.duplicates += 1
        self.engaged = True
        mss = sender.mss
        if self.frto:
            self._convict()
        if self.phase is RecoveryPhase.RECOVERY:
            # RFC 5681 section 3.2 (4): each further one means that another segment has left the network.
            self.extra += mss
        elif self.duplicates < DUPLICATE_THRESHOLD:
            if self.phase is RecoveryPhase.OPEN:
                # RFC 3042: new data on the first two, cwnd unchanged.
                self.extra = self.duplicates * mss
        elif self.duplicates == DUPLICATE_THRESHOLD:
            self.extra = 0
            if sender.snd_una > self.recover:
                self._enter()

    def on_sack(self, _blocks: tuple[tuple[int, int], ...], _ack: int, _echo: int | None) -> None:
        """Not agreed on."""

    def _enter(self) -> None:
        """RFC 6582 section 3.2 step 2: a new loss event."""
        sender = self.sender
        self.phase = RecoveryPhase.RECOVERY
        self.recover = sender.snd_max
        if sender.prober is not None and sender.prober.first_in_flight():
            sender.prober.failed()  # too long for the path: no congestion in that
        else:
            sender.congestion.on_loss(sender.flight, sender.connection.scheduler.now)
        self.extra = DUPLICATE_THRESHOLD * sender.mss
        self.retransmit_due = True

    def transmit(self, _now: int) -> bool:
        """What is due for retransmission goes. True if anything did."""
        if not self.retransmit_due:
            return False
        self.retransmit_due = False
        return retransmit_first(self.sender)

    def on_marked(self) -> None:
        """cwnd was reduced for an ECN echo."""

    def on_sent(self, _now: int) -> None:
        """New data left while engaged."""

    def on_ack(self, acked: int, _echo: int | None) -> int:
        """SND.UNA just moved forward by `acked`, all of it news; called while engaged."""
        self._judge(acked)
        self.engaged = bool(self.phase)
        return acked

    def _judge(self, acked: int) -> None:
        sender = self.sender
        self.duplicates = 0
        if self.phase is RecoveryPhase.RECOVERY:
            mss = sender.mss
            if sender.snd_una >= self.recover:
                # Full acknowledgment: leave, without the burst that cwnd = ssthresh could allow at once.
                congestion = sender.congestion
                congestion.cwnd = min(congestion.ssthresh, max(sender.flight, mss) + mss)
                self.extra = 0
                self.phase = RecoveryPhase.OPEN
            else:
                # Partial: the next segment is lost too. Deflate by what was acknowledged, less one segment.
                self.retransmit_due = True
                self.extra = max(self.extra - acked + mss, 0)
            return
        self.extra = 0
        if self.phase is RecoveryPhase.LOSS and sender.snd_una >= self.recover:
            self.phase = RecoveryPhase.OPEN
            self.frto = 0
        elif self.frto == 1:
            self._first_ack(acked)
        elif self.frto:
            self._spurious()

    def _first_ack(self, acked: int) -> None:
        """RFC 5682 section 2.1 step 2: it advances, but not to the end."""
        sender = self.sender
        fresh = min(sender.unsent, sender.snd_una + sender.snd_wnd - sender.snd_max)
        if fresh < min(sender.mss, sender.unsent) or fresh <= 0:
            self._convict()  # nothing new can be sent: no telling
            return
        self.frto = 2
        # cwnd is about to grow by what was acknowledged; two segments may leave, no more and no less.
        self.extra = sender.flight + FRTO_SEGMENTS * sender.mss - sender.congestion.cwnd - acked

    def _spurious(self) -> None:
        """Step 3b: this ACK is for what was sent before the time-out, and once only."""
        sender = self.sender
        self.frto = 0
        self.phase = RecoveryPhase.OPEN
        sender.congestion.undo()
        sender.connection.layer.stats.spurious += 1

    def _convict(self) -> None:
        """The time-out was right: everything again, in slow start (steps 2a and 3a)."""
        sender = self.sender
        if self.frto == 2:
            sender.congestion.cwnd = min(sender.congestion.cwnd, FRTO_WINDOW * sender.mss)
        self.frto = 0
        self.extra = 0
        self.resend_everything()
        sender.snd_nxt = max(sender.snd_una, self.resent)

    def on_timer(self, _now: int) -> bool:
        """The timer has one meaning here: RTO."""
        return False

    def resend_first(self, _now: int) -> None:
        sender = self.sender
        retransmit_first(sender)
        self.resent = min(sender.snd_una + sender.mss, sender.snd_max)

    def resend_everything(self) -> None:
        """What is in flight has to go again, without congestion. SND.NXT goes back, nobody knows what arrived."""
        sender = self.sender
        sender.karn = sender.snd_max
        sender.flights.clear()
        sender.snd_nxt = sender.snd_una

    def on_timeout(self) -> None:
        """RFC 6582 section 4: remember how far had been sent, leave fast recovery."""
        if self.phase is RecoveryPhase.LOSS or self.sender.snd_nxt < self.sender.snd_max:
            self.frto = 0  # not the first for this data
            self.resend_everything()
        else:
            self.frto = 1
        self.engaged = True
        self.phase = RecoveryPhase.LOSS
        self.recover = self.sender.snd_max
        self.duplicates = 0
        self.extra = 0
        self.retransmit_due = False
