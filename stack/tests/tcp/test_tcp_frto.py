"""F-RTO (RFC 5682): was the time-out spurious? Section 3 with SACK, section 2 without."""

from __future__ import annotations

from stack.tcp.recovery import RecoveryPhase
from stack.tests.tcp.sacking import MSS, SackScript
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK


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


# -- without SACK (section 2) -----------------------------------------------------------------------------------------


def plain(segments: int = 10, queued: int = 30) -> Script:
    """Without SACK the RTO has expired, and the first segment went again."""
    s = Script(congestion="reno", initial_window=segments).established(ws=7)
    s.connection.write(bytes(queued * MSS))
    s.turn()
    assert sum(len(one.data) for one in s.drain()) == segments * MSS
    s.wait(250)
    assert places(s) == [(0, 1)]
    assert s.connection.sender.congestion.ssthresh == segments * MSS // 2
    return s


def places(s: Script) -> list[tuple[int, int]]:
    return [((one.header.seq - s.iss - 1) // MSS, len(one.data) // MSS) for one in s.drain()]


def ack(s: Script, segments: int) -> None:
    s.send(ACK, seq=1, ack=1 + segments * MSS)


def test_basic_two_new_segments_then_spurious() -> None:
    """Steps 2b and 3b: both ACKs advance, so nothing was lost, and the window is what it was."""
    s = plain()
    ack(s, 1)
    assert places(s) == [(10, 2)]
    ack(s, 2)
    assert s.tcp.stats.spurious == 1
    assert s.connection.sender.congestion.cwnd >= 10 * MSS
    assert s.connection.sender.congestion.ssthresh > 10 * MSS
    assert all(first >= 12 for first, _ in places(s))


def test_basic_a_duplicate_after_the_first_ack_means_loss() -> None:
    """Step 3a: no more than three segments, and everything in doubt again."""
    s = plain()
    ack(s, 1)
    places(s)
    ack(s, 1)
    assert s.tcp.stats.spurious == 0
    assert s.connection.sender.congestion.cwnd <= 3 * MSS
    assert places(s) == [(1, 2)]


def test_basic_a_duplicate_at_once_means_loss() -> None:
    """Step 2a."""
    s = plain()
    ack(s, 0)
    ack(s, 1)
    assert places(s) == [(1, 2)]
    assert s.tcp.stats.spurious == 0


def test_basic_without_new_data_there_is_no_telling() -> None:
    s = plain(queued=10)
    ack(s, 1)
    assert places(s) == [(1, 2)]
    ack(s, 2)
    assert s.tcp.stats.spurious == 0


def test_basic_everything_acknowledged_is_simply_over() -> None:
    s = plain()
    ack(s, 10)
    assert places(s)[0][0] == 10
    ack(s, 12)
    assert s.tcp.stats.spurious == 0


def test_basic_a_second_timeout_is_not_questioned() -> None:
    s = plain()
    s.wait(450)
    assert places(s) == [(0, 1)]
    ack(s, 1)
    assert places(s) == [(1, 2)]
