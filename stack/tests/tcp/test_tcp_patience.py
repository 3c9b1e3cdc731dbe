"""How long a connection waits for a silent or unwilling peer: R1 and R2 (RFC 9293 section 3.8.3), the user's time-out
(RFC 5482), keep-alive (section 3.8.4), orphans; as Linux counts them.
"""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import TcpOptions, TcpState
from stack.tcp.timers import lasting
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, FIN, RST, SYN


def times(s: Script, seconds: float, step: float = 0.1) -> list[float]:
    """When, in seconds from now, something was sent; until the connection is CLOSED."""
    start, seen = s.scheduler.now, []
    while s.scheduler.now < start + seconds * NS_PER_S and not s.in_state(TcpState.CLOSED):
        s.wait(step * 1000)
        seen += [round((s.scheduler.now - start) / NS_PER_S, 1) for _ in s.drain()]
    return seen


def elapsed(s: Script, since: int) -> float:
    return (s.scheduler.now - since) / NS_PER_S


# -- R2 ---------------------------------------------------------------------------------------------------------------


def test_retries_are_a_time() -> None:
    """Linux's documentation: 15 mean 924.6 s; eight, an orphan's, 102.2 s."""
    ceiling = 120 * NS_PER_S
    assert lasting(15, ceiling) == 924_600 * NS_PER_MS
    assert lasting(8, ceiling) == 102_200 * NS_PER_MS
    assert lasting(3, ceiling) == 3_000 * NS_PER_MS
    assert lasting(0, ceiling) == 200 * NS_PER_MS
    assert lasting(15, NS_PER_S) == 14_400 * NS_PER_MS


def test_a_slow_path_gets_fewer_retransmissions_in_the_same_time() -> None:
    s = Script(retries=6).syn_received()
    s.wait(900)
    s.send(ACK, seq=1, ack=1)
    s.accept()
    s.write(b"x")
    s.drain()
    start = s.scheduler.now
    assert len(times(s, 100)) == 3  # RTO 2.7 s and more, until more than 25.4 s after the first
    assert s.connection.error == errno.ETIMEDOUT
    assert elapsed(s, start) > 25.4


def test_r1_looks_for_another_way() -> None:
    """After tcp_retries1 the route is asked for anew."""
    s = Script().established()
    s.write(b"x")
    route = s.connection.route
    s.wait(3_000)
    assert s.connection.route is route
    s.wait(4_000)
    assert s.connection.route is not route


# -- the user's time-out (RFC 5482, row TCP-27) -----------------------------------------------------------------------


def test_tcp_27_user_timeout_counts_from_the_first_retransmission() -> None:
    """Data unacknowledged for so long after its first retransmission: ETIMEDOUT, at the time and not an RTO later."""
    s = Script().established(TcpOptions(user_timeout=5 * NS_PER_S))
    s.write(b"unheard")
    s.wait(5_100)
    assert s.in_state(TcpState.ESTABLISHED)
    s.wait(150)
    assert s.connection.error == errno.ETIMEDOUT


def test_tcp_27_user_timeout_may_be_longer_than_r2() -> None:
    """It replaces the count of retransmissions in both directions."""
    s = Script(retries=3).established(TcpOptions(user_timeout=600 * NS_PER_S))
    s.write(b"unheard")
    s.wait(599_000)
    assert s.in_state(TcpState.ESTABLISHED)
    s.wait(2_000)
    assert s.connection.error == errno.ETIMEDOUT


def test_tcp_27_user_timeout_ends_with_progress() -> None:
    """What is acknowledged starts the time anew; it can be set while data waits."""
    s = Script().established()
    s.write(b"unheard")
    s.wait(3_000)
    s.connection.options.user_timeout = 10 * NS_PER_S
    s.connection.options_changed()
    s.wait(6_000)
    s.send(ACK, seq=1, ack=4)
    s.drain()
    start = s.scheduler.now
    times(s, 100)
    assert s.connection.error == errno.ETIMEDOUT
    assert 10 < elapsed(s, start) < 11


