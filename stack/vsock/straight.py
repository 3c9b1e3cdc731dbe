"""What a guest sends to sockets of the host that take it straight from its memory, without a byte in Python.

The packets that lie first in the guest's ring are looked at one stream at a time; what is not exactly data of a stream
with a sink (`VsockConnection.use_sink`) is left to the usual way, and so is what a socket does not take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from stack.wire.vsock import CID_HOST

if TYPE_CHECKING:
    from stack.vsock.connection import VsockConnection

#: Of one guest in a turn. Twice what a turn copies: these bytes do not pass through our caches, and with each turn goes
#: a word about credit, which wakes the guest. A stream that is the only one gets half: while its program reads that,
#: the guest writes anew; with all of it in the socket at once each would wait for the other (docs/decisions/0034).
STRAIGHT_BYTES: Final = 1 << 20
STRAIGHT_BYTES_ALONE: Final = 512 << 10
#: System calls of one turn: a guest that sends single bytes, and goes on while we look, is not to keep the other guests
#: waiting.
SINK_CALLS: Final = 128


def send_on(
    transport: Any,
    next_data: Callable[[], tuple[int, int, int, int, int] | None],
    connections: dict[tuple[int, int], VsockConnection],
    sinks: dict[VsockConnection, int],
) -> tuple[int, bool]:
    """Packets that went straight; and whether that was all this turn may bring, so that what lies behind them, which is
    probably for the same sockets, must not go the usual way but waits for the next turn.
    """
    packets, enough = 0, STRAIGHT_BYTES if len(sinks) > 1 else STRAIGHT_BYTES_ALONE
    for _ in range(SINK_CALLS):
        if enough <= 0:
            return packets, True
        if (route := next_data()) is None:
            return packets, False
        _, dst_cid, src_port, dst_port, kind = route
        connection = connections.get((dst_port, src_port)) if dst_cid == CID_HOST else None
        if connection is None or connection not in sinks or connection.kind != kind:
            return packets, False
        count, size = connection.send_on(transport, sinks[connection], enough)
        if not count:
            return packets, False
        packets += count
        enough -= size
    return packets, True
