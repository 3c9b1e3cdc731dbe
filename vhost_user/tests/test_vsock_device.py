"""virtio-vsock packets, row by row (virtio 1.3 section 5.10): the device judges structure, the engine meaning."""

from __future__ import annotations

import select
import socket
from typing import Any

import pytest

from vhost_user.driver import Descriptor, GuestMemory, VsockDriver, VsockPacket
from vhost_user.driver.base import ALL_PROTOCOL_FEATURES
from vhost_user.driver.vsock import ALL_FEATURES, OP_CREDIT_UPDATE, OP_REQUEST, OP_RST, OP_RW, OP_SHUTDOWN
from vhost_user.features import VsockFeature
from vhost_user.message import Protocol
from vhost_user.vsock import VsockDevice, VsockTx

from .device_rig import CID, vsock_rig

SHAPES: dict[str, dict[str, Any]] = {
    "header and data in one descriptor": {"tx_pieces": ()},
    "header apart, as Linux before 6.3": {"tx_pieces": (44,), "rx_pieces": (44,), "rx_buffer": 44 + 4096},
    "header in crumbs": {"tx_pieces": (1, 7, 20, 10, 3), "rx_pieces": (1, 7, 20, 10, 3)},
    "header and data in one crumb": {"tx_pieces": (40, 10)},
    "no indirect": {"features": ALL_FEATURES & ~VsockFeature.INDIRECT_DESC},
    "no event index": {"features": ALL_FEATURES & ~VsockFeature.EVENT_IDX},
    "rings of eight": {"rx_size": 8, "tx_size": 8},
    "rings of 1024": {"rx_size": 1024, "tx_size": 1024},
    "memory with holes": {"memory": [(0, 0xA0000), (1 << 20, 31 << 20), (1 << 32, 32 << 20)]},
}


def fields(packet: VsockPacket) -> tuple[int, ...]:
    """A driver's packet as `receive` shows it, without the payload."""
    return (
        *(packet.src_cid, packet.dst_cid, packet.src_port, packet.dst_port),
        *(packet.type, packet.op, packet.flags, packet.buf_alloc, packet.fwd_cnt),
    )


def settle(device: VsockDevice) -> None:
    """Whatever happened is seen; nothing more is to be done."""
    while device.arm():
        device.receive(8)


def tx(op: int, payload: bytes | bytearray | memoryview = b"", *, port: int = 1000, flags: int = 0) -> VsockTx:
    return (2, CID, 2000, port, 1, op, flags, 65536, 77, payload)


def unsent(device: VsockDevice, packets: list[VsockTx]) -> list[VsockTx]:
    """What `transmit` left of `packets`, as the engine sees it: the first one without what of it has gone."""
    left = packets[device.transmit(packets) :]
    if device.partial:
        left[0] = (*left[0][:9], memoryview(left[0][9])[device.partial :])
    return left


def send_all(device: VsockDevice, guest: VsockDriver, packets: list[VsockTx]) -> list[VsockPacket]:
    """Send until everything has gone; returns what came."""
    came: list[VsockPacket] = []
    for _ in range(10_000):
        packets = unsent(device, packets)
        came += guest.recv(256)
        if not packets:
            return came
    raise AssertionError("it does not get on")


