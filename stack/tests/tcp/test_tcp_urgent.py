"""Urgent data on the wire (RFC 9293 section 3.8.5, RFC 6093) and the one byte that sockets make of it (row TCP-34)."""

from __future__ import annotations

import errno

import pytest

from stack.errors import NetError
from stack.tcp import TcpOptions
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, ECE, PSH, URG, HeaderOptions


def code(call: object, **more: bool) -> int:
    with pytest.raises(NetError) as caught:
        call(**more)  # type: ignore[operator]
    return caught.value.errno


def urgent(s: Script, data: bytes) -> None:
    assert s.connection.write(data, urgent=True) == len(data)
    s.turn()


def marks(s: Script) -> tuple[bool, bool]:
    return s.connection.at_mark, s.connection.urgent_pending


# -- sending ----------------------------------------------------------------------------------------------------------


def test_pointer_is_one_past_the_urgent_byte() -> None:
    """RFC 6093 section 3.1, as Linux with tcp_stdurg 0."""
    s = Script().established()
    urgent(s, b"abc")
    assert s.expect(PSH | ACK | URG, seq=1, data=b"abc").header.urgent == 3


def test_every_segment_before_the_end_carries_the_pointer_and_none_is_a_superframe() -> None:
    s = Script().established(ws=7)
    urgent(s, bytes(3000))
    s.write(bytes(5000))
    sent = s.drain()
    assert [(len(one.data), one.header.urgent) for one in sent[:3]] == [(1460, 3000), (1460, 1540), (80, 80)]
    assert all(one.gso_size == 0 and one.header.flags & URG for one in sent[:3])
    assert all(not one.header.flags & URG and one.header.urgent == 0 for one in sent[3:])
    assert sum(len(one.data) for one in sent) == 8000


def test_a_superframe_is_cut_only_up_to_the_urgent_byte() -> None:
    s = Script(initial_window=20).established(ws=7)
    s.connection.write(bytes(2000), urgent=True)
    s.connection.write(bytes(14600))
    s.turn()
    sent = s.drain()
    assert [(len(one.data), bool(one.header.flags & URG)) for one in sent[:2]] == [(1460, True), (1460, True)]
    assert sent[2].gso_size == 1460
    assert not sent[2].header.flags & URG
    assert b"".join(one.data for one in sent) == bytes(16600)


def test_a_pointer_that_is_too_far_says_the_most_it_can() -> None:
    s = Script(initial_window=200).established(ws=7)
    s.connection.write(bytes(70_000), urgent=True)
    s.turn()
    sent = s.drain()
    assert sent[0].header.urgent == 65_535
    assert all(one.header.urgent == min(70_001 - (one.header.seq - s.iss), 65_535) for one in sent)
    assert sent[-1].header.urgent < 10_000


def test_urgent_data_waits_for_nothing() -> None:
    """Neither Nagle nor the cork holds it, while it is not acknowledged."""
    s = Script().established(TcpOptions(cork=True))
    s.write(b"held")
    s.expect_nothing()
    urgent(s, b"!")
    assert s.expect(PSH | ACK | URG, seq=1, data=b"held!").header.urgent == 5
    s.write(b"more")
    s.expect(PSH | ACK, seq=6, data=b"more")
    s.send(ACK, seq=1, ack=10)
    s.write(b"held again")
    s.expect_nothing()


def test_a_closed_window_does_not_keep_the_news() -> None:
    """Probes say that there is urgent data: from SND.UNA on, as Linux."""
    s = Script().established(win=0)
    s.connection.write(b"xy", urgent=True)
    s.turn()
    s.expect_nothing()
    s.wait(210)
    probe = s.expect(ACK | URG, seq=1)
    assert probe.header.urgent == 2
    assert s.expect(ACK | URG, seq=0).header.urgent == 3


def test_retransmission_points_there_again() -> None:
    s = Script().established()
    urgent(s, b"abc")
    s.drain()
    s.wait(1100)
    assert s.expect(ACK | URG, seq=1, data=b"abc").header.urgent == 3


