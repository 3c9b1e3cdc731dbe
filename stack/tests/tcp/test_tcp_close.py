"""Closing: RFC 9293 section 3.6, each way through figure 5; resets, TIME-WAIT, orphans; rows TCP-18, 21, 22, 23."""

from __future__ import annotations

import errno
import gc
import weakref

import pytest

from stack.errors import NetError
from stack.tcp import TcpOptions, TcpState
from stack.tcp.transitions import MOVES, IllegalTransitionError
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, FIN, RST, SYN, HeaderOptions


def gone(s: Script) -> bool:
    return not s.tcp.connections and s.in_state(TcpState.CLOSED)


def test_active_close_figure_12() -> None:
    s = Script().fin_wait_2()
    assert s.in_state(TcpState.FIN_WAIT_2)
    s.send(FIN | ACK, seq=1, ack=2)
    s.expect(ACK, seq=2, ack=2)
    assert s.in_state(TcpState.TIME_WAIT)
    assert s.connection.eof
    s.wait(59_999)
    assert s.in_state(TcpState.TIME_WAIT)
    s.wait(2)
    assert gone(s)
    s.expect_nothing()


def test_passive_close() -> None:
    s = Script().last_ack()
    assert s.in_state(TcpState.LAST_ACK)
    s.send(ACK, seq=2, ack=2)
    assert gone(s)
    assert s.connection.error == 0


def test_simultaneous_close_figure_13() -> None:
    s = Script().closing()
    assert s.in_state(TcpState.CLOSING)
    s.send(ACK, seq=2, ack=2)
    assert s.in_state(TcpState.TIME_WAIT)


def test_fin_that_acknowledges_ours_skips_fin_wait_2() -> None:
    s = Script().fin_wait_1()
    s.send(FIN | ACK, seq=1, ack=2)
    s.expect(ACK, seq=2, ack=2)
    assert s.in_state(TcpState.TIME_WAIT)


def test_fin_goes_behind_the_data() -> None:
    s = Script().established(win=2000)
    s.connection.write(b"x" * 3000)
    s.connection.shutdown_write()
    s.turn()
    s.expect(ACK, seq=1, length=1460)
    assert s.in_state(TcpState.FIN_WAIT_1)
    s.send(ACK, seq=1, ack=1461, win=2000)
    s.expect(FIN | ACK, seq=1461, length=1540)
    s.send(ACK, seq=1, ack=3001)
    assert s.in_state(TcpState.FIN_WAIT_1)
    s.send(ACK, seq=1, ack=3002)
    assert s.in_state(TcpState.FIN_WAIT_2)


def test_half_closed_connection_still_receives() -> None:
    s = Script(timestamps=True).established()
    s.connection.shutdown_write()
    s.turn()
    s.expect(FIN | ACK, seq=1)
    s.send(ACK, seq=1, ack=2)
    s.send(ACK, seq=1, ack=2, data=b"still here")
    s.expect(ACK, seq=2, ack=11)
    assert s.tcp.stats.fast_in == 1
    assert s.read() == b"still here"


def test_close_wait_still_sends() -> None:
    s = Script().close_wait()
    s.write(b"goodbye")
    s.expect(ACK | 8, seq=1, ack=2, data=b"goodbye")
    s.send(ACK, seq=2, ack=8)
    assert s.connection.unacknowledged == 0


def test_fin_out_of_order_waits_for_the_gap() -> None:
    s = Script().established()
    s.send(FIN | ACK, seq=5, ack=1, data=b"tail")
    s.expect(ACK, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)
    s.send(ACK, seq=1, ack=1, data=b"head")
    s.expect(ACK, ack=10)
    assert s.in_state(TcpState.CLOSE_WAIT)
    assert s.connection.readable == 8
    assert s.read() == b"headtail"
    assert s.connection.eof


@pytest.mark.parametrize("timestamps", [False, True])
def test_bare_fin_out_of_order(timestamps: bool) -> None:
    s = Script(timestamps=timestamps).established()
    s.send(FIN | ACK, seq=5, ack=1)
    s.expect(ACK, ack=1)
    s.send(ACK, seq=1, ack=1, data=b"head")
    s.expect(ACK, ack=6)
    assert s.in_state(TcpState.CLOSE_WAIT)