@pytest.mark.parametrize("shape", SHAPES)
def test_packets_arrive_whole_and_in_order_both_ways(shape: str) -> None:
    arguments = dict(SHAPES[shape])
    if "memory" in arguments:
        arguments["memory"] = GuestMemory(arguments["memory"])
    sizes = [1, 2, 100, 2047, 2048, 4052, 4053, 20000, 65536]
    with vsock_rig(**arguments) as (device, guest):
        packets = [
            VsockPacket(
                CID, 2, 1000 + i, 2**32 - 1 - i, OP_RW, bytes([i]) * size, flags=i, buf_alloc=2**32 - 1, fwd_cnt=i
            )
            for i, size in enumerate(sizes * 3)
        ]
        packets.append(guest.packet(OP_SHUTDOWN, 1, 2, flags=3))
        arrived: list[Any] = []
        sent = 0
        while len(arrived) < len(packets):
            sent += guest.send(packets[sent : sent + 8])
            arrived += device.receive(64)
        assert [got[:9] for got in arrived] == [fields(packet) for packet in packets]
        assert [bytes(got[9]) for got in arrived] == [packet.payload for packet in packets]

        back = [tx(OP_RW, bytes([i]) * size, port=i) for i, size in enumerate(sizes * 3)] + [tx(OP_RST)]
        left = list(back)
        streams: dict[int, bytes] = {}
        ops: list[int] = []
        while left or len(ops) == 0 or ops[-1] != OP_RST:
            left = unsent(device, left)
            for packet in guest.recv():
                assert packet[:3] == (2, CID, 2000)
                assert (packet.buf_alloc, packet.fwd_cnt) == (65536, 77)
                ops.append(packet.op)
                streams[packet.dst_port] = streams.get(packet.dst_port, b"") + bytes(packet.payload)
        assert [streams[i] for i in range(len(back) - 1)] == [bytes(packet[9]) for packet in back[:-1]]
        assert device.drops == {}


@pytest.mark.parametrize("size", [0, 1, 43])
def test_a_chain_without_a_whole_header_is_dropped(size: int) -> None:
    with vsock_rig() as (device, guest):
        ring = guest.tx
        ring.make_available([Descriptor(ring.scratch(bytes(64)), size)])
        assert device.receive(8) == []
        assert device.drops == {"rx-header": 1}
        assert ring.used_index == 1
        assert device.carrier


def packet(**changes: Any) -> VsockPacket:
    return VsockPacket(CID, 2, 1000, 2000, OP_RW, b"x" * 10)._replace(**changes)


