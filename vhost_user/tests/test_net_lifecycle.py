"""What the owner of a NetDevice sees while drivers come and go: carrier, offloads, MTU, descriptors to sleep on."""

from __future__ import annotations

import select
import socket
from typing import Any

import pytest

from vhost_user.driver import Descriptor, NetDriver
from vhost_user.driver.net import ALL_FEATURES
from vhost_user.features import NET_OFFLOADS, NetFeature, without_orphans
from vhost_user.net import NetDevice
from vhost_user.server import Server

from .device_rig import broadcast, net_rig, plain


def readable(device: NetDevice) -> bool:
    return bool(select.select([device.fileno()], [], [], 0)[0])


def carrier(device: NetDevice) -> bool:
    """After the owner has looked."""
    device.receive(0)
    return device.carrier


def settle(device: NetDevice) -> None:
    """Look until there is nothing to look at, as a Network does before it sleeps."""
    for _ in range(10):
        device.receive(64)
        if not device.arm():
            return
    raise AssertionError("the device reports work without end")


# -- features -----------------------------------------------------------------------------------------------------


def test_everything_is_offered_by_default() -> None:
    device = NetDevice()
    offered = NetFeature(device.device_features & (1 << 57) - 1)
    wanted = NET_OFFLOADS | NetFeature.MRG_RXBUF | NetFeature.EVENT_IDX | NetFeature.INDIRECT_DESC
    assert offered & (wanted | NetFeature.GUEST_ANNOUNCE | NetFeature.VERSION_1) == (
        wanted | NetFeature.GUEST_ANNOUNCE | NetFeature.VERSION_1
    )
    assert device.device_features & 1 << 30  # vhost-user protocol features
    assert not offered & NetFeature.MQ
    device.close()


@pytest.mark.parametrize("feature", [f for f in NetFeature if f is not NetFeature.VERSION_1])
def test_each_feature_can_be_switched_off(feature: NetFeature) -> None:
    device = NetDevice(queues=2, disable=feature)
    offered = NetFeature(device.device_features & (1 << 57) - 1)
    assert not offered & feature
    assert without_orphans(offered) == offered
    device.close()


def test_features_whose_prerequisite_is_off_are_off() -> None:
    """5.1.3.1: TSO and USO require CSUM, ECN requires TSO."""
    device = NetDevice(disable=NetFeature.CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6)
    gone = (
        NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_ECN | NetFeature.HOST_USO | NetFeature.GUEST_ECN
    )
    assert not device.device_features & gone
    assert device.device_features & NetFeature.GUEST_CSUM
    device.close()


def test_offload_false_offers_no_offload() -> None:
    with net_rig(NetDevice(offload=False)) as (device, guest):
        assert not device.device_features & NET_OFFLOADS
        assert not guest.features & NET_OFFLOADS
        assert device.offloads == 1  # checksums are still finished for the stack
        assert device.max_superframe == 1514
        guest.send([broadcast(60)])
        assert len(device.receive(1)) == 1


@pytest.mark.parametrize(
    ("without", "offloads"),
    [
        (0, 1 | 2 | 4 | 8 | 16),
        (NetFeature.GUEST_TSO4, 1 | 4 | 8 | 16),
        (NetFeature.GUEST_TSO6, 1 | 2 | 8 | 16),
        (NetFeature.GUEST_ECN, 1 | 2 | 4 | 16),
        (NetFeature.GUEST_CSUM, 1),
        (NetFeature.GUEST_USO4, 1 | 2 | 4 | 8),
        (NetFeature.GUEST_USO6, 1 | 2 | 4 | 8),
        (NetFeature.HOST_TSO4, 1 | 2 | 4 | 8 | 16),
    ],
)
def test_offloads_are_those_the_guest_acknowledged(without: int, offloads: int) -> None:
    with net_rig(features=ALL_FEATURES & ~without) as (device, _):
        assert device.offloads == offloads
        assert device.max_superframe == (65549 if offloads & 22 else 1514)


# -- carrier ------------------------------------------------------------------------------------------------------


