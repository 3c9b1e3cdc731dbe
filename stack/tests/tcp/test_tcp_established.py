"""Data in ESTABLISHED: RFC 9293 section 3.10.7.4, ACK policy, windows, Nagle, reassembly, PAWS."""

from __future__ import annotations

import errno

import pytest

from stack.errors import NetError
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp import TcpOptions, TcpState
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, HeaderOptions

MSS = 1460


def pattern(length: int, start: int = 0) -> bytes:
    """Bytes that tell their place: any misplaced piece shows."""
    return bytes((start + at) * 7 & 0xFF ^ (start + at) >> 8 & 0xFF for at in range(length))


# --- receiving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestamps", [False, True])
def test_data_in_order(timestamps: bool) -> None:
    s = Script(timestamps=timestamps).established()
    s.send(ACK | PSH, seq=1, ack=1, data=b"hello ")
    s.expect(ACK, seq=1, ack=7)
    s.send(ACK | PSH, seq=7, ack=1, data=b"world")
    s.expect(ACK, seq=1, ack=12)
    assert s.connection.readable == 11
    assert s.connection.peek(5) == b"hello"
    assert s.connection.peek(5, 6) == b"world"
    assert s.connection.read(3) == b"hel"
    assert s.connection.discard(3) == 3
    target = bytearray(9)
    assert s.connection.read_into(memoryview(target)) == 5
    assert target == b"world\0\0\0\0"
    assert not s.connection.eof
    assert s.connection.read(10) == b""


def test_header_prediction_takes_plain_data_and_acks() -> None:
    s = Script(timestamps=True).established()
    s.send(ACK | PSH, seq=1, ack=1, data=b"x" * 3000, gso_size=1448)
    s.write(b"y" * 100)
    s.drain()
    before = s.tcp.stats.fast_in
    s.send(ACK, seq=3001, ack=101)
    assert before == 1
    assert s.tcp.stats.fast_in == 2
    assert s.connection.unacknowledged == 0


def test_one_ack_for_a_burst() -> None:
    s = Script(timestamps=True).established()
    for number in range(40):
        s.send(ACK, seq=1 + number * 1000, ack=1, data=pattern(1000, number * 1000), turn=False)
    s.turn()
    s.expect(ACK, seq=1, ack=40001)
    s.expect_nothing()
    assert s.read() == pattern(40000)


def test_duplicates_are_acknowledged_and_dropped() -> None:
    """First step of the ladder: "an acknowledgment should be sent in reply"."""
    s = Script().established()
    s.send(ACK | PSH, seq=1, ack=1, data=b"abcdef")
    s.expect(ACK, ack=7)
    s.send(ACK | PSH, seq=1, ack=1, data=b"abcdef")
    s.expect(ACK, ack=7)
    s.send(ACK | PSH, seq=4, ack=1, data=b"defGHI")  # overlaps: the front is trimmed
    s.expect(ACK, ack=10)
    assert s.read() == b"abcdefGHI"


def test_out_of_order_is_reassembled_with_one_duplicate_ack_each() -> None:
    """RFC 5681 section 4.2; the gap filler is acknowledged at once, too."""
    s = Script().established()
    data = pattern(5000)
    for start in (4000, 2000, 3000):
        s.send(ACK, seq=1 + start, ack=1, data=data[start : start + 1000], turn=False)
    s.turn()
    for _ in range(3):
        s.expect(ACK, seq=1, ack=1)
    s.expect_nothing()
    s.send(ACK, seq=1001, ack=1, data=data[1000:2000])
    s.expect(ACK, ack=1)
    s.send(ACK, seq=1, ack=1, data=data[:1000])
    s.expect(ACK, ack=5001)
    assert s.read() == data


def test_overlapping_pieces_are_reassembled() -> None:
    s = Script().established()
    data = pattern(4000)
    for start, end in ((3000, 3500), (1000, 1200), (900, 3400), (2000, 4000), (0, 1100)):
        s.send(ACK, seq=1 + start, ack=1, data=data[start:end])
    assert s.read() == data


