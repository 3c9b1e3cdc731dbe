"""Segments on their way out: one `Struct.pack` per header, payload as views, checksum left to the link.

The checksum field holds the pseudo-header's partial sum (addresses and protocol summed once per connection, the length
added here); the device, or the link layer's software path, does the rest. More payload than one MSS makes a superframe.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.link.device import NEEDS_CSUM
from stack.scheduler import NS_PER_MS
from stack.tcp.discovery import dont_fragment
from stack.tcp.ecn import ECN_MASK, syn_flags
from stack.tcp.seqnum import MASK
from stack.tcp.transitions import TcpState
from stack.wire.tcp import ACK, CHECKSUM_OFFSET, ECE, PROTO, SYN, TIMESTAMPS_WORD, URG, HeaderOptions

if TYPE_CHECKING:
    from stack.ip.route import Route
    from stack.ip.template import HeaderTemplate
    from stack.link.device import Buffer
    from stack.tcp.pcb import Pcb

#: both ports, sequence number, acknowledgment number, data offset and flags, window, checksum, urgent
PLAIN: Final = struct.Struct("!IIIHHHH")
#: the same and the timestamp option in its usual place
STAMPED: Final = struct.Struct("!IIIHHHHIII")
#: Ethernet and IPv4 headers, from a template, and either of these without its ports: front, total length,
#: identification and flags, TTL and protocol, checksum, addresses and ports
_FRAME4: Final = "16sHIHH12s"
PLAIN4: Final = struct.Struct(f"!{_FRAME4}IIHHHH")
STAMPED4: Final = struct.Struct(f"!{_FRAME4}IIHHHHIII")
#: ... Ethernet and IPv6: front, payload length, next header, hop limit, addresses and ports
_FRAME6: Final = "18sH38s"
PLAIN6: Final = struct.Struct(f"!{_FRAME6}IIHHHH")
STAMPED6: Final = struct.Struct(f"!{_FRAME6}IIHHHHIII")
DONT_FRAGMENT: Final = 0x4000  # behind an identification of 0
PLAIN_LENGTH: Final = 20
STAMPED_LENGTH: Final = 32
#: Where the TCP header begins behind those of Ethernet and IPv4, and the offload facts of a frame with either of them.
TCP_AT4: Final = 14 + 20
PLAIN_FACTS4: Final = (NEEDS_CSUM, 0, TCP_AT4 + PLAIN_LENGTH, 0, TCP_AT4, CHECKSUM_OFFSET)
STAMPED_FACTS4: Final = (NEEDS_CSUM, 0, TCP_AT4 + STAMPED_LENGTH, 0, TCP_AT4, CHECKSUM_OFFSET)


def emit(connection: Pcb, seq: int, flags: int) -> None:
    """A segment without data; it carries everything there is to acknowledge."""
    emit_burst(connection, ((seq, 0, flags),))


def emit_burst(connection: Pcb, plan: Sequence[tuple[int, int, int]], fresh: bool = False) -> None:
    """Segments and superframes of a connection past its handshake: (sequence number, payload bytes, flags) each.

    Acknowledgment, window and timestamp are the same for all of them. What cannot be sent now counts as lost on the
    way: the retransmission timer will try again. `fresh`: new data, which may be sent as ECN-capable.
    """
    layer = connection.layer
    ip = connection.ip
    receiver = connection.receiver
    slice_ = connection.sender.queue.slice
    if plan[0][1] and (
        receiver.rcv_nxt != receiver.last_ack_sent
        or connection.scheduler.now - receiver.hurried_at < layer.config.delayed_ack
    ):
        receiver.quick = -1  # our data carries the ACKs, or could have: an interactive exchange, no need to hurry them
    window = receiver.advertise()
    ack = receiver.rcv_nxt & MASK
    stamped = connection.timestamps
    header_length = STAMPED_LENGTH if stamped else PLAIN_LENGTH
    stamp = (connection.scheduler.now // NS_PER_MS + connection.timestamp_offset) & MASK
    echo = receiver.ts_recent
    pseudo = connection.pseudo
    ttl, tos = connection.options.ttl, connection.options.tos
    segments = bare = 0
    try:
        route = connection.route
        if route.generation != ip.generation:
            route = layer.reroute(connection)
        mss = connection.sender.mss  # after reroute, which may have lowered it: then longer segments are cut
        urgent = connection.urgent
        if urgent is not None:
            plan = urgent.dress(connection, plan, mss, fresh=fresh)
        if connection.ecn is not None:
            plan, codepoint = connection.ecn.dress(plan, mss, fresh=fresh)
            tos = tos & ~ECN_MASK | codepoint
        template = connection.template
        if template is None or not template.good(ip.generation, ttl, tos):
            template = _new_template(connection, route, ttl, tos)
        for seq_at, length, flags in plan:
            total = length + header_length
            check = pseudo + total
            check = (check & 0xFFFF) + (check >> 16)
            pointer = urgent.pointer(seq_at) if urgent is not None and flags & URG else 0
            seq = seq_at & MASK
            if length > mss:
                segments += -(-length // mss)
                gso_type, gso_size = connection.gso_type, mss
            else:
                segments += 1
                gso_type = gso_size = 0
                if not length:
                    bare += 1
            if template is None or (total > template.limit and (not gso_size or total > template.most)):
                if stamped:
                    header = STAMPED.pack(
                        connection.ports, seq, ack, 0x8000 | flags, window, check, pointer, TIMESTAMPS_WORD, stamp, echo
                    )
                else:
                    header = PLAIN.pack(connection.ports, seq, ack, 0x5000 | flags, window, check, pointer)
                ip.output(
                    route,
                    connection.local[0],
                    connection.remote[0],
                    PROTO,
                    (header, *slice_(seq_at, length)) if length else (header,),
                    total,
                    ttl=ttl,
                    tos=tos,
                    dont_fragment=dont_fragment(connection.options, connection.remote[0]),
                    options=connection.ip_options,
                    csum_start_offset=CHECKSUM_OFFSET,
                    gso_type=gso_type,
                    gso_size=gso_size,
                    header_length=header_length,
                )
                continue
            start = template.start
            if template.word:
                size = total + 20
                word, front, back = template.word, template.front, template.back
                ip_check = (template.base + size) % 0xFFFF ^ 0xFFFF
                if stamped:
                    header = STAMPED4.pack(
                        front,
                        size,
                        DONT_FRAGMENT,
                        word,
                        ip_check,
                        back,
                        seq,
                        ack,
                        0x8000 | flags,
                        window,
                        check,
                        pointer,
                        TIMESTAMPS_WORD,
                        stamp,
                        echo,
                    )
                else:
                    header = PLAIN4.pack(
                        front,
                        size,
                        DONT_FRAGMENT,
                        word,
                        ip_check,
                        back,
                        seq,
                        ack,
                        0x5000 | flags,
                        window,
                        check,
                        pointer,
                    )
            elif stamped:
                header = STAMPED6.pack(
                    template.front,
                    total,
                    template.back,
                    seq,
                    ack,
                    0x8000 | flags,
                    window,
                    check,
                    pointer,
                    TIMESTAMPS_WORD,
                    stamp,
                    echo,
                )
            else:
                header = PLAIN6.pack(
                    template.front, total, template.back, seq, ack, 0x5000 | flags, window, check, pointer
                )
            template.iface.enqueue(
                (
                    (header, *slice_(seq_at, length)) if length else (header,),
                    NEEDS_CSUM,
                    gso_type,
                    start + header_length,
                    gso_size,
                    start,
                    CHECKSUM_OFFSET,
                ),
                total + start,
            )
    except NetError as failure:
        connection.soft_error = failure.errno
        layer.drops.count("output-failed")
    layer.stats.segments_out += segments
    sender = connection.sender
    sender.segments += segments
    sender.data_segments += segments - bare
    if sender.marks is not None:
        sender.marks.left(plan)


def _new_template(connection: Pcb, route: Route, ttl: int, tos: int) -> HeaderTemplate | None:
    """What the headers in front of the connection's segments will have in common, None if that is not known yet."""
    connection.template = None
    if (
        connection.ecn is None  # else TOS changes all the time
        and connection.ip is connection.layer.ip  # else there is more
        and dont_fragment(connection.options, connection.remote[0])  # else every packet is numbered
        and not connection.ip_options
    ):
        connection.template = connection.layer.ip.template(
            route,
            connection.local[0],
            connection.remote[0],
            PROTO,
            connection.ports.to_bytes(4, "big"),
            ttl=ttl,
            tos=tos,
        )
    return connection.template


