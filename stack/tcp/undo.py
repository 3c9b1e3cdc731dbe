"""Taking back a reduction of cwnd that proves unneeded: what was believed lost was late.

Timestamps tell (the ACK answers the original, RFC 3522), or D-SACK (all that was sent again was there already, RFC
3708), after a time-out also F-RTO (`frto`). `SackRecovery` counts what the first two need: ``undo_from`` to
``undo_stamp``, and ``eifel``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.tcp.recovery import RecoveryPhase
from stack.tcp.seqnum import older
from stack.tcp.tailprobe import watch_tail

if TYPE_CHECKING:
    from stack.tcp.sack_recovery import SackRecovery


def remember(recovery: SackRecovery) -> None:
    """cwnd is about to be reduced."""
    board = recovery.board
    recovery.undo_from = recovery.sender.snd_una
    recovery.eifel = board is not None and bool(board.runs) and not board.runs[0].retransmitted
    recovery.undo_bytes = recovery.undo_resent = 0
    recovery.undo_stamp = None


def take_back_if_unneeded(recovery: SackRecovery) -> None:
    """What this turn's ACKs say of the last reduction, if there is one to take back."""
    if recovery.undo_from is None:
        return
    stamp = recovery.undo_stamp
    if recovery.advanced and stamp is not None and recovery.sender.snd_una > recovery.undo_from:
        # RFC 3522: the first ACK for new data tells which transmission it answers.
        recovery.undo_stamp = None
        recovery.eifel = False
        if recovery.echo and older(recovery.echo, stamp):
            take_back(recovery)
            return
    if recovery.dsack and recovery.undo_bytes <= 0 < recovery.undo_resent:
        take_back(recovery)


def take_back(recovery: SackRecovery) -> None:
    """cwnd and ssthresh as before, nothing is lost."""
    sender = recovery.sender
    sender.congestion.undo()
    sender.connection.layer.stats.spurious += 1
    recovery.undo_from = recovery.undo_stamp = None
    recovery.frto = 0
    if recovery.board is not None:
        recovery.board.lost_nothing()
    if recovery.phase is RecoveryPhase.LOSS:
        sender.backoff = 0
    recovery.phase = RecoveryPhase.OPEN
    recovery.beyond = False
    recovery.rack.reordering_seen = True
    watch_tail(recovery)
