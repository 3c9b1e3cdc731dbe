"""Loss: RFC 6298 (RTO), RFC 5681 and 6582 (fast retransmit, NewReno), RFC 3042, RFC 3465, RFC 6928."""

from __future__ import annotations

import errno

import pytest

from stack.errors import NetError
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import TcpState
from stack.tcp.congestion import NewReno, initial_window
from stack.tcp.recovery import RecoveryPhase
from stack.tcp.rtt import RTO_MIN, RttEstimator
from stack.tests.tcp.script import Script, Sent
from stack.wire.tcp import ACK, PSH

MSS = 1460


def seqs(s: Script, sent: list[Sent]) -> list[tuple[int, int]]:
    return [((one.header.seq - s.iss) & 0xFFFFFFFF, len(one.data)) for one in sent]


def sending(segments: int = 10, **config: object) -> Script:
    """Established, with `segments` full segments in flight, sent as one superframe."""
    s = Script(congestion="reno", **config).established(ws=7)  # type: ignore[arg-type] # passed on
    s.connection.sender.congestion.cwnd = segments * MSS
    s.connection.write(bytes(100 * MSS))
    s.turn()
    assert sum(len(one.data) for one in s.drain()) == segments * MSS
    return s


def dup(s: Script, count: int = 1, ack: int = 1) -> None:
    for _ in range(count):
        s.send(ACK, seq=1, ack=ack, win=65535)


# --- the estimator ---------------------------------------------------------------------------------------------------


def test_first_and_later_measurements() -> None:
    """RFC 6298 section 2.2 and 2.3."""
    rtt = RttEstimator()
    assert rtt.rto == NS_PER_S
    rtt.sample(400 * NS_PER_MS)
    assert (rtt.srtt, rtt.variance) == (400 * NS_PER_MS, 200 * NS_PER_MS)
    assert rtt.rto == 1200 * NS_PER_MS
    rtt.sample(800 * NS_PER_MS)
    assert rtt.variance == 250 * NS_PER_MS
    assert rtt.srtt == 450 * NS_PER_MS


def test_rto_floor_and_ceiling() -> None:
    rtt = RttEstimator()
    for _ in range(100):
        rtt.sample(NS_PER_MS)
    assert RTO_MIN <= rtt.rto <= RTO_MIN + 2 * NS_PER_MS
    for _ in range(50):
        rtt.sample(500 * NS_PER_S)
    assert rtt.rto == 120 * NS_PER_S
    assert rtt.backed_off(9) == 120 * NS_PER_S


# --- RTO -------------------------------------------------------------------------------------------------------------