@pytest.mark.parametrize("timestamps", [False, True])
def test_text_beyond_the_window_is_cut(timestamps: bool) -> None:
    s = Script(timestamps=timestamps, rcvbuf=1000, rcvbuf_max=1000).established()
    s.send(ACK, seq=1, ack=1, data=pattern(1500))
    s.expect(ACK, ack=1001, win=0)
    assert s.connection.readable == 1000
    s.send(ACK, seq=1001, ack=1, data=pattern(500, 1000))  # into the closed window: its ACK counts, its text goes
    s.expect(ACK, ack=1001, win=0)
    assert s.read() == pattern(1000)
    s.expect(ACK, ack=1001, win=1000)  # and reading tells the peer


def test_segments_outside_the_window_are_answered_and_dropped() -> None:
    s = Script().established()
    s.send(ACK, seq=1 + 200_000, ack=1, data=b"far")
    s.expect(ACK, seq=1, ack=1)
    s.send(ACK, seq=-50, ack=1, data=b"old")
    s.expect(ACK, seq=1, ack=1)
    assert s.connection.readable == 0


def test_bare_out_of_window_segments_are_answered_twice_a_second_at_most() -> None:
    """Against ACK loops between two confused ends; Linux tcp_invalid_ratelimit."""
    s = Script().established()
    for _ in range(10):
        s.send(ACK, seq=-1, ack=1)
    assert len(s.drain()) == 1
    s.wait(500)
    s.send(ACK, seq=-1, ack=1)
    s.expect(ACK, seq=1, ack=1)


def test_no_ack_bit_no_service() -> None:
    """Fifth step: "if the ACK bit is off, drop the segment and return"."""
    s = Script().established()
    s.send(PSH, seq=1, data=b"data")
    s.expect_nothing()
    assert s.connection.readable == 0


@pytest.mark.parametrize("timestamps", [False, True])
def test_ack_of_something_not_yet_sent(timestamps: bool) -> None:
    """Fifth step: "send an ACK, drop the segment, and return"."""
    s = Script(timestamps=timestamps).established()
    s.send(ACK, seq=1, ack=2, data=b"data")
    s.expect(ACK, seq=1, ack=1)
    assert s.connection.readable == 0


def test_urgent_data_is_ordinary_data() -> None:
    s = Script().established()
    s.send(ACK | URG | PSH, seq=1, ack=1, data=b"!")
    assert s.read() == b"!"


# --- RFC 5961 --------------------------------------------------------------------------------------------------------


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


# --- selective acknowledgment (RFC 2018), the receiving side ---------------------------------------------------------


def sacking(*, timestamps: bool = False) -> Script:
    s = Script(timestamps=timestamps).listen()
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460, sack_permitted=True))
    assert s.expect(SYN | ACK).header.options.sack_permitted
    s.send(ACK, seq=1, ack=1)
    accepted = s.listener.accept()
    assert accepted is not None
    s.connection = accepted
    return s


def blocks(s: Script) -> list[tuple[int, int]]:
    sent = s.drain()[-1].header
    return [((left - 0xFFFFF000) & 0xFFFFFFFF, (right - 0xFFFFF000) & 0xFFFFFFFF) for left, right in sent.options.sack]


@pytest.mark.parametrize("timestamps", [False, True])
def test_duplicate_acks_say_what_is_held(timestamps: bool) -> None:
    """Section 4: the block of the segment that caused the ACK first, then the most recent others."""
    s = sacking(timestamps=timestamps)
    for start in (1001, 3001, 5001, 7001, 9001):
        s.send(ACK, seq=start, ack=1, data=pattern(1000, start))
    newest_first = [(9001, 10001), (7001, 8001), (5001, 6001), (3001, 4001)]
    assert blocks(s) == newest_first[: 3 if timestamps else 4]
    s.send(ACK, seq=4001, ack=1, data=pattern(1000, 4001))
    assert blocks(s)[0] == (3001, 6001)
    s.send(ACK, seq=1, ack=1, data=pattern(1000, 1))
    assert blocks(s)[0] == (3001, 6001)
    s.send(ACK, seq=2001, ack=1, data=pattern(1000, 2001))
    s.send(ACK, seq=6001, ack=1, data=pattern(1000, 6001))
    s.send(ACK, seq=8001, ack=1, data=pattern(1000, 8001))
    assert blocks(s) == []
    assert s.read() == pattern(10000, 1)


