"""Who wakes whom: event indexes and flags both ways, kick and call descriptors (virtio 1.3 sections 2.7.7, 2.7.10)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vhost_user.tests.ring_guest import BUFFERS, F_EVENT_IDX, WRITE, Guest, Ring


@pytest.fixture(name="guest")
def _guest() -> Iterator[Guest]:
    with Guest() as guest:
        yield guest


@pytest.fixture(name="event_ring")
def _event_ring(guest: Guest) -> Iterator[Ring]:
    with Ring(guest, features=F_EVENT_IDX) as ring:
        yield ring


@pytest.fixture(name="flag_ring")
def _flag_ring(guest: Guest) -> Iterator[Ring]:
    with Ring(guest, features=0) as ring:
        yield ring


# device to driver


def test_one_call_per_burst(flag_ring: Ring) -> None:
    flag_ring.offer_buffers(*[(BUFFERS, 1)] * 8)
    flag_ring.pop()
    assert flag_ring.calls() == 1
    flag_ring.pop()
    assert flag_ring.calls() == 0


def test_no_interrupt_flag_spares_the_call(flag_ring: Ring) -> None:
    flag_ring.set_avail_flags(1)
    flag_ring.offer_buffers((BUFFERS, 1))
    flag_ring.pop()
    assert flag_ring.calls() == 0
    assert flag_ring.queue.counters.calls_spared == 1


def test_with_event_index_the_flag_means_nothing(event_ring: Ring) -> None:
    event_ring.set_avail_flags(1)
    event_ring.offer_buffers((BUFFERS, 1))
    event_ring.pop()
    assert event_ring.calls() == 1


@pytest.mark.parametrize("base", [0, 65533, 65535])
@pytest.mark.parametrize("ahead", range(-2, 6))
def test_call_exactly_when_the_used_index_passes_used_event(guest: Guest, base: int, ahead: int) -> None:
    with Ring(guest, features=F_EVENT_IDX, base=base) as ring:
        ring.set_used_event((base + ahead) % 65536)
        ring.offer_buffers(*[(BUFFERS, 1)] * 4)
        ring.pop()
        assert ring.calls() == (1 if 0 <= ahead < 4 else 0)


def test_push_and_discard_call_too(flag_ring: Ring) -> None:
    flag_ring.offer_buffers((BUFFERS, 4), (BUFFERS, 4), flags=WRITE)
    assert flag_ring.queue.push([(b"x",)]) == 1
    assert flag_ring.calls() == 1
    assert flag_ring.queue.discard() == 1
    assert flag_ring.calls() == 1


def test_a_full_call_counter_blocks_nobody(flag_ring: Ring) -> None:
    """A front-end may leave the counter at its maximum, and the descriptor blocking: we must not hang on it."""
    os.set_blocking(flag_ring.call, True)
    flag_ring.queue.set_call(os.dup(flag_ring.call))
    os.eventfd_read(flag_ring.call)
    os.eventfd_write(flag_ring.call, 2**64 - 2)
    flag_ring.offer_buffers((BUFFERS, 1))
    assert flag_ring.pop() == [b"\0"]


# driver to device


def test_start_rewrites_a_stale_avail_event(guest: Guest) -> None:
    """Firecracker #5969: a stale avail_event after a restart mutes the guest for ever."""
    with Ring(guest, features=F_EVENT_IDX, base=500) as ring:
        assert ring.avail_event == 500


def test_start_calls_once_for_a_call_that_may_have_been_lost(guest: Guest) -> None:
    with Ring(guest, start=False) as ring:
        assert ring.calls() == 0
        ring.queue.start()
        assert ring.calls() == 1


def test_a_new_call_descriptor_on_a_running_ring_is_signalled(event_ring: Ring) -> None:
    """QEMU sends SET_VRING_CALL after the kick that starts the ring, and for vsock once more."""
    event_ring.queue.set_call(os.dup(event_ring.call))
    assert event_ring.calls() == 1


def test_arm_asks_for_the_next_chain(event_ring: Ring) -> None:
    event_ring.offer_buffers(*[(BUFFERS, 1)] * 3)
    event_ring.pop()
    assert not event_ring.queue.arm()
    assert event_ring.avail_event == 3


def test_arm_beyond_asks_for_more_than_there_is(event_ring: Ring) -> None:
    event_ring.offer_buffers(*[(BUFFERS, 1)] * 3, flags=WRITE)
    assert not event_ring.queue.arm(beyond=3)
    assert event_ring.avail_event == 3
    assert event_ring.queue.arm(beyond=2)


def test_suppress_moves_avail_event_out_of_the_way(event_ring: Ring) -> None:
    event_ring.queue.suppress()
    assert event_ring.avail_event == 0xFFFF


def test_suppress_and_arm_by_flag(flag_ring: Ring) -> None:
    flag_ring.queue.suppress()
    assert flag_ring.used_flags == 1
    assert not flag_ring.queue.arm()
    assert flag_ring.used_flags == 0


def test_arm_says_when_work_appeared_meanwhile(flag_ring: Ring) -> None:
    flag_ring.queue.suppress()
    flag_ring.offer_buffers((BUFFERS, 1))
    assert flag_ring.queue.arm()


def test_arm_empties_the_kick_descriptor(flag_ring: Ring) -> None:
    os.eventfd_write(flag_ring.kick, 5)
    flag_ring.queue.arm()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(flag_ring.kick)
    assert flag_ring.queue.counters.kicks == 1


def test_a_kick_on_a_broken_ring_cannot_spin_anybody(flag_ring: Ring) -> None:
    flag_ring.set_avail_idx(1000)
    flag_ring.pop()
    os.eventfd_write(flag_ring.kick, 1)
    assert not flag_ring.queue.arm()
    assert not flag_ring.queue.drain_kick()


def test_a_disabled_ring_is_armed_for_discarding(flag_ring: Ring) -> None:
    flag_ring.queue.enabled = False
    flag_ring.offer_buffers((BUFFERS, 1))
    assert flag_ring.pop() == []
    assert flag_ring.queue.room() == 0
    assert flag_ring.queue.arm()
    assert flag_ring.queue.discard() == 1
    assert flag_ring.used_idx == 1
    assert flag_ring.queue.counters.discarded == 1


def test_linger_looks_so_often_and_no_further_than_the_first_chain(flag_ring: Ring) -> None:
    assert not flag_ring.queue.linger(100)
    flag_ring.offer_buffers((BUFFERS, 1))
    assert not flag_ring.queue.linger(0)
    assert flag_ring.queue.linger(1)
    assert flag_ring.queue.linger(1 << 31), "it does not look that often once there is one"
    assert flag_ring.pop() == [flag_ring.guest.read(BUFFERS, 1)], "nothing was taken"


def test_linger_on_a_ring_that_is_disabled_or_broken_returns_at_once(flag_ring: Ring) -> None:
    flag_ring.offer_buffers((BUFFERS, 1))
    flag_ring.queue.enabled = False
    assert not flag_ring.queue.linger(1 << 31)
    flag_ring.queue.enabled = True
    flag_ring.set_avail_idx(1000)
    assert not flag_ring.queue.linger(1 << 31)
    assert flag_ring.queue.broken
    assert not flag_ring.queue.linger(1 << 31)
