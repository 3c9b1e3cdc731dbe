"""Connections put together, taken apart and touched up by their users (Linux TCP_REPAIR, for checkpoint and restore).

Nothing here sends: a connection begins without a handshake, queues are filled as if the wire had done it, numbers and
windows are set. What was queued as sent goes by retransmission if the peer never had it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.tcp.receiver import MAX_SHIFT
from stack.tcp.segmentsize import MSS_MINIMUM, resegment
from stack.tcp.seqnum import MASK, unwrap
from stack.tcp.states import PAWS_IDLE
from stack.tcp.transitions import TcpState

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.tcp.connection import Connection

#: Option kinds on the wire, by which TCP_REPAIR_OPTIONS names what a handshake had agreed on.
_MSS: Final = 2
_WINDOW: Final = 3
_SACK_PERMITTED: Final = 4
_TIMESTAMPS: Final = 8


@dataclass(frozen=True, slots=True)
class Window:
    """struct tcp_repair_window: wire sequence numbers and bytes."""

    snd_wl1: int = 0
    snd_wnd: int = 0
    max_window: int = 0
    rcv_wnd: int = 0
    rcv_wup: int = 0  #: what was acknowledged last

    def check(self, rcv_nxt: int) -> None:
        """Raises NetError(EINVAL): no peer of a connection at `rcv_nxt` can have said so."""
        nxt = rcv_nxt & MASK
        edge = nxt + self.rcv_wnd
        if self.max_window < self.snd_wnd or unwrap(self.snd_wl1, edge) > edge or unwrap(self.rcv_wup, nxt) > nxt:
            raise NetError(errno.EINVAL)


def resume(connection: Connection, rcv_nxt: int) -> None:
    """From SYN-SENT, with its SYN held, to ESTABLISHED, as after a handshake that agreed on nothing."""
    sender, receiver = connection.sender, connection.receiver
    connection.timestamps = connection.window_scaling = connection.sack = False
    receiver.shift = 0
    receiver.resize(receiver.rcvbuf, connection.options.window_clamp)
    receiver.begin(rcv_nxt - 1)
    receiver.segments = 0  # there was no SYN
    receiver.rcv_adv = rcv_nxt + receiver.space
    sender.syn_sent()
    sender.snd_una = sender.snd_wl2 = sender.snd_nxt
    sender.snd_wl1 = unwrap(0, rcv_nxt)
    resegment(connection)
    connection.enter(TcpState.ESTABLISHED)


def agree(connection: Connection, settled: Iterable[tuple[int, int]]) -> None:
    """(option, value) of what a handshake settled. Raises NetError: EINVAL, EFBIG (a shift count above 14)."""
    for option, value in settled:
        _agree(connection, option, value)
    connection.predict()
    resegment(connection)


def _agree(connection: Connection, option: int, value: int) -> None:
    receiver = connection.receiver
    if option == _MSS:
        connection.peer_mss = max(value & 0xFFFF, MSS_MINIMUM)
    elif option == _WINDOW:
        ours, theirs = value >> 16, value & 0xFFFF
        if max(ours, theirs) > MAX_SHIFT:
            raise NetError(errno.EFBIG)
        connection.window_scaling = True
        connection.sender.shift, receiver.shift = theirs, ours
        receiver.resize(receiver.rcvbuf, connection.options.window_clamp)
    elif option in (_SACK_PERMITTED, _TIMESTAMPS):
        if value:
            raise NetError(errno.EINVAL)
        if option == _TIMESTAMPS:
            connection.timestamps = True
            # Whatever the peer's clock shows is new (RFC 7323 section 5.5).
            receiver.ts_recent_at = connection.scheduler.now - PAWS_IDLE - 1
        elif not connection.sack:
            connection.sack = True
            connection.sender.use_sack()


def window_of(connection: Connection) -> Window:
    sender, receiver = connection.sender, connection.receiver
    promised = receiver.rcv_adv - receiver.last_ack_sent
    updated, acknowledged = sender.snd_wl1 & MASK, receiver.last_ack_sent & MASK
    return Window(updated, sender.snd_wnd, sender.max_window, promised, acknowledged)


def set_window(connection: Connection, window: Window) -> None:
    """Raises NetError(EINVAL)."""
    sender, receiver = connection.sender, connection.receiver
    window.check(receiver.rcv_nxt)
    sender.snd_wl1 = unwrap(window.snd_wl1, receiver.rcv_nxt)
    sender.snd_wl2 = sender.snd_una
    sender.snd_wnd = window.snd_wnd
    sender.raw_window = -1  # whatever the next segment says is news
    sender.max_window = window.max_window
    receiver.last_ack_sent = unwrap(window.rcv_wup, receiver.rcv_nxt)
    receiver.rcv_adv = receiver.last_ack_sent + window.rcv_wnd
    connection.schedule()


def queue_sent(connection: Connection, data: Buffer) -> int:
    """As `write`, but everything in the queue counts as sent. Returns the bytes taken. Raises NetError(EPIPE)."""
    taken = connection.write(data)
    sender = connection.sender
    start, end = sender.snd_nxt, sender.queue.end
    if end > start:
        now = connection.scheduler.now
        idle = sender.snd_max == sender.snd_una
        sender.flights.append((end, now))
        sender.karn = end  # when it really left is not known: no round-trip times from it
        sender.leaving(start, end, now, idle)
    return taken


def queue_received(connection: Connection, data: Buffer) -> int:
    """Everything of `data` is there to be read, as if it had come. Raises NetError(ENOMEM): the buffer is full."""
    receiver = connection.receiver
    held = memoryview(bytes(data))
    if len(held) > receiver.rcvbuf - receiver.queue.length:
        raise NetError(errno.ENOMEM)
    if held:
        receiver.queue.append(held)
        receiver.rcv_nxt += len(held)
        receiver.rcv_adv = max(receiver.rcv_adv, receiver.rcv_nxt)
        connection.notify()
    return len(held)


def sent(connection: Connection, limit: int) -> bytes:
    """The first `limit` bytes the peer has not acknowledged."""
    queue = connection.sender.queue
    size = min(limit, len(queue))
    return b"".join(queue.slice(queue.start, size)) if size > 0 else b""


def probe(connection: Connection) -> None:
    """Ask the peer for its window, so that a repaired connection runs again."""
    if connection.state is TcpState.ESTABLISHED:
        connection.sender.snd_wl1 = connection.receiver.rcv_nxt - 1
        connection.send_probe()