def test_no_sack_unless_both_want_it() -> None:
    s = Script().established()
    s.send(ACK, seq=1001, ack=1, data=b"x")
    assert blocks(s) == []
    s = Script(sack=False).listen()
    s.send(SYN, seq=0, options=HeaderOptions(sack_permitted=True))
    assert not s.expect(SYN | ACK).header.options.sack_permitted


# --- delayed ACKs ----------------------------------------------------------------------------------------------------


def quiet(s: Script) -> Script:
    """Past the quick ACKs of a connection's beginning."""
    s.connection.receiver.quick = 0
    return s


def test_small_segments_are_acknowledged_late() -> None:
    s = quiet(Script().established())
    s.send(ACK | PSH, seq=1, ack=1, data=b"x" * 100)
    s.expect_nothing()
    s.wait(39)
    s.expect_nothing()
    s.wait(2)
    s.expect(ACK, ack=101)
    s.wait(1000)
    s.expect_nothing()


def test_every_second_full_segment_is_acknowledged_at_once() -> None:
    """RFC 9293 section 3.8.6.3."""
    s = quiet(Script().established())
    s.send(ACK, seq=1, ack=1, data=b"x" * MSS)
    s.expect_nothing()
    s.send(ACK, seq=1 + MSS, ack=1, data=b"x" * MSS)
    s.expect(ACK, ack=1 + 2 * MSS)


def test_our_data_carries_the_ack() -> None:
    s = quiet(Script().established())
    s.send(ACK | PSH, seq=1, ack=1, data=b"ping")
    s.write(b"pong")
    s.expect(ACK, seq=1, ack=5, data=b"pong")
    s.wait(100)
    s.expect_nothing()


def test_connections_begin_with_quick_acks() -> None:
    s = Script().established()
    s.send(ACK | PSH, seq=1, ack=1, data=b"x")
    s.expect(ACK, ack=2)
    s = Script().established(TcpOptions(quickack=False))
    s.send(ACK | PSH, seq=1, ack=1, data=b"x")
    s.expect_nothing()


# --- receive window --------------------------------------------------------------------------------------------------


def test_window_shrinks_by_what_is_unread_and_never_retreats() -> None:
    s = Script(rcvbuf=8000, rcvbuf_max=8000).established()
    s.send(ACK, seq=1, ack=1, data=b"x" * 3000)
    s.expect(ACK, ack=3001, win=5000)
    s.connection.options.rcvbuf = 2000
    s.connection.options_changed()
    s.turn()
    s.send(ACK, seq=3001, ack=1, data=b"x" * 1000)
    s.expect(ACK, ack=4001, win=4000)  # the promise stands


def test_silly_windows_are_not_advertised() -> None:
    """RFC 9293 section 3.8.6.2.2: no less than a segment or half the buffer."""
    s = Script(rcvbuf=8000, rcvbuf_max=8000).established()
    for start in range(0, 8000, 1000):
        s.send(ACK, seq=1 + start, ack=1, data=b"x" * 1000)
    assert s.drain()[-1].header.window == 0
    s.read(500)
    s.expect_nothing()
    s.wait(600)
    s.send(ACK, seq=8000, ack=1)  # a probe
    s.expect(ACK, ack=8001, win=0)
    s.read(3000)
    s.expect(ACK, ack=8001, win=3500)


def test_reading_a_part_is_told_when_it_doubles_what_may_be_sent() -> None:
    s = Script(rcvbuf=8000, rcvbuf_max=8000).established()
    s.send(ACK, seq=1, ack=1, data=b"x" * 6000)
    s.expect(ACK, ack=6001, win=2000)
    s.read(1900)
    s.expect_nothing()
    s.read(100)
    s.expect(ACK, ack=6001, win=4000)


def test_rounding_the_window_field_does_not_take_a_promise_back() -> None:
    """RFC 7323 section 2.4: the field may seem to retreat by less than its unit; what was promised is accepted."""
    s = Script(rcvbuf=70_000, rcvbuf_max=1 << 20).established(ws=7)
    promise = s.connection.receiver.rcv_adv
    s.send(ACK, seq=1, ack=1, data=bytes(65_000))
    s.send(ACK, seq=65_001, ack=1, data=b"x")
    left = s.connection.receiver.rcv_adv - s.connection.receiver.rcv_nxt
    assert s.connection.receiver.rcv_adv >= promise
    assert left % 16
    assert s.drain()[-1].header.window == left >> 4 or left >> 5
    s.send(ACK, seq=65_002, ack=1, data=bytes(left))
    assert s.connection.readable == 65_001 + left