def test_carrier_is_up_from_driver_ready_to_reset() -> None:
    device = NetDevice()
    ours, theirs = socket.socketpair()
    seen: list[tuple[bool, int]] = []
    device.on_change = lambda: seen.append((device.carrier, device.offloads))
    with Server() as server:
        server.adopt(device, ours)
        guest = NetDriver(theirs, start=False)
        guest.negotiate()
        assert not carrier(device)
        seen.clear()
        guest.start()
        assert not seen  # reported on the owner's thread, when it looks
        assert carrier(device)
        assert seen == [(True, 31)]
        assert carrier(device)
        assert len(seen) == 1  # one report for one change
        guest.reset()
        assert not carrier(device)
        guest.start()
        assert carrier(device)
        guest.close()
    assert not carrier(device)
    assert [up for up, _ in seen] == [True, False, True, False]
    device.close()


def test_a_change_wakes_whoever_sleeps_on_the_device() -> None:
    with net_rig() as (device, guest):
        settle(device)
        assert not readable(device)
        guest.stop()
        assert readable(device)
        settle(device)
        assert not device.carrier
        assert not readable(device)


def test_without_carrier_everything_is_accepted_and_dropped() -> None:
    """LinkDevice: as an unplugged card does."""
    device = NetDevice()
    assert device.transmit([plain(broadcast(60))] * 3) == 3
    assert device.receive(64) == []
    assert device.drops == {"tx-no-carrier": 3}
    device.close()


def test_a_ring_that_stops_in_the_middle_of_a_burst_swallows_it() -> None:
    """The control thread may stop rings at any moment; the owner hears of it later."""
    with net_rig() as (device, guest):
        guest.stop()  # the data side has not looked yet
        assert device.transmit([plain(broadcast(60))] * 3) == 3
        assert device.receive(1) == []
        assert not carrier(device)
        assert device.drops == {"tx-no-carrier": 3}


def test_a_broken_ring_takes_the_carrier_down_and_a_driver_reset_brings_it_back() -> None:
    """Section 4: stop the ring, stay alive, keep answering control messages."""
    with net_rig() as (device, guest):
        settle(device)
        guest.tx().make_available([Descriptor(1 << 40, 100)])
        device.receive(8)
        assert device.rings[1].broken
        assert guest.tx().drain_errors() == 1
        assert device.arm()
        assert not carrier(device)
        settle(device)
        guest.reset()
        guest.start()
        assert carrier(device)
        guest.send([broadcast(60)])
        assert len(device.receive(8)) == 1


def test_a_paused_guest_goes_on_where_it_stopped() -> None:
    """QEMU's stop and cont: GET_VRING_BASE, later SET_VRING_BASE with the same number."""
    with net_rig() as (device, guest):
        guest.send([broadcast(60, seed) for seed in range(5)])
        assert len(device.receive(3)) == 3
        assert guest.stop() == [0, 3]
        guest.send([broadcast(60, 5)])
        device.receive(64)
        guest.start()
        assert [bytes(frame[0]) for frame in device.receive(64)] == [broadcast(60, seed) for seed in (3, 4, 5)]
        device.transmit([plain(broadcast(60))])
        assert len(guest.recv()) == 1


def test_another_driver_finds_a_fresh_device() -> None:
    """Reconnect: everything starts from scratch, with the features of the new driver."""
    device = NetDevice()
    with Server() as server:
        for features, offloads in ((ALL_FEATURES, 31), (NetFeature.VERSION_1, 1), (ALL_FEATURES, 31)):
            ours, theirs = socket.socketpair()
            server.adopt(device, ours)
            with NetDriver(theirs, features=features) as guest:
                device.receive(1)
                assert device.carrier
                assert device.offloads == offloads
                guest.send([broadcast(60)])
                device.transmit([plain(broadcast(61))])
                assert [len(frame[0]) for frame in device.receive(8)] == [60]
                assert [len(frame.data) for frame in guest.recv()] == [61]
    device.close()


def test_a_closed_device_is_silent() -> None:
    with net_rig() as (device, guest):
        guest.send([broadcast(60)])
        device.close()
        assert not device.carrier
        assert device.receive(64) == []
        assert device.transmit([plain(broadcast(60))]) == 1
        assert not device.arm()
        device.suppress()
        assert device.fileno() == -1


# -- sleeping -----------------------------------------------------------------------------------------------------


