"""SYN cookies (RFC 4987 section 3.6, row TCP-35): what a flood leaves of the handshake, and who gets through it."""

from __future__ import annotations

import random

import pytest

from stack.scheduler import NS_PER_S
from stack.tcp import Connection, TcpConfig, TcpState
from stack.tcp.syncookies import MSS4, MSS6, PERIOD, SynCookies, stamp, unstamp
from stack.testing import builders
from stack.tests.tcp.script import Script
from stack.tests.tcp.test_tcp_syn_queue import last_ack, syn
from stack.tests.tcp.world import B6, B, World
from stack.wire.tcp import ACK, CWR, ECE, RST, SYN, HeaderOptions

KEY4 = (bytes((10, 0, 0, 7)), bytes((10, 0, 0, 1)), 40000 << 16 | 80)
KEY6 = (b"\xfd" + bytes(14) + b"\x07", b"\xfd" + bytes(14) + b"\x01", 40000 << 16 | 80)


# --- the cookie itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "table"), [(KEY4, MSS4), (KEY6, MSS6)])
def test_a_cookie_tells_the_mss_rounded_down(key: tuple[bytes, bytes, int], table: tuple[int, ...]) -> None:
    """One of four values common on the Internet; below the least, the least."""
    cookies = SynCookies(bytes(32))
    for mss in range(1, 9500, 13):
        iss, kept = cookies.make(key, 12345, mss, 0)
        assert kept == max((one for one in table if one <= mss), default=table[0])
        assert cookies.check(key, 12345, iss, 0) == kept