@pytest.mark.parametrize(
    ("reader", "share", "grows"),
    [
        ("keeps up", 1.0, True),
        ("never reads", 1.0, False),
        ("never gets to the end", 1.0, False),
        ("keeps up", 0.3, False),  # the peer does not need more
    ],
)
def test_buffer_grows_only_if_it_is_what_limits_the_peer(reader: str, share: float, grows: bool) -> None:
    start = 64 * 1024
    s = Script(timestamps=True, rcvbuf=start, rcvbuf_max=1 << 20).established(ws=7)
    seq = 1
    for _ in range(60):
        window = int(s.connection.receiver.window * share)
        while window >= 1448:
            s.send(ACK, seq=seq, ack=1, data=bytes(1448), turn=False)
            seq += 1448
            window -= 1448
        s.turn()
        if reader == "keeps up":
            s.read()
        elif reader == "never gets to the end":
            s.read(s.connection.readable - 1)
        s.drain()
    assert s.connection.rcvbuf == (1 << 20 if grows else start)


def test_explicit_buffer_is_not_tuned() -> None:
    s = Script(timestamps=True).established(TcpOptions(rcvbuf=30_000), ws=7)
    seq = 1
    for _ in range(50):
        while s.connection.receiver.window >= 1448:
            s.send(ACK, seq=seq, ack=1, data=bytes(1448), turn=False)
            seq += 1448
        s.turn()
        s.read()
    assert s.connection.rcvbuf == 30_000


def test_unread_data_pins_little_more_than_itself() -> None:
    """2 KiB views of a 512 KiB slab each: copied together once they pin more than the buffer and a little."""
    s = Script(rcvbuf=64 * 1024, rcvbuf_max=64 * 1024).established()
    header = 20
    seq = 1
    while s.connection.receiver.window >= 2048:
        slab = bytearray(512 * 1024)
        segment = bytes(header) + bytes(2048)
        slab[: len(segment)] = segment
        s.connection.receiver.accept(memoryview(slab)[header : header + 2048], 2048, 0)
        seq += 2048
    assert s.connection.receiver.queue.charge <= 128 * 1024
    assert len(s.read()) == seq - 1


# --- sending ---------------------------------------------------------------------------------------------------------


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


def test_nagle_holds_a_second_short_segment() -> None:
    """RFC 9293 section 3.7.4."""
    s = Script().established()
    s.write(b"a")
    s.expect(ACK | PSH, seq=1, data=b"a")
    s.write(b"b")
    s.write(b"c")
    s.expect_nothing()
    s.send(ACK, seq=1, ack=2)
    s.expect(ACK | PSH, seq=2, data=b"bc")


def test_nagle_lets_full_segments_go_and_bulk_end() -> None:
    """Minshall's variant: a short tail waits only for an earlier short segment."""
    s = Script().established()
    s.write(pattern(MSS + 10))
    s.expect(ACK | PSH, seq=1, data=pattern(MSS + 10))
    s.write(pattern(MSS + 20))
    s.expect(ACK, data=pattern(MSS))
    s.expect_nothing()
    s.send(ACK, seq=1, ack=1 + MSS + 10)
    s.expect(ACK | PSH, data=pattern(20, MSS))


def test_nodelay_switches_nagle_off() -> None:
    s = Script().established(TcpOptions(nodelay=True))
    for letter in (b"a", b"b", b"c"):
        s.write(letter)
        s.expect(ACK | PSH, data=letter)


def test_setting_nodelay_sends_what_waits() -> None:
    s = Script().established()
    s.write(b"a")
    s.write(b"b")
    s.drain()
    s.connection.options.nodelay = True
    s.connection.options_changed()
    s.turn()
    s.expect(ACK | PSH, seq=2, data=b"b")


def test_cork_holds_short_segments_for_200_ms_at_most() -> None:
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


def test_more_is_a_cork_for_one_write() -> None:
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


def test_keep_alive_probes_and_gives_up() -> None:
    """RFC 9293 section 3.8.4; row TCP-26."""
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


def test_keep_alive_can_be_switched_on_later() -> None:
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
