"""TCP Fast Open, RFC 7413: the server's half, the client's half, and both together."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from stack.scheduler import NS_PER_S
from stack.tcp import Connection, TcpConfig, TcpOptions, TcpState
from stack.tcp.fastopen import CLIENT_NO_COOKIE, SERVER, SERVER_ALL, SERVER_NO_COOKIE
from stack.tests.tcp.script import PEER_PORT, Script
from stack.tests.tcp.world import World
from stack.wire import tcp as wire
from stack.wire.tcp import ACK, FIN, PSH, RST, SYN, HeaderOptions

KEY = bytes(range(16))
OTHER = bytes(16)
COOKIE = b"\xc0" * 8


# --- the server ------------------------------------------------------------------------------------------------------


def server(limit: int = 5, *, fastopen: int = SERVER | 1, key: bytes = KEY, backlog: int = 9, **options: int) -> Script:
    s = Script(fastopen=fastopen)
    s.listen(backlog, TcpOptions(fastopen=limit, fastopen_key=key, **options))  # type: ignore[arg-type]  # bools
    return s


def syn(s: Script, cookie: bytes | None, data: bytes = b"", *, port: int = PEER_PORT) -> None:
    s.peer_port = port
    s.send(SYN, seq=0, data=data, options=HeaderOptions(mss=1460, fastopen=cookie))


def granted(s: Script) -> bytes:
    """The cookie a peer that asks is given."""
    syn(s, b"", port=PEER_PORT + 99)
    cookie = s.expect(SYN | ACK, seq=0, ack=1).header.options.fastopen
    assert cookie
    s.send(RST, seq=1)
    return cookie


def opened(s: Script, data: bytes = b"GET /") -> Script:
    """A connection with data in its SYN, accepted, in SYN-RECEIVED."""
    syn(s, granted(s), data)
    s.expect(SYN | ACK, seq=0, ack=1 + len(data))
    s.accept()
    assert s.in_state(TcpState.SYN_RECEIVED)
    return s


def test_section_4_2_1_a_cookie_is_given_to_who_asks() -> None:
    """Eight bytes, the same each time for the same addresses, another for another key."""
    s = server()
    first = granted(s)
    assert len(first) == 8
    assert granted(s) == first
    assert s.tcp.mib["TcpExtTCPFastOpenCookieReqd"] == 2
    assert granted(server(key=OTHER)) != first
    s.peer = bytes((10, 0, 2, 77))
    assert granted(s) != first


def test_section_4_2_1_data_beside_a_request_is_not_taken() -> None:
    s = server()
    syn(s, b"", b"early")
    s.expect(SYN | ACK, seq=0, ack=1)
    assert s.listener.ready == 0


def test_section_4_2_2_data_with_a_good_cookie_is_taken_at_once() -> None:
    """The SYN|ACK acknowledges it, accept() gives the connection, and it may be read before the handshake ends."""
    s = server()
    syn(s, granted(s), b"GET /")
    header = s.expect(SYN | ACK, seq=0, ack=6).header
    assert header.options.fastopen is None
    assert s.listener.ready == 1
    assert s.tcp.mib["TcpExtTCPFastOpenPassive"] == 1
    s.accept()
    assert s.connection.read(9) == b"GET /"
    s.send(ACK, seq=6, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)
    s.expect_nothing()
    assert s.listener.fastopen.pending == 0
    assert s.connection.info().options & 32  # TCPI_OPT_SYN_DATA


def test_section_4_2_2_the_server_may_answer_before_the_handshake_ends() -> None:
    """Within the window of the SYN, which is not scaled."""
    s = opened(server())
    s.write(b"200 OK")
    s.expect(ACK, seq=1, ack=6, data=b"200 OK")
    assert s.in_state(TcpState.SYN_RECEIVED)
    s.send(ACK, seq=6, ack=7)
    assert s.in_state(TcpState.ESTABLISHED)
    assert s.connection.unacknowledged == 0
    s.expect_nothing()


def test_section_4_2_2_the_server_may_close_before_the_handshake_ends() -> None:
    s = opened(server())
    s.read()
    s.write(b"bye")
    s.close()
    sent = [(one.header.flags & ~PSH, one.data) for one in s.drain()]
    assert sent == [(ACK, b"bye"), (FIN | ACK, b"")]
    s.send(ACK, seq=6, ack=5)
    assert s.in_state(TcpState.FIN_WAIT_2)
    s.send(FIN | ACK, seq=6, ack=5)
    s.expect(ACK, seq=5, ack=7)
    assert s.in_state(TcpState.TIME_WAIT)


def test_section_4_2_2_a_cookie_without_data_opens_too() -> None:
    """As Linux: the connection may be written to in SYN-RECEIVED."""
    s = opened(server(), b"")
    s.write(b"hello")
    s.expect(ACK, seq=1, ack=1, data=b"hello")


def test_section_4_2_2_a_bad_cookie_falls_back() -> None:
    """An ordinary handshake; the right cookie comes with the SYN|ACK, the data is not taken."""
    s = server()
    good = granted(s)
    syn(s, bytes(8), b"GET /")
    assert s.expect(SYN | ACK, seq=0, ack=1).header.options.fastopen == good
    assert s.tcp.mib["TcpExtTCPFastOpenPassiveFail"] == 1
    s.send(ACK | PSH, seq=1, ack=1, data=b"GET /")
    s.accept()
    assert s.read() == b"GET /"


@pytest.mark.parametrize("limit", [1, 3])
def test_section_4_2_2_no_more_at_a_time_than_the_limit(limit: int) -> None:
    """TCP_FASTOPEN: beyond it a cookie is as good as none, until handshakes complete."""
    s = server(limit)
    cookie = granted(s)
    for number in range(limit):
        syn(s, cookie, b"x", port=2000 + number)
        s.expect(SYN | ACK, ack=2)
    syn(s, cookie, b"x", port=3000)
    s.expect(SYN | ACK, ack=1)
    assert s.tcp.mib["TcpExtTCPFastOpenListenOverflow"] == 1
    s.send(RST, seq=1)
    first = s.listener.accept()
    assert first is not None
    s.peer_port, s.iss = first.remote[1], first.sender.iss
    s.send(ACK, seq=2, ack=1)
    assert first.state is TcpState.ESTABLISHED
    syn(s, cookie, b"x", port=3000)
    s.expect(SYN | ACK, ack=2)


def test_section_5_1_a_reset_counts_for_a_minute() -> None:
    """Against reflection: connections that are reset after accept() use up the limit for a while."""
    s = server(1)
    cookie = granted(s)
    syn(s, cookie, b"x")
    s.expect(SYN | ACK, ack=2)
    s.accept()
    s.send(RST, seq=2)
    assert s.in_state(TcpState.CLOSED)
    assert s.connection.error == errno.ECONNRESET
    assert s.listener.fastopen.pending == 0
    for expected in (1, 2):
        s.wait(59_000 * (expected - 1) + 1)
        syn(s, cookie, b"x", port=4000 + expected)
        s.expect(SYN | ACK, ack=1)
        s.send(RST, seq=1)
    s.wait(1_001)
    syn(s, cookie, b"x", port=5000)
    s.expect(SYN | ACK, ack=2)


def test_syn_ack_comes_again_and_data_waits_for_nothing() -> None:
    """RFC 7413 section 4.2.2: a lost SYN|ACK is sent again, once more often than others; then ETIMEDOUT."""
    s = opened(server())
    s.write(b"reply")
    s.drain()
    s.wait(1000)
    s.expect(SYN | ACK, seq=0, ack=6)
    s.wait(126_000)
    assert [one.header.flags for one in s.drain()] == [SYN | ACK] * 5
    assert s.in_state(TcpState.CLOSED)
    assert s.connection.error == errno.ETIMEDOUT
    assert s.listener.fastopen.pending == 0


@pytest.mark.parametrize("data", [b"", b"GET /"])
def test_syn_again_gets_the_syn_ack_again(data: bytes) -> None:
    """With its data or, as clients do it, without; nothing is delivered twice."""
    s = opened(server())
    syn(s, None, data)
    s.expect(SYN | ACK, seq=0, ack=6)
    s.send(ACK, seq=6, ack=1)
    assert s.read() == b"GET /"


def test_a_duplicate_that_comes_after_the_connection_is_its_own() -> None:
    """Section 2.1: the server may see the same data twice, if a SYN is duplicated and the first connection has gone."""
    s = opened(server())
    s.connection.abort()
    s.turn()
    s.expect(RST | ACK)
    syn(s, granted(s), b"GET /")
    s.expect(SYN | ACK, seq=0, ack=6)
    assert s.listener.ready == 1


def test_the_handshakes_ack_may_be_lost() -> None:
    s = opened(server())
    s.send(ACK | PSH, seq=6, ack=1, data=b" HTTP")
    s.expect(ACK, ack=11)
    assert s.read() == b"GET / HTTP"


def test_wrong_ack_in_syn_received_is_reset() -> None:
    s = opened(server())
    s.send(ACK, seq=6, ack=99)
    s.expect(RST, seq=99)
    assert s.in_state(TcpState.SYN_RECEIVED)
    s.send(ACK, seq=6, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)
    assert s.listener.fastopen.pending == 0


def test_closing_the_listener_resets_what_was_not_accepted() -> None:
    s = server()
    syn(s, granted(s), b"GET /")
    s.drain()
    s.listener.close()
    s.expect(RST | ACK)
    assert not s.tcp.connections
    assert not s.tcp.ports.claims(80)


def test_the_last_key_but_one_is_still_good() -> None:
    """TCP_FASTOPEN_KEY with 32 bytes: a cookie of the second key is taken, and a new one given (section 4.1.2)."""
    old = granted(server(key=OTHER))
    s = server(key=KEY + OTHER)
    syn(s, old, b"x")
    assert s.expect(SYN | ACK, ack=2).header.options.fastopen == granted(server(key=KEY))
    assert s.tcp.mib["TcpExtTCPFastOpenPassiveAltKey"] == 1


@pytest.mark.parametrize(("limit", "fastopen"), [(0, SERVER), (5, 1), (5, 0), (0, SERVER_ALL)])
def test_off_means_no_option(limit: int, fastopen: int) -> None:
    """Without TCP_FASTOPEN, or without bit 1 of tcp_fastopen (as Linux by default), it is as if nothing was asked."""
    s = server(limit, fastopen=fastopen)
    syn(s, b"", b"x")
    assert s.expect(SYN | ACK, ack=1).header.options.fastopen is None


def test_tcp_fastopen_bits_stand_in_for_options() -> None:
    """0x400: every listener takes part. 0x200, or TCP_FASTOPEN_NO_COOKIE: no cookie is wanted."""
    assert granted(server(0, fastopen=SERVER | SERVER_ALL))
    for s in (server(fastopen=SERVER | SERVER_NO_COOKIE), server(fastopen_no_cookie=True)):
        syn(s, None, b"x")
        s.expect(SYN | ACK, ack=2)
        assert s.listener.ready == 1


def test_a_full_syn_queue_means_syn_cookies_not_fast_open() -> None:
    s = server(backlog=0)
    cookie = granted(s)
    for port in (2000, 2001):
        syn(s, None, port=port)
    s.drain()
    syn(s, cookie, b"x", port=2002)
    s.expect(SYN | ACK, ack=1)
    assert s.tcp.mib["TcpExtSyncookiesSent"] == 2


def test_data_is_bounded_by_the_window() -> None:
    s = Script(fastopen=SERVER, mtu=9000)
    s.listen(5, TcpOptions(fastopen=5, fastopen_no_cookie=True, rcvbuf=1000))
    syn(s, None, bytes(3000))
    s.expect(SYN | ACK, ack=1001)


# --- the option on the wire ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(19))
def test_section_4_1_1_cookies_are_4_to_16_bytes_and_even(size: int) -> None:
    raw = bytes((34, 2 + size)) + bytes(size)
    assert wire.parse_options(raw).fastopen == (bytes(size) if size in (0, 4, 6, 8, 10, 12, 14, 16) else None)


@pytest.mark.parametrize("size", [0, 4, 6, 8, 16])
def test_the_option_is_padded_to_words(size: int) -> None:
    raw = HeaderOptions(mss=1460, fastopen=bytes(size), window_scale=7, timestamps=(1, 2), sack_permitted=True).emit()
    assert len(raw) % 4 == 0
    assert len(raw) <= 40
    assert wire.parse_options(raw).fastopen == bytes(size)


# --- the client ------------------------------------------------------------------------------------------------------


def client(data: bytes = b"", *, s: Script | None = None, **config: Any) -> Script:
    """Ends in SYN-SENT, the SYN still to be expected."""
    s = Script(**config) if s is None else s
    bound = s.tcp.ports.bind(bytes(4), s.our_port, reuse_addr=True)
    s.connection = s.tcp.connect(bound, None, (s.peer, s.peer_port), fastopen=data)
    s.turn()
    return s


def knowing(data: bytes, **config: Any) -> Script:
    """The same, after an earlier connection has brought a cookie."""
    s = client(**config)
    assert s.expect(SYN, seq=0).header.options.fastopen == b""
    s.send(SYN | ACK, seq=0, ack=1, options=HeaderOptions(mss=1400, fastopen=COOKIE))
    s.expect(ACK, seq=1, ack=1)
    s.connection.abort()
    s.turn()
    s.drain()
    return client(data, s=s)


def test_section_4_1_3_a_cookie_is_asked_for_and_kept() -> None:
    """Data is not sent without one; the next connect to that address has it."""
    s = client(b"GET /")
    syn_ = s.expect(SYN, seq=0)
    assert syn_.header.options.fastopen == b""
    assert s.connection.unacknowledged == 0
    s.send(SYN | ACK, seq=0, ack=1, options=HeaderOptions(mss=1400, fastopen=COOKIE))
    s.expect(ACK, seq=1, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)
    assert len(s.tcp.fastopen) == 1
    assert s.tcp.mib["TcpExtTCPFastOpenActive"] == s.tcp.mib["TcpExtTCPFastOpenActiveFail"] == 0


def test_section_4_2_2_data_leaves_with_the_syn() -> None:
    s = knowing(b"GET /")
    sent = s.expect(SYN, seq=0, data=b"GET /")
    assert sent.header.options.fastopen == COOKIE
    s.send(SYN | ACK, seq=0, ack=6, options=HeaderOptions(mss=1400))
    s.expect(ACK, seq=6, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)
    assert s.connection.unacknowledged == 0
    assert s.tcp.mib["TcpExtTCPFastOpenActive"] == 1
    assert s.connection.info().options & 32


def test_section_4_2_2_no_more_than_the_peers_mss_of_last_time() -> None:
    """Less forty bytes for options; what is left over is the caller's to write later."""
    s = knowing(bytes(5000))
    s.expect(SYN, seq=0, length=1360)
    assert s.connection.unacknowledged == 1360


