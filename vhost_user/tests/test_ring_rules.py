"""The ring rules of virtio-over-vhost-user, one by one (reference section 4.2, rules 1 to 16).

A broken rule stops the ring, with a reason, an err signal and one log line; nothing that came before it in order is
lost, and the process lives.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator

import pytest

from vhost_user.tests.ring_guest import (
    AVAIL,
    BUFFERS,
    DESC,
    F_EVENT_IDX,
    F_INDIRECT,
    HOLE,
    INDIRECT,
    NEXT,
    USED,
    WRITE,
    Guest,
    Ring,
)
from vhost_user.virtqueue import EMPTY_BURST, RingError

TABLE = 0xC000  # where these tests put indirect tables


@pytest.fixture(name="guest")
def _guest() -> Iterator[Guest]:
    with Guest() as guest:
        yield guest


@pytest.fixture(name="ring")
def _ring(guest: Guest) -> Iterator[Ring]:
    with Ring(guest) as ring:
        yield ring


def assert_broken(ring: Ring, reason: str, *, used: int = 0) -> None:
    assert ring.queue.broken is not None
    assert reason in ring.queue.broken
    assert not ring.queue.live
    assert ring.errors() == 1
    assert ring.used_idx == used
    assert ring.queue.pop() is EMPTY_BURST
    assert ring.queue.push([(b"x",)]) == 0
    assert ring.queue.discard() == 0
    assert not ring.queue.arm()


# -- 1: avail.idx is read once per batch; it can be ahead by the ring's size at most


def test_rule_1_avail_index_may_be_a_whole_ring_ahead(ring: Ring) -> None:
    ring.offer_buffers(*[(BUFFERS, 1)] * 8)
    assert len(ring.pop()) == 8


@pytest.mark.parametrize("index", [9, 0x7FFF, 0xFFFF])
def test_rule_1_avail_index_further_ahead_or_backwards_breaks_the_ring(ring: Ring, index: int) -> None:
    ring.set_avail_idx(index)
    assert ring.pop() == []
    assert_broken(ring, "available index")


def test_rule_1_is_applied_by_every_function_that_looks(guest: Guest) -> None:
    for look in ("pop", "discard", "room", "arm", "pending"):
        with Ring(guest) as ring:
            ring.set_avail_idx(100)
            assert not getattr(ring.queue, look)() or look == "pop"
            assert_broken(ring, "available index")
    with Ring(guest) as ring:
        ring.set_avail_idx(100)
        assert ring.queue.push([(b"x",)]) == 0
        assert_broken(ring, "available index")


def test_rule_1_entries_made_available_during_a_burst_wait_for_the_next(ring: Ring) -> None:
    ring.offer_buffers((BUFFERS, 1))
    assert len(ring.pop()) == 1
    ring.offer(0)
    assert len(ring.pop()) == 1


# -- 2: a head beyond the ring


@pytest.mark.parametrize("head", [8, 0xFFFF])
def test_rule_2_head_beyond_the_ring_breaks_it(ring: Ring, head: int) -> None:
    ring.offer(head)
    assert ring.pop() == []
    assert_broken(ring, "beyond the ring")


def test_rule_2_holds_for_push_and_discard(guest: Guest) -> None:
    with Ring(guest) as ring:
        ring.offer(8)
        assert ring.queue.push([(b"x",)]) == 0
        assert_broken(ring, "beyond the ring")
    with Ring(guest) as ring:
        ring.desc(0, BUFFERS, 1)
        ring.offer(0, 8)
        assert ring.queue.discard() == 0
        assert_broken(ring, "beyond the ring")


# -- 3: descriptors are copied once (what changes under a running burst is in the C tests, under ASan)


def test_rule_3_payload_is_private_once_popped(ring: Ring, guest: Guest) -> None:
    guest.write(BUFFERS, b"before")
    ring.offer_buffers((BUFFERS, 6))
    burst = ring.queue.pop()
    guest.write(BUFFERS, b"after!")
    assert bytes(burst.view) == b"before"


# -- 4: chains end


def test_rule_4_a_chain_may_be_as_long_as_the_ring(ring: Ring) -> None:
    for index in range(8):
        ring.desc(index, BUFFERS + index, 1, NEXT if index < 7 else 0, index + 1)
    ring.offer(0)
    assert [len(chain) for chain in ring.pop()] == [8]


def test_rule_4_a_loop_breaks_the_ring(ring: Ring) -> None:
    ring.desc(0, BUFFERS, 1, NEXT, 1)
    ring.desc(1, BUFFERS, 1, NEXT, 0)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "loop")


def test_rule_4_a_loop_of_empty_descriptors_breaks_it_too(ring: Ring) -> None:
    ring.desc(0, 0, 0, NEXT, 0)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "loop")


@pytest.mark.parametrize("following", [8, 0xFFFF])
def test_rule_4_next_beyond_the_ring_breaks_it(ring: Ring, following: int) -> None:
    ring.desc(0, BUFFERS, 1, NEXT, following)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "next is beyond its table")


def test_rule_4_next_without_its_flag_is_ignored(ring: Ring) -> None:
    ring.desc(0, BUFFERS, 1, 0, 0xFFFF)
    ring.offer(0)
    assert len(ring.pop()) == 1


# -- 5: indirect tables


def test_rule_5_an_indirect_table_is_a_chain(ring: Ring, guest: Guest) -> None:
    guest.write(BUFFERS, b"abcdef")
    ring.desc(0, BUFFERS, 2, NEXT, 2, table=TABLE)
    ring.desc(2, BUFFERS + 2, 3, NEXT, 1, table=TABLE)
    ring.desc(1, BUFFERS + 5, 1, table=TABLE)
    ring.desc(3, TABLE, 48, INDIRECT)
    ring.offer(3)
    assert ring.pop() == [b"abcdef"]
    assert ring.used(0) == (3, 0)


def test_rule_5_direct_descriptors_may_come_before_the_indirect_one(ring: Ring, guest: Guest) -> None:
    guest.write(BUFFERS, b"abcd")
    ring.desc(0, BUFFERS, 2, NEXT, 1)
    ring.desc(1, TABLE, 16, INDIRECT)
    ring.desc(0, BUFFERS + 2, 2, table=TABLE)
    ring.offer(0)
    assert ring.pop() == [b"abcd"]


def test_rule_5_the_write_flag_of_the_indirect_descriptor_means_nothing(ring: Ring) -> None:
    ring.desc(0, TABLE, 16, INDIRECT | WRITE)
    ring.desc(0, BUFFERS, 2, table=TABLE)
    ring.offer(0)
    assert len(ring.pop()) == 1


def test_rule_5_a_table_needs_no_alignment_and_may_cross_regions(ring: Ring, guest: Guest) -> None:
    guest.write(BUFFERS, b"abcdef")
    table = 0x20000 - 16 - 5  # the second descriptor straddles regions A and B
    ring.desc(0, BUFFERS, 2, NEXT, 1, table=table)
    ring.desc(1, BUFFERS + 2, 2, NEXT, 2, table=table)
    ring.desc(2, BUFFERS + 4, 2, table=table)
    ring.desc(0, table, 48, INDIRECT)
    ring.offer(0)
    assert ring.pop() == [b"abcdef"]


@pytest.mark.parametrize("table", [HOLE, HOLE - 5, 1 << 63, (1 << 64) - 8])
def test_rule_5_a_table_in_a_hole_breaks_the_ring(ring: Ring, table: int) -> None:
    ring.desc(0, table, 16, INDIRECT)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "outside guest memory")


def test_rule_5_indirect_without_negotiation_breaks_the_ring(guest: Guest) -> None:
    with Ring(guest, features=F_EVENT_IDX) as ring:
        ring.desc(0, BUFFERS, 16, INDIRECT)
        ring.offer(0)
        assert ring.pop() == []
        assert_broken(ring, "without having been negotiated")


def test_rule_5_indirect_with_next_breaks_the_ring(ring: Ring) -> None:
    ring.desc(0, TABLE, 16, INDIRECT | NEXT, 1)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "has a next one")


def test_rule_5_nested_indirect_breaks_the_ring(ring: Ring) -> None:
    ring.desc(0, TABLE, 16, INDIRECT)
    ring.desc(0, TABLE, 16, INDIRECT, table=TABLE)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "contains an indirect")


@pytest.mark.parametrize("length", [0, 8, 17, 9 * 16, 0xFFFFFFF0])
def test_rule_5_a_table_length_that_cannot_be_breaks_the_ring(ring: Ring, length: int) -> None:
    ring.desc(0, TABLE, length, INDIRECT)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "multiple of 16")


def test_rule_5_next_is_bound_by_the_tables_own_length(ring: Ring) -> None:
    ring.desc(0, TABLE, 32, INDIRECT)
    ring.desc(0, BUFFERS, 1, NEXT, 2, table=TABLE)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "next is beyond its table")


def test_rule_5_a_loop_inside_a_table_breaks_the_ring(ring: Ring) -> None:
    ring.desc(0, TABLE, 32, INDIRECT)
    ring.desc(0, BUFFERS, 1, NEXT, 1, table=TABLE)
    ring.desc(1, BUFFERS, 1, NEXT, 0, table=TABLE)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "loop")


def test_rule_5_direct_and_indirect_descriptors_together_are_bound_by_the_rings_size(ring: Ring) -> None:
    ring.desc(0, BUFFERS, 1, NEXT, 1)
    ring.desc(1, TABLE, 8 * 16, INDIRECT)
    for index in range(8):
        ring.desc(index, BUFFERS, 1, NEXT if index < 7 else 0, index + 1, table=TABLE)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "longer than the ring")


# -- 6: directions


def test_rule_6_a_writable_part_in_a_queue_to_the_device_breaks_it(ring: Ring) -> None:
    ring.desc(0, BUFFERS, 1, NEXT, 1)
    ring.desc(1, BUFFERS, 1, WRITE)
    ring.offer(0)
    assert ring.pop() == []
    assert_broken(ring, "device-writable buffer in a queue to the device")


def test_rule_6_a_readable_part_in_a_queue_from_the_device_breaks_it(ring: Ring) -> None:
    ring.desc(0, BUFFERS, 1, NEXT, 1)
    ring.desc(1, BUFFERS, 1, WRITE)
    ring.offer(0)
    assert ring.queue.push([(b"x",)]) == 0
    assert_broken(ring, "device-readable buffer in a queue from the device")


def test_rule_6_readable_after_writable_breaks_the_ring(ring: Ring) -> None:
    ring.desc(0, BUFFERS, 1, WRITE | NEXT, 1)
    ring.desc(1, BUFFERS, 1)
    ring.offer(0)
    assert ring.queue.push([(b"x",)]) == 0
    assert_broken(ring, "follows a device-writable one")


# -- 7: addresses


def test_rule_7_a_buffer_may_span_adjacent_regions(ring: Ring, guest: Guest) -> None:
    guest.write(0x20000 - 3, b"abcdef")
    ring.offer_buffers((0x20000 - 3, 6))
    assert ring.pop() == [b"abcdef"]


def test_rule_7_push_spans_adjacent_regions_too(ring: Ring, guest: Guest) -> None:
    ring.offer_buffers((0x20000 - 3, 6), flags=WRITE)
    assert ring.queue.push([(b"uvwxyz",)]) == 1
    assert guest.read(0x20000 - 3, 6) == b"uvwxyz"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (HOLE, 1),
        (HOLE - 1, 2),
        (0x50000, 1),
        (0x50000 - 1, 2),
        (1 << 63, 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 2),
        (BUFFERS, 0xFFFFFFFF),
    ],
)
def test_rule_7_a_buffer_that_touches_no_memory_breaks_the_ring(guest: Guest, gpa: int, length: int) -> None:
    for writable in (0, WRITE):
        with Ring(guest) as ring:
            ring.offer_buffers((gpa, length), flags=writable)
            if writable:
                assert ring.queue.push([(b"x",)]) == 0
            else:
                assert ring.pop() == []
            assert_broken(ring, "outside guest memory")


def test_rule_7_an_empty_buffer_touches_nothing_whatever_its_address(ring: Ring, guest: Guest) -> None:
    """CVE-2020-10725: a zero-length descriptor with a bad address."""
    guest.write(BUFFERS, b"ab")
    ring.desc(0, 1 << 63, 0, NEXT, 1)
    ring.desc(1, BUFFERS, 2)
    ring.desc(2, HOLE, 0)
    ring.offer(0, 2)
    assert ring.pop() == [b"ab", b""]


# -- 8: a cap on pieces


def test_rule_8_a_chain_split_into_more_pieces_than_the_cap_breaks_the_ring(guest: Guest) -> None:
    """The cap is 2*num + 64; 64 regions of 16 bytes in a row let every descriptor be 64 pieces."""
    import os
    import threading

    from vhost_user.memory import MemoryTable, Region
    from vhost_user.tests.ring_guest import memory_file
    from vhost_user.virtqueue import Virtqueue

    fd = memory_file(0x10000)
    slices = [(Region(0x100000 + 16 * i, 16, 0x200000 + 16 * i, 16 * (63 - i)), fd) for i in range(63)]
    table = MemoryTable.build([(Region(0, 0x10000, 0x7000000, 0), fd), *slices])
    queue = Virtqueue(0, 8, gate=threading.Lock())
    queue.set_memory(table)
    queue.set_num(2)
    queue.set_addr(0, 0x7001000, 0x7003000, 0x7002000, 0)
    queue.start()
    queue.enabled = True
    whole = 63 * 16
    os.pwrite(fd, struct.pack("<QIHH", 0x100000, whole, 0, 0), 0x1000)  # 63 pieces
    os.pwrite(fd, struct.pack("<HHH", 0, 1, 0), 0x2000)
    assert queue.pop().count == 1
    os.pwrite(fd, struct.pack("<QIHHQIHH", 0x100000, whole, NEXT, 1, 0x100000, whole, 0, 0), 0x1000)  # 126 pieces
    os.pwrite(fd, struct.pack("<HHHH", 0, 2, 0, 0), 0x2000)
    assert queue.pop().count == 0
    assert queue.broken is not None
    assert "too many pieces" in queue.broken
    queue.close()
    table.close()
    os.close(fd)


# -- 9: total length


def test_rule_9_a_chain_longer_than_the_devices_limit_is_dropped_and_counted(ring: Ring) -> None:
    ring.queue.max_chain_bytes = 100
    ring.offer_buffers((BUFFERS, 100), (BUFFERS, 101), (BUFFERS, 7))
    assert [len(chain) for chain in ring.pop()] == [100, 7]
    assert ring.queue.broken is None
    assert ring.queue.counters.dropped_long == 1
    assert [ring.used(index) for index in range(3)] == [(0, 0), (1, 0), (2, 0)]


def test_rule_9_a_burst_of_dropped_chains_only_still_returns_them(ring: Ring) -> None:
    ring.queue.max_chain_bytes = 10
    ring.offer_buffers((BUFFERS, 11), (BUFFERS, 11))
    assert ring.pop() == []
    assert ring.used_idx == 2
    assert ring.calls() == 1


def test_rule_9_lengths_are_summed_without_wrapping(guest: Guest) -> None:
    """Two descriptors whose 32-bit lengths would wrap to a small total."""
    with Ring(guest) as ring:
        ring.desc(0, 0, 0x20000, NEXT, 1)
        ring.desc(1, 0, 0xFFFFFFFF - 0x1FFFF, 0)
        ring.offer(0)
        assert ring.pop() == []
        assert_broken(ring, "4 GiB")


# -- 10: used entries


def test_rule_10_used_len_is_what_was_written(ring: Ring) -> None:
    ring.offer_buffers((BUFFERS, 100), (BUFFERS + 100, 100), flags=WRITE)
    assert ring.queue.push([(b"abc",), (b"",)]) == 2
    assert ring.used(0) == (0, 3)
    assert ring.used(1) == (1, 0)


def test_rule_10_used_len_is_zero_for_readable_chains(ring: Ring) -> None:
    ring.offer_buffers((BUFFERS, 100))
    ring.pop()
    assert ring.used(0) == (0, 0)


def test_rule_10_the_used_index_is_never_read_back(ring: Ring) -> None:
    ring.offer_buffers((BUFFERS, 1))
    ring.pop()
    ring.set_used_idx(0x1234)  # the guest scribbles over what is ours
    ring.offer(0)
    ring.pop()
    assert ring.used_idx == 2
    assert ring.used(1) == (0, 0)


def test_rule_10_the_used_index_is_taken_over_at_the_start(guest: Guest) -> None:
    with Ring(guest, start=False, base=7) as ring:
        ring.set_used_idx(7)
        ring.queue.start()
        ring.queue.enabled = True
        ring.offer_buffers((BUFFERS, 1), first=3)
        ring.pop()
        assert ring.used_idx == 8
        assert ring.used(7) == (3, 0)


# -- 11: nothing kept in guest memory is trusted later


def test_rule_11_used_entries_name_the_heads_that_were_taken(ring: Ring) -> None:
    """The used entry is written from the private head, also when descriptors and avail ring have changed since."""
    ring.offer_buffers(*[(BUFFERS, 1)] * 3)
    assert len(ring.pop(budget=1)) == 1
    ring.guest.write(DESC, bytes(16))
    ring.guest.write(AVAIL + 4, struct.pack("<H", 5))
    assert len(ring.pop()) == 2
    assert [ring.used(index)[0] for index in range(3)] == [0, 1, 2]


# -- 12: overlaps corrupt the guest's data only


def test_rule_12_buffers_may_overlap_each_other(ring: Ring, guest: Guest) -> None:
    ring.offer_buffers((BUFFERS, 4), (BUFFERS + 2, 4), flags=WRITE)
    assert ring.queue.push([(b"aaaa",), (b"bbbb",)]) == 2
    assert guest.read(BUFFERS, 6) == b"aabbbb"


def test_rule_12_buffers_may_overlap_the_rings(ring: Ring) -> None:
    """A frame written over descriptor table, avail and used ring: whatever follows, it is the guest's own trouble."""
    ring.offer_buffers((DESC, 0x6000), flags=WRITE)
    assert ring.queue.push([(b"\xff" * 0x6000,)]) == 1
    assert ring.used(0) == (0, 0x6000)
    assert ring.queue.pop().count == 0
    assert_broken(ring, "available index", used=1)