def test_frames_wake_an_armed_device_and_not_a_suppressed_one() -> None:
    for features in (ALL_FEATURES, ALL_FEATURES & ~NetFeature.EVENT_IDX):
        with net_rig(features=features) as (device, guest):
            settle(device)
            device.suppress()
            kicks = guest.tx().kicks
            guest.send([broadcast(60)])
            assert guest.tx().kicks == kicks
            assert not readable(device)
            assert device.arm()  # it came before we armed
            assert len(device.receive(64)) == 1
            settle(device)
            guest.send([broadcast(60)])
            assert guest.tx().kicks == kicks + 1
            assert readable(device)


def test_a_full_receive_ring_keeps_frames_with_the_caller_and_wakes_it_when_buffers_return() -> None:
    with net_rig(rx_size=4) as (device, guest):
        settle(device)
        frames = [plain(broadcast(60, seed)) for seed in range(10)]
        assert device.transmit(frames) == 4
        assert not device.arm()
        assert not readable(device)
        assert len(guest.recv(2)) == 2  # posts both buffers again and kicks, for the device asked for it
        assert readable(device)
        assert device.arm()
        assert device.transmit(frames[4:]) == 2
        assert [bytes(frame.data) for frame in guest.recv()] == [broadcast(60, seed) for seed in range(2, 6)]


def test_no_buffer_that_returns_at_the_wrong_moment_is_overlooked() -> None:
    """The guest returns all its buffers just after a push ran out of them, and has no reason to kick then."""
    with net_rig(rx_size=4) as (device, guest):
        ring = device.rings[0]
        push = ring.push
        given: list[Any] = []

        def push_and_return(*arguments: Any, **options: Any) -> int:
            accepted = push(*arguments, **options)
            if not accepted and not given:
                given.append(guest.recv())
            return accepted

        ring.push = push_and_return  # type: ignore[method-assign] # stands for a guest on another processor
        frames = [plain(broadcast(60))] * 10
        done = device.transmit(frames)
        assert done == 4
        assert given
        assert device.arm()  # or somebody would sleep for ever
        assert device.transmit(frames[done:]) == 4


def test_a_superframe_waits_until_it_fits_as_a_whole() -> None:
    """Section 4.3: if the ring runs out in the middle, nothing of the frame is published."""
    with net_rig(NetDevice(mtu=9000), rx_size=4) as (device, guest):
        small, large = plain(broadcast(60)), plain(broadcast(9000))  # 1 and 3 buffers of 4096 bytes
        assert device.transmit([small, small, large]) == 2
        assert [len(frame.data) for frame in guest.recv()] == [60, 60]
        assert device.transmit([large]) == 1
        assert guest.recv()[0].num_buffers == 3


def test_buffers_that_come_back_cost_no_kick_while_nobody_waits_for_them() -> None:
    with net_rig() as (device, guest):
        settle(device)
        kicks = guest.rx().kicks
        for _ in range(10):
            device.transmit([plain(broadcast(60))] * 20)
            guest.recv()
        assert guest.rx().kicks == kicks
        assert not readable(device)


# -- disabled rings, several pairs --------------------------------------------------------------------------------


def test_a_disabled_transmit_ring_is_emptied_and_discarded() -> None:
    """vhost-user: the back-end must process and discard, never block the guest."""
    with net_rig(tx_size=8) as (device, guest):
        guest.frontend.set_vring_enable(1, False)
        device.receive(1)
        for _ in range(3):
            assert guest.send([broadcast(60)] * 8) == 8
            assert device.receive(64) == []
        assert device.drops == {"rx-disabled": 24}
        settle(device)
        guest.send([broadcast(60)])
        assert readable(device)  # also while nobody looks by himself
        guest.frontend.set_vring_enable(1, True)
        device.receive(64)
        guest.send([broadcast(60)])
        assert len(device.receive(64)) == 1


def test_nothing_is_put_into_a_disabled_receive_ring() -> None:
    with net_rig() as (device, guest):
        guest.frontend.set_vring_enable(0, False)
        assert device.transmit([plain(broadcast(60))]) == 1
        device.receive(1)
        assert not device.carrier
        assert guest.rx().used_index == 0