def test_tcp_27_user_timeout_and_a_closed_window() -> None:
    """A peer that answers every probe but takes nothing has as long as the user said, too."""
    s = Script().established(TcpOptions(user_timeout=7 * NS_PER_S), win=0)
    s.write(b"unwanted")
    start = s.scheduler.now
    while not s.in_state(TcpState.CLOSED) and elapsed(s, start) < 60:
        s.wait(100)
        for _ in s.drain():
            s.send(ACK, seq=1, ack=1, win=0)
    assert s.connection.error == errno.ETIMEDOUT
    assert 7 <= elapsed(s, start) < 7.5


def test_tcp_27_a_window_that_opens_ends_the_wait() -> None:
    s = Script().established(TcpOptions(user_timeout=7 * NS_PER_S), win=0)
    for at in range(5):
        s.write(b"x")
        s.wait(6_000)
        s.send(ACK, seq=1, ack=1 + at, win=0)
        s.drain()
        s.send(ACK, seq=1, ack=1 + at, win=100)
        s.expect(ACK, seq=1 + at, data=b"x")
        s.send(ACK, seq=1, ack=2 + at, win=0)
    assert s.in_state(TcpState.ESTABLISHED)


def test_tcp_27_user_timeout_bounds_connecting() -> None:
    s = Script().syn_sent(TcpOptions(user_timeout=10 * NS_PER_S))
    start = s.scheduler.now
    assert times(s, 200) == [1.0, 3.0, 7.0]
    assert s.connection.error == errno.ETIMEDOUT
    assert elapsed(s, start) >= 11


def test_tcp_27_user_timeout_overrides_the_keepalive_count() -> None:
    """Silence as long as the user said, and a probe unanswered: ETIMEDOUT, whatever KEEPCNT says."""
    s = Script().established(
        TcpOptions(
            keepalive=True,
            keepalive_idle=10 * NS_PER_S,
            keepalive_interval=2 * NS_PER_S,
            keepalive_count=1,
            user_timeout=15 * NS_PER_S,
        )
    )
    assert times(s, 100) == [10.0, 12.0, 14.0, 16.0]  # three probes and the reset
    assert s.connection.error == errno.ETIMEDOUT


# -- keep-alive (row TCP-26) ------------------------------------------------------------------------------------------

KEPT = TcpOptions(keepalive=True, keepalive_idle=10 * NS_PER_S, keepalive_interval=3 * NS_PER_S, keepalive_count=2)


def test_tcp_26_idle_interval_count_then_etimedout() -> None:
    """Probes begin after KEEPIDLE and go every KEEPINTVL; when KEEPCNT are unanswered: RST and ETIMEDOUT."""
    s = Script().established(KEPT.copy())
    assert times(s, 100) == [10.0, 13.0, 16.0]
    assert s.connection.error == errno.ETIMEDOUT
    assert s.in_state(TcpState.CLOSED)


def test_tcp_26_defaults_are_two_hours_75_seconds_nine() -> None:
    """Two hours, 75 seconds, nine probes unless told otherwise."""
    s = Script().established(TcpOptions(keepalive=True))
    seen = times(s, 9000, step=1)
    assert seen[0] == 7200
    assert [b - a for a, b in pairwise(seen)] == [75] * 9  # the tenth is the reset
    assert s.connection.error == errno.ETIMEDOUT


def test_tcp_26_changes_reach_a_live_connection() -> None:
    """KEEPIDLE counts from what was last heard; interval and count when needed; other options change nothing."""
    s = Script().established(TcpOptions(keepalive=True))
    s.wait(60_000)
    options = s.connection.options
    options.keepalive_idle = 90 * NS_PER_S
    s.connection.options_changed()
    options.keepalive_interval, options.keepalive_count = 5 * NS_PER_S, 4
    s.connection.options_changed()
    for _ in range(3):
        s.wait(10_000)
        options.nodelay = not options.nodelay
        s.connection.options_changed()
    s.expect(ACK, seq=0)
    assert times(s, 100) == [5.0, 10.0, 15.0, 20.0]  # the last is the reset
    assert s.connection.error == errno.ETIMEDOUT


