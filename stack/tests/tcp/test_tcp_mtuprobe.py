"""Path MTU discovery without ICMP (RFC 4821, RFC 8899), as Linux's tcp_mtu_probing."""

from __future__ import annotations

import errno

import pytest

from stack.link.device import Offload
from stack.link.impairment import Impairment
from stack.link.offload import ALL_OFFLOADS
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import Connection, TcpConfig, TcpOptions, TcpState
from stack.tests.tcp.sacking import SackScript
from stack.tests.tcp.script import Script, pattern
from stack.tests.tcp.world import World
from stack.wire.tcp import ACK

NO_ICMP = 1300  # bytes: packets longer than this vanish, and nobody is told


def world(probing: int, *, offloads: Offload = ALL_OFFLOADS, mtu: int = NO_ICMP, sack: bool = True) -> World:
    return World(
        1,
        impairment=Impairment(delay_ns=10 * NS_PER_MS, mtu=mtu),
        back=Impairment(delay_ns=10 * NS_PER_MS),
        offloads=offloads,
        config=TcpConfig(mtu_probing=probing, sack=sack),
    )


def transfer(w: World, size: int, seconds: float, *, six: bool = False) -> tuple[Connection, float]:
    """`size` bytes from a to b; the sender's end and the seconds it took (or gave up after)."""
    near, far = w.pair(six=six)
    data, at, got = pattern(size), 0, bytearray()
    start = w.scheduler.now
    while len(got) < size and near.state is not TcpState.CLOSED:
        if at < size:
            at += near.write(data[at : at + 65536])
        assert w.advance()
        assert w.scheduler.now < start + seconds * NS_PER_S
        got += far.read(1 << 20)
    if near.state is not TcpState.CLOSED:
        assert bytes(got) == data
    return near, (w.scheduler.now - start) / NS_PER_S


# -- a silent black hole ----------------------------------------------------------------------------------------------


def test_without_probing_a_black_hole_swallows_the_connection() -> None:
    """tcp_mtu_probing 0, Linux's default: the handshake passes, nothing else does."""
    with world(0) as w:
        near, seconds = transfer(w, 1 << 20, 1200)
        assert near.error == errno.ETIMEDOUT
        assert seconds > 900


@pytest.mark.parametrize("offloads", [ALL_OFFLOADS, Offload(0)], ids=["superframes", "segments"])
@pytest.mark.parametrize("sack", [True, False], ids=["sack", "reno"])
def test_suspecting_a_black_hole_saves_the_connection(offloads: Offload, sack: bool) -> None:
    """tcp_mtu_probing 1: after R1 segments are small, everything arrives, and the search finds what fits."""
    with world(1, offloads=offloads, sack=sack) as w:
        near, seconds = transfer(w, 1 << 20, 120)
        assert near.error == 0
        assert seconds < 20
        mtu = near.mss + near.overhead
        assert NO_ICMP - 8 < mtu <= NO_ICMP
        assert w.a.ip.path_mtu(near.remote[0]) == 1500  # one connection's finding, as on Linux


def test_a_path_below_the_base_is_found_by_halving() -> None:
    with world(1, mtu=600) as w:
        near, _ = transfer(w, 200_000, 200)
        assert near.error == 0
        assert 590 < near.mss + near.overhead <= 600


def test_the_same_for_ipv6() -> None:
    with world(1, mtu=1280) as w:
        near, _ = transfer(w, 1 << 20, 120, six=True)
        assert near.error == 0
        assert 1272 < near.mss + near.overhead <= 1280


def test_probing_always_never_stalls() -> None:
    """tcp_mtu_probing 2: small from the start, growing with the transfer; a lost probe is no congestion."""
    with world(2) as w:
        near, seconds = transfer(w, 1 << 20, 60)
        assert seconds < 3
        assert NO_ICMP - 8 < near.mss + near.overhead <= NO_ICMP
        assert near.sender.congestion.ssthresh > 1 << 30  # never reduced
        assert near.info().total_retrans < 20
    with world(2, mtu=0) as w:
        near, _ = transfer(w, 3 << 20, 60)
        assert near.mss + near.overhead > 1492


# -- step by step -----------------------------------------------------------------------------------------------------


def probing() -> SackScript:
    """Established with base MSS 1024 (the peer's is 1460), a window of 20 segments."""
    s = SackScript(mtu_probing=2)
    s.mss = s.connection.mss
    s.connection.sender.last_sent = s.scheduler.now
    s.connection.sender.congestion.cwnd = 20 * s.mss
    return s


