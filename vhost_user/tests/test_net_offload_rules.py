"""Every rule about virtio_net_hdr and lying offload fields, row by row: a bad frame costs nobody but itself.

Rules: virtio 1.3 sections 5.1.6.2 and 5.1.6.4, and what guests have broken devices with (CVE-2022-2132,
CVE-2024-11614, division by a gso_size of zero, amplification by a tiny one).
"""

from __future__ import annotations

import pytest

from vhost_user.driver import NetFrame
from vhost_user.driver.net import ALL_FEATURES, NET_HEADER
from vhost_user.driver.ring import Descriptor
from vhost_user.features import NetFeature
from vhost_user.net import NetDevice

from .device_rig import (
    PSEUDO6,
    broadcast,
    ether,
    ipv4,
    ipv6,
    net_rig,
    plain,
    superframe4,
    superframe6,
    tcp,
    udp,
)

NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, UFO, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80


def gso4(payload: int = 5000, **facts: int) -> NetFrame:
    values = {"flags": NEEDS_CSUM, "gso_type": TCPV4, "gso_size": 1448, "csum_start": 34, "csum_offset": 16} | facts
    return NetFrame(superframe4(payload), **values)


def gso6(payload: int = 5000, **facts: int) -> NetFrame:
    values = {"flags": NEEDS_CSUM, "gso_type": TCPV6, "gso_size": 1428, "csum_start": 54, "csum_offset": 16} | facts
    return NetFrame(superframe6(payload), **values)


def with_data(frame: NetFrame, data: bytes) -> NetFrame:
    return frame._replace(data=data)


def uso(size: int = 1000, **facts: int) -> NetFrame:
    values = {"flags": NEEDS_CSUM, "gso_type": UDP_L4, "gso_size": size, "csum_start": 34, "csum_offset": 6} | facts
    return NetFrame(UDP_SUPER, **values)


TCP_FRAME = ether(0x0800, ipv4(6, tcp(bytes(200), partial=True)))
FRAGMENT = ether(0x0800, ipv4(6, tcp(bytes(5000), partial=True), fragment=0x2000))
UDP_SUPER = ether(0x0800, ipv4(17, udp(bytes(5000), partial=True)))
UDP_FRAGMENT = ether(0x0800, ipv4(17, udp(bytes(5000), partial=True), fragment=0x2000))
UDP_SUPER6 = ether(0x86DD, ipv6(17, udp(bytes(5000), pseudo=PSEUDO6, partial=True)))
LONG_HEADER = ether(0x0800, ipv4(6, tcp(bytes(0), partial=True)[:12] + b"\xf0" + bytes(30)))

TCP_SEGMENT6 = tcp(bytes(5000), pseudo=PSEUDO6, partial=True)

