"""Questions and answers: what most connections carry, by the fewest steps in (`hear`) and out (`say`).

Theory of operation
-------------------
The general ways ask of each segment and each write whether anything is peculiar: is something lost, is there a FIN, a
cork, a pacer, somebody who wants time stamps? In a conversation the answers stay the same for thousands of segments.
So they are asked for once (`usual`) and remembered (`Pcb.usual`) until something other than a conversation moves the
connection. There are few ways to move it, and they forget: a flush asked for (`Pcb.schedule`: the user's calls,
options, delayed acknowledgments, changes of state), a segment taken otherwise (`Pcb.segment`, `Pcb.fast`), the
retransmission timer, and who wants to be told of bytes sent (`SendMarks`). What a conversation itself changes (numbers,
windows, what is in flight) is looked at each time, and so are route and template.

What is done here comes to the same, frame for frame and figure for figure, as what header prediction, `Sender` and
`Receiver` do in these cases; `test_short_ways` holds one against the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.tcp.buffers import KEEP_ABOVE
from stack.tcp.lone import leave
from stack.tcp.seqnum import HALF, MASK
from stack.tcp.transitions import TcpState

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.tcp.connection import Connection

_ESTABLISHED: Final = TcpState.ESTABLISHED


def usual(connection: Connection) -> bool:
    """Whether nothing about the connection is peculiar, and no flush is to come; remembered if so."""
    receiver = connection.receiver
    sender = connection.sender
    options = connection.options
    connection.usual = found = (
        receiver.quick < 0  # acknowledgments wait for answers
        and not connection.scheduled
        and not connection.event
        and connection.state is _ESTABLISHED
        and connection.ecn is None
        and connection.urgent is None
        and receiver.fin_seq is None
        and receiver.times is None
        and not receiver.reassembly.length
        and not receiver.acks_owed
        and not receiver.update_due
        and sender.snd_una >= sender.karn
        and sender.marks is None
        and sender.pacer is None
        and sender.prober is None
        and not sender.fin_queued
        and not sender.backoff
        and not sender.recovery.engaged
        and not sender.cwnd_limited
        and not sender.clogged
        and not sender.limited
        and not sender.starved
        and not sender.more
        and not sender.push
        and not options.cork
        and not options.stamps
        and not options.user_timeout
        and not options.notsent_lowat
    )
    return found


def hear(
    connection: Connection, frame: memoryview, end: int, size: int, seq: int, ack: int, window: int, value: int
) -> bool:
    """A question, or an answer that acknowledges the question: the `size` bytes of payload before byte `end` of
    `frame`, in order, when all that was sent, in one piece and once, is acknowledged now or was before. False: nothing
    was done.

    The flush would only let the acknowledgment wait for the answer and tell the user: both is done here.
    """
    receiver = connection.receiver
    sender = connection.sender
    nxt = receiver.rcv_nxt
    una = sender.snd_una
    acked = (ack - una) & MASK
    queue = sender.queue
    if (
        seq != nxt & MASK
        or acked != sender.snd_max - una
        or queue.end != una + acked
        or nxt + size - receiver.last_ack_sent > receiver.mss
        or size > receiver.rcv_adv - nxt
        or not (connection.usual or usual(connection))
    ):
        return False
    now = connection.scheduler.now
    if connection.timestamps:
        if (value - receiver.ts_recent) & MASK >= HALF:
            return False
        stamped = nxt <= receiver.last_ack_sent  # RFC 7323 section 4.3 (2)
    else:
        stamped = False
    timers = connection.timers
    if acked:
        flights = sender.flights
        if len(flights) != 1:
            return False
        sent_at = flights.popleft()[1]
        if sent_at:
            sender.rtt.sample(now - sent_at)
        una += acked
        sender.snd_una = sender.snd_nxt = una
        queue.release(una)
        sender.bytes_acked += acked
        sender.progress_at = now
        timers.retransmit.deadline = None  # RFC 6298 section 5 (5.2)
        if sender.busy_at:
            sender.busy_time += now - sender.busy_at
            sender.busy_at = 0
    if stamped:
        receiver.ts_recent = value
        receiver.ts_recent_at = now
    if window != sender.raw_window:
        sender.update_window(window, nxt, una)
    receiver.rcv_nxt = nxt + size
    receiver.data_segments += 1
    arrived = receiver.queue
    arrived.append_small(frame[end - size : end].tobytes(), size)
    if arrived.charge > receiver.pin_limit:
        arrived.limit(receiver.pin_limit)
    connection.soft_error = 0
    timer = timers.delayed_ack
    if timer.deadline is None:
        delay = connection.layer.config.delayed_ack
        if delay > connection.options.delayed_ack_max:
            delay = connection.options.delayed_ack_max
        timer.arm(now + delay)
    connection.last_heard = now
    neighbour = connection.route.neighbour
    if neighbour is not None and now >= neighbour.confirm_from:
        neighbour.confirm()
    notify = connection.on_event
    if notify is not None:
        notify()
    return True


def say(connection: Connection, data: Buffer) -> bool:
    """`Connection.write` and the flush to follow, for a question or an answer that may leave at once, where a socket
    call does that and nothing else. False: nothing was done.
    """
    if type(data) is not bytes:
        return False
    sender = connection.sender
    queue = sender.queue
    size = len(data)
    una = sender.snd_una
    if (
        queue.end != una  # nothing in flight either
        or not 0 < size < sender.mss
        or size > KEEP_ABOVE
        or size > sender.snd_wnd
        or size > sender.congestion.cwnd
        or size >= sender.sndbuf
        or connection.error
        or connection.scheduler.deferred
        or not (connection.usual or usual(connection))
    ):
        return False
    queue.append_lone(data, size)
    leave(sender, una, size, (data,), True, True)
    return True
