"""A flush that has nothing to send, or one short piece: the two commonest outcomes outside of bulk transfers.

A question and its answer are most of what connections carry. `Sender.output` is written for trains of superframes; what
these functions do comes to the same in the cases they take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_MS
from stack.tcp.output import (
    DONT_FRAGMENT,
    PLAIN4,
    PLAIN_FACTS4,
    PLAIN_LENGTH,
    STAMPED4,
    STAMPED_FACTS4,
    STAMPED_LENGTH,
    TCP_AT4,
    emit_burst,
)
from stack.tcp.seqnum import MASK
from stack.wire.tcp import ACK, PSH, TIMESTAMPS_WORD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import Buffer
    from stack.tcp.sender import Sender

_PLAIN_BITS: Final = 0x5000 | ACK | PSH
_STAMPED_BITS: Final = 0x8000 | ACK | PSH
_pack_plain: Final = PLAIN4.pack
_pack_stamped: Final = STAMPED4.pack


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
    queue = sender.queue
    size = queue.end - nxt
    if sender.snd_max != sender.snd_una or not 0 < size < sender.mss:
        return False
    connection = sender.connection
    options = connection.options
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
    sender.cwnd_limited = False
    plain = connection.urgent is None and connection.ecn is None and sender.marks is None
    leave(sender, nxt, size, queue.slice(nxt, size), plain, connection.scheduler.sole)
    return True


def leave(sender: Sender, nxt: int, size: int, parts: Sequence[Buffer], plain: bool, alone: bool) -> None:
    """All there is to send, the `size` bytes `parts` from `nxt` on, leaves now; nothing is in flight.

    If it is `plain`, with a template and over IPv4, as nearly always, the frame of `emit_burst` is made here by fewer
    steps. `alone`: there is nothing else to be done in this turn, so it need not wait for its end.
    """
    connection = sender.connection
    now = connection.scheduler.now
    rtt = sender.rtt
    if now - sender.last_sent > rtt.rto:
        sender.congestion.on_idle()
    end = sender.small_end = nxt + size
    sender.flights.append((end, now))
    sender.snd_nxt = sender.snd_max = end
    sender.progress_at = sender.last_sent = now
    sender.busy_at = sender.busy_at or now
    sender.push = False
    template = connection.template
    stamped = connection.timestamps
    total = size + (STAMPED_LENGTH if stamped else PLAIN_LENGTH)
    if (
        not plain
        or template is None
        or not template.word
        or total > template.limit
        or not template.good(connection.ip.generation, connection.options.ttl, connection.options.tos)
    ):
        emit_burst(connection, ((nxt, size, ACK | PSH),), True)
    else:
        receiver = connection.receiver
        layer = connection.layer
        rcv_nxt = receiver.rcv_nxt
        if rcv_nxt != receiver.last_ack_sent or now - receiver.hurried_at < layer.config.delayed_ack:
            receiver.quick = -1  # see emit_burst
        window = receiver.advertise()
        check = connection.pseudo + total
        check = (check & 0xFFFF) + (check >> 16)
        length = total + PLAIN_LENGTH  # that of an IPv4 header without options, too
        ip_check = (template.base + length) % 0xFFFF ^ 0xFFFF
        front, word, back = template.front, template.word, template.back
        seq, ack = nxt & MASK, rcv_nxt & MASK
        if stamped:
            stamp = (now // NS_PER_MS + connection.timestamp_offset) & MASK
            header = _pack_stamped(
                *(front, length, DONT_FRAGMENT, word, ip_check, back, seq, ack, _STAMPED_BITS, window, check, 0),
                *(TIMESTAMPS_WORD, stamp, receiver.ts_recent),
            )
            facts = STAMPED_FACTS4
        else:
            header = _pack_plain(
                front, length, DONT_FRAGMENT, word, ip_check, back, seq, ack, _PLAIN_BITS, window, check, 0
            )
            facts = PLAIN_FACTS4
        if alone:
            template.iface.send_alone((header, *parts), facts, total + TCP_AT4)
        else:
            template.iface.enqueue(((header, *parts), *facts), total + TCP_AT4)
        layer.stats.segments_out += 1
        sender.segments += 1
        sender.data_segments += 1
    if sender.tail_probe:
        delay = rtt.pto
    else:
        delay = rtt.backed_off(sender.doublings) if sender.backoff else rtt.rto
    connection.timers.retransmit.arm(now + delay)
