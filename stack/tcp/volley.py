"""Bulk: many superframes in one go, for the price of little more than one.

Theory of operation
-------------------
The plan of a bulk transfer is a run of equal superframes and perhaps a shorter one at its end. Where nobody between TCP
and the card looks at single frames, `send_volley` makes one header for all of the run, and the card counts the sequence
number up in its copies (`stack.link.device.VolleyDevice`). What is on the wire, and in every counter, is what
`output.emit_burst` would have put there; what does not go this way goes that one.

A card that takes part of a volley is full. The rest stays in the send queue, so that it can be a volley again, until
an acknowledgment of what the card took says that the guest has emptied it (`Sender.clogged`); that one is to come in
any case. So do superframes of a connection that has something in flight while the interface has a backlog
(`crowded`), which sees to it that the card says when there is room: as with TCP Small Queues of Linux, a queue below
TCP would only make round trips longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.iface.volley import launch
from stack.link.device import NEEDS_CSUM
from stack.scheduler import NS_PER_MS
from stack.tcp.output import (
    DONT_FRAGMENT,
    PLAIN4,
    PLAIN6,
    PLAIN_LENGTH,
    STAMPED4,
    STAMPED6,
    STAMPED_LENGTH,
)
from stack.tcp.seqnum import MASK
from stack.wire.tcp import ACK, CHECKSUM_OFFSET, TIMESTAMPS_WORD

if TYPE_CHECKING:
    from stack.link.device import VolleyHead
    from stack.tcp.pcb import Pcb

#: Superframes handed over at a time: a MiB and what is left over of one, which bounds how long the card keeps its ring
#: to itself.
MOST: Final = 17
#: A last piece below this (bytes) leaves by itself: it may have to be padded.
LEAST: Final = 64


def crowded(connection: Pcb) -> bool:
    """Superframes wait in front of a card that takes volleys. Then the connection hears when there is room again."""
    template = connection.template
    if template is None or template.iface.volley is None or not template.iface.backlog:
        return False
    template.iface.when_drained(connection.schedule)
    return True


def send_volley(connection: Pcb, plan: list[tuple[int, int, int]], run: int) -> list[tuple[int, int, int]]:
    """Send the `run` equal superframes that `plan` begins with, and what follows them if it may; what is left of `plan`
    is to be sent in the ordinary way.

    When the card was full, `plan` is cut short: what is not in it any more must wait.
    """
    template = connection.template
    sender = connection.sender
    size = plan[0][1]
    options = connection.options
    if (
        template is None
        or not template.iface.direct
        or size <= sender.mss
        or connection.urgent is not None
        or sender.marks is not None
        or connection.route.generation != connection.ip.generation
        or not template.good(connection.ip.generation, options.ttl, options.tos)
    ):
        return plan
    count = run
    last_size, last_flags = size, ACK
    if len(plan) > run and LEAST <= plan[run][1] <= size:
        _, last_size, last_flags = plan[run]
        count += 1
    if count < 2:
        return plan
    receiver = connection.receiver
    if (
        receiver.rcv_nxt != receiver.last_ack_sent
        or connection.scheduler.now - receiver.hurried_at < connection.layer.config.delayed_ack
    ):
        receiver.quick = -1  # as in `emit_burst`
    window = receiver.advertise()
    head = last = _head(connection, window, size, ACK)
    place = template.start + 4
    done = 0
    while done < count:
        some = count - done
        if some > MOST:
            some, length = MOST, MOST * size
        else:
            length = (some - 1) * size + last_size
            if count > run:
                last = _head(connection, window, last_size, last_flags)
        first = plan[done][0]
        parts = sender.queue.slice(first, length)
        accepted = launch(template.iface, head, last, some, (place, first & MASK), parts)
        done += accepted
        if accepted < some:
            break
    if not done:
        return plan
    mss = sender.mss
    segments = done * (size // mss)
    if done == count > run:
        segments += -(-last_size // mss) - size // mss
    connection.layer.stats.segments_out += segments
    sender.segments += segments
    sender.data_segments += segments
    if done < count:
        del plan[done:]
    return plan[done:]


def _head(connection: Pcb, window: int, size: int, flags: int) -> VolleyHead:
    """Headers in front of `size` bytes of payload, all but the sequence number."""
    template = connection.template
    assert template is not None
    receiver = connection.receiver
    stamped = connection.timestamps
    length = STAMPED_LENGTH if stamped else PLAIN_LENGTH
    total = size + length
    check = connection.pseudo + total
    check = (check & 0xFFFF) + (check >> 16)
    start = template.start
    word = template.word
    front: tuple[bytes | int, ...]
    if word:
        size4 = total + 20
        ip_check = (template.base + size4) % 0xFFFF ^ 0xFFFF
        front = (template.front, size4, DONT_FRAGMENT, word, ip_check, template.back)
    else:
        front = (template.front, total, template.back)
    ack = receiver.rcv_nxt & MASK
    if stamped:
        stamp = (connection.scheduler.now // NS_PER_MS + connection.timestamp_offset) & MASK
        packed = (STAMPED4 if word else STAMPED6).pack(
            *front, 0, ack, 0x8000 | flags, window, check, 0, TIMESTAMPS_WORD, stamp, receiver.ts_recent
        )
    else:
        packed = (PLAIN4 if word else PLAIN6).pack(*front, 0, ack, 0x5000 | flags, window, check, 0)
    gso = size > connection.sender.mss
    facts = (
        NEEDS_CSUM,
        connection.gso_type if gso else 0,
        start + length,
        connection.sender.mss if gso else 0,
        start,
        CHECKSUM_OFFSET,
    )
    return packed, facts, size