def lengths(s: Script) -> list[int]:
    return [len(one.data) for one in s.drain()]


def test_segments_begin_at_the_base_and_the_probe_is_halfway() -> None:
    """RFC 4821 section 7.2: an MTU of 1024 + 40 works; 1500 is the most there can be."""
    s = probing()
    assert s.mss == 1024
    s.connection.write(bytes(40_000))
    s.turn()
    sent = s.drain()
    assert (len(sent[0].data), sent[0].gso_size) == ((1064 + 1500) // 2 - 40, 0)
    assert sent[1].gso_size == 1024


def test_a_probe_that_arrives_raises_the_mss() -> None:
    s = probing()
    s.connection.write(bytes(40_000))
    s.turn()
    s.drain()
    s.send(ACK, seq=1, ack=1 + 1242)
    assert s.connection.mss == 1242
    prober = s.connection.sender.prober
    assert prober is not None
    assert (prober.low, prober.high) == (1282, 1500)


def test_a_lost_probe_goes_again_in_pieces_without_reduction() -> None:
    s = probing()
    s.connection.write(bytes(40_000))
    s.turn()
    s.drain()
    cwnd = s.connection.sender.congestion.cwnd
    edge = 1 + 1242
    s.sack_bytes(1, (edge, edge + 4 * 1024))
    sent = s.drain()
    assert [(one.header.seq - s.iss, len(one.data), one.gso_size) for one in sent[:1]] == [(1, 1242, 1024)]
    prober = s.connection.sender.prober
    assert prober is not None
    assert prober.high == 1281
    assert s.connection.sender.congestion.cwnd >= cwnd
    assert s.recovery.phase == 0


def test_other_losses_leave_the_question_open() -> None:
    """Congestion, then: the range stays, and the reduction happens."""
    s = probing()
    s.connection.write(bytes(40_000))
    s.turn()
    s.drain()
    edge = 1 + 1242 + 1024
    s.sack_bytes(1, (edge, edge + 4 * 1024))
    prober = s.connection.sender.prober
    assert prober is not None
    assert s.recovery.phase
    assert prober.high == 1500


@pytest.mark.parametrize("lack", ["data", "window", "cwnd"])
def test_no_probe_without_enough_behind_it(lack: str) -> None:
    s = probing()
    if lack == "cwnd":
        s.connection.sender.congestion.cwnd = 10 * s.mss
    if lack == "window":
        s.send(ACK, seq=1, ack=1, win=4_000 >> 7)
    s.connection.write(bytes(5_000 if lack == "data" else 40_000))
    s.turn()
    assert all(len(one.data) <= 1024 or one.gso_size for one in s.drain())


def test_the_search_waits_for_room() -> None:
    """With the window full nothing leaves until a probe has room beside what is in flight."""
    s = probing()
    prober = s.connection.sender.prober
    assert prober is not None
    s.connection.sender.prober = None
    s.connection.write(bytes(60_000))
    s.turn()
    s.drain()
    s.connection.sender.prober = prober
    s.send(ACK, seq=1, ack=1 + 700)  # and the window grows by as much: a segment could go
    s.expect_nothing()
    s.send(ACK, seq=1, ack=1 + 4 * 1024)
    assert lengths(s)[0] == 1242


def test_after_ten_minutes_the_path_is_tried_for_more() -> None:
    """RFC 4821 section 7.3: the interval is Linux's tcp_probe_interval."""
    s = probing()
    prober = s.connection.sender.prober
    assert prober is not None
    prober.high = prober.low + 4
    s.wait(599_000)
    s.write(b"x")
    s.send(ACK, seq=1, ack=2)
    assert prober.high == prober.low + 4
    s.wait(2_000)
    s.write(b"x")
    assert prober.high == 1500


def test_a_smaller_peer_or_user_bounds_the_search() -> None:
    s = Script(mtu_probing=2).established(TcpOptions(maxseg=1200))
    prober = s.connection.sender.prober
    assert prober is not None
    assert (prober.low, prober.high) == (1064, 1240)
    s = Script(mtu_probing=2).established(mss=700)
    assert s.connection.mss == 700


def test_the_floor_ends_the_halving() -> None:
    s = Script(mtu_probing=1).established()
    s.write(bytes(1400))
    s.wait(400_000)
    prober = s.connection.sender.prober
    assert prober is not None
    assert prober.low - s.connection.overhead == 48
    assert s.connection.mss == 76  # no peer may ask for less either