def test_rto_doubles_and_ends_in_etimedout() -> None:
    s = Script().established()
    s.write(b"lost")
    s.drain()
    start, times = s.scheduler.now, []
    while s.in_state(TcpState.ESTABLISHED):
        s.wait(100)
        for sent in s.drain():
            assert seqs(s, [sent]) == [(1, 4)]
            times.append((s.scheduler.now - start) // (100 * NS_PER_MS))
    assert times[:5] == [3, 7, 15, 31, 63] or times[:5] == [2, 6, 14, 30, 62]
    assert len(times) == 16
    assert 1040 < (s.scheduler.now - start) // NS_PER_S < 1050  # R2: the first RTO beyond 924.6 s (Linux tcp_retries2)
    assert s.connection.error == errno.ETIMEDOUT


def test_timeout_goes_back_and_slow_starts() -> None:
    s = sending(10)
    s.wait(250)
    assert seqs(s, s.drain()) == [(1, MSS)]
    assert s.connection.sender.congestion.cwnd == MSS
    assert s.connection.sender.congestion.ssthresh == 5 * MSS
    s.send(ACK, seq=1, ack=1)  # a duplicate: it was right
    s.send(ACK, seq=1, ack=1 + MSS)
    assert seqs(s, s.drain()) == [(1 + MSS, 2 * MSS)]


def test_ack_after_timeout_skips_what_the_peer_has() -> None:
    """Only the first segment was lost: nothing else is sent twice."""
    s = sending(10)
    s.wait(250)
    s.drain()
    s.send(ACK, seq=1, ack=1 + 10 * MSS)
    assert seqs(s, s.drain())[0][0] == 1 + 10 * MSS


@pytest.mark.parametrize("timestamps", [False, True])
def test_timer_restarts_when_something_new_is_acknowledged(timestamps: bool) -> None:
    """RFC 6298 section 5.3."""
    s = Script(timestamps=timestamps).established()
    s.write(bytes(s.connection.mss * 2))
    s.drain()
    s.wait(150)
    s.send(ACK, seq=1, ack=1 + s.connection.mss)
    s.wait(150)
    s.expect_nothing()
    s.wait(250)
    assert s.drain()


def test_ssthresh_is_set_once_per_timed_out_segment() -> None:
    """RFC 5681 section 3.1, equation 4: not again for the retransmission of a retransmission."""
    s = sending(10)
    s.wait(1000)
    assert s.connection.sender.backoff >= 2
    assert s.connection.sender.congestion.ssthresh == 5 * MSS


def test_karn_no_sample_from_retransmitted_data() -> None:
    s = Script().established()
    s.write(b"x")
    s.wait(250)
    before = s.connection.sender.rtt.srtt
    s.wait(100)
    s.send(ACK, seq=1, ack=2)
    assert s.connection.sender.rtt.srtt == before
    assert s.connection.sender.backoff == 0


def test_timestamps_give_a_sample_from_retransmitted_data() -> None:
    """RFC 7323 section 4.1: the echo tells which transmission is meant."""
    s = Script(timestamps=True).established()
    s.write(b"x")
    s.wait(250)
    s.drain()
    s.wait(50)
    sent_at = s.connection.timestamp() - 80
    s.tsecr = sent_at
    s.send(ACK, seq=1, ack=2)
    assert s.connection.sender.rtt.srtt > 5 * NS_PER_MS


def test_local_failure_counts_as_loss() -> None:
    """No route for a while: the timer tries again; what finally ends the connection is the routing error."""
    s = Script().established()
    s.ip.generation += 1
    s.ip.fail = NetError(errno.ENETUNREACH)
    s.write(b"data")
    s.expect_nothing()
    s.ip.fail = None
    s.wait(300)
    s.expect(ACK, seq=1, data=b"data")
    s.ip.generation += 1
    s.ip.fail = NetError(errno.ENETUNREACH)
    s.wait(2000_000)
    assert s.connection.error == errno.ENETUNREACH


# --- fast retransmit -------------------------------------------------------------------------------------------------


def test_third_duplicate_ack_retransmits() -> None:
    s = sending(10)
    dup(s, 2)
    s.drain()
    dup(s)
    assert seqs(s, s.drain())[0] == (1, MSS)
    assert s.connection.sender.recovery.phase is RecoveryPhase.RECOVERY
    assert s.connection.sender.congestion.ssthresh == 6 * MSS  # half of ten in flight and two of limited transmit


def test_limited_transmit() -> None:
    """RFC 3042: a new segment on each of the first two duplicate ACKs."""
    s = sending(10)
    dup(s)
    assert seqs(s, s.drain()) == [(1 + 10 * MSS, MSS)]
    dup(s)
    assert seqs(s, s.drain()) == [(1 + 11 * MSS, MSS)]
    assert s.connection.sender.congestion.cwnd == 10 * MSS


def test_full_acknowledgment_ends_recovery_without_a_burst() -> None:
    s = sending(10)
    dup(s, 3)
    s.drain()
    s.send(ACK, seq=1, ack=1 + 12 * MSS)
    sender = s.connection.sender
    assert sender.recovery.phase is RecoveryPhase.OPEN
    assert sender.congestion.cwnd <= sender.congestion.ssthresh
    assert sum(length for _, length in seqs(s, s.drain())) <= 2 * MSS


def test_partial_acknowledgment_retransmits_the_next_hole() -> None:
    """RFC 6582 section 3.2 step 3: no waiting for more duplicates, and no second halving."""
    s = sending(10)
    dup(s, 3)
    s.drain()
    ssthresh = s.connection.sender.congestion.ssthresh
    s.send(ACK, seq=1, ack=1 + 4 * MSS)
    assert seqs(s, s.drain())[0] == (1 + 4 * MSS, MSS)
    assert s.connection.sender.recovery.phase is RecoveryPhase.RECOVERY
    assert s.connection.sender.congestion.ssthresh == ssthresh


def test_more_duplicates_let_new_data_out() -> None:
    """Each one tells that a segment has left the network."""
    s = sending(10)
    dup(s, 3)
    s.drain()
    dup(s, 10)
    new = seqs(s, s.drain())
    assert new
    assert new[0][0] >= 1 + 12 * MSS


def test_duplicates_after_a_timeout_start_nothing() -> None:
    """RFC 6582 section 4: ACKs caused by our own retransmissions do not look like loss."""
    s = sending(10)
    s.wait(250)
    s.drain()
    dup(s, 5)
    assert s.connection.sender.recovery.phase is RecoveryPhase.LOSS


@pytest.mark.parametrize("what", ["window update", "carries data", "nothing in flight"])
def test_not_every_repeated_ack_is_a_duplicate(what: str) -> None:
    """RFC 5681 section 2, definition of DUPLICATE ACKNOWLEDGMENT."""
    if what == "nothing in flight":
        s = Script().established()
        for _ in range(5):
            s.send(ACK, seq=1, ack=1)
    else:
        s = sending(10)
        for number in range(5):
            if what == "window update":
                s.send(ACK, seq=1, ack=1, win=60000 - number)
            else:
                s.send(ACK | PSH, seq=1 + number, ack=1, data=b"x")
    assert s.connection.sender.recovery.duplicates == 0


# --- congestion window -----------------------------------------------------------------------------------------------


def test_initial_window() -> None:
    """RFC 6928 section 2."""
    assert initial_window(1460) == 14600
    assert initial_window(536) == 5360
    assert initial_window(8960) == 2 * 8960


def test_slow_start_counts_bytes_not_acks() -> None:
    reno = NewReno(1000)
    reno.on_ack(5000, 0, None)
    assert reno.cwnd == 15000
    reno.ssthresh = 16000
    reno.on_ack(3000, 0, None)
    assert reno.cwnd == 16000  # to ssthresh, the rest counts for congestion avoidance
    reno.on_ack(14000, 0, None)
    assert reno.cwnd == 17000


def test_congestion_avoidance_is_one_segment_per_window() -> None:
    reno = NewReno(1000)
    reno.ssthresh = reno.cwnd = 10_000
    for _ in range(10):
        reno.on_ack(1000, 0, None)
    assert reno.cwnd == 11_000


def test_window_that_was_not_the_limit_does_not_grow() -> None:
    """RFC 7661 in its simplest form: an application that sends little earns no credit."""
    s = Script().established(ws=7)
    before = s.connection.sender.congestion.cwnd
    for number in range(50):
        s.write(b"x" * 100)
        s.send(ACK, seq=1, ack=1 + 100 * (number + 1))
    assert s.connection.sender.congestion.cwnd == before


def test_idle_connection_restarts_with_the_initial_window() -> None:
    """RFC 5681 section 4.1."""
    s = Script().established(ws=7)
    s.connection.sender.congestion.cwnd = 500 * MSS
    s.write(b"x")
    s.send(ACK, seq=1, ack=2)
    s.wait(10_000)
    s.write(bytes(1000 * MSS))
    assert s.connection.sender.congestion.cwnd == initial_window(MSS)


def test_cwnd_is_the_limit_of_what_is_in_flight() -> None:
    s = Script().established(ws=7)
    s.write(bytes(100 * MSS))
    assert sum(len(one.data) for one in s.drain()) == initial_window(MSS)
    s.send(ACK, seq=1, ack=1 + 10 * MSS)
    assert sum(len(one.data) for one in s.drain()) == 2 * initial_window(MSS)


def test_send_buffer_follows_the_window() -> None:
    s = Script().established(ws=7)
    sent = acked = 0
    for _ in range(20):
        s.connection.write(bytes(8 << 20))
        s.turn()
        sent += sum(len(one.data) for one in s.drain())
        acked = sent
        s.send(ACK, seq=1, ack=1 + acked)
    assert s.connection.sndbuf == 4 << 20


def test_bare_acks_after_a_timeout_carry_a_sequence_number_the_peer_accepts() -> None:
    """Both ends went back after time-outs while each has all the other's data: old numbers would deadlock them."""
    s = sending(10)
    s.wait(250)
    s.drain()
    s.send(ACK | PSH, seq=1, ack=1, data=b"x")
    s.expect(ACK, seq=1 + 10 * MSS, ack=2)