def test_rule_12_a_readable_buffer_may_be_the_ring_itself(ring: Ring) -> None:
    ring.offer_buffers((DESC, 16))
    assert ring.pop() == [struct.pack("<QIHH", DESC, 16, 0, 0)]


# -- 13: event indexes are only compared


@pytest.mark.parametrize("event", [0, 1, 7, 8, 0x7FFF, 0x8000, 0xFFFF])
def test_rule_13_any_used_event_only_decides_about_the_call(ring: Ring, event: int) -> None:
    ring.set_used_event(event)
    ring.offer_buffers(*[(BUFFERS, 1)] * 8)
    assert len(ring.pop()) == 8
    assert ring.calls() == (1 if event < 8 else 0)


# -- 14: budgets


def test_rule_14_a_burst_takes_no_more_chains_than_its_budget(ring: Ring) -> None:
    ring.offer_buffers(*[(BUFFERS, 10)] * 8)
    assert len(ring.pop(budget=3)) == 3
    assert ring.used_idx == 3
    assert len(ring.pop(budget=0)) == 0
    assert len(ring.pop()) == 5


def test_rule_14_a_burst_takes_no_more_bytes_than_asked_but_always_one_chain(ring: Ring) -> None:
    ring.offer_buffers(*[(BUFFERS, 100)] * 8)
    assert len(ring.pop(max_bytes=250)) == 2
    assert len(ring.pop(max_bytes=1)) == 1
    assert len(ring.pop(max_bytes=500)) == 5


