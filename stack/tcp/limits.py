"""What keeps data from leaving, besides the congestion window, and for how long it has (TCP_INFO's limited times)."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.tcp.sender import Sender


class Limit(IntEnum):
    """What besides cwnd may keep data from leaving (TCP_INFO)."""

    NOTHING = 0
    PEER = 1  #: its window
    BUFFER = 2  #: ours is full of what is not acknowledged, and the user has more


NEVER_LIMITED: Final = (0, 0, 0)


def account(sender: Sender, nxt: int, unsent: int, window_end: int, cwnd_end: int, now: int) -> None:
    """What keeps data from leaving, if anything does besides cwnd, and for how long it has."""
    limit = Limit.NOTHING
    if unsent > 0:
        if window_end - nxt < sender.mss and window_end <= cwnd_end:
            limit = Limit.PEER
    elif sender.starved:
        limit = Limit.BUFFER
    if limit is sender.limited:
        return
    if sender.limited is not Limit.NOTHING:
        _, peer, buffer = sender.limited_times
        spell = now - sender.limit_at
        sender.limited_times = (0, peer + spell, buffer) if sender.limited is Limit.PEER else (0, peer, buffer + spell)
    if sender.limited is Limit.BUFFER:
        sender.starved = False
    sender.limited = limit
    sender.limit_at = now


def notsent_room(sender: Sender) -> int:
    """TCP_NOTSENT_LOWAT: bytes that may be queued beside what waits to be sent; a superframe at least, or none."""
    left = sender.connection.options.notsent_lowat - sender.unsent
    return max(left, sender.superframe) if left > 0 else 0
