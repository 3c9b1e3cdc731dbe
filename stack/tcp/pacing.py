"""Pacing: data leaves at a rate instead of in bursts, by a timer of the Scheduler.

A quantum of about a millisecond's data (at least two segments, at most a superframe) leaves at a time, as with Linux's
TSO autosizing: superframes stay as large as the rate allows. A timer that fires late is made up for, by a quantum at
most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack.scheduler import Scheduler
    from stack.tcp.sender import Sender

QUANTUM: Final = NS_PER_MS  # ns of data at a time


class Pacer:
    __slots__ = ("_timer", "next_at", "rate")

    def __init__(self, scheduler: Scheduler, wake: Callable[[], None], rate: int) -> None:
        """`wake` is called when more may leave. `rate`: bytes per second, above 0."""
        self.rate = rate
        self.next_at = 0  #: nothing leaves before, ns
        self._timer = scheduler.timer(wake)

    def quantum(self, mss: int, superframe: int) -> int:
        """Bytes that leave together."""
        return max(2 * mss, min(self.rate * QUANTUM // NS_PER_S, superframe))

    def budget(self, now: int, mss: int, superframe: int) -> int:
        """Bytes that may leave now; with 0 the timer is set."""
        if now < self.next_at:
            self._timer.arm(self.next_at)
            return 0
        return self.quantum(mss, superframe)

    def sent(self, size: int, now: int) -> None:
        self.next_at = max(self.next_at, now - QUANTUM) + size * NS_PER_S // self.rate

    def more(self) -> None:
        """There is more to send as soon as the rate allows."""
        self._timer.arm(self.next_at)


def set_pace(sender: Sender, pacer: Pacer, now: int) -> None:
    """Bytes per second now. Without a model as Linux: twice the window per round trip, 1.2 times above ssthresh."""
    srtt = sender.rtt.srtt
    connection = sender.connection
    most = connection.options.max_pacing_rate
    model = sender.model
    if model is not None:
        model.update(sender, now, pacer.quantum(sender.mss, sender.superframe))
        rate = model.pacing_rate(srtt)
        # Room for a window in flight, one delivered behind a hole, and the next; Linux: bbr_sndbuf_expand.
        want = min(3 * model.cwnd, connection.layer.config.sndbuf_max)
        if want > sender.sndbuf and not connection.options.fixed_sndbuf:
            sender.sndbuf = want
    elif srtt:
        congestion = sender.congestion
        rate = congestion.cwnd * NS_PER_S // srtt
        rate = 2 * rate if congestion.cwnd < congestion.ssthresh // 2 else rate * 6 // 5
    else:
        rate = pacer.rate
    pacer.rate = max(min(rate, most) if most else rate, 1)


def sent_paced(sender: Sender, pacer: Pacer, start: int, end: int, limit: int, now: int) -> None:
    """[start, end) is about to leave at a rate; `limit` is how far the windows go."""
    pacer.sent(end - start, now)
    if end < sender.queue.end and end + sender.mss <= limit:
        pacer.more()
    if sender.model is not None and end > sender.snd_max:
        board = sender.recovery.board
        flight = sender.flight - (board.sacked + board.lost if board is not None else 0)
        sender.model.sent(end, end - start, flight, end < sender.queue.end, now)
