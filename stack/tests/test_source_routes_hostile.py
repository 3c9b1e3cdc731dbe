"""Packets whose source routes lie, in any way, do no harm: a counted drop, an ICMP error, or they pass."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stack import Network
from stack.link.cable import cable
from stack.testing import builders
from stack.testing.clock import ManualClock
from stack.wire.ipv4 import HEADER_LENGTH

PEER, NEAR, SECOND, FAR, RIGHT = (
    bytes((10, *rest)) for rest in ((9, 0, 2), (9, 0, 1), (9, 0, 7), (8, 0, 1), (8, 0, 2))
)
ADDRESSES = (PEER, NEAR, SECOND, FAR, RIGHT, bytes(4), b"\x7f\0\0\1", b"\xe0\0\0\1", b"\xff" * 4, b"\xcb\0\x71\1")


def hostile_options(rng: random.Random) -> bytes:
    """A list of options with a source route in it that may lie about everything."""
    options = bytearray()
    while len(options) < rng.choice((8, 16, 40)):
        kind = rng.choice((131, 131, 137, 137, 7, 68, 1, 0, 148, rng.randrange(256)))
        body = b"".join(rng.choice(ADDRESSES) for _ in range(rng.randrange(4)))
        length = rng.choice((3 + len(body), 3 + len(body), 3 + len(body), rng.randrange(48)))
        pointer = rng.choice((4, 4, 8, 12, 4 + len(body), rng.randrange(256)))
        options += bytes((kind,)) if kind < 2 else bytes((kind, length, pointer)) + body
    return bytes(options[:40]) + bytes(-len(options[:40]) % 4)


@pytest.mark.parametrize("forwarding", [False, True])
def test_hostile_source_routes(forwarding: bool) -> None:
    """Thousands of them, to every address of the router, over every protocol: none raises, what leaves is sound."""
    rng = random.Random(11)
    left: list[bytes] = []

    class Tap:
        def received(self, burst: Any) -> None:
            pass

        def transmitted(self, burst: Any) -> None:
            left.extend(b"".join(parts) for parts, *_ in burst)

    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        (outer, _), (inner, _) = cable(network.scheduler), cable(network.scheduler)
        router = network.stack("router")
        near = router.add_interface(outer, addresses=["10.9.0.1/24", "10.9.0.7/24"])
        far = router.add_interface(inner, addresses=["10.8.0.1/24"])
        netns = router.netns
        network.call(lambda: netns.take_source_routes(True), ())
        network.call(lambda: netns.set_forwarding(forwarding), ())
        for iface, address in ((near, PEER), (far, RIGHT)):
            iface.taps.append(Tap())
            network.call(iface.neighbours.set_permanent, (address, bytes(6)))
        with router.socket.create_server(("0.0.0.0", 80)):
            for _ in range(4000):
                payload = rng.choice(
                    (
                        builders.udp(PEER, NEAR, 7, 7, b"data"),
                        builders.icmp_echo(1, 1, b"data"),
                        builders.tcp(PEER, NEAR, 7, rng.choice((80, 81)), flags=2, seq=1),
                    )
                )
                packet = builders.ipv4(
                    PEER,
                    rng.choice(ADDRESSES),
                    rng.choice((1, 6, 17, 200)),
                    payload,
                    ttl=rng.choice((1, 2, 64)),
                    flags_fragment=rng.choice((0, 0x4000, 0x2000)),
                    options=hostile_options(rng),
                )
                frame = builders.ethernet(near.mac, bytes(6), 0x0800, packet)
                network.call(netns.ip.input4.receive, (near, memoryview(frame), 0, 0, 0))
                network.poll(network.clock())
        assert len(left) > 40
        for frame in left:
            header = frame[14 : 14 + (frame[14] & 15) * 4]
            if frame[12:14] == b"\x08\x00":
                assert len(header) >= HEADER_LENGTH
                assert builders.inet_checksum(header) == 0