def test_text_behind_a_fin_is_ignored() -> None:
    s = Script().close_wait()
    s.send(ACK, seq=2, ack=1, data=b"after the end")
    assert s.connection.readable == 0


def test_fin_again_is_acknowledged_again() -> None:
    s = Script().close_wait()
    s.send(FIN | ACK, seq=1, ack=1)
    s.expect(ACK, seq=1, ack=2)


def test_lost_fin_is_sent_again() -> None:
    s = Script().fin_wait_1()
    s.wait(250)
    s.expect(FIN | ACK, seq=1, ack=1)
    s.send(ACK, seq=1, ack=2)
    assert s.in_state(TcpState.FIN_WAIT_2)


# --- user's close ----------------------------------------------------------------------------------------------------


def test_tcp_22_close_finishes_without_the_user() -> None:
    """After close() the data and the FIN get through without the user."""
    s = Script().established()
    s.connection.write(b"bye")
    s.close()
    s.expect(FIN | ACK, seq=1, data=b"bye")
    s.send(FIN | ACK, seq=1, ack=5)
    s.expect(ACK, seq=5, ack=2)
    assert s.in_state(TcpState.TIME_WAIT)
    s.wait(60_001)
    assert gone(s)
    s.listener.close()
    assert not list(s.tcp.ports)


def test_tcp_22_close_with_unread_data_resets() -> None:
    """close() with data unread is a RST (RFC 9293 section 3.6.1, RFC 2525 section 2.17)."""
    s = Script().established()
    s.send(ACK, seq=1, ack=1, data=b"unread")
    s.drain()
    s.close()
    s.expect(RST | ACK, seq=1, ack=7)
    assert gone(s)


def test_tcp_22_linger_zero_resets() -> None:
    """SO_LINGER of zero seconds makes close() a RST."""
    s = Script().established()
    s.connection.write(b"lost")
    s.connection.close(linger=0)
    s.turn()
    assert s.drain()[-1].header.flags == RST | ACK
    assert gone(s)


def test_tcp_22_data_for_an_orphan_is_reset() -> None:
    """Data for a connection nobody holds is answered by a RST (RFC 1122 section 4.2.2.13)."""
    s = Script().established()
    s.close()
    s.expect(FIN | ACK, seq=1)
    s.send(ACK, seq=1, ack=2, data=b"anyone?")
    s.expect(RST | ACK, seq=2)
    assert gone(s)


def test_tcp_22_orphan_leaves_fin_wait_2_after_a_minute() -> None:
    """An orphan waits in FIN-WAIT-2 for tcp_fin_timeout, 60 s."""
    s = Script().established()
    s.close()
    s.send(ACK, seq=1, ack=2)
    assert s.in_state(TcpState.FIN_WAIT_2)
    s.wait(60_001)
    assert gone(s)


def test_shutdown_without_close_stays_in_fin_wait_2() -> None:
    s = Script().fin_wait_2()
    s.wait(3600_000)
    assert s.in_state(TcpState.FIN_WAIT_2)
    s.close()
    s.wait(60_001)
    assert gone(s)


def test_tcp_22_negative_linger2_means_no_fin_wait_2() -> None:
    """TCP_LINGER2 below zero: an orphan does not wait in FIN-WAIT-2 at all."""
    s = Script().established(TcpOptions(fin_timeout=-1))
    s.close()
    s.expect(FIN | ACK)
    s.send(ACK, seq=1, ack=2)
    assert gone(s)


def test_orphan_gives_up_earlier_than_a_connection() -> None:
    s = Script(orphan_retries=2).established()
    s.close()
    s.wait(10_000)
    assert gone(s)
    assert len(s.drain()) == 4


