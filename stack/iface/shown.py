"""Bursts that somebody sees before the layers above do: taps, bridges, VLANs; or of a device that joins nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stack.errors import DropReason
from stack.iface.demux import deliver
from stack.link.device import RxFrame

if TYPE_CHECKING:
    from stack.iface.interface import Interface


def show(iface: Interface, burst: Sequence[RxFrame]) -> int:
    """Handle a burst of frames as they came; returns how many."""
    if not burst:
        return 0
    for tap in iface.taps:
        tap.received(burst)
    if not iface.up:
        iface.drops.count(DropReason.LINK_DOWN, len(burst))
    elif iface.rx_hooks:
        _hooked(iface, burst)
    else:
        _deliver(iface, burst)
    return len(burst)


def _hooked(iface: Interface, burst: Sequence[RxFrame]) -> None:
    """Each hook takes what it wants; the layers above get the rest."""
    count = len(burst)
    before = burst
    for hook in tuple(iface.rx_hooks):
        burst = hook(burst)
        if not burst:
            break
    if len(burst) < count:
        kept = set(map(id, burst))
        iface.stats.rx_packets += count - len(burst)
        iface.stats.rx_bytes += sum(len(frame[0]) for frame in before if id(frame) not in kept)
    if burst:
        _deliver(iface, burst)


def _deliver(iface: Interface, burst: Sequence[RxFrame]) -> None:
    deliver(iface, burst)
    iface.stats.rx_packets += len(burst)
    iface.stats.rx_bytes += sum(len(frame[0]) for frame in burst)