def test_section_4_2_2_data_not_acknowledged_is_sent_again() -> None:
    """The SYN|ACK takes the SYN alone: the data follows with the ACK, and no congestion is concluded from it."""
    s = knowing(b"GET /")
    s.expect(SYN, data=b"GET /")
    s.send(SYN | ACK, seq=0, ack=1, options=HeaderOptions(mss=1400))
    s.expect(ACK, seq=1, ack=1, data=b"GET /")
    s.send(ACK, seq=1, ack=6)
    assert s.connection.unacknowledged == 0
    assert s.connection.sender.retransmitted == 0
    assert s.connection.sender.congestion.cwnd >= 10 * 1400
    assert s.tcp.mib["TcpExtTCPFastOpenActiveFail"] == 1


def test_section_4_2_2_part_of_it_is_sent_again() -> None:
    s = knowing(b"0123456789")
    s.expect(SYN, data=b"0123456789")
    s.send(SYN | ACK, seq=0, ack=4, options=HeaderOptions(mss=1400))
    s.expect(ACK, seq=4, ack=1, data=b"3456789")


def test_section_4_2_2_the_syn_again_is_a_plain_one() -> None:
    """No option and no data: whatever swallowed the first one may let this one pass."""
    s = knowing(b"GET /")
    s.expect(SYN, data=b"GET /")
    s.wait(1000)
    assert s.expect(SYN, seq=0, data=b"").header.options.fastopen is None
    s.send(SYN | ACK, seq=0, ack=1, options=HeaderOptions(mss=1400))
    s.expect(ACK, seq=1, ack=1, data=b"GET /")


