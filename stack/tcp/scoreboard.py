"""The SACK scoreboard: what is known of each stretch of data in flight (RFC 6675 section 3).

Theory of operation
-------------------
A `Run` is a stretch of sequence space that was sent at one time and has shared one fate since: in flight, sacked (the
peer holds it) or lost (believed to have left the network without arriving). A superframe begins as one run and is
split where the peer's reports cut it; neighbours that are both sacked become one again. So the scoreboard is as long
as the story is complicated, not as long as the window.

It exists only while there is something to tell. In a connection without loss the sender's `flights` are all there is;
`Scoreboard.begin` makes runs of them.

Blocks count for whole segments only (measured from the start of the run): a peer that reports single bytes gains
nothing and costs no more than one that reports segments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from operator import attrgetter

_START = attrgetter("start")


class Run:
    """[start, end): endless sequence numbers. At most one of `sacked` and `lost` is True; neither: in flight."""

    __slots__ = ("end", "lost", "retransmitted", "sacked", "sent_at", "start")

    def __init__(self, start: int, end: int, sent_at: int, *, retransmitted: bool = False) -> None:
        self.start = start
        self.end = end
        self.sent_at = sent_at  #: when it was sent last, ns
        self.retransmitted = retransmitted
        self.sacked = False
        self.lost = False

    @property
    def again(self) -> bool:
        """In flight, and not for the first time."""
        return self.retransmitted and not self.sacked and not self.lost

    def __repr__(self) -> str:
        fate = "sacked" if self.sacked else "lost" if self.lost else "in flight"
        return f"[{self.start}, {self.end}) {fate}{' again' if self.retransmitted else ''}"


class Scoreboard:
    """Runs in order, without gaps, from SND.UNA to SND.MAX."""

    __slots__ = ("end", "highest_sacked", "lost", "runs", "sacked")

    def __init__(self, una: int) -> None:
        self.runs: list[Run] = []
        self.end = una  #: end of the last run
        self.sacked = 0  #: bytes
        self.lost = 0  #: bytes lost and not sent again
        self.highest_sacked = una  #: end of the highest block ever reported

    @classmethod
    def begin(cls, una: int, end: int, flights: Iterable[tuple[int, int]], resent_below: int) -> Scoreboard:
        """From what the sender remembers: (end, sent at) of each superframe. All of [una, end) is covered.

        What lies below `resent_below` was sent more than once.
        """
        board = cls(una)
        sent_at = 0
        for edge, sent_at in flights:
            board.extend(min(edge, end), sent_at)
        board.extend(end, sent_at)
        for run in board.runs:
            run.retransmitted = run.start < resent_below
        return board

    def extend(self, end: int, sent_at: int) -> int:
        """New data was sent up to `end`. Returns how many bytes that is."""
        size = end - self.end
        if size <= 0:
            return 0
        self.runs.append(Run(self.end, end, sent_at))
        self.end = end
        return size

    def acknowledge(self, una: int) -> tuple[list[Run], int]:
        """Everything before `una` is acknowledged. Returns the runs taken off, and the bytes not yet sacked of them."""
        runs = self.runs
        index = bisect_right(runs, una, key=_START) - 1
        if index >= 0 and runs[index].start < una < runs[index].end:
            self._split(index, una)
        count = fresh = 0
        for run in runs:
            if run.end > una:
                break
            count += 1
            size = run.end - run.start
            if run.sacked:
                self.sacked -= size
            else:
                fresh += size
                if run.lost:
                    self.lost -= size
        taken = runs[:count]
        del runs[:count]
        if not runs:
            self.end = max(self.end, una)
        return taken, fresh

    def sack(self, left: int, right: int, mss: int) -> list[Run]:
        """The peer holds [left, right). Returns the runs that this is news about (no longer part of the board each)."""
        runs = self.runs
        news: list[Run] = []
        index = max(bisect_right(runs, left, key=_START) - 1, 0)
        first = index
        while index < len(runs):
            run = runs[index]
            if run.start >= right:
                break
            if run.sacked or run.end <= left:
                index += 1
                continue
            if run.start < left:
                # Whole segments only: round up.
                at = run.start + -(-(left - run.start) // mss) * mss
                if at >= min(run.end, right):
                    index += 1
                    continue
                self._split(index, at)
                index += 1
                continue
            if run.end > right:
                at = run.start + (right - run.start) // mss * mss
                if at <= run.start:
                    break
                self._split(index, at)
            size = run.end - run.start
            if run.lost:
                run.lost = False
                self.lost -= size
            run.sacked = True
            self.sacked += size
            if run.end > self.highest_sacked:
                self.highest_sacked = run.end
            news.append(_copy(run))
            index += 1
        if news:
            self._join(first, index)
        return news

    def lose(self, run: Run) -> None:
        """`run`, in flight, is believed lost."""
        run.lost = True
        self.lost += run.end - run.start

    def lose_all(self) -> None:
        for run in self.runs:
            if not run.sacked and not run.lost:
                self.lose(run)

    def lost_nothing(self) -> None:
        """What was believed lost was only late: it is in flight."""
        for run in self.runs:
            run.lost = False
        self.lost = 0

    def forget_sacked(self) -> None:
        """The peer has thrown away what it had reported (RFC 2018 section 8): nothing it said counts any more."""
        for run in self.runs:
            run.sacked = False
        self.sacked = 0

    def resend(self, index: int, size: int, now: int) -> Run:
        """Up to `size` bytes of the lost run at `index` are being sent again."""
        run = self.runs[index]
        if run.end - run.start > size:
            self._split(index, run.start + size)
        self.lost -= run.end - run.start
        run.lost = False
        run.retransmitted = True
        run.sent_at = now
        return run

    def cut_tail(self, size: int) -> Run:
        """The last `size` bytes as a run of their own (there are that many)."""
        last = self.runs[-1]
        if last.end - last.start > size:
            self._split(len(self.runs) - 1, last.end - size)
        return self.runs[-1]

    def _split(self, index: int, at: int) -> None:
        run = self.runs[index]
        rest = _copy(run)
        rest.start = at
        run.end = at
        self.runs.insert(index + 1, rest)

    def _join(self, first: int, last: int) -> None:
        """Make one of neighbours that are sacked, around the runs [first, last)."""
        runs = self.runs
        first = max(first - 1, 0)
        part = runs[first : last + 1]
        joined = part[:1]
        for run in part[1:]:
            before = joined[-1]
            if run.sacked and before.sacked:
                before.end = run.end
                before.sent_at = max(before.sent_at, run.sent_at)
                before.retransmitted = before.retransmitted or run.retransmitted
            else:
                joined.append(run)
        runs[first : last + 1] = joined


def _copy(run: Run) -> Run:
    other = Run(run.start, run.end, run.sent_at, retransmitted=run.retransmitted)
    other.sacked = run.sacked
    other.lost = run.lost
    return other
