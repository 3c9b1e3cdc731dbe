"""Loss recovery with SACK: what the scoreboard, RACK-TLP (RFC 8985), PRR (RFC 9937) and F-RTO (RFC 5682) come to.

Theory of operation
-------------------
While nothing is amiss this object is not `engaged` and costs nothing. A SACK block, a tail-loss probe or a time-out
makes a scoreboard of the sender's flights; it lives until everything in doubt is settled.

ACKs and blocks only update the scoreboard (`on_ack`, `on_sack`). Once per turn, when the sender is about to send,
`transmit` draws the conclusions: RACK marks what is lost, a loss opens recovery, PRR says how much may leave,
retransmissions go first, and ``extra`` lets new data fill what is left. The sender knows nothing of pipes: ``extra``
is what it would count as in flight though it is not (sacked, or lost), so that cwnd limits the pipe.

SND.NXT never goes back here: after a time-out what is lost is marked, and goes again as slow start permits.

The connection's one retransmission timer stands for three (RFC 8985 section 8): reordering (``reorder_at``), probe
(``sender.tail_probe``, see `tailprobe`) and RTO. Which it is, is decided when it expires.

A reduction that proves unneeded is taken back (`undo`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_MS
from stack.tcp.frto import judge
from stack.tcp.output import emit_burst
from stack.tcp.prr import RateReduction
from stack.tcp.rack import Rack
from stack.tcp.recovery import RecoveryPhase
from stack.tcp.scoreboard import Run, Scoreboard
from stack.tcp.seqnum import HALF, MASK, unwrap
from stack.tcp.tailprobe import probe_answered, probe_when_due, watch_tail
from stack.tcp.undo import remember, take_back, take_back_if_unneeded
from stack.wire.tcp import ACK, FIN

if TYPE_CHECKING:
    from stack.tcp.sender import Sender

MOST_BLOCKS: Final = 4  # an option has no room for more


class SackRecovery:
    __slots__ = (
        "_delivered",
        "advanced",
        "beyond",
        "board",
        "delivered",
        "dsack",
        "dsacks",
        "duplicates",
        "echo",
        "eifel",
        "engaged",
        "extra",
        "frto",
        "frto_end",
        "original",
        "phase",
        "probe_again",
        "probe_end",
        "prr",
        "rack",
        "recover",
        "reorder_at",
        "reported",
        "sender",
        "undo_bytes",
        "undo_from",
        "undo_resent",
        "undo_stamp",
    )

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.phase = RecoveryPhase.OPEN
        self.duplicates = 0  #: duplicate ACKs in a row, for show
        self.recover = sender.iss  #: RecoveryPoint: SND.MAX when the last loss event began
        self.beyond = False  #: data sent after this recovery began was lost as well
        self.extra = 0  #: bytes the sender counts as in flight that are not
        self.engaged = False  #: there is a scoreboard, or a probe's outcome is open
        self.board: Scoreboard | None = None
        self.rack = Rack(sender.iss)
        self.prr = RateReduction(0)
        self.reorder_at: int | None = None  #: when the reordering window of something ends, ns
        self.probe_end: int | None = None  #: TLP.end_seq
        self.probe_again = False  #: TLP.is_retrans
        self.frto = 0  #: 1: waiting for the first ACK after a time-out, 2: for the second
        self.frto_end = 0  #: RecoveryPoint of F-RTO
        self.undo_from: int | None = None  #: SND.UNA when cwnd was reduced; None: nothing to take back
        self.undo_bytes = 0  #: sent again since and not reported as duplicate
        self.eifel = False  #: the first hole had been sent once only: the ACK that fills it tells
        self.undo_resent = 0  #: sent again since, all in all
        self.undo_stamp: int | None = None  #: TSval of the first retransmission since
        self.dsacks = 0  #: D-SACK blocks received
        self.delivered = 0  #: bytes sacked or acknowledged while engaged (the open case is counted by SND.UNA)
        # What this turn's ACKs brought:
        self._delivered = 0  # bytes newly sacked or acknowledged
        self.advanced = False  # SND.UNA moved
        self.reported = False  # a block told something new
        self.original = False  # data sent before the time-out, and once only, arrived
        self.dsack = False  # a D-SACK block was among them
        self.echo: int | None = None  # TSecr of the first ACK that advanced

    # --- what the peer says --------------------------------------------------------------------------------------

    def on_ack(self, acked: int, echo: int | None) -> int:
        """SND.UNA has moved by `acked`. Returns the bytes of it that were not reported before."""
        sender = self.sender
        una = sender.snd_una
        if not self.advanced:
            self.echo = echo
        self.advanced = True
        self.duplicates = 0
        fresh = acked
        if self.board is not None:
            taken, fresh = self.board.acknowledge(una)
            for run in taken:
                if not run.sacked:
                    self._arrived(run, echo)
            self._delivered += fresh
        if self.probe_end is not None and una >= self.probe_end:
            probe_answered(self, una)
        return fresh

    def on_sack(self, blocks: tuple[tuple[int, int], ...], ack: int, echo: int | None) -> None:
        """SACK blocks as on the wire, of a segment whose (endless) ACK is `ack`."""
        sender = self.sender
        una = sender.snd_una
        edges = [(unwrap(left, ack), unwrap(right, ack)) for left, right in blocks[:MOST_BLOCKS]]
        left, right = edges[0]
        if left < right and (right <= ack or (len(edges) > 1 and edges[1][0] <= left and right <= edges[1][1])):
            # RFC 2883 section 4: a block below the ACK, or inside the second one, reports a duplicate.
            self._duplicate(left, right)
            del edges[0]
        # RFC 2018 section 4 does not allow edges outside of what is in flight; such blocks are of no use.
        edges = [edge for edge in edges if edge[0] < edge[1] and una < edge[1] <= sender.snd_max]
        if not edges:
            return
        if self.board is None:
            self.engage()
        board = self.board
        assert board is not None
        for left, right in edges:
            for run in board.sack(max(left, una), right, sender.mss):
                self._delivered += run.end - run.start
                self.reported = True
                self._arrived(run, echo)
        watch_tail(self)

    def on_duplicate_ack(self) -> None:
        """An ACK without news but perhaps with blocks: those are what counts."""
        self.duplicates += 1

    def _arrived(self, run: Run, echo: int | None) -> None:
        connection = self.sender.connection
        now = connection.scheduler.now
        original = False
        if run.retransmitted:
            if echo:
                age = (connection.timestamp() - echo) & MASK
                original = age < HALF and age * NS_PER_MS > now - run.sent_at + NS_PER_MS
        elif run.start < self.recover:
            self.original = True
        self.rack.delivered(run, now, self.sender.rtt.minimum, original)

    def _duplicate(self, left: int, right: int) -> None:
        """D-SACK: [left, right) arrived twice."""
        sender = self.sender
        self.dsacks += 1
        self.dsack = True
        sender.connection.layer.stats.dsacks_in += 1
        if self.probe_end is not None and right == self.probe_end and self.probe_again:
            self.probe_end = None  # RFC 8985 section 7.4.2: the probe was not needed
        if self.undo_from is not None and self.undo_from <= left and right <= sender.snd_max:
            self.undo_bytes -= right - left
            self.engaged = True
        if right <= sender.karn:  # sent twice by us, not by the network
            self.rack.dsack(sender.snd_una, sender.snd_max)

    # --- what follows from it ------------------------------------------------------------------------------------

    def transmit(self, now: int) -> bool:
        """Judge this turn's news, send again what may be. Called before new data. True if something was sent."""
        sender = self.sender
        board = self.board
        sent = False
        take_back_if_unneeded(self)
        if self.phase and sender.snd_una >= self.recover:
            self._recovered()
        if board is not None and board.runs:
            rtt = sender.rtt
            window = self.rack.window(rtt.srtt, rtt.minimum, bool(self.phase), board.sacked, sender.mss)
            lost, timeout = self.rack.detect(board, now, window)
            if lost and sender.prober is not None and not self.phase and sender.prober.lost_alone(board):
                sender.prober.failed()
                lost = 0  # it goes again in smaller pieces, and that is all
            if lost and self.phase is RecoveryPhase.RECOVERY:
                self.beyond = self.beyond or any(run.lost and run.start >= self.recover for run in board.runs)
            if self.phase is RecoveryPhase.OPEN and (lost or (self.beyond and self.recover < sender.snd_max)):
                # Also when what was lost was found, and sent again, during the last recovery: it was sent after that
                # reduction, so its loss is another event.
                self._enter(now)
            if self.phase is RecoveryPhase.RECOVERY and (self._delivered or lost):
                self._reduce(board, safe=self.advanced and not lost)
            if self.frto and judge(self, board):
                take_back(self)
            if board.lost and not self.frto:
                sent = self._resend(board, now)
            self._await_reordering(now, timeout)
        else:
            self.reorder_at = None
        self.delivered += self._delivered
        self._delivered = 0
        self.advanced = self.reported = self.original = self.dsack = False
        self.echo = None
        self._settle()
        return sent

    def _enter(self, now: int) -> None:
        """Fast recovery: RFC 6675 section 5 (4), RFC 9937 section 6."""
        sender = self.sender
        board = self.board
        assert board is not None
        self.phase = RecoveryPhase.RECOVERY
        self.recover = sender.snd_max
        self.beyond = False
        outstanding = sender.flight - board.sacked + self._delivered
        self.prr = RateReduction(outstanding)
        remember(self)
        # Not RFC 6675's FlightSize, which counts what is sacked, too: a second event would raise ssthresh.
        sender.congestion.on_loss(outstanding, now)
        watch_tail(self)

    def _reduce(self, board: Scoreboard, *, safe: bool) -> None:
        sender = self.sender
        congestion = sender.congestion
        if congestion.model_based:
            return
        pipe = sender.flight - board.sacked - board.lost
        count = self.prr.on_ack(self._delivered, pipe, congestion.ssthresh, sender.mss, safe=safe)
        congestion.cwnd = max(pipe + count, sender.mss)

    def _recovered(self) -> None:
        """Everything outstanding at the beginning is acknowledged."""
        congestion = self.sender.congestion
        if self.phase is RecoveryPhase.RECOVERY:
            if not congestion.model_based:
                congestion.cwnd = congestion.ssthresh
            self.rack.recovered()
        congestion.on_recovered()
        self.phase = RecoveryPhase.OPEN
        self.frto = 0
        watch_tail(self)

    def _resend(self, board: Scoreboard, now: int) -> bool:
        """Lost runs again, oldest first, as far as cwnd allows."""
        sender = self.sender
        mss = sender.mss
        room = sender.congestion.cwnd - (sender.flight - board.sacked - board.lost)
        if sender.pacer is not None:
            room = min(room, sender.pacer.budget(now, mss, sender.superframe))
        data_end = sender.queue.end
        plan: list[tuple[int, int, int]] = []
        index = 0
        runs = board.runs
        while board.lost and index < len(runs):
            run = runs[index]
            if run.lost:
                size = run.end - run.start
                if size > sender.superframe:
                    size = sender.superframe
                if size > room:
                    sender.cwnd_limited = True
                    size = room - room % mss
                    if size <= 0:
                        break
                run = board.resend(index, size, now)
                self.plan(plan, run, data_end)
                room -= run.end - run.start
            index += 1
        if plan:
            emit_burst(sender.connection, plan)
            sender.last_sent = now
            if sender.pacer is not None:
                sender.pacer.sent(sum(size for _, size, _ in plan), now)
                if board.lost:
                    sender.pacer.more()
            if self.undo_stamp is None and self.eifel:
                self.undo_stamp = sender.connection.timestamp()
        return bool(plan)

    def plan(self, plan: list[tuple[int, int, int]], run: Run, data_end: int) -> None:
        """`run` goes again: adds it to what `emit_burst` will be given. Behind `data_end` there is only FIN."""
        flags = ACK
        size = run.end - run.start
        if run.end > data_end:
            flags = ACK | FIN
            size -= 1
        plan.append((run.start, size, flags))
        self.sender.sent_again(run.start, run.end)
        self.undo_bytes += run.end - run.start
        self.undo_resent += run.end - run.start
        self.prr.sent += run.end - run.start

    def on_marked(self) -> None:
        """cwnd was reduced for an ECN echo: no reduction before that can be taken back any more."""
        self.undo_from = None

    def on_sent(self, now: int) -> None:
        """New data left while engaged."""
        if self.board is not None:
            self.prr.sent += self.board.extend(self.sender.snd_max, now)

    # --- timers --------------------------------------------------------------------------------------------------

    def _await_reordering(self, now: int, timeout: int) -> None:
        if timeout:
            self.reorder_at = now + timeout
            self.sender.connection.timers.retransmit.arm(self.reorder_at)
        elif self.reorder_at is not None:
            self.reorder_at = None
            self.sender.rearm(now)

    def on_timer(self, now: int) -> bool:
        """The timer expired. True if that was not the RTO."""
        sender = self.sender
        if self.reorder_at is not None:
            self.reorder_at = None
            sender.rearm(now)
            sender.connection.schedule()  # `transmit` will find what is lost by now
            return True
        if not sender.tail_probe or sender.backoff:
            return False
        probe_when_due(self, now)
        return True

    def on_timeout(self) -> None:
        """RTO: RFC 6298, RFC 8985 section 6.3, RFC 2018 section 8."""
        sender = self.sender
        now = sender.connection.scheduler.now
        if self.board is None:
            self.engage()
        board = self.board
        assert board is not None
        again = self.phase is RecoveryPhase.LOSS and sender.snd_una < self.recover
        if board.runs and board.runs[0].sacked:
            board.forget_sacked()  # the peer has reneged
        for number, run in enumerate(board.runs):
            if run.sacked or run.lost:
                continue
            if number == 0 or run.sent_at + self.rack.rtt <= now:
                board.lose(run)
        if not again:
            remember(self)
            self.frto = 1
        self.phase = RecoveryPhase.LOSS
        self.beyond = False
        self.recover = sender.snd_max
        self.probe_end = None
        self.reorder_at = None
        self.duplicates = 0
        self._delivered = 0
        watch_tail(self)

    def resend_first(self, now: int) -> None:
        """The oldest segment leaves at once, after a time-out."""
        board = self.board
        assert board is not None
        if board.runs and board.runs[0].lost:
            sender = self.sender
            run = board.resend(0, sender.mss, now)
            plan: list[tuple[int, int, int]] = []
            self.plan(plan, run, sender.queue.end)
            emit_burst(sender.connection, plan)
            sender.last_sent = now
            if self.undo_stamp is None and self.eifel:
                self.undo_stamp = sender.connection.timestamp()
        self.extra = board.sacked + board.lost

    def resend_everything(self) -> None:
        """The path became narrower: what is in flight was too big. No congestion in that (RFC 1191 section 6.4)."""
        if self.board is None:
            self.engage()
        assert self.board is not None
        self.board.lose_all()

    # --- the scoreboard's life -----------------------------------------------------------------------------------

    def engage(self) -> None:
        """Make a scoreboard of what is in flight."""
        sender = self.sender
        self.board = Scoreboard.begin(sender.snd_una, sender.snd_max, sender.flights, sender.karn)
        self.engaged = True
        self.rack.fack = max(self.rack.fack, sender.snd_una)

    def _settle(self) -> None:
        """Let go of what is not needed any more; say what the sender counts in vain."""
        board = self.board
        if board is None:
            self.extra = 0
        else:
            self.extra = board.sacked + board.lost
            if not self.extra and self.phase is RecoveryPhase.OPEN and self.probe_end is None:
                sender = self.sender
                sender.flights.clear()
                sender.flights.extend((run.end, run.sent_at) for run in board.runs)
                self.board = None
        self.engaged = self.board is not None or self.probe_end is not None
        watch_tail(self)
