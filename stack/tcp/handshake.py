"""SYNs of a connection, the peer's and its own: numbers, and what is agreed on by options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.scheduler import NS_PER_MS
from stack.tcp.ecn import Ecn
from stack.tcp.output import emit_syn
from stack.tcp.receiver import MAX_SHIFT
from stack.tcp.segmentsize import MSS_MINIMUM, resegment
from stack.tcp.seqnum import MASK

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb
    from stack.tcp.segment import Segment
    from stack.wire.tcp import HeaderOptions


def peer_syn(connection: Pcb, irs: int, options: HeaderOptions, *, ecn: bool) -> None:
    """The peer's SYN (RFC 9293 section 3.10.7.2 and .3): its number and options. `ecn`: that is agreed on."""
    receiver = connection.receiver
    sender = connection.sender
    receiver.begin(irs)
    if options.mss is not None:
        connection.peer_mss = max(options.mss, MSS_MINIMUM)
    if connection.window_scaling and options.window_scale is not None:
        sender.shift = min(options.window_scale, MAX_SHIFT)
    else:
        # RFC 7323 section 2.2: both or none.
        connection.window_scaling = False
        sender.shift = receiver.shift = 0
        receiver.resize(receiver.rcvbuf, connection.options.window_clamp)
    connection.sack = connection.sack and options.sack_permitted
    connection.ecn = Ecn(sender.iss) if ecn else None
    if connection.sack:
        sender.use_sack()
    if connection.timestamps and options.timestamps is not None:
        receiver.ts_recent = options.timestamps[0]
        receiver.ts_recent_at = connection.scheduler.now
    else:
        connection.timestamps = False
    connection.last_heard = connection.scheduler.now
    resegment(connection)


def echo_plausible(connection: Pcb, seg: Segment) -> bool:
    """Whether a SYN|ACK's TSecr is a value we sent since the SYN."""
    timestamps = seg.options.timestamps
    if timestamps is None or timestamps[1] == 0:
        return True
    age = (connection.timestamp() - timestamps[1]) & MASK
    return age * NS_PER_MS <= connection.scheduler.now - connection.sender.progress_at + NS_PER_MS


def send_syn(connection: Pcb) -> None:
    """SYN in SYN-SENT, SYN|ACK in SYN-RECEIVED; again if it was sent before. Arms the timer."""
    emit_syn(connection)
    sender = connection.sender
    if sender.snd_max == sender.iss:
        sender.syn_sent()
        if connection.fastopen is not None:
            sender.snd_nxt = sender.snd_max = sender.snd_max + connection.fastopen.sent
    connection.timers.retransmit.arm_in(sender.rtt.backed_off(sender.backoff))