def test_orphan_does_not_wait_for_a_closed_window_forever() -> None:
    """RFC 6429 section 5: while the user is there it may stay closed; afterwards it would be an attack."""
    s = Script().established(win=0)
    s.write(b"never read")
    s.close()
    for _ in range(4000):
        s.wait(1000)
        for _ in s.drain():
            s.send(ACK, seq=1, ack=1, win=0)
    assert gone(s)


def test_closed_connections_are_not_kept_by_their_timers() -> None:
    """A keep-alive's heap entry lives for hours; the connection must not."""
    s = Script().established(TcpOptions(keepalive=True))
    s.connection.abort()
    s.turn()
    reference = weakref.ref(s.connection)
    s.listener.close()
    del s.connection
    gc.collect()
    assert reference() is None
    s.wait(8000_000)


def test_close_in_syn_sent_says_nothing() -> None:
    """RFC 9293 section 3.10.4: "Delete the TCB and return"."""
    s = Script().syn_sent()
    s.close()
    s.expect_nothing()
    assert gone(s)
    assert not list(s.tcp.ports)


def test_close_twice_and_after_the_end() -> None:
    s = Script().last_ack()
    s.send(ACK, seq=2, ack=2)
    s.close()
    s.close()
    s.connection.abort()
    s.connection.shutdown_write()
    s.expect_nothing()


def test_fin_queued_during_the_handshake_follows_it() -> None:
    s = Script().syn_sent()
    s.connection.shutdown_write()
    s.turn()
    s.expect_nothing()
    s.send(SYN | ACK, seq=0, ack=1)
    s.expect(FIN | ACK, seq=1, ack=1)
    assert s.in_state(TcpState.FIN_WAIT_1)


def test_shutdown_read_is_local() -> None:
    """Row TCP-18: eof at once, what still arrives stays readable."""
    s = Script().established()
    s.connection.shutdown_read()
    assert s.connection.eof
    s.expect_nothing()
    s.send(ACK, seq=1, ack=1, data=b"late")
    assert s.read() == b"late"


# --- resets ----------------------------------------------------------------------------------------------------------

SYNCHRONIZED_STARTS = ["established", "fin_wait_1", "fin_wait_2", "close_wait", "closing", "last_ack", "time_wait"]
PEER_NEXT = {"established": 1, "fin_wait_1": 1, "fin_wait_2": 1}
ERRORS = {
    "established": errno.ECONNRESET,
    "fin_wait_1": errno.ECONNRESET,
    "fin_wait_2": errno.ECONNRESET,
    "close_wait": errno.EPIPE,  # row TCP-21
}


@pytest.mark.parametrize("start", SYNCHRONIZED_STARTS)
def test_reset_in_every_state(start: str) -> None:
    """3.10.7.4 second step: an error for the user where the connection was of use, CLOSED everywhere."""
    s: Script = getattr(Script(), start)()
    s.send(RST, seq=PEER_NEXT.get(start, 2))
    s.expect_nothing()
    assert gone(s)
    assert s.connection.error == ERRORS.get(start, 0)
    assert s.connection.eof


@pytest.mark.parametrize("start", [*SYNCHRONIZED_STARTS, "syns_crossed"])
def test_abort_in_every_state(start: str) -> None:
    """RFC 9293 section 3.10.5: RST up to CLOSE-WAIT, silence after."""
    s: Script = getattr(Script(), start)()
    s.connection.abort()
    s.turn()
    flags = [sent.header.flags for sent in s.drain()]
    assert flags == ([] if start in ("closing", "last_ack", "time_wait") else [RST | ACK])
    assert gone(s)


def test_segments_after_the_end_meet_a_reset() -> None:
    s = Script().established()
    s.listener.close()
    s.connection.abort()
    s.drain()
    s.send(ACK, seq=1, ack=1, data=b"hello?")
    s.expect(RST, seq=1)


# --- TIME-WAIT -------------------------------------------------------------------------------------------------------


def test_tcp_23_time_wait_acknowledges_the_fin_again_and_restarts() -> None:
    """TIME-WAIT answers a FIN that comes again, and its 60 s begin anew."""
    s = Script().time_wait()
    s.wait(50_000)
    s.send(FIN | ACK, seq=1, ack=2)
    s.expect(ACK, seq=2, ack=2)
    s.wait(59_000)
    assert s.in_state(TcpState.TIME_WAIT)
    s.wait(1_001)
    assert gone(s)


