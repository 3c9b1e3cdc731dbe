"""Every row of the driver rig runs alone, and counts what arrived."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qemu.guest.bench import rig, rig_frames, rig_pairs
from qemu.guest.bench.figure import Measured

SHORT = 0.1


@pytest.mark.parametrize(
    "row",
    [
        rig_frames.ring_in,
        rig_frames.card_in,
        rig_frames.ring_out,
        rig_frames.udp_in,
        rig_frames.udp_out,
        rig_frames.switching,
    ],
)
@pytest.mark.parametrize("size", [64, 1514])
def test_frames_of_any_size_are_counted(row: Callable[..., Measured], size: int) -> None:
    measured = row(SHORT, size=size)
    assert measured.rate > 1000
    assert measured.cpu > 1000


def test_bursts_of_datagrams_are_counted_as_datagrams() -> None:
    assert rig_frames.udp_in(SHORT, coalesce=True).rate > 1000
    assert rig_frames.udp_in(SHORT, batch=True).rate > 1000
    assert rig_frames.udp_out(SHORT, batch=True).rate > 1000


@pytest.mark.parametrize("offload", [True, False])
def test_tcp_goes_both_ways_with_and_without_offloads(offload: bool) -> None:
    assert rig.guest_to_stack(SHORT, frame=1460, offload=offload).rate > 0.01
    assert rig.stack_to_guest(SHORT, offload=offload).rate > 0.01


def test_round_trips_have_a_median_a_tail_and_a_cost() -> None:
    trips = rig.round_trips(SHORT)
    assert 0 < trips.median <= trips.p99
    assert trips.cpu > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_queue_pairs_are_emptied_by_one_thread_or_two(workers: int) -> None:
    assert rig_pairs.pairs_in(SHORT, workers=workers) > 0.1


def test_what_plays_the_guest_complains_in_words() -> None:
    with pytest.raises(rig.RigError, match="No such file"):
        rig.run_beside("rig_player", "flood", "/nowhere", 64)
