"""Opening: RFC 9293 section 3.5 and the ladders of 3.10.7.2 (LISTEN), 3.10.7.3 (SYN-SENT) and SYN-RECEIVED."""

from __future__ import annotations

import errno

import pytest

from stack.ip.packet import PacketKind
from stack.scheduler import NS_PER_S
from stack.tcp import TcpConfig, TcpOptions, TcpState
from stack.tests.tcp.script import Script
from stack.tests.tcp.world import World
from stack.wire.tcp import ACK, FIN, PSH, RST, SYN, HeaderOptions


def test_active_open_figure_6() -> None:
    s = Script(timestamps=True).connect()
    syn = s.expect(SYN, seq=0).header
    assert syn.options.mss == 1460
    assert syn.options.window_scale == 7  # 4 MiB needs seven bits of shift
    assert syn.options.timestamps is not None
    assert syn.window == 65535
    s.send(SYN | ACK, seq=0, ack=1, options=HeaderOptions(mss=1400, window_scale=5), win=1000)
    s.expect(ACK, seq=1, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)
    assert s.connection.connected
    assert s.events
    assert s.connection.mss == 1400 - 12  # RFC 6691: the option does not count the timestamps
    assert s.connection.sender.snd_wnd == 1000  # RFC 7323 2.2: a SYN's window is not scaled
    s.send(ACK, seq=1, ack=1, win=1000)
    assert s.connection.sender.snd_wnd == 1000 << 5


def test_passive_open() -> None:
    s = Script().listen()
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460, window_scale=3))
    syn_ack = s.expect(SYN | ACK, seq=0, ack=1).header
    assert syn_ack.options.mss == 1460
    assert syn_ack.options.window_scale is not None
    assert syn_ack.options.timestamps is None  # RFC 7323 section 3.2: only in answer to one
    assert s.listener.ready == 0
    s.send(ACK, seq=1, ack=1)
    s.expect_nothing()
    assert s.listener.ready == 1
    connection = s.listener.accept()
    assert connection is not None
    assert connection.state is TcpState.ESTABLISHED
    assert connection.local == (s.us, s.our_port)
    assert connection.remote == (s.peer, s.peer_port)
    assert s.listener.accept() is None


def test_timestamps_need_both_sides() -> None:
    """RFC 7323 section 3.2: a SYN|ACK without the option means segments without it, with room for 12 bytes more."""
    s = Script(timestamps=True).connect()
    assert s.expect(SYN, seq=0).header.options.timestamps is not None
    s.timestamps = False
    s.send(SYN | ACK, seq=0, ack=1, options=HeaderOptions(mss=1000))
    assert s.expect(ACK, seq=1, ack=1).header.options.timestamps is None
    s.write(bytes(1000))
    segment = s.expect(ACK | PSH, seq=1, ack=1, data=bytes(1000))
    assert segment.header.options.timestamps is None


def test_window_scaling_needs_both_sides() -> None:
    s = Script().established(ws=None)
    s.send(ACK, seq=1, ack=1, win=500)
    assert s.connection.sender.snd_wnd == 500
    assert s.connection.receiver.shift == 0
    assert s.connection.receiver.space == 65535


def test_shift_counts_above_14_mean_14() -> None:
    """RFC 7323 section 2.3."""
    s = Script().established(ws=200)
    assert s.connection.sender.shift == 14


@pytest.mark.parametrize(("mss", "six", "expected"), [(None, False, 536), (None, True, 1220), (1, False, 88 - 0)])
def test_missing_or_tiny_mss_option(mss: int | None, six: bool, expected: int) -> None:
    s = Script(six=six).established(mss=mss)
    assert s.connection.mss == expected


def test_mss_is_bounded_by_our_mtu() -> None:
    assert Script(mtu=1400).established(mss=9000).connection.mss == 1360
    assert Script(mtu=1400, six=True).established(mss=9000).connection.mss == 1340


