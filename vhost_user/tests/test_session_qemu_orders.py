"""The orders QEMU 7.2.22 really sends messages in, as recorded from Debian 12's binary (reference section 3.1)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from vhost_user.message import Request
from vhost_user.session import Session

from .raw_front_end import (
    LOG_ALL,
    NET_PROTOCOL,
    OFFERED,
    VSOCK_PROTOCOL,
    FrontEnd,
    RecordingDevice,
    called,
    net_device,
    vsock_device,
)

GUEST = OFFERED & ~LOG_ALL


@pytest.fixture
def net() -> Iterator[tuple[RecordingDevice, FrontEnd]]:
    device = net_device(pairs=2)
    with FrontEnd(Session(device)) as front:
        yield device, front
    device.close()


@pytest.fixture
def vsock() -> Iterator[tuple[RecordingDevice, FrontEnd]]:
    device = vsock_device(cid=42)
    with FrontEnd(Session(device)) as front:
        yield device, front
    device.close()


Rig = tuple[RecordingDevice, FrontEnd]


def net_init(front: FrontEnd) -> None:
    front.handshake(NET_PROTOCOL, [0, 1])
    front.handshake(NET_PROTOCOL, [2, 3], owner=False)
    for _ in range(4):  # machine reset says so two to four times, before anything else is set up
        for ring, on in enumerate((True, True, False, False)):
            front.enable(ring, on)


def net_driver_ok(front: FrontEnd, *, slots: bool, base: int = 0) -> None:
    front.enable(0)
    front.enable(1)
    for pair in (0, 1):
        front.say(Request.SET_FEATURES, struct.pack("<Q", GUEST))
        if pair == 0:
            front.status(8)
        if slots:
            front.mem_slot()  # repeated for every queue pair (QEMU 7.2): the second add must be harmless
        elif pair == 0:
            front.mem_table()
        for ring in (2 * pair, 2 * pair + 1):
            front.ring(ring, base=base)
    front.status(7)


@pytest.mark.parametrize("slots", [False, True], ids=["SET_MEM_TABLE", "ADD_MEM_REG twice"])
def test_net_enables_before_features_memory_and_rings(net: Rig, slots: bool) -> None:
    device, front = net
    net_init(front)
    assert device.live() == [False] * 4
    net_driver_ok(front, slots=slots)
    assert device.live() == [True, True, False, False]
    assert device.memory is not None
    assert len(device.memory.regions) == 1
    assert [ring.started for ring in device.rings] == [True] * 4
    for ring in range(4):  # the guest sets two pairs in its control queue, which QEMU owns
        front.enable(ring)
    assert device.live() == [True] * 4


def test_net_frames_flow_once_started_without_waiting_for_a_kick(net: Rig) -> None:
    device, front = net
    net_init(front)
    front.memory.offer(1, 256, b"frame")
    net_driver_ok(front, slots=False)
    burst = device.rings[1].pop()
    assert bytes(burst.view) == b"frame"
    assert front.memory.used_idx(1) == 1


def test_net_vm_stop_and_cont_keep_the_place_in_the_ring(net: Rig) -> None:
    device, front = net
    net_init(front)
    net_driver_ok(front, slots=False)
    for number in range(3):
        front.memory.offer(1, 256, b"frame", number=number)
    assert device.rings[1].pop().count == 3
    front.say(Request.SET_STATUS, struct.pack("<Q", 0))  # before the bases are asked for: must not reset the rings
    assert [front.base(ring) for ring in range(4)] == [0, 3, 0, 0]
    assert device.live() == [False] * 4
    front.memory.offer(1, 256, b"later", number=3)
    assert device.rings[1].pop().count == 0  # stopped: guest memory is not touched
    net_driver_ok(front, slots=False, base=3)
    assert bytes(device.rings[1].pop().view) == b"later"


def test_net_migration_switches_dirty_logging_on_running_rings(net: Rig) -> None:
    import os

    device, front = net
    net_init(front)
    net_driver_ok(front, slots=False)
    log = os.memfd_create("log")
    os.ftruncate(log, 0x10000)
    for pair in (0, 1):
        reply = front.ask(Request.SET_LOG_BASE, struct.pack("<QQ", 0x10000, 0), [log])
        assert front.u64(reply) == 0  # LOG_SHMFD: always replied to
        assert front.ack(Request.SET_FEATURES, struct.pack("<Q", GUEST | LOG_ALL)) == 0
        for ring in (2 * pair, 2 * pair + 1):
            assert front.ack(Request.SET_VRING_ADDR, front.memory.addr(ring, flags=1, log=0x6000)) == 0
    front.memory.offer(1, 256, b"frame")
    assert device.rings[1].pop().count == 1
    assert os.pread(log, 1, 0) == bytes([1 << 6])  # the page of the used ring, by its log address 0x6000
    assert front.ack(Request.SET_FEATURES, struct.pack("<Q", GUEST)) == 0
    assert front.base(1) == 1
    os.close(log)


def test_net_announce_after_migration(net: Rig) -> None:
    device, front = net
    net_init(front)
    front.say(Request.SEND_RARP, bytes.fromhex("525400123456 0000"))
    assert ("rarp", bytes.fromhex("525400123456")) in device.events


def vsock_driver_ok(front: FrontEnd, *, num: int, memory: bool) -> None:
    front.new_call(0)
    front.new_call(1)
    front.say(Request.SET_FEATURES, struct.pack("<Q", GUEST))
    front.status(8)
    if memory:
        front.mem_slot()
    for ring in (0, 1):
        front.ring(ring, num=num, call=False)
    for ring in (0, 1):
        front.enable(ring)
    for ring in (0, 1):
        front.new_call(ring)


def vsock_init(front: FrontEnd) -> None:
    front.handshake(VSOCK_PROTOCOL, [0, 1])
    reply = front.ask(Request.GET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8))
    assert reply == struct.pack("<IIIQ", 0, 8, 0, 42)


def test_vsock_enables_after_kick(vsock: Rig) -> None:
    device, front = vsock
    vsock_init(front)
    vsock_driver_ok(front, num=1024, memory=True)
    assert device.live() == [True, True]
    assert [ring.num for ring in device.rings] == [1024, 1024]


def test_vsock_reset_and_second_start_with_another_size_and_no_memory_message(vsock: Rig) -> None:
    device, front = vsock
    vsock_init(front)
    vsock_driver_ok(front, num=128, memory=True)
    for ring in (0, 1):
        front.enable(ring, False)
    assert [front.base(ring) for ring in (0, 1)] == [0, 0]
    for ring in (0, 1):
        front.new_call(ring)  # again right after the stop
    assert device.live() == [False, False]
    vsock_driver_ok(front, num=8, memory=False)
    assert device.live() == [True, True]
    assert [ring.num for ring in device.rings] == [8, 8]


def test_every_new_call_descriptor_of_a_running_ring_is_signalled_once(vsock: Rig) -> None:
    """The guest may be waiting for an interrupt that went to the descriptor before (reference section 6.2)."""
    _, front = vsock
    vsock_init(front)
    vsock_driver_ok(front, num=128, memory=True)
    assert called(front.call[0])
    front.new_call(0)
    assert called(front.call[0])
    assert not called(front.call[0])


def test_reconnect_starts_from_the_used_index(net: Rig) -> None:
    """After a crash of the back-end QEMU gives the used index of guest memory as base (reference section 6.2)."""
    device, front = net
    net_init(front)
    front.memory.set_used_idx(1, 5)
    for number in range(5, 7):
        front.memory.offer(1, 256, b"frame%d" % number, number=number)
    net_driver_ok(front, slots=False, base=5)
    assert bytes(device.rings[1].pop().view) == b"frame5frame6"
    assert front.memory.used_idx(1) == 7


def test_front_end_without_protocol_features_has_its_rings_enabled_by_starting_them(net: Rig) -> None:
    device, front = net
    front.ask(Request.GET_FEATURES)
    front.say(Request.SET_OWNER)
    front.say(Request.SET_FEATURES, struct.pack("<Q", GUEST & ~(1 << 30)))
    front.say(Request.SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, *front.memory.region), [front.memory.fd])
    front.ring(0)
    front.ring(1)
    assert device.live() == [True, True, False, False]


def test_the_second_pair_repeats_messages_without_disturbing_the_first(net: Rig) -> None:
    device, front = net
    net_init(front)
    front.say(Request.SET_FEATURES, struct.pack("<Q", GUEST))
    front.mem_table()
    front.ring(0)
    front.ring(1)
    front.say(Request.SET_FEATURES, struct.pack("<Q", GUEST))  # same bits on running rings
    front.handshake(NET_PROTOCOL, [2, 3], owner=False)
    assert device.live() == [True, True, False, False]


def test_kick_may_come_before_the_addresses(net: Rig) -> None:
    """Not QEMU's order; a ring starts once its parts are there, and a kick before that must not spin."""
    device, front = net
    net_init(front)
    front.mem_table()
    kick = front.event()
    front.say(Request.SET_VRING_KICK, struct.pack("<Q", 0), [kick])
    assert not device.rings[0].started
    front.say(Request.SET_VRING_NUM, struct.pack("<II", 0, 64))
    front.say(Request.SET_VRING_ADDR, front.memory.addr(0))
    assert device.live()[0]
