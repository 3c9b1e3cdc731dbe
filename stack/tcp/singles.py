"""Single segments that leave out of turn: the first one again, one new one as a probe, one longer than the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.tcp.output import emit_burst, emit_whole
from stack.tcp.pacing import sent_paced
from stack.wire.tcp import ACK, FIN, PSH

if TYPE_CHECKING:
    from stack.tcp.sender import Sender


def retransmit_first(sender: Sender) -> bool:
    """Send the first unacknowledged segment again, whatever the windows say."""
    una = sender.snd_una
    queue = sender.queue
    size = min(sender.mss, queue.end - una, sender.snd_max - una)
    flags = ACK
    end = una + max(size, 0)
    if end == queue.end and sender.fin_sent:
        flags = ACK | FIN
        end += 1
    if end == una:
        return False
    sender.sent_again(una, end)
    if sender.snd_nxt < end:
        sender.snd_nxt = end
    sender.last_sent = sender.connection.scheduler.now
    emit_burst(sender.connection, ((una, max(size, 0), flags),))
    return True


def send_one_new(sender: Sender) -> bool:
    """One new segment, if there is one and the peer's window has room: a probe, whatever cwnd and Nagle say."""
    nxt = sender.snd_nxt
    unsent = sender.queue.end - nxt
    size = min(sender.mss, unsent, sender.snd_una + sender.snd_wnd - nxt)
    if size <= 0 or nxt < sender.snd_max:
        return False
    now = sender.connection.scheduler.now
    flags = ACK
    end = nxt + size
    if size == unsent:
        flags = ACK | PSH
        if sender.fin_queued:
            flags = ACK | PSH | FIN
            end += 1
    if size < sender.mss:
        sender.small_end = end
    sender.flights.append((end, now))
    sender.leaving(nxt, end, now, idle=False)
    emit_burst(sender.connection, ((nxt, size, flags),), True)
    return True


def send_mtu_probe(sender: Sender, size: int, now: int) -> None:
    """`size` bytes of new data in one segment, whatever the MSS. They are there, and the windows allow them."""
    connection = sender.connection
    nxt = sender.snd_nxt
    end = nxt + size
    sender.flights.append((end, now))
    if sender.pacer is not None:
        sent_paced(sender, sender.pacer, nxt, end, end, now)
    sender.leaving(nxt, end, now, idle=sender.snd_una == sender.snd_max)
    emit_whole(connection, nxt, size)
    if connection.timers.retransmit.deadline is None:
        sender.arm(now)
