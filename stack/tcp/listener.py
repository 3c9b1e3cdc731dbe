"""A port that accepts connections: RFC 9293 section 3.10.7.2 (LISTEN), SYN queue and accept queue.

Theory of operation
-------------------
A SYN makes a `Request`, which waits in the SYN queue for the ACK that ends the handshake and then becomes a
`Connection` in the accept queue. Both queues are bounded by the backlog, as Linux counts (row TCP-14):

* The accept queue takes backlog + 1 connections. When it is full, SYNs and last ACKs are dropped; the SYN|ACK goes out
  again in time, and its answer may find room.
* The SYN queue takes backlog + 1 requests. When it is full, a SYN is answered with a cookie and nothing is kept
  (`syncookies`); with cookies switched off it is dropped, and so are those of peers never heard of once three quarters
  of TcpConfig.syn_backlog are taken. When it is half full of requests that have timed out, those are given up earlier.

TCP_DEFER_ACCEPT: a bare ACK is ignored until as many time-outs have passed as fit into the period; then the SYN|ACK
goes out again, and any answer will do. What Fast Open changes is in `fastopen`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.ip.packet import PacketKind
from stack.scheduler import NS_PER_MS
from stack.tcp import syncookies
from stack.tcp.fastopen import FastOpenServer
from stack.tcp.mib import Mib
from stack.tcp.options import TcpOptions
from stack.tcp.request import TIMEOUT_INITIAL, TIMEOUT_MAX, Request
from stack.tcp.seqnum import MASK
from stack.tcp.transitions import TcpState
from stack.wire.tcp import ACK, FIN, RST, SYN

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort
    from stack.tcp.connection import Connection
    from stack.tcp.demux import Key
    from stack.tcp.layer import TcpLayer
    from stack.tcp.pcb import Pcb
    from stack.tcp.segment import Segment
    from stack.tcp.signatures import Keys

SOMAXCONN: Final = 4096  # Linux net.core.somaxconn
_RETRANSMITS_MAX: Final = 255  # Linux keeps the count for TCP_DEFER_ACCEPT in a byte
_IMPATIENT_ABOVE: Final = 8  # requests; the SYN queue is never "half full" below half of it


class Listener:
    """Made by `TcpLayer.listen`. `on_event` is called when a connection became ready to be accepted."""

    def __init__(self, layer: TcpLayer, bound: BoundPort, backlog: int, options: TcpOptions) -> None:
        self.layer = layer
        self.bound = bound
        self.local = (bound.addr, bound.port)  #: all-zero address: any
        self.options = options  #: copied to each new connection
        self.backlog = backlog  #: may be set at any time
        self.on_event: Callable[[], None] | None = None
        self.pending = 0  #: requests in the SYN queue
        self.young = 0  #: those of them that never timed out
        self.overflowed_at: int | None = None  #: when cookies were last sent for this port, ns
        self.closed = False
        self.fastopen = FastOpenServer(self)
        self._queue: deque[Connection] = deque()

    def __repr__(self) -> str:
        return f"Listener({self.local[0].hex()}:{self.local[1]}, {self.ready} ready, {self.pending} half open)"

    @property
    def signing(self) -> Keys | None:
        """TCP_MD5SIG."""
        return self.options.keys

    @property
    def half_open(self) -> list[Request]:
        """What is in the SYN queue."""
        return self.layer.syn_queue.of(self)

    @property
    def ready(self) -> int:
        """Connections that accept() would give."""
        return len(self._queue)

    @property
    def limit(self) -> int:
        """The backlog in force: negative and huge ones mean SOMAXCONN."""
        backlog = self.backlog
        return backlog if 0 <= backlog <= SOMAXCONN else SOMAXCONN

    @property
    def full(self) -> bool:
        """backlog + 1 connections wait (row TCP-14)."""
        return len(self._queue) > self.limit

    def accept(self) -> Connection | None:
        """The oldest connection waiting (it may have been reset meanwhile), None without one."""
        return self._queue.popleft() if self._queue else None

    def holds(self, connection: Pcb) -> bool:
        """Whether `connection` still waits for accept()."""
        return any(one is connection for one in self._queue)

    def close(self) -> None:
        """Connections not accepted yet are reset (row TCP-17). The port is released. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.layer.unlisten(self)
        for request in self.half_open:
            request.reset()
        for connection in self._queue:
            connection.orphan = True
            connection.abort()
        self._queue.clear()
        self.bound.stop_listening()
        self.bound.release()

    # --- segments ------------------------------------------------------------------------------------------------

    def segment(self, seg: Segment, key: Key, *, iss: int | None = None) -> None:
        """A segment that belongs to no connection. `iss`: to be used for a new one (RFC 6191)."""
        layer = self.layer
        options = self.options
        if seg.packet.ttl < (options.min_ttl if options.mapped is None else options.towards(seg.packet.src)[2]):
            layer.mib.count(Mib.MIN_TTL_DROP)
            return
        key = layer.demux.tied(key, self.options.device or layer.scope(seg.packet))
        flags = seg.flags
        # First, check for a RST. "An incoming RST should be ignored."
        if flags & RST:
            return
        # Second, check for an ACK. "Any acknowledgment is bad if it arrives on a connection still in LISTEN."
        if flags & ACK:
            if flags & SYN or not self._cookie(seg, key):
                layer.refuse(seg)
            return
        # Third, check for a SYN. Fourth, "any other control or data-bearing segment ... discard".
        if not flags & SYN:
            layer.drops.count("no-connection")
        elif flags & FIN:
            layer.drops.count("syn-and-fin")  # nobody means it; as Linux
        elif seg.packet.kind != PacketKind.UNICAST:
            layer.drops.count("not-unicast")  # RFC 9293 section 3.9.2.3, MUST-57
        else:
            self._syn(seg, key, iss)

    def _syn(self, seg: Segment, key: Key, iss: int | None) -> None:
        layer = self.layer
        config = layer.config
        cookie = False
        if iss is None and (config.syncookies == syncookies.ALWAYS or self.pending > self.limit):
            if config.syncookies == syncookies.OFF:
                layer.mib.count(Mib.REQQ_FULL_DROP)
                self._drop("syn-queue-full")
                return
            layer.mib.count(Mib.REQQ_FULL_DO_COOKIES)
            cookie = True
        if self.full:
            self._overflow()
            return
        request = Request(self, key, seg, key[2] >> 32)
        issued, request.timestamp_offset = layer.draw(key)
        if cookie:
            self._send_cookie(request)
            return
        if iss is None and config.syncookies == syncookies.OFF:
            left = config.syn_backlog - self.pending
            if left < config.syn_backlog >> 2 and key[0] not in layer.proven:
                self._drop("syn-queue-full")
                return
        request.iss = issued if iss is None else iss
        connection = self.fastopen.take(request, seg)
        if connection is not None:
            self.ready_to_accept(connection)
            return
        layer.syn_queue.add(request)
        if not request.send_syn_ack():
            layer.syn_queue.fail(request)

    def _drop(self, reason: str) -> None:
        self.layer.mib.count(Mib.LISTEN_DROPS)
        self.layer.drops.count(reason)

    def _overflow(self) -> None:
        self.layer.mib.count(Mib.LISTEN_OVERFLOWS)
        self._drop("accept-queue-full")

    # --- the handshake's end -------------------------------------------------------------------------------------

    def completed(self, request: Request, seg: Segment) -> None:
        """`seg` is the ACK that `request` waited for."""
        layer = self.layer
        if request.level < self._deferred_for() and seg.bare:
            request.acked = True
            layer.mib.count(Mib.DEFER_ACCEPT_DROP)
            return
        if self.full:
            self._overflow()
            request.acked = True
            if layer.config.abort_on_overflow:
                layer.mib.count(Mib.EMBRYONIC_RSTS)
                request.reset()
            return
        connection = request.connection()
        if connection is not None:
            layer.syn_queue.drop(request)
            self._take(connection, seg)

    def _take(self, connection: Connection, seg: Segment) -> None:
        """To the accept queue, with the ACK it came by."""
        connection.watch(seg.packet)
        connection.ladder.segment(connection, seg)  # whether it came too far its SYN has shown
        if connection.state in (TcpState.SYN_RECEIVED, TcpState.CLOSED):
            if connection.state is not TcpState.CLOSED:
                connection.enter(TcpState.CLOSED)
            self.layer.mib.count(Mib.ATTEMPT_FAILS)
            return
        self.layer.prove(connection.remote[0])
        self.ready_to_accept(connection)

    def ready_to_accept(self, connection: Connection) -> None:
        """To the accept queue, which has room."""
        self._queue.append(connection)
        if self.on_event is not None:
            self.on_event()

    def _deferred_for(self) -> int:
        """TCP_DEFER_ACCEPT as a number of time-outs: as many as it takes to fill the period."""
        period = self.options.defer_accept
        count = total = 0
        while total < period and count < _RETRANSMITS_MAX:
            total += min(TIMEOUT_INITIAL << count, TIMEOUT_MAX)
            count += 1
        return count

    def expired(self, request: Request) -> bool:
        """`request` has timed out once more: True to give it up, else the SYN|ACK went out again if it is time."""
        retries = self.options.synack_retries or self.layer.config.synack_retries
        if self.pending << 1 > max(_IMPATIENT_ABOVE, self.limit):
            # "Normally all the requests are young": the more of them are old, the sooner old ones go.
            young = self.young << 1
            while retries > 2 and self.pending >= young:
                retries -= 1
                young <<= 1
        deferred = self._deferred_for()
        if not deferred:
            over, again = request.level >= retries, True
        else:
            over = request.level >= retries and (not request.acked or request.level >= deferred)
            again = not request.acked or request.level >= deferred - 1
        if over:
            return True
        # No way there ends it, too, unless the peer is known to be alive.
        return again and not request.send_again() and not request.acked

    # --- cookies -------------------------------------------------------------------------------------------------

    def _send_cookie(self, request: Request) -> None:
        layer = self.layer
        now = layer.scheduler.now
        if not request.stamped:
            request.scale, request.sack, request.ecn, request.shift = None, False, False, 0
        mss = request.mss if request.mss is not None else 0
        request.iss, _ = layer.cookies.make(request.key, request.irs, mss, now)
        scale = None if request.scale is None else min(request.scale, 14)
        clock = syncookies.stamp(now // NS_PER_MS, scale, sack=request.sack, ecn=request.ecn)
        for each in layer.demux.group(self):
            each.overflowed_at = now
        layer.mib.count(Mib.SYNCOOKIES_SENT)
        request.send_syn_ack(clock)

    def _cookie(self, seg: Segment, key: Key) -> bool:
        """Whether the ACK `seg` is a cookie's; then it is taken care of."""
        layer = self.layer
        config = layer.config
        now = layer.scheduler.now
        if config.syncookies == syncookies.OFF or self.overflowed_at is None:
            return False
        if now - self.overflowed_at > syncookies.VALID:
            return False
        irs, iss = (seg.seq - 1) & MASK, (seg.ack - 1) & MASK
        mss = layer.cookies.check(key, irs, iss, now)
        if not mss:
            layer.mib.count(Mib.SYNCOOKIES_FAILED)
            return False
        layer.mib.count(Mib.SYNCOOKIES_RECV)
        request = Request(self, key, seg, key[2] >> 32)
        request.irs, request.iss, request.mss = irs, iss, mss
        _, request.timestamp_offset = layer.draw(key)
        request.scale, request.sack, request.ecn = None, False, False
        if request.stamped and seg.options.timestamps is not None:
            echo = (seg.options.timestamps[1] - request.timestamp_offset) & MASK
            request.scale, request.sack, request.ecn = syncookies.unstamp(echo)
        request.sent_at = 0  # not known
        if self.full:
            self._overflow()
            return True
        connection = request.connection()
        if connection is not None:
            self._take(connection, seg)
        return True
