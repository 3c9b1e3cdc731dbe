"""Frames through virtio-net, both ways, over every shape of ring a driver may set up (virtio 1.3 section 5.1.6)."""

from __future__ import annotations

from typing import Any

import pytest

from vhost_user.driver import GuestMemory
from vhost_user.features import NetFeature
from vhost_user.net import DEFAULT_MAC, NetDevice

from .device_rig import broadcast, net_rig, plain

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no indirect": {"features": ~NetFeature.INDIRECT_DESC},
    "no event index": {"features": ~NetFeature.EVENT_IDX},
    "not mergeable": {"features": ~NetFeature.MRG_RXBUF},
    "nothing but VERSION_1": {"features": NetFeature.VERSION_1},
    "header apart": {"tx_pieces": (12,), "rx_pieces": (12,)},
    "header in crumbs": {"tx_pieces": (1,) * 12 + (14, 1), "rx_pieces": (1,) * 12},
    "crumbs without indirect": {"tx_pieces": (1,) * 12, "rx_pieces": (5, 7), "features": ~NetFeature.INDIRECT_DESC},
    "tiny rings": {"rx_size": 2, "tx_size": 2},
    "large rings": {"rx_size": 1024, "tx_size": 1024, "tx_buffers": 64},
    "small buffers": {"rx_buffer": 64},
    "memory with holes": {"memory": [(0, 0xA0000), (1 << 20, 63 << 20), (1 << 32, 64 << 20)]},
    "touching regions": {"memory": [(0, 32 << 20), (32 << 20, 32 << 20)]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_frames_arrive_whole_and_in_order_both_ways(shape: str) -> None:
    arguments = dict(SHAPES[shape])
    if "memory" in arguments:
        arguments["memory"] = GuestMemory(arguments["memory"])
    sizes = [60, 61, 64, 100, 256, 1000, 1513, 1514]
    frames = [broadcast(size, seed) for seed, size in enumerate(sizes * 30)]  # indexes of the tiny rings wrap
    with net_rig(**arguments) as (device, guest):
        arrived: list[bytes] = []
        returned: list[bytes] = []
        sent = 0
        while len(arrived) < len(frames):
            sent += guest.send(frames[sent : sent + 16])
            arrived += [bytes(frame[0]) for frame in device.receive(64)]
        left = [plain(frame[:14], memoryview(frame)[14:]) for frame in frames]
        while left or len(returned) < len(frames):
            left = left[device.transmit(left[:20]) :]
            returned += [bytes(frame.data) for frame in guest.recv()]
        assert arrived == frames
        assert returned == frames
        assert device.drops == {}


def test_a_small_ring_survives_the_wrap_of_its_sixteen_bit_index() -> None:
    """avail.idx and used.idx are free-running 16-bit numbers (2.7.13): 70000 frames on rings of 8."""
    frames = [broadcast(60, seed) for seed in range(8)]
    with net_rig(rx_size=8, tx_size=8) as (device, guest):
        burst = guest.burst(frames)
        back = [plain(frame) for frame in frames]
        for _ in range(70000 // 8):
            assert guest.send(burst) == 8
            assert [bytes(frame[0]) for frame in device.receive(8)] == frames
            assert device.transmit(back) == 8
            assert guest.drain() == (8, 480)


def test_short_frames_are_padded_to_the_ethernet_minimum() -> None:
    """A real card's driver sees 60 bytes at least (IEEE 802.3: 64 with the FCS)."""
    with net_rig() as (device, guest):
        assert device.transmit([plain(broadcast(14)), plain(broadcast(42)), plain(broadcast(60))]) == 3
        frames = guest.recv()
        assert [len(frame.data) for frame in frames] == [60, 60, 60]
        assert frames[1].data == broadcast(42) + bytes(18)


def test_what_leaves_without_facts_has_an_empty_header_and_one_buffer() -> None:
    """5.1.6.4.1: flags 0, gso NONE; num_buffers is 1 with and without MRG_RXBUF."""
    for features in (~0, ~NetFeature.MRG_RXBUF):
        with net_rig(features=features) as (device, guest):
            device.transmit([plain(broadcast(60))])
            assert guest.recv()[0][1:] == (0, 0, 0, 0, 0, 0, 1)


def test_a_frame_spans_as_many_mergeable_buffers_as_it_needs() -> None:
    """5.1.6.4: all but the last are filled, num_buffers says how many."""
    with net_rig(rx_buffer=100) as (device, guest):
        assert device.transmit([plain(broadcast(1514))]) == 1
        (frame,) = guest.recv()
        assert frame.data == broadcast(1514)
        assert frame.num_buffers == -(-(1514 + 12) // 100)


def test_a_frame_that_fits_no_buffer_is_dropped_and_counted_not_the_ring() -> None:
    """Section 4.3: chain too small without MRG_RXBUF: drop the frame."""
    with net_rig(features=~NetFeature.MRG_RXBUF, rx_buffer=200) as (device, guest):
        assert device.transmit([plain(broadcast(1000)), plain(broadcast(100))]) == 2
        assert [len(frame.data) for frame in guest.recv()] == [100]
        assert device.drops == {"tx-buffer": 1}


def test_small_frames_keep_little_memory_and_large_ones_are_not_copied() -> None:
    """A retained 60-byte frame must not keep the burst's slab; a large one is a view of the slab."""
    with net_rig(NetDevice(mtu=9000), tx_buffers=64) as (device, guest):
        guest.send([broadcast(60, 1), broadcast(9000, 2), *[broadcast(1500, seed) for seed in range(20)]])
        frames = device.receive(64)
        assert len(frames) == 22
        kept = [len(memoryview(frame[0].obj)) for frame in frames]
        assert kept[0] == 60
        assert kept[1] > 9000
        assert all(size <= 8192 for size in kept[2:])
        del frames[2:]
        assert bytes(frames[0][0]) == broadcast(60, 1)
        assert bytes(frames[1][0]) == broadcast(9000, 2)


def test_views_stay_as_they_were_while_later_bursts_arrive() -> None:
    """LinkDevice: memory that still has a view is never reused."""
    with net_rig(NetDevice(mtu=9000)) as (device, guest):
        kept = []
        for seed in range(40):
            guest.send([broadcast(100, seed), broadcast(5000, seed)])
            kept.append(device.receive(4))
        for seed, (small, large) in enumerate(kept):
            assert bytes(small[0]) == broadcast(100, seed)
            assert bytes(large[0]) == broadcast(5000, seed)


def test_a_bad_frame_alone_is_not_taken_for_the_one_before() -> None:
    with net_rig() as (device, guest):
        for number in range(3):
            assert guest.send([broadcast(60, number)]) == 1
            frames, count, size = device.receive_coalesced(64)
            assert [bytes(frame[0]) for frame in frames] == [broadcast(60, number)]
            assert (count, size) == (1, 60)
            assert guest.send([b"short"]) == 1
            assert device.receive_coalesced(64) == ([], 0, 0)
        assert device.drops == {"rx-short": 3}
        assert (device.frames_in, device.bytes_in) == (3, 180)


def test_budget_bounds_a_burst() -> None:
    with net_rig() as (device, guest):
        guest.send([broadcast(60)] * 100)
        assert [len(device.receive(n)) for n in (1, 7, 256, 256)] == [1, 7, 92, 0]


@pytest.mark.parametrize("size", [1515, 2000, 65535])
def test_frames_beyond_the_mtu_are_never_sent(size: int) -> None:
    """LinkDevice.transmit: what can never be carried is counted, dropped and accepted; others go on."""
    with net_rig() as (device, guest):
        assert device.transmit([plain(broadcast(60)), plain(broadcast(size)), plain(broadcast(61))]) == 3
        assert [len(frame.data) for frame in guest.recv()] == [60, 61]
        assert device.drops == {"tx-long": 1}


def test_a_vlan_tag_does_not_count_against_the_mtu() -> None:
    tagged = broadcast(14)[:12] + b"\x81\x00\x00\x07" + broadcast(1514)[12:]
    with net_rig() as (device, guest):
        assert guest.send([tagged]) == 1
        assert bytes(device.receive(1)[0][0]) == tagged
        assert device.transmit([plain(tagged[:3], tagged[3:])]) == 1
        assert guest.recv()[0].data == tagged
        assert device.drops == {}


def test_the_driver_gets_back_every_transmit_buffer_at_once() -> None:
    """The copy is the hand-over: buffers are used when `receive` returns, whatever becomes of the frames."""
    with net_rig(tx_size=16) as (device, guest):
        for _ in range(10):
            assert guest.send([broadcast(60)] * 16) == 16
            frames = device.receive(64)
            guest.tx().reclaim()
            assert guest.tx().free_buffers == 16
            del frames


def test_arguments_out_of_range_are_refused_by_name() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"mac": b"\x01" + bytes(5)}, "mac"),
        ({"mac": b"short"}, "mac"),
        ({"mtu": 67}, "mtu 67"),
        ({"mtu": 65536}, "mtu 65536"),
        ({"queues": 0}, "0 queue pairs"),
        ({"disable": NetFeature.VERSION_1}, "VERSION_1"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            NetDevice(**arguments)
    device = NetDevice()
    assert device.mac == DEFAULT_MAC
    device.close()
    device.close()


def test_a_frame_sent_alone_is_what_it_is_among_others() -> None:
    """A lone frame has a short way of its own: same header, padding and drops as in a burst, whatever its facts."""
    facts = [(0,) * 6, (1, 0, 0, 0, 34, 6), (2, 0, 0, 0, 0, 0), (1, 1, 54, 500, 34, 16)]
    frames = [
        ((whole[:cut], whole[cut:]) if cut < size else (whole,), *fact)
        for size in (14, 41, 42, 54, 59, 60, 61, 1514, 1515, 2062, 2063, 3000)
        for whole in (broadcast(size, size),)
        for cut in (14, 54)
        for fact in facts
    ]
    for features in (~0, ~NetFeature.MRG_RXBUF, ~NetFeature.GUEST_CSUM):
        with net_rig(features=features) as (device, guest), net_rig(features=features) as (other, another):
            alone, together = [], []
            for frame in frames * 2:  # the second time every fact is known
                assert device.transmit([frame]) == 1
                alone += guest.recv()
            for at in range(0, 2 * len(frames), 8):
                assert other.transmit((frames * 2)[at : at + 8]) == 8
                together += another.recv()
            assert alone == together
            assert device.drops == other.drops
            assert device.frames_out == other.frames_out == len(alone)


def test_a_lone_frame_waits_for_a_buffer_like_any_other() -> None:
    with net_rig(rx_size=4) as (device, guest):
        frames = [plain(broadcast(60, seed)) for seed in range(8)]
        taken = [device.transmit([frame]) for frame in frames]
        assert taken == [1, 1, 1, 1, 0, 0, 0, 0]
        assert len(guest.recv()) == 4
        assert [device.transmit([frame]) for frame in frames[4:]] == [1, 1, 1, 1]
        assert [bytes(frame.data) for frame in guest.recv()] == [bytes(frame[0][0]) for frame in frames[4:]]
