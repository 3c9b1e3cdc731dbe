"""Sending: windows, superframes, Nagle and cork, the send buffer, window probes, keep-alive."""

from __future__ import annotations

import errno

import pytest

from stack.errors import NetError
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import TcpOptions, TcpState
from stack.tests.tcp.script import Script, pattern
from stack.wire.tcp import ACK, FIN, PSH, RST

MSS = 1460


def test_write_is_sent_at_the_end_of_the_turn_as_superframe() -> None:
    s = Script(timestamps=True).established(ws=7)
    data = pattern(10_000)
    assert s.write(data) == 10_000
    sent = s.expect(ACK | PSH, seq=1, ack=1, data=data)
    assert sent.gso_size == 1448
    s.expect_nothing()


def test_superframes_are_whole_segments_and_fit_64_kib() -> None:
    s = Script(timestamps=True, initial_window=400).established(ws=7, win=65535)
    s.send(ACK, seq=1, ack=1, win=8000)
    data = pattern(200_000)
    s.write(data)
    sent = s.drain()
    assert b"".join(one.data for one in sent) == data
    assert all(len(one.data) % 1448 == 0 for one in sent[:-1])
    assert {len(one.data) for one in sent[:-1]} == {45 * 1448}
    assert sent[-1].header.flags & PSH
    assert not sent[0].header.flags & PSH


def test_peers_window_is_respected() -> None:
    s = Script().established(win=5000)
    s.write(pattern(10_000))
    s.expect(ACK, seq=1, data=pattern(3 * MSS))  # whole segments only: 4380 of 5000
    s.expect_nothing()
    s.send(ACK, seq=1, ack=1 + 3 * MSS, win=5000)
    s.expect(ACK, seq=1 + 3 * MSS, data=pattern(3 * MSS, 3 * MSS))
    s.send(ACK, seq=1, ack=1 + 6 * MSS, win=20000)
    s.expect(ACK | PSH, seq=1 + 6 * MSS, data=pattern(10_000 - 6 * MSS, 6 * MSS))


def test_window_update_lets_data_go() -> None:
    s = Script().established(win=0)
    s.write(b"waiting")
    s.expect_nothing()
    s.send(ACK, seq=1, ack=1, win=1000)
    s.expect(ACK | PSH, seq=1, data=b"waiting")


def test_old_segments_do_not_change_the_window() -> None:
    """SND.WL1: a segment that overtook another has the newer window."""
    s = Script().established(win=1000)
    s.send(ACK, seq=4, ack=1, data=b"new", win=4000)
    s.send(ACK, seq=1, ack=1, data=b"old", win=10)
    assert s.connection.sender.snd_wnd == 4000
    assert s.read() == b"oldnew"


def test_tcp_25_nagle_holds_a_second_short_segment() -> None:
    """Nagle's algorithm: a short segment waits while an earlier one is not acknowledged (RFC 9293 section 3.7.4)."""
    s = Script().established()
    s.write(b"a")
    s.expect(ACK | PSH, seq=1, data=b"a")
    s.write(b"b")
    s.write(b"c")
    s.expect_nothing()
    s.send(ACK, seq=1, ack=2)
    s.expect(ACK | PSH, seq=2, data=b"bc")


def test_tcp_25_nagle_lets_full_segments_go_and_bulk_end() -> None:
    """A short tail waits only for an earlier short segment (Minshall's variant)."""
    s = Script().established()
    s.write(pattern(MSS + 10))
    s.expect(ACK | PSH, seq=1, data=pattern(MSS + 10))
    s.write(pattern(MSS + 20))
    s.expect(ACK, data=pattern(MSS))
    s.expect_nothing()
    s.send(ACK, seq=1, ack=1 + MSS + 10)
    s.expect(ACK | PSH, data=pattern(20, MSS))


def test_tcp_25_nodelay_switches_nagle_off() -> None:
    """With TCP_NODELAY every write leaves at once."""
    s = Script().established(TcpOptions(nodelay=True))
    for letter in (b"a", b"b", b"c"):
        s.write(letter)
        s.expect(ACK | PSH, data=letter)


