"""The tail loss probe (RFC 8985 section 7): for a loss at the end of a flight, which nothing sent later can reveal.

When nothing has been heard for two round trips, long before the RTO, one segment goes: a new one if possible, else the
last one again. The ACK or the SACK block that answers it sets recovery going. While ``sender.tail_probe`` the
retransmission timer is set for the probe. `SackRecovery` keeps what is known of the one under way: ``probe_end``,
``probe_again``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_MS
from stack.tcp.output import emit_burst
from stack.tcp.recovery import RecoveryPhase
from stack.tcp.singles import send_one_new

if TYPE_CHECKING:
    from stack.tcp.sack_recovery import SackRecovery

DELAYED_ACK_MAX: Final = 200 * NS_PER_MS  # ns; WCDelAckT of RFC 8985 section 7.2


def watch_tail(recovery: SackRecovery) -> None:
    """A probe is for a tail that may be lost without anybody noticing (section 7.2): decide anew whether it is."""
    sender = recovery.sender
    board = recovery.board
    before = sender.tail_probe
    sender.tail_probe = (
        recovery.phase is RecoveryPhase.OPEN
        and recovery.probe_end is None
        and not (board and (board.sacked or board.lost))
    )
    if before and not sender.tail_probe and sender.snd_una < sender.snd_max:
        sender.rearm(sender.connection.scheduler.now)  # the timer was set for the probe, which is sooner


def probe_when_due(recovery: SackRecovery, now: int) -> None:
    """The timer expired, and stood for the probe: send it, or wait for what is left of its time."""
    sender = recovery.sender
    rtt = sender.rtt
    patience = rtt.pto
    if sender.flight <= sender.mss:
        patience += DELAYED_ACK_MAX
    due = max(sender.last_sent, sender.progress_at) + min(patience, rtt.rto)
    if now < due:
        sender.connection.timers.retransmit.arm(due)
    else:
        _probe(recovery, now)


def _probe(recovery: SackRecovery, now: int) -> None:
    """Section 7.3: one segment, new if possible, else the last one again."""
    sender = recovery.sender
    recovery.engaged = True
    recovery.probe_again = not send_one_new(sender)
    if recovery.probe_again:
        if recovery.board is None:
            recovery.engage()
        board = recovery.board
        assert board is not None
        last = board.runs[-1]
        whole = last.end - last.start
        run = board.cut_tail(whole % sender.mss or min(whole, sender.mss))
        run.retransmitted = True
        run.sent_at = now
        plan: list[tuple[int, int, int]] = []
        recovery.plan(plan, run, sender.queue.end)
        emit_burst(sender.connection, plan)
        sender.last_sent = now
    recovery.probe_end = sender.snd_max
    sender.tail_probe = False
    sender.connection.layer.stats.tail_probes += 1
    sender.connection.timers.retransmit.arm(now + sender.rtt.rto)


def probe_answered(recovery: SackRecovery, una: int) -> None:
    """Section 7.4.2: SND.UNA is at or beyond the probe's end."""
    if not recovery.probe_again:
        recovery.probe_end = None
    elif recovery.probe_end is not None and una > recovery.probe_end:
        # No D-SACK came: the probe repaired a loss, which is congestion all the same.
        recovery.probe_end = None
        if recovery.phase is RecoveryPhase.OPEN:
            sender = recovery.sender
            sender.congestion.on_loss(sender.flight, sender.connection.scheduler.now)
    watch_tail(recovery)
