"""What each TCP option does on the wire (section 2.3 of the socket semantics), in virtual time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from stack.link.device import Offload
from stack.link.impairment import Impairment
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import TcpConfig, TcpOptions, TcpState
from stack.tests.tcp.script import Script
from stack.tests.tcp.world import World
from stack.wire.tcp import ACK, FIN, PSH, RST, SYN


def live(s: Script, **fields: object) -> None:
    """Set options of a connection at work."""
    for name, value in fields.items():
        setattr(s.connection.options, name, value)
    s.connection.options_changed()
    s.turn()


def room(s: Script) -> tuple[int, bool]:
    return s.connection.writable, s.connection.roomy


def bulk(w: World, size: int, *, options: TcpOptions | None = None) -> float:
    """Seconds that `size` bytes from a to b take."""
    listener = w.listen()
    near = w.connect(options=options)
    assert w.run_until(lambda: bool(listener.ready) and near.connected, 10)
    far = listener.accept()
    assert far is not None
    data, sent, got, start = bytes(size), 0, 0, w.scheduler.now
    while got < size:
        if sent < size:
            sent += near.write(data[sent:])
        w.advance()
        got += len(far.read(1 << 20))
    return (w.scheduler.now - start) / NS_PER_S


# -- what is held back ------------------------------------------------------------------------------------------------


def test_opt_nodelay_sends_short_segments_at_once() -> None:
    s = Script().established(TcpOptions(nodelay=True))
    for piece in (b"a", b"b"):
        s.write(piece)
        s.expect(PSH | ACK, data=piece)


def test_opt_nodelay_set_pushes_what_is_corked_now() -> None:
    """As Linux: an explicit push of what is queued; the cork goes on for what comes later."""
    s = Script().established(TcpOptions(cork=True))
    s.write(b"now")
    s.connection.options.nodelay = True
    s.connection.push()
    s.turn()
    s.expect(PSH | ACK, data=b"now")
    s.write(b"later")
    s.expect_nothing()


def test_opt_cork_ends_after_200_ms_or_when_lifted() -> None:
    s = Script().established(TcpOptions(cork=True))
    s.write(b"x")
    s.wait(199)
    s.expect_nothing()
    s.wait(2)
    s.expect(PSH | ACK, data=b"x")
    s.send(ACK, seq=1, ack=2)
    s.write(b"y")
    live(s, cork=False)
    s.expect(PSH | ACK, data=b"y")


def test_opt_notsent_lowat_refuses_what_would_only_wait() -> None:
    """Nothing is taken while so much waits to be sent, though the buffer has room; told again below half of it.

    Less than that, and a superframe is taken whole, as Linux takes a buffer.
    """
    s = Script().established(TcpOptions(notsent_lowat=20_000), win=10_000)
    c = s.connection
    assert s.write(bytes(100_000)) == c.sender.superframe
    s.drain()
    assert c.unsent > 20_000
    assert s.write(b"x") == 0
    assert room(s) == (0, False)
    s.drain()
    before = s.events
    while c.unsent > 9_000:
        s.send(ACK, seq=1, ack=c.sender.snd_max - c.sender.iss, win=10_000)
        s.drain()
    assert s.events > before
    assert room(s)[1]
    assert s.write(b"x") == 1


def test_opt_maxseg_bounds_both_directions() -> None:
    s = Script().syn_sent(TcpOptions(maxseg=700))
    assert s.connection.advmss == 700
    s = Script().established()
    live(s, maxseg=500)
    s.write(bytes(500))
    s.expect(PSH | ACK, length=500)
    assert s.connection.mss == 500


def test_opt_max_pacing_rate_is_kept_by_every_algorithm() -> None:
    """SO_MAX_PACING_RATE: a path of 100 Mbit/s carries one megabyte in no less than a second at 1 MB/s."""
    for name in ("cubic", "reno", "bbr"):
        with World(1, impairment=Impairment(delay_ns=NS_PER_MS, rate_bps=100_000_000)) as w:
            took = bulk(w, 1_000_000, options=TcpOptions(max_pacing_rate=1_000_000, congestion=name))
            assert 0.9 < took < 1.3, name


def test_opt_max_pacing_rate_may_change_while_connected() -> None:
    s = Script().established(ws=7)
    live(s, max_pacing_rate=1_000_000)
    assert s.connection.info().max_pacing_rate == 1_000_000
    s.connection.write(bytes(14_600))
    s.turn()
    first = sum(len(one.data) for one in s.drain())
    assert first < 14_600
    live(s, max_pacing_rate=0)
    assert first + sum(len(one.data) for one in s.drain()) == 14_600


# -- buffers and windows ----------------------------------------------------------------------------------------------


def test_opt_sndbuf_bounds_what_is_taken_and_is_not_tuned() -> None:
    s = Script().established(TcpOptions(sndbuf=10_000))
    assert s.write(bytes(50_000)) == 10_000
    live(s, sndbuf=30_000)
    assert s.connection.writable == 20_000


def test_opt_sndbuf_grows_with_the_window_if_nobody_set_it() -> None:
    """Auto-tuned up to tcp_wmem[2]."""
    config = TcpConfig(sndbuf=16_384, sndbuf_max=1 << 20)
    with World(1, impairment=Impairment(delay_ns=20 * NS_PER_MS), config=config) as w:
        near, far = w.pair()
        got = 0
        while got < 8 << 20:
            while near.write(bytes(65_536)):
                pass
            w.advance()
            got += len(far.read(1 << 20))
        assert near.sndbuf == 1 << 20


@pytest.mark.parametrize("moderate", [True, False])
def test_opt_rcvbuf_grows_with_a_reader_that_keeps_up(moderate: bool) -> None:
    """Dynamic right-sizing within tcp_rmem[1] and [2], unless tcp_moderate_rcvbuf is off."""
    config = TcpConfig(rcvbuf=16_384, rcvbuf_max=1 << 20, moderate_rcvbuf=moderate)
    with World(1, impairment=Impairment(delay_ns=20 * NS_PER_MS), config=config) as w:
        near, far = w.pair()
        got = 0
        while got < (8 << 20 if moderate else 1 << 19):
            while near.write(bytes(65_536)):
                pass
            w.advance()
            got += len(far.read(1 << 20))
        assert far.rcvbuf == (1 << 20 if moderate else 16_384)
        assert 20_000 <= far.info().rcv_rtt <= 200_000  # microseconds; the path's are 40,000


def test_opt_rcvlowat_makes_the_buffer_large_enough() -> None:
    s = Script(rcvbuf=8_000).established()
    live(s, rcvlowat=20_000)
    assert s.connection.rcvbuf == 40_000
    s = Script(rcvbuf=8_000).established(TcpOptions(rcvlowat=20_000, rcvbuf=9_000))
    assert s.connection.rcvbuf == 9_000  # the user's choice stands


def test_opt_window_clamp_bounds_what_is_offered() -> None:
    s = Script().established(TcpOptions(window_clamp=5_000))
    s.send(ACK, seq=1, ack=1, data=b"x")
    assert s.drain()[0].header.window <= 5_000
    live(s, window_clamp=40_000)
    s.read()
    s.send(ACK, seq=2, ack=1, data=bytes(1000))
    assert 5_000 < s.drain()[-1].header.window <= 40_000


# -- acknowledgments --------------------------------------------------------------------------------------------------


def test_opt_quickack_off_delays_from_the_start() -> None:
    s = Script().established(TcpOptions(quickack=False))
    assert not s.connection.quickack
    s.send(ACK, seq=1, ack=1, data=b"x")
    s.expect_nothing()
    s.wait(41)
    s.expect(ACK, ack=2)


def test_opt_quickack_on_acknowledges_what_waits_and_is_not_for_ever() -> None:
    """As tcp(7) says: not permanent; data that carries ACKs switches it off again."""
    s = Script().established(TcpOptions(quickack=False))
    s.send(ACK, seq=1, ack=1, data=b"x")
    s.expect_nothing()
    s.connection.quickack = True
    s.turn()
    s.expect(ACK, ack=2)
    assert s.connection.quickack
    s.send(ACK, seq=2, ack=1, data=b"?", turn=False)
    s.write(b"!")
    s.drain()
    assert not s.connection.quickack


def test_opt_quickack_is_left_alone_by_other_options() -> None:
    s = Script().established(TcpOptions(quickack=False))
    live(s, nodelay=True)
    assert not s.connection.quickack


def test_opt_delack_max_us_bounds_the_delay() -> None:
    s = Script().established(TcpOptions(quickack=False, delayed_ack_max=8 * NS_PER_MS))
    s.send(ACK, seq=1, ack=1, data=b"x")
    s.wait(7)
    s.expect_nothing()
    s.wait(2)
    s.expect(ACK, ack=2)


# -- timers -----------------------------------------------------------------------------------------------------------


def retransmissions(s: Script, seconds: int, step_ms: int = 10) -> list[float]:
    start, seen = s.scheduler.now, []
    for _ in range(seconds * 1000 // step_ms):
        s.wait(step_ms)
        seen += [(s.scheduler.now - start) / NS_PER_S for one in s.drain() if one.data]
    return seen


def test_opt_thin_linear_timeouts_do_not_double_six_times() -> None:
    """For a stream with less than four segments in flight."""
    s = Script().established(TcpOptions(thin_linear=True))
    s.write(b"x")
    s.drain()
    seen = retransmissions(s, 4)
    gaps = [round(b - a, 1) for a, b in pairwise([0.0, *seen])]
    assert gaps[:9] == [0.2] * 7 + [0.4, 0.8]
    s = Script().established(TcpOptions(thin_linear=True), ws=7)
    s.write(bytes(8_000))
    s.drain()
    assert len(retransmissions(s, 2)) == 3


def test_opt_rto_max_ms_bounds_the_back_off() -> None:
    s = Script().established(TcpOptions(rto_max=NS_PER_S))
    s.write(b"x")
    s.drain()
    seen = retransmissions(s, 9)
    assert [round(b - a) for a, b in pairwise(seen[4:])] == [1] * len(seen[5:])
    s.wait(20_000)
    assert s.in_state(TcpState.CLOSED)  # tcp_retries2 at this pace: 14.4 s


def test_opt_rto_min_us_bounds_the_first_timeout() -> None:
    s = Script().established(TcpOptions(rto_min=20 * NS_PER_MS))
    s.write(b"x")
    s.drain()
    assert retransmissions(s, 1)[0] == pytest.approx(0.02, abs=0.011)


def test_opt_syncnt_bounds_the_syns() -> None:
    s = Script().syn_sent(TcpOptions(syn_retries=2))
    s.wait(60_000)
    assert len(s.drain()) == 2
    assert s.in_state(TcpState.CLOSED)


def test_opt_linger2_bounds_fin_wait_2_of_an_orphan() -> None:
    for seconds, state in ((5, TcpState.CLOSED), (30, TcpState.FIN_WAIT_2)):
        s = Script().established(TcpOptions(fin_timeout=seconds * NS_PER_S))
        s.close()
        s.expect(FIN | ACK)
        s.send(ACK, seq=1, ack=2)
        s.wait(6_000)
        assert s.connection.state is state
    s = Script().established(TcpOptions(fin_timeout=-1))
    s.close()
    s.expect(FIN | ACK)
    s.send(ACK, seq=1, ack=2)
    s.expect(RST | ACK)


def test_opt_linger_zero_resets() -> None:
    s = Script().established()
    s.connection.close(linger=0)
    s.turn()
    s.expect(RST | ACK)


def test_opt_defer_accept_holds_a_connection_without_data() -> None:
    s = Script().listen(options=TcpOptions(defer_accept=3 * NS_PER_S))
    s.send(SYN, seq=0)
    s.expect(SYN | ACK)
    s.send(ACK, seq=1, ack=1)
    assert s.listener.accept() is None
    s.send(ACK | PSH, seq=1, ack=1, data=b"hello")
    assert s.listener.accept() is not None


# -- algorithms and what is told --------------------------------------------------------------------------------------


def test_opt_congestion_is_per_connection_and_may_change() -> None:
    s = Script(congestion="cubic").established(TcpOptions(congestion="reno"))
    assert s.connection.sender.congestion.name == "reno"
    cwnd = s.connection.sender.congestion.cwnd
    live(s, congestion="bbr")
    assert s.connection.sender.congestion.name == "bbr"
    assert abs(s.connection.sender.congestion.cwnd - cwnd) < 10
    assert s.connection.sender.pacer is not None
    live(s, congestion="")
    assert s.connection.sender.congestion.name == "cubic"
    assert s.connection.sender.pacer is None


def test_opt_info_counts_what_was_sent_and_received() -> None:
    s = Script().established(ws=7)
    s.write(bytes(3000))
    s.drain()
    s.send(ACK, seq=1, ack=3001)
    s.send(ACK, seq=101, ack=3001, data=bytes(100))
    s.send(ACK, seq=1, ack=3001, data=bytes(100))
    s.drain()
    info = s.connection.info()
    assert (info.data_segs_out, info.bytes_sent, info.bytes_retrans, info.bytes_acked) == (3, 3000, 0, 3000)
    assert (info.data_segs_in, info.rcv_ooopack, info.bytes_received) == (2, 1, 200)
    assert info.delivered == 3
    assert info.segs_in == 5  # SYN, two ACKs, two with data
    assert info.segs_out >= 3 + 2
    s.write(b"lost")
    s.drain()
    s.wait(1000)
    info = s.connection.info()
    assert (info.total_rto, info.total_rto_recoveries) == (2, 1)
    assert (info.bytes_sent, info.bytes_retrans) == (3012, 8)
    s.send(ACK, seq=201, ack=3005)
    assert s.connection.info().total_rto_time == pytest.approx(800, abs=1)  # since the first


def test_opt_info_tells_what_held_data_back() -> None:
    s = Script().established(win=1_000)
    s.write(bytes(4_000))
    s.wait(500)
    info = s.connection.info()
    assert info.rwnd_limited == 500_000
    assert info.busy_time == 500_000
    while s.connection.unacknowledged:
        s.send(ACK, seq=1, ack=s.connection.sender.snd_max - s.connection.sender.iss, win=65_535)
    s.wait(1000)
    assert s.connection.info().busy_time == 500_000
    assert s.connection.info().rwnd_limited == 500_000
    s = Script().established(TcpOptions(sndbuf=4_000))
    assert s.write(bytes(8_000)) == 4_000
    s.wait(100)
    info = s.connection.info()
    assert (info.sndbuf_limited, info.rwnd_limited) == (100_000, 0)
    s.send(ACK, seq=1, ack=4001)
    s.wait(100)
    assert s.connection.info().sndbuf_limited == 100_000


def test_opt_tx_delay_makes_the_way_longer() -> None:
    """Segments leave so much later, in order, and the round trip measured includes it; it may change at any time."""
    s = Script().established(TcpOptions(tx_delay=30 * NS_PER_MS))
    s.write(b"a")
    s.wait(29)
    s.expect_nothing()
    s.wait(2)
    s.expect(PSH | ACK, data=b"a")
    s.send(ACK, seq=1, ack=2)
    assert s.connection.info().rtt > 3000
    s.write(b"b")
    live(s, tx_delay=0)
    s.write(b"c")
    s.send(ACK, seq=1, ack=2)
    s.expect_nothing()
    s.wait(31)
    s.expect(PSH | ACK, data=b"b")
    s.send(ACK, seq=1, ack=3)
    s.wait(1)
    s.expect(PSH | ACK, data=b"c")


def test_opt_oobinline_is_live() -> None:
    s = Script().established()
    s.send(ACK | 0x20, seq=1, ack=1, data=b"ab", urgent=2)
    live(s, oob_inline=True)
    assert s.read() == b"a"
    assert s.read() == b"b"


def test_opt_window_scale_follows_the_largest_buffer() -> None:
    """RFC 7323 section 2.3: decided with the SYN, by tcp_rmem[2] or SO_RCVBUF."""
    s = Script(rcvbuf_max=4 << 20).syn_sent()
    assert s.connection.receiver.shift == 7
    s = Script().syn_sent(TcpOptions(rcvbuf=65_535))
    assert s.connection.receiver.shift == 0


def test_every_offload_or_none_gives_the_same_counters() -> None:
    """Superframes count as the segments they are."""
    counted = []
    for offloads in (Offload.CSUM | Offload.TSO4 | Offload.TSO6, Offload(0)):
        with World(1, offloads=offloads) as w:
            near, far = w.pair()
            got = 0
            near.write(bytes(100_000))
            while got < 100_000:
                w.advance()
                got += len(far.read(1 << 20))
            counted.append((near.info().data_segs_out, far.info().data_segs_in))
    assert counted[0] == counted[1]
    assert counted[0][0] == counted[0][1]