def test_tcp_25_setting_nodelay_sends_what_waits() -> None:
    """Setting TCP_NODELAY lets go what Nagle held."""
    s = Script().established()
    s.write(b"a")
    s.write(b"b")
    s.drain()
    s.connection.options.nodelay = True
    s.connection.options_changed()
    s.turn()
    s.expect(ACK | PSH, seq=2, data=b"b")


def test_tcp_25_cork_holds_short_segments_for_200_ms_at_most() -> None:
    """TCP_CORK holds short segments, for 200 ms at most."""
    s = Script().established(TcpOptions(cork=True))
    s.write(b"head")
    s.wait(199)
    s.expect_nothing()
    s.wait(2)
    s.expect(ACK | PSH, seq=1, data=b"head")
    s.send(ACK, seq=1, ack=5)
    s.write(b"body" * 500)
    s.expect(ACK, seq=5, length=MSS)
    s.connection.options.cork = False
    s.connection.options_changed()
    s.turn()
    s.expect(ACK | PSH, length=2000 - MSS)


def test_tcp_25_more_is_a_cork_for_one_write() -> None:
    """MSG_MORE holds what one call wrote until the next."""
    s = Script().established()
    s.write(b"head", more=True)
    s.expect_nothing()
    s.write(b"body")
    s.expect(ACK | PSH, data=b"headbody")


def test_send_buffer_bounds_what_is_taken() -> None:
    s = Script().established(TcpOptions(sndbuf=10_000))
    assert s.connection.writable == 10_000
    assert s.write(pattern(25_000)) == 10_000
    assert s.write(b"more") == 0
    assert s.connection.writable == 0
    assert s.connection.unacknowledged == 10_000
    s.drain()
    events = s.events
    s.send(ACK, seq=1, ack=5001)
    assert s.connection.writable == 5000
    assert s.events > events


def test_send_keeps_bytes_and_copies_what_may_change() -> None:
    s = Script(initial_window=100).established(ws=7)
    changing = bytearray(pattern(6000))
    s.connection.write(changing)
    changing[:] = bytes(6000)
    s.turn()
    assert b"".join(sent.data for sent in s.drain()) == pattern(6000)
    fixed = pattern(6000)
    s.connection.write(memoryview(fixed)[1000:])
    parts = s.connection.sender.queue.slice(1 + 6000, 5000)
    assert isinstance(parts[0], memoryview)
    assert parts[0].obj is fixed


def test_writing_after_shutdown_is_epipe() -> None:
    s = Script().established()
    s.connection.shutdown_write()
    with pytest.raises(NetError) as caught:
        s.connection.write(b"x")
    assert caught.value.errno == errno.EPIPE
    assert s.connection.writable == 0


# --- persist and keep-alive ------------------------------------------------------------------------------------------