def test_rule_14_discard_has_a_budget_too(ring: Ring) -> None:
    ring.offer_buffers(*[(BUFFERS, 100)] * 8)
    assert ring.queue.discard(3) == 3
    assert ring.used_idx == 3
    assert ring.queue.discard() == 5


def test_rule_14_crumbs_end_a_burst_early(guest: Guest) -> None:
    """1024 chains that all are the same 1024 empty descriptors: a million steps, taken 65536 at a time."""
    with Ring(guest, num=1024) as ring:
        for index in range(1024):
            ring.desc(index, 0, 0, NEXT if index < 1023 else 0, index + 1)
        ring.offer(*[0] * 1024)
        assert len(ring.pop(budget=1024)) == 64
        assert ring.queue.arm()


# -- 15: packed rings are not offered


def test_rule_15_packed_rings_are_refused(guest: Guest) -> None:
    with Ring(guest, start=False) as ring, pytest.raises(RingError, match="packed"):
        ring.queue.set_features(1 << 34)


# -- 16: after the stop, nothing is touched


def test_rule_16_after_stop_guest_memory_is_not_touched(ring: Ring, guest: Guest) -> None:
    ring.offer_buffers((BUFFERS, 1))
    assert ring.queue.stop() == 0
    before = bytes(guest.memory)
    assert ring.queue.pop() is EMPTY_BURST
    assert ring.queue.push([(b"x",)]) == 0
    assert ring.queue.discard() == 0
    assert ring.queue.room() == 0
    ring.queue.suppress()
    assert not ring.queue.arm()
    assert bytes(guest.memory) == before
    assert ring.queue.kick_fd is None
    assert ring.calls() == 0


