"""Receiving in ESTABLISHED: RFC 9293 section 3.10.7.4, reassembly, ACK policy, the window we offer."""

from __future__ import annotations

import pytest

from stack.tcp import TcpOptions
from stack.tests.tcp.script import Script, pattern
from stack.wire.tcp import ACK, PSH, SYN, HeaderOptions

MSS = 1460


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


@pytest.mark.parametrize("timestamps", [True, False])
def test_header_prediction_takes_plain_data_and_acks(timestamps: bool) -> None:
    s = Script(timestamps=timestamps).established()
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


def test_reading_all_there_was_acknowledges_a_small_segment() -> None:
    """As Linux's tcp_cleanup_rbuf: the peer may wait for it, by Nagle's rule, to send the next small one."""
    s = quiet(Script().established())
    s.connection.receiver.quick = 0  # used up, and nothing has gone the other way
    s.send(ACK | PSH, seq=1, ack=1, data=b"x" * 100)
    s.expect_nothing()
    assert s.read(60) == b"x" * 60
    s.expect_nothing()
    assert s.read(60) == b"x" * 40
    s.expect(ACK, ack=101)
    s.wait(1000)
    s.expect_nothing()


@pytest.mark.parametrize(("size", "at_once"), [(900, True), (1447, True), (1448, False), (1460, False)])
def test_reading_acknowledges_segments_of_one_size_unless_that_is_the_mss(size: int, at_once: bool) -> None:
    """A writer of equal pieces shorter than the MSS waits for an ACK after each; one of full segments sends two."""
    s = quiet(Script().established())
    for number in range(3):
        s.connection.receiver.quick = 0
        s.send(ACK | PSH, seq=1 + number * size, ack=1, data=b"x" * size)
        assert s.read() == b"x" * size
        if at_once:
            s.expect(ACK, ack=1 + (number + 1) * size)
        else:
            s.expect_nothing()
            s.wait(50)
            s.drain()


def test_reading_a_question_leaves_the_acknowledgment_to_the_answer() -> None:
    s = quiet(Script().established())
    s.send(ACK | PSH, seq=1, ack=1, data=b"ping")
    s.write(b"pong")
    s.expect(ACK, seq=1, ack=5, data=b"pong")
    s.send(ACK | PSH, seq=5, ack=5, data=b"ping")
    assert s.read(100) == b"pingping"
    s.expect_nothing()
    s.write(b"pong")
    s.expect(ACK, seq=5, ack=9, data=b"pong")


def test_an_answer_soon_after_an_acknowledged_question_makes_it_a_conversation() -> None:
    """As Linux's tcp_event_data_sent: from then on reading sends nothing, the answer carries it."""
    s = quiet(Script().established())
    s.connection.receiver.quick = 0
    s.send(ACK | PSH, seq=1, ack=1, data=b"ping")
    assert s.read() == b"ping"
    s.expect(ACK, ack=5)
    s.write(b"pong")
    s.expect(ACK, seq=1, ack=5, data=b"pong")
    s.send(ACK | PSH, seq=5, ack=5, data=b"ping")
    assert s.read() == b"ping"
    s.expect_nothing()
    s.write(b"pong")
    s.expect(ACK, seq=5, ack=9, data=b"pong")


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