def test_tcp_26_an_idle_time_already_over_probes_at_once() -> None:
    s = Script().established(TcpOptions(keepalive=True))
    s.wait(60_000)
    s.connection.options.keepalive_idle = 30 * NS_PER_S
    s.connection.options_changed()
    s.wait(1)
    s.expect(ACK, seq=0)


def test_tcp_26_switched_off_there_are_no_probes() -> None:
    s = Script().established(KEPT.copy())
    s.wait(12_000)
    s.drain()
    s.connection.options.keepalive = False
    s.connection.options_changed()
    assert times(s, 100) == []
    assert s.in_state(TcpState.ESTABLISHED)


def test_tcp_26_data_in_flight_is_not_probed() -> None:
    """Retransmission finds out itself, and ends the connection in its own time."""
    s = Script().established(KEPT.copy())
    s.write(b"x")
    s.drain()
    start = s.scheduler.now
    sent = 0
    while not s.in_state(TcpState.CLOSED):
        s.wait(1000)
        for one in s.drain():
            assert one.data == b"x"
            sent += 1
    assert sent == 16
    assert elapsed(s, start) > 924


def test_tcp_26_received_data_postpones_the_probe() -> None:
    s = Script().established(KEPT.copy())
    for at in range(5):
        s.wait(9_000)
        s.send(ACK, seq=1 + at, ack=1, data=b"x")
    s.drain()
    assert times(s, 11) == [10.0]


@pytest.mark.parametrize("half", ["close_wait", "fin_wait_2"])
def test_tcp_26_half_closed_connections_are_probed(half: str) -> None:
    s = getattr(Script(), half)()
    s.connection.options = KEPT.copy()
    s.connection.options_changed()
    assert times(s, 100) == [10.0, 13.0, 16.0]
    assert s.connection.error == errno.ETIMEDOUT


# -- orphans ----------------------------------------------------------------------------------------------------------


def test_orphan_retries_eight_while_alive() -> None:
    """tcp_orphan_retries 0: 102.2 s, while the RTO has not reached its ceiling."""
    s = Script().established()
    s.close()
    s.drain()
    start = s.scheduler.now
    assert len(times(s, 300)) == 9
    assert 102 < elapsed(s, start) < 210


def test_orphan_with_an_icmp_error_and_no_life_gives_up() -> None:
    s = Script().established(TcpOptions(rto_max=NS_PER_S))
    s.close()
    s.connection.soft_error = errno.EHOSTUNREACH
    start = s.scheduler.now
    times(s, 300)
    assert elapsed(s, start) < 4


def test_orphans_are_limited() -> None:
    """The one too many ends by RST (Linux tcp_max_orphans); others are untouched."""
    s = Script(orphans_max=1).listen()
    ends = []
    for port in (1001, 1002, 1003):
        s.peer_port = port
        s.send(SYN, seq=0)
        s.expect(SYN | ACK)
        s.send(ACK, seq=1, ack=1)
        connection = s.listener.accept()
        assert connection is not None
        ends.append((port, connection, s.iss))
    for port, connection, iss in ends[:2]:
        s.peer_port, s.iss = port, iss
        connection.close()
        s.turn()
        s.expect(FIN | ACK if port == 1001 else RST | ACK)
    assert s.tcp.drops["too-many-orphans"] == 1
    s.drain()
    s.peer_port, _, s.iss = ends[0]
    s.send(ACK | FIN, seq=1, ack=2)  # to TIME-WAIT: not an orphan any more
    s.drain()
    s.peer_port, third, s.iss = ends[2]
    third.close()
    s.turn()
    s.expect(FIN | ACK)


# -- RTO bounds (TCP_RTO_MIN_US, TCP_RTO_MAX_MS) ----------------------------------------------------------------------


def test_rto_bounds_of_one_connection() -> None:
    s = Script().established(TcpOptions(rto_min=20 * NS_PER_MS, rto_max=NS_PER_S))
    s.write(b"x")
    s.drain()
    assert times(s, 5, step=0.02)[:8] == [0.0, 0.1, 0.2, 0.3, 0.6, 1.3, 2.3, 3.3]
    s.connection.options.rto_max = 2 * NS_PER_S
    s.connection.options_changed()
    assert s.connection.sender.rtt.backed_off(9) == 2 * NS_PER_S