def test_a_late_answer_to_the_first_syn_is_good() -> None:
    s = knowing(b"GET /")
    s.drain()
    s.wait(1000)
    s.drain()
    s.send(SYN | ACK, seq=0, ack=6, options=HeaderOptions(mss=1400))
    s.expect(ACK, seq=6, ack=1)
    assert s.tcp.mib["TcpExtTCPFastOpenActive"] == 1


def test_data_in_the_syn_ack_is_taken() -> None:
    """Section 4.2.2: a server may answer in the SYN|ACK itself."""
    s = knowing(b"GET /")
    s.drain()
    s.send(SYN | ACK, seq=0, ack=6, data=b"200 OK", options=HeaderOptions(mss=1400))
    s.expect(ACK, seq=6, ack=7)
    assert s.read() == b"200 OK"


def test_section_4_1_3_a_new_cookie_replaces_the_old() -> None:
    s = knowing(b"x")
    s.drain()
    s.send(SYN | ACK, seq=0, ack=1, options=HeaderOptions(mss=1400, fastopen=bytes(8)))
    s.connection.abort()
    s.turn()
    s.drain()
    assert client(b"y", s=s).expect(SYN, data=b"y").header.options.fastopen == bytes(8)


def test_refusal_and_reset() -> None:
    s = knowing(b"GET /")
    s.drain()
    s.send(RST | ACK, seq=0, ack=6)
    assert s.in_state(TcpState.CLOSED)
    assert s.connection.error == errno.ECONNREFUSED


