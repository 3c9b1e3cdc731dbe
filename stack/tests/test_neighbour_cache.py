"""The neighbour cache: RFC 4861 7.3.2 and appendix C, one test per transition; bounds; row IF-08."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stack.link.neighbour import (
    BASE_REACHABLE_TIME,
    DELAY_FIRST_PROBE_TIME,
    MAX_MULTICAST_SOLICIT,
    MAX_PENDING_BYTES,
    MAX_PENDING_PACKETS,
    MAX_UNICAST_SOLICIT,
    REACHABLE_TIME_HOLDS,
    RETRANS_TIME,
    Neighbour,
    NeighbourCache,
    NeighbourState,
)
from stack.scheduler import NS_PER_S, Scheduler

OURS = bytes.fromhex("020000000001")
MAC = bytes.fromhex("020000000002")
OTHER = bytes.fromhex("020000000003")
ADDRESS = bytes((10, 0, 0, 9))

S = NeighbourState


class Cache(NeighbourCache):
    """Records what the cache asks of its owner."""

    def __init__(self, max_entries: int = 1024) -> None:
        self.asked: list[bytes | None] = []  # the MAC asked, None: everybody
        self.resolved: list[Any] = []
        self.failed: list[Any] = []
        self.states: list[NeighbourState] = []
        super().__init__(
            Scheduler(rng=random.Random(3)),
            mac=OURS,
            solicit=lambda entry: self.asked.append(entry.mac),
            on_resolved=lambda _, packets: self.resolved.extend(packets),
            on_failed=lambda _, packets: self.failed.extend(packets),
            on_change=lambda entry: self.states.append(entry.state),
            max_entries=max_entries,
        )

    def wait(self, ns: int) -> None:
        end = self.scheduler.now + ns
        while (due := self.scheduler.next_deadline()) is not None and due <= end:
            self.scheduler.now = max(due, self.scheduler.now)
            self.scheduler.run_timers()
        self.scheduler.now = end


def in_state(state: NeighbourState) -> tuple[Cache, Neighbour]:
    """A cache with one entry brought into `state` by what brings it there in life."""
    cache = Cache()
    entry = cache.lookup(ADDRESS)
    if state is S.FAILED:
        return cache, entry
    entry.resolve()
    if state is not S.INCOMPLETE:
        entry.update(MAC, solicited=state is S.REACHABLE)
    if state in (S.DELAY, S.PROBE):
        entry.resolve()
    if state is S.PROBE:
        cache.wait(DELAY_FIRST_PROBE_TIME)
    assert entry.state is state
    cache.asked.clear()
    cache.states.clear()
    return cache, entry


def test_first_use_asks_everybody_and_holds_the_packet() -> None:
    cache, entry = in_state(S.FAILED)
    assert entry.resolve() is None
    entry.hold("packet", 100)
    assert (entry.state, cache.asked, entry.pending) == (S.INCOMPLETE, [None], 1)


def test_incomplete_solicited_answer_is_reachable_and_releases_packets_in_order() -> None:
    cache, entry = in_state(S.INCOMPLETE)
    entry.hold("first", 1)
    entry.hold("second", 1)
    entry.update(MAC, solicited=True)
    assert (entry.state, entry.header, cache.resolved) == (S.REACHABLE, MAC + OURS, ["first", "second"])
    assert entry.pending == 0


def test_incomplete_unsolicited_news_is_stale() -> None:
    cache, entry = in_state(S.INCOMPLETE)
    entry.hold("packet", 1)
    entry.update(MAC, solicited=False)
    assert entry.state is S.STALE
    assert cache.resolved == ["packet"]


def test_incomplete_asks_three_times_a_second_apart_then_fails_and_reports_the_packets() -> None:
    cache, entry = in_state(S.INCOMPLETE)
    entry.hold("packet", 1)
    cache.wait(RETRANS_TIME * (MAX_MULTICAST_SOLICIT - 1))
    assert (cache.asked, entry.state) == ([None] * (MAX_MULTICAST_SOLICIT - 1), S.INCOMPLETE)
    cache.wait(RETRANS_TIME)
    assert (entry.state, cache.failed, entry.header) == (S.FAILED, ["packet"], None)
    assert cache.drops["neighbour-failed"] == 1
    assert cache.scheduler.next_deadline() is None, "a failed neighbour must not keep the network awake"


def test_reachable_becomes_stale_after_its_time_and_asks_nobody() -> None:
    cache, entry = in_state(S.REACHABLE)
    cache.wait(BASE_REACHABLE_TIME // 2 - 1)
    assert entry.state is S.REACHABLE
    cache.wait(BASE_REACHABLE_TIME)
    assert (entry.state, entry.mac, cache.asked) == (S.STALE, MAC, [])


def test_confirmation_prolongs_reachable() -> None:
    cache, entry = in_state(S.REACHABLE)
    for _ in range(20):
        cache.wait(BASE_REACHABLE_TIME // 2 - 1)
        entry.confirm()
    assert entry.state is S.REACHABLE
    assert cache.states == []


def test_the_reachable_time_is_drawn_now_and_then_and_when_a_router_changes_its_base() -> None:
    """RFC 4861 6.3.4."""
    cache, _ = in_state(S.REACHABLE)
    first = cache.reachable_time()
    assert BASE_REACHABLE_TIME // 2 <= first < 3 * BASE_REACHABLE_TIME // 2
    cache.wait(REACHABLE_TIME_HOLDS // 2)
    assert cache.reachable_time() == first
    cache.wait(REACHABLE_TIME_HOLDS)
    assert cache.reachable_time() != first
    cache.base_reachable_time = NS_PER_S
    assert NS_PER_S // 2 <= cache.reachable_time() < 3 * NS_PER_S // 2


def test_stale_is_used_at_once_and_starts_the_delay() -> None:
    cache, entry = in_state(S.STALE)
    assert entry.header is None, "the fast path must notice the first use"
    assert entry.resolve() == MAC + OURS
    assert (entry.state, cache.asked) == (S.DELAY, [])


def test_delay_confirmed_by_an_upper_layer_is_reachable_without_a_probe() -> None:
    cache, entry = in_state(S.DELAY)
    entry.confirm()
    cache.wait(DELAY_FIRST_PROBE_TIME)
    assert (entry.state, cache.asked) == (S.REACHABLE, [])


def test_delay_unconfirmed_probes_the_known_mac() -> None:
    cache, entry = in_state(S.DELAY)
    cache.wait(DELAY_FIRST_PROBE_TIME)
    assert (entry.state, cache.asked, entry.header) == (S.PROBE, [MAC], MAC + OURS)


def test_probe_answered_is_reachable() -> None:
    _, entry = in_state(S.PROBE)
    entry.update(MAC, solicited=True)
    assert entry.state is S.REACHABLE


def test_probe_unanswered_fails() -> None:
    cache, entry = in_state(S.PROBE)
    cache.wait(RETRANS_TIME * MAX_UNICAST_SOLICIT)
    assert (entry.state, entry.header, entry.mac) == (S.FAILED, None, None)
    assert cache.asked == [MAC] * (MAX_UNICAST_SOLICIT - 1)


def test_failed_starts_over_when_used() -> None:
    cache, entry = in_state(S.PROBE)
    cache.wait(RETRANS_TIME * MAX_UNICAST_SOLICIT)
    cache.asked.clear()
    entry.resolve()
    assert (entry.state, cache.asked) == (S.INCOMPLETE, [None])


@pytest.mark.parametrize("state", [S.REACHABLE, S.STALE, S.DELAY, S.PROBE])
def test_another_mac_by_unsolicited_override_is_taken_and_stale(state: NeighbourState) -> None:
    _, entry = in_state(state)
    entry.update(OTHER, solicited=False)
    assert (entry.mac, entry.state) == (OTHER, S.STALE)
    assert entry.resolve() == OTHER + OURS


@pytest.mark.parametrize("state", [S.REACHABLE, S.STALE, S.DELAY, S.PROBE])
def test_another_mac_by_solicited_override_is_taken_and_reachable(state: NeighbourState) -> None:
    _, entry = in_state(state)
    entry.update(OTHER, solicited=True)
    assert (entry.header, entry.state) == (OTHER + OURS, S.REACHABLE)


@pytest.mark.parametrize(
    ("state", "then"),
    [(S.REACHABLE, S.STALE), (S.STALE, S.STALE), (S.DELAY, S.DELAY), (S.PROBE, S.PROBE)],
)
def test_another_mac_without_override_only_casts_doubt(state: NeighbourState, then: NeighbourState) -> None:
    """RFC 4861 7.2.5 I."""
    _, entry = in_state(state)
    entry.update(OTHER, solicited=True, override=False)
    assert (entry.mac, entry.state) == (MAC, then)


@pytest.mark.parametrize("state", [S.REACHABLE, S.STALE, S.DELAY, S.PROBE])
def test_the_same_mac_unsolicited_changes_nothing(state: NeighbourState) -> None:
    cache, entry = in_state(state)
    entry.update(MAC, solicited=False)
    assert (entry.state, cache.states) == (state, [])


def test_permanent_is_beyond_everything() -> None:
    cache = Cache()
    entry = cache.set_permanent(ADDRESS, MAC)
    entry.update(OTHER, solicited=True)
    entry.confirm()
    cache.wait(1000 * NS_PER_S)
    assert (entry.header, entry.state, cache.asked) == (MAC + OURS, S.PERMANENT, [])
    cache.flush()
    assert cache.get(ADDRESS) is entry


def test_making_it_permanent_releases_what_waited() -> None:
    cache, entry = in_state(S.INCOMPLETE)
    entry.hold("packet", 1)
    cache.set_permanent(ADDRESS, MAC)
    assert cache.resolved == ["packet"]
    assert entry.header == MAC + OURS


def test_waiting_packets_are_bounded_by_number_the_oldest_give_way() -> None:
    cache, entry = in_state(S.INCOMPLETE)
    for number in range(MAX_PENDING_PACKETS + 20):
        entry.hold(number, 10)
    entry.update(MAC, solicited=True)
    assert cache.resolved == list(range(20, MAX_PENDING_PACKETS + 20))
    assert cache.drops["neighbour-queue-full"] == 20


def test_waiting_packets_are_bounded_by_bytes_but_one_always_waits() -> None:
    _, entry = in_state(S.INCOMPLETE)
    entry.hold("huge", MAX_PENDING_BYTES + 1)
    assert entry.pending == 1
    for number in range(5):
        entry.hold(number, MAX_PENDING_BYTES // 2)
    assert entry.pending == 2


def test_entries_are_bounded_and_useless_ones_go_first() -> None:
    cache = Cache(max_entries=8)
    keep = cache.lookup(bytes((10, 0, 0, 1)))
    keep.resolve()
    keep.update(MAC, solicited=True)
    permanent = cache.set_permanent(bytes((10, 0, 0, 2)), MAC)
    for last in range(3, 100):
        cache.lookup(bytes((10, 0, 0, last)))
        assert len(cache) <= 8
    assert cache.get(keep.address) is keep
    assert cache.get(permanent.address) is permanent
    assert cache.drops["neighbour-cache-full"] == 97 - 6


def test_an_evicted_entry_is_dead_for_whoever_still_holds_it() -> None:
    cache, entry = in_state(S.REACHABLE)
    entry.hold("packet", 1)
    assert cache.remove(ADDRESS)
    assert (entry.state, entry.header, entry.resolve(), entry.pending) == (S.DEAD, None, None, 0)
    entry.update(MAC, solicited=True)
    assert entry.state is S.DEAD
    assert cache.lookup(ADDRESS) is not entry
    cache.wait(100 * NS_PER_S)
    assert entry.state is S.DEAD
    assert not cache.remove(bytes(4))


def test_a_new_mac_of_ours_forgets_and_rebuilds_headers() -> None:
    cache, entry = in_state(S.REACHABLE)
    permanent = cache.set_permanent(bytes(4), OTHER)
    cache.set_mac(MAC)
    assert entry.state is S.DEAD
    assert permanent.header == OTHER + MAC