def test_closed_window_is_probed_with_back_off_forever() -> None:
    """RFC 9293 section 3.8.6.1: and as long as the peer answers the connection stays."""
    s = Script().established(win=0)
    s.write(b"data")
    intervals = []
    last = s.scheduler.now
    for _ in range(1_200):
        s.wait(1000)
        for sent in s.drain():
            assert sent.header.flags == ACK
            assert (sent.header.seq - s.iss) & 0xFFFFFFFF == 0  # one before SND.UNA
            intervals.append((s.scheduler.now - last) // NS_PER_S)
            last = s.scheduler.now
            s.send(ACK, seq=1, ack=1, win=0)
    assert intervals[:4] == [1, 0, 1, 2] or intervals[0] <= 1
    assert max(intervals) <= 120
    assert len(intervals) > 15  # more than the retries of data
    assert s.in_state(TcpState.ESTABLISHED)
    s.send(ACK, seq=1, ack=1, win=100)
    s.expect(ACK | PSH, seq=1, data=b"data")


def test_unanswered_probes_end_in_etimedout() -> None:
    s = Script().established(win=0)
    s.write(b"data")
    s.wait(3600 * 1000)
    assert s.in_state(TcpState.CLOSED)
    assert s.connection.error == errno.ETIMEDOUT


def test_small_window_is_used_after_a_while() -> None:
    """Sender's silly window avoidance, section 3.8.6.2.1: not at once, but by the override timer."""
    s = Script().established(win=10_000)
    s.send(ACK, seq=1, ack=1, win=100)
    s.write(b"x" * 500)
    s.expect_nothing()
    s.wait(1500)
    s.expect(ACK, seq=1, data=b"x" * 100)


def test_tcp_26_keep_alive_probes_and_gives_up() -> None:
    """Silence is probed after TCP_KEEPIDLE; TCP_KEEPCNT probes unanswered end in ETIMEDOUT (RFC 9293 section 3.8.4)."""
    options = TcpOptions(
        keepalive=True, keepalive_idle=10 * NS_PER_S, keepalive_interval=3 * NS_PER_S, keepalive_count=2
    )
    s = Script().established(options)
    s.wait(9_999)
    s.expect_nothing()
    s.wait(2)
    s.expect(ACK, seq=0, ack=1)
    s.send(ACK, seq=1, ack=1)  # alive
    s.wait(9_990)
    s.expect_nothing()
    s.wait(3_100)
    s.expect(ACK, seq=0)
    s.wait(3_000)
    s.expect(ACK, seq=0)
    s.wait(3_000)
    s.expect(RST | ACK, seq=1)
    assert s.connection.error == errno.ETIMEDOUT


def test_tcp_26_keep_alive_can_be_switched_on_later() -> None:
    """Keep-alive begins to work when it is switched on, counting from what was heard last."""
    s = Script().established()
    s.wait(60_000)
    s.connection.options.keepalive = True
    s.connection.options.keepalive_idle = 5 * NS_PER_S
    s.connection.options_changed()
    s.wait(1)
    s.expect(ACK, seq=0)


def test_our_answer_to_a_keep_alive_probe() -> None:
    s = Script().established()
    s.send(ACK, seq=0, ack=1)
    s.expect(ACK, seq=1, ack=1)
    s.wait(1000)
    s.send(ACK, seq=0, ack=1, data=b"\0")  # BSD's kind, with a byte of garbage
    s.expect(ACK, seq=1, ack=1)
    assert s.connection.readable == 0


# --- the rest --------------------------------------------------------------------------------------------------------


def test_bad_checksums_are_dropped() -> None:
    s = Script().established()
    s.send(ACK | FIN, seq=1, ack=1, turn=False)
    assert s.in_state(TcpState.CLOSE_WAIT)  # csum_ok: the link vouched for it
    s = Script().established()
    s.send_raw(bytes.fromhex("9c400050fffff001") + bytes(4) + bytes.fromhex("50110100") + bytes(4), csum_ok=False)
    assert s.tcp.drops["bad-checksum"] == 1
    assert s.in_state(TcpState.ESTABLISHED)


def test_info_tells_the_state() -> None:
    s = Script(timestamps=True).established(ws=7)
    s.wait(20)
    s.write(b"x" * 5000)
    s.drain()
    info = s.connection.info()
    assert info.state is TcpState.ESTABLISHED
    assert info.unacked == 4
    assert info.snd_mss == 1448
    assert info.notsent_bytes == 0
    s.wait(30)
    s.send(ACK, seq=1, ack=5001)
    info = s.connection.info()
    assert info.unacked == 0
    assert info.bytes_acked == 5000
    assert info.rto >= 200_000
    assert 3_000 < info.rtt <= 30_000


def test_neighbour_is_confirmed_by_progress() -> None:
    s = Script().established()
    before = s.ip.confirmed
    s.write(b"x")
    s.send(ACK, seq=1, ack=2)
    assert s.ip.confirmed > before


def test_ack_is_delayed_no_longer_than_half_a_second() -> None:
    assert Script().config.delayed_ack <= 500 * NS_PER_MS
