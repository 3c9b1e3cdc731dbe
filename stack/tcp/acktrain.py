"""Bare acknowledgments that follow one another in a burst: the last of them says what all of them say.

Who receives bulk acknowledges it superframe by superframe, or every other segment, and what has come while we were busy
sending comes at once. As Linux puts such together that wait for a socket (tcp_add_to_backlog), only the last one is
taken in here, in the name of all: cwnd grows by what all of them acknowledge (RFC 5681 section 3.1, by bytes), and what
leaves in answer leaves at the end of the turn in any case. In recovery, and where a model of the path wants each
delivery's time, each is taken by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stack.link.device import FOLLOWS, RxFrame
from stack.tcp.seqnum import MASK
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH

if TYPE_CHECKING:
    from stack.tcp.sender import Sender

#: Acknowledgment number, window; TSecr where both of the time stamp's numbers are in their usual place.
_NUMBERS: Final = struct.Struct("!8xI2xH")
_ECHO: Final = struct.Struct("!28xI")


def take_last(sender: Sender, burst: Sequence[RxFrame], at: int) -> int:
    """The frames from `burst[at]` on that follow a bare acknowledgment which header prediction (`Pcb.fast`) took, by
    the last of them. Returns the index of the first one not taken."""
    if sender.recovery.engaged or sender.model is not None:
        return at
    end = at + 1
    while end < len(burst) and burst[end][1] & FOLLOWS:
        end += 1
    connection = sender.connection
    frame = burst[end - 1][0]
    transport = ETHERNET_LENGTH + connection.ip_header
    ack, window = _NUMBERS.unpack_from(frame, transport)
    una = sender.snd_una
    acked = (ack - una) & MASK
    if not acked or acked > sender.snd_max - una:
        return at  # it acknowledges what was never sent; those before it may not
    una += acked
    sender.acknowledge(una, _ECHO.unpack_from(frame, transport)[0] if connection.timestamps else None)
    receiver = connection.receiver
    if window != sender.raw_window:
        sender.update_window(window, receiver.rcv_nxt, una)
    receiver.segments += end - at
    connection.layer.stats.fast_in += end - at
    return end
