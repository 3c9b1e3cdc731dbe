"""The commonest segments without data, by fewer steps: over IPv4, one at a time, an acknowledgment that has nothing to
say but how far we are, or a FIN.

What arrives in bulk is answered by one such segment a turn, and most connections end by one. `emit_burst` is written
for trains of segments; what leaves here is the same to the bit, and is counted the same.
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
    emit_acks,
    emit_burst,
)
from stack.tcp.seqnum import MASK
from stack.wire.tcp import ACK, TIMESTAMPS_WORD

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb

_PLAIN_BITS: Final = 0x5000
_STAMPED_BITS: Final = 0x8000
_IPV4_LENGTH: Final = 20


def acknowledge(connection: Pcb, count: int) -> None:
    """`count` bare ACKs, as `emit_acks`."""
    receiver = connection.receiver
    if count != 1 or (connection.sack and (receiver.dsack or receiver.reassembly.length)):
        emit_acks(connection, connection.sender.bare_seq, count)
    else:
        emit_bare(connection, connection.sender.bare_seq, ACK)


def emit_bare(connection: Pcb, seq: int, flags: int) -> None:
    """One segment without data, as `emit_burst`."""
    sender = connection.sender
    receiver = connection.receiver
    template = connection.template
    options = connection.options
    generation = connection.ip.generation
    if (
        template is None  # nor with ECN
        or not template.word
        or connection.urgent is not None
        or sender.marks is not None
        or connection.route.generation != generation
        or not template.good(generation, options.ttl, options.tos)
    ):
        emit_burst(connection, ((seq, 0, flags),))
        return
    window = receiver.advertise()
    seq, ack = seq & MASK, receiver.rcv_nxt & MASK
    front, word, back = template.front, template.word, template.back
    if connection.timestamps:
        facts, total = STAMPED_FACTS4, STAMPED_LENGTH
        length = total + _IPV4_LENGTH
        check = connection.pseudo + total
        check = (check & 0xFFFF) + (check >> 16)
        ip_check = (template.base + length) % 0xFFFF ^ 0xFFFF
        stamp = (connection.scheduler.now // NS_PER_MS + connection.timestamp_offset) & MASK
        header = STAMPED4.pack(
            *(front, length, DONT_FRAGMENT, word, ip_check, back, seq, ack, _STAMPED_BITS | flags, window, check, 0),
            *(TIMESTAMPS_WORD, stamp, receiver.ts_recent),
        )
    else:
        facts, total = PLAIN_FACTS4, PLAIN_LENGTH
        length = total + _IPV4_LENGTH
        check = connection.pseudo + total
        check = (check & 0xFFFF) + (check >> 16)
        ip_check = (template.base + length) % 0xFFFF ^ 0xFFFF
        header = PLAIN4.pack(
            front, length, DONT_FRAGMENT, word, ip_check, back, seq, ack, _PLAIN_BITS | flags, window, check, 0
        )
    if connection.scheduler.sole:
        template.iface.send_alone((header,), facts, TCP_AT4 + total)
    else:
        template.iface.enqueue(((header,), *facts), TCP_AT4 + total)
    connection.layer.stats.segments_out += 1
    sender.segments += 1
