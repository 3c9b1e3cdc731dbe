"""From a burst to the layers above: each frame to whom its ethertype names, unless it follows one that was taken."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stack.errors import DropReason
from stack.iface.facts import TO_ALL, TO_GROUP, TO_US
from stack.link.device import FOLLOWS, RxFrame
from stack.wire.ethernet import BROADCAST, HEADER_LENGTH

if TYPE_CHECKING:
    from stack.iface.interface import Interface

#: What a frame's flags say of itself, not of the one before it.
_OWN: Final = ~FOLLOWS
#: destination, ethertype
_DESTINATION: Final = struct.Struct("!6s6xH")
_unpack: Final = _DESTINATION.unpack_from


def deliver(iface: Interface, burst: Sequence[RxFrame]) -> None:
    """Hand up what `iface` received and nobody took on the way. What it cannot use is counted in `iface.drops`."""
    mac = iface.mac
    handlers = iface.handlers
    last = len(burst) - 1
    if not last:  # a question, an answer, an acknowledgment: as below, without the loop
        frame, flags, gso_type, gso_size, _, _ = burst[0]
        if len(frame) >= HEADER_LENGTH:
            dst, ethertype = _unpack(frame)
            if dst == mac and ethertype in handlers:
                handlers[ethertype](iface, frame, TO_US, flags & _OWN, gso_size if gso_type else 0)
                return
    onward = 0
    for at, (frame, flags, gso_type, gso_size, _, _) in enumerate(burst):
        if at < onward:
            continue
        if len(frame) < HEADER_LENGTH:
            iface.drops.count(DropReason.TOO_SHORT)
            continue
        dst, ethertype = _unpack(frame)
        if dst == mac:
            kind = TO_US
        elif dst[0] & 1:
            kind = TO_ALL if dst == BROADCAST else TO_GROUP
        else:
            iface.drops.count(DropReason.OTHER_HOST)
            continue
        handler = handlers.get(ethertype)
        if handler is None:
            iface.drops.count(DropReason.UNKNOWN_ETHERTYPE)
            continue
        taker = handler(iface, frame, kind, flags & _OWN, gso_size if gso_type else 0)
        if taker is not None and at < last and burst[at + 1][1] & FOLLOWS:
            onward = taker.follow(burst, at + 1)
            if onward > last:
                return