def test_acks_of_an_ecn_connection_keep_both_bits() -> None:
    s = Script(ecn=1)
    s.listen()
    s.send(0xC2, seq=0, options=HeaderOptions(mss=1460))  # SYN, ECE, CWR
    s.drain()
    s.iss = s.listener.half_open[0].iss
    s.send(ACK, seq=1, ack=1)
    s.accept()
    s.tos = 3
    s.send(ACK | PSH, seq=1, ack=1, data=b"marked")
    s.drain()
    urgent(s, b"u")
    sent = s.drain()[0]
    assert sent.header.flags & (URG | ECE) == URG | ECE
    assert sent.header.urgent == 1


# -- receiving --------------------------------------------------------------------------------------------------------


def test_the_byte_before_the_pointer_is_kept_apart() -> None:
    s = Script().established()
    s.send(ACK | PSH | URG, seq=1, ack=1, data=b"abc", urgent=3)
    c = s.connection
    assert (c.urgent_pending, c.at_mark, c.before_mark) == (True, False, 2)
    assert s.read() == b"ab"
    assert marks(s) == (True, True)
    assert c.urgent_byte(keep=True) == b"c"
    assert c.urgent_byte() == b"c"
    assert code(c.urgent_byte) == errno.EINVAL
    assert marks(s) == (True, False)
    s.send(ACK, seq=4, ack=1, data=b"def")
    assert c.peek(100) == b"def"
    assert s.read() == b"def"
    assert marks(s) == (False, False)


def test_inline_the_byte_stays_and_the_mark_parts_reads() -> None:
    s = Script().established(TcpOptions(oob_inline=True))
    s.send(ACK | URG, seq=1, ack=1, data=b"abcd", urgent=3)
    c = s.connection
    assert code(c.urgent_byte) == errno.EINVAL
    assert c.before_mark == 4
    assert s.read() == b"ab"
    assert marks(s) == (True, True)
    assert s.read() == b"cd"
    assert marks(s) == (False, False)


def test_the_pointer_may_come_before_its_byte() -> None:
    """EAGAIN until it is there; a zero window does not keep the pointer out (section 3.10.7.4, first step)."""
    s = Script(timestamps=True).established()
    c = s.connection
    s.send(ACK | URG, seq=1, ack=1, urgent=2)
    assert code(c.urgent_byte) == errno.EAGAIN
    assert not c.urgent_pending
    s.send(ACK, seq=1, ack=1, data=b"a")
    s.send(ACK, seq=2, ack=1, data=b"b")
    assert c.urgent_byte() == b"b"
    before = s.tcp.stats.fast_in
    s.send(ACK, seq=3, ack=1, data=b"c")
    assert s.tcp.stats.fast_in == before + 1  # header prediction is back


def test_a_byte_that_never_comes_is_the_end_of_the_stream() -> None:
    s = Script().established()
    s.send(ACK | URG, seq=1, ack=1, urgent=9)
    s.send(ACK | 1, seq=1, ack=1)
    assert s.connection.urgent_byte() == b""


def test_old_pointers_change_nothing() -> None:
    s = Script().established()
    s.send(ACK | URG, seq=1, ack=1, data=b"abc", urgent=3)
    s.send(ACK | URG, seq=4, ack=1, data=b"d", urgent=0)
    assert s.connection.urgent_byte() == b"d"
    s.send(ACK | URG, seq=1, ack=1, data=b"abc", urgent=3)
    assert code(s.connection.urgent_byte) == errno.EINVAL
    assert s.read() == b"abc"  # only the last urgent byte is kept apart


def test_an_unread_urgent_byte_at_the_front_is_dropped_for_the_next() -> None:
    s = Script().established()
    s.send(ACK | URG, seq=1, ack=1, data=b"a", urgent=1)
    s.send(ACK | URG, seq=2, ack=1, data=b"b", urgent=1)
    assert s.connection.urgent_byte() == b"b"
    assert s.read() == b""


def test_reading_past_the_mark_loses_the_byte() -> None:
    s = Script().established()
    s.send(ACK | URG, seq=1, ack=1, data=b"aXb", urgent=2)
    assert s.connection.discard(10) == 1
    target = bytearray(10)
    assert s.connection.read_into(memoryview(target)) == 1
    assert target[:1] == b"b"
    assert code(s.connection.urgent_byte) == errno.EINVAL


def test_pointers_far_away_are_harmless() -> None:
    s = Script().established()
    for at in range(50):
        s.send(ACK | URG, seq=1 + at, ack=1, data=b"x", urgent=65_535)
    assert s.read() == b"x" * 50
    assert code(s.connection.urgent_byte) == errno.EAGAIN
