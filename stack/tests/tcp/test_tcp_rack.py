"""RACK-TLP (RFC 8985): loss by time, the reordering window, tail-loss probes, retransmissions that are lost again."""

from __future__ import annotations

from stack.scheduler import NS_PER_MS
from stack.tcp.rack import PERSIST, Rack
from stack.tcp.recovery import RecoveryPhase
from stack.tcp.scoreboard import Run, Scoreboard
from stack.tests.tcp.sacking import RTT_MS, SackScript
from stack.wire.tcp import FIN

MIN_RTT = 100 * NS_PER_MS


def rack_with(*runs: tuple[int, int, int]) -> tuple[Rack, Scoreboard]:
    """Runs as (start, end, sent at ms)."""
    board = Scoreboard.begin(runs[0][0], runs[-1][1], [(end, at * NS_PER_MS) for _, end, at in runs], 0)
    return Rack(runs[0][0]), board


def lost(board: Scoreboard) -> list[tuple[int, int]]:
    return [(run.start, run.end) for run in board.runs if run.lost]


# --- section 6.2 ------------------------------------------------------------------------------------------------------


def test_step_2_a_retransmission_acknowledged_too_early_tells_nothing() -> None:
    rack = Rack(0)
    again = Run(0, 10, 1000 * NS_PER_MS, retransmitted=True)
    rack.delivered(again, 1050 * NS_PER_MS, MIN_RTT, original=False)
    assert rack.sent_at == -1
    rack.delivered(again, 1100 * NS_PER_MS, MIN_RTT, original=True)  # its time stamp says so
    assert rack.sent_at == -1
    rack.delivered(again, 1100 * NS_PER_MS, MIN_RTT, original=False)
    assert (rack.sent_at, rack.rtt) == (1000 * NS_PER_MS, MIN_RTT)


def test_step_3_reordering_is_seen_when_something_below_fack_arrives() -> None:
    rack = Rack(0)
    rack.delivered(Run(20, 30, 0), MIN_RTT, MIN_RTT, original=False)
    rack.delivered(Run(0, 10, 0, retransmitted=True), MIN_RTT, MIN_RTT, original=False)
    assert not rack.reordering_seen
    rack.delivered(Run(0, 10, 0), MIN_RTT, MIN_RTT, original=False)
    assert rack.reordering_seen


def test_step_4_the_window() -> None:
    rack = Rack(0)
    srtt, mss = 2 * MIN_RTT, 10
    assert rack.window(srtt, MIN_RTT, False, 20, mss) == MIN_RTT // 4
    assert rack.window(srtt, MIN_RTT, False, 30, mss) == 0  # DupThresh, no reordering known
    assert rack.window(srtt, MIN_RTT, True, 0, mss) == 0
    rack.reordering_seen = True
    assert rack.window(srtt, MIN_RTT, True, 30, mss) == MIN_RTT // 4
    for _ in range(100):
        rack.dsack(1, 100)  # once per round trip
    assert rack.window(srtt, MIN_RTT, True, 30, mss) == MIN_RTT // 2
    for number in range(100):
        rack.dsack(100 * (number + 1), 100 * (number + 2))
    assert rack.window(srtt, MIN_RTT, True, 30, mss) == srtt  # never more
    for _ in range(PERSIST):
        rack.recovered()
    assert rack.window(srtt, MIN_RTT, True, 30, mss) == MIN_RTT // 4


def test_step_5_sent_before_something_delivered_and_a_while_ago() -> None:
    rack, board = rack_with((0, 10, 0), (10, 20, 5), (20, 30, 10), (30, 40, 20))
    rack.delivered(Run(20, 30, 10 * NS_PER_MS), 110 * NS_PER_MS, MIN_RTT, original=False)
    board.sack(20, 30, 10)
    size, timeout = rack.detect(board, 110 * NS_PER_MS, 7 * NS_PER_MS)
    assert size == 10
    assert lost(board) == [(0, 10)]
    assert timeout == 2 * NS_PER_MS  # (10, 20) was sent 5 ms earlier: 2 ms are left of 7
    size, timeout = rack.detect(board, 112 * NS_PER_MS, 7 * NS_PER_MS)
    assert lost(board) == [(0, 10), (10, 20)]
    assert timeout == 0  # (30, 40) was sent later


def test_step_5_parts_of_one_superframe_differ_by_their_place() -> None:
    rack, board = rack_with((0, 100, 0))
    for run in board.sack(50, 60, 10):
        rack.delivered(run, MIN_RTT, MIN_RTT, original=False)
    rack.detect(board, MIN_RTT, 0)
    assert lost(board) == [(0, 50)]


# --- on the wire ------------------------------------------------------------------------------------------------------


def test_two_duplicates_and_a_quarter_round_trip_are_enough() -> None:
    """Section 3.2: no three duplicate ACKs are needed; the reordering timer ends the wait."""
    s = SackScript().sending(4, queued=4)
    s.wait(RTT_MS)
    s.sack(0, (1, 2))
    assert s.segments() == []
    assert s.recovery.reorder_at == s.scheduler.now + RTT_MS * NS_PER_MS // 4
    s.wait(24)
    assert s.segments() == []
    s.wait(2)
    assert s.segments() == [(0, 1)]
    assert s.recovery.phase is RecoveryPhase.RECOVERY


