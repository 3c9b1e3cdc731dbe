"""Setting rings up and taking them down: what SET_VRING_* may say and when (reference sections 1.5, 4.1, 6.2)."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from vhost_user.memory import MemoryTable, Region
from vhost_user.tests.ring_guest import (
    AVAIL,
    BUFFERS,
    DESC,
    F_EVENT_IDX,
    F_INDIRECT,
    REGION_A,
    REGION_C,
    USED,
    Guest,
    Ring,
    memory_file,
)
from vhost_user.virtqueue import RingError, Virtqueue


@pytest.fixture(name="guest")
def _guest() -> Iterator[Guest]:
    with Guest() as guest:
        yield guest


@pytest.fixture(name="ring")
def _ring(guest: Guest) -> Iterator[Ring]:
    with Ring(guest) as ring:
        yield ring


@pytest.fixture(name="idle")
def _idle(guest: Guest) -> Iterator[Ring]:
    with Ring(guest, start=False) as ring:
        yield ring


# size


@pytest.mark.parametrize("num", [0, 3, 6, 100, 2048, -1, 1 << 32])
def test_a_size_that_is_no_power_of_two_up_to_the_limit_is_refused(idle: Ring, num: int) -> None:
    with pytest.raises(RingError, match="power of two"):
        idle.queue.set_num(num)
    assert idle.queue.num == 8


@pytest.mark.parametrize("num", [1, 2, 1024])
def test_any_power_of_two_up_to_the_limit_is_taken(idle: Ring, num: int) -> None:
    idle.queue.set_num(num)
    assert idle.queue.num == num


def test_the_size_of_a_running_ring_cannot_change(ring: Ring) -> None:
    """Firecracker CVE-2026-5747: a size changed after activation reads out of bounds."""
    with pytest.raises(RingError, match="running"):
        ring.queue.set_num(16)


@pytest.mark.parametrize("max_size", [0, 3, 65536])
def test_a_limit_that_is_no_ring_size_is_a_programming_error(max_size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Virtqueue(0, max_size, gate=threading.Lock())


def test_a_ring_of_one(guest: Guest) -> None:
    with Ring(guest, num=1) as ring:
        for _ in range(3):
            ring.offer_buffers((BUFFERS, 3))
            assert len(ring.pop()) == 1
        assert ring.used_idx == 3


# addresses


@pytest.mark.parametrize(
    ("desc", "used", "avail"),
    [(8, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 1)],
)
def test_misaligned_addresses_are_refused(idle: Ring, desc: int, used: int, avail: int) -> None:
    uva = idle.uva
    with pytest.raises(RingError, match="misaligned"):
        idle.queue.set_addr(0, uva(DESC) + desc, uva(USED) + used, uva(AVAIL) + avail, 0)


@pytest.mark.parametrize("flags", [2, 1 << 31])
def test_unknown_address_flags_are_refused(idle: Ring, flags: int) -> None:
    with pytest.raises(RingError, match="flags"):
        idle.queue.set_addr(flags, idle.uva(DESC), idle.uva(USED), idle.uva(AVAIL), 0)


#: desc 16n, avail 6+2n, used 6+8n bytes (n = 8) must end inside the region.
@pytest.mark.parametrize(
    ("desc", "used", "avail", "fits"),
    [
        (REGION_A.size - 128, USED, AVAIL, True),
        (REGION_A.size - 112, USED, AVAIL, False),
        (DESC, REGION_A.size - 72, AVAIL, True),
        (DESC, REGION_A.size - 68, AVAIL, False),
        (DESC, USED, REGION_A.size - 22, True),
        (DESC, USED, REGION_A.size - 20, False),
        (REGION_A.size, USED, AVAIL, False),
        (-REGION_A.uva, USED, AVAIL, False),
        ((1 << 64) - 16 - REGION_A.uva, USED, AVAIL, False),
    ],
)
def test_each_part_of_a_ring_lies_inside_one_region(idle: Ring, desc: int, used: int, avail: int, fits: bool) -> None:
    uva = REGION_A.uva
    if fits:
        idle.queue.set_addr(0, uva + desc, uva + used, uva + avail, 0)
    else:
        with pytest.raises(RingError, match="inside one memory region"):
            idle.queue.set_addr(0, uva + desc, uva + used, uva + avail, 0)


def test_a_region_mapped_at_an_odd_offset_cannot_hold_a_ring() -> None:
    fd = memory_file(0x10000)
    table = MemoryTable.build([(Region(0, 0x8000, 0x10000, 8), fd)])
    queue = Virtqueue(0, gate=threading.Lock())
    queue.set_memory(table)
    queue.set_num(8)
    with pytest.raises(RingError, match="misaligned"):
        queue.set_addr(0, 0x10000, 0x12000, 0x11000, 0)
    queue.close()
    table.close()
    os.close(fd)


def test_addresses_may_come_before_memory_and_are_checked_at_the_start(guest: Guest, idle: Ring) -> None:
    idle.queue.set_memory(None)
    idle.queue.set_addr(0, 0x10, 0x20, 0x30, 0)
    idle.queue.set_memory(guest.table)
    with pytest.raises(RingError, match="inside one memory region"):
        idle.queue.start()
    assert not idle.queue.started


def test_a_running_ring_can_be_moved(ring: Ring, guest: Guest) -> None:
    """QEMU sends SET_VRING_ADDR to running rings when dirty logging starts; another place works too."""
    ring.offer_buffers((BUFFERS, 3))
    uva = REGION_C.uva
    guest.memory[REGION_C.mmap_offset : REGION_C.mmap_offset + 0x8000] = guest.memory[0:0x8000]
    ring.queue.set_addr(0, uva + DESC, uva + USED, uva + AVAIL, 0)
    assert len(ring.pop()) == 1
    assert ring.used_idx == 0
    assert guest.read(REGION_C.gpa + USED + 2, 2) == b"\1\0"


def test_a_running_ring_keeps_its_place_when_the_new_one_is_refused(ring: Ring) -> None:
    with pytest.raises(RingError):
        ring.queue.set_addr(0, 0x10, 0x20, 0x30, 0)
    ring.offer_buffers((BUFFERS, 3))
    assert len(ring.pop()) == 1


# base, features


def test_base_is_where_taking_begins(guest: Guest) -> None:
    with Ring(guest, base=65535) as ring:
        ring.offer_buffers((BUFFERS, 1), (BUFFERS, 2))
        assert [len(chain) for chain in ring.pop()] == [1, 2]
        assert ring.queue.base == 1
        assert ring.queue.stop() == 1


@pytest.mark.parametrize("base", [-1, 65536])
def test_a_base_that_is_no_index_is_refused(idle: Ring, base: int) -> None:
    with pytest.raises(RingError, match="16 bits"):
        idle.queue.set_base(base)


def test_the_base_of_a_running_ring_cannot_change(ring: Ring) -> None:
    with pytest.raises(RingError, match="running"):
        ring.queue.set_base(1)


@pytest.mark.parametrize("changed", [F_INDIRECT, F_EVENT_IDX])
def test_the_format_of_a_running_ring_cannot_change(ring: Ring, changed: int) -> None:
    with pytest.raises(RingError, match="running"):
        ring.queue.set_features((F_INDIRECT | F_EVENT_IDX) ^ changed)


def test_dirty_logging_may_go_on_and_off_under_a_running_ring(ring: Ring) -> None:
    ring.queue.set_features(F_INDIRECT | F_EVENT_IDX | 1 << 26)
    ring.queue.set_features(F_INDIRECT | F_EVENT_IDX)


# enabled and started are independent


def test_enable_is_remembered_before_everything_else(guest: Guest) -> None:
    """QEMU enables net rings before features, memory and kick; vsock rings after the kick."""
    with Ring(guest, start=False) as ring:
        ring.queue.enabled = True
        assert not ring.queue.live
        ring.queue.start()
        assert ring.queue.live


def test_a_started_ring_waits_for_enable(guest: Guest) -> None:
    with Ring(guest, start=False) as ring:
        ring.queue.start()
        ring.offer_buffers((BUFFERS, 3))
        assert ring.pop() == []
        ring.queue.enabled = True
        assert len(ring.pop()) == 1


def test_start_needs_size_and_addresses(guest: Guest) -> None:
    queue = Virtqueue(0, gate=threading.Lock())
    with pytest.raises(RingError, match="size is known"):
        queue.start()
    queue.set_num(8)
    with pytest.raises(RingError, match="address is known"):
        queue.start()
    queue.close()


def test_start_is_idempotent(ring: Ring) -> None:
    ring.offer_buffers((BUFFERS, 1))
    ring.pop()
    ring.queue.start()
    assert ring.queue.base == 1
    assert ring.calls() == 1  # the burst's


def test_a_lying_avail_index_breaks_the_ring_at_the_start(guest: Guest) -> None:
    with Ring(guest, start=False) as ring:
        ring.set_avail_idx(1000)
        ring.queue.start()
        assert ring.queue.broken is not None
        assert ring.errors() == 1


# memory


def test_memory_may_come_after_the_start(guest: Guest) -> None:
    with Ring(guest, start=False, base=3) as ring:
        ring.queue.set_memory(None)
        ring.queue.enabled = True
        ring.queue.start()
        assert not ring.queue.live
        assert not ring.queue.arm()
        ring.offer_buffers((BUFFERS, 1))
        ring.queue.set_memory(guest.table)
        assert ring.avail_event == 3
        assert len(ring.pop()) == 1
        assert ring.used_idx == 4


def test_a_stopped_ring_is_not_begun_by_memory(guest: Guest) -> None:
    with Ring(guest, start=False) as ring:
        ring.queue.set_memory(None)
        ring.queue.start()
        ring.queue.stop()
        before = bytes(guest.memory)
        ring.queue.set_memory(guest.table)
        ring.queue.set_addr(0, ring.uva(DESC), ring.uva(USED), ring.uva(AVAIL), 0)
        assert bytes(guest.memory) == before


def test_memory_is_swapped_under_a_running_ring(ring: Ring, guest: Guest) -> None:
    ring.offer_buffers((BUFFERS, 1), (BUFFERS, 2))
    assert len(ring.pop(budget=1)) == 1
    larger = guest.table.with_added(Region(1 << 32, 0x1000, 1 << 40, 0), guest.fd)
    ring.queue.set_memory(larger)
    larger.close()
    assert len(ring.pop()) == 1
    assert ring.used_idx == 2


def test_a_ring_whose_memory_went_away_breaks(ring: Ring, guest: Guest) -> None:
    """REM_MEM_REG of a region a ring lies in stops that ring."""
    smaller = guest.table.with_removed(REGION_A)
    ring.queue.set_memory(smaller)
    assert ring.queue.broken is not None
    assert "after the memory changed" in ring.queue.broken
    assert ring.errors() == 1
    assert smaller is not None
    smaller.close()


def test_without_memory_a_running_ring_waits(ring: Ring, guest: Guest) -> None:
    ring.offer_buffers((BUFFERS, 1))
    ring.queue.set_memory(None)
    assert ring.pop() == []
    ring.queue.set_memory(guest.table)
    assert len(ring.pop()) == 1


# descriptors


@pytest.mark.parametrize("name", ["kick", "call", "err"])
def test_only_an_eventfd_can_notify_and_another_stays_the_callers(ring: Ring, name: str) -> None:
    read_end, write_end = os.pipe()
    setter: Callable[[int], None] = getattr(ring.queue, f"set_{name}")
    with pytest.raises(RingError, match=f"{name} descriptor is not an eventfd"):
        setter(write_end)
    os.close(write_end)
    os.close(read_end)
    with pytest.raises(RingError, match="ENOENT"):
        setter(write_end)


def test_descriptors_are_owned_and_closed(guest: Guest) -> None:
    gc.collect()  # what others left goes now, not in between
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Ring(guest) as ring:
            for setter in (ring.queue.set_kick, ring.queue.set_call, ring.queue.set_err):
                setter(os.eventfd(0))
                setter(os.eventfd(0))
            ring.queue.stop()
            assert ring.queue.kick_fd is None
    assert len(os.listdir("/proc/self/fd")) <= before  # what others left may have gone meanwhile


def test_reset_forgets_everything_and_the_queue_can_be_set_up_again(ring: Ring, guest: Guest) -> None:
    ring.offer_buffers((BUFFERS, 1))
    ring.pop()
    ring.queue.reset()
    assert (ring.queue.num, ring.queue.base, ring.queue.enabled, ring.queue.started) == (0, 0, False, False)
    with pytest.raises(RingError):
        ring.queue.start()
    assert ring.queue.counters.chains == 1  # counters are of the queue's whole life
    ring.queue.close()
    ring.queue.close()
