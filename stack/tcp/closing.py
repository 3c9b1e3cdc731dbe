"""Short ways at a connection's end: the peer's FIN, ours, and the last acknowledgment.

Most connections end as they should: all that was sent is acknowledged, then either side says that it has finished, in
a segment without data. What the ladder of `states`, `Sender.output` and the flush come to in that case is done here
by fewer steps. Whatever is peculiar takes those: each function answers False, and has done nothing.

`stack.tcp.express` asks for the two that take segments, when headers are as remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.tcp.bare import emit_bare
from stack.tcp.release import leave
from stack.tcp.seqnum import HALF, MASK
from stack.tcp.states import STATES
from stack.tcp.transitions import TcpState
from stack.wire.tcp import ACK, FIN

if TYPE_CHECKING:
    from stack.tcp.connection import Connection
    from stack.tcp.sender import Sender

_ESTABLISHED: Final = TcpState.ESTABLISHED
_CLOSE_WAIT: Final = TcpState.CLOSE_WAIT
_LAST_ACK: Final = TcpState.LAST_ACK
_CLOSED: Final = TcpState.CLOSED
_AFTER_FIN: Final = STATES[TcpState.CLOSE_WAIT]
_OVER: Final = STATES[TcpState.CLOSED]


def take_fin(connection: Connection, seq: int, ack: int, window: int, value: int, echo: int) -> bool:
    """FIN and ACK without data, in order, in ESTABLISHED, where header prediction may be tried: `Synchronized.segment`,
    and the flush, if that would only let the acknowledgment wait for our FIN and tell the user.
    """
    receiver = connection.receiver
    sender = connection.sender
    nxt = receiver.rcv_nxt
    una = sender.snd_una
    acked = (ack - una) & MASK
    if (
        connection.state is not _ESTABLISHED
        or seq != nxt & MASK
        or acked != sender.snd_max - una
        or receiver.rcv_adv <= nxt
        or receiver.fin_seq is not None
        or receiver.reassembly.length
        or connection.urgent is not None
        or sender.recovery.engaged
    ):
        return False
    now = connection.scheduler.now
    stamped = connection.timestamps
    if stamped:
        if (value - receiver.ts_recent) & MASK >= HALF:
            return False
        if nxt <= receiver.last_ack_sent:  # RFC 7323 section 4.3 (2)
            receiver.ts_recent = value
            receiver.ts_recent_at = now
    connection.usual = False
    connection.last_heard = now
    connection.soft_error = 0
    if acked:
        sender.acknowledge(una + acked, echo if stamped else None)
        sender.update_window(window, nxt, una + acked)
    else:
        sender.retries = 0
        if sender.update_window(window, nxt, una) and sender.snd_wnd:
            sender.backoff = 0
    receiver.fin_seq = nxt
    nxt += 1
    receiver.rcv_nxt = nxt
    receiver.reassembly.clear()
    if receiver.quick >= 0:
        receiver.owe_ack()
    connection.state = _CLOSE_WAIT
    connection.ladder = _AFTER_FIN
    if (
        connection.scheduled
        or connection.event
        or receiver.quick >= 0
        or receiver.acks_owed
        or receiver.update_due
        or nxt - receiver.last_ack_sent > receiver.mss
        or sender.queue.end > sender.snd_nxt
        or sender.fin_queued
        or sender.starved
        or sender.limited
        or sender.pacer is not None
        or sender.prober is not None
    ):
        connection.event = True
        connection.schedule()
        return True
    sender.cwnd_limited = False
    timer = connection.timers.delayed_ack
    if timer.deadline is None:
        delay = connection.layer.config.delayed_ack
        if delay > connection.options.delayed_ack_max:
            delay = connection.options.delayed_ack_max
        timer.arm(now + delay)
    neighbour = connection.route.neighbour
    if neighbour is not None:
        neighbour.confirm()
    if connection.on_event is not None:
        connection.on_event()
    return True


def take_last_ack(connection: Connection, seq: int, ack: int, value: int) -> bool:
    """The ACK of our FIN, bare and in order, when nobody holds the connection any more: `Synchronized.segment` in
    LAST-ACK, and a flush that has nobody to tell. What nobody can ask of it again is not brought up to date.
    """
    receiver = connection.receiver
    sender = connection.sender
    options = connection.options
    if (
        connection.state is not _LAST_ACK
        or not connection.orphan
        or seq != receiver.rcv_nxt & MASK
        or ack != sender.snd_max & MASK
        or sender.snd_max <= sender.queue.end
        or receiver.rcv_adv < receiver.rcv_nxt
        or (connection.timestamps and (value - receiver.ts_recent) & MASK >= HALF)
        or connection.on_event is not None
        or connection.scheduled
        or connection.urgent is not None
        or sender.recovery.engaged
        or sender.marks is not None
        or options.min_ttl
        or options.watching
    ):
        return False
    connection.usual = False
    connection.last_heard = connection.scheduler.now
    sender.snd_una = sender.snd_nxt = sender.snd_max
    neighbour = connection.route.neighbour
    if neighbour is not None:
        neighbour.confirm()
    connection.state = _CLOSED
    connection.ladder = _OVER
    leave(connection)
    return True


def send_fin(sender: Sender) -> bool:
    """All is acknowledged, nothing is left to be sent but FIN: it leaves, with the same result as in `output`."""
    nxt = sender.snd_nxt
    if (
        not sender.fin_queued
        or nxt != sender.queue.end
        or nxt != sender.snd_una
        or nxt != sender.snd_max
        or sender.starved
        or sender.limited
        or sender.backoff
        or sender.pacer is not None
        or sender.prober is not None
        or sender.recovery.engaged
        or sender.marks is not None
    ):
        return False
    connection = sender.connection
    now = connection.scheduler.now
    sender.cwnd_limited = sender.push = False
    end = nxt + 1
    sender.flights.append((end, now))
    sender.snd_nxt = sender.snd_max = end
    sender.progress_at = sender.last_sent = now
    sender.busy_at = sender.busy_at or now
    emit_bare(connection, nxt, ACK | FIN)
    rtt = sender.rtt
    connection.timers.retransmit.arm(now + (rtt.pto if sender.tail_probe else rtt.rto))
    return True
