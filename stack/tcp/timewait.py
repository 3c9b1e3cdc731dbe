"""Connections in TIME-WAIT: 2 MSL, for the peer's FIN to come again if our ACK was lost, and for old segments to die.

A connection that enters TIME-WAIT leaves its place in the tables, and its hold on the port, to a `TimeWait` of a few
hundred bytes. All of them wait equally long, so they form one queue with one timer, and their number is bounded (Linux
tcp_max_tw_buckets): above it a connection goes straight to CLOSED.

What ends TIME-WAIT early: a SYN that cannot be an old duplicate (RFC 6191), a connect to the same place when timestamps
tell old segments from new ones (`TcpLayer.connect`, tcp_tw_reuse), and a reset, which RFC 1337 advises to ignore and
Linux obeys unless tcp_rfc1337 is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import ref

from stack.ip.source_route import answer_options
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp.mib import Mib
from stack.tcp.minisock import Minisock, send_single
from stack.tcp.seqnum import HALF, MASK, older
from stack.tcp.transitions import TcpState
from stack.wire.tcp import ACK, FIN, RST, HeaderOptions

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort
    from stack.tcp.layer import TcpLayer
    from stack.tcp.pcb import Pcb
    from stack.tcp.segment import Segment

_ISN_GAP = 65535 + 2  # how far beyond an old incarnation's sequence numbers the new ISN starts; Linux


class TimeWait(Minisock):
    """Sequence numbers are those of the wire."""

    __slots__ = (
        "_bound",
        "_connection",
        "rcv_nxt",
        "signing",
        "since",
        "snd_nxt",
        "stamped",
        "timestamp_offset",
        "tos",
        "ts_recent",
        "ttl",
        "window",
    )

    def __init__(self, connection: Pcb) -> None:
        super().__init__(connection.layer, connection.key, connection.oif)
        receiver = connection.receiver
        self.rcv_nxt = receiver.rcv_nxt & MASK
        self.snd_nxt = connection.sender.snd_max & MASK
        self.window = min(max(receiver.window, 0) >> receiver.shift, 65535)  #: as it goes into the header
        self.stamped = connection.timestamps
        self.signing = connection.signing
        self.timestamp_offset = connection.timestamp_offset
        self.ts_recent = receiver.ts_recent
        self.since = self.layer.scheduler.now  #: ns
        self.ttl, self.tos = connection.options.ttl, connection.options.tos
        self._bound: BoundPort | None = connection.bound
        self._connection = ref(connection)  # whoever still has it sees how it ends

    def __repr__(self) -> str:
        return f"TimeWait({self.local[0].hex()}:{self.local[1]} - {self.remote[0].hex()}:{self.remote[1]})"

    @property
    def next_isn(self) -> int:
        """Where the next incarnation starts: beyond all this one has sent (RFC 6191, RFC 1122 section 4.2.2.13)."""
        return (self.snd_nxt + _ISN_GAP) & MASK or 1

    def recyclable(self, *, bound: bool) -> bool:
        """Whether a connect may take the 4-tuple over (RFC 6191 section 2, Linux tcp_tw_reuse).

        `bound`: the user chose the port, and so wants just this.
        """
        layer = self.layer
        reuse = layer.config.tw_reuse
        if not self.stamped or bound:
            return self.stamped
        if not reuse or (reuse == LOOPBACK and not _loopback(self.key[0])):
            return False
        return layer.scheduler.now - self.since >= REUSE_AFTER

    def end(self) -> None:
        """The port is free again."""
        bound, self._bound = self._bound, None
        if bound is not None:
            bound.release()
        connection = self._connection()
        if connection is not None and connection.state is TcpState.TIME_WAIT:
            connection.enter(TcpState.CLOSED)

    # --- segments ------------------------------------------------------------------------------------------------

    def segment(self, seg: Segment) -> None:
        layer = self.layer
        flags = seg.flags
        stamps = seg.options.timestamps if self.stamped else None
        old = stamps is not None and not flags & RST and older(stamps[0], self.ts_recent)
        ahead = ((seg.seq - self.rcv_nxt + HALF) & MASK) - HALF
        if not old and not ahead and (flags & RST or not seg.length):
            # Exactly in place: only a reset or a bare ACK can be.
            if flags & RST:
                if not layer.config.rfc1337:
                    layer.time_waits.remove(self)
                return
            if stamps is not None:
                self.ts_recent = stamps[0]
            layer.time_waits.restart(self)
            return
        newer = ahead > 0 or (stamps is not None and older(self.ts_recent, stamps[0]))
        if newer and not old and seg.is_bare_syn and layer.reopen(self, seg):
            return
        if old:
            layer.mib.count(Mib.PAWS_ESTAB)
            layer.drops.count("paws")
        if flags & RST:
            return
        if old or flags & ACK:
            layer.time_waits.restart(self)
        if flags & FIN or self.may_answer(seg, Mib.ACK_SKIPPED_TIME_WAIT):
            self._acknowledge(seg)

    def _acknowledge(self, seg: Segment) -> None:
        options = None
        if self.stamped:
            stamp = (self.layer.scheduler.now // NS_PER_MS + self.timestamp_offset) & MASK
            options = HeaderOptions(timestamps=(stamp, self.ts_recent))
        send_single(
            self.layer,
            self.key,
            self.oif,
            self.snd_nxt,
            self.rcv_nxt,
            ACK,
            self.window,
            options,
            ttl=self.ttl,
            tos=self.tos,
            ip_options=answer_options(self.layer.ip, seg.packet),
        )


class TimeWaits:
    """Those of one namespace, the next to end first."""

    __slots__ = ("_layer", "_queue", "_timer")

    def __init__(self, layer: TcpLayer) -> None:
        self._layer = layer
        self._queue: dict[TimeWait, None] = {}  # a dict as ordered set
        self._timer = layer.scheduler.timer(self._expire)

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[TimeWait]:
        return iter(self._queue)

    def add(self, connection: Pcb) -> bool:
        """`connection` has entered TIME-WAIT. False: there are too many, it is to be CLOSED."""
        layer = self._layer
        if len(self._queue) >= layer.config.time_wait_max:
            layer.mib.count(Mib.TIME_WAIT_OVERFLOW)
            layer.drops.count("time-wait-overflow")
            return False
        layer.mib.count(Mib.TIME_WAITED)
        wait = TimeWait(connection)
        layer.demux.minisocks[wait.key] = wait
        self._wait(wait)
        return True

    def restart(self, wait: TimeWait) -> None:
        """2 MSL from now."""
        del self._queue[wait]
        self._wait(wait)

    def remove(self, wait: TimeWait) -> None:
        """Its time is over."""
        del self._queue[wait]
        minisocks = self._layer.demux.minisocks
        if minisocks.get(wait.key) is wait:
            del minisocks[wait.key]
        wait.end()

    def recycle(self, wait: TimeWait) -> None:
        """A connect takes the 4-tuple over."""
        self._layer.mib.count(Mib.TIME_WAIT_RECYCLED)
        self.remove(wait)

    def _wait(self, wait: TimeWait) -> None:
        self._queue[wait] = None
        wait.deadline = self._layer.scheduler.now + self._layer.config.time_wait
        if self._timer.deadline is None:
            self._timer.arm(wait.deadline)

    def _expire(self) -> None:
        now = self._layer.scheduler.now
        due: list[TimeWait] = []
        for wait in self._queue:
            if wait.deadline > now:
                break
            due.append(wait)
        for wait in due:
            self.remove(wait)
        if self._queue:
            self._timer.arm(next(iter(self._queue)).deadline)


REUSE_AFTER = NS_PER_S  # ns in TIME-WAIT before a connect may take it over; Linux tcp_tw_reuse_delay
LOOPBACK = 2  # value of TcpConfig.tw_reuse, as Linux's tcp_tw_reuse: only where nothing can be delayed


def _loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"
