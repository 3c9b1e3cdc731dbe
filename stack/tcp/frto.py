"""F-RTO (RFC 5682): was a time-out spurious? Numbers for both kinds of loss recovery, and the judgement with SACK.

After the first ACK new data goes out instead of more retransmissions, and the next one tells: if it is for data sent
before the time-out and once only, nothing had been lost. (Without SACK: `recovery`.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.tcp.sack_recovery import SackRecovery
    from stack.tcp.scoreboard import Scoreboard

FRTO_SEGMENTS: Final = 2  # new segments after the first ACK; sections 2.1 and 3.1 step 2b
FRTO_WINDOW: Final = 3  # segments, when the time-out was right after all; step 3a


def judge(recovery: SackRecovery, board: Scoreboard) -> bool:
    """RFC 5682 section 3.1: what this turn's news say about the time-out. True: it was spurious."""
    sender = recovery.sender
    congestion = sender.congestion
    if recovery.frto == 1:
        if not recovery.advanced:
            return False  # step 2: only the ACK of the retransmission itself counts
        recovery.frto_end = sender.snd_max
        edge = sender.snd_una + sender.snd_wnd
        if sender.queue.end > sender.snd_max and edge >= sender.snd_max + sender.mss:
            # (2b) new data instead of retransmissions; the sender will find room for it
            pipe = sender.flight - board.sacked - board.lost
            congestion.cwnd = pipe + FRTO_SEGMENTS * sender.mss
            recovery.frto = 2
        else:
            recovery.frto = 0
    elif recovery.advanced or recovery.reported:
        recovery.frto = 0
        if max(sender.snd_una, board.highest_sacked) > recovery.frto_end:
            # (3a) the new data overtook the old: that is lost
            congestion.cwnd = min(congestion.cwnd, FRTO_WINDOW * sender.mss)
        else:
            return recovery.original  # (3b)
    return False
