"""TCP_INFO tells the truth about loss recovery, ECN and pacing."""

from __future__ import annotations

from stack.tcp.info import OPT_ECN, OPT_SACK
from stack.tests.tcp.sacking import SackScript
from stack.wire.tcp import ACK, ECE


def test_segments_by_fate() -> None:
    s = SackScript().sending(20)
    s.wait(100)
    s.sack(2, (3, 6), (8, 12))
    info = s.connection.info()
    assert info.ca_state == 3
    assert info.options & OPT_SACK
    assert (info.sacked, info.retrans + info.lost) == (7, 3)
    assert info.retrans == sum(count for first, count in s.segments() if first < 12)
    assert info.unacked == s.connection.sender.flight // s.mss
    assert info.total_retrans == info.retrans


def test_disorder_is_a_state() -> None:
    s = SackScript().sending(10)
    s.wait(100)
    s.sack(0, (1, 2))
    assert s.connection.info().ca_state == 1
    s.sack(2)
    info = s.connection.info()
    assert (info.ca_state, info.sacked, info.reordering_seen) == (0, 0, True)


def test_ecn_and_dsack() -> None:
    s = SackScript(ecn=True).sending(10)
    s.sack(3, flags=ACK | ECE)
    s.sack(3, (0, 1))
    info = s.connection.info()
    assert info.options & OPT_ECN
    assert (info.delivered_ce, info.dsack_dups) == (3, 1)


def test_rates() -> None:
    assert SackScript().connection.info().pacing_rate == 0
    s = SackScript(congestion="bbr").sending(2)
    s.wait(100)
    s.sack(2)
    info = s.connection.info()
    assert info.delivery_rate == 20 * s.mss
    assert info.pacing_rate > info.delivery_rate