def test_reordering_within_the_window_is_no_loss() -> None:
    s = SackScript().sending(10, queued=10)
    s.wait(RTT_MS)
    s.sack(0, (1, 2))
    s.wait(10)
    s.sack(2)
    s.wait(50)
    assert s.segments() == []
    assert s.recovery.rack.reordering_seen
    assert s.connection.sender.congestion.cwnd >= 10 * s.mss


def test_a_lost_retransmission_is_found_without_timeout() -> None:
    """Section 3.3: what was sent after the retransmission arrives, a round trip later."""
    s = SackScript().sending(10)
    s.wait(RTT_MS)
    s.sack(0, (1, 10))
    sent = s.segments()
    assert sent[0] == (0, 1)
    assert sent[1][0] == 10
    s.wait(RTT_MS)
    s.sack(0, (1, 11))
    assert (0, 1) in s.segments()
    assert s.connection.sender.retries == 0


# --- tail-loss probe, section 7 ---------------------------------------------------------------------------------------


def test_probe_after_two_round_trips_sends_new_data() -> None:
    s = SackScript().sending(3)
    assert s.recovery.sender.tail_probe
    s.wait(2 * RTT_MS)
    assert s.segments() == []
    s.wait(3)  # 2 * SRTT and the slack
    assert s.segments() == [(3, 1)]
    assert s.tcp.stats.tail_probes == 1
    assert s.connection.sender.congestion.cwnd == 3 * s.mss


def test_probe_sends_the_last_segment_again_without_new_data() -> None:
    s = SackScript().sending(10, queued=3)
    s.wait(2 * RTT_MS + 3)
    assert s.segments() == [(2, 1)]


def test_probe_of_a_single_segment_allows_for_a_delayed_ack() -> None:
    """Section 7.2: WCDelAckT; and the PTO never ends after the RTO."""
    s = SackScript().sending(10, queued=1)
    s.wait(2 * RTT_MS + 3)
    assert s.segments() == []
    rto = s.connection.sender.rtt.rto // NS_PER_MS
    s.wait(rto - 2 * RTT_MS)
    assert s.segments() == [(0, 1)]
    assert s.connection.sender.retries == 0


def test_only_one_probe_then_the_rto() -> None:
    s = SackScript().sending(10, queued=3)
    s.wait(2 * RTT_MS + 3)
    assert s.segments() == [(2, 1)]
    s.wait(s.connection.sender.rtt.rto // NS_PER_MS + 1)
    assert s.segments()[0] == (0, 1)
    assert s.connection.sender.retries == 1


def test_disorder_does_not_turn_the_probes_time_into_the_rtos() -> None:
    """Section 7.2: no probe once something is sacked; the timer is then the RTO's again, from now on."""
    s = SackScript().sending(20)
    s.wait(RTT_MS)
    s.sack(0, (1, 20))
    s.drain()
    s.wait(2 * RTT_MS)
    assert s.connection.sender.retries == 0
    s.wait(s.connection.sender.rtt.rto // NS_PER_MS - 2 * RTT_MS + 1)
    assert s.connection.sender.retries == 1


def test_a_probe_that_repaired_the_loss_still_reduces() -> None:
    """Section 7.4.2: no D-SACK, so the original was lost."""
    s = SackScript().sending(10, queued=10)
    congestion = s.connection.sender.congestion
    s.wait(2 * RTT_MS + 3)
    assert s.segments() == [(9, 1)]
    s.wait(RTT_MS)
    s.sack(10)
    s.write(bytes(s.mss))
    before = congestion.ssthresh
    s.sack(11)
    assert congestion.ssthresh < before


def test_a_probe_that_was_not_needed_does_not() -> None:
    s = SackScript().sending(10, queued=10)
    before = s.connection.sender.congestion.ssthresh
    s.wait(2 * RTT_MS + 3)
    s.sack(10)
    s.sack(10, (9, 10))  # D-SACK
    s.write(bytes(s.mss))
    s.sack(11)
    assert s.connection.sender.congestion.ssthresh == before
    assert not s.recovery.engaged


def test_a_probe_turns_tail_loss_into_fast_recovery() -> None:
    """Section 3.4: the probe's SACK shows what is missing before it."""
    s = SackScript().sending(10, queued=10)
    s.wait(2 * RTT_MS + 3)
    s.segments()
    s.wait(RTT_MS)
    s.sack(7, (9, 10))
    s.wait(RTT_MS // 4 + 1)
    assert s.segments() == [(7, 2)]
    assert s.connection.sender.retries == 0


def test_a_fin_is_probed_too() -> None:
    s = SackScript()
    s.write(b"bye")
    s.drain()
    s.connection.shutdown_write()
    s.turn()
    s.drain()
    s.wait(1000)
    flags = [sent.header.flags for sent in s.drain()]
    assert flags[0] & FIN