def test_tcp_23_new_syn_reopens_time_wait() -> None:
    """A SYN beyond the old sequence numbers reopens (RFC 6191, RFC 1122 section 4.2.2.13); our ISS goes beyond, too."""
    s = Script().time_wait()
    old = s.connection.sender.snd_nxt & 0xFFFFFFFF
    s.send(SYN, seq=100, options=HeaderOptions(mss=1460))
    sent = s.expect(SYN | ACK, ack=101)
    assert 0 < (sent.header.seq - old) & 0xFFFFFFFF < 1 << 31
    assert s.in_state(TcpState.CLOSED)
    s.send(ACK, seq=101, ack=1)
    assert s.listener.ready == 1


def test_tcp_23_old_syn_does_not_reopen_time_wait() -> None:
    """A SYN that may be an old duplicate does not reopen."""
    s = Script().time_wait()
    s.send(SYN, seq=-100)
    s.expect(ACK, seq=2, ack=2)
    assert s.in_state(TcpState.TIME_WAIT)


def test_tcp_23_newer_timestamp_reopens_whatever_the_sequence_number() -> None:
    """A SYN with a newer timestamp reopens whatever its sequence number."""
    s = Script(timestamps=True).time_wait()
    s.tsval += 1
    s.send(SYN, seq=-5000, options=HeaderOptions(mss=1460, timestamps=(s.tsval, 0)))
    s.expect(SYN | ACK)


def test_tcp_23_time_waits_are_bounded() -> None:
    """No more than tcp_max_tw_buckets connections wait."""
    s = Script(time_wait_max=10).listen()
    for number in range(30):
        s.peer_port = 40000 + number
        s.send(SYN, seq=0)
        s.expect(SYN | ACK)
        s.send(ACK, seq=1, ack=1)
        s.connection = s.listener.accept()  # type: ignore[assignment] # there is one
        s.close()
        s.expect(FIN | ACK)
        s.send(FIN | ACK, seq=1, ack=2)
        s.expect(ACK, seq=2, ack=2)
        s.turn()
    assert not s.tcp.connections
    assert len(s.tcp.time_waits) == 10
    assert s.tcp.drops["time-wait-overflow"] == s.tcp.mib["TcpExtTCPTimeWaitOverflow"] == 20


def test_tcp_23_time_wait_holds_the_port() -> None:
    """The port is taken until TIME-WAIT ends."""
    s = Script().time_wait()
    s.listener.close()
    assert s.tcp.ports.claims(80)
    s.wait(60_001)
    assert not s.tcp.ports.claims(80)


def test_tcp_23_connect_takes_ports_from_time_wait_when_none_is_left() -> None:
    """After a second connect() takes a port from TIME-WAIT when none is left, given timestamps (tcp_tw_reuse)."""
    s = Script(timestamps=True, tw_reuse=1)
    s.tcp.ports.ephemeral_first = s.tcp.ports.ephemeral_last = s.our_port = 50000
    s.connection = s.tcp.connect(None, None, (s.peer, s.peer_port))
    s.expect(SYN)
    s.send(SYN | ACK, seq=0, ack=1)
    s.close()
    s.send(FIN | ACK, seq=1, ack=2)
    assert s.in_state(TcpState.TIME_WAIT)
    with pytest.raises(NetError) as caught:
        s.tcp.connect(None, None, (s.peer, s.peer_port))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    s.wait(1000)
    again = s.tcp.connect(None, None, (s.peer, s.peer_port))
    assert again.state is TcpState.SYN_SENT
    assert s.in_state(TcpState.CLOSED)


# --- guards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", SYNCHRONIZED_STARTS)
def test_illegal_transitions_raise(start: str) -> None:
    s: Script = getattr(Script(), start)()
    for state in TcpState:
        if state not in MOVES[s.state]:
            with pytest.raises(IllegalTransitionError):
                s.connection.enter(state)
