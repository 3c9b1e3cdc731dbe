"""ICMP errors about our segments: RFC 9293 section 3.9.2.2, RFC 1122 section 4.2.3.9, RFC 5927, RFC 1191."""

from __future__ import annotations

import errno

import pytest

from stack.ip.packet import IcmpError
from stack.scheduler import NS_PER_S
from stack.tcp import TcpOptions, TcpState
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, SYN


def icmp(s: Script, number: int, *, mtu: int = 0, seq: int = 0, hard: bool = False, quote: int = 8) -> None:
    """An ICMP error that quotes our segment with relative sequence number `seq`."""
    quoted = (
        s.our_port.to_bytes(2, "big") + s.peer_port.to_bytes(2, "big") + ((s.iss + seq) & 0xFFFFFFFF).to_bytes(4, "big")
    )
    s.ip.on_error(
        IcmpError(
            version=4,
            type=3,
            code=4 if mtu else 1,
            errno=number,
            hard=hard,
            mtu=mtu,
            info=0,
            src=bytes((10, 0, 2, 1)),
            local=s.us,
            remote=s.peer,
            proto=6,
            payload=memoryview(quoted[:quote]),
        )
    )
    s.turn()


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ENETUNREACH])
def test_errors_end_a_connection_attempt(number: int) -> None:
    s = Script().syn_sent()
    icmp(s, number)
    assert s.in_state(TcpState.CLOSED)
    assert s.connection.error == number
    assert s.events


def test_errors_must_quote_a_sequence_number_in_flight() -> None:
    """RFC 5927 section 4.1."""
    s = Script().syn_sent()
    icmp(s, errno.EHOSTUNREACH, seq=77)
    icmp(s, errno.EHOSTUNREACH, quote=4)
    assert s.in_state(TcpState.SYN_SENT)
    assert s.tcp.drops["icmp-out-of-window"] == 1
    s.peer_port += 1
    icmp(s, errno.EHOSTUNREACH)
    assert s.in_state(TcpState.SYN_SENT)


def test_errors_are_only_remembered_in_an_established_connection() -> None:
    """RFC 5927 section 5.2; if the connection times out in the end, they say why."""
    s = Script().established(TcpOptions(user_timeout=2 * NS_PER_S))
    s.write(b"data")
    icmp(s, errno.EHOSTUNREACH, seq=1, hard=True)
    assert s.in_state(TcpState.ESTABLISHED)
    assert s.connection.error == 0
    s.wait(5000)
    assert s.connection.error == errno.EHOSTUNREACH


def test_remembered_error_is_forgotten_when_the_peer_answers() -> None:
    s = Script().established(TcpOptions(user_timeout=2 * NS_PER_S))
    s.write(b"data")
    icmp(s, errno.EHOSTUNREACH, seq=1)
    s.send(ACK, seq=1, ack=5)
    s.write(b"more")
    s.wait(5000)
    assert s.connection.error == errno.ETIMEDOUT


def test_fragmentation_needed_lowers_the_mss_and_sends_again() -> None:
    """RFC 1191 section 6.4: at once, without halving anything."""
    s = Script().established(ws=7)
    s.write(bytes(5000))
    s.drain()
    cwnd = s.connection.sender.congestion.ssthresh
    icmp(s, errno.EMSGSIZE, mtu=1000, seq=1)
    assert s.connection.mss == 960
    sent = s.drain()
    assert sum(len(one.data) for one in sent) == 5000
    assert sent[0].gso_size == 960
    assert s.connection.sender.congestion.ssthresh == cwnd
    assert s.connection.error == 0


def test_larger_or_unsolicited_mtu_is_ignored() -> None:
    s = Script().established(ws=7)
    s.write(bytes(5000))
    s.drain()
    icmp(s, errno.EMSGSIZE, mtu=1500, seq=1)
    icmp(s, errno.EMSGSIZE, mtu=1000, seq=90_000)
    assert s.connection.mss == 1460
    s.expect_nothing()


def test_errors_for_a_half_open_connection_drop_it() -> None:
    s = Script().syn_received()
    icmp(s, errno.EHOSTUNREACH)
    assert not s.listener.half_open
    s.send(SYN, seq=0)
    s.expect(SYN | ACK)
