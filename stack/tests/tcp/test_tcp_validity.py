"""Which segments count: RFC 5961 against blind attacks, RFC 7323 timestamps, checksums."""

from __future__ import annotations

import errno

from stack.tcp import TcpState
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, PSH, RST, SYN, HeaderOptions

MSS = 1460


def test_reset_must_hit_the_next_sequence_number() -> None:
    """RFC 5961 section 3.2."""
    s = Script().established()
    s.send(RST, seq=2)
    s.expect(ACK, seq=1, ack=1)  # challenge
    s.send(RST, seq=300_000)
    s.expect_nothing()
    assert s.in_state(TcpState.ESTABLISHED)
    s.send(ACK | PSH, seq=1, ack=1, data=b"last words")
    s.drain()
    s.send(RST, seq=11)
    s.expect_nothing()
    assert s.in_state(TcpState.CLOSED)
    assert s.connection.error == errno.ECONNRESET
    assert s.connection.read(99) == b"last words"  # row TCP-20: buffered data first
    assert s.connection.eof


def test_syn_in_an_established_connection_is_challenged() -> None:
    """RFC 5961 section 4.2, wherever its sequence number lies."""
    s = Script().established()
    for seq in (0, 1, 100, 500_000, -500_000):
        s.send(SYN, seq=seq)
        s.wait(501)
        s.send(SYN | ACK, seq=seq, ack=1)
        s.wait(501)
        assert {sent.header.flags for sent in s.drain()} == {ACK}
        assert s.in_state(TcpState.ESTABLISHED)


def test_old_acks_beyond_the_largest_window_are_challenged() -> None:
    """RFC 5961 section 5.2: blind data injection must guess the ACK, too."""
    s = Script().established(win=1000)
    s.send(ACK, seq=1, ack=1 - 70_000, data=b"injected")
    s.expect(ACK, seq=1, ack=1)
    assert s.connection.readable == 0


def test_challenge_acks_are_limited_per_second() -> None:
    """RFC 5961 section 7."""
    s = Script(challenge_acks=5).established()
    for _ in range(20):
        s.send(RST, seq=2)
    assert len(s.drain()) == 5
    s.wait(1000)
    s.send(RST, seq=2)
    s.expect(ACK)


# --- timestamps (RFC 7323) -------------------------------------------------------------------------------------------


def test_old_timestamps_are_rejected() -> None:
    """PAWS, section 5.3 R1: acknowledge and drop."""
    s = Script(timestamps=True).established()
    s.tsval += 100
    s.send(ACK, seq=1, ack=1, data=b"new")
    s.expect(ACK, ack=4)
    s.tsval -= 1
    s.send(ACK, seq=4, ack=1, data=b"old duplicate")
    s.expect(ACK, ack=4)
    assert s.tcp.drops["paws"] == 1
    assert s.read() == b"new"


def test_paws_does_not_touch_resets() -> None:
    s = Script(timestamps=True).established()
    s.send(RST, seq=1, options=HeaderOptions(timestamps=(1, 0)))
    assert s.in_state(TcpState.CLOSED)


def test_paws_gives_up_after_24_days_of_silence() -> None:
    """Section 5.5: the peer's clock may have wrapped."""
    s = Script(timestamps=True).established()
    recent = s.tsval
    s.wait(25 * 24 * 3600 * 1000)
    s.tsval = recent - 1
    s.send(ACK | PSH, seq=1, ack=1, data=b"good morning")
    assert s.read() == b"good morning"


def test_segments_without_the_option_are_dropped_once_agreed_on() -> None:
    """Section 3.2."""
    s = Script(timestamps=True).established()
    s.timestamps = False
    s.send(ACK, seq=1, ack=1, data=b"who?")
    s.expect_nothing()
    assert s.tcp.drops["no-timestamp"] == 1


def test_echoed_timestamp_is_that_of_the_last_segment_acknowledged_in_order() -> None:
    """Section 4.3: of a burst under one delayed ACK, the first; out of order, the one before the gap."""
    s = Script(timestamps=True).established()
    s.tsval = 7000
    s.send(ACK, seq=1, ack=1, data=b"a" * 1000, turn=False)
    s.tsval = 7001
    s.send(ACK, seq=1001, ack=1, data=b"b" * 1000)
    assert s.expect(ACK, ack=2001).header.options.timestamps[1] == 7000  # type: ignore[index] # options are there
    s.tsval = 7005
    s.send(ACK, seq=3001, ack=1, data=b"d" * 1000)
    assert s.expect(ACK, ack=2001).header.options.timestamps[1] == 7000  # type: ignore[index] # options are there
    s.send(ACK, seq=2001, ack=1, data=b"c" * 1000)
    assert s.expect(ACK, ack=4001).header.options.timestamps[1] == 7005  # type: ignore[index] # options are there
