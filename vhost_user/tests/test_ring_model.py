"""The C rings against the model device: same guest memory, same calls, equal answers and equal memory afterwards.

Two populations: rings a driver could have written (plus at most one thing wrong), and rings of arbitrary numbers. Both
over sizes 2 to 1024, any start index (so that indexes wrap at 65535), indirect tables anywhere, buffers across regions
and into holes, EVENT_IDX on and off with any event index.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from vhost_user.tests.model_device import REASONS, ModelDevice
from vhost_user.tests.ring_guest import (
    AVAIL,
    BUFFERS,
    DESC,
    F_EVENT_IDX,
    F_INDIRECT,
    FILE_SIZE,
    INDIRECT,
    NEXT,
    REGIONS,
    USED,
    WRITE,
    Guest,
    Ring,
)

PROPERTY = settings(
    deadline=None,
    derandomize=True,
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

#: Starts of buffers: inside A, B and C, at every border, in the hole, past the end, where sums overflow.
ADDRESSES = st.one_of(
    st.integers(BUFFERS, 0x1FFFF),
    st.sampled_from([0x1FFFE, 0x20000, 0x2FFFF, 0x40000, 0x4FFFD]),
    st.integers(0x20000, 0x2FFFF),
    st.integers(0x40000, 0x4FFFF),
)
BAD_ADDRESSES = st.sampled_from([0x30000, 0x3FFFF, 0x50000, 1 << 63, (1 << 64) - 1, (1 << 64) - 16])
LENGTHS = st.one_of(st.integers(0, 70), st.sampled_from([0, 1, 12, 44, 100, 1500, 4096, 9000]))
INDEXES = st.one_of(st.sampled_from([0, 1, 65530, 65535, 32767]), st.integers(0, 65535))
SIZES = st.integers(1, 10).map(lambda power: 1 << power)


@pytest.fixture(name="guest", scope="module")
def _guest() -> Iterator[Guest]:
    with Guest() as guest:
        yield guest


class Writer:
    """Puts chains into a ring the way a driver would, taking descriptors from wherever `draw` says."""

    def __init__(self, ring: Ring, draw: Callable[[Any], Any]) -> None:
        self.ring = ring
        self.draw = draw
        self.stride = draw(st.sampled_from([1, 1, 3, 5]))  # odd: visits every descriptor
        self.next = draw(st.integers(0, ring.num - 1))
        self.left = ring.num
        self.table = 0x10000

    def take(self) -> int:
        self.left -= 1
        self.next = (self.next + self.stride) % self.ring.num
        return int(self.next)

    def chain(self, buffers: list[tuple[int, int]], *, writable: bool, indirect: bool) -> int | None:
        """The head, or None if the ring has no room for it."""
        direct = [] if indirect else buffers
        if indirect and len(buffers) > 1 and self.draw(st.booleans()):
            direct, buffers = buffers[:1], buffers[1:]
        needed = len(direct) + indirect
        if needed > self.left or len(direct) + len(buffers) * indirect > self.ring.num:
            return None
        write = WRITE if writable else 0
        indexes = [self.take() for _ in range(needed)]
        for position, (gpa, length) in enumerate(direct):
            last = position == needed - 1
            self.ring.desc(
                indexes[position], gpa, length, write | (0 if last else NEXT), 0 if last else indexes[position + 1]
            )
        if indirect:
            table = self.table + self.draw(st.integers(0, 31))
            self.table = table + 16 * len(buffers)
            for position, (gpa, length) in enumerate(buffers):
                last = position == len(buffers) - 1
                self.ring.desc(position, gpa, length, write | (0 if last else NEXT), position + 1, table=table)
            ignored = self.draw(st.sampled_from([0, WRITE]))
            self.ring.desc(indexes[-1], table, 16 * len(buffers), INDIRECT | ignored)
        return indexes[0]


def spoil(ring: Ring, draw: Callable[[Any], Any]) -> None:
    """One thing a driver must not do."""
    index = draw(st.integers(0, ring.num - 1))
    what = draw(st.sampled_from(["flags", "next", "length", "address", "head", "index"]))
    event(f"spoiled: {what}")
    if what == "flags":
        ring.guest.write(DESC + 16 * index + 12, struct.pack("<H", draw(st.integers(0, 7))))
    elif what == "next":
        ring.guest.write(DESC + 16 * index + 14, struct.pack("<H", draw(st.integers(0, ring.num + 1))))
    elif what == "length":
        ring.guest.write(DESC + 16 * index + 8, struct.pack("<I", draw(st.sampled_from([0, 8, 1 << 20, 0xFFFFFFFF]))))
    elif what == "address":
        ring.guest.write(DESC + 16 * index, struct.pack("<Q", draw(BAD_ADDRESSES)))
    elif what == "head":
        ring.guest.write(AVAIL + 4 + 2 * index, struct.pack("<H", draw(st.sampled_from([ring.num, 0xFFFF, 0]))))
    else:
        ring.set_avail_idx(draw(INDEXES))


def twin(ring: Ring, base: int, used_idx: int, features: int) -> ModelDevice:
    """Start the device on `ring`, and a model on a copy of its memory."""
    ring.set_used_idx(used_idx)
    model = ModelDevice(
        bytearray(ring.guest.memory),
        REGIONS,
        num=ring.num,
        desc=DESC,
        avail=AVAIL,
        used=USED,
        base=base,
        indirect=bool(features & F_INDIRECT),
        event_idx=bool(features & F_EVENT_IDX),
    )
    ring.queue.start()
    ring.queue.enabled = True
    return model


def operate(ring: Ring, model: ModelDevice, draw: Callable[[Any], Any], *, writable: bool) -> None:
    """One call on both."""
    queue = ring.queue
    chosen = draw(st.sampled_from(["push" if writable else "pop"] * 3 + ["discard", "arm", "suppress", "room"]))
    if chosen == "pop":
        budget, most = draw(st.sampled_from([256, 256, 1, 3])), draw(st.sampled_from([1 << 19, 1, 100]))
        queue.max_chain_bytes = draw(st.sampled_from([65792, 64]))
        assert ring.pop(budget, most) == model.pop(budget, most, queue.max_chain_bytes)
    elif chosen == "discard":
        budget = draw(st.integers(0, 4))
        assert queue.discard(budget) == model.discard(budget)
    elif chosen == "arm":
        beyond = draw(st.sampled_from([0, 0, 1, 5, 70000]))
        assert queue.arm(beyond) == model.arm(beyond)
    elif chosen == "suppress":
        queue.suppress()
        model.suppress()
    elif chosen == "room":
        assert queue.room() == model.room()
    else:
        push(ring, model, draw)


def push(ring: Ring, model: ModelDevice, draw: Callable[[Any], Any]) -> None:
    mode = draw(st.sampled_from(["one", "merge", "split"]))
    sizes = draw(st.lists(st.one_of(st.integers(0, 200), st.sampled_from([12, 44, 1514, 5000, 70000])), max_size=4))
    frames = []
    for number, size in enumerate(sizes):
        data = (bytes([number + 1, *range(2, 251)]) * (size // 250 + 1))[:size]
        cuts = sorted(draw(st.lists(st.integers(0, size), max_size=3)))
        frames.append(tuple(data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)))
    whole = [b"".join(parts) for parts in frames]
    if mode == "one":
        assert ring.queue.push(frames) == model.push(whole, "one")
    elif mode == "merge":
        assert ring.queue.push(frames, header_fixup=10) == model.push(whole, "merge", at=10)
    else:
        where = {"header_size": 44, "length_at": 24, "marks_at": draw(st.sampled_from([0, 32]))}
        answer = ring.queue.push_split(frames, **where)
        assert answer == model.push_split(whole, **where)
        event(f"cut: {answer[1] > 0}")


def agree(ring: Ring, model: ModelDevice) -> None:
    assert (ring.queue.broken is None) == (model.broken is None), (ring.queue.broken, model.broken)
    if model.broken is not None:
        event(f"broken: {model.broken}")
        assert ring.queue.broken is not None
        assert REASONS[model.broken] in ring.queue.broken
        assert ring.errors() == 1
    assert ring.queue.base == model.last_avail
    assert ring.calls() == model.calls
    assert bytes(ring.guest.memory) == bytes(model.memory)


@PROPERTY
@given(data=st.data())
def test_rings_a_driver_could_have_written(guest: Guest, data: st.DataObject) -> None:
    draw = data.draw
    num = draw(SIZES)
    base = draw(INDEXES)
    features = draw(st.sampled_from([0, F_INDIRECT, F_EVENT_IDX, F_INDIRECT | F_EVENT_IDX]))
    writable = draw(st.booleans())
    with Ring(guest, num, features=features, base=base, start=False) as ring:
        guest.memory[BUFFERS:FILE_SIZE] = bytes(range(256)) * ((FILE_SIZE - BUFFERS) // 256)
        writer = Writer(ring, draw)
        chains = st.lists(st.tuples(ADDRESSES, LENGTHS), min_size=1, max_size=5)
        heads = []
        for buffers in draw(st.lists(chains, max_size=10)):
            inside = [
                (gpa, length)
                for gpa, length in buffers
                if gpa + length <= 0x30000 or 0x40000 <= gpa <= gpa + length <= 0x50000
            ]
            indirect = bool(features & F_INDIRECT) and draw(st.booleans())
            head = writer.chain(inside or [(BUFFERS, 64)], writable=writable, indirect=indirect)
            if head is not None:
                heads.append(head)
        ring.offer(*heads)
        event(f"wraps: {base + len(heads) > 65535}")
        if draw(st.integers(0, 3)) == 0:
            spoil(ring, draw)
        ring.set_used_event(draw(st.one_of(INDEXES, st.just(base), st.just((base + len(heads) - 1) % 65536))))
        ring.set_avail_flags(draw(st.sampled_from([0, 1])))
        model = twin(ring, base, draw(st.sampled_from([base, base, 0, 65535])), features)
        for _ in range(draw(st.integers(1, 4))):
            operate(ring, model, draw, writable=writable)
        agree(ring, model)


@PROPERTY
@given(data=st.data())
def test_rings_of_arbitrary_numbers(guest: Guest, data: st.DataObject) -> None:
    draw = data.draw
    num = 1 << draw(st.integers(1, 4))
    base = draw(INDEXES)
    features = draw(st.sampled_from([F_INDIRECT, F_EVENT_IDX, F_INDIRECT | F_EVENT_IDX]))
    descriptors = st.tuples(
        st.one_of(ADDRESSES, st.just(0x10000), BAD_ADDRESSES),
        st.one_of(LENGTHS, st.integers(1, 4).map(lambda count: 16 * count), st.just(0xFFFFFFFF)),
        st.sampled_from([0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7]),
        st.integers(0, num),
    )
    with Ring(guest, num, features=features, base=base, start=False) as ring:
        guest.memory[BUFFERS:FILE_SIZE] = bytes(FILE_SIZE - BUFFERS)
        for index, fields in enumerate(draw(st.lists(descriptors, min_size=num, max_size=num))):
            ring.desc(index, *fields)
        for index, fields in enumerate(draw(st.lists(descriptors, max_size=4))):
            ring.desc(index, *fields, table=0x10000)
        ring.offer(*draw(st.lists(st.integers(0, num - 1), max_size=num)))
        ring.set_used_event(draw(INDEXES))
        model = twin(ring, base, draw(INDEXES), features)
        writable = draw(st.booleans())
        for _ in range(draw(st.integers(1, 3))):
            operate(ring, model, draw, writable=writable)
        agree(ring, model)