def test_rule_16_memory_may_be_unmapped_after_stop(guest: Guest) -> None:
    with Guest() as other, Ring(other) as ring:
        ring.queue.stop()
        ring.queue.set_memory(None)
        assert ring.queue.pop() is EMPTY_BURST


# -- what breaking means


def test_a_broken_ring_logs_one_line_and_the_chains_before_it_are_delivered(
    ring: Ring, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    guest.write(BUFFERS, b"good")
    ring.offer_buffers((BUFFERS, 4), (HOLE, 4), (BUFFERS, 4))
    with caplog.at_level(logging.WARNING):
        assert ring.pop() == [b"good"]
        assert ring.queue.broken is None
        assert ring.pop() == []
        assert ring.pop() == []
    assert len(caplog.records) == 1
    assert "ring 0 stopped" in caplog.text
    assert_broken(ring, f"({HOLE:#x})", used=1)


def test_frames_before_a_broken_chain_are_delivered(ring: Ring, guest: Guest) -> None:
    ring.offer_buffers((BUFFERS, 4), (HOLE, 4), flags=WRITE)
    assert ring.queue.push([(b"good",), (b"lost",)]) == 1
    assert guest.read(BUFFERS, 4) == b"good"
    assert ring.queue.push([(b"lost",)]) == 0
    assert_broken(ring, "outside guest memory", used=1)


def test_a_broken_ring_can_be_started_again(ring: Ring) -> None:
    ring.offer(99)
    ring.pop()
    assert ring.queue.broken is not None
    base = ring.queue.stop()
    assert base == 0
    ring.index = 0
    ring.set_avail_idx(0)
    ring.queue.set_base(base)
    ring.queue.start()
    ring.offer_buffers((BUFFERS, 4))
    assert len(ring.pop()) == 1


def test_without_event_index_the_used_ring_still_has_its_place(guest: Guest) -> None:
    with Ring(guest, features=F_INDIRECT) as ring:
        ring.offer_buffers((BUFFERS, 1))
        ring.pop()
        assert guest.read(USED, 4) == struct.pack("<HH", 0, 1)
