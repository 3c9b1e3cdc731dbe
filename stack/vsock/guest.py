"""One guest's side of the vsock engine: packets to connections, what is due to the transport. A `Source`.

Theory of operation
-------------------
In: every packet finds its connection by (host port, guest port); a REQUEST without one finds a listener; anything else
is answered with RST - except a RST, which is never answered (two engines would do so for ever).

Out: connections with something due are marked; once a turn they are asked in rotation, at most 64 KiB of each at a
time, so that one bulk stream does not starve the others. Packets handed to the transport and refused for lack of room
stay in `_burst`, at most one round of them, and go first when there is room again. Answers to packets that belong to
no connection are kept apart, one for each pair of ports and `REPLY_LIMIT` in all. So the guest's transmit ring can be
drained however long it leaves its receive ring without buffers, in bounded memory, and nothing waits for anything.

A driver reset ends every connection (the guest has forgotten them), listeners stay. A guest that merely goes away for a
while - paused, migrating - is waited for: nothing is sent meanwhile, and only if it is not back after `CARRIER_GRACE`
are its connections reset.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.errors import Drops
from stack.scheduler import NS_PER_S, Scheduler
from stack.vsock.connection import VsockConnection
from stack.vsock.transport import VsockRx, VsockTransport, VsockTx
from stack.wire.vsock import CID_HOST, TYPE_STREAM, Op

if TYPE_CHECKING:
    from stack.vsock.acceptor import Acceptor
    from stack.vsock.engine import VsockEngine
    from stack.vsock.ports import BoundPort

#: Live connections of one guest: below what a guest's flood of requests should cost us (reference section 4.4).
CONNECTION_LIMIT: Final = 1024
REPLY_LIMIT: Final = 1024  # RSTs waiting for room; what a correct guest provokes is one or two
ROUND_BYTES: Final = 512 << 10  # data of one transmit call: within the cache
SHARE_BYTES: Final = 64 << 10  # of that for each connection before it is the next one's turn
#: How long connections outlive a guest whose rings stopped. As long as Linux waits for the end of a connection.
CARRIER_GRACE: Final = 8 * NS_PER_S

_REQUEST, _RESPONSE, _RST = int(Op.REQUEST), int(Op.RESPONSE), int(Op.RST)


class GuestPort:
    """Made by `VsockEngine.add_guest`. Implements `stack.iface.source.Source`."""

    def __init__(self, engine: VsockEngine, scheduler: Scheduler, transport: VsockTransport) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.transport = transport
        self.guest_cid = transport.guest_cid
        self.connections: dict[tuple[int, int], VsockConnection] = {}  #: by (host port, guest port)
        self.acceptor: Acceptor | None = None  #: takes what no listener of the engine's does
        self.drops = Drops()
        self.on_ready: Callable[[], None] | None = None
        self.closed = False
        self._generation = transport.generation
        self._carrier = transport.carrier
        self._grace = scheduler.timer(self._given_up)
        self._due: dict[VsockConnection, None] = {}
        self._replies: dict[tuple[int, int], VsockTx] = {}
        self._burst: list[VsockTx] = []
        self._held_up = False  # the last flush could not finish
        transport.on_change = self._changed

    def __repr__(self) -> str:
        return f"GuestPort(CID {self.guest_cid}, {len(self.connections)} connections)"

    # -- Source ---------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self.closed else self.transport.fileno()

    def suppress(self) -> None:
        self.transport.suppress()

    def arm(self) -> bool:
        return self.transport.arm()

    def service(self, budget: int) -> int:
        """Retry what the transport refused, then handle up to `budget` packets."""
        if self.closed:
            return 0
        burst = self.transport.receive(budget)
        self._look()
        connections = self.connections
        for packet in burst:
            src_cid, dst_cid, src_port, dst_port, kind, op, flags, buf_alloc, fwd_cnt, payload = packet
            if dst_cid != CID_HOST or kind != TYPE_STREAM or src_cid != self.guest_cid:
                self._strange(packet)
                continue
            connection = connections.get((dst_port, src_port))
            if connection is not None:
                connection.packet(op, flags, buf_alloc, fwd_cnt, payload)
            elif op == _REQUEST:
                self._requested(packet)
            elif op != _RST:
                self._refuse(packet, "no-connection")
        if self._held_up:
            self._flush()
        return len(burst)

    # -- for connections ------------------------------------------------------------------------------------------

    def connect(self, bound: BoundPort, remote_port: int, *, buffer: int, timeout: int) -> VsockConnection:
        """Called by the engine, which has reserved `buffer` bytes. `bound` becomes the connection's."""
        connection = VsockConnection(self, bound.port, remote_port, buffer=buffer, bound=bound)
        self.connections[bound.port, remote_port] = connection
        connection.start(_REQUEST, timeout)
        return connection

    def mark(self, connection: VsockConnection) -> None:
        """Something is due."""
        due = self._due
        if not due:
            self.scheduler.defer(self._flush)
        due[connection] = None

    def forget(self, connection: VsockConnection) -> None:
        """It ended."""
        self._due.pop(connection, None)
        key = connection.local[1], connection.remote[1]
        if self.connections.get(key) is connection:
            del self.connections[key]

    def reset(self, connection: VsockConnection, *, unless_reused: bool = False) -> None:
        """RST for `connection`, ahead of what others have due."""
        key = connection.local[1], connection.remote[1]
        if not (unless_reused and key in self.connections):
            self._reply(CID_HOST, key, TYPE_STREAM)

    # -- in -------------------------------------------------------------------------------------------------------

    def _requested(self, packet: VsockRx) -> None:
        _, _, guest_port, host_port, _, _, _, buf_alloc, fwd_cnt, _ = packet
        listener = self.engine.listeners.get(host_port)
        taker = listener or self.acceptor
        if taker is None:
            self._refuse(packet, "no-listener")
        elif listener is not None and listener.full:
            listener.refused += 1
            self._refuse(packet, "accept-queue-full")
        elif len(self.connections) >= CONNECTION_LIMIT or not self.engine.reserve(buffer := taker.buffer):
            self._refuse(packet, "connection-limit")
        else:
            connection = VsockConnection(self, host_port, guest_port, buffer=buffer)
            self.connections[host_port, guest_port] = connection
            if not connection.credit.hear(buf_alloc, fwd_cnt):
                connection.abort()  # it claims to have consumed something already
                return
            if listener is not None:
                connection.start(_RESPONSE, None)
                listener.add(connection)
            elif self.acceptor is not None:
                self.acceptor.requested(connection)

    def _strange(self, packet: VsockRx) -> None:
        """For another host, of a type we do not speak, or from someone else."""
        src_cid, dst_cid, src_port, dst_port, kind, op, *_ = packet
        if src_cid != self.guest_cid:
            self.drops.count("source-cid")  # virtio 1.3 section 5.10.6.2: not to be answered
        elif op != _RST:
            self.drops.count("destination-cid" if dst_cid != CID_HOST else "type")
            self._reply(dst_cid, (dst_port, src_port), kind)

    def _refuse(self, packet: VsockRx, reason: str) -> None:
        self.drops.count(reason)
        self._reply(packet[1], (packet[3], packet[2]), packet[4])

    def _reply(self, src_cid: int, ports: tuple[int, int], kind: int) -> None:
        replies = self._replies
        if not replies:
            self.scheduler.defer(self._flush)
        elif len(replies) >= REPLY_LIMIT:
            self.drops.count("reply-limit")
            return
        replies[ports] = (src_cid, self.guest_cid, ports[0], ports[1], kind, _RST, 0, 0, 0, b"")

    # -- out ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Hand over what is due until nothing is or the transport has no room."""
        transport = self.transport
        self._held_up = True
        while transport.carrier and not self.closed:
            burst = self._burst or self._round()
            if not burst:
                self._held_up = False
                return
            accepted = transport.transmit(burst)
            if accepted < len(burst):
                self._burst = burst[accepted:]
                return
            self._burst = []

    def _round(self) -> list[VsockTx]:
        """Answers, then a share of what each connection has due."""
        burst = list(self._replies.values())
        self._replies.clear()
        due = self._due
        room = ROUND_BYTES
        while due and room > 0:
            connection = next(iter(due))
            del due[connection]
            begun = len(burst)
            if not connection.emit(burst, SHARE_BYTES):
                due[connection] = None  # behind the others
            room -= sum(len(packet[9]) for packet in burst[begun:])
        return burst

    # -- the guest comes and goes ---------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Called by the transport: carrier, generation, or work."""
        self._look()
        if self.on_ready is not None:
            self.on_ready()

    def _look(self) -> None:
        transport = self.transport
        if transport.generation != self._generation:
            self._generation = transport.generation
            self.fail(errno.ECONNRESET)
        if transport.carrier != self._carrier:
            self._carrier = transport.carrier
            if not self._carrier:
                self._grace.arm_in(CARRIER_GRACE)
            else:
                self._grace.cancel()
                self.scheduler.defer(self._flush)

    def _given_up(self) -> None:
        self.fail(errno.ECONNRESET)

    def fail(self, error: int) -> None:
        """End every connection with `error`; nothing that was due leaves any more."""
        self._due.clear()
        self._replies.clear()
        self._burst = []
        for connection in list(self.connections.values()):
            connection.fail(error)

    def close(self) -> None:
        """The guest is removed. Idempotent."""
        if not self.closed:
            self.closed = True
            self._grace.cancel()
            self.fail(errno.ECONNRESET)
            self.transport.on_change = None
