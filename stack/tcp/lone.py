"""A flush that has nothing to send, or one short piece: the two commonest outcomes outside of bulk transfers.

A question and its answer are most of what connections carry. `Sender.output` is written for trains of superframes; what
these functions do comes to the same in the cases they take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.tcp.output import emit_burst
from stack.wire.tcp import ACK, PSH

if TYPE_CHECKING:
    from stack.tcp.sender import Sender


def busy(sender: Sender) -> bool:
    """Whether `output` has anything to do: something to send, to time, to watch."""
    if (
        sender.queue.end > sender.snd_nxt
        or sender.fin_queued
        or sender.recovery.engaged
        or sender.pacer is not None
        or sender.prober is not None
        or sender.starved
        or sender.limited
        or (sender.snd_una < sender.snd_max and sender.connection.timers.retransmit.deadline is None)
    ):
        return True
    sender.cwnd_limited = False
    return False


def send_lone(sender: Sender) -> bool:
    """Nothing is in flight: if all there is to send is one short piece, a question or an answer, and nothing is
    peculiar, it leaves here, with the same result as in `output`. False: nothing was done.
    """
    nxt = sender.snd_nxt
    size = sender.queue.end - nxt
    if sender.snd_max != sender.snd_una or not 0 < size < sender.mss:
        return False
    connection = sender.connection
    options = connection.options
    now = connection.scheduler.now
    if (
        nxt != sender.snd_max
        or size > sender.snd_wnd
        or size > sender.congestion.cwnd
        or sender.fin_queued
        or sender.more
        or sender.starved
        or sender.limited
        or options.cork
        or options.user_timeout
        or sender.pacer is not None
        or sender.prober is not None
        or sender.recovery.engaged
    ):
        return False
    if now - sender.last_sent > sender.rtt.rto:
        sender.congestion.on_idle()
    sender.cwnd_limited = False
    end = sender.small_end = nxt + size
    sender.flights.append((end, now))
    sender.snd_nxt = sender.snd_max = end
    sender.progress_at = sender.last_sent = now
    sender.busy_at = sender.busy_at or now
    sender.push = False
    emit_burst(connection, ((nxt, size, ACK | PSH),), True)
    connection.timers.retransmit.arm(
        now + (sender.rtt.pto if sender.tail_probe else sender.rtt.backed_off(sender.doublings))
    )
    return True