BAD = {
    "len beyond the chain": (packet(length=11), "rx-payload"),
    "len far beyond": (packet(length=65536), "rx-payload"),
    "len over 64 KiB": (packet(length=65537), "rx-long"),
    "len over 64 KiB, and there": (packet(payload=bytes(65537)), "rx-chain"),
    "len with the top bit": (packet(length=1 << 31), "rx-long"),
    "len of all ones": (packet(length=2**32 - 1), "rx-long"),
    "len on a control packet beyond the chain": (packet(op=OP_RST, length=11), "rx-payload"),
    "the host's CID": (packet(src_cid=2), "rx-src-cid"),
    "another guest's CID": (packet(src_cid=4), "rx-src-cid"),
    "CID with upper bits": (packet(src_cid=CID | 1 << 32), "rx-src-cid"),
    "any CID": (packet(src_cid=2**32 - 1), "rx-src-cid"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_packet_is_dropped_counted_and_costs_nobody_else(case: str) -> None:
    bad, reason = BAD[case]
    with vsock_rig() as (device, guest):
        assert guest.send([packet(src_port=1), bad, packet(src_port=2)]) == 3
        assert [got[2] for got in device.receive(8)] == [1, 2]
        assert device.drops == {reason: 1}
        guest.tx.reclaim()
        assert guest.tx.free_buffers == 128  # its buffer came back like any other
        assert device.carrier


def test_len_may_be_shorter_than_the_chain() -> None:
    with vsock_rig() as (device, guest):
        guest.send([packet(length=4), packet(length=0)])
        assert [bytes(got[9]) for got in device.receive(8)] == [b"xxxx", b""]


def test_a_payload_where_none_belongs_is_ignored() -> None:
    """Linux accepts and ignores it; nothing may be kept of it."""
    with vsock_rig() as (device, guest):
        guest.send([packet(op=op, payload=b"y" * 5000) for op in (OP_REQUEST, OP_CREDIT_UPDATE, 0, 8, 65535)])
        arrived = device.receive(8)
        assert [got[5] for got in arrived] == [OP_REQUEST, OP_CREDIT_UPDATE, 0, 8, 65535]
        assert all(len(got[9]) == 0 and len(memoryview(got[9].obj)) == 0 for got in arrived)


def test_what_a_packet_means_is_left_to_the_engine() -> None:
    """Unknown types and operations, other destinations: the engine answers with RST where one is due."""
    odd = [packet(type=0), packet(type=9), packet(op=99), packet(dst_cid=7), packet(dst_cid=2**64 - 1)]
    with vsock_rig() as (device, guest):
        guest.send(odd)
        assert [got[:9] for got in device.receive(8)] == [fields(item) for item in odd]
        assert device.drops == {}


def test_small_payloads_keep_little_memory_and_large_ones_are_not_copied() -> None:
    with vsock_rig() as (device, guest):
        guest.send([packet(payload=b"s" * 40), packet(payload=bytes(65536)), *[packet(payload=bytes(1000))] * 30])
        kept = [len(memoryview(got[9].obj)) for got in device.receive(64)]
        assert kept[0] == 40
        assert kept[1] > 65536
        assert all(size <= 8192 for size in kept[2:])


# -- to the guest -------------------------------------------------------------------------------------------------


def test_every_piece_of_a_payload_has_a_header_of_its_own() -> None:
    with vsock_rig() as (device, guest):
        data = bytes(range(256)) * 40
        assert device.transmit([tx(OP_RW, data)]) == 1
        pieces = guest.recv()
        assert [len(piece.payload) for piece in pieces] == [4052, 4052, 10240 - 2 * 4052]
        assert b"".join(bytes(piece.payload) for piece in pieces) == data
        assert len({piece._replace(payload=b"", length=None) for piece in pieces}) == 1


def test_a_full_ring_leaves_packets_with_the_caller_and_wakes_it_when_buffers_return() -> None:
    with vsock_rig(rx_size=4) as (device, guest):
        settle(device)
        packets = [tx(OP_RW, bytes([i]) * 100) for i in range(8)]
        assert device.transmit(packets) == 4
        assert device.transmit(packets[4:]) == 0
        assert not device.arm()
        assert not select.select([device.fileno()], [], [], 0)[0]
        assert len(guest.recv(1)) == 1
        assert select.select([device.fileno()], [], [], 0)[0]
        assert device.arm()
        assert device.transmit(packets[4:]) == 1


def test_no_buffer_that_returns_at_the_wrong_moment_is_overlooked() -> None:
    """All of the guest's buffers come back just after `transmit` found none: `arm` says so."""
    with vsock_rig(rx_size=4) as (device, guest):
        settle(device)
        ring = device.rings[0]
        push = ring.push_split

        def push_and_return(*arguments: Any, **options: Any) -> tuple[int, int]:
            answer = push(*arguments, **options)
            if answer[0] < len(arguments[0]):
                assert len(guest.recv()) == 4
            return answer

        ring.push_split = push_and_return  # type: ignore[method-assign] # stands for a guest on another processor
        frames = [tx(OP_RW, b"x")] * 10
        done = device.transmit(frames)
        assert done == 4
        assert device.arm()  # or somebody would sleep for ever
        assert device.transmit(frames[done:]) == 4


#: (descriptors, bytes of a buffer, sizes of leading descriptors): (4, 60, (44,)) has room for two chains at a time.
TINY = {
    "half a packet": (8, 1024, ()),
    "smaller than a packet of the smallest buffer": (2, 144, ()),
    "two bytes": (2, 45, ()),
    "one chain": (1, 100, ()),
    "few chains": (4, 60, (44,)),
    "whole packets": (2, 65580, ()),
}


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("indirect", [True, False])
def test_no_packet_is_too_large_for_a_ring(shape: str, indirect: bool) -> None:
    """Nothing is lost, nothing overtakes, however little the whole ring holds."""
    rx_size, rx_buffer, pieces = TINY[shape]
    size = min(65536, 500 * rx_size * (rx_buffer - 44))
    data = (bytes(range(251)) * 262)[:size]
    features = ALL_FEATURES if indirect else ALL_FEATURES & ~VsockFeature.INDIRECT_DESC
    with vsock_rig(rx_size=rx_size, rx_buffer=rx_buffer, rx_pieces=pieces, features=features) as (device, guest):
        came = send_all(device, guest, [tx(OP_RW, data), tx(OP_RW, data[:50]), tx(OP_RST)])
        assert b"".join(bytes(item.payload) for item in came) == data + data[:50]
        assert [item.op for item in came[-1:]] == [OP_RST]
        assert device.drops == {}
        assert device.packets_out == 3


@pytest.mark.parametrize("size", [1, 84, 85, 5000, 65536])
@pytest.mark.parametrize(("rx_size", "rx_buffer"), [(128, 4096), (4, 4096), (2, 144)])
def test_only_the_last_piece_of_a_message_carries_its_end_marks(size: int, rx_size: int, rx_buffer: int) -> None:
    """SEQPACKET: SEQ_EOM and SEQ_EOR (1, 2) close a message; a mark in the middle would cut it in two."""
    message: VsockTx = (2, CID, 2000, 1000, 2, OP_RW, 3, 65536, 0, (bytes(range(256)) * 256)[:size])
    with vsock_rig(rx_size=rx_size, rx_buffer=rx_buffer) as (device, guest):
        pieces = send_all(device, guest, [message, message])
        ends = [i for i, piece in enumerate(pieces) if piece.flags]
        assert [pieces[i].flags for i in ends] == [3, 3]
        first, second = pieces[: ends[0] + 1], pieces[ends[0] + 1 :]
        assert b"".join(bytes(piece.payload) for piece in first) == message[9]
        assert b"".join(bytes(piece.payload) for piece in second) == message[9]


@pytest.mark.parametrize("rx_buffer", [43, 44])
def test_a_buffer_that_holds_no_byte_of_data_ends_every_connection(rx_buffer: int) -> None:
    """The ring breaks and says why; until the driver starts anew nothing can be exchanged, so a generation ends."""
    with vsock_rig(rx_buffer=rx_buffer) as (device, guest):
        generation = device.generation
        assert device.transmit([tx(OP_RW, b"x")]) == 0
        assert device.partial == 0
        settle(device)
        assert state(device) == (False, generation + 1)
        assert device.rings[0].broken == f"a buffer is too small for the device's header ({rx_buffer:#x})"
        guest.reset()
        guest.start()
        settle(device)
        assert device.carrier


def test_more_than_64_kib_in_one_packet_is_never_sent() -> None:
    with vsock_rig() as (device, guest):
        assert device.transmit([tx(OP_RW, b"a"), tx(OP_RW, bytes(65537)), tx(OP_RW, b"b")]) == 3
        assert [bytes(item.payload) for item in guest.recv()] == [b"a", b"b"]
        assert device.drops == {"tx-long": 1}


def test_the_transmit_ring_is_emptied_while_the_receive_ring_is_full() -> None:
    """The directions must not lock each other up."""
    with vsock_rig(rx_size=2, tx_size=4) as (device, guest):
        device.transmit([tx(OP_RW, b"z")] * 5)
        for _ in range(20):
            assert guest.send([packet()] * 4) == 4
            assert len(device.receive(64)) == 4


# -- negotiation and life -----------------------------------------------------------------------------------------


def test_the_guest_learns_its_cid_from_config_space() -> None:
    with vsock_rig(VsockDevice(0xFFFFFFFE)) as (device, guest):
        assert guest.guest_cid == device.guest_cid == 0xFFFFFFFE
        assert guest.frontend.get_config(4, 4) == bytes(4)  # the upper half must be 0


def test_another_cid_is_announced_and_taken_by_the_driver_that_starts_next() -> None:
    with vsock_rig() as (device, guest):
        assert guest.channel is not None
        assert device.set_guest_cid(77)
        assert guest.channel.recv(100, socket.MSG_DONTWAIT) == bytes.fromhex("02000000 01000000 00000000")
        assert guest.frontend.get_config(0, 8) == (77).to_bytes(8, "little")
        guest.send([packet()])
        assert (len(device.receive(8)), device.guest_cid) == (1, CID)
        guest.stop()
        guest.start()
        assert (state(device), device.guest_cid) == ((True, 1), CID)  # a pause is not a start
        guest.reset()
        guest.start()
        assert (state(device), device.guest_cid) == ((True, 2), 77)
        guest.send([packet(), packet(src_cid=77)])
        assert [got[0] for got in device.receive(8)] == [77]
        with pytest.raises(ValueError, match="reserved"):
            device.set_guest_cid(2)


def test_without_a_channel_another_cid_is_only_seen_when_asked_for() -> None:
    with vsock_rig(protocol_features=ALL_PROTOCOL_FEATURES & ~Protocol.BACKEND_REQ) as (device, guest):
        assert not device.set_guest_cid(77)
        assert guest.frontend.get_config(0, 8) == (77).to_bytes(8, "little")


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFFFFFF, 1 << 32, 0xFFFFFFFFFFFFFFFF])
def test_reserved_cids_are_refused(cid: int) -> None:
    with pytest.raises(ValueError, match="reserved"):
        VsockDevice(cid)