#: What the guest sends -> under which reason it is dropped.
BAD = {
    "no whole Ethernet header": (NetFrame(bytes(13)), "rx-short"),
    "no frame at all": (NetFrame(b""), "rx-short"),
    "longer than the MTU": (NetFrame(broadcast(1515)), "rx-long"),
    "64 KiB without being a superframe": (NetFrame(broadcast(65549)), "rx-long"),
    "superframe over 64 KiB": (with_data(gso4(), superframe4(5000) + bytes(62000)), "rx-chain"),
    "checksum field behind the end": (NetFrame(TCP_FRAME, NEEDS_CSUM, csum_start=34, csum_offset=219), "rx-csum-range"),
    "checksum start behind the end": (NetFrame(TCP_FRAME, NEEDS_CSUM, csum_start=65535), "rx-csum-range"),
    "checksum sum over 16 bits": (
        NetFrame(TCP_FRAME, NEEDS_CSUM, csum_start=65535, csum_offset=65535),
        "rx-csum-range",
    ),
    "unknown gso_type": (gso4(gso_type=2), "rx-gso-type"),
    "UFO, never offered": (gso4(gso_type=UFO), "rx-gso-type"),
    "USO with the ECN bit": (uso(gso_type=UDP_L4 | ECN), "rx-gso-type"),
    "USO without NEEDS_CSUM": (uso(flags=0), "rx-gso-csum"),
    "USO of size 0": (uso(0), "rx-gso-size"),
    "USO of 129 datagrams": (uso(38), "rx-gso-size"),
    "USO over the MTU": (uso(1473), "rx-gso-size"),
    "USO checksum field beside": (uso(csum_offset=8), "rx-gso-headers"),
    "USO checksum start beside": (uso(csum_start=36), "rx-gso-headers"),
    "TCP in a USO superframe": (with_data(uso(), superframe4(5000)), "rx-gso-headers"),
    "USO of a fragment": (with_data(uso(), UDP_FRAGMENT), "rx-gso-headers"),
    "USO cut in the UDP header": (
        with_data(uso(), ether(0x0800, ipv4(17, UDP_SUPER[34:41]) + bytes(9))),
        "rx-gso-headers",
    ),
    "ECN bit without a type": (gso4(gso_type=ECN), "rx-gso-type"),
    "tunnel bits": (gso4(gso_type=TCPV4 | 0x20), "rx-gso-type"),
    "gso_size 0": (gso4(gso_size=0), "rx-gso-size"),
    "gso_size 1": (gso4(gso_size=1), "rx-gso-size"),
    "gso_size 47": (gso4(gso_size=47), "rx-gso-size"),
    "segments over the MTU": (gso4(gso_size=1461), "rx-gso-size"),
    "IPv6 segments over the MTU": (gso6(gso_size=1441), "rx-gso-size"),
    "superframe without NEEDS_CSUM": (gso4(flags=0), "rx-gso-csum"),
    "IPv6 in a TCPV4 superframe": (with_data(gso4(csum_start=54), superframe6(5000)), "rx-gso-headers"),
    "IPv4 in a TCPV6 superframe": (with_data(gso6(csum_start=34), superframe4(5000)), "rx-gso-headers"),
    "UDP in a TCP superframe": (with_data(gso4(csum_offset=6), UDP_SUPER), "rx-gso-headers"),
    "fragment as a superframe": (with_data(gso4(), FRAGMENT), "rx-gso-headers"),
    "no IP at all as a superframe": (with_data(gso4(), broadcast(5000)), "rx-gso-headers"),
    "superframe cut in the IP header": (
        with_data(gso4(csum_start=14, csum_offset=4), superframe4(0)[:30]),
        "rx-gso-headers",
    ),
    "superframe cut in the TCP header": (with_data(gso4(), superframe4(0)[:52]), "rx-gso-headers"),
    "TCP header longer than the segment": (with_data(gso4(), LONG_HEADER), "rx-gso-headers"),
    "TCP header of four words": (with_data(gso4(), superframe4(5000, words=4)), "rx-gso-headers"),
    "checksum start beside TCP": (gso4(csum_start=36), "rx-gso-headers"),
    "checksum offset beside the field": (gso4(csum_offset=18), "rx-gso-headers"),
    "IPv4 length beyond the frame": (with_data(gso4(), superframe4(5000)[:4000]), "rx-gso-headers"),
    "IPv6 length beyond the frame": (with_data(gso6(), superframe6(5000)[:4000]), "rx-gso-headers"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_frame_is_dropped_counted_and_costs_nobody_else(case: str) -> None:
    frame, reason = BAD[case]
    before, after = broadcast(60, 1), broadcast(60, 2)
    with net_rig() as (device, guest):
        assert guest.send([before, frame, after]) == 3
        assert [bytes(arrived[0]) for arrived in device.receive(64)] == [before, after]
        assert device.drops == {reason: 1}
        guest.tx().reclaim()
        assert guest.tx().free_buffers == guest.tx_buffers  # its buffer came back like any other
        assert device.carrier
        assert device.rings[1].broken is None


@pytest.mark.parametrize("size", range(12))
def test_a_chain_shorter_than_the_header_is_dropped(size: int) -> None:
    """CVE-2022-2132: fewer than 12 readable bytes, in one descriptor or in one for each."""
    with net_rig() as (device, guest):
        ring = guest.tx()
        at = ring.scratch(bytes(64))
        if size == 0:
            ring.make_available([Descriptor(at, 0)])
        else:
            ring.make_available([Descriptor(at + i, 1, 1 if i < size - 1 else 0, i + 1) for i in range(size)])
        assert device.receive(8) == []
        assert device.drops == {"rx-header": 1}
        assert ring.used_index == 1
        ring.make_available([Descriptor(ring.scratch(bytes(12) + broadcast(60)), 72)])
        assert len(device.receive(8)) == 1


GOOD = {
    "IPv4 superframe": gso4(),
    "IPv4 superframe of 64 KiB": with_data(gso4(), superframe4(65535 - 40)),
    "IPv6 superframe": gso6(),
    "IPv4 superframe with ECN": gso4(gso_type=TCPV4 | ECN),
    "IPv6 superframe with ECN": gso6(gso_type=TCPV6 | ECN),
    "superframe of one segment": gso4(100),
    "UDP superframe": uso(),
    "UDP superframe over IPv6": with_data(uso(csum_start=54), UDP_SUPER6),
    "UDP superframe of 128 small datagrams": uso(40),
    "smallest gso_size": gso4(gso_size=48),
    "largest gso_size": gso4(gso_size=1460),
    "TCP options": with_data(gso4(gso_size=1420), superframe4(5000, words=15)),
    "IP options": with_data(
        gso4(csum_start=38), ether(0x0800, ipv4(6, tcp(bytes(5000), partial=True), options=bytes(4)))
    ),
    "VLAN tag": with_data(gso4(csum_start=38), ether(0x0800, ipv4(6, tcp(bytes(5000), partial=True)), vlans=1)),
    "IPv6 extension header": with_data(
        gso6(csum_start=62),
        ether(
            0x86DD, ipv6(6, tcp(bytes(5000), pseudo=PSEUDO6, partial=True), extensions=b"\x06\0" + bytes(6), first=0)
        ),
    ),
    "partial checksum": NetFrame(TCP_FRAME, NEEDS_CSUM, csum_start=34, csum_offset=16),
    "checksum field at the very end": NetFrame(TCP_FRAME, NEEDS_CSUM, csum_start=34, csum_offset=len(TCP_FRAME) - 36),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_frame_arrives_with_its_facts(case: str) -> None:
    frame = GOOD[case]
    with net_rig() as (device, guest):
        assert guest.send([frame]) == 1
        ((view, *facts),) = device.receive(8)
        assert bytes(view) == frame.data
        assert facts == [frame.flags, frame.gso_type, frame.gso_size, frame.csum_start, frame.csum_offset]
        assert device.drops == {}


def test_hdr_len_is_a_hint_that_nobody_believes() -> None:
    """5.1.6.2.2: the device must not rely on hdr_len."""
    with net_rig() as (device, guest):
        guest.send([gso4(hdr_len=value) for value in (0, 1, 54, 65535)])
        frames = device.receive(8)
        assert len({bytes(view) for view, *_ in frames}) == 1
        assert len({tuple(facts) for _, *facts in frames}) == 1


def test_unknown_flags_are_ignored_and_data_valid_is_not_the_drivers_to_set() -> None:
    """5.1.6.2.2: the device must ignore flag bits it does not recognize; a guest cannot vouch for its own checksum."""
    wrong = ether(0x0800, ipv4(6, tcp(b"x", spoil=1)))
    with net_rig() as (device, guest):
        guest.send([NetFrame(broadcast(60), 0xFE), NetFrame(wrong, DATA_VALID)])
        assert [frame[1] for frame in device.receive(8)] == [0]
        assert device.drops == {"rx-checksum": 1}


def test_facts_of_a_frame_without_offload_are_not_passed_on() -> None:
    """Left-over numbers in the header mean nothing without their flag."""
    with net_rig() as (device, guest):
        guest.send([NetFrame(broadcast(60), 0, 0, 54, 1448, 65535, 65535)])
        assert device.receive(8)[0][1:] == (0, 0, 0, 0, 0)


REFUSED = {
    "CSUM": (NetFeature.CSUM, GOOD["partial checksum"], "rx-csum-refused"),
    "HOST_TSO4": (NetFeature.HOST_TSO4, GOOD["IPv4 superframe"], "rx-gso-type"),
    "HOST_TSO6": (NetFeature.HOST_TSO6, GOOD["IPv6 superframe"], "rx-gso-type"),
    "HOST_ECN": (NetFeature.HOST_ECN, GOOD["IPv4 superframe with ECN"], "rx-gso-type"),
    "HOST_USO": (NetFeature.HOST_USO, GOOD["UDP superframe"], "rx-gso-type"),
}


@pytest.mark.parametrize("side", ["driver", "device"])
@pytest.mark.parametrize("feature", REFUSED)
def test_only_negotiated_offloads_are_taken(feature: str, side: str) -> None:
    """Whether the driver did not acknowledge it or the device did not offer it, the offload is not in force."""
    bit, frame, reason = REFUSED[feature]
    device = NetDevice(disable=bit if side == "device" else 0)
    features = ALL_FEATURES & ~bit if side == "driver" else ALL_FEATURES
    with net_rig(device, features=features) as (device, guest):
        guest.send([frame, broadcast(60)])
        assert len(device.receive(8)) == 1
        assert device.drops == {reason: 1}


# -- towards the guest --------------------------------------------------------------------------------------------


def send4(
    payload: int = 5000, gso_type: int = TCPV4, gso_size: int = 1448, flags: int = NEEDS_CSUM
) -> tuple[tuple[bytes, ...], int, int, int, int, int, int]:
    frame = superframe4(payload)
    return ((frame[:54], frame[54:]), flags, gso_type, 54, gso_size, 34, 16)


def test_superframes_reach_a_guest_that_takes_them() -> None:
    with net_rig() as (device, guest):
        assert device.max_superframe == 65549
        frames = [send4(), send4(gso_type=TCPV4 | ECN), send4(65535 - 40)]
        six = superframe6(5000)
        assert device.transmit([*frames, ((six,), NEEDS_CSUM, TCPV6, 74, 1428, 54, 16)]) == 4
        arrived = guest.recv()
        assert [bytes(frame.data) for frame in arrived] == [b"".join(frame[0]) for frame in frames] + [six]
        assert [frame[1:7] for frame in arrived[:2]] == [
            (NEEDS_CSUM, TCPV4, 54, 1448, 34, 16),
            (NEEDS_CSUM, TCPV4 | ECN, 54, 1448, 34, 16),
        ]
        assert NET_HEADER.size + 65549 > 16 * 4096
        assert arrived[2].num_buffers == 17


def test_udp_superframes_reach_a_guest_that_takes_them() -> None:
    with net_rig() as (device, guest):
        assert device.offloads & 16
        facts = (NEEDS_CSUM, UDP_L4, 42, 1000, 34, 6)
        assert device.transmit([((UDP_SUPER[:42], UDP_SUPER[42:]), *facts)]) == 1
        (arrived,) = guest.recv()
        assert bytes(arrived.data) == UDP_SUPER
        assert arrived[1:7] == facts


UNSENDABLE = {
    "TSO4 not acked": (NetFeature.GUEST_TSO4, send4(), "tx-gso-type"),
    "ECN not acked": (NetFeature.GUEST_ECN, send4(gso_type=TCPV4 | ECN), "tx-gso-type"),
    "USO4 not acked": (NetFeature.GUEST_USO4, send4(gso_type=UDP_L4), "tx-gso-type"),
    "USO6 not acked": (NetFeature.GUEST_USO6, send4(gso_type=UDP_L4), "tx-gso-type"),
    "USO with ECN": (0, send4(gso_type=UDP_L4 | ECN), "tx-gso-type"),
    "no gso_size": (0, send4(gso_size=0), "tx-gso-facts"),
    "no NEEDS_CSUM": (0, send4(flags=0), "tx-gso-facts"),
    "over 64 KiB": (0, send4(65536), "tx-long"),
    "checksum field outside": (0, ((broadcast(60),), NEEDS_CSUM, 0, 0, 0, 34, 25), "tx-csum-range"),
    "no Ethernet header": (0, plain(bytes(13)), "tx-short"),
}


@pytest.mark.parametrize("case", UNSENDABLE)
def test_what_can_never_be_sent_is_accepted_dropped_and_counted(case: str) -> None:
    without, frame, reason = UNSENDABLE[case]
    with net_rig(features=ALL_FEATURES & ~without) as (device, guest):
        for _ in range(2):  # also when the facts have been seen before
            assert device.transmit([plain(broadcast(60)), frame, plain(broadcast(61))]) == 3
            assert [len(arrived.data) for arrived in guest.recv()] == [60, 61]
        assert device.drops == {reason: 2}


def test_the_same_facts_are_judged_anew_for_another_length() -> None:
    """Facts repeat and their header is remembered, but only for lengths they are good for."""
    short, long = broadcast(60), broadcast(1514)
    facts = (NEEDS_CSUM, 0, 0, 0, 400, 2)
    with net_rig() as (device, guest):
        assert device.transmit([((long,), *facts), ((short,), *facts), ((long,), *facts)]) == 3
        assert [len(frame.data) for frame in guest.recv()] == [1514, 1514]
        assert device.drops == {"tx-csum-range": 1}
        assert device.transmit([plain(long), plain(broadcast(1515)), plain(short)]) == 3
        assert [len(frame.data) for frame in guest.recv()] == [1514, 60]
