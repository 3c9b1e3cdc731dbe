"""One guest's side of the vsock engine: packets to connections, what is due to the transport. A `Source`.

Theory of operation
-------------------
In: every packet finds its connection by (host port, guest port); a REQUEST without one finds a listener; anything else
is answered with RST - except a RST, which is never answered (two engines would do so for ever).

Out: connections with something due are marked; once a turn they are asked in rotation, at most 64 KiB of each at a
time, so that one bulk stream does not starve the others. Those with little to say are asked first, and may overtake
what is held up of others: behind sixteen bulk streams a short message waits for the guest's ring, not for a megabyte in
front of it. Packets handed to the transport and refused for lack of room stay in `_burst` and go when there is room
again. Answers to packets that belong to
no connection are kept apart, one for each pair of ports and `REPLY_LIMIT` in all. So the guest's transmit ring can be
drained however long it leaves its receive ring without buffers, in bounded memory, and nothing waits for anything.

A driver reset, or a guest that left, ends every connection the guest knew of; listeners stay. A guest that is merely
paused is waited for, however long: nothing is sent meanwhile.

Memory: a payload is a view of the half megabyte it came in. That is right for who reads soon; what is still unread
when `YOUNG` more such bursts have come is copied out, so that a few bytes nobody reads never keep the rest.

Packets for another guest's CID are for `stack.vsock.sibling`, if the two may talk.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from stack.bursts import histogram
from stack.errors import Drops
from stack.iface.changes import ChangeKind
from stack.scheduler import Scheduler
from stack.vsock.connection import VsockConnection
from stack.vsock.seqpacket import CONNECTIONS, PACKET_COST
from stack.vsock.sibling import connect_sibling
from stack.vsock.status import NO_ROOM, NOT_DIRECTLY
from stack.vsock.straight import send_on
from stack.vsock.transport import VsockRx, VsockTransport, VsockTx
from stack.vsock.turns import LITTLE, SHARE_BYTES, Turns
from stack.wire.vsock import CID_HOST, TYPE_SEQPACKET, TYPE_STREAM, Op

if TYPE_CHECKING:
    from stack.vsock.acceptor import Acceptor
    from stack.vsock.engine import VsockEngine
    from stack.vsock.ports import BoundPort

#: Live connections of one guest: below what a guest's flood of requests should cost us (reference section 4.4).
CONNECTION_LIMIT: Final = 1024
REPLY_LIMIT: Final = 1024  # RSTs waiting for room; what a correct guest provokes is one or two
ROUND_BYTES: Final = 512 << 10  # data of one transmit call: within the cache
#: Bursts that may be kept for the sake of little: four megabytes. A socket of the host takes 200 KiB at a time, so one
#: that keeps up is a burst or two behind, and copying for it cost as much again as moving its bytes (measured).
YOUNG: Final = 8

_REQUEST, _RESPONSE, _RST = int(Op.REQUEST), int(Op.RESPONSE), int(Op.RST)


class GuestPort:
    """Made by `VsockEngine.add_guest`. Implements `stack.iface.source.Source`."""

    def __init__(
        self,
        engine: VsockEngine,
        scheduler: Scheduler,
        transport: VsockTransport,
        *,
        groups: frozenset[str] = frozenset(),
        host_cids: frozenset[int] = frozenset((CID_HOST,)),
    ) -> None:
        """`groups`: guests with one in common may connect to each other. `host_cids`: the CIDs that are this side."""
        self.engine = engine
        self.scheduler = scheduler
        self.transport = transport
        self.sent_bursts = histogram()
        self.guest_cid = transport.guest_cid
        self.groups = groups
        self.connections: dict[tuple[int, int], VsockConnection] = {}  #: with this host, by (host port, guest port)
        #: With other guests, whom we stand for: by (their CID, their port, guest port).
        self.siblings: dict[tuple[int, int, int], VsockConnection] = {}
        self.acceptor: Acceptor | None = None  #: takes what no listener of the engine's does
        self.drops = Drops()
        self.on_ready: Callable[[], None] | None = None
        self.closed = False
        self._connected = bool(getattr(transport, "connected", False))  # a front-end is there, if it can tell
        self._generation = transport.generation
        self._carrier = transport.carrier
        self._host_cids = host_cids
        self._little: dict[VsockConnection, None] = {}  # due, and soon said
        self._due: dict[VsockConnection, None] = {}
        self._replies: dict[tuple[int, int, int], VsockTx] = {}
        self._burst: list[VsockTx] = []
        self._held_up = False  # the last flush could not finish
        self._suppressed = False
        #: Who has got large payloads of the last burst, and of which memory (by id).
        self.fed: list[tuple[VsockConnection, int]] = []
        self._young: deque[list[tuple[VsockConnection, int]]] = deque()  # the same of the bursts before
        self._turns = Turns()  # of forwarded streams that found no room in the guest's ring
        self._receive_from: Callable[[VsockTx, int, int], int | None] | None
        self._receive_from = getattr(transport, "receive_from", None)
        self.sinks: dict[VsockConnection, int] = {}  #: where what arrives may go straight to: descriptors of sockets
        self._next_data: Callable[[], tuple[int, int, int, int, int] | None] | None
        self._next_data = getattr(transport, "next_data", None)
        self._lingering: set[VsockConnection] = set()  # to be told when everything of theirs has left
        transport.on_change = self._changed

    def __repr__(self) -> str:
        return f"GuestPort(CID {self.guest_cid}, {len(self.connections)} connections)"

    # -- Source ---------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self.closed else self.transport.fileno()

    def suppress(self) -> None:
        self._suppressed = True
        self.transport.suppress()

    def arm(self) -> bool:
        self._suppressed = False
        return self.transport.arm()

    def service(self, budget: int) -> int:
        """Retry what the transport refused, then handle up to `budget` packets."""
        if self.closed:
            return 0
        if self.fed:
            self._compact()
        sent_on, had_turn = 0, False
        if self.sinks and self._next_data is not None:
            sent_on, had_turn = send_on(self.transport, self._next_data, self.connections, self.sinks)
        burst: Sequence[VsockRx] = () if had_turn else self.transport.receive(budget)
        self._look()
        connections = self.connections
        for packet in burst:
            src_cid, dst_cid, src_port, dst_port, kind, op, flags, buf_alloc, fwd_cnt, payload = packet
            if dst_cid == CID_HOST and src_cid == self.guest_cid:
                connection = connections.get((dst_port, src_port))
            elif (connection := self._elsewhere(packet)) is None:
                continue
            if connection is not None and connection.kind == kind:
                connection.packet(op, flags, buf_alloc, fwd_cnt, payload)
            elif op == _RST:
                pass  # never answered
            elif not self.speaks(kind):
                self._refuse(packet, "type")
            elif op == _REQUEST and connection is None:
                self._requested(packet)
            else:
                self._refuse(packet, "no-connection")
        if self._held_up:
            self._flush()
        self._call()
        return len(burst) + sent_on

    def _call(self) -> None:
        """Whoever waits for the guest's buffers may look again, if there may be some."""
        if self._turns.waiting and not self._burst and transport_roomy(self.transport):
            for connection in self._turns.call():
                connection.notify()

    def _compact(self) -> None:
        """A payload is a view of all that came in its burst. Whoever has not read it by now gets a copy."""
        young = self._young
        young.append(self.fed)
        self.fed = []
        if len(young) > YOUNG:
            old = young.popleft()
            slabs = {slab for _, slab in old}
            for connection in dict.fromkeys(connection for connection, _ in old):
                connection.compact(slabs)

    # -- for connections ------------------------------------------------------------------------------------------

    def speaks(self, kind: int) -> bool:
        """The guest's driver takes connections of this type."""
        transport = self.transport
        return transport.stream if kind == TYPE_STREAM else kind == TYPE_SEQPACKET and transport.seqpacket

    @property
    def full(self) -> bool:
        """No more connections."""
        return len(self.connections) + len(self.siblings) >= CONNECTION_LIMIT

    def connect(
        self,
        local: tuple[int, int],
        remote: tuple[int, int],
        *,
        buffer: int,
        timeout: int,
        kind: int = TYPE_STREAM,
        bound: BoundPort | None = None,
    ) -> VsockConnection:
        """Called by the engine and for siblings, `buffer` bytes reserved. `bound` becomes the connection's."""
        connection = CONNECTIONS[kind](self, local, remote, buffer=buffer, bound=bound)
        self._enter(connection)
        connection.start(_REQUEST, timeout)
        return connection

    def mark(self, connection: VsockConnection) -> None:
        """Something is due."""
        due, little = self._due, self._little
        if connection in due:
            return
        if not due or not little:
            self.scheduler.defer(self._flush)
        if connection.pending <= LITTLE:
            little[connection] = None
        else:
            little.pop(connection, None)
            due[connection] = None

    def receive_from(self, connection: VsockConnection, packet: VsockTx, fd: int, limit: int) -> int:
        """For `VsockConnection.receive_from`, which says what is returned."""
        direct = self._receive_from
        if direct is None:
            return NOT_DIRECTLY
        count, turns = None, self._turns
        if not self._burst:  # else whoever is held up goes first
            share = turns.limit(connection, limit)
            if not share:
                turns.wait(connection, dry=False)
                self.scheduler.defer(self._call)  # when the others have had their turns
                return NO_ROOM
            try:
                count = direct(packet, fd, share)
            except BlockingIOError:
                turns.said_all(connection)
                raise
        if count is not None:
            turns.took(connection, count)
            return count
        turns.wait(connection, dry=True)
        if not self._suppressed and self.transport.arm() and self.on_ready is not None:
            self.on_ready()  # there was nobody about to arm it, and room came meanwhile
        return NO_ROOM

    def forget(self, connection: VsockConnection) -> None:
        """It ended."""
        self._due.pop(connection, None)
        self._little.pop(connection, None)
        self._lingering.discard(connection)
        self._turns.forget(connection)
        self.sinks.pop(connection, None)
        if self._find(connection) is connection:
            (cid, port), (_, guest_port) = connection.local, connection.remote
            if cid in self._host_cids:
                del self.connections[port, guest_port]
            else:
                del self.siblings[cid, port, guest_port]

    def reset(self, connection: VsockConnection, *, unless_reused: bool = False) -> None:
        """RST for `connection`, ahead of what others have due."""
        if not (unless_reused and self._find(connection) is not None):
            cid, port = connection.local
            self._reply(cid, (port, connection.remote[1]), connection.kind, connection.remote[0])

    def tell_when_sent(self, connection: VsockConnection) -> None:
        """Have `connection` notify once it is not `unsent` any more."""
        self._lingering.add(connection)

    def _tell_lingering(self) -> None:
        for connection in [each for each in self._lingering if not each.unsent]:
            self._lingering.discard(connection)
            connection.notify()

    def holds(self, connection: VsockConnection) -> bool:
        """A packet of `connection` waits for room in the transport."""
        return bool(self._burst) and _route(connection) in {packet[:4] for packet in self._burst}

    def held_bytes(self, connection: VsockConnection) -> int:
        """Of those packets, bytes of payload."""
        route = _route(connection)
        return sum(len(packet[-1]) for packet in self._burst if packet[:4] == route)

    def _enter(self, connection: VsockConnection) -> None:
        (cid, port), (_, guest_port) = connection.local, connection.remote
        if cid in self._host_cids:
            self.connections[port, guest_port] = connection
        else:
            self.siblings[cid, port, guest_port] = connection

    def _find(self, connection: VsockConnection) -> VsockConnection | None:
        """Whoever has the addresses of `connection` now."""
        (cid, port), (_, guest_port) = connection.local, connection.remote
        if cid in self._host_cids:
            return self.connections.get((port, guest_port))
        return self.siblings.get((cid, port, guest_port))

    # -- in -------------------------------------------------------------------------------------------------------

    def _requested(self, packet: VsockRx) -> None:
        _, host_cid, _, host_port, kind, _, _, buf_alloc, fwd_cnt, _ = packet
        listener = self.engine.listener(host_cid, host_port)
        acceptor = self.acceptor if kind == TYPE_STREAM else None
        taker = listener or acceptor
        if taker is None:
            self._refuse(packet, "no-listener")
        elif listener is not None and listener.kind != kind:
            self._refuse(packet, "type")
        elif listener is not None and listener.full:
            listener.refused += 1
            self._refuse(packet, "accept-queue-full")
        elif (connection := self.requested(packet, taker.buffer)) is None:
            self._refuse(packet, "connection-limit")
        elif not connection.credit.hear(buf_alloc, fwd_cnt):
            connection.abort()  # it claims to have consumed something already
        elif listener is not None:
            connection.start(_RESPONSE, None)
            listener.add(connection)
        elif acceptor is not None:
            connection.keep_waiting()
            acceptor.requested(connection)

    def requested(self, packet: VsockRx, buffer: int) -> VsockConnection | None:
        """A connection for the guest's REQUEST, not answered yet. None: too many, or no memory for its buffer."""
        src_cid, dst_cid, src_port, dst_port, kind, *_ = packet
        if self.full or not self.engine.reserve(buffer):
            return None
        connection = CONNECTIONS[kind](self, (dst_cid, dst_port), (src_cid, src_port), buffer=buffer)
        self._enter(connection)
        return connection

    def _elsewhere(self, packet: VsockRx) -> VsockConnection | None:
        """Not from our guest to the host: the connection it belongs to, unless that is nobody's or is dealt with."""
        src_cid, dst_cid, src_port, dst_port, kind, op, *_ = packet
        if src_cid != self.guest_cid:
            self.drops.count("source-cid")  # virtio 1.3 section 5.10.6.2: not to be answered
            return None
        if dst_cid in self._host_cids:
            connection = self.connections.get((dst_port, src_port))
            if connection is None and op == _REQUEST and self.speaks(kind):
                self._requested(packet)
                return None
        else:
            connection = self.siblings.get((dst_cid, dst_port, src_port))
            if connection is None and op == _REQUEST and self.speaks(kind):
                sibling = self.engine.sibling(self, dst_cid)
                if sibling is None:
                    self._refuse(packet, "destination-cid")
                elif not connect_sibling(self, sibling, packet):
                    self._refuse(packet, "connection-limit")
                return None
        if connection is None and op != _RST:
            self._refuse(packet, "type" if not self.speaks(kind) else "destination-cid")
        return connection

    def _refuse(self, packet: VsockRx, reason: str) -> None:
        self.drops.count(reason)
        self._reply(packet[1], (packet[3], packet[2]), packet[4], packet[0])

    def _reply(self, src_cid: int, ports: tuple[int, int], kind: int, dst_cid: int) -> None:
        replies = self._replies
        if not replies:
            self.scheduler.defer(self._flush)
        elif len(replies) >= REPLY_LIMIT:
            self.drops.count("reply-limit")
            return
        replies[src_cid, *ports] = (src_cid, dst_cid, ports[0], ports[1], kind, _RST, 0, 0, 0, b"")

    # -- out ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Hand over what is due until nothing is or the transport has no room."""
        transport = self.transport
        self._held_up = True
        while transport.carrier and not self.closed:
            if self._burst:
                burst = self._overtaking() if self._little else self._burst
            else:
                burst = self._round()
            if not burst:
                self._held_up = False
                return
            accepted = transport.transmit(burst)
            self.sent_bursts[accepted.bit_length()] += 1
            self._burst = burst[accepted:]
            if transport.partial:
                held = self._burst[0]
                self._burst[0] = (*held[:9], memoryview(held[9])[transport.partial :])
            if self._lingering:
                self._tell_lingering()
            if self._burst:
                if not self._suppressed and transport.arm() and self.on_ready is not None:
                    self.on_ready()  # there was nobody about to arm it, and room came meanwhile
                return

    def _overtaking(self) -> list[VsockTx]:
        """What is held up, and in front of it whoever has little to say and nothing held up."""
        held = {packet[:4] for packet in self._burst}
        ahead: list[VsockTx] = []
        for connection in list(self._little):
            if _route(connection) not in held:
                del self._little[connection]
                if not connection.emit(ahead, SHARE_BYTES):
                    self._due[connection] = None
        return ahead + self._burst

    def _round(self) -> list[VsockTx]:
        """Answers, whoever has little to say, then a share of what each connection has due."""
        burst = list(self._replies.values())
        self._replies.clear()
        due, room = self._due, ROUND_BYTES
        for queue in (self._little, due):
            while queue and room > 0:
                connection = next(iter(queue))
                del queue[connection]
                begun = len(burst)
                if not connection.emit(burst, SHARE_BYTES):
                    due[connection] = None  # behind the others
                room -= sum(max(len(packet[9]), PACKET_COST) for packet in burst[begun:])
        return burst

    # -- the guest comes and goes ---------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Called by the transport: carrier, generation, or work."""
        self._look()
        if self.on_ready is not None:
            self.on_ready()

    def _look(self) -> None:
        transport = self.transport
        what = []
        connected = getattr(transport, "connected", self._connected)
        if connected != self._connected:
            self._connected = connected
            what.append("connected" if connected else "disconnected")
        if transport.generation != self._generation:
            self._generation = transport.generation
            self._forgotten()
            if transport.carrier and self._carrier:
                what.append("reset")
        if transport.guest_cid != self.guest_cid and self.engine.move_guest(self, transport.guest_cid):
            self.guest_cid = transport.guest_cid
        if transport.carrier != self._carrier:
            self._carrier = transport.carrier
            what.append("carrier" if self._carrier else "no carrier")
            if self._carrier:
                self.scheduler.defer(self._flush)
        if what:
            self.engine.changes.append(ChangeKind.NEW_VSOCK, self, 0, ", ".join(what))

    def _all(self) -> list[VsockConnection]:
        return [*self.connections.values(), *self.siblings.values()]

    def _forgotten(self) -> None:
        """The guest has lost its memory of us: only requests that it has not seen are still worth something."""
        self._replies.clear()
        self._burst = []
        for connection in self._all():
            if not connection.unannounced:
                connection.fail(errno.ECONNRESET)

    def close(self) -> None:
        """The guest is removed. Idempotent."""
        if not self.closed:
            self.closed = True
            self.fed.clear()
            self._young.clear()
            self._replies.clear()
            self._burst = []
            for connection in self._all():
                connection.fail(errno.ECONNRESET)
            self.transport.on_change = None


def transport_roomy(transport: VsockTransport) -> bool:
    """Whether a transport that offers `receive_from` may have room."""
    return bool(transport.carrier and getattr(transport, "roomy", True))


def _route(connection: VsockConnection) -> tuple[int, ...]:
    """The first fields of every packet of `connection`."""
    (cid, port), (guest_cid, guest_port) = connection.local, connection.remote
    return cid, guest_cid, port, guest_port
