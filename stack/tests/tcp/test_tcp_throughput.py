"""Throughput over 100 ms and 1 % loss, in virtual time, beside what theory gives for each algorithm.

Reno: Mathis et al. 1997, W = sqrt(3 / (2 p)) segments. CUBIC: RFC 9438 section 5.1, the response function
W = (C (3 + beta) / (4 (1 - beta)))^(1/4) RTT^(3/4) / p^(3/4), or what Reno gets where that is more (section 4.3).
BBR: the line's rate, less what is lost.
"""

from __future__ import annotations

import math

import pytest

from stack.link.impairment import Impairment
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import TcpConfig
from stack.tcp.cubic import BETA, C
from stack.tests.tcp.world import World

RTT = 0.1  # s
RATE = 20_000_000  # bit/s
QUEUE = RATE // 8 // 10  # bytes: one bandwidth-delay product
SECONDS = 60


def mathis(loss: float) -> float:
    return math.sqrt(1.5 / loss)


def cubic_response(loss: float, rtt: float) -> float:
    cubic = math.pow(C * (3 + BETA) / (4 * (1 - BETA)), 0.25) * math.pow(rtt / loss, 0.75)
    return max(cubic, mathis(loss))


class Measured:
    """One bulk transfer: `rate` bytes/s after the first five seconds, and what the sender counted."""

    def __init__(self, name: str, loss: float, seed: int, seconds: float = SECONDS) -> None:
        line = Impairment(loss=loss, delay_ns=50 * NS_PER_MS, rate_bps=RATE, queue_bytes=QUEUE, seed=seed)
        back = Impairment(delay_ns=50 * NS_PER_MS, seed=seed + 1)
        with World(seed, impairment=line, back=back, config=TcpConfig(congestion=name)) as world:
            near, far = world.pair()
            now = world.scheduler.now
            warm, end = now + 5 * NS_PER_S, now + int((5 + seconds) * NS_PER_S)
            chunk = bytes(65536)
            start = base = 0
            while (now := world.scheduler.now) < end:
                while near.writable and near.write(chunk):
                    pass
                far.discard(1 << 30)
                if not start and now >= warm:
                    start, base = now, far.receiver.received
                assert world.advance()
            self.rate = (far.receiver.received - base) * NS_PER_S / (now - start)
            self.window = self.rate * RTT / near.mss  #: segments per round trip
            self.info = near.info()
            self.retransmitted = world.a.tcp.stats.retransmitted
            assert world.left.stats is not None
            self.dropped = world.left.stats.loss + world.left.stats.queue_bytes


@pytest.mark.parametrize("name", ["reno", "cubic"])
def test_window_based_throughput_is_what_theory_gives(name: str) -> None:
    """Three runs together: some 250 losses, so that chance is a matter of a tenth."""
    runs = [Measured(name, 0.01, seed) for seed in range(3)]
    mean = sum(run.window for run in runs) / len(runs)
    theory = mathis(0.01) if name == "reno" else cubic_response(0.01, RTT)
    assert 0.8 < mean / theory < 1.2, f"{mean:.1f} segments per round trip, theory says {theory:.1f}"
    # Nothing is sent again but what was lost (what was lost last may still wait to be).
    assert sum(run.retransmitted for run in runs) <= sum(run.dropped for run in runs)


def test_bbr_is_not_stopped_by_random_loss() -> None:
    """It gets what the line lets through, less a tenth for probing; Reno's share of it is a tenth."""
    run = Measured("bbr", 0.01, 1, seconds=10)
    through = RATE / 8 * 1448 / (1448 + 66) * (1 - 0.01)
    assert 0.9 < run.rate / through <= 1.01
    assert run.window > 5 * mathis(0.01)
    assert run.retransmitted <= run.dropped * 1.02


@pytest.mark.long
def test_cubic_beats_reno_on_a_long_fat_path() -> None:
    """Where the response functions differ: few losses. RFC 9438 table 2."""
    loss = 0.0002
    assert cubic_response(loss, RTT) > mathis(loss)
    reno, cubic = (sum(Measured(name, loss, seed).rate for seed in range(2)) for name in ("reno", "cubic"))
    assert cubic > reno


@pytest.mark.parametrize("name", ["reno", "cubic", "bbr"])
def test_without_loss_the_line_is_full(name: str) -> None:
    run = Measured(name, 0.0, 1, seconds=20)
    payload = 1448 / (1448 + 66)
    assert run.rate * 8 > 0.9 * RATE * payload
