"""Every row of the driver rig runs alone, and counts what arrived."""

from __future__ import annotations

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
    assert trips.additions > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_queue_pairs_are_emptied_by_one_thread_or_two(workers: int) -> None:
    assert rig_pairs.pairs_in(SHORT, workers=workers) > 0.1


@pytest.mark.parametrize("threads", [1, 2])
def test_frames_are_switched_between_pairs_by_one_thread_or_two(threads: int) -> None:
    assert rig_bridge.multiqueue(SHORT, threads=threads).rate > 1000


def test_two_copies_are_faster_than_one_byte_at_a_time() -> None:
    assert rig.two_copies(SHORT, rig.TO_DRIVER) > 0.1


class _Sent:
    """A driver that keeps what it is told to send."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def has(self, _: int) -> bool:
        return True

    def send(self, frames: list[Any], **_: Any) -> int:
        self.frames += [bytes(getattr(frame, "data", frame)) for frame in frames]
        return len(frames)


def connected(rcv_nxt: int) -> tuple[rig_guest.Peer, _Sent]:
    peer, driver = rig_guest.Peer.__new__(rig_guest.Peer), _Sent()
    peer.driver = driver  # type: ignore[assignment]
    peer.mac, peer.port, peer.scale, peer.window = b"\x02" * 6, 9, 7, 0
    peer.snd_una = peer.snd_nxt = 1000
    peer.rcv_nxt = rcv_nxt
    return peer, driver


def data(seq: int, size: int, flags: int = tcp.ACK, ack: int = 1000) -> memoryview:
    segment = builders.tcp(
        rig_guest._PEER, rig_guest._US, 9, 40000, seq=seq & 0xFFFFFFFF, ack=ack, flags=flags, payload=bytes(size)
    )
    packet = builders.ipv4(rig_guest._PEER, rig_guest._US, tcp.PROTO, segment)
    return memoryview(builders.ethernet(b"\x02" * 6, b"\x04" * 6, builders.ETHERTYPE_IPV4, packet))


def test_what_plays_the_guest_counts_no_byte_twice_and_none_that_is_missing() -> None:
    """What is no bulk is answered by where we stand, or the stack would never hear a right acknowledgment again."""
    start = 0xFFFFFF00  # and so past 4 GiB
    peer, driver = connected(start)
    told = []
    for frame in (
        data(start - 1000, 1000),  # came before
        data(start + 500, 100),  # 500 bytes before it are missing
        data(start, 1000),
        data(start + 1000, 0, tcp.ACK | tcp.FIN, ack=900),
    ):
        peer.hear_other(frame)
        told.append(int.from_bytes(driver.frames[-1][42:46], "big"))
    assert told == [start, start, start + 1000 & 0xFFFFFFFF, start + 1001 & 0xFFFFFFFF]
    assert len(driver.frames) == 4
    assert peer.rcv_nxt == start + 1001
    assert peer.snd_una == 1000  # an old acknowledgment takes nothing back
    with pytest.raises(ConnectionResetError):
        peer.hear_other(data(start + 1001, 0, tcp.RST))


def test_what_plays_the_guest_answers_arp_and_nothing_else_that_is_no_packet() -> None:
    peer, driver = connected(7)
    question = builders.arp(1, b"\x06" * 6, rig_guest._PEER, bytes(6), rig_guest._US)
    peer.hear_other(memoryview(builders.ethernet(b"\x02" * 6, b"\x06" * 6, builders.ETHERTYPE_ARP, question)))
    assert peer.mac == b"\x06" * 6
    assert [frame[12:14] for frame in driver.frames] == [b"\x08\x06"]
    peer.hear_other(memoryview(builders.ethernet(b"\x02" * 6, b"\x06" * 6, 0x86DD, bytes(46))))
    assert len(driver.frames) == 1


def test_what_plays_the_guest_complains_in_words() -> None:
    with pytest.raises(rig.RigError, match="No such file"):
        rig.run_beside("rig_player", "flood", "/nowhere", 64)