def test_tcp_33_maxseg_bounds_both_directions() -> None:
    """TCP_MAXSEG bounds what we send and what we ask for."""
    s = Script().listen(options=TcpOptions(maxseg=1000))
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460))
    assert s.expect(SYN | ACK).header.options.mss == 1000
    s.send(ACK, seq=1, ack=1)
    accepted = s.listener.accept()
    assert accepted is not None
    assert accepted.mss == 1000


def test_data_with_the_last_ack_of_the_handshake() -> None:
    s = Script().syn_received()
    s.send(ACK | PSH, seq=1, ack=1, data=b"GET /")
    s.accept()
    s.expect(ACK, seq=1, ack=6)
    assert s.connection.read(99) == b"GET /"


def test_fin_with_the_last_ack_of_the_handshake() -> None:
    s = Script().syn_received()
    s.send(FIN | ACK, seq=1, ack=1)
    s.expect(ACK, seq=1, ack=2)
    s.accept()
    assert s.in_state(TcpState.CLOSE_WAIT)


def test_tcp_12_simultaneous_open_figure_7() -> None:
    """SYNs that cross make one connection by way of SYN-RECEIVED (RFC 9293 figure 7)."""
    s = Script().syn_sent()
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK, seq=0, ack=1)
    assert s.in_state(TcpState.SYN_RECEIVED)
    s.send(SYN | ACK, seq=0, ack=1)  # the peer's, crossing ours: not acceptable, answered by an ACK
    s.expect(ACK, seq=1, ack=1)
    s.send(ACK, seq=1, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)


def test_tcp_11_12_connection_to_itself() -> None:
    """One socket connects to its own address; the only segments are its own."""
    s = Script()
    s.peer, s.peer_port = s.us, s.our_port
    s.connect()
    for _ in range(6):
        for sent in s.drain():
            s.send_raw(sent.header.emit() + sent.data)
    assert s.in_state(TcpState.ESTABLISHED)
    s.connection.write(b"echo")
    s.turn()
    for _ in range(3):
        for sent in s.drain():
            s.send_raw(sent.header.emit() + sent.data)
    assert s.connection.read(10) == b"echo"


# --- refusal ---------------------------------------------------------------------------------------------------------


def test_reset_of_a_syn_means_refused() -> None:
    s = Script().syn_sent()
    s.send(RST | ACK, seq=0, ack=1)
    assert s.in_state(TcpState.CLOSED)
    assert s.connection.error == errno.ECONNREFUSED
    assert s.connection.take_error() == errno.ECONNREFUSED
    assert s.connection.take_error() == 0
    assert not list(s.tcp.ports.claims(s.our_port))


def test_blind_reset_of_a_syn_is_ignored() -> None:
    """3.10.7.3 second: without an acceptable ACK a RST is dropped."""
    s = Script().syn_sent()
    s.send(RST, seq=0)
    s.send(RST | ACK, seq=0, ack=2)
    s.expect_nothing()
    assert s.in_state(TcpState.SYN_SENT)


def test_wrong_ack_in_syn_sent_is_reset() -> None:
    """3.10.7.3 first: <SEQ=SEG.ACK><CTL=RST>; figure 9's half-open recovery stands on it."""
    s = Script().syn_sent()
    s.send(ACK, seq=300, ack=91)
    s.expect(RST, seq=91)
    s.send(SYN | ACK, seq=0, ack=0)
    s.expect(RST, seq=0)
    assert s.in_state(TcpState.SYN_SENT)


def test_no_listener_answers_reset() -> None:
    """3.10.7.1: without ACK: SEQ 0 and ACK = SEG.SEQ + SEG.LEN; with ACK: SEQ = SEG.ACK. Never to a RST."""
    s = Script()
    s.send(SYN, seq=5, data=b"abc")
    sent = s.expect(RST | ACK, ack=5 + 1 + 3)
    assert sent.header.seq == 0
    s.send(ACK, seq=5, ack=77)
    s.expect(RST, seq=77)
    s.send(RST, seq=5)
    s.send(RST | ACK, seq=5, ack=9)
    s.expect_nothing()
    assert s.tcp.drops["no-socket"] == 4


