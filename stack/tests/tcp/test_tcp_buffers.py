"""Send queue, receive queue and reassembly against the simplest model there is: one string of bytes."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from stack.link.device import Buffer
from stack.tcp.buffers import ARENA_LAST, KEEP_ABOVE, ReceiveQueue, SendQueue
from stack.tcp.reassembly import Reassembly

BASE = (1 << 32) - 5000  # an endless number whose low 32 bits wrap soon


def numbered(start: int, length: int) -> bytes:
    return bytes((start + at) * 13 & 0xFF ^ (start + at) >> 8 & 0xFF for at in range(length))


SEND_STEPS = st.one_of(
    st.tuples(
        st.just("write"),
        st.sampled_from([1, 7, 100, KEEP_ABOVE, KEEP_ABOVE + 1, 10_000]),
        st.sampled_from(["bytes", "bytearray", "view", "view of bytes"]),
    ),
    st.tuples(st.just("slice"), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.just("release"), st.floats(0, 1), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(script=st.lists(SEND_STEPS, max_size=60))
def test_send_queue_is_a_string(script: list[tuple[str, float, object]]) -> None:
    queue = SendQueue(BASE)
    start = end = BASE
    handed_out: list[tuple[int, list[Buffer]]] = []
    for what, one, other in script:
        if what == "write":
            data = numbered(end, int(one))
            form = {"bytes": data, "bytearray": bytearray(data), "view": memoryview(bytearray(data))}.get(
                str(other), memoryview(data)
            )
            taken = queue.append(form, 9_000)  # type: ignore[arg-type] # a Buffer
            assert taken == min(len(data), 9_000)
            if type(form) is bytearray:
                form[:] = bytes(len(form))  # the queue must not notice
            end += taken
        elif what == "slice" and end > start:
            at = start + int(one * (end - start - 1))
            length = 1 + int(float(other) * (end - at - 1))  # type: ignore[arg-type] # a float
            parts = queue.slice(at, length)
            assert b"".join(parts) == numbered(at, length)
            handed_out.append((at, list(parts)))
        elif what == "release":
            start += int(one * (end - start))
            queue.release(start)
        assert (queue.start, queue.end, len(queue)) == (start, end, end - start)
    for at, parts in handed_out:  # what a device may still read has not changed
        whole = b"".join(parts)
        assert whole == numbered(at, len(whole))


def test_small_writes_share_an_arena() -> None:
    queue = SendQueue(0)
    for number in range(5000):
        queue.append(numbered(number * 20, 20), 1 << 20)
    parts = queue.slice(0, 100_000)
    assert b"".join(parts) == numbered(0, 100_000)
    assert len(parts) < 10
    assert max(len(part) for part in parts) <= ARENA_LAST


RECEIVE_STEPS = st.one_of(
    st.tuples(st.just("append"), st.sampled_from([1, 50, 2047, 2048, 5000])),
    st.tuples(st.sampled_from(["read", "read_into", "discard", "peek"]), st.integers(0, 9000)),
    st.tuples(st.sampled_from(["limit", "collapse"]), st.integers(0, 30_000)),
)


@settings(max_examples=300, deadline=None)
@given(script=st.lists(RECEIVE_STEPS, max_size=60))
def test_receive_queue_is_a_string(script: list[tuple[str, int]]) -> None:
    queue = ReceiveQueue()
    model = b""
    at = 0
    slab = memoryview(bytearray(64))
    for what, size in script:
        if what == "append":
            slab = memoryview(bytearray(b"\xaa" * 32 + numbered(at, size) + b"\xaa" * 32))
            queue.append(slab[32 : 32 + size])
            model += numbered(at, size)
            at += size
        elif what == "read":
            assert queue.read(size) == model[:size]
            model = model[size:]
        elif what == "read_into":
            target = bytearray(size)
            count = queue.read_into(memoryview(target))
            assert target[:count] == model[:size]
            assert count == len(model[:size])
            model = model[size:]
        elif what == "discard":
            assert queue.discard(size) == len(model[:size])
            model = model[size:]
        elif what == "peek":
            assert queue.peek(size, size // 2) == model[size // 2 : size // 2 + size]
        elif what == "limit":
            queue.limit(size)
            assert queue.charge <= max(size, len(model) + 256)
        elif model:
            queue.collapse()
        assert queue.length == len(model)


def test_small_payloads_pin_nothing() -> None:
    """40 bytes never keep 64 KiB alive: they are copied out of their slab."""
    queue = ReceiveQueue()
    slab = bytearray(65536)
    queue.append(memoryview(slab)[100:140])
    queue.append(memoryview(slab)[200:2200])
    assert queue.charge < 4096
    slab.clear()  # raises BufferError while anything refers to it
    assert queue.read(5000) == bytes(2040)


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), max_size=40),
    take_every=st.integers(1, 10),
)
def test_reassembly_is_a_set_of_byte_places(pieces: list[tuple[int, int]], take_every: int) -> None:
    reassembly = Reassembly()
    have: set[int] = set()
    nxt = 0
    for number, (start, length) in enumerate(pieces):
        start += nxt
        places = set(range(start, start + length))
        added = reassembly.insert(BASE + start, memoryview(numbered(start, length)))
        assert added == bool(places - have)
        have |= places
        assert reassembly.length == len(have)
        blocks = reassembly.blocks()
        assert sum(right - left for left, right in blocks) == len(have)
        assert all(one[1] < other[0] for one, other in pairwise(blocks))
        if number % take_every == 0:
            nxt += 20
            got = b"".join(reassembly.take(BASE + nxt))
            end = nxt
            while end in have:
                end += 1
            assert got == numbered(nxt, end - nxt)
            nxt = end
            have = {place for place in have if place >= nxt}
            assert reassembly.length == len(have)


def test_reassembly_memory_is_bounded_even_for_crumbs() -> None:
    """A thousand one-byte islands cost objects, not bytes: above the limit the farthest go."""
    reassembly = Reassembly()
    for number in range(1000):
        reassembly.insert(2 * number, memoryview(b"x"))
        reassembly.limit(20_000)
    assert reassembly.length < 100
    assert reassembly.blocks()[0] == (0, 1)


def test_reassembly_lets_slabs_go() -> None:
    reassembly = Reassembly()
    for number in range(10):
        slab = memoryview(bytearray(500_000))
        reassembly.insert(number * 5000, slab[:3000])
        assert reassembly.limit(1_000_000) == 0
    assert reassembly.length == 30_000


def test_reassembly_of_a_window_behind_one_gap_loses_nothing() -> None:
    """Segments that follow each other cost what they hold: a peer whose reported data is dropped waits for RTOs."""
    reassembly = Reassembly()
    window, segment = 4 << 20, 1448
    limit = window + 64 * 1024
    data = bytes(segment)
    count = window // segment
    order = list(range(1, count))
    random.Random(5).shuffle(order)
    for number in order:
        reassembly.insert(number * segment, memoryview(data))
        assert reassembly.limit(limit) == 0
    assert reassembly.length == (count - 1) * segment
    assert len(reassembly.blocks()) == 1
    assert sum(map(len, reassembly.take(segment))) == (count - 1) * segment
