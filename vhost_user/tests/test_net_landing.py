"""Payload from a ring straight into its reader's buffer, as the card's owner sees it (csrc/tests/test_landing.c has the
rest)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from vhost_user.driver import NetDriver, NetFrame
from vhost_user.landing import NOTHING, Wanted
from vhost_user.net import NetDevice
from vhost_user.slab import RxFrame

from .device_rig import GUEST_MAC, HOST_MAC, checksum, ether, ipv4, net_rig, superframe4, tcp

SIZE = 20_000
MSS = 1460
SEQ, ACK, WINDOW = 1, 2, 65535  # as `tcp` makes them
GSO_TCPV4 = 1


def frame(number: int, *, flags: int = 0x18) -> NetFrame:
    """Superframe `number` of a stream."""
    data = bytearray(superframe4(SIZE))
    struct.pack_into(">I", data, 38, SEQ + number * SIZE)
    data[47] = flags
    struct.pack_into(">H", data, 24, checksum(bytes(data[14:34])))
    data[54:] = bytes([number + 1]) * SIZE
    return NetFrame(bytes(data), 1, GSO_TCPV4, gso_size=MSS, csum_start=34, csum_offset=16)


def wanted(room: int, number: int = 0) -> Wanted:
    sample = superframe4(SIZE)
    return (sample[:16], sample[26:38], 64 << 8 | 6, WINDOW, SEQ + number * SIZE, ACK, 0, 40, room)


@pytest.fixture(name="rig")
def _rig() -> Iterator[tuple[NetDevice, NetDriver]]:
    with net_rig(NetDevice()) as (device, guest):
        yield device, guest


def test_what_is_wanted_lands_and_the_rest_comes_up(rig: tuple[NetDevice, NetDriver]) -> None:
    device, guest = rig
    assert guest.send([frame(0), frame(1), frame(2, flags=0x11), frame(3)]) == 4
    ground = bytearray(3 * SIZE)
    frames, count, size, landed = device.receive_landing(64, wanted(len(ground)), memoryview(ground))
    wire = 54 + SIZE
    assert landed == (2, 2 * -(-SIZE // MSS), 2 * SIZE, 2 * wire, MSS, 0)
    assert (count, size) == (4, 4 * wire) == (device.frames_in, device.bytes_in)
    assert ground == b"\1" * SIZE + b"\2" * SIZE + bytes(SIZE)
    assert [bytes(view[54:]) for view, *_ in frames] == [b"\3" * SIZE, b"\4" * SIZE]
    ground.append(0)  # nobody refers to it any more
    assert guest.send([frame(4)]) == 1
    assert len(device.receive_coalesced(64)[0]) == 1  # asked for once
    assert device.drops == {}


def test_what_finds_no_room_is_for_the_next_burst(rig: tuple[NetDevice, NetDriver]) -> None:
    device, guest = rig
    assert guest.send([frame(number) for number in range(3)]) == 3
    ground = bytearray(2 * SIZE + 10)
    frames, count, _, landed = device.receive_landing(64, wanted(len(ground)), memoryview(ground))
    assert (frames, count, landed[0]) == ([], 2, 2)
    frames, count, _, landed = device.receive_landing(64, wanted(len(ground), 2), memoryview(ground))
    assert (frames, count, landed[0]) == ([], 1, 1)
    assert ground[:SIZE] == b"\3" * SIZE
    assert device.receive_landing(64, wanted(len(ground), 3), memoryview(ground)) == ([], 0, 0, NOTHING)


@pytest.mark.parametrize("full", [True, False])
def test_who_left_some_behind_is_told_of_the_acknowledgment_at_once(full: bool) -> None:
    """Who fills bursts faster than they are read will wait for it."""
    with net_rig(NetDevice()) as (device, guest):
        ack = ether(0x0800, ipv4(6, tcp(b"")))[:47] + b"\x10" + ether(0x0800, ipv4(6, tcp(b"")))[48:]
        answer = ((GUEST_MAC + HOST_MAC + ack[12:],), 1, 0, 54, 0, 34, 16)
        device.suppress()
        assert device.transmit([answer, answer]) == 2  # the usual facts are known
        guest.recv()
        guest.rx().arm()
        guest.rx().drain_calls()
        assert guest.send([frame(number) for number in range(3)]) == 3
        ground = bytearray((2 if full else 3) * SIZE)
        assert device.receive_landing(64, wanted(len(ground)), memoryview(ground))[3][0] == len(ground) // SIZE
        assert device.transmit([answer]) == 1
        assert guest.rx().drain_calls() == full


def test_with_several_pairs_everything_comes_up() -> None:
    """Their rings are emptied by several threads: what is next is not known."""
    with net_rig(NetDevice(queues=2), queues=2) as (device, guest):
        assert guest.send([frame(0)]) == 1
        ground = memoryview(bytearray(SIZE))
        got: list[RxFrame] = []
        frames, count, _, landed = device.receive_landing(64, wanted(SIZE), ground)
        got.extend(frames)
        assert (len(got), count, landed) == (1, 1, NOTHING)


def test_packets_without_offload_come_up(rig: tuple[NetDevice, NetDriver]) -> None:
    """They are joined, and their checksums verified, where they can be looked at."""
    device, guest = rig
    packets = []
    for number in range(40):
        segment = bytearray(tcp(b""))
        struct.pack_into(">I", segment, 4, SEQ + number * MSS)
        packets.append(NetFrame(bytes(_with_checksums(segment, bytes([number]) * MSS))))
    assert guest.send(packets) == 40
    ground = memoryview(bytearray(1 << 16))
    frames, count, _, landed = device.receive_landing(64, wanted(len(ground)), ground)
    assert (len(frames), count, landed) == (1, 40, NOTHING)
    assert len(frames[0][0]) == 54 + 40 * MSS


def _with_checksums(segment: bytearray, payload: bytes) -> bytes:
    segment[13] = 0x10
    segment[16:18] = bytes(2)
    whole = bytes(segment) + payload
    pseudo = bytes([10, 0, 2, 15, 10, 0, 2, 2]) + struct.pack(">II", len(whole), 6)
    packet = bytearray(
        ipv4(6, fragment=0x4000, segment=whole[:16] + struct.pack(">H", checksum(pseudo + whole)) + whole[18:])
    )
    struct.pack_into(">H", packet, 10, checksum(bytes(packet[:20])))
    return ether(0x0800, bytes(packet))