def test_nothing_is_answered_to_a_broadcast() -> None:
    """RFC 1122 section 4.2.3.10."""
    s = Script()
    s.send(SYN, seq=0, kind=PacketKind.BROADCAST)
    s.listen()
    s.send(SYN, seq=0, kind=PacketKind.MULTICAST)
    s.expect_nothing()
    assert not s.listener.half_open


def test_listen_resets_an_ack_and_ignores_a_reset() -> None:
    """3.10.7.2."""
    s = Script().listen()
    s.send(ACK, seq=1, ack=12345)
    s.expect(RST, seq=12345)
    s.send(SYN | ACK, seq=1, ack=12345)
    s.expect(RST, seq=12345)
    s.send(RST, seq=1)
    s.send(FIN, seq=1)
    s.send(0, seq=1)
    s.expect_nothing()


# --- SYN-RECEIVED ----------------------------------------------------------------------------------------------------


def test_syn_again_gets_the_syn_ack_again() -> None:
    s = Script().syn_received()
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK, seq=0, ack=1)


@pytest.mark.parametrize("start", ["syn_received", "syns_crossed"])
def test_wrong_ack_in_syn_received_is_reset(start: str) -> None:
    """3.10.7.4 fifth, SYN-RECEIVED: "form a reset segment <SEQ=SEG.ACK><CTL=RST>"."""
    s: Script = getattr(Script(), start)()
    s.send(ACK, seq=1, ack=2)
    s.expect(RST, seq=2)
    s.send(ACK, seq=1, ack=1)
    s.expect_nothing()
    assert next(iter(s.tcp.connections.values())).state is TcpState.ESTABLISHED


def test_reset_in_syn_received_returns_to_listen() -> None:
    s = Script().syn_received()
    s.send(RST, seq=1)
    s.expect_nothing()
    assert not s.listener.half_open
    assert not s.tcp.connections
    assert s.listener.ready == 0
    s.send(SYN, seq=500, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK, ack=501)


# --- retransmission of SYN and SYN|ACK -------------------------------------------------------------------------------