def test_every_feature_is_offered_and_can_be_switched_off() -> None:
    device = VsockDevice(CID)
    for feature in VsockFeature:
        assert device.device_features & feature
    assert device.device_features & 1 << 30
    device.close()
    for feature in VsockFeature:
        if feature is not VsockFeature.VERSION_1:
            device = VsockDevice(CID, disable=feature)
            assert not device.device_features & feature
            device.close()
    with pytest.raises(ValueError, match="VERSION_1"):
        VsockDevice(CID, disable=VsockFeature.VERSION_1)


S, Q, N = VsockFeature.STREAM, VsockFeature.SEQPACKET, VsockFeature.NO_IMPLIED_STREAM


@pytest.mark.parametrize(
    ("negotiated", "stream", "seqpacket"),
    [
        (0, True, False),
        (S, True, False),
        (Q, True, True),  # what Linux drivers take under QEMU 7.2
        (S | Q, True, True),
        (Q | N, False, True),
        (S | Q | N, True, True),
        (S | N, True, False),
        (N, False, False),
    ],
)
def test_vs_15_which_types_of_connection_a_driver_has_agreed_to(negotiated: int, stream: bool, seqpacket: bool) -> None:
    """VS-15; virtio 1.3 section 5.10.3.1: SEQPACKET implies STREAM unless NO_IMPLIED_STREAM is there."""
    with vsock_rig(features=ALL_FEATURES & ~(S | Q | N) | negotiated) as (device, guest):
        assert guest.features & (S | Q | N) == negotiated
        device.receive(0)
        assert (device.stream, device.seqpacket) == (stream, seqpacket)