def test_simultaneous_open_keeps_the_data() -> None:
    s = knowing(b"GET /")
    s.drain()
    s.send(SYN, seq=0, options=HeaderOptions(mss=1400))
    sent = s.expect(SYN | ACK, seq=0, ack=1)
    assert sent.header.options.fastopen is None
    s.send(SYN | ACK, seq=0, ack=1)
    s.drain()
    s.send(ACK, seq=1, ack=1)
    assert s.in_state(TcpState.ESTABLISHED)
    s.wait(3000)
    assert b"GET /" in [one.data for one in s.drain()]


def test_no_cookie_wanted() -> None:
    """tcp_fastopen bit 2, or TCP_FASTOPEN_NO_COOKIE: data goes without any."""
    s = client(b"GET /", fastopen=1 | CLIENT_NO_COOKIE)
    assert s.expect(SYN, data=b"GET /").header.options.fastopen is None


def test_off_means_a_plain_syn() -> None:
    s = client(b"GET /", fastopen=SERVER)
    assert s.expect(SYN, data=b"").header.options.fastopen is None


def test_section_4_1_3_1_fast_open_pauses_when_syns_vanish() -> None:
    """tcp_fastopen_blackhole_timeout: after the third time-out in a row nobody tries for so long, then twice that."""
    s = knowing(b"x", fastopen_blackhole_timeout=3600 * NS_PER_S)
    s.wait(6_900)
    assert s.tcp.mib["TcpExtTCPFastOpenBlackhole"] == 0
    s.wait(200)
    assert s.tcp.fastopen.paused
    assert s.tcp.mib["TcpExtTCPFastOpenBlackhole"] == 1
    s.connection.abort()
    s.drain()
    assert client(b"x", s=s).expect(SYN, data=b"").header.options.fastopen is None
    s.connection.abort()
    s.wait(3_600_000)
    for length in (7200, 3600):
        client(b"x", s=s).expect(SYN, data=b"x")
        if length == 7200:
            s.wait(7_100)
            s.connection.abort()
            s.drain()
            s.wait(7_000_000)
            assert s.tcp.fastopen.paused
            s.wait(200_000)
            assert not s.tcp.fastopen.paused


