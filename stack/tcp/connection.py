"""A TCP connection as its user sees it; what makes it work is in `pcb` and the two halves.

Closing: the user's `close` makes the connection an orphan. It finishes by itself (FIN, retransmissions, TIME-WAIT) and
needs no reference from above.
"""

from __future__ import annotations

import errno
from contextlib import suppress

from stack.errors import NetError
from stack.link.device import Buffer
from stack.tcp.congestion import ALGORITHMS
from stack.tcp.delay import DelayLine
from stack.tcp.info import TcpInfo, collect
from stack.tcp.limits import notsent_room
from stack.tcp.pcb import Pcb
from stack.tcp.segmentsize import resegment
from stack.tcp.transitions import TcpState
from stack.tcp.urgent import Urgent, UrgentByte


class Connection(Pcb):
    """One end of a connection.

    Lock held by the caller; nothing waits. `on_event` is called, possibly several times a turn, after readiness may
    have changed; it must only set flags or wake waiters. `local` and `remote` are (address of 4 or 16 bytes, port);
    `options` is live (call `options_changed` after setting a field); `error` is the pending errno, 0 for none.
    """

    __slots__ = ()

    @property
    def rcvbuf(self) -> int:
        """Receive buffer in force, bytes."""
        return self.receiver.rcvbuf

    @property
    def sndbuf(self) -> int:
        """Send buffer in force, bytes."""
        return self.sender.sndbuf

    @property
    def readable(self) -> int:
        """Bytes that read() would give now. What arrived before a reset stays readable."""
        return self.receiver.queue.length

    @property
    def eof(self) -> bool:
        """After `readable` more bytes the stream ends: the peer's FIN, shutdown_read(), or CLOSED."""
        receiver = self.receiver
        fin_seq = receiver.fin_seq
        return (fin_seq is not None and receiver.rcv_nxt > fin_seq) or self.read_shut or (self.state is TcpState.CLOSED)

    @property
    def finished(self) -> bool:
        """The peer's FIN is there."""
        receiver = self.receiver
        return receiver.fin_seq is not None and receiver.rcv_nxt > receiver.fin_seq

    @property
    def writable(self) -> int:
        """Bytes that write() would take now; 0 unless the state allows sending."""
        if self.options.notsent_lowat and notsent_room(self.sender) <= 0:
            return 0
        return self.sender.writable if self.ladder.takes_writes and not self.sender.fin_queued else 0

    @property
    def roomy(self) -> bool:
        """Whether a writer should be told (POLLOUT): a third of the buffer is free, so not for every byte, and less
        than half of TCP_NOTSENT_LOWAT waits to be sent.
        """
        sender = self.sender
        room = self.writable
        low = self.options.notsent_lowat
        return room > 0 and 3 * room >= sender.sndbuf and (not low or 2 * sender.unsent < low)

    @property
    def quickack(self) -> bool:
        """Whether ACKs hurry (TCP_QUICKACK as read)."""
        return self.receiver.quick >= 0

    @quickack.setter
    def quickack(self, on: bool) -> None:
        self.options.quickack = on
        self.receiver.hurry(on)
        self.schedule()

    def push(self) -> None:
        """What is queued leaves, whatever Nagle or a cork says (setting TCP_NODELAY). What comes later may wait."""
        self.sender.push = self.sender.unsent > 0
        self.schedule()

    @property
    def can_write(self) -> bool:
        """Whether write() is allowed at all, with or without room (else: EPIPE)."""
        return self.ladder.takes_writes and not self.sender.fin_queued

    @property
    def unacknowledged(self) -> int:
        """Bytes written and not yet acknowledged by the peer (SIOCOUTQ)."""
        return len(self.sender.queue)

    @property
    def unsent(self) -> int:
        """Bytes written and not yet sent once (SIOCOUTQNSD)."""
        return self.sender.unsent

    def take_error(self) -> int:
        """The pending errno, which is 0 afterwards."""
        error, self.error = self.error, 0
        return error

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, b"" when none are there (see `eof`); never across the urgent byte."""
        receiver = self.receiver
        urgent = self.urgent
        if urgent is None:
            data = receiver.queue.read(limit)
        else:
            data = receiver.queue.read(self._to_mark(urgent, limit))
            urgent.was_read(self)
        if receiver.was_read():
            self.schedule()
        return data

    def read_into(self, target: memoryview) -> int:
        """As read(), into a writable "B" view; returns the bytes placed."""
        urgent = self.urgent
        if urgent is not None:
            target = target[: self._to_mark(urgent, len(target))]
        count = self.receiver.queue.read_into(target)
        if urgent is not None:
            urgent.was_read(self)
        if self.receiver.was_read():
            self.schedule()
        return count

    def discard(self, limit: int) -> int:
        """As read() without the bytes (MSG_TRUNC); returns how many went."""
        urgent = self.urgent
        if urgent is not None:
            limit = self._to_mark(urgent, limit)
        count = self.receiver.queue.discard(limit)
        if urgent is not None:
            urgent.was_read(self)
        if self.receiver.was_read():
            self.schedule()
        return count

    def peek(self, limit: int, offset: int = 0) -> bytes:
        """As read() from `offset` on, but the bytes stay."""
        if self.urgent is not None:
            skip, limit = self.urgent.bound(self, limit, offset)
            offset += skip
        return self.receiver.queue.peek(limit, offset)

    def _to_mark(self, urgent: Urgent, limit: int) -> int:
        """Where a read of `limit` bytes has to end; an urgent byte that is next in line is left out."""
        if limit <= 0 or not self.receiver.queue.length:
            return limit
        skip, limit = urgent.bound(self, limit)
        if skip:
            self.receiver.queue.discard(skip)
        return limit

    def urgent_byte(self, *, keep: bool = False) -> bytes:
        """What MSG_OOB reads: the byte, or b"" at the end of the stream. Never waits.

        Raises NetError: EINVAL without urgent data, with SO_OOBINLINE or a second time; EAGAIN when the byte was
        announced but has not come.
        """
        urgent = self.urgent
        if urgent is None or self.options.oob_inline or urgent.state in (UrgentByte.NONE, UrgentByte.TAKEN):
            raise NetError(errno.EINVAL)
        if urgent.state is UrgentByte.HELD:
            if not keep:
                urgent.state = UrgentByte.TAKEN
            return bytes((urgent.byte,))
        if self.eof:
            return b""
        raise NetError(errno.EAGAIN)

    @property
    def at_mark(self) -> bool:
        """Whether the urgent byte is next in the stream (SIOCATMARK)."""
        return self.urgent is not None and self.urgent.at_mark(self)

    @property
    def urgent_pending(self) -> bool:
        """Whether MSG_OOB would give a byte (POLLPRI)."""
        return self.urgent is not None and self.urgent.state is UrgentByte.HELD

    @property
    def before_mark(self) -> int:
        """Bytes that may be read before the urgent byte, or all of them without one (SIOCINQ)."""
        length = self.receiver.queue.length
        urgent = self.urgent
        if urgent is None or not urgent.state or self.options.oob_inline:
            return length
        ahead = urgent.seq - self.receiver.read_seq
        return ahead if 0 <= ahead < length else length

    def write(self, data: Buffer, *, more: bool = False, urgent: bool = False) -> int:
        """Queue as much of `data` as there is room for; returns the bytes taken (0: none).

        Large `bytes` objects, and views of such, are kept and not copied; anything else is copied once.
        `more` (MSG_MORE): hold a last partial segment back as TCP_CORK does. `urgent` (MSG_OOB): the last byte taken
        is urgent. Raises NetError(EPIPE) when the state
        does not allow sending.
        """
        sender = self.sender
        if not self.ladder.takes_writes or sender.fin_queued:
            raise NetError(errno.EPIPE)
        queue = sender.queue
        room = sender.sndbuf - (queue.end - queue.start)
        if self.options.notsent_lowat:
            room = min(room, notsent_room(sender))
        if room <= 0:
            sender.starved = True
            return 0
        taken = queue.append(data, room)
        sender.starved = taken == room
        sender.more = more
        if urgent and taken:
            if self.urgent is None:
                self.urgent = Urgent(queue.end)
            self.urgent.end = queue.end
        if not sender.clogged or urgent:
            self.schedule()
        return taken

    def options_changed(self) -> None:
        """Look at `options` again."""
        options = self.options
        receiver = self.receiver
        if options.fixed_rcvbuf:
            receiver.resize(options.fixed_rcvbuf, options.window_clamp)
        else:
            receiver.resize(receiver.rcvbuf, options.window_clamp)
        if options.fixed_sndbuf:
            self.sender.sndbuf = options.fixed_sndbuf
        name = options.congestion or self.layer.config.congestion
        congestion = self.sender.congestion
        if congestion.name != name:
            fresh = ALGORITHMS[name](self.sender.mss, self.layer.config.initial_window)
            fresh.cwnd, fresh.ssthresh = congestion.cwnd, congestion.ssthresh
            self.sender.use(fresh)
        self.sender.pace(options.max_pacing_rate)
        if options.tx_delay or self.ip is not self.layer.ip:
            self._delay(options.tx_delay)
        receiver.make_room(options.rcvlowat)
        receiver.time(options.timed)
        self.predict()
        self.template = None
        if options.device != self.key[2] >> 32:
            self.layer.tie(self)
        if self.ip_options or self.route.dst != self.remote[0]:  # a source route, now or before
            with suppress(NetError):
                self.layer.reroute(self)
        elif self.connected:
            resegment(self)
        self.sender.rtt.limit(options.rto_min, options.rto_max)
        self.timers.options_changed()
        self.schedule()  # Nagle, cork or the window may let something go now

    def _delay(self, delay: int) -> None:
        """TCP_TX_DELAY."""
        if isinstance(self.ip, DelayLine):
            self.ip.delay = delay
        else:
            self.ip = DelayLine(self.layer, delay)

    def shutdown_read(self) -> None:
        """`eof` from now on (what still arrives stays readable, as on Linux)."""
        self.read_shut = True
        self.predict()
        self.notify()

    def shutdown_write(self) -> None:
        """FIN after everything written (RFC 9293 section 3.10.4, CLOSE call). Idempotent."""
        sender = self.sender
        if sender.fin_queued or self.state is TcpState.CLOSED:
            return
        sender.fin_queued = True
        sender.more = False
        after = self.ladder.after_close
        if after is not None:
            self.enter(after)
        self.schedule()

    def close(self, linger: int | None = None) -> None:
        """The user lets go. Unread data or `linger` == 0: RST (RFC 9293 section 3.10.4). Otherwise FIN.

        The rest happens without the user; `on_event` is still called until it is set to None. Idempotent.
        """
        if self.orphan:
            return
        self.orphan = True
        self.predicted = 0
        state = self.state
        if state in (TcpState.CLOSED, TcpState.TIME_WAIT):
            self.receiver.queue.clear()
        elif state is TcpState.SYN_SENT or linger == 0 or self.receiver.queue.length:
            self.abort()
        else:
            self.shutdown_write()
            if (self.state is TcpState.FIN_WAIT_2 and self.options.fin_timeout < 0) or not self.layer.orphaned(self):
                self.abort()
            elif self.state is TcpState.FIN_WAIT_2:
                self.timers.watch()

    def info(self) -> TcpInfo:
        return collect(self)

    @property
    def mss(self) -> int:
        """Payload bytes of a full-sized segment we send."""
        return self.sender.mss
