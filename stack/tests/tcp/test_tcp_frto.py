"""F-RTO (RFC 5682 section 3, with SACK): was the time-out spurious?"""

from __future__ import annotations

from stack.tcp.recovery import RecoveryPhase
from stack.tests.tcp.sacking import SackScript


def timed_out(segments: int = 10, queued: int = 100) -> SackScript:
    """The RTO expired (after a tail-loss probe) and segment 0 went again."""
    s = SackScript().sending(segments, queued=queued)
    s.recovery.sender.tail_probe = False
    s.connection.timers.retransmit.deadline = s.scheduler.now
    s.connection.timers.retransmit.arm(s.scheduler.now + 300_000_000)
    s.wait(301)
    assert s.segments() == [(0, 1)]
    assert s.recovery.phase is RecoveryPhase.LOSS
    assert s.connection.sender.congestion.cwnd == s.mss
    return s


def test_step_2b_new_data_instead_of_retransmissions() -> None:
    s = timed_out()
    s.sack(2)
    assert s.segments() == [(10, 2)]
    assert s.recovery.frto == 2


def test_step_3b_spurious() -> None:
    """The next ACK is for data sent before and once only: it was all on its way."""
    s = timed_out()
    s.sack(2)
    s.segments()
    s.sack(4)
    assert s.recovery.phase is RecoveryPhase.OPEN
    assert s.connection.sender.congestion.cwnd >= 10 * s.mss
    assert s.tcp.stats.spurious == 1
    assert all(first >= 12 for first, _ in s.segments())


def test_step_3a_the_new_data_overtook() -> None:
    """A block above RecoveryPoint: what is before it was lost. No more than three segments at once."""
    s = timed_out()
    s.sack(1)
    assert s.segments() == [(10, 2)]
    s.sack(1, (10, 11))
    assert s.recovery.phase is RecoveryPhase.LOSS
    assert s.connection.sender.congestion.cwnd <= 3 * s.mss
    assert s.segments()[0][0] == 1
    assert s.tcp.stats.spurious == 0


def test_step_2a_no_new_data_conventional_recovery() -> None:
    s = timed_out(queued=10)
    s.sack(1)
    assert s.segments()[0][0] == 1
    assert s.recovery.frto == 0


def test_step_2a_everything_acknowledged() -> None:
    s = timed_out()
    s.sack(10)
    assert s.recovery.phase is RecoveryPhase.OPEN
    assert s.recovery.frto == 0


def test_a_second_timeout_of_the_same_data_is_not_questioned() -> None:
    s = timed_out()
    s.sack(1)
    s.segments()
    frto = s.recovery.frto
    assert frto == 2
    s.wait(5000)
    assert s.recovery.phase is RecoveryPhase.LOSS
    s.sack(2)
    s.sack(3)
    assert s.tcp.stats.spurious == 0


def test_slow_start_sends_what_is_lost_again() -> None:
    """RFC 6298 section 5: everything that was in flight, in the end, twice as much each time."""
    s = timed_out(queued=10)
    acked, again = 0, [0]
    while acked < 10:
        acked = max(again) + 1
        s.sack(acked)
        again += [n for first, count in s.segments() for n in range(first, first + count)]
    assert again == list(range(10))
