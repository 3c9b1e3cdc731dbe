"""Nothing disappears: a frame with any bit of any header wrong is delivered, answered, or counted in `Stack.stats`."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Final

import pytest

from stack import Network
from stack.link.device import NEEDS_CSUM
from stack.testing import builders
from stack.testing.clock import ManualClock
from stack.testing.links import RecorderDevice
from stack.wire import icmpv6

VOUCHED: Final = NEEDS_CSUM << 1  # VIRTIO_NET_HDR_F_DATA_VALID: transport checksums are not looked at
MAC, PEER_MAC = bytes.fromhex("026777000001"), bytes.fromhex("020000000002")
ME4, PEER4 = bytes((10, 0, 2, 2)), bytes((10, 0, 2, 15))
ME6, PEER6 = (bytes.fromhex("fd00" + "00" * 13 + last) for last in ("02", "15"))
PORT: Final = 7


def over4(proto: int, payload: bytes) -> bytes:
    return builders.ethernet(MAC, PEER_MAC, 0x0800, builders.ipv4(PEER4, ME4, proto, payload))


def over6(proto: int, payload: bytes, hop_limit: int = 64) -> bytes:
    return builders.ethernet(MAC, PEER_MAC, 0x86DD, builders.ipv6(PEER6, ME6, proto, payload, hop_limit=hop_limit))


SOLICITATION = icmpv6.emit_neighbour(icmpv6.NEIGHBOUR_SOLICITATION, ME6, PEER_MAC, 0, PEER6, ME6)
FRAMES: Final = {
    "arp": builders.ethernet(MAC, PEER_MAC, 0x0806, builders.arp(1, PEER_MAC, PEER4, bytes(6), ME4)),
    "ns": over6(58, SOLICITATION, 255),
    "echo4": over4(1, builders.icmp_echo(1, 1)),
    "udp4": over4(17, builders.udp(PEER4, ME4, 9, PORT, b"data")),
    "udp6": over6(17, builders.udp(PEER6, ME6, 9, PORT, b"data")),
    "syn4": over4(6, builders.tcp(PEER4, ME4, 9, PORT, flags=builders.SYN)),
    "syn6": over6(6, builders.tcp(PEER6, ME6, 9, PORT, flags=builders.SYN)),
    "stray4": over4(6, builders.tcp(PEER4, ME4, 9, PORT, flags=builders.ACK)),
    "fragment6": over6(44, struct.pack("!BBHI", 17, 0, 1, 77) + builders.udp(PEER6, ME6, 9, PORT, bytes(8))),
}
#: Not wrong, and nobody's loss: an ARP request for somebody else; "no next header" (59) where ICMPv6 (58) was.
NONE_OF_OURS: Final = {"arp": list(range(38 * 8, 42 * 8)), "ns": [20 * 8 + 7]}


def wrong(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """(bit, frame with it flipped) above Ethernet: as it is and, where it is IPv4's, with a right sum."""
    for bit in range(14 * 8, len(frame) * 8):
        data = bytearray(frame)
        data[bit // 8] ^= 0x80 >> bit % 8
        if frame is FRAMES["fragment6"]:
            data[58:62] = bit.to_bytes(4, "big")  # each of a datagram of its own: it would be a duplicate of the last
        yield bit, bytes(data)
        length = (data[14] & 15) * 4
        if data[12:14] == b"\x08\0" and 20 <= length <= len(data) - 14 and bit < 34 * 8:
            data[24:26] = bytes(2)
            data[24:26] = struct.pack("!H", builders.inet_checksum(bytes(data[14 : 14 + length])))
            yield bit, bytes(data)


def total(part: Any) -> int:
    return sum(map(total, part.values())) if isinstance(part, Mapping) else int(part)


def counted(stats: Any) -> int:
    """Everything that is counted but that a frame came: drops of all layers, ICMP by type, what TCP counts."""
    drops = total(stats["interface"]["eth0"]["drops"])
    drops += sum(total(stats[layer]) for layer in ("ip", "icmp", "udp", "tcp"))
    drops += total(stats["neighbours"]["eth0"]["drops"])
    return drops + sum(total(stats["limits"][f"reassembly{version}-bytes"]["used"]) for version in (4, 6))


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("flags", [0, VOUCHED], ids=["", "vouched"])
def test_a_wrong_bit_is_delivered_answered_or_counted(name: str, flags: int) -> None:
    """For each bit of each header: something reaches a socket or leaves the host, or some counter goes up."""
    lost: list[int] = []
    with Network(clock=ManualClock(), rng=random.Random(1)) as network, ExitStack() as kept:
        node = network.stack("node")
        device = RecorderDevice(mac=MAC)
        eth = node.add_interface(device, "eth0", ["10.0.2.2/24", "fd00::2/64"])
        for address in (PEER4, PEER6):
            eth.neighbours.set_permanent(address, PEER_MAC)
        socks = node.socket
        udp = kept.enter_context(socks.socket(socks.AF_INET6, socks.SOCK_DGRAM))
        udp.setblocking(False)
        udp.bind(("::", PORT))
        kept.enter_context(socks.create_server(("10.0.2.2", PORT)))
        kept.enter_context(socks.create_server(("fd00::2", PORT), family=socks.AF_INET6))
        network.poll(network.clock())
        for bit, frame in wrong(FRAMES[name]):
            device.take()
            before = counted(node.stats)
            device.feed(frame, flags=flags)
            network.poll(network.clock())
            try:
                udp.recv(100)
            except BlockingIOError:
                if not device.take() and counted(node.stats) == before:
                    lost.append(bit)
    assert lost == NONE_OF_OURS.get(name, []), f"bits of {name} that vanish: {lost}"