def state(device: VsockDevice) -> tuple[bool, int]:
    device.receive(0)
    return device.carrier, device.generation


def test_a_driver_reset_begins_a_generation_and_a_pause_does_not() -> None:
    with vsock_rig() as (device, guest):
        assert state(device) == (True, 1)
        guest.send([packet()] * 3)
        device.receive(8)
        device.transmit([tx(OP_RST)])
        guest.stop()
        assert state(device) == (False, 1)
        guest.start()
        assert state(device) == (True, 1)
        guest.reset()
        guest.start()
        assert state(device) == (True, 2)
        guest.send([packet()])
        assert len(device.receive(8)) == 1


def test_generations_are_told_apart_by_either_ring() -> None:
    """A reset after traffic in one direction only."""
    for to_guest in (False, True):
        with vsock_rig() as (device, guest):
            if to_guest:
                device.transmit([tx(OP_RST)])
            else:
                guest.send([packet()])
                device.receive(8)
            guest.reset()
            guest.start()
            assert state(device) == (True, 2)


def test_every_front_end_begins_a_generation() -> None:
    device = VsockDevice(CID)
    seen = []
    device.on_change = lambda: seen.append((device.carrier, device.generation))
    for generation in (1, 2, 3):
        with vsock_rig(device, keep=True) as (_, guest):
            assert state(device) == (True, generation)
            guest.send([packet()])
            assert len(device.receive(8)) == 1
        assert state(device) == (False, generation + 1)  # whoever it knew is gone with it
    assert [pair for pair in seen if pair[0]] == [(True, 1), (True, 2), (True, 3)]
    device.close()


