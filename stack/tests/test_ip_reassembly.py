"""Reassembly against a model that keeps one byte array per datagram; overlap, time and memory rules."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.errors import Drops
from stack.ip.reassembly import MEMORY_LIMIT, OVERHEAD, Key, Partial, Reassembler
from stack.scheduler import NS_PER_S, Scheduler

KEY: Key = (b"\x0a\0\0\1", b"\x0a\0\0\2", 17, 1)
TIMEOUT = 30 * NS_PER_S
MAX = 65515


class Rig(Reassembler):
    def __init__(self, memory_limit: int = MEMORY_LIMIT) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.drops = Drops()
        self.expired: list[Partial] = []
        super().__init__(self.scheduler, self.drops, self.expired.append, timeout=TIMEOUT, memory_limit=memory_limit)

    def put(self, offset: int, data: bytes, *, more: bool, key: Key = KEY) -> bytes | None:
        whole = self.add(key, offset, more, memoryview(data), ("context", offset), MAX)
        if whole is None:
            return None
        assert whole[1] == ("context", 0), "the context is the first fragment's"
        return whole[0]

    def wait(self, ns: int) -> None:
        end = self.scheduler.now + ns
        while (due := self.scheduler.next_deadline()) is not None and due <= end:
            self.scheduler.now = due
            self.scheduler.run_timers()
        self.scheduler.now = end


@given(st.data(), st.binary(min_size=9, max_size=300))
def test_any_cut_in_any_order_with_duplicates(data: st.DataObject, payload: bytes) -> None:
    units = (len(payload) - 1) // 8
    edges = sorted(data.draw(st.sets(st.integers(1, units), max_size=12)))
    bounds = [0, *(edge * 8 for edge in edges), len(payload)]
    pieces = list(itertools.pairwise(bounds))
    pieces += data.draw(st.lists(st.sampled_from(pieces), max_size=5))
    pieces = data.draw(st.permutations(pieces))
    rig = Rig()
    missing = set(pieces)
    for start, end in pieces:
        whole = rig.put(start, payload[start:end], more=end < len(payload))
        missing.discard((start, end))
        if not missing:
            assert whole == payload
            assert (rig.memory, len(rig), rig.drops.total) == (0, 0, 0)
            assert rig.scheduler.next_deadline() is None
            return
        assert whole is None


@pytest.mark.parametrize(
    ("offset", "length", "more"),
    [(8, 8, True), (0, 24, True), (8, 24, True), (24, 16, True), (24, 16, False), (16, 24, True), (0, 64, False)],
)
def test_overlap_ends_the_whole_datagram(offset: int, length: int, more: bool) -> None:
    """RFC 5722 3; RFC 8200 4.5."""
    rig = Rig()
    rig.put(0, bytes(16), more=True)
    rig.put(24, bytes(8), more=True)
    assert rig.put(offset, bytes(length), more=more) is None
    assert (len(rig), rig.memory, rig.drops["fragment-overlap"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("offset", "length", "more"),
    [(0, 0, True), (0, 0, False), (8, 7, True), (65512, 8, False), (65528, 8, True)],
)
def test_impossible_fragments_end_nothing_but_themselves(offset: int, length: int, more: bool) -> None:
    rig = Rig()
    rig.put(0, bytes(8), more=True)
    assert rig.put(offset, bytes(length), more=more) is None
    assert rig.drops["fragment-bad"] == 1
    assert rig.put(8, b"end", more=False) == bytes(8) + b"end"


@pytest.mark.parametrize(("offset", "length", "more"), [(32, 8, True), (40, 8, False), (8, 8, False)])
def test_two_different_ends_contradict_each_other(offset: int, length: int, more: bool) -> None:
    rig = Rig()
    rig.put(24, bytes(8), more=False)
    assert rig.put(offset, bytes(length), more=more) is None
    assert (len(rig), rig.memory) == (0, 0)


def test_an_end_before_what_is_there() -> None:
    rig = Rig()
    rig.put(24, bytes(8), more=True)
    assert rig.put(0, bytes(8), more=False) is None
    assert (len(rig), rig.drops["fragment-bad"]) == (0, 1)


def test_the_deadline_is_the_first_fragments_and_never_extended() -> None:
    rig = Rig()
    for second in range(30):
        rig.put(second * 8, bytes(8), more=True)
        rig.wait(NS_PER_S)
    assert (len(rig), rig.memory, len(rig.expired), rig.drops["fragment-timeout"]) == (0, 0, 1, 1)
    assert rig.scheduler.next_deadline() is None


def test_datagrams_with_other_keys_do_not_mix() -> None:
    rig = Rig()
    other = (*KEY[:3], 2)
    rig.put(0, b"12345678", more=True)
    rig.put(0, b"abcdefgh", more=True, key=other)
    assert rig.put(8, b"9", more=False, key=other) == b"abcdefgh9"
    assert rig.put(8, b"9", more=False) == b"123456789"


def test_memory_is_bounded_and_the_oldest_give_way() -> None:
    limit = 100_000
    rig = Rig(memory_limit=limit)
    for ident in range(200):
        rig.put(0, bytes(1480), more=True, key=(*KEY[:3], ident))
        assert rig.memory <= limit
    kept = limit // (1480 + 2 * OVERHEAD)
    assert (len(rig), rig.drops["fragment-limit"]) == (kept, 200 - kept)
    assert rig.put(1480, b"x", more=False, key=(*KEY[:3], 199)) == bytes(1480) + b"x", "the newest is still there"


def test_tiny_fragments_are_charged_for_what_they_cost() -> None:
    rig = Rig(memory_limit=100_000)
    for unit in range(8000):
        rig.put(unit * 16 % 65504, bytes(8), more=True)
        assert rig.memory <= 100_000


def test_pieces_do_not_refer_to_the_frames_they_came_in() -> None:
    rig = Rig()
    frame = bytearray(b"12345678")
    rig.add(KEY, 0, True, memoryview(frame), None, MAX)
    frame[:] = b"poisoned"
    whole = rig.add(KEY, 8, False, memoryview(b"9"), None, MAX)
    assert whole is not None
    assert whole[0] == b"123456789"


def test_one_source_loses_its_own_before_anybody_elses() -> None:
    rig = Rig(memory_limit=1 << 20)
    rig.source_limit = 100_000
    friend: Key = (b"\x0a\0\0\x09", b"\x0a\0\0\2", 17, 1)
    rig.put(0, bytes(800), more=True, key=friend)
    for number in range(1000):
        rig.put(0, bytes(1400), more=True, key=(KEY[0], KEY[1], 17, number))
        assert rig.memory <= 100_000 + 800 + 2 * OVERHEAD
    assert rig.put(800, b"end", more=False, key=friend) == bytes(800) + b"end"
    assert rig.drops["fragment-limit"] > 900


def test_after_an_overlap_nothing_of_the_datagram_comes_back() -> None:
    """RFC 5722 4: those constituent fragments not yet received, too; until its time is up."""
    rig = Rig()
    rig._bury = True  # as IPv6 makes it
    rig.put(0, bytes(16), more=True)
    rig.put(8, bytes(16), more=True)
    assert rig.drops["fragment-overlap"] == 1
    assert rig.put(0, bytes(16), more=True) is None
    assert rig.put(16, b"end", more=False) is None
    assert rig.drops["fragment-overlap"] == 3
    assert rig.memory == OVERHEAD
    rig.wait(TIMEOUT)
    assert (rig.memory, len(rig)) == (0, 0)
    assert rig.put(0, b"whole", more=False) == b"whole"
