"""Every row of the driver rig runs alone, and counts what arrived."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from qemu.guest.bench import rig, rig_bridge, rig_frames, rig_guest, rig_pairs
from qemu.guest.bench.figure import Measured
from stack.testing import builders
from stack.wire import tcp

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


@pytest.mark.parametrize("threads", [1, 2])
def test_frames_are_switched_between_pairs_by_one_thread_or_two(threads: int) -> None:
    assert rig_bridge.multiqueue(SHORT, threads=threads).rate > 1000


def test_two_copies_are_faster_than_one_byte_at_a_time() -> None:
    assert rig.two_copies(SHORT, rig.TO_DRIVER) > 0.1


class _Script:
    """A driver that has these frames to give, and keeps count of what it is told to send."""

    def __init__(self, bursts: list[list[bytes]]) -> None:
        self.bursts = bursts
        self.resets = 0

    def heads(self, _: int, *, size: int, timeout: float) -> list[tuple[bytes, int]]:
        return [(frame[:size], len(frame)) for frame in (self.bursts.pop(0) if self.bursts else [])]

    def tx(self) -> None: ...

    def rx(self) -> _Script:
        return self

    def linger(self, _: int = 1, *, looks: int) -> int:
        return len(self.bursts[0]) if looks and self.bursts else 0


class _Peer:
    def __init__(self, driver: _Script) -> None:
        self.driver = driver
        self.rcv_nxt, self.snd_nxt = 0xFFFFFF00, 7  # and so past 4 GiB
        self.asked: list[bytes] = []

    def hear_arp(self, payload: bytes) -> None:
        self.asked.append(payload)

    def leave(self) -> None:
        self.driver.resets += 1


class _Acknowledgement:
    """Stands for the segment that is sent, and for the burst of it."""

    told: list[int]

    def __init__(self, *_: Any) -> None:
        type(self).told = []

    def number(self, _: int, ack: int) -> None:
        self.told.append(ack)

    def send(self, *_: Any, **__: Any) -> int:
        return 1


def data(seq: int, size: int) -> bytes:
    segment = builders.tcp(rig_guest._PEER, rig_guest._US, 9, 40000, seq=seq, flags=tcp.ACK, payload=bytes(size))
    packet = builders.ipv4(rig_guest._PEER, rig_guest._US, tcp.PROTO, segment)
    return builders.ethernet(b"\x02" * 6, b"\x04" * 6, builders.ETHERTYPE_IPV4, packet)


def test_what_plays_the_guest_counts_no_byte_twice_and_none_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retransmissions, gaps and ARP are not taken for data: the stack would never hear a right acknowledgment again."""
    start = 0xFFFFFF00
    question = builders.ethernet(b"\x02" * 6, b"\x04" * 6, builders.ETHERTYPE_ARP, bytes(46))
    driver = _Script(
        [
            [data(start, 1000), data(start, 1000), question],
            [data(start + 1000 + 500 & 0xFFFFFFFF, 100)],  # 500 bytes before it are missing
            [data(start + 1000 & 0xFFFFFFFF, 500)],
        ]
    )
    peer: Any = _Peer(driver)
    ticks = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(rig_guest, "Segment", _Acknowledgement)
    monkeypatch.setattr(rig_guest, "_ready", lambda segments: segments[0])
    assert rig_guest.drain(peer, 4.0) == pytest.approx(1500 * 8e-9 / 4)
    assert _Acknowledgement.told == [start + 1000, start + 1000, start + 1500]
    assert peer.asked == [question[14:54]]  # headers are enough for it, too
    assert driver.resets == 1


def test_what_plays_the_guest_complains_in_words() -> None:
    with pytest.raises(rig.RigError, match="No such file"):
        rig.run_beside("rig_player", "flood", "/nowhere", 64)