def test_tcp_05_28_syn_is_sent_again_with_back_off_until_etimedout() -> None:
    """SYNs go again after a second, then after twice as long each time; with six retries ETIMEDOUT comes at 127 s."""
    s = Script().syn_sent()
    start = s.scheduler.now
    times = []
    while s.in_state(TcpState.SYN_SENT):
        s.wait(1000)
        for sent in s.drain():
            assert sent.header.flags == SYN
            times.append((s.scheduler.now - start) // NS_PER_S)
    assert times == [1, 3, 7, 15, 31, 63]
    assert (s.scheduler.now - start) // NS_PER_S == 127
    assert s.connection.error == errno.ETIMEDOUT


def test_tcp_28_syncnt_bounds_the_retries() -> None:
    """TCP_SYNCNT is how often a SYN is sent again."""
    s = Script().syn_sent(TcpOptions(syn_retries=1))
    s.wait(3100)
    s.expect(SYN, seq=0)
    s.expect_nothing()
    assert s.connection.error == errno.ETIMEDOUT


def test_syn_ack_is_sent_again_then_given_up() -> None:
    s = Script().syn_received()
    s.wait(70_000)
    assert [sent.header.flags for sent in s.drain()] == [SYN | ACK] * 5
    assert not s.listener.half_open
    assert not s.tcp.demux.minisocks


def test_rto_after_a_lost_syn_is_three_seconds() -> None:
    """RFC 6298 section 5.7."""
    s = Script().syn_sent()
    s.wait(1000)
    s.expect(SYN)
    s.send(SYN | ACK, seq=0, ack=1, options=HeaderOptions(mss=1460))
    s.expect(ACK, seq=1, ack=1)
    assert s.connection.sender.rtt.rto == 3 * NS_PER_S


# --- queues ----------------------------------------------------------------------------------------------------------


def other_peer(s: Script, number: int) -> None:
    s.peer_port = 40000 + number


def test_closing_a_listener_resets_what_waits() -> None:
    """Row TCP-17."""
    s = Script().established()
    other_peer(s, 1)
    s.send(SYN, seq=0)
    s.expect(SYN | ACK)
    other_peer(s, 2)
    s.send(SYN, seq=0)
    s.expect(SYN | ACK)
    s.send(ACK, seq=1, ack=1)
    s.listener.close()
    s.listener.close()
    assert [sent.header.flags & RST for sent in s.drain()] == [RST, RST]
    assert list(s.tcp.connections.values()) == [s.connection]
    assert s.tcp.ports.claims(80)  # held by the accepted one
    s.connection.abort()
    assert not s.tcp.ports.claims(80)


def test_options_are_inherited_by_copy() -> None:
    given = TcpOptions(nodelay=True, keepalive=True, sndbuf=12345, ttl=7)
    s = Script().established(given)
    assert s.connection.options == given
    assert s.connection.options is not given
    assert s.connection.sndbuf == 12345


# --- 4-tuples and sequence numbers -----------------------------------------------------------------------------------


def test_tcp_09_second_connection_on_the_same_four_tuple_is_refused() -> None:
    """A second connection between the same two addresses and ports is EADDRNOTAVAIL."""
    s = Script().syn_sent()
    bound = s.connection.bound
    assert bound is not None
    with pytest.raises(Exception, match="EADDRNOTAVAIL"):
        s.tcp.connect(bound.retain(), None, (s.peer, s.peer_port))


def test_tcp_02_ephemeral_ports() -> None:
    """Ports chosen for connect() lie in ip_local_port_range and are all different."""
    s = Script()
    connections = [s.tcp.connect(None, None, (s.peer, 80)) for _ in range(50)]
    ports = {connection.local[1] for connection in connections}
    assert len(ports) == 50
    assert all(32768 <= port <= 60999 for port in ports)  # row TCP-02
    for connection in connections:
        connection.abort()
    assert not list(s.tcp.ports)


def test_initial_sequence_numbers_follow_rfc_6528() -> None:
    """A clock of 4 microseconds plus a keyed hash of the 4-tuple: same tuple rises slowly, others are unrelated."""
    s = Script(syn_backlog=1).listen()
    first = []
    for _ in range(3):
        s.send(SYN, seq=0)
        first.append(s.expect(SYN | ACK).header.seq)
        s.send(RST, seq=1)
        s.wait(4)
    assert (first[1] - first[0]) & 0xFFFFFFFF == 1000
    assert (first[2] - first[1]) & 0xFFFFFFFF == 1000
    other_peer(s, 1)
    s.send(SYN, seq=0)
    assert abs(s.expect(SYN | ACK).header.seq - first[2]) > 1 << 16


def test_config_defaults_are_documented_values() -> None:
    config = TcpConfig()
    assert config.initial_window == 10  # RFC 6928
    assert config.time_wait == 60 * NS_PER_S  # row TCP-23


def test_link_local_peers_are_answered_through_their_interface() -> None:
    """RFC 4007: fe80::/10 says nothing without the interface."""
    with World(1) as world:
        a, b = (namespace.interfaces["eth0"] for namespace in (world.a, world.b))
        remote = next(one.address for one in b.addresses if one.address[:2] == b"\xfe\x80")
        listener = world.listen(six=True)
        near = world.a.tcp.connect(None, None, (remote, 80), oif=a.index)
        assert world.run_until(lambda: bool(listener.ready) and near.connected, 10)
        far = listener.accept()
        assert far is not None
        assert far.oif == b.index
        far.write(b"hello")
        assert world.run_until(lambda: bool(near.readable), 10)
