"""What of the send queue leaves now: whole superframes, and the last piece, about which there are questions.

A plan is a list of (sequence number, payload bytes, flags). Most of a bulk transfer is whole superframes: they are a
division (`whole`). What is left of queue or window is asked about: silly windows, Nagle, cork (`fit`).
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

from stack.wire.tcp import ACK

if TYPE_CHECKING:
    from stack.tcp.sender import Sender


def whole(sender: Sender, nxt: int, unsent: int, room: int, now: int) -> list[tuple[int, int, int]]:
    """The plan's whole superframes, all but the last: nothing about them is a question. There is `room` for so many
    bytes."""
    size = sender.superframe
    count = (unsent - 1 if unsent <= room else room) // size
    if count <= 0:
        return []
    end = nxt + count * size
    sender.flights.append((end, now))
    return list(zip(range(nxt, end, size), repeat(size), repeat(ACK)))  # without a loop: there may be dozens


def fit(sender: Sender, nxt: int, unsent: int, window_end: int, cwnd_end: int) -> int:
    """How much of the `unsent` bytes from `nxt` on may go now, if it is not a whole superframe."""
    mss = sender.mss
    size = min(unsent, sender.superframe)
    room = min(window_end, cwnd_end) - nxt
    if size > room:
        if cwnd_end <= window_end:
            sender.cwnd_limited = True
        if room >= mss:
            return room - room % mss
        # Less than a segment fits. RFC 9293 section 3.8.6.2.1: half of the largest window at least, and only if
        # nothing is in flight whose ACK could open the window further.
        if room <= 0 or nxt > sender.snd_una or nxt + room != window_end:
            return 0
        return room if room * 2 >= sender.max_window or sender.push else 0
    if size == unsent:
        tail = size % mss
        if tail:
            if _may_send_short(sender, nxt):
                sender.small_end = nxt + size
            else:
                size -= tail
    return size


def _may_send_short(sender: Sender, nxt: int) -> bool:
    """Nagle (RFC 9293 section 3.7.4, RFC 896) and cork, for a last piece shorter than a segment."""
    if nxt < sender.snd_max or sender.fin_queued or sender.push:
        return True
    connection = sender.connection
    if connection.urgent is not None and connection.urgent.end > sender.snd_una:
        return True  # as Linux: urgent data does not wait
    options = connection.options
    if options.cork or sender.more:
        return False
    return options.nodelay or sender.small_end <= sender.snd_una
