"""Credit to the letter (row VS-12): against a model of a guest in 32-bit arithmetic, across the wrap, under lies."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.scheduler import Scheduler
from stack.testing.vsock import GUEST_CID, U32, ModelGuest, ModelStream, ScriptedGuest
from stack.vsock import VsockConnection, VsockEngine
from stack.vsock.credit import Credit
from stack.vsock.queue import COALESCE, PIECE, ByteQueue
from stack.wire.vsock import MAX_PAYLOAD, Op

PORT = 700
#: Contents by position, so that a lost, repeated or moved byte shows.
PATTERN = random.Random(7).randbytes(1 << 17)


def slice_of_pattern(start: int, length: int) -> bytes:
    start %= len(PATTERN)
    doubled = PATTERN[start:] + PATTERN
    while len(doubled) < length:
        doubled += PATTERN
    return doubled[:length]


class Pair:
    """A host connection and the model guest's half of it, `offset` bytes into both directions."""

    def __init__(self, offset: int, host_buffer: int, guest_buffer: int) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler)
        self.transport = ScriptedGuest()
        self.port = self.engine.add_guest(self.transport)
        self.guest = ModelGuest(self.transport, buffer=guest_buffer)
        self.host: VsockConnection = self.engine.connect(GUEST_CID, PORT, buffer=host_buffer)
        self.turn()
        self.stream: ModelStream = self.guest.streams[self.host.local[1], PORT]
        credit, stream = self.host.credit, self.stream
        # As if this much had been exchanged already.
        credit.sent = credit.peer_consumed = credit.received = credit.consumed = credit.reported = offset
        credit.edge += offset
        stream.tx_cnt = stream.fwd_cnt = stream.peer_fwd_cnt = offset & U32

    def turn(self) -> None:
        while self.port.service(64) or self.run_deferred() or self.guest.run():
            pass

    def run_deferred(self) -> int:
        return self.scheduler.run_deferred()


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["host writes", "guest consumes", "guest writes", "host reads", "guest resizes", "host resizes"]
        ),
        st.integers(1, 70_000),
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(
    st.sampled_from([0, (1 << 32) - 1, (1 << 32) - 100_000, (1 << 32) - 1_000_000, 1 << 33, (1 << 31) - 5]),
    st.integers(1, 200_000),
    st.integers(1, 200_000),
    steps,
    st.booleans(),
)
def test_both_directions_obey_credit_across_the_wrap(
    offset: int, host_buffer: int, guest_buffer: int, plan: list[tuple[str, int]], tell: bool
) -> None:
    """The model objects to any byte beyond what it granted; the bytes arrive complete and in order."""
    pair = Pair(offset, host_buffer, guest_buffer)
    host, stream = pair.host, pair.stream
    written = read = guest_written = 0
    received = bytearray()
    for what, amount in plan:
        if what == "host writes":
            expected = max(0, min(stream_free(stream, host), amount))
            taken = host.write(slice_of_pattern(written, amount))
            assert taken == expected, "no less than the letter allows either"
            written += taken
        elif what == "guest consumes":
            stream.consume(amount, tell=tell)
        elif what == "guest writes":
            guest_written += stream.write(slice_of_pattern(guest_written, amount))
        elif what == "host reads":
            data = host.read(amount)
            received += data
            read += len(data)
        elif what == "guest resizes" and amount >= stream.unread:
            # A kernel keeps what it granted: it never takes back what may be under way.
            stream.buf_alloc = max(amount, stream.unread + (host.credit.sent - host.credit.peer_consumed))
            stream.send(Op.CREDIT_UPDATE)
        elif what == "host resizes":
            host.set_buffer(amount)
        pair.turn()
        assert pair.guest.broken == []
        assert host.connected, "a correct peer is never reset"
    while data := host.read(100_000):
        received += data
    assert bytes(stream.received) == slice_of_pattern(0, written)
    assert bytes(received) == slice_of_pattern(0, guest_written)


def stream_free(stream: ModelStream, host: VsockConnection) -> int:
    """What the guest has told it can take, less what was sent since, limited by our own buffer size as in Linux."""
    outstanding = (host.credit.sent - host.credit.peer_consumed) & U32
    return min(host.credit.peer_buffer, host.credit.buffer) - outstanding


@given(st.integers(0, 2**34), st.integers(0, U32), st.integers(0, U32), st.integers(0, 2**20))
def test_free_is_never_negative_nor_beyond_the_buffers(
    sent: int, buf_alloc: int, fwd_cnt: int, outstanding: int
) -> None:
    """Whatever numbers a peer sends (CVE-2026-23069)."""
    credit = Credit(1 << 18)
    credit.sent = sent
    credit.peer_consumed = max(0, sent - outstanding)
    believed = credit.hear(buf_alloc, fwd_cnt)
    assert 0 <= credit.free <= min(buf_alloc if believed else U32, 1 << 18)
    assert credit.peer_consumed <= credit.sent
    if believed and (fwd_cnt - credit.peer_consumed) & U32 == 0:
        assert credit.peer_consumed & U32 == fwd_cnt


