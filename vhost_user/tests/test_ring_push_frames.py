"""Frames into writable chains: one chain each, merged over several, or cut with a header each."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from vhost_user.tests.ring_guest import BUFFERS, F_INDIRECT, NEXT, WRITE, Guest, Ring

BIG = 0x20000  # region B: 64 KiB


@pytest.fixture(name="guest")
def _guest() -> Iterator[Guest]:
    with Guest() as guest:
        yield guest


@pytest.fixture(name="ring")
def _ring(guest: Guest) -> Iterator[Ring]:
    with Ring(guest, features=F_INDIRECT) as ring:
        yield ring


def offer(ring: Ring, *sizes: int, first: int = 0) -> None:
    """Writable single-descriptor chains one behind the other in region B."""
    gpa = BIG
    buffers = []
    for size in sizes:
        buffers.append((gpa, size))
        gpa += size
    ring.offer_buffers(*buffers, flags=WRITE, first=first)


# one chain per frame


def test_a_frame_is_the_concatenation_of_its_parts(ring: Ring, guest: Guest) -> None:
    offer(ring, 100)
    assert ring.queue.push([(b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3])]) == 1
    assert guest.read(BIG, 7) == b"abcdef\0"
    assert ring.used(0) == (0, 6)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [4095, 4096, 60000])
def test_long_parts_go_by_address(ring: Ring, guest: Guest, kind: type, size: int) -> None:
    payload = bytes(range(256)) * 256
    offer(ring, 65000)
    assert ring.queue.push([(b"head", kind(payload[:size]), b"tail")]) == 1
    assert guest.read(BIG, size + 8) == b"head" + payload[:size] + b"tail"


def test_frames_stay_in_order_and_apart(ring: Ring, guest: Guest) -> None:
    offer(ring, 10, 10, 5000)
    assert ring.queue.push([(b"one",), (b"", b"two", b""), (b"3" * 4500,)]) == 3
    assert guest.read(BIG, 10) == b"one" + bytes(7)
    assert guest.read(BIG + 10, 10) == b"two" + bytes(7)
    assert guest.read(BIG + 20, 4501) == b"3" * 4500 + b"\0"
    assert [ring.used(i) for i in range(3)] == [(0, 3), (1, 3), (2, 4500)]


def test_without_merging_a_frame_too_long_for_its_chain_is_dropped_and_the_chain_kept(ring: Ring) -> None:
    offer(ring, 10)
    assert ring.queue.push([(b"x" * 11,), (b"y" * 10,)]) == 2
    assert ring.used_idx == 1
    assert ring.used(0) == (0, 10)
    assert ring.queue.counters.dropped_no_fit == 1
    assert ring.queue.broken is None


def test_what_finds_no_chain_stays_the_callers(ring: Ring) -> None:
    offer(ring, 10, 10)
    assert ring.queue.push([(b"1",), (b"2",), (b"3",)]) == 2
    assert ring.queue.counters.shortages == 1
    assert ring.queue.push([(b"3",)]) == 0
    assert ring.used_idx == 2


def test_an_empty_burst_is_nothing(ring: Ring) -> None:
    offer(ring, 10)
    assert ring.queue.push([]) == 0
    assert ring.used_idx == 0


def test_a_burst_is_published_and_called_for_once(ring: Ring) -> None:
    offer(ring, *[10] * 8)
    assert ring.queue.push([(b"x",)] * 8) == 8
    assert ring.calls() == 1
    assert ring.queue.counters.bursts == 1
    assert ring.queue.counters.chains == 8


# mergeable buffers (virtio 1.3 section 5.1.6.4)


def test_merge_counts_buffers_in_the_first_header(ring: Ring, guest: Guest) -> None:
    offer(ring, 100, 100, 100)
    frame = bytes(12) + bytes(range(200))
    assert ring.queue.push([(frame,)], header_fixup=10) == 1
    assert guest.read(BIG, 212) == frame[:10] + b"\x03\x00" + frame[12:]
    assert [ring.used(i) for i in range(3)] == [(0, 100), (1, 100), (2, 12)]


def test_merge_writes_one_for_a_frame_that_fits(ring: Ring, guest: Guest) -> None:
    offer(ring, 100)
    assert ring.queue.push([(bytes(12), b"payload")], header_fixup=10) == 1
    assert guest.read(BIG + 10, 2) == b"\x01\x00"


def test_merge_finds_its_place_in_a_header_cut_into_single_bytes(ring: Ring, guest: Guest) -> None:
    for index in range(7):
        ring.desc(index, BUFFERS + 0x100 * index, 2, WRITE | NEXT, index + 1)
    ring.desc(7, BUFFERS + 0x700, 100, WRITE)
    ring.offer(0)
    assert ring.queue.push([(b"abcdefghijkl", b"mnop")], header_fixup=10) == 1
    assert [guest.read(BUFFERS + 0x100 * index, 2) for index in range(7)] == [
        b"ab", b"cd", b"ef", b"gh", b"ij", b"\1\0", b"mn",
    ]  # fmt: skip
    assert guest.read(BUFFERS + 0x700, 2) == b"op"


def test_merge_leaves_a_frame_whole_when_chains_run_out(ring: Ring, guest: Guest) -> None:
    offer(ring, 100, 100)
    before = guest.read(BIG + 100, 100)
    assert ring.queue.push([(bytes(12),), (bytes(12) + b"x" * 100,)], header_fixup=10) == 1
    assert ring.used_idx == 1
    assert guest.read(BIG + 100, 100) == before
    ring.offer_buffers((BIG + 200, 100), flags=WRITE, first=4)
    assert ring.queue.push([(bytes(12) + b"x" * 100,)], header_fixup=10) == 1
    assert [ring.used(i) for i in (1, 2)] == [(1, 100), (4, 12)]


def test_merge_drops_a_frame_the_whole_ring_cannot_hold(ring: Ring) -> None:
    offer(ring, *[12] * 8)
    assert ring.queue.push([(b"x" * 97,), (b"y" * 96,)], header_fixup=10) == 2
    assert ring.queue.counters.dropped_no_fit == 1
    assert ring.used_idx == 8


def test_merge_drops_a_frame_without_a_header(ring: Ring) -> None:
    offer(ring, 100)
    assert ring.queue.push([(b"x" * 11,)], header_fixup=10) == 1
    assert ring.used_idx == 0
    assert ring.queue.counters.dropped_no_fit == 1


def test_merge_breaks_a_ring_whose_buffer_holds_no_header(ring: Ring) -> None:
    offer(ring, 11)
    assert ring.queue.push([(b"x" * 20,)], header_fixup=10) == 0
    assert ring.queue.broken is not None
    assert "too small" in ring.queue.broken


# packets that may be cut (vsock)


def header(number: int, length: int) -> bytes:
    return struct.pack("<24sI16s", bytes([number]) * 24, length, bytes([number]) * 16)


def split(ring: Ring, *frames: tuple[bytes, ...], marks_at: int = 0) -> tuple[int, int]:
    return ring.queue.push_split(frames, header_size=44, length_at=24, marks_at=marks_at)


def test_split_repeats_the_header_with_the_length_of_each_piece(ring: Ring, guest: Guest) -> None:
    offer(ring, 100, 144, 100)
    payload = bytes(range(180))
    assert split(ring, (header(7, 180), payload)) == (1, 0)
    assert guest.read(BIG, 100) == header(7, 56) + payload[:56]
    assert guest.read(BIG + 100, 144) == header(7, 100) + payload[56:156]
    assert guest.read(BIG + 244, 68) == header(7, 24) + payload[156:]
    assert [ring.used(i) for i in range(3)] == [(0, 100), (1, 144), (2, 68)]


def test_split_of_a_packet_without_payload_takes_one_chain(ring: Ring, guest: Guest) -> None:
    offer(ring, 44, 100)
    assert split(ring, (header(1, 99),)) == (1, 0)
    assert guest.read(BIG, 44) == header(1, 0)
    assert ring.used_idx == 1


def test_split_takes_header_and_payload_from_any_cut(ring: Ring, guest: Guest) -> None:
    offer(ring, 60, 60)
    whole = header(3, 30) + bytes(range(30))
    parts = (*(whole[i : i + 1] for i in range(len(whole))), b"")
    assert split(ring, parts) == (1, 0)
    assert guest.read(BIG, 60) == header(3, 16) + bytes(range(16))
    assert guest.read(BIG + 60, 58) == header(3, 14) + bytes(range(16, 30))


def test_split_uses_what_there_is_and_says_how_far_it_came(ring: Ring, guest: Guest) -> None:
    """So no packet is too large for a ring, and none is ever left out."""
    offer(ring, 60, 60, 60)
    payload = bytes(range(40))
    assert split(ring, (header(1, 16), bytes(16)), (header(2, 40), payload), (header(3, 0),)) == (1, 32)
    assert ring.used_idx == 3
    assert guest.read(BIG + 120, 60) == header(2, 16) + payload[16:32]
    assert ring.queue.counters.dropped_no_fit == 0
    assert split(ring, (header(2, 8), payload[32:])) == (0, 0)
    offer(ring, 60, first=3)
    assert split(ring, (header(2, 8), payload[32:])) == (1, 0)
    assert guest.read(BIG, 52) == header(2, 8) + payload[32:]


def test_split_leaves_marks_to_the_piece_that_ends_the_packet(ring: Ring, guest: Guest) -> None:
    """virtio 1.3 section 5.10.6.6.1: a mark in the middle would cut a message in two."""
    offer(ring, 60, 60)
    marked = header(0, 40)[:32] + b"\3\0\0\0" + bytes(8)
    plain = header(0, 16)
    assert split(ring, (marked, bytes(40)), marks_at=32) == (0, 32)
    assert guest.read(BIG, 44) == guest.read(BIG + 60, 44) == plain
    offer(ring, 60, first=2)
    assert split(ring, (marked, bytes(8)), marks_at=32) == (1, 0)
    assert guest.read(BIG + 32, 4) == b"\3\0\0\0"


def test_split_keeps_what_came_before_a_broken_chain(ring: Ring) -> None:
    offer(ring, 60, 44)
    assert split(ring, (header(1, 20), bytes(20))) == (0, 16)
    assert ring.used_idx == 1
    assert ring.queue.broken is None
    assert split(ring, (header(1, 4), bytes(4))) == (0, 0)
    assert ring.queue.broken is not None


@pytest.mark.parametrize("size", [43, 44])
def test_split_breaks_a_ring_whose_buffer_takes_no_payload(ring: Ring, size: int) -> None:
    offer(ring, size)
    assert split(ring, (header(1, 1), b"x")) == (0, 0)
    assert ring.queue.broken is not None
    assert "too small" in ring.queue.broken


def test_split_drops_a_packet_shorter_than_its_header(ring: Ring) -> None:
    offer(ring, 100)
    assert split(ring, (b"x" * 43,)) == (1, 0)
    assert ring.used_idx == 0


# wrong calls


def test_a_part_that_is_not_bytes_is_refused_before_anything_happens(ring: Ring) -> None:
    offer(ring, 100)
    with pytest.raises(ValueError, match="one-dimensional"):
        ring.queue.push([(memoryview(b"abcd").cast("I"),)])
    assert ring.used_idx == 0


@pytest.mark.parametrize(("size", "at"), [(65, 24), (44, 41), (44, 41 << 16), (3, 0)])
def test_a_header_that_cannot_be_patched_is_refused(ring: Ring, size: int, at: int) -> None:
    offer(ring, 100)
    with pytest.raises(ValueError, match="header does not fit"):
        ring.queue.push_split([(b"x" * 100,)], header_size=size, length_at=at)


def test_popped_memory_outlives_everything_else(guest: Guest) -> None:
    with Ring(guest) as ring:
        guest.write(BUFFERS, b"kept")
        ring.offer_buffers((BUFFERS, 4))
        view = ring.queue.pop().view[1:3]
    assert bytes(view) == b"ep"