def test_a_cookie_is_good_for_one_to_two_minutes() -> None:
    """Linux MAX_SYNCOOKIE_AGE: the minute it was made in and the next."""
    cookies = SynCookies(bytes(32))
    rng = random.Random(3)
    for _ in range(200):
        made = rng.randrange(1 << 40, 1 << 60)
        iss, mss = cookies.make(KEY4, 99, 1460, made)
        limit = (made // PERIOD + 2) * PERIOD
        assert cookies.check(KEY4, 99, iss, made) == mss
        assert cookies.check(KEY4, 99, iss, limit - 1) == mss
        assert cookies.check(KEY4, 99, iss, limit) == 0
        assert cookies.check(KEY4, 99, iss, made - PERIOD) == 0  # from the future


def test_a_cookie_is_one_connections_own() -> None:
    """Another address, port, sequence number or secret makes it worthless."""
    cookies = SynCookies(bytes(32))
    iss, _ = cookies.make(KEY4, 99, 1460, 0)
    assert cookies.check(KEY4, 99, iss, 0)
    assert not cookies.check((bytes((10, 0, 0, 8)), *KEY4[1:]), 99, iss, 0)
    assert not cookies.check((KEY4[0], bytes((10, 0, 0, 2)), KEY4[2]), 99, iss, 0)
    assert not cookies.check((*KEY4[:2], KEY4[2] + 1), 99, iss, 0)
    assert not cookies.check(KEY4, 98, iss, 0)
    assert not SynCookies(bytes(31) + b"x").check(KEY4, 99, iss, 0)


def test_guesses_fail() -> None:
    cookies, rng = SynCookies(bytes(32)), random.Random(1)
    assert not any(cookies.check(KEY4, 99, rng.getrandbits(32), 1 << 60) for _ in range(20_000))


@pytest.mark.parametrize("scale", [None, 0, 7, 14])
@pytest.mark.parametrize("sack", [False, True])
@pytest.mark.parametrize("ecn", [False, True])
def test_timestamps_carry_the_options(scale: int | None, sack: bool, ecn: bool) -> None:
    """Six bits, so the clock goes back by less than 64 ticks, and never forward."""
    for clock in range(1_000_000, 1_000_130):
        value = stamp(clock, scale, sack=sack, ecn=ecn)
        assert clock - 64 < value <= clock
        assert unstamp(value) == (scale, sack, ecn)


# --- the listener ----------------------------------------------------------------------------------------------------


def full(*, timestamps: bool = False) -> Script:
    """A listener whose SYN queue is full."""
    s = Script(timestamps=timestamps).listen(backlog=3)
    for number in range(4):
        syn(s, number)
    return s


@pytest.mark.parametrize("timestamps", [False, True])
def test_tcp_35_a_full_queue_answers_with_a_cookie_and_keeps_nothing(timestamps: bool) -> None:
    """Every SYN is answered, nothing is remembered, and the ACK of the answer makes the connection."""
    s = full(timestamps=timestamps)
    isns = [syn(s, number) for number in range(4, 300)]
    assert len(s.listener.half_open) == len(s.tcp.demux.minisocks) == 4
    assert s.tcp.mib["TcpExtSyncookiesSent"] == s.tcp.mib["TcpExtTCPReqQFullDoCookies"] == 296
    last_ack(s, 100, isns[96], b"hello")
    s.expect(ACK, seq=1, ack=6)
    s.accept()
    assert s.connection.read(9) == b"hello"
    assert s.in_state(TcpState.ESTABLISHED)
    assert s.tcp.mib["TcpExtSyncookiesRecv"] == 1
    s.write(b"world")
    s.expect(ACK, seq=1, ack=6, data=b"world")


def test_tcp_35_without_timestamps_a_cookie_knows_the_mss_alone() -> None:
    s = full()
    iss = syn(s, 9, window_scale=7, sack_permitted=True)
    last_ack(s, 9, iss)
    s.accept()
    assert s.connection.mss == 1460
    assert not s.connection.sack
    assert not s.connection.window_scaling
    assert s.connection.sender.shift == s.connection.receiver.shift == 0
    assert s.connection.sender.rtt.srtt == 0  # when the SYN|ACK left is forgotten


def test_tcp_35_without_timestamps_the_syn_ack_offers_no_more() -> None:
    """What cannot be remembered is not agreed on."""
    s = full()
    s.peer_port = 2000
    s.send(SYN | ECE | CWR, seq=0, options=HeaderOptions(mss=1000, window_scale=7, sack_permitted=True))
    header = s.expect(SYN | ACK, seq=0, ack=1).header
    assert header.options.window_scale is None
    assert not header.options.sack_permitted


def test_tcp_35_timestamps_bring_the_options_back() -> None:
    """Window scale, SACK and ECN come back in the echo of our timestamp."""
    s = full(timestamps=True)
    s.peer_port = 2000
    options = HeaderOptions(mss=1400, window_scale=5, sack_permitted=True, timestamps=(s.tsval, 0))
    s.send(SYN | ECE | CWR, seq=0, options=options)
    answer = s.expect(SYN | ACK | ECE, seq=0, ack=1)
    assert answer.header.options.window_scale == 7
    assert answer.header.options.sack_permitted
    s.wait(30)
    s.send(ACK, seq=1, ack=1, win=1000)
    s.accept()
    connection = s.connection
    assert connection.sack
    assert connection.timestamps
    assert connection.ecn is not None
    assert connection.sender.shift == 5
    assert connection.sender.snd_wnd == 1000 << 5
    assert connection.receiver.shift == 7
    assert connection.mss == 1300 - 12
    s.write(b"x")
    s.expect(ACK, seq=1, ack=1, data=b"x")


def test_tcp_35_acks_that_are_no_cookies_are_reset() -> None:
    s = full()
    syn(s, 9)
    s.peer_port = 2000
    s.send(ACK, seq=1, ack=77)
    s.expect(RST, seq=77)
    assert s.tcp.mib["TcpExtSyncookiesFailed"] == 1
    assert s.listener.ready == 0


def test_tcp_35_cookies_are_looked_for_only_after_an_overflow() -> None:
    """Without one lately, every stray ACK is just reset."""
    s = Script().listen()
    s.send(ACK, seq=1, ack=77)
    s.expect(RST)
    s = full()
    iss = syn(s, 9)
    s.wait(119_000)
    s.drain()
    last_ack(s, 9, iss)
    s.expect(RST, seq=1)  # too old
    assert s.tcp.mib["TcpExtSyncookiesFailed"] == 1
    s.wait(2_000)
    last_ack(s, 9, iss)
    s.expect(RST, seq=1)  # not even looked at
    assert s.tcp.mib["TcpExtSyncookiesFailed"] == 1


def test_tcp_35_always() -> None:
    """tcp_syncookies 2: for every SYN."""
    s = Script(syncookies=2).listen()
    iss = syn(s, 0)
    assert not s.listener.half_open
    assert not s.tcp.demux.minisocks
    last_ack(s, 0, iss)
    assert s.listener.ready == 1


def test_tcp_35_a_full_accept_queue_drops_cookies_too() -> None:
    s = Script(syncookies=2).listen(backlog=0)
    isns = [syn(s, 0), syn(s, 1)]
    last_ack(s, 0, isns[0])
    last_ack(s, 1, isns[1])
    s.expect_nothing()
    assert s.listener.ready == 1
    assert s.tcp.mib["TcpExtListenOverflows"] == 1
    syn(s, 2, answered=False)


def test_tcp_35_time_wait_reopens_without_a_cookie() -> None:
    """A new SYN for a connection in TIME-WAIT comes from a real peer and needs no cookie (as Linux)."""
    s = Script(syncookies=2).listen()
    iss = syn(s, 0)
    last_ack(s, 0, iss)
    s.accept()
    s.close()
    s.drain()
    s.send(0x11, seq=1, ack=2)  # FIN
    s.drain()
    s.send(SYN, seq=1000, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK, ack=1001)
    assert len(s.listener.half_open) == 1


# --- a flood ---------------------------------------------------------------------------------------------------------


def echo(world: World, six: bool = False) -> tuple[Connection, Connection]:
    """A connection from a to b's port 80 and what b accepted; one exchange of data both ways."""
    client = world.connect(six=six)
    listener = next(iter(world.b.tcp.demux.listeners.values()))[0]
    assert world.run_until(lambda: bool(listener.ready), 20)
    server = listener.accept()
    assert server is not None
    client.write(b"ping" * 500)
    assert world.run_until(lambda: server.readable == 2000, 20)
    server.write(server.read(2000))
    assert world.run_until(lambda: client.readable == 2000, 20)
    return client, server


@pytest.mark.parametrize("six", [False, True])
def test_tcp_35_legitimate_clients_connect_during_a_flood(six: bool) -> None:
    """Five thousand made-up SYNs against a queue of 129: bounded memory, and a client is served meanwhile and after."""
    with World(11, config=TcpConfig()) as world:
        target, mac = B6 if six else B, world.b.interfaces["eth0"].mac
        listener = world.b.tcp.listen(world.b.tcp.ports.bind(target, 80), 128)
        rng = random.Random(2)
        before = echo(world, six)

        def flood(count: int) -> None:
            for _ in range(count):
                source = target[:-1] + bytes((rng.randrange(3, 255),))
                port, seq = rng.randrange(1024, 65536), rng.getrandbits(32)
                segment = builders.tcp(source, target, port, 80, seq=seq, flags=SYN)
                packet = builders.ipv6(source, target, 6, segment) if six else builders.ipv4(source, target, 6, segment)
                world.a.interfaces["eth0"].send_frame(mac, 0x86DD if six else 0x0800, packet)

        for _ in range(5):
            flood(1000)
            client, _ = echo(world, six)
            assert client.state is TcpState.ESTABLISHED
            assert len(listener.half_open) <= 129
            assert len(world.b.tcp.demux.minisocks) <= 129
        counters = world.b.tcp.mib
        assert counters["TcpExtSyncookiesSent"] >= 4500
        by_cookie = counters["TcpExtSyncookiesRecv"]
        assert 3 <= by_cookie <= 5  # a request that failed may just have left room
        assert counters["TcpExtSyncookiesFailed"] == counters["TcpExtListenOverflows"] == 0
        assert all(one.state is TcpState.ESTABLISHED for one in before)
        world.run_until(lambda: not listener.half_open, 70)
        assert not world.b.tcp.demux.minisocks
        echo(world, six)
        assert counters["TcpExtSyncookiesRecv"] == by_cookie  # the flood is over, and so are cookies


def test_the_first_time_out_after_a_cookie_is_a_second() -> None:
    s = full()
    last_ack(s, 9, syn(s, 9))
    s.accept()
    s.write(b"x")
    for request in s.listener.half_open:
        request.reset()
    s.drain()
    s.wait(999)
    s.expect_nothing()
    s.wait(2)
    s.expect(ACK, seq=1, data=b"x")
    assert s.connection.sender.rtt.rto == NS_PER_S
