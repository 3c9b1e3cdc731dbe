"""Loopback, cable and impairment: what goes in comes out, or is counted, in the Scheduler's time."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.link import Impairment, LinkDevice, Loopback, cable
from stack.link.cable import CableEnd
from stack.link.device import GSO_TCPV4, NEEDS_CSUM, Offload, TxFrame
from stack.link.impairment import SplitMix64
from stack.link.loopback import RECEIVE_BYTES, FrameQueue
from stack.link.offload import verify_rx
from stack.scheduler import NS_PER_MS, NS_PER_S, Scheduler
from stack.testing import builders as b
from stack.testing.links import LinkPair, RecorderDevice, seeded

HEADER = b"\x02bbbbb\x02aaaaa\x08\x00"


def frame(number: int, size: int = 100) -> TxFrame:
    return (HEADER, number.to_bytes(4, "big"), bytes(size - 18)), 0, 0, 0, 0, 0, 0


def numbers(burst: object) -> list[int]:
    return [int.from_bytes(received[0][14:18], "big") for received in burst]  # type: ignore[attr-defined]  # RxFrames


def world(seed: int = 1) -> Scheduler:
    return Scheduler(rng=random.Random(seed))


def run(scheduler: Scheduler, end: CableEnd, until: int = 100 * NS_PER_S) -> list[tuple[int, int]]:
    """(time, number) of everything that arrives at `end`."""
    arrived: list[tuple[int, int]] = []
    while True:
        while burst := end.receive(64):
            arrived += [(scheduler.now, number) for number in numbers(burst)]
        deadline = scheduler.next_deadline()
        if deadline is None or deadline > until:
            return arrived
        scheduler.now = deadline
        scheduler.run_timers()


def sent_through(impairment: Impairment, count: int, *, size: int = 100, seed: int = 1) -> list[tuple[int, int]]:
    scheduler = world(seed)
    a, z = cable(scheduler, a_to_b=impairment)
    assert a.transmit([frame(i, size) for i in range(count)]) == count
    return run(scheduler, z)


@pytest.mark.parametrize("make", [lambda: (Loopback(),) * 2, lambda: cable(world())])
def test_a_perfect_link_delivers_in_order_with_offload_facts(make: Callable[[], tuple[LinkDevice, LinkDevice]]) -> None:
    near, far = make()
    superframe: TxFrame = ((HEADER, bytes(40), bytes(3000)), NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)
    assert near.transmit([frame(1), superframe, frame(2)]) == 3
    first, middle, last = far.receive(64)
    assert numbers([first, last]) == [1, 2]
    assert middle[1:] == (NEEDS_CSUM, GSO_TCPV4, 1448, 34, 16)
    assert bytes(middle[0]) == b"".join(superframe[0])
    assert far.receive(64) == []


@pytest.mark.parametrize("make", [lambda: (Loopback(queue_bytes=250),) * 2, lambda: cable(world(), queue_bytes=250)])
def test_a_full_link_refuses_and_reports_room(make: Callable[[], tuple[LinkDevice, LinkDevice]]) -> None:
    """The LinkDevice rule: what was not accepted stays the caller's, and an event says when to retry."""
    near, far = make()
    events: list[str] = []
    near.on_change = lambda: events.append("near")
    far.on_change = lambda: events.append("far")
    assert near.transmit([frame(i) for i in range(4)]) == 2
    assert near.transmit([frame(2)]) == 0
    events.clear()
    assert numbers(far.receive(1)) == [0]
    assert len(events) == 1, "the refused sender hears that there is room, once"
    assert near.transmit([frame(2), frame(3)]) == 1
    assert numbers(far.receive(64)) == [1, 2]


def test_work_is_reported_once_when_it_appears() -> None:
    a, z = cable(world())
    events: list[int] = []
    z.on_change = lambda: events.append(1)
    a.transmit([frame(i) for i in range(10)])
    a.transmit([frame(11)])
    assert len(events) == 1
    assert z.arm()
    z.receive(64)
    assert not z.arm()


def test_receive_is_bounded_in_bytes() -> None:
    """LinkDevice: at most about 512 KiB a call."""
    queue = FrameQueue()
    for number in range(40):
        queue.put((memoryview(number.to_bytes(4, "big") + bytes(49996)), 0, 0, 0, 0, 0))
    first = queue.take(1000)
    assert RECEIVE_BYTES <= sum(len(f[0]) for f in first) < RECEIVE_BYTES + 50000
    rest = [*queue.take(2), *queue.take(1000), *queue.take(1000), *queue.take(1000)]
    assert [int.from_bytes(f[0][:4], "big") for f in [*first, *rest]] == list(range(40))
    assert queue.bytes == 0


