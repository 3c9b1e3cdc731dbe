"""The driver itself: guest memory, negotiation in QEMU's orders, and what it says about a device that misbehaves."""

from __future__ import annotations

import gc
import os
import re
import socket
import threading
from pathlib import Path

import pytest

from vhost_user.driver import (
    Descriptor,
    DriverError,
    Frontend,
    GuestMemory,
    NetDriver,
    NetFrame,
    Order,
    VsockDriver,
)
from vhost_user.driver.net import ALL_FEATURES
from vhost_user.features import NetFeature
from vhost_user.message import Request, emit_reply
from vhost_user.net import NetDevice
from vhost_user.server import Server
from vhost_user.vsock import VsockDevice

from .device_rig import broadcast, net_rig, plain, vsock_rig

# -- memory -------------------------------------------------------------------------------------------------------


def test_guest_memory_is_addressed_by_guest_physical_addresses_with_holes() -> None:
    memory = GuestMemory([(0x1000, 0x1000), (0x2000, 0x1000), (0x100000, 0x1000)])
    memory.write(0x1FFE, b"abcd")  # across two regions that touch
    assert memory.read(0x1FFE, 4) == b"abcd"
    assert memory.read(0x2000, 2) == b"cd"
    assert memory.offset(0x100000) == 0x2000
    assert memory.uva(0x100010) - memory.uva(0x1000) == 0x2010
    for gpa, size in ((0, 1), (0xFFF, 1), (0x2FFF, 2), (0x101000, 1), (0x100FFF, 2), (0xFFFFF, 2)):
        with pytest.raises(ValueError, match="no guest memory"):
            memory.read(gpa, size)
    memory.close()
    memory.close()


def test_guest_memory_refuses_regions_that_make_no_sense() -> None:
    for regions in ([], [(0, 0)], [(0, 100)], [(0, 4096), (0, 4096)], [(8192, 4096), (0, 4096)]):
        with pytest.raises(ValueError, match="region"):
            GuestMemory(regions)


def test_guest_memory_says_when_it_is_full() -> None:
    memory = GuestMemory([(0, 8192)])
    assert memory.allocate(100, 4096) == 0
    assert memory.allocate(100, 4096) == 4096
    with pytest.raises(DriverError, match="too small"):
        memory.allocate(8192)
    memory.close()


def test_guest_memory_is_sealed_like_qemus_unless_asked_otherwise() -> None:
    memory = GuestMemory([(0, 8192)])
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 4096)
    memory.close()
    memory = GuestMemory([(0, 8192)], sealed=False)
    os.ftruncate(memory.fd, 4096)
    memory.close()


# -- connecting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "abstract", "socket"])
def test_a_driver_connects_to_whatever_a_server_listens_on(kind: str, tmp_path: os.PathLike[str]) -> None:
    device = NetDevice()
    with Server() as server:
        target: str | socket.socket
        if kind == "path":
            target = server.listen(device, path=os.path.join(tmp_path, "net.sock")).address
        elif kind == "abstract":
            target = server.listen(device, abstract=f"guestwire-driver-test-{os.getpid()}").address
            assert target.startswith("@")
        else:
            ours, target = socket.socketpair()
            server.adopt(device, ours)
        with NetDriver(target) as guest:
            guest.send([broadcast(60)])
            device.receive(0)
            assert len(device.receive(8)) == 1
        device.close()


@pytest.mark.parametrize("order", list(Order))
def test_either_device_takes_either_order_of_messages(order: Order) -> None:
    """QEMU enables rings before features for net and after the kick for vsock; the rule is the same for both."""
    with net_rig(order=order) as (device, guest):
        guest.send([broadcast(60)])
        device.transmit([plain(broadcast(61))])
        assert len(device.receive(8)) == 1
        assert len(guest.recv()) == 1
        guest.stop()
        guest.start()
        guest.reset()
        guest.start()
        device.receive(0)
        assert device.carrier
    with vsock_rig(order=order) as (vsock, other):
        other.send([other.packet(5, 1, 2, b"x")])
        assert len(vsock.receive(8)) == 1


def test_a_driver_gets_on_without_any_protocol_feature() -> None:
    """No REPLY_ACK, no memory slots, no status: SET_MEM_TABLE and plain sends."""
    device = NetDevice()
    ours, theirs = socket.socketpair()
    with Server() as server:
        server.adopt(device, ours)
        with NetDriver(theirs, protocol_features=0) as guest:
            guest.frontend.get_features()  # what was sent before has been handled when this is answered
            device.receive(0)
            assert device.carrier
            guest.send([broadcast(60)])
            assert len(device.receive(8)) == 1
    device.close()