def test_without_carrier_nothing_is_accepted() -> None:
    """What is not accepted stays with its owner, who may send it after a pause."""
    device = VsockDevice(CID)
    assert device.transmit([tx(OP_RW, b"x")] * 3) == 0
    assert device.receive(8) == []
    device.close()
    assert device.transmit([tx(OP_RW, b"x")]) == 0
    assert device.drops == {}


def test_a_broken_ring_takes_the_carrier_down() -> None:
    with vsock_rig() as (device, guest):
        guest.tx.make_available([Descriptor(1 << 45, 44)])
        device.receive(8)
        assert device.arm()
        assert state(device)[0] is False
        assert guest.tx.drain_errors() == 1
        assert device.transmit([tx(OP_RW, b"x")]) == 0


def test_packets_that_nobody_can_answer_keep_nobody_busy() -> None:
    """A ring is broken or disabled: what the guest sends waits in its ring, and no look reports work without end."""
    with vsock_rig(tx_size=4) as (device, guest):
        for index in (0, 1):
            guest.frontend.set_vring_enable(index, False)
            guest.send([packet()] * 4)
            for _ in range(5):
                if not device.arm():
                    break
            else:
                raise AssertionError("the device reports work without end")
            assert guest.tx.in_flight - guest.tx.pending == 4
        assert device.drops == {}


def test_a_pause_loses_nothing_either_way() -> None:
    """QMP stop: rings are disabled, a moment later stopped. Packets on their way arrive after cont, in order, once."""
    with vsock_rig(rx_size=8, rx_buffer=1024) as (device, guest):
        data = bytes(range(256)) * 100
        left = unsent(device, [tx(OP_RW, data), tx(OP_RW, b"after")])
        assert len(left) == 2
        got = b"".join(bytes(item.payload) for item in guest.recv())
        guest.send([packet(payload=b"before")])
        guest.frontend.set_vring_enable(0, False)
        guest.frontend.set_vring_enable(1, False)
        assert device.receive(8) == []
        assert device.transmit(left) == device.partial == 0
        guest.stop()
        assert state(device) == (False, 1)
        assert device.transmit(left) == 0
        guest.start()
        assert [bytes(item[9]) for item in device.receive(8)] == [b"before"]
        assert (device.carrier, device.generation) == (True, 1)
        for _ in range(100):
            left = unsent(device, left)
            got += b"".join(bytes(item.payload) for item in guest.recv())
        assert got == data + b"after"
        assert device.drops == {}


def test_rings_that_move_or_change_their_size_while_stopped_are_new_ones() -> None:
    """A driver that began anew before anything moved its indexes is told by where its rings are."""
    with vsock_rig() as (device, guest):
        guest.stop()
        ring = guest.rings[0]
        guest.frontend.set_vring_num(0, ring.num // 2)
        assert state(device) == (False, 1)
        uva = guest.memory.uva
        guest.frontend.set_vring_base(0, 0)
        guest.frontend.set_vring_addr(0, uva(ring.desc), uva(ring.used), uva(ring.avail))
        guest.frontend.set_vring_kick(0, ring.kick_fd)
        assert guest.frontend.get_vring_base(0) == 0
        assert state(device)[1] == 3  # once for that, and once because the index in it is nonsense now
