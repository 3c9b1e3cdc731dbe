"""A volley is what the same superframes would have been one by one, or nothing at all."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from vhost_user.features import NetFeature
from vhost_user.frames import NEEDS_CSUM
from vhost_user.net import NetDevice

from .device_rig import GUEST_MAC, HOST_MAC, net_rig

MSS = 1448
SIZE = 20 * MSS
START, CHECKSUM = 34, 16
NUMBER = START + 4
FACTS = (NEEDS_CSUM, 1, 66, MSS, START, CHECKSUM)
PLAIN = (NEEDS_CSUM, 0, 66, 0, START, CHECKSUM)


def headers(length: int, flags: int) -> bytes:
    """Ethernet, IPv4 and TCP with timestamps, as far as a card looks at them; the sequence number is 0."""
    ip = struct.pack(">BBHHHBBH8x", 0x45, 0, 52 + length, 0, 0x4000, 64, 6, 0)
    return GUEST_MAC + HOST_MAC + b"\x08\x00" + ip + struct.pack(">HHIIBBHHH12x", 1, 2, 0, 3, 0x80, flags, 4, 5, 0)


def numbered(header: bytes, number: int) -> bytes:
    return header[:NUMBER] + struct.pack(">I", number & 0xFFFFFFFF) + header[NUMBER + 4 :]


PAYLOAD = bytes(range(251)) * 600
FIRST = 0xFFFFFF00  # wraps


def one_by_one(last: int, last_facts: tuple[int, ...], count: int) -> list[Any]:
    frames = []
    for i in range(count):
        length, facts = (SIZE, FACTS) if i + 1 < count else (last, last_facts)
        head = headers(length, 0x10 if i + 1 < count else 0x18)
        frames.append(((numbered(head, FIRST + i * SIZE), PAYLOAD[i * SIZE : i * SIZE + length]), *facts))
    return frames


def volley(device: NetDevice, last: int, last_facts: Any, count: int) -> int:
    total = (count - 1) * SIZE + last
    view = memoryview(PAYLOAD)
    return device.transmit_volley(
        (headers(SIZE, 0x10), FACTS, SIZE),
        (headers(last, 0x18), last_facts, last),
        count,
        (NUMBER, FIRST),
        [view[:100], view[100 : SIZE + 1], view[SIZE + 1 : total]],
    )


@pytest.mark.parametrize("features", [~0, ~NetFeature.MRG_RXBUF], ids=["mergeable", "one buffer each"])
@pytest.mark.parametrize(("last", "last_facts"), [(SIZE, FACTS), (3 * MSS + 5, FACTS), (900, PLAIN)])
def test_the_guest_gets_what_it_would_have_got(features: int, last: int, last_facts: tuple[int, ...]) -> None:
    frames = one_by_one(last, last_facts, 5)
    with net_rig(features=features) as (device, guest):
        assert volley(device, last, last_facts, 5) == 0  # facts nobody has judged yet
        assert device.transmit(frames) == 5
        wanted = guest.recv()
        assert len(wanted) == 5
        assert volley(device, last, last_facts, 5) == 5
        assert guest.recv() == wanted
        assert device.frames_out == 10
        assert device.drops == {}


def test_what_finds_no_room_stays_the_callers() -> None:
    with net_rig(rx_size=32) as (device, guest):
        device.transmit(one_by_one(SIZE, FACTS, 1))
        guest.recv()
        taken = volley(device, SIZE, FACTS, 5)
        assert 0 < taken < 5
        assert volley(device, SIZE, FACTS, 5) == 0
        assert [struct.unpack_from(">I", frame.data, NUMBER)[0] for frame in guest.recv()] == [
            (FIRST + i * SIZE) & 0xFFFFFFFF for i in range(taken)
        ]
        # Behind a frame that waits nothing may pass.
        assert device.transmit(one_by_one(SIZE, FACTS, 5)) == taken
        guest.recv()
        assert volley(device, SIZE, FACTS, 2) == 0
        assert device.transmit(one_by_one(SIZE, FACTS, 1)) == 1


def test_what_has_to_be_looked_at_frame_by_frame_is_refused() -> None:
    with net_rig() as (device, guest):
        device.transmit(one_by_one(SIZE, FACTS, 2))
        device.transmit(one_by_one(900, PLAIN, 1))
        guest.recv()
        assert volley(device, 5, PLAIN, 2) == 2  # 71 bytes: no padding
        long = (headers(SIZE, 0x10), FACTS, 70000)
        good = (headers(SIZE, 0x10), FACTS, SIZE)
        assert device.transmit_volley(long, good, 2, (NUMBER, 0), [bytes(70000 + SIZE)]) == 0
        assert device.transmit_volley(good, (headers(SIZE, 0x10) + b"x", FACTS, SIZE), 2, (NUMBER, 0), [PAYLOAD]) == 0
        wide = (bytes(120), FACTS, SIZE)
        assert device.transmit_volley(wide, wide, 2, (NUMBER, 0), [PAYLOAD[: 2 * SIZE]]) == 0
        with pytest.raises(ValueError, match="payload"):
            device.transmit_volley(good, good, 2, (NUMBER, 0), [PAYLOAD])
        device.faults.begin("rx.stall")
        assert volley(device, SIZE, FACTS, 2) == 0
    assert volley(device, SIZE, FACTS, 2) == 0  # no carrier


def test_a_guest_that_wants_checksums_or_no_superframes_gets_frames() -> None:
    for features in (~NetFeature.GUEST_CSUM, ~NetFeature.GUEST_TSO4):
        with net_rig(features=features) as (device, guest):
            device.transmit(one_by_one(900, PLAIN, 1))
            guest.recv()
            assert volley(device, SIZE, FACTS, 3) == 0


def test_several_pairs_share_by_flow_and_take_no_volleys() -> None:
    with net_rig(NetDevice(queues=2), queues=2) as (device, _):
        device.transmit(one_by_one(SIZE, FACTS, 1))
        assert volley(device, SIZE, FACTS, 3) == 0


def test_a_driver_that_lingers_finds_what_is_there_and_looks_no_longer_than_told() -> None:
    with net_rig() as (device, guest):
        assert guest.rx().linger(looks=3) == 0
        device.transmit(one_by_one(900, PLAIN, 1))
        assert guest.rx().linger(looks=0) == 1
        assert guest.rx().linger(2, looks=3) == 1