def test_pulling_the_cable_loses_what_is_under_way_and_reports() -> None:
    scheduler = world()
    a, z = cable(scheduler, a_to_b=Impairment(delay_ns=1000))
    events: list[str] = []
    a.on_change = lambda: events.append("a")
    z.on_change = lambda: events.append("z")
    a.transmit([frame(1)])
    z.plug(False)
    assert (a.carrier, z.carrier, sorted(events)) == (False, False, ["a", "z"])
    assert a.transmit([frame(2)]) == 1, "an unplugged card accepts and drops"
    assert run(scheduler, z) == []
    a.plug(True)
    a.transmit([frame(3)])
    assert [n for _, n in run(scheduler, z)] == [3]
    a.close()
    a.close()
    assert not z.carrier


@pytest.mark.parametrize(
    ("bad", "offloads"),
    [
        (((HEADER, bytes(1600)), 0, 0, 0, 0, 0, 0), Offload.NONE),
        (((b"short",), 0, 0, 0, 0, 0, 0), Offload.NONE),
        (((HEADER, bytes(60)), NEEDS_CSUM, 0, 0, 0, 34, 16), Offload.NONE),
        (((HEADER, bytes(60)), NEEDS_CSUM, 0, 0, 0, 70, 16), Offload.CSUM),
        (((HEADER, bytes(60)), NEEDS_CSUM, GSO_TCPV4, 0, 1000, 34, 16), Offload.CSUM),
        (((HEADER, bytes(65536)), NEEDS_CSUM, GSO_TCPV4, 0, 1000, 34, 16), Offload.CSUM | Offload.TSO4),
    ],
)
def test_what_a_cable_cannot_carry_is_counted_and_accepted(bad: TxFrame, offloads: Offload) -> None:
    a, z = cable(world(), offloads=offloads)
    assert a.transmit([bad, frame(1)]) == 2
    assert numbers(z.receive(64)) == [1]
    assert a.dropped == 1


def test_delay_is_exact() -> None:
    assert sent_through(Impairment(delay_ns=7 * NS_PER_MS), 3) == [(7 * NS_PER_MS, i) for i in range(3)]


def test_jitter_varies_the_delay_without_reordering() -> None:
    arrived = sent_through(Impairment(delay_ns=NS_PER_MS, jitter_ns=NS_PER_MS, seed=3), 200)
    assert [n for _, n in arrived] == list(range(200))
    assert all(NS_PER_MS <= at <= 2 * NS_PER_MS for at, _ in arrived)
    assert len({at for at, _ in arrived}) > 3


def test_rate_serialises_frames_and_its_queue_drops_the_tail() -> None:
    """1000 bytes at 8 Mb/s take a millisecond each."""
    scheduler = world()
    a, z = cable(scheduler, a_to_b=Impairment(rate_bps=8_000_000, queue_bytes=5000))
    a.transmit([frame(i, 1000) for i in range(10)])
    assert run(scheduler, z) == [((i + 1) * NS_PER_MS, i) for i in range(5)]
    assert a.stats is not None
    assert (a.stats.offered, a.stats.delivered, a.stats.queue_bytes) == (10, 5, 5)


def test_loss_is_as_frequent_as_asked_and_repeats_by_seed() -> None:
    first = sent_through(Impairment(loss=0.1, seed=5), 10000)
    assert 8800 < len(first) < 9200
    assert first == sent_through(Impairment(loss=0.1, seed=5), 10000, seed=99)
    assert first != sent_through(Impairment(loss=0.1, seed=6), 10000)


def test_bursts_of_loss_have_the_mean_length_asked_for() -> None:
    arrived = [n for _, n in sent_through(Impairment(burst_loss=0.01, burst_length=8, seed=1), 40000)]
    gaps = [after - before - 1 for before, after in pairwise(arrived) if after - before > 1]
    assert 6.5 < sum(gaps) / len(gaps) < 9.5
    assert 0.006 < len(gaps) / 40000 < 0.012


def test_duplicates_arrive_twice() -> None:
    arrived = [n for _, n in sent_through(Impairment(duplicate=0.2, seed=1), 1000)]
    assert sorted(set(arrived)) == list(range(1000))
    assert 1150 < len(arrived) < 1250


@given(st.integers(0, 2**64), st.integers(1, 8))
def test_reordering_loses_nothing_and_goes_no_deeper_than_asked(seed: int, depth: int) -> None:
    arrived = [n for _, n in sent_through(Impairment(reorder=0.3, reorder_depth=depth, seed=seed), 60)]
    assert sorted(arrived) == list(range(60))
    tail = 60 - depth * 4  # near the end nothing overtakes: the hold time releases
    for place, number in enumerate(arrived):
        if number < tail:
            overtakers = sum(1 for other in arrived[:place] if other > number)
            # Frames that were held themselves do not count as overtaking, but may be released alongside.
            assert overtakers <= depth * 4


