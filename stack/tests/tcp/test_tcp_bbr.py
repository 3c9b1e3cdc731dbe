"""BBR (draft-cardwell-iccrg-bbr-congestion-control-00, as Linux has it) and pacing."""

from __future__ import annotations

import pytest

from stack.link.impairment import Impairment
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import TcpConfig, TcpOptions
from stack.tcp.bbr import CWND_GAIN, CYCLE, HIGH_GAIN, MIN_WINDOW, Bbr, Mode
from stack.tcp.recovery import RecoveryPhase
from stack.tests.tcp.sacking import SackScript
from stack.tests.tcp.world import World

RATE = 10_000_000  # bit/s
DELAY = 20 * NS_PER_MS  # one way


class Course:
    """A bulk transfer over RATE and 2 * DELAY, with a queue of four products; what the sender went through."""

    def __init__(self, seconds: float, *, loss: float = 0.0) -> None:
        line = Impairment(rate_bps=RATE, queue_bytes=RATE // 8 * 4 // 25, delay_ns=DELAY, loss=loss, seed=5)
        back = Impairment(delay_ns=DELAY, seed=6)
        self.modes: list[Mode] = []
        self.gains: set[float] = set()
        with World(5, impairment=line, back=back, config=TcpConfig(congestion="bbr")) as world:
            near, far = world.pair()
            bbr = near.sender.congestion
            assert isinstance(bbr, Bbr)
            end = world.scheduler.now + int(seconds * NS_PER_S)
            chunk = bytes(65536)
            while world.scheduler.now < end:
                while near.writable and near.write(chunk):
                    pass
                far.discard(1 << 30)
                if not self.modes or self.modes[-1] is not bbr.mode:
                    self.modes.append(bbr.mode)
                if bbr.mode is Mode.PROBE_BW:
                    self.gains.add(bbr.pacing_gain)
                    self.late_rtt = near.sender.rtt.srtt
                assert world.advance()
            self.bbr = bbr
            self.mss = near.mss


def test_the_model_finds_the_path() -> None:
    """STARTUP, DRAIN, PROBE_BW; bandwidth and round trip are what the line has; no standing queue."""
    course = Course(4)
    assert course.modes == [Mode.STARTUP, Mode.DRAIN, Mode.PROBE_BW]
    assert course.gains == set(CYCLE)
    payload = course.mss / (course.mss + 66)
    assert course.bbr.bandwidth * 8 == pytest.approx(RATE * payload, rel=0.05)
    assert 2 * DELAY <= course.bbr.min_rtt < 2 * DELAY + 5 * NS_PER_MS
    assert course.late_rtt < 2 * DELAY * 1.5  # the line's queue would allow five times the delay


def test_loss_does_not_change_the_model() -> None:
    course = Course(4, loss=0.02)
    assert course.bbr.bandwidth * 8 > 0.9 * RATE * course.mss / (course.mss + 66)


def test_the_round_trip_is_probed_when_the_smallest_is_ten_seconds_old() -> None:
    """Section 4.3.5: down to four segments for 200 ms, then back to what was before."""
    bbr = Bbr(1000)
    bbr._sample_rtt(100 * NS_PER_MS, 0)
    bbr._sample_rate(1_000_000, limited=False)
    bbr.filled, bbr.mode, bbr.cwnd = True, Mode.PROBE_BW, 200_000
    course = []
    for ms in (9_000, 10_001, 10_050, 10_100, 10_200, 10_301):
        now = ms * NS_PER_MS
        bbr._sample_rtt(120 * NS_PER_MS, now)
        flight = 200_000 if ms < 10_100 else MIN_WINDOW * 1000
        bbr._move(flight, now, 2000)
        bbr._set_window(1000, flight, 2000, RecoveryPhase.OPEN)
        course.append((bbr.mode is Mode.PROBE_RTT, bbr.min_rtt // NS_PER_MS, bbr.cwnd <= MIN_WINDOW * 1000))
    probing = (True, 120, True)
    assert course == [(False, 100, False), probing, probing, probing, probing, (False, 120, False)]


# --- rate samples -----------------------------------------------------------------------------------------------------


def test_a_sample_is_what_was_delivered_between() -> None:
    """draft-cheng-iccrg-delivery-rate-estimation section 3: ten segments per round trip of 100 ms."""
    s = SackScript(congestion="bbr").sending(2)
    bbr = s.connection.sender.congestion
    assert isinstance(bbr, Bbr)
    s.wait(100)
    s.sack(2)
    first = bbr.bandwidth
    assert first == 2 * s.mss * 10
    assert bbr.min_rtt == 100 * NS_PER_MS


def test_application_limited_samples_only_count_upwards() -> None:
    bbr = Bbr(1000)
    bbr._sample_rate(1000, limited=False)
    bbr._sample_rate(500, limited=True)
    assert bbr.bandwidth == 1000
    bbr._sample_rate(2000, limited=True)
    assert bbr.bandwidth == 2000


def test_the_maximum_is_of_the_last_ten_rounds() -> None:
    bbr = Bbr(1000)
    bbr._sample_rate(2000, limited=False)
    for _ in range(9):
        bbr.rounds += 1
        bbr._sample_rate(1000, limited=False)
        assert bbr.bandwidth == 2000
    bbr.rounds += 1
    bbr._sample_rate(1000, limited=False)
    assert bbr.bandwidth == 1000


def test_startup_ends_when_three_rounds_bring_less_than_a_quarter_more() -> None:
    bbr = Bbr(1000)
    for rate in (1000, 2000, 4000, 4400, 4600):
        bbr.bandwidth = rate
        bbr._check_full(round_start=True, limited=False)
        assert not bbr.filled
    bbr._check_full(round_start=True, limited=True)
    assert not bbr.filled
    bbr._check_full(round_start=True, limited=False)
    assert bbr.filled


def test_recovery_gives_the_window_back() -> None:
    bbr = Bbr(1000)
    bbr.cwnd = 100_000
    bbr.on_loss(20_000, 0)
    assert bbr.cwnd == 20_000
    bbr.on_timeout(20_000, 0, first=True)
    assert bbr.cwnd == 1000
    bbr.on_recovered()
    assert bbr.cwnd == 100_000


# --- pacing -----------------------------------------------------------------------------------------------------------


def test_data_leaves_a_quantum_at_a_time_at_the_rate() -> None:
    s = SackScript(congestion="bbr")
    sender = s.connection.sender
    bbr = sender.congestion
    assert isinstance(bbr, Bbr)
    s.write(bytes(100 * s.mss))
    rate = HIGH_GAIN * bbr.cwnd / 0.1  # the first estimate: cwnd per round trip
    assert s.segments() == [(0, 2)]
    s.wait(2 * s.mss / rate * 1000 - 1 - 0.1)  # less the quantum a late timer may make up for
    assert s.segments() == []
    s.wait(0.2)
    assert s.segments() == [(2, 2)]
    s.wait(50)
    paced = s.segments()
    assert paced == [(4, 2), (6, 2), (8, 2)]  # to cwnd


def test_retransmissions_are_paced_too() -> None:
    s = SackScript(congestion="bbr")
    s.write(bytes(10 * s.mss))
    s.wait(90)
    assert sum(count for _, count in s.segments()) == 10
    s.sack(0, (8, 10))
    s.wait(30)  # the reordering window
    course = []
    for _ in range(130):
        course += s.segments()
        s.wait(1)
    assert [first for first, _ in course] == [0, 2, 4, 6]


def test_a_connection_chooses_and_may_change_its_mind() -> None:
    s = SackScript(congestion="cubic")
    for name in ("bbr", "reno", "cubic"):
        s.connection.options.congestion = name
        s.connection.options_changed()
        assert s.connection.sender.congestion.name == name
        assert (s.connection.sender.pacer is not None) is (name == "bbr")
    assert TcpOptions().congestion == ""


def test_product_and_gain() -> None:
    bbr = Bbr(1000)
    bbr.bandwidth, bbr.min_rtt = 1_000_000, 100 * NS_PER_MS
    assert bbr.product() == 100_000
    assert bbr.product(CWND_GAIN) == 200_000