@given(st.integers(0, 2**33), st.integers(0, 1000), st.integers(1, 2**30))
def test_consuming_ahead_of_what_was_sent_is_always_seen(sent: int, outstanding: int, lie: int) -> None:
    credit = Credit(1 << 18)
    credit.sent = sent + outstanding
    credit.peer_consumed = sent
    assert not credit.hear(1 << 18, (sent + outstanding + lie) & U32)
    assert credit.peer_consumed == sent


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(range(9))), st.integers(0, U32), st.integers(0, U32), st.integers(0, 70000)),
        max_size=40,
    )
)
def test_a_lying_peer_cannot_raise_or_exceed_memory(packets: list[tuple[int, int, int, int]]) -> None:
    """Any packets in any order: no exception, never more buffered than was granted, nothing left behind."""
    pair = Pair(0, 1 << 16, 1 << 16)
    listener = pair.engine.listen(1)
    for op, alloc, forwarded, length in packets:
        for host_port in (pair.host.local[1], 1):
            pair.transport.feed(
                op, host_port, PORT, flags=alloc & 7, alloc=alloc, forwarded=forwarded, payload=bytes(length)
            )
        if pair.host.can_write:
            pair.host.write(bytes(1000))
        while pair.port.service(64) or pair.run_deferred():
            pass
        assert pair.host.readable <= 1 << 16
        pair.transport.take()
    while (connection := listener.accept()) is not None:
        connection.close(0)
    pair.host.close(0)
    assert pair.engine.reserved == 0
    assert not pair.port.connections


@pytest.mark.parametrize("direction", ["to the guest", "to the host"])
def test_more_than_four_gibibytes_pass(direction: str) -> None:
    """The 32-bit counters really wrap; every packet's place is checked."""
    total = (1 << 32) + (1 << 22)
    pair = Pair(0, 1 << 18, 1 << 18)
    host, stream, guest = pair.host, pair.stream, pair.guest
    piece = slice_of_pattern(0, MAX_PAYLOAD)
    moved = 0
    if direction == "to the guest":
        while moved < total:
            while host.write(piece):
                pass
            pair.port.service(64)
            pair.run_deferred()
            for packet in pair.transport.take():
                if packet[5] == Op.CREDIT_REQUEST:
                    continue
                assert packet[9] == piece
                stream.unread += len(packet[9])
                assert stream.unread <= stream.buf_alloc
                moved += len(packet[9])
            stream.consume(stream.unread)
        assert host.credit.sent == moved
        assert stream.fwd_cnt == moved & U32
    else:
        while moved < total:
            while stream.write(piece):
                pass
            pair.port.service(64)
            while data := host.read(MAX_PAYLOAD):
                assert data == piece
                moved += len(data)
            pair.run_deferred()
            guest.run()
        assert stream.tx_cnt == moved & U32
        assert stream.peer_fwd_cnt > 0
    assert guest.broken == []
    assert host.connected


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 3 * COALESCE)),
            st.tuples(st.sampled_from(["read", "read_into", "take", "peek", "discard"]), st.integers(0, 4 * COALESCE)),
        ),
        max_size=60,
    )
)
def test_the_queue_is_a_fifo_of_bytes(plan: list[tuple[str, int]]) -> None:
    """Against one bytearray; views handed out stay unchanged."""
    queue, model = ByteQueue(), bytearray()
    position = 0
    kept: list[tuple[bytes, bytes | bytearray | memoryview]] = []
    for what, amount in plan:
        if what == "append":
            data = slice_of_pattern(position, amount)
            position += amount
            queue.append(data)
            model += data
        elif what == "read":
            assert queue.read(amount) == model[:amount]
            del model[:amount]
        elif what == "read_into":
            target = bytearray(amount)
            count = queue.read_into(memoryview(target))
            assert target[:count] == model[:amount]
            assert count == min(amount, len(model))
            del model[:count]
        elif what == "take":
            piece = queue.take(amount)
            assert bytes(piece) == model[: len(piece)]
            assert len(piece) <= amount
            assert piece or not amount or not model
            kept.append((bytes(piece), piece))
            del model[: len(piece)]
        elif what == "peek":
            assert queue.peek(amount, amount // 2) == model[amount // 2 : amount // 2 + amount]
        else:
            assert queue.discard(amount) == min(amount, len(model))
            del model[:amount]
        assert len(queue) == len(model)
    assert all(bytes(piece) == before for before, piece in kept)
    queue.clear()
    assert queue.read(10) == b""


def test_small_pieces_are_kept_together() -> None:
    queue = ByteQueue()
    for _ in range(3 * PIECE):
        queue.append(b"x")
    assert len(queue._pieces) == 3
    large = bytes(COALESCE)
    queue.append(large)
    queue.discard(3 * PIECE)
    assert queue.read(COALESCE) is large, "large ones are not copied"


def test_a_peer_with_a_smaller_buffer_is_told_before_its_own_limit_stops_it() -> None:
    """Linux 6.x: min(peer_buf_alloc, buf_alloc) bytes under way. Told by our size alone, both would wait for ever."""
    credit = Credit(1 << 20)
    credit.hear(256 << 10, 0)
    credit.tell()
    assert credit.receive(256 << 10)
    assert not credit.consume(64 << 10, 1)
    assert credit.consume(192 << 10, 1)
