"""Transport checksums: verified in C when nobody else will, finished in C when the guest cannot (RFC 1071)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from vhost_user.driver.net import ALL_FEATURES
from vhost_user.features import NET_OFFLOADS, NetFeature
from vhost_user.net import NetDevice

from .device_rig import PSEUDO4, PSEUDO6, broadcast, checksum, ether, ipv4, ipv6, net_rig, tcp, udp

NEEDS_CSUM, DATA_VALID = 1, 2


def four(segment: bytes, proto: int = 6, *, fragment: int = 0) -> bytes:
    return ether(0x0800, ipv4(proto, segment, fragment=fragment))


def six(segment: bytes, proto: int = 6) -> bytes:
    return ether(0x86DD, ipv6(proto, segment))


CHECKED: dict[str, Callable[[int], bytes]] = {
    "TCP4": lambda spoil: four(tcp(b"hello", spoil=spoil)),
    "TCP4 empty": lambda spoil: four(tcp(b"", spoil=spoil)),
    "TCP4 full": lambda spoil: four(tcp(bytes(range(256)) * 5, spoil=spoil)),
    "UDP4": lambda spoil: four(udp(b"hello", spoil=spoil), 17),
    "TCP6": lambda spoil: six(tcp(b"hello!", pseudo=PSEUDO6, spoil=spoil)),
    "UDP6": lambda spoil: six(udp(b"hello!", pseudo=PSEUDO6, spoil=spoil), 17),
    "TCP4 in a VLAN": lambda spoil: ether(0x0800, ipv4(6, tcp(b"hello", spoil=spoil)), vlans=1),
    "TCP4 in two VLANs": lambda spoil: ether(0x0800, ipv4(6, tcp(b"hello", spoil=spoil)), vlans=2),
    "TCP4 with IP options": lambda spoil: ether(0x0800, ipv4(6, tcp(b"hello", spoil=spoil), options=bytes(8))),
    "TCP4 with padding behind": lambda spoil: four(tcp(b"h", spoil=spoil)) + b"\xaa" * 7,
    "TCP6 behind extension headers": lambda spoil: ether(
        0x86DD,
        ipv6(
            6, tcp(b"hi", pseudo=PSEUDO6, spoil=spoil), extensions=b"\x3c\0" + bytes(6) + b"\x06\1" + bytes(14), first=0
        ),
    ),
}


@pytest.mark.parametrize("case", CHECKED)
def test_a_right_checksum_is_vouched_for_and_a_wrong_one_is_dropped(case: str) -> None:
    build = CHECKED[case]
    with net_rig() as (device, guest):
        guest.send([build(0), build(1), build(0x8000), build(0)])
        frames = device.receive(8)
        assert [frame[1] for frame in frames] == [DATA_VALID, DATA_VALID]
        assert bytes(frames[0][0]) == build(0)
        assert device.drops == {"rx-checksum": 2}


UNCHECKED = {
    "ICMP": four(b"\x08\0\0\0" + bytes(20), 1),
    "UDP without a checksum": four(udp(b"hello", spoil=0)[:6] + bytes(2) + b"hello", 17),
    "first fragment": four(tcp(b"x" * 64, spoil=1), fragment=0x2000),
    "later fragment": four(tcp(b"x" * 64, spoil=1), fragment=0x0010),
    "IPv6 fragment": ether(0x86DD, ipv6(6, tcp(b"x", spoil=1), extensions=b"\x06" + bytes(7), first=44)),
    "ARP": ether(0x0806, bytes(46)),
    "too short for TCP": four(b"x" * 19),
    "too short for UDP": four(b"x" * 7, 17),
    "IPv4 header cut": four(tcp(b""))[:33],
    "IPv4 longer than the frame": four(tcp(b"hello", spoil=1))[:-1],
    "IPv4 of version 5": four(tcp(b"hello"))[:14] + b"\x55" + four(tcp(b"hello"))[15:],
    "IPv4 header of three words": four(tcp(b"hello"))[:14] + b"\x43" + four(tcp(b"hello"))[15:],
    "IPv6 header cut": six(tcp(b""))[:50],
    "IPv6 longer than the frame": six(tcp(b"hello", spoil=1))[:-1],
    "IPv6 extension header cut": ether(0x86DD, ipv6(6, b"", extensions=b"\x06\x09" + bytes(6), first=0)),
    "three VLAN tags": ether(0x0800, ipv4(6, tcp(b"hello", spoil=1)), vlans=3),
    "VLAN tag cut": ether(0x0800, b"", vlans=1)[:15],
}


@pytest.mark.parametrize("case", UNCHECKED)
def test_what_has_no_checksum_here_is_left_to_the_stack(case: str) -> None:
    with net_rig() as (device, guest):
        guest.send([UNCHECKED[case]])
        ((view, flags, *_),) = device.receive(8)
        assert bytes(view) == UNCHECKED[case]
        assert flags == 0
        assert device.drops == {}


def test_verification_can_be_switched_off() -> None:
    with net_rig(NetDevice(verify_checksums=False)) as (device, guest):
        guest.send([four(tcp(b"x", spoil=1)), four(tcp(b"x"))])
        assert [frame[1] for frame in device.receive(8)] == [0, 0]


def test_random_segments_agree_with_the_slow_sum() -> None:
    rng = Random(1071)
    frames, good = [], 0
    for _ in range(300):
        payload = rng.randbytes(rng.randrange(1400))
        spoil = rng.choice((0, 0, rng.randrange(1, 0xFFFF)))
        good += not spoil
        if rng.random() < 0.5:
            frames.append(four(tcp(payload, spoil=spoil)))
        else:
            frames.append(six(tcp(payload, pseudo=PSEUDO6, spoil=spoil)))
    with net_rig() as (device, guest):
        arrived = 0
        sent = 0
        while sent < len(frames):
            sent += guest.send(frames[sent:])
            arrived += len(device.receive(256))
        assert arrived == good
        assert device.drops == {"rx-checksum": len(frames) - good}


NO_CSUM = ALL_FEATURES & ~NET_OFFLOADS


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize(
    ("segment", "start", "offset"),
    [
        (four(tcp(b"odd", partial=True)), 34, 16),
        (four(tcp(bytes(range(200)), partial=True)), 34, 16),
        (four(udp(b"even", partial=True), 17), 34, 6),
        (six(tcp(b"six", pseudo=PSEUDO6, partial=True)), 54, 16),
    ],
)
def test_checksums_are_finished_for_a_guest_without_guest_csum(
    segment: bytes, start: int, offset: int, parts: int
) -> None:
    """5.1.6.4.1: without GUEST_CSUM flags must be 0 and the checksum complete; the stack need not know."""
    cuts = [len(segment) * i // parts for i in range(parts + 1)]
    pieces = tuple(segment[a:b] for a, b in pairwise(cuts))
    with net_rig(features=NO_CSUM) as (device, guest):
        assert device.offloads == 1  # CSUM is offered to the stack all the same
        assert device.transmit([(pieces, NEEDS_CSUM, 0, start, 0, start, offset)] * 2) == 2
        for frame in guest.recv():
            assert frame[1:7] == (0, 0, 0, 0, 0, 0)
            data = bytes(frame.data)[: len(segment)]
            assert data[: start + offset] == segment[: start + offset]
            pseudo = PSEUDO4 if start == 34 else PSEUDO6
            proto = 17 if offset == 6 else 6
            words = pseudo + (len(data) - start).to_bytes(4, "big") + proto.to_bytes(4, "big")
            assert checksum(words + data[start:]) == 0
        assert b"".join(pieces) == segment  # the caller's buffers are not written to


def test_a_finished_checksum_of_zero_is_sent_as_all_ones() -> None:
    """RFC 768: an all-zero checksum means "none", so zero is sent as 0xffff."""
    frame = bytearray(broadcast(60))
    frame[20:60] = bytes(40)
    frame[20:22] = b"\xff\xff"  # the sum of everything is 0xffff, so the checksum is 0
    with net_rig(features=NO_CSUM) as (device, guest):
        device.transmit([((bytes(frame),), NEEDS_CSUM, 0, 0, 0, 20, 4)])
        (arrived,) = guest.recv()
        assert bytes(arrived.data)[24:26] == b"\xff\xff"


def test_data_valid_is_only_told_to_a_guest_that_knows_it() -> None:
    frame = four(tcp(b"x" * 30))
    for features, flags in ((ALL_FEATURES, DATA_VALID), (ALL_FEATURES & ~NetFeature.GUEST_CSUM, 0)):
        with net_rig(features=features) as (device, guest):
            device.transmit([((frame,), DATA_VALID, 0, 0, 0, 0, 0)] * 2)
            assert [arrived.flags for arrived in guest.recv()] == [flags, flags]