def test_a_held_frame_goes_when_nothing_follows() -> None:
    assert sent_through(Impairment(reorder=1.0, reorder_hold_ns=5 * NS_PER_MS), 1) == [(5 * NS_PER_MS, 0)]


@pytest.mark.parametrize("seed", range(20))
def test_corruption_is_seen_by_the_checksum(seed: int) -> None:
    """A frame whose checksum was left to the device has it finished before a bit flips."""
    src, dst = b"\x0a\0\2\2", b"\x0a\0\2\x0f"
    body = b.tcp(src, dst, 1, 2, payload=bytes(500), checksum=b.partial_checksum(src, dst, 6, 520))
    whole = b.ethernet(b"\x02bbbbb", b"\x02aaaaa", 0x0800, b.ipv4(src, dst, 6, body))
    scheduler = world()
    a, z = cable(scheduler, a_to_b=Impairment(corrupt=1.0, seed=seed))
    a.transmit([((whole,), NEEDS_CSUM, 0, 54, 0, 34, 16)])
    (damaged,) = z.receive(8)
    assert damaged[1] == 0
    intact = whole[:34] + b.tcp(src, dst, 1, 2, payload=bytes(500))
    difference = int.from_bytes(damaged[0], "big") ^ int.from_bytes(intact, "big")
    assert difference.bit_count() == 1
    header = bytes(damaged[0][14:34])
    assert not verify_rx(damaged) or b.inet_checksum(header) != 0


@pytest.mark.parametrize(("per_packet", "packets"), [(True, 3), (False, 1)])
def test_superframes_are_impaired_as_packets_when_asked(per_packet: bool, packets: int) -> None:
    src, dst = b"\x0a\0\2\2", b"\x0a\0\2\x0f"
    body = b.tcp(src, dst, 1, 2, payload=bytes(3000), checksum=b.partial_checksum(src, dst, 6, 3020))
    whole = b.ethernet(b"\x02bbbbb", b"\x02aaaaa", 0x0800, b.ipv4(src, dst, 6, body))
    a, z = cable(world(), a_to_b=Impairment(per_packet=per_packet))
    a.transmit([((whole,), NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16)])
    assert len(z.receive(64)) == packets
    assert a.stats is not None
    assert a.stats.offered == packets
    a.transmit([((whole,), NEEDS_CSUM, GSO_TCPV4, 54, 0, 34, 16)])
    assert a.stats.malformed == (1 if per_packet else 0)


def test_a_receiver_that_does_not_read_overruns_an_impaired_line() -> None:
    a, z = cable(world(), a_to_b=Impairment(), queue_bytes=250)
    assert a.transmit([frame(i) for i in range(5)]) == 5
    assert a.stats is not None
    assert (a.stats.delivered, a.stats.overrun) == (2, 3)
    assert numbers(z.receive(64)) == [0, 1]


def test_impairment_changes_while_running() -> None:
    a, z = cable(world(), a_to_b=Impairment())
    a.impair(Impairment(loss=1.0))
    a.transmit([frame(1)])
    a.impair(Impairment())
    a.transmit([frame(2)])
    assert numbers(z.receive(8)) == [2]
    with pytest.raises(ValueError, match="without impairment"):
        z.impair(Impairment())


@pytest.mark.parametrize("field", ["loss", "burst_loss", "duplicate", "reorder", "corrupt"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_impossible_probabilities_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is a probability"):
        Impairment(**{field: value})  # type: ignore[arg-type]  # one field at a time


@pytest.mark.parametrize("field", ["delay_ns", "jitter_ns", "rate_bps", "queue_bytes", "reorder_hold_ns"])
def test_negative_amounts_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} cannot be negative"):
        Impairment(**{field: -1})  # type: ignore[arg-type]  # one field at a time


def test_split_mix_matches_its_published_sequence() -> None:
    """First outputs for seed 1234567, as published with the algorithm's reference code."""
    rng = SplitMix64(1234567)
    assert [rng.getrandbits(64) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert all(0 <= rng.random() < 1 and 3 <= rng.randrange(3, 9) < 9 for _ in range(1000))
    assert SplitMix64(1).getrandbits(100) < 1 << 100


def test_helpers_for_tests_behave_like_devices() -> None:
    device = RecorderDevice(room=1)
    assert device.transmit([frame(1), frame(2)]) == 1
    assert device.take()[0][14:18] == (1).to_bytes(4, "big")
    device.feed(HEADER + bytes(50))
    assert device.arm()
    assert len(device.receive(4)) == 1
    pair = LinkPair(world(), Impairment(loss=0.5), seed=4)
    pair.a.transmit([frame(i) for i in range(100)])
    pair.b.transmit([frame(i) for i in range(100)])
    assert numbers(pair.b.receive(200)) != numbers(pair.a.receive(200)), "each direction has its own sequence"
    assert seeded(Impairment(loss=0.5), 4) == Impairment(loss=0.5, seed=4)
