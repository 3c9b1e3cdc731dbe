"""A port that accepts connections: RFC 9293 section 3.10.7.2 (LISTEN), SYN queue and accept queue.

A SYN makes a `Connection` in SYN-RECEIVED, held in the SYN queue (`half_open`) until its handshake completes. The queue
is bounded: when it is full the oldest half-open connection gives way without a word, so that a flood of SYNs costs
memory for `syn_backlog` of them and a real peer that answers within a queue's length gets in. When the accept queue is
full, SYNs and the last ACK of handshakes are ignored (row TCP-14), and the peer tries again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.ip.packet import PacketKind
from stack.tcp.options import TcpOptions
from stack.tcp.transitions import TcpState
from stack.wire.tcp import ACK, RST, SYN

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort
    from stack.tcp.connection import Connection
    from stack.tcp.layer import TcpLayer
    from stack.tcp.pcb import Pcb
    from stack.tcp.segment import Segment

SOMAXCONN: Final = 4096  # Linux net.core.somaxconn


class Listener:
    """Made by `TcpLayer.listen`. `on_event` is called when a connection became ready to be accepted."""

    def __init__(self, layer: TcpLayer, bound: BoundPort, backlog: int, options: TcpOptions) -> None:
        self.layer = layer
        self.bound = bound
        self.local = (bound.addr, bound.port)  #: all-zero address: any
        self.options = options  #: copied to each new connection
        self.backlog = backlog  #: may be set at any time
        self.on_event: Callable[[], None] | None = None
        self.half_open: dict[Pcb, Connection] = {}  #: the SYN queue, oldest first
        self.closed = False
        self._queue: deque[Connection] = deque()
        self._deferred: dict[Pcb, int] = {}  # TCP_DEFER_ACCEPT: until when a bare ACK is ignored, ns

    def __repr__(self) -> str:
        return f"Listener({self.local[0].hex()}:{self.local[1]}, {self.ready} ready, {len(self.half_open)} half open)"

    @property
    def ready(self) -> int:
        """Connections that accept() would give."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """backlog + 1 connections wait (row TCP-14); negative or huge backlogs mean SOMAXCONN."""
        backlog = self.backlog
        return len(self._queue) > (backlog if 0 <= backlog <= SOMAXCONN else SOMAXCONN)

    def accept(self) -> Connection | None:
        """The oldest connection waiting (it may have been reset meanwhile), None without one."""
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        """Connections not accepted yet are reset (row TCP-17). The port is released. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.layer.unlisten(self)
        for connection in (*self.half_open, *self._queue):
            connection.orphan = True
            connection.abort()
        self.half_open.clear()
        self._deferred.clear()
        self._queue.clear()
        self.bound.stop_listening()
        self.bound.release()

    # --- segments ------------------------------------------------------------------------------------------------

    def segment(self, seg: Segment, *, iss_after: int | None = None) -> None:
        """A segment that belongs to no connection. `iss_after`: the new ISS must be larger (RFC 6191)."""
        layer = self.layer
        flags = seg.flags
        # First, check for a RST. "An incoming RST should be ignored."
        if flags & RST:
            return
        # Second, check for an ACK. "Any acknowledgment is bad if it arrives on a connection still in LISTEN."
        if flags & ACK:
            layer.refuse(seg)
            return
        # Third, check for a SYN. Fourth, "any other control or data-bearing segment ... discard".
        if not flags & SYN:
            layer.drops.count("no-connection")
            return
        if seg.packet.kind != PacketKind.UNICAST:
            layer.drops.count("not-unicast")  # RFC 9293 section 3.9.2.3, MUST-57
            return
        if self.full:
            layer.drops.count("accept-queue-full")
            return
        if len(self.half_open) >= layer.config.syn_backlog:
            oldest = next(iter(self.half_open))
            layer.drops.count("syn-queue-full")
            oldest.enter(TcpState.CLOSED)
        options = self.options.copy()
        options.defer_accept = 0  # not inherited, row TCP-16
        connection = layer.spawn(self, seg, options, iss_after)
        if connection is None:
            return
        connection.listener = self
        self.half_open[connection] = connection
        connection.peer_syn(seg)
        connection.enter(TcpState.SYN_RECEIVED)
        connection.send_syn()

    def admit(self, connection: Pcb, seg: Segment) -> bool:
        """Whether the ACK `seg` may complete the handshake of `connection`."""
        if self.full:
            self.layer.drops.count("accept-queue-full")
            return False
        period = self.options.defer_accept
        if period and seg.bare:
            now = self.layer.scheduler.now
            until = self._deferred.setdefault(connection, now + period)
            if now < until:
                # Not before there is data; after the period the SYN|ACK goes out again, and then any ACK will do.
                connection.timers.retransmit.arm(until)
                return False
        return True

    def established(self, connection: Pcb) -> None:
        """The handshake is complete: to the accept queue."""
        self._queue.append(self.half_open[connection])
        self.forget(connection)
        if self.on_event is not None:
            self.on_event()

    def forget(self, connection: Pcb) -> None:
        """`connection` is not half open any more."""
        self.half_open.pop(connection, None)
        self._deferred.pop(connection, None)
