"""The receiving half of a connection: what arrived, what was acknowledged, which window was promised.

Theory of operation
-------------------
Segments only move RCV.NXT and fill queues; nothing is sent for them on the spot. Once per turn the connection's flush
asks `ack_due`, and whichever segment leaves (data or a bare ACK) calls `advertise`, the one place where a promise is
made. So a burst of forty segments costs one ACK, except where RFC 5681 section 4.2 wants one each: segments out of
order, whose duplicate ACKs the peer counts (`acks_owed`).

ACK policy: at once for more than one full-sized segment (RFC 9293 section 3.8.6.3), at once for the first segments of a
connection so that the peer's slow start is not held up (Linux's quick ACKs), else by a timer of 40 ms. A connection
whose own data carries its ACKs (request and response) leaves quick mode; to find that out with the first question
already, an ACK of that alone waits a millisecond for the answer.

Window: never shrunk, not advanced by less than a segment or half the buffer (silly window avoidance, RFC 9293 section
3.8.6.2.2). The buffer is auto-tuned: it starts small and doubles, up to `rcvbuf_max`, each time the peer came near the
window's edge during a window's worth of data while the reader kept the queue empty. A reader that does not read
therefore never gets more than the initial buffer, however many such sockets there are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from stack.ip.route import RouteKind
from stack.link.device import FOLLOWS
from stack.tcp.buffers import COPY_BREAK, ReceiveQueue
from stack.tcp.mib import Mib
from stack.tcp.reassembly import Reassembly
from stack.tcp.receivetimes import ReceiveTimes
from stack.tcp.seqnum import MASK
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH

if TYPE_CHECKING:
    from stack.link.device import RxFrame
    from stack.tcp.pcb import Pcb

QUICK_ACKS: Final = 16  # segments acknowledged at once at the start; Linux TCP_MAX_QUICKACKS
_NEVER: Final = -(1 << 62)
MAX_WINDOW_FIELD: Final = 65535
MAX_SHIFT: Final = 14  # RFC 7323 section 2.3
PIN_SLACK: Final = 64 * 1024  # bytes of slab a queue may keep alive beyond its buffer before it copies
_OPTIONS: Final = 12  # bytes, a timestamp: what a full-sized segment may be short of the MSS
_WINDOW: Final = struct.Struct("!14xH")  # of a TCP header
DUPLICATE_ACKS_PER_TURN: Final = 64  # more tell the peer nothing new


def window_shift(buffer: int) -> int:
    """The smallest shift count with which a window of `buffer` bytes can be said (RFC 7323 section 2.2)."""
    shift = buffer.bit_length() - MAX_WINDOW_FIELD.bit_length()
    if shift < 0:
        return 0
    return min(MAX_SHIFT, shift)


class Receiver:
    __slots__ = (
        "acks_owed",
        "connection",
        "data_segments",
        "drained",
        "dsack",
        "fin_seq",
        "hurried_at",
        "irs",
        "last_ack_sent",
        "mark",
        "mark_at",
        "mss",
        "out_of_order",
        "pin_limit",
        "pressed",
        "queue",
        "quick",
        "rcv_adv",
        "rcv_nxt",
        "rcvbuf",
        "reassembly",
        "round_trip",
        "segments",
        "shift",
        "space",
        "times",
        "ts_recent",
        "ts_recent_at",
        "update_due",
    )

    def __init__(self, connection: Pcb, rcvbuf: int) -> None:
        self.connection = connection
        self.rcv_nxt = 0  #: RCV.NXT
        self.rcv_adv = 0  #: right edge of the window promised: RCV.NXT + RCV.WND
        self.last_ack_sent = 0  #: Last.ACK.sent of RFC 7323
        self.shift = 0  #: Rcv.Wind.Shift, ours
        self.queue = ReceiveQueue()
        self.reassembly = Reassembly()
        self.fin_seq: int | None = None  #: sequence number of the peer's FIN once it was seen
        self.rcvbuf = rcvbuf
        self.pin_limit = rcvbuf + PIN_SLACK  #: memory each of the two queues may keep alive, bytes
        self.space = rcvbuf  #: rcvbuf, clamped to what the window may ever be
        self.mss = 536  #: estimate of the peer's segment size (SendMSS of the peer), for the ACK policy
        self.ts_recent = 0  #: TS.Recent of RFC 7323
        self.ts_recent_at = 0  #: when it was set, ns
        self.acks_owed = 0  #: ACKs to send whatever the policy says
        self.update_due = False  #: the window opened enough to tell the peer
        self.dsack: tuple[int, int] | None = None  #: what arrived twice, for the next ACK (RFC 2883)
        self.quick = QUICK_ACKS  #: ACKs to send at once; -1: data is sent to carry them ("ping-pong")
        self.hurried_at = _NEVER  #: when reading sent an ACK that an answer might have carried, ns
        self.irs = 0  #: initial receive sequence number
        self.segments = 0  #: segments received, as far as the wire knows
        self.data_segments = 0  #: those with payload
        self.out_of_order = 0  #: those ahead of a gap
        self.round_trip = 0  #: the peer's, by how long it took to fill a window, ns; 0: not measured
        self.mark_at = 0  #: when that window began, ns
        self.mark = 0  #: auto-tuning: RCV.NXT at which the current round ends
        self.drained = False  #: ... the queue was read empty in this round
        self.pressed = False  #: ... the peer used more than half the window in this round
        #: when it came, None: nobody asks
        self.times = ReceiveTimes(self) if connection.options.timed else None

    def begin(self, irs: int) -> None:
        """The peer's SYN with sequence number `irs`."""
        self.segments += 1
        self.irs = irs
        self.rcv_nxt = self.last_ack_sent = self.rcv_adv = irs + 1
        self.mark = self.rcv_nxt + self.space
        self.mark_at = self.connection.scheduler.now

    @property
    def received(self) -> int:
        """Bytes in order, all in all."""
        return max(self.rcv_nxt - self.irs - (1 if self.fin_seq is None or self.rcv_nxt <= self.fin_seq else 2), 0)

    @property
    def read_seq(self) -> int:
        """Sequence number of the next byte to be read."""
        end = self.rcv_nxt if self.fin_seq is None else min(self.rcv_nxt, self.fin_seq)
        return end - self.queue.length

    @property
    def window(self) -> int:
        """RCV.WND as promised to the peer, bytes."""
        return self.rcv_adv - self.rcv_nxt

    def resize(self, rcvbuf: int, clamp: int) -> None:
        """Set the buffer (and the clamp, 0 for none) in bytes; promises already made stay."""
        self.rcvbuf = rcvbuf
        self.pin_limit = rcvbuf + PIN_SLACK
        space = min(rcvbuf, MAX_WINDOW_FIELD << self.shift)
        self.space = min(space, clamp) if clamp else space

    def hurry(self, on: bool) -> None:
        """TCP_QUICKACK: acknowledge at once from now on, until data carries the ACKs; or not, until told again."""
        self.quick = QUICK_ACKS if on else -1
        if on and self.rcv_nxt > self.last_ack_sent:
            self.owe_ack()

    def time(self, on: bool) -> None:
        """SO_TIMESTAMP and its likes: keep account of when data comes, from now on; or no longer."""
        if on != (self.times is not None):
            self.times = ReceiveTimes(self) if on else None

    def make_room(self, low_water: int) -> None:
        """SO_RCVLOWAT: so much must fit, or it would never be reached."""
        options = self.connection.options
        if low_water > self.rcvbuf and not options.fixed_rcvbuf:
            self.resize(min(2 * low_water, self.connection.layer.config.rcvbuf_max), options.window_clamp)

    # --- segments coming in -------------------------------------------------------------------------------------

    def accept(self, view: memoryview, size: int, gso_size: int) -> None:
        """`size` bytes of payload that begin at RCV.NXT and lie inside the window."""
        self.rcv_nxt += size
        if self.times is not None:
            self.times.note(self.rcv_nxt, self.connection.scheduler.now)
        if gso_size:
            self.data_segments += -(-size // gso_size)
        else:
            self.data_segments += 1
            gso_size = size
        if gso_size > self.mss:
            self.mss = min(gso_size, self.connection.advmss)
        queue = self.queue
        queue.append(view)
        if queue.charge > self.pin_limit:
            queue.limit(self.pin_limit)

    def follow(self, burst: Sequence[RxFrame], at: int) -> int:
        """`stack.iface.hooks.Taker`: for what continues a segment that header prediction (`Pcb.fast`) took.

        Payload and window are all there is to look at: the rest of what `fast` and those before it decide was decided
        for that one, and would come to the same or change nothing. All came at the same moment.
        """
        connection = self.connection
        transport = ETHERNET_LENGTH + connection.ip_header
        if _WINDOW.unpack_from(burst[at][0], transport)[0] != connection.sender.raw_window:
            return at  # not taken from a segment that overtook others (SND.WL1), but from one of these it might be
        start = transport + (connection.predicted >> 2)
        frames, flags, types, pieces, _, _ = zip(*islice(burst, at, None), strict=True)
        count = len(frames)
        lengths = list(map(len, frames))
        size = sum(lengths) - count * start
        gso_size = pieces[0] if types[0] else 0  # all of a train say the same
        if (
            flags[0] & FOLLOWS
            and flags.count(flags[0]) == count  # it ends with the burst
            and size <= self.rcv_adv - self.rcv_nxt
            and min(lengths) >= COPY_BREAK + start
            and self.queue.append_train(frames, start, size, self.pin_limit)
        ):
            segments = count
            if not gso_size:
                gso_size = max(lengths) - start
            elif lengths.count(lengths[0]) == count:
                segments *= -((start - lengths[0]) // gso_size)
            else:
                segments = sum([-((start - length) // gso_size) for length in lengths])
            self.followed(count, size, segments, gso_size)
            return at + count
        return self._follow_singly(burst, at, start)

    def _follow_singly(self, burst: Sequence[RxFrame], at: int, start: int) -> int:
        """What follows frame by frame, payload from byte `start` on, where that may end before the burst or somewhere
        the queue has to copy."""
        first, room = at, self.rcv_adv - self.rcv_nxt
        left, segments, longest = room, 0, 0
        queue, limit = self.queue, self.pin_limit
        append = queue.append
        for frame, flags, gso_type, gso_size, _, _ in islice(burst, at, None):
            view = frame[start:]
            size = len(view)
            if size > left or not flags & FOLLOWS:
                break
            left -= size
            at += 1
            if gso_type:
                segments += -(-size // gso_size)
            else:
                segments += 1
                gso_size = size
            if gso_size > longest:
                longest = gso_size
            append(view)
            if queue.charge > limit:
                queue.limit(limit)
        if at > first:
            self.followed(at - first, room - left, segments, longest)
        return at

    def followed(self, count: int, size: int, segments: int, longest: int) -> None:
        """So many frames in order were queued."""
        connection = self.connection
        self.rcv_nxt += size
        self.data_segments += segments
        if longest > self.mss:
            self.mss = min(longest, connection.advmss)
        if self.times is not None:
            self.times.note(self.rcv_nxt, connection.scheduler.now)
        connection.layer.stats.fast_in += count

    def text(self, seq: int, view: memoryview, gso_size: int) -> bool:
        """Seventh step of RFC 9293 section 3.10.7.4 for payload trimmed to the window. True if RCV.NXT advanced."""
        if seq > self.rcv_nxt:
            # RFC 5681 section 4.2: an immediate duplicate ACK for every segment out of order.
            segments = -(-len(view) // gso_size) if gso_size else 1
            self.out_of_order += segments
            self.data_segments += segments
            if not self.reassembly.insert(seq, view):
                self.dsack = (seq, seq + len(view))
            if self.reassembly.limit(self.pin_limit):
                self.connection.layer.mib.count(Mib.OFO_PRUNED)
                self.connection.layer.drops.count("out-of-order-limit")
            self.owe_ack()
            return False
        if seq < self.rcv_nxt:
            view = view[self.rcv_nxt - seq :]
            gso_size = 0
        if not view:
            return False
        self.accept(view, len(view), gso_size)
        if self.reassembly.length:
            counted = self.data_segments  # they were, when they came
            for piece in self.reassembly.take(self.rcv_nxt):
                self.accept(piece, len(piece), self.mss)
            self.data_segments = counted
            # ... and one for a segment that fills all or part of a gap.
            self.owe_ack()
        return True

    @property
    def asks(self) -> bool:
        """What is not acknowledged is the first the peer has sent, less than a full segment, and we have sent nothing:
        a question, whose answer may carry the acknowledgment if it comes soon. Between our own addresses a segment more
        costs next to nothing.
        """
        connection = self.connection
        sender = connection.sender
        return (
            self.last_ack_sent == self.irs + 1
            and sender.snd_max == sender.iss + 1
            and self.rcv_nxt - self.last_ack_sent < self.mss
            and connection.layer.config.answer_wait > 0
            and connection.route.kind is not RouteKind.LOCAL
        )

    def owe_ack(self) -> None:
        if self.acks_owed < DUPLICATE_ACKS_PER_TURN:
            self.acks_owed += 1

    def note_timestamp(self, value: int, seq: int) -> None:
        """RFC 7323 section 4.3 (2): remember TSval of the segment that spans Last.ACK.sent."""
        if seq <= self.last_ack_sent and (value - self.ts_recent) & MASK < 0x80000000:
            self.ts_recent = value
            self.ts_recent_at = self.connection.scheduler.now

    # --- what goes out ------------------------------------------------------------------------------------------

    def ack_due(self) -> int:
        """How many bare ACKs to send now, if nothing else carries the acknowledgment. Arms the delayed-ACK timer."""
        if self.acks_owed:
            return self.acks_owed
        if self.update_due:
            return 1
        waiting = self.rcv_nxt - self.last_ack_sent
        if waiting <= 0:
            return 0
        if waiting > self.mss:  # as Linux: a small segment before a full one counts as well
            if self.quick > 0:
                self.quick -= 1
            return 1
        connection = self.connection
        timer = connection.timers.delayed_ack
        if self.quick > 0:
            if self.asks:
                if timer.deadline is None:
                    timer.arm_in(connection.layer.config.answer_wait)
                return 0
            self.quick -= 1
            return 1
        if timer.deadline is None:
            delay = connection.layer.config.delayed_ack
            if delay > connection.options.delayed_ack_max:
                delay = connection.options.delayed_ack_max
            timer.arm(connection.scheduler.now + delay)
        return 0

    def advertise(self) -> int:
        """The window field of a segment about to leave. Everything up to RCV.NXT is acknowledged by it."""
        nxt = self.rcv_nxt
        promised = self.rcv_adv
        left = promised - nxt
        space = self.space
        if left * 2 < space:
            self.pressed = True
        window = space - self.queue.length
        gain = window - left
        if gain < self.mss and gain < space >> 1:
            window = left
        field = window >> self.shift
        if field > MAX_WINDOW_FIELD:
            field = MAX_WINDOW_FIELD
        elif field < 0:
            field = 0
        # Rounding down may say less than was promised before: that is a matter of the notation (RFC 7323 section
        # 2.4), the larger promise is kept.
        edge = nxt + (field << self.shift)
        if edge > promised:
            self.rcv_adv = edge
        self.last_ack_sent = nxt
        self.acks_owed = 0
        self.update_due = False
        self.connection.timers.delayed_ack.deadline = None
        return field

    def was_read(self) -> bool:
        """After the user took bytes. True: the peer should hear from us now."""
        length = self.queue.length
        due = False
        if not length:
            self.drained = True
            if self.quick >= 0 and not self.acks_owed:
                waiting = self.rcv_nxt - self.last_ack_sent
                # No longer than any before, and shorter than what we take: it was the end of a write.
                if 0 < waiting <= self.mss and waiting < self.connection.advmss - _OPTIONS:
                    # As Linux (tcp_cleanup_rbuf): the user has read all there was, a write of the peer's ended there,
                    # nothing goes the other way: it may wait, by Nagle's rule, before it sends the next short segment.
                    if self.asks:
                        return False
                    self.acks_owed = 1
                    self.hurried_at = self.connection.scheduler.now
                    due = True
        if self.rcv_nxt >= self.mark:
            self._end_round()
        window = self.rcv_adv - self.rcv_nxt
        space = self.space
        if window * 2 > space:
            return due  # plenty left: the next ACK will tell
        gain = space - length - window
        if gain < self.mss and gain < space >> 1:
            return due
        # As Linux's tcp_cleanup_rbuf: only if it at least doubles what the peer may send.
        if gain >= window:
            self.update_due = True
            return True
        return due

    def _end_round(self) -> None:
        """A window's worth of data has arrived since the last round: grow if the buffer was what limited the peer."""
        connection = self.connection
        now = connection.scheduler.now
        took = max(now - self.mark_at, 1)
        if self.pressed and (took < self.round_trip or not self.round_trip):
            self.round_trip = took
        self.mark_at = now
        if (
            self.drained
            and self.pressed
            and not connection.options.fixed_rcvbuf
            and connection.layer.config.moderate_rcvbuf
        ):
            grown = min(2 * self.rcvbuf, connection.layer.config.rcvbuf_max)
            if grown > self.rcvbuf:
                self.resize(grown, connection.options.window_clamp)
        self.drained = self.pressed = False
        self.mark = self.rcv_nxt + self.space