def emit_acks(connection: Pcb, seq: int, count: int) -> None:
    """`count` bare ACKs; or as many as it takes to say what is out of order or came twice (RFC 2018, 2883)."""
    receiver = connection.receiver
    if not (connection.sack and (receiver.reassembly.length or receiver.dsack)):
        emit_burst(connection, [(seq, 0, ACK)] * count)
        return
    if receiver.dsack and receiver.reassembly.length:
        # RFC 2883 section 4.2: the block that contains the duplicate follows at once.
        receiver.reassembly.look_at(receiver.dsack[0])
    options = HeaderOptions()
    most = 4  # blocks; three beside timestamps
    if connection.timestamps:
        options.timestamps = (connection.timestamp(), receiver.ts_recent)
        most = 3
    elif connection.options.keys is not None:
        most = 2  # beside a signature
    blocks = receiver.reassembly.report(most * count)
    duplicate, receiver.dsack = receiver.dsack, None
    if duplicate is not None:
        blocks.insert(0, duplicate)
    window = receiver.advertise()
    flags = ACK | ECE if connection.ecn is not None and connection.ecn.echo else ACK
    # An ACK speaks of everything the burst brought, so one is enough for as many blocks as it holds; the newest last.
    for first in range((len(blocks) - 1) // most * most, -1, -most):
        options.sack = tuple((left & MASK, right & MASK) for left, right in blocks[first : first + most])
        _emit_with_options(connection, seq, receiver.rcv_nxt, flags, window, options)


def emit_whole(connection: Pcb, seq: int, length: int) -> None:
    """One segment of data, even if it is longer than the MSS: a probe of the path."""
    receiver = connection.receiver
    options = HeaderOptions()
    if connection.timestamps:
        options.timestamps = (connection.timestamp(), receiver.ts_recent)
    window = receiver.advertise()
    parts = connection.sender.queue.slice(seq, length)
    _emit_with_options(connection, seq, receiver.rcv_nxt, ACK, window, options, parts, length)
    if connection.sender.marks is not None:
        connection.sender.marks.left(((seq, length, ACK),))


def emit_syn(connection: Pcb) -> None:
    """SYN, or SYN|ACK in SYN-RECEIVED, with the options of the handshake."""
    receiver = connection.receiver
    options = HeaderOptions(mss=connection.advmss)
    if connection.window_scaling:
        options.window_scale = receiver.shift
    if connection.timestamps:
        options.timestamps = (connection.timestamp(), receiver.ts_recent)
    options.sack_permitted = connection.sack
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
    flags |= syn_flags(connection, flags)
    parts: Sequence[Buffer] = ()
    length = 0
    if connection.fastopen is not None:
        options.fastopen, length = connection.fastopen.dress(connection)
        if length:
            parts = connection.sender.queue.slice(connection.sender.iss + 1, length)
    _emit_with_options(connection, connection.sender.iss, ack, flags, window, options, parts, length)


def _emit_with_options(
    connection: Pcb,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: HeaderOptions,
    parts: Sequence[Buffer] = (),
    length: int = 0,
) -> None:
    """One segment with any options; `parts` are its `length` bytes of data."""
    tail = options.emit()
    header_length = PLAIN_LENGTH + len(tail)
    total = header_length + length
    check = connection.pseudo + total
    header = PLAIN.pack(
        connection.ports,
        seq & MASK,
        ack & MASK,
        (header_length << 10) | flags,
        window,
        (check & 0xFFFF) + (check >> 16),
        0,
    )
    layer = connection.layer
    ip = connection.ip
    try:
        route = connection.route
        if route.generation != ip.generation:
            route = layer.reroute(connection)
        ip.output(
            route,
            connection.local[0],
            connection.remote[0],
            PROTO,
            (header + tail, *parts),
            total,
            ttl=connection.options.ttl,
            tos=connection.options.tos,
            dont_fragment=dont_fragment(connection.options, connection.remote[0]),
            options=connection.ip_options,
            csum_start_offset=CHECKSUM_OFFSET,
            header_length=header_length,
        )
    except NetError as failure:
        connection.soft_error = failure.errno
        layer.drops.count("output-failed")
    layer.stats.segments_out += 1
    connection.sender.segments += 1
    if length:
        connection.sender.data_segments += 1