def test_cookies_kept_are_bounded() -> None:
    s = Script()
    for number in range(3000):
        s.tcp.fastopen.learn(number.to_bytes(4, "big"), COOKIE, 1400)
    assert len(s.tcp.fastopen) == 1024
    assert s.tcp.fastopen.ready((2999).to_bytes(4, "big"), no_cookie=False)
    assert not s.tcp.fastopen.ready((0).to_bytes(4, "big"), no_cookie=False)


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("six", [False, True])
def test_a_request_and_its_answer_take_one_round_trip_less(six: bool) -> None:
    """The point of it all: on a path of 100 ms the second request is answered after 100 ms, not 200."""
    from stack.link.impairment import Impairment
    from stack.tests.tcp.world import B6, B

    delay = Impairment(delay_ns=50_000_000)
    with World(5, impairment=delay, config=TcpConfig(fastopen=3)) as world:
        listener = world.listen(options=TcpOptions(fastopen=8), six=six)
        times = []
        for _ in range(3):
            start = world.scheduler.now
            near = world.a.tcp.connect(None, None, (B6 if six else B, 80), fastopen=b"GET /")
            far: Connection | None = None
            while not near.readable:
                end = world.scheduler.now
                assert world.advance()
                if near.connected and not near.unacknowledged and not near.sender.bytes_acked:
                    near.write(b"GET /")
                far = far or listener.accept()
                if far is not None and far.readable:
                    assert far.read(9) == b"GET /"
                    far.write(b"200 OK")
            times.append((end - start) // 1_000_000)
        assert times[1:] == [100, 100]
        assert 200 <= times[0] <= 310  # neighbours had to be found
        assert world.b.tcp.mib["TcpExtTCPFastOpenPassive"] == 2
