"""Volleys: superframes of one flow that follow each other, past the interface's queue straight to its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.link.device import Buffer, VolleyHead


def launch(
    iface: Interface, head: VolleyHead, last: VolleyHead, count: int, number: tuple[int, int], parts: Sequence[Buffer]
) -> int:
    """Hand `count` superframes to the device at once (`stack.link.device.VolleyDevice`), as if they had been queued and
    flushed; how many it accepted. To be asked only where `iface.direct`.
    """
    assert iface.volley is not None
    accepted = iface.volley(head, last, count, number, parts)
    if accepted:
        stats = iface.stats
        stats.tx_packets += accepted
        stats.tx_bytes += accepted * (len(head[0]) + head[2]) - (head[2] - last[2] if accepted == count else 0)
        iface.sent_bursts[accepted.bit_length()] += 1
    return accepted
