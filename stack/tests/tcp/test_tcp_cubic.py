"""CUBIC (RFC 9438) and HyStart++ (RFC 9406) as functions of acknowledgments and time."""

from __future__ import annotations

import pytest

from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp.algorithm import UNLIMITED
from stack.tcp.cubic import ALPHA, BETA, BETA_ECN, C, Cubic
from stack.tcp.hystart import CSS_ROUNDS, HyStart, Phase
from stack.tcp.rtt import RttEstimator

MSS = 1000
RTT = 100 * NS_PER_MS


def estimator(rtt: int = RTT) -> RttEstimator:
    rtt_estimator = RttEstimator()
    for _ in range(50):
        rtt_estimator.sample(rtt)
    return rtt_estimator


def reduced(segments: int) -> Cubic:
    """After a loss at `segments`."""
    cubic = Cubic(MSS)
    cubic.cwnd = segments * MSS
    cubic.on_loss(cubic.cwnd, 0)
    return cubic


def run(cubic: Cubic, seconds: float, *, rtt: int = RTT, start: int = 0) -> list[tuple[float, float]]:
    """Acknowledge a window per round trip in ten parts; (s, segments) after each."""
    est = estimator(rtt)
    now, course = start, []
    while now - start < seconds * NS_PER_S:
        part = cubic.cwnd // 10
        for _ in range(10):
            cubic.on_ack(part, now, est)
            course.append(((now - start) / NS_PER_S, cubic.cwnd / MSS))
            now += rtt // 10
    return course


def test_multiplicative_decrease() -> None:
    """Section 4.6."""
    cubic = reduced(1000)
    assert cubic.cwnd == cubic.ssthresh == int(1000 * MSS * BETA)
    cubic = Cubic(MSS)
    cubic.cwnd = 2 * MSS
    cubic.on_loss(cubic.cwnd, 0)
    assert cubic.cwnd == 2 * MSS  # not below


def test_the_window_follows_the_cubic_function() -> None:
    """Section 4.2, figures 1 and 2: concave up to W_max at t = K, then convex."""
    k = (1000 * (1 - BETA) / C) ** (1 / 3)
    course = run(reduced(1000), 2 * k)
    for t, window in course:
        cubic_now, cubic_next = (C * (at - k) ** 3 + 1000 for at in (t, t + 0.1))
        assert cubic_now * 0.98 - 1 <= window <= max(cubic_next * 1.02, 700) + 1
    plateau = [window for t, window in course if abs(t - k) < 1]
    assert max(plateau) - min(plateau) < 3  # flat where the last loss was


def test_reno_friendly_region() -> None:
    """Section 4.3: with a short round trip and a small window CUBIC grows as Reno with the same average would."""
    cubic = reduced(20)
    course = run(cubic, 1.0, rtt=10 * NS_PER_MS)
    slope = (course[-1][1] - course[0][1]) / (course[-1][0] / 0.010)  # segments per round trip
    assert slope >= ALPHA * 0.9
    assert course[-1][1] > C * (1.0 - 2.4) ** 3 + 20  # more than the cubic function alone


def test_fast_convergence() -> None:
    """Section 4.7: a flow that is pushed below its last maximum makes room."""
    cubic = reduced(1000)
    before = cubic.cwnd
    cubic.on_loss(before, 0)
    cubic.on_ack(MSS, 0, estimator())
    assert cubic._w_max == pytest.approx(before * (1 + BETA) / 2)


def test_timeout() -> None:
    """Section 4.8: one segment, slow start to ssthresh, then a new beginning with K = 0."""
    cubic = reduced(1000)
    cubic.on_timeout(cubic.cwnd, 0, first=True)
    assert cubic.cwnd == MSS
    assert cubic.ssthresh == int(700 * MSS * BETA)
    cubic.cwnd = cubic.ssthresh
    cubic.on_ack(MSS, 0, estimator())
    assert cubic._k == 0


def test_spurious_loss_is_taken_back() -> None:
    """Section 4.9."""
    cubic = reduced(1000)
    run(cubic, 1)
    before = (cubic.cwnd, cubic.ssthresh, cubic._w_max)
    cubic.on_loss(cubic.cwnd, NS_PER_S)
    assert cubic.cwnd < before[0]
    cubic.undo()
    assert (cubic.cwnd, cubic.ssthresh, cubic._w_max) == before


def test_time_without_data_does_not_count() -> None:
    """Section 5.8: otherwise the window jumped after a pause."""
    cubic = reduced(1000)
    course = run(cubic, 1)
    after = run(cubic, 0.3, start=60 * NS_PER_S)
    assert after[-1][1] < course[-1][1] * 1.1


def test_abe() -> None:
    """RFC 8511 section 3: less reduction for a mark than for a loss."""
    cubic = Cubic(MSS)
    cubic.cwnd = 1000 * MSS
    cubic.on_loss(cubic.cwnd, 0, ecn=True)
    assert cubic.cwnd == int(1000 * MSS * BETA_ECN)


# --- HyStart++ --------------------------------------------------------------------------------------------------------


def rounds(hystart: HyStart, rtts_ms: list[int], cwnd: int = 100 * MSS, samples: int = 10) -> list[float]:
    """One round per entry; returns how much of what was acknowledged cwnd grew by in each."""
    shares = []
    for rtt in rtts_ms:
        grown = sum(hystart.growth(cwnd // samples, cwnd, rtt * NS_PER_MS) for _ in range(samples))
        shares.append(grown / cwnd)
    return shares


def test_steady_round_trips_are_slow_start() -> None:
    hystart = HyStart()
    assert rounds(hystart, [100] * 20) == [1.0] * 20


def test_jitter_below_the_threshold_is_ignored() -> None:
    """Section 4.3: RttThresh is an eighth of the last round's minimum, between 4 and 16 ms."""
    hystart = HyStart()
    rounds(hystart, [100, 111])
    assert hystart.phase is Phase.STANDARD
    hystart = HyStart()
    rounds(hystart, [100, 113])
    assert hystart.phase is Phase.CONSERVATIVE
    hystart = HyStart()
    rounds(hystart, [8, 11])
    assert hystart.phase is Phase.STANDARD
    hystart = HyStart()
    rounds(hystart, [1000, 1016])
    assert hystart.phase is Phase.CONSERVATIVE


def test_too_few_samples_decide_nothing() -> None:
    hystart = HyStart()
    rounds(hystart, [100, 200], samples=7)
    assert hystart.phase is Phase.STANDARD


def test_conservative_slow_start_grows_a_quarter_for_five_rounds() -> None:
    hystart = HyStart()
    shares = rounds(hystart, [100, 120, 120, 120, 120, 120, 120])
    assert shares[2] == pytest.approx(0.25)
    assert hystart.phase is Phase.DONE
    hystart = HyStart()
    rounds(hystart, [100] + [120] * (CSS_ROUNDS - 1))
    assert hystart.phase is Phase.CONSERVATIVE


def test_back_to_slow_start_if_it_was_only_jitter() -> None:
    hystart = HyStart()
    shares = rounds(hystart, [100, 120, 100, 100])
    assert hystart.phase is Phase.STANDARD
    assert shares[3] == 1.0


def test_cubic_takes_the_window_as_ssthresh_when_hystart_is_done() -> None:
    cubic = Cubic(MSS)
    rtt = RttEstimator()
    now = 0
    for number in range(12):
        for _ in range(10):
            rtt.sample((100 if number < 3 else 150) * NS_PER_MS)
            cubic.on_ack(cubic.cwnd // 10, now, rtt)
        now += RTT
    assert cubic.ssthresh < UNLIMITED
