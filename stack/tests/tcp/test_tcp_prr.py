"""Proportional Rate Reduction (RFC 9937)."""

from __future__ import annotations

from stack.tcp.prr import RateReduction
from stack.tcp.recovery import RecoveryPhase
from stack.tests.tcp.sacking import SackScript

MSS = 1000


def test_proportional_part() -> None:
    """Section 6.2: pipe > ssthresh: of N bytes delivered N * ssthresh / RecoverFS go out, rounded up over all ACKs."""
    prr = RateReduction(flight=20 * MSS)
    total = 0
    for number in range(1, 11):
        count = prr.on_ack(MSS, 19 * MSS, 14 * MSS, MSS, safe=False)
        prr.sent += count
        total += count
        if number > 2:  # the fast retransmit goes whole at the first ACK
            assert total == -(-number * MSS * 14 // 20)


def test_conservative_reduction_bound() -> None:
    """pipe <= ssthresh without SND.UNA advancing: no more than was delivered."""
    prr = RateReduction(flight=20 * MSS)
    prr.sent = 1
    prr.delivered = 1
    assert prr.on_ack(2 * MSS, 3 * MSS, 10 * MSS, MSS, safe=False) == 2 * MSS


def test_slow_start_reduction_bound() -> None:
    """With safeACK one segment more, and never above ssthresh."""
    prr = RateReduction(flight=20 * MSS)
    prr.sent = prr.delivered = 1
    assert prr.on_ack(2 * MSS, 3 * MSS, 10 * MSS, MSS, safe=True) == 3 * MSS
    assert prr.on_ack(9 * MSS, 8 * MSS, 10 * MSS, MSS, safe=True) == 2 * MSS


def test_the_first_ack_lets_the_fast_retransmit_out() -> None:
    prr = RateReduction(flight=20 * MSS)
    assert prr.on_ack(0, 20 * MSS, 10 * MSS, MSS, safe=False) == MSS


def test_a_reduction_ends_at_ssthresh_without_silence() -> None:
    """Section 4: one loss of 20: every second SACK lets something out, and cwnd ends at ssthresh."""
    s = SackScript().sending(20)
    sent_after: list[int] = []
    for end in range(2, 21):
        s.sack(0, (1, end))
        sent_after.append(sum(count for _, count in s.segments()))
    sender = s.connection.sender
    assert s.recovery.phase == RecoveryPhase.RECOVERY
    assert max(sent_after) == 1
    half = sent_after[6:]
    assert 4 <= sum(half) <= 9  # about half of 13
    assert all(a or b or c for a, b, c in zip(half, half[1:], half[2:], strict=False))
    s.sack(20 + 5)
    assert int(s.recovery.phase) == RecoveryPhase.OPEN
    assert sender.congestion.cwnd <= sender.congestion.ssthresh + s.mss