def test_asking_for_more_queue_pairs_than_there_are_fails_by_name() -> None:
    with pytest.raises(DriverError, match="2 queue pairs, asked for 3"), net_rig(NetDevice(queues=2), queues=3):
        pass
    with pytest.raises(DriverError, match="does not offer VIRTIO_NET_F_MQ"), net_rig(queues=2):
        pass


def test_a_busy_device_refuses_a_second_driver_and_keeps_the_first() -> None:
    device = NetDevice()
    with Server() as server:
        listening = server.listen(device, abstract=f"guestwire-busy-test-{os.getpid()}")
        with NetDriver(listening.address) as first:
            with pytest.raises(DriverError, match="closed the connection"):
                NetDriver(listening.address)
            device.receive(0)
            first.send([broadcast(60)])
            assert len(device.receive(8)) == 1
    device.close()


# -- back-ends that misbehave -------------------------------------------------------------------------------------


def test_silence_hang_up_and_nonsense_are_told_apart() -> None:
    ours, theirs = socket.socketpair()
    frontend = Frontend(theirs, timeout=0.01)
    with pytest.raises(DriverError, match="GET_FEATURES: no reply"):
        frontend.get_features()
    ours.sendall(emit_reply(Request.GET_QUEUE_NUM, bytes(8)))
    with pytest.raises(DriverError, match="got GET_QUEUE_NUM"):
        frontend.get_features()
    ours.sendall(emit_reply(Request.GET_FEATURES, bytes(4)))
    with pytest.raises(DriverError, match="4 bytes, expected 8"):
        frontend.get_features()
    ours.close()
    with pytest.raises(DriverError, match="closed the connection"):
        frontend.get_features()
    frontend.close()


def test_a_device_that_breaks_the_rings_rules_is_named() -> None:
    with net_rig(start=False) as (_, guest):
        guest.negotiate()
        guest.prepare_rings()
        ring = guest.rx()
        ring.set_used_index(300)
        with pytest.raises(DriverError, match="past what was in flight"):
            guest.recv()
        ring.reset()
        ring.post()
        guest.memory.write(ring.used + 4, (7000).to_bytes(4, "little") + (20).to_bytes(4, "little"))
        ring.set_used_index(1)
        with pytest.raises(DriverError, match="no chain in flight"):
            guest.recv()
        ring.reset()
        ring.post()
        head = int.from_bytes(guest.memory.read(ring.avail + 4, 2), "little")
        guest.memory.write(ring.used + 4, head.to_bytes(4, "little") + (1 << 20).to_bytes(4, "little"))
        guest.memory.write(ring.read_descriptor(head).address + 10, b"\x01\x00")
        ring.set_used_index(1)
        with pytest.raises(DriverError, match="more bytes than its buffer"):
            guest.recv()
        ring.reset()
        ring.post()
        guest.memory.write(ring.used + 4, head.to_bytes(4, "little") + (100).to_bytes(4, "little"))
        guest.memory.write(ring.read_descriptor(head).address + 10, b"\x02\x00")
        ring.set_used_index(1)
        with pytest.raises(DriverError, match="more buffers than were published"):
            guest.recv()


def test_a_vsock_packet_whose_length_lies_is_named() -> None:
    with vsock_rig(start=False) as (_, guest):
        guest.negotiate()
        guest.prepare_rings()
        ring = guest.rx
        head = int.from_bytes(guest.memory.read(ring.avail + 4, 2), "little")
        guest.memory.write(ring.used + 4, head.to_bytes(4, "little") + (50).to_bytes(4, "little"))
        ring.set_used_index(1)
        with pytest.raises(DriverError, match="says 0 bytes of payload and brings 6"):
            guest.recv()


# -- waiting ------------------------------------------------------------------------------------------------------


def test_recv_sleeps_until_a_frame_comes_and_no_longer_than_told() -> None:
    for features in (ALL_FEATURES, ALL_FEATURES & ~NetFeature.EVENT_IDX):
        with net_rig(features=features) as (device, guest):
            assert guest.recv(timeout=0.01) == []
            assert guest.drain(timeout=0.01) == (0, 0)
            thread = threading.Thread(target=lambda: device.transmit([plain(broadcast(60))]))
            thread.start()
            assert len(guest.recv(timeout=30.0)) == 1
            thread.join()


def test_send_waits_for_the_device_to_give_buffers_back() -> None:
    with net_rig(tx_size=4) as (device, guest):
        frames = [broadcast(60, seed) for seed in range(12)]
        assert guest.send(frames) == 4
        assert guest.send(frames[4:], timeout=0.01) == 0
        taken: list[bytes] = []

        def take() -> None:
            while len(taken) < 12:
                taken.extend(bytes(frame[0]) for frame in device.receive(2))

        thread = threading.Thread(target=take)
        thread.start()
        assert guest.send(frames[4:], timeout=30.0) == 8
        thread.join()
        assert taken == frames


