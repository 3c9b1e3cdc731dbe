"""Segments on their way out: one `Struct.pack` per header, payload as views, checksum left to the link.

The checksum field holds the pseudo-header's partial sum (addresses and protocol summed once per connection, the length
added here); the device, or the link layer's software path, does the rest. More payload than one MSS makes a superframe.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.link.device import Buffer
from stack.scheduler import NS_PER_MS
from stack.tcp.seqnum import MASK
from stack.tcp.transitions import TcpState
from stack.wire.tcp import ACK, CHECKSUM_OFFSET, PROTO, SYN, TIMESTAMPS_WORD, HeaderOptions

if TYPE_CHECKING:
    from stack.tcp.connection import Connection

#: both ports, sequence number, acknowledgment number, data offset and flags, window, checksum, urgent
PLAIN: Final = struct.Struct("!IIIHHHH")
#: the same and the timestamp option in its usual place
STAMPED: Final = struct.Struct("!IIIHHHHIII")
PLAIN_LENGTH: Final = 20
STAMPED_LENGTH: Final = 32


def emit(connection: Connection, seq: int, flags: int, parts: list[Buffer] | tuple[()], length: int) -> None:
    """A segment (or superframe) of a connection past its handshake; it carries everything there is to acknowledge."""
    layer = connection.layer
    receiver = connection.receiver
    if length and receiver.rcv_nxt != receiver.last_ack_sent:
        receiver.quick = 0  # our data carries the ACKs: an interactive exchange, no need to hurry them
    window = receiver.advertise()
    if connection.timestamps:
        total = length + STAMPED_LENGTH
        check = connection.pseudo + total
        header = STAMPED.pack(
            connection.ports,
            seq & MASK,
            receiver.rcv_nxt & MASK,
            0x8000 | flags,
            window,
            (check & 0xFFFF) + (check >> 16),
            0,
            TIMESTAMPS_WORD,
            (connection.scheduler.now // NS_PER_MS + connection.timestamp_offset) & MASK,
            receiver.ts_recent,
        )
        header_length = STAMPED_LENGTH
    else:
        total = length + PLAIN_LENGTH
        check = connection.pseudo + total
        header = PLAIN.pack(
            connection.ports,
            seq & MASK,
            receiver.rcv_nxt & MASK,
            0x5000 | flags,
            window,
            (check & 0xFFFF) + (check >> 16),
            0,
        )
        header_length = PLAIN_LENGTH
    mss = connection.sender.mss
    if length > mss:
        hand_down(connection, (header, *parts), total, header_length, connection.gso_type, mss)
        layer.stats.segments_out += -(-length // mss)
    else:
        hand_down(connection, (header, *parts), total, header_length, 0, 0)
        layer.stats.segments_out += 1


def emit_syn(connection: Connection) -> None:
    """SYN, or SYN|ACK in SYN-RECEIVED, with the options of the handshake."""
    receiver = connection.receiver
    options = HeaderOptions(mss=connection.advmss)
    if connection.window_scaling:
        options.window_scale = receiver.shift
    if connection.timestamps:
        options.timestamps = (connection.timestamp(), receiver.ts_recent)
    ack = 0
    flags = SYN
    # RFC 7323 section 2.2: the window of a SYN is never scaled.
    window = min(receiver.space, 65535)
    if connection.state is TcpState.SYN_RECEIVED:
        flags = SYN | ACK
        ack = receiver.rcv_nxt
        receiver.rcv_adv = max(receiver.rcv_adv, ack + window)
        receiver.last_ack_sent = ack
        receiver.acks_owed = 0
    tail = options.emit()
    total = PLAIN_LENGTH + len(tail)
    check = connection.pseudo + total
    header = PLAIN.pack(
        connection.ports,
        connection.sender.iss & MASK,
        ack & MASK,
        (total << 10) | flags,
        window,
        (check & 0xFFFF) + (check >> 16),
        0,
    )
    connection.layer.stats.segments_out += 1
    hand_down(connection, (header + tail,), total, total, 0, 0)


def hand_down(
    connection: Connection,
    parts: tuple[Buffer, ...],
    total: int,
    header_length: int,
    gso_type: int,
    gso_size: int,
) -> None:
    """To IP. What cannot be sent now counts as lost on the way: the retransmission timer will try again."""
    layer = connection.layer
    ip = layer.ip
    options = connection.options
    try:
        route = connection.route
        if route.generation != ip.generation:
            route = layer.reroute(connection)
        ip.output(
            route,
            connection.local[0],
            connection.remote[0],
            PROTO,
            parts,
            total,
            ttl=options.ttl,
            tos=options.tos,
            csum_start_offset=CHECKSUM_OFFSET,
            gso_type=gso_type,
            gso_size=gso_size,
            header_length=header_length,
        )
    except NetError as failure:
        connection.soft_error = failure.errno
        layer.drops.count("output-failed")