def flow_frame(port: int) -> bytes:
    head = broadcast(14)[:12] + b"\x08\x00" + bytes.fromhex("45000054000040004006000001020304") + b"\x0a\0\2\2"
    return head + port.to_bytes(2, "big") + b"\0\x50" + bytes(60)


def test_queue_pairs_are_all_served_and_a_flow_stays_in_one() -> None:
    with net_rig(NetDevice(queues=4), queues=4) as (device, guest):
        for queue in range(4):
            guest.send([broadcast(60, queue)], queue=queue)
        got = device.receive(64)
        assert sorted(bytes(frame[0]) for frame in got) == sorted(broadcast(60, queue) for queue in range(4))
        flows = [flow_frame(port) for port in range(64)]
        for _ in range(2):
            frames = [((flow[:20], flow[20:]), 0, 0, 0, 0, 0, 0) for flow in flows]
            assert device.transmit(frames) == 64
        homes: dict[bytes, set[int]] = {}
        for queue in range(4):
            frames_of = [bytes(frame.data) for frame in guest.recv(256, queue=queue)]
            assert frames_of
            for data in frames_of:
                homes.setdefault(data, set()).add(queue)
        assert len(homes) == 64
        assert all(len(queues) == 1 for queues in homes.values())


def test_pairs_the_guest_has_not_enabled_are_not_used() -> None:
    """QEMU configures all rings at DRIVER_OK and enables further pairs when the guest asks for them."""
    with net_rig(NetDevice(queues=2), queues=2, tx_size=8) as (device, guest):
        for ring in (2, 3):
            guest.frontend.set_vring_enable(ring, False)
        settle(device)
        assert device.carrier
        for _ in range(3):
            assert guest.send([broadcast(60, 1)] * 8, queue=1) == 8
            guest.send([broadcast(60, 0)], queue=0)
            assert [bytes(frame[0]) for frame in device.receive(64)] == [broadcast(60, 0)]
            settle(device)  # what is in the other ring keeps neither the guest nor us busy
        assert device.drops == {"rx-disabled": 24}
        assert device.transmit([plain(flow_frame(port)) for port in range(32)]) == 32
        assert len(guest.recv(64, queue=0)) == 32
        assert guest.recv(64, queue=1) == []


def test_one_full_ring_of_several_stops_the_burst_in_order() -> None:
    with net_rig(NetDevice(queues=2), queues=2, rx_size=8) as (device, guest):
        frames = [plain(flow_frame(port)) for port in range(40)]
        accepted = device.transmit(frames)
        assert 8 <= accepted <= 16
        while accepted < 40:
            count = sum(len(guest.recv(64, queue=queue)) for queue in (0, 1))
            assert count
            accepted += device.transmit(frames[accepted:])
        assert device.drops == {}


# -- messages of their own ----------------------------------------------------------------------------------------


def test_net_set_mtu_changes_the_mtu() -> None:
    with net_rig() as (device, guest):
        changes = []
        device.on_change = lambda: changes.append(device.mtu)
        guest.frontend.net_set_mtu(9000)
        device.receive(1)
        assert changes == [9000]
        assert device.mtu == 9000
        guest.send([broadcast(9014), broadcast(9015)])
        assert [len(frame[0]) for frame in device.receive(64)] == [9014]
        assert device.transmit([plain(broadcast(9014)), plain(broadcast(9015))]) == 2
        assert [len(frame.data) for frame in guest.recv()] == [9014]


def test_send_rarp_announces_the_guest_on_the_link() -> None:
    """After a migration a switch must learn where the guest's MAC is now: a RARP request in its name (RFC 903)."""
    mac = bytes.fromhex("525400abcdef")
    with net_rig() as (device, guest):
        settle(device)
        guest.frontend.send_rarp(mac)
        assert readable(device)
        ((view, *facts),) = device.receive(64)
        assert bytes(view[:14]) == b"\xff" * 6 + mac + b"\x80\x35"
        assert bytes(view[14:22]) == bytes.fromhex("0001080006040003")
        assert len(view) == 60
        assert facts == [0] * 5
        assert device.announced == [mac]
        for _ in range(100):  # a flood of them is bounded
            guest.frontend.send_rarp(mac)
        assert len(device.receive(64)) == 16
        assert len(device.announced) == 16