def test_a_burst_can_be_sent_again_with_its_headers_changed() -> None:
    header, payload = bytearray(12 + 20), bytes(40)
    with net_rig() as (device, guest):
        burst = type(guest.burst([]))([(header, payload)])
        for number in range(5):
            header[12:] = bytes([number]) * 20
            burst.send(guest.tx())
        assert [view[0] for view, *_ in device.receive(64)] == [0, 1, 2, 3, 4]


def test_what_is_larger_than_a_buffer_or_a_ring_is_refused_by_name() -> None:
    with net_rig() as (_, guest), pytest.raises(DriverError, match="buffers of ring 1 hold"):
        guest.send([bytes(70000)])
    pieces = (1,) * 20
    features = ALL_FEATURES & ~NetFeature.INDIRECT_DESC
    with (
        net_rig(tx_size=16, tx_pieces=pieces, features=features) as (_, guest),
        pytest.raises(DriverError, match="more descriptors than ring 1 has"),
    ):
        guest.send([broadcast(60)])
    memory = GuestMemory()
    with pytest.raises(ValueError, match="no power of two"):
        _ring(memory, 3)
    memory.close()


def _ring(memory: GuestMemory, num: int) -> None:
    from vhost_user.driver import DriverRing

    DriverRing(memory, 0, num, writable=True, buffers=1, buffer_size=64)


# -- hostile by choice --------------------------------------------------------------------------------------------


def test_raw_access_reaches_every_byte_of_a_ring() -> None:
    with net_rig() as (device, guest):
        ring = guest.tx()
        at = ring.scratch(bytes(12) + broadcast(60))
        ring.write_descriptor(5, Descriptor(at, 30, 1, 9))
        ring.write_descriptor(9, Descriptor(at + 30, 42))
        assert ring.read_descriptor(5) == Descriptor(at, 30, 1, 9)
        ring.write_avail(0, 5)
        ring.set_avail_index(1)
        ring.kick()
        assert bytes(device.receive(1)[0][0]) == broadcast(60)
        assert ring.used_index == 1
        assert ring.read_used(0) == (5, 0)
        device.suppress()
        assert ring.avail_event != 1
        device.arm()
        assert ring.avail_event == 1
        ring.set_used_event(1)
        ring.drain_calls()
        table = ring.scratch(at=4096, size=64)
        ring.write_descriptor(0, Descriptor(at, 72), table=table)
        ring.make_available([Descriptor(table, 16, 4)])
        assert len(device.receive(1)) == 1
        assert ring.drain_calls() == 1


def test_any_message_can_be_sent_with_any_descriptors() -> None:
    with net_rig() as (device, guest):
        spare = os.eventfd(0)
        guest.frontend.send(Request.SET_VRING_NUM, b"short", [spare, spare])
        os.close(spare)
        with pytest.raises(DriverError, match="closed the connection"):
            guest.frontend.get_features()
        device.receive(0)
        assert not device.carrier


def test_frames_carry_their_facts_in_the_header() -> None:
    frame = NetFrame(b"x", 1, 2, 3, 4, 5, 6, 7)
    assert frame.header() == bytes([1, 2, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0])


def test_a_driver_leaves_nothing_behind() -> None:
    def descriptors() -> int:
        gc.collect()  # what others left goes now, not in between
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(3):
        with net_rig(), vsock_rig():
            pass
        with pytest.raises(DriverError), net_rig(NetDevice(queues=1), queues=2):
            pass
    assert descriptors() <= before  # what others left may have gone meanwhile


def test_both_drivers_start_themselves_or_leave_it_to_the_caller() -> None:
    device = VsockDevice(9)
    ours, theirs = socket.socketpair()
    with Server() as server:
        server.adopt(device, ours)
        guest = VsockDriver(theirs, start=False)
        assert guest.offered == 0
        guest.negotiate()
        assert guest.guest_cid == 9
        device.receive(0)
        assert not device.connected or not device.carrier
        guest.start()
        assert guest.running
        guest.close()
        guest.close()
    device.close()


def test_the_examples_of_the_book_work(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/driver.md: the first example as it stands, the others on fresh pairs."""
    page = Path(__file__).resolve().parents[2] / "docs" / "driver.md"
    first, bulk, hostile = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile(first, str(page), "exec"), {})
    assert "60 [0, 0, 0, 0, 0]" in capsys.readouterr().out
    with net_rig() as (device, guest):
        given = {"snd_una": 1, "snd_nxt": 1, "rcv_nxt": 1, "window": 6, "payload": b"abc", "guest": guest}
        exec(compile(bulk, str(page), "exec"), given | dict.fromkeys(("ack_headers", "headers"), bytes(66)))
        assert [bytes(entry[0][54:57]) for entry in device.receive(8)] == [b"abc"] * 2
    with net_rig() as (device, guest):
        exec(compile(hostile, str(page), "exec"), {"device": device, "guest": guest})
