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


class Router:
    """Between PEER's link and RIGHT's; `sent` is what it has sent, frame by frame."""

    def __init__(self, network: Network, *, forwarding: bool) -> None:
        self.network = network
        self.sent: list[bytes] = []
        (outer, _), (inner, _) = cable(network.scheduler), cable(network.scheduler)
        self.stack = network.stack("router")
        self.near = self.stack.add_interface(outer, addresses=["10.9.0.1/24", "10.9.0.7/24"])
        far = self.stack.add_interface(inner, addresses=["10.8.0.1/24"])
        netns = self.stack.netns
        network.call(lambda: netns.take_source_routes(True), ())
        network.call(lambda: netns.set_forwarding(forwarding), ())
        for iface, address in ((self.near, PEER), (far, RIGHT)):
            iface.taps.append(self)
            network.call(iface.neighbours.set_permanent, (address, bytes(6)))

    def received(self, burst: Any) -> None:
        pass

    def transmitted(self, burst: Any) -> None:
        self.sent.extend(b"".join(parts) for parts, *_ in burst)

    def take(self, packet: bytes) -> None:
        """A packet from PEER's link."""
        frame = builders.ethernet(self.near.mac, bytes(6), 0x0800, packet)
        self.network.call(self.stack.netns.ip.input4.receive, (self.near, memoryview(frame), 0, 0, 0))
        self.network.poll(self.network.clock())


@pytest.mark.parametrize(
    ("destination", "option", "pointer"),
    [
        (NEAR, bytes((131, 7, 6)) + RIGHT, 22),  # in the middle of a slot
        (NEAR, bytes((1, 131, 8, 8)) + RIGHT + bytes(1), 23),  # a slot that is cut short
        (b"\x0a\x08\0\x09", bytes((137, 7, 4)) + RIGHT, 16),  # strict, and not addressed to us
    ],
    ids=["between", "short", "strict"],
)
def test_source_routes_that_cannot_be_followed(destination: bytes, option: bytes, pointer: int) -> None:
    """Parameter problem, and where in the header (RFC 1812 5.2.4.1); nothing is passed on."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        router = Router(network, forwarding=True)
        options = option + bytes(-len(option) % 4)
        router.take(builders.ipv4(PEER, destination, 17, builders.udp(PEER, RIGHT, 7, 7, b"data"), options=options))
        [frame] = router.sent
        message = frame[14 + (frame[14] & 15) * 4 :]
        assert PEER in frame[30 : 14 + (frame[14] & 15) * 4]  # if need be, by the way it has come
        assert (message[0], message[1], message[4]) == (12, 0, pointer)
        assert router.stack.netns.ip.forwarding.forwarded4 == 0


@pytest.mark.parametrize("forwarding", [False, True])
def test_hostile_source_routes(forwarding: bool) -> None:
    """Thousands of them, to every address of the router, over every protocol: none raises, what leaves is sound."""
    rng = random.Random(11)
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        router = Router(network, forwarding=forwarding)
        with router.stack.socket.create_server(("0.0.0.0", 80)):
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
                router.take(packet)
        assert len(router.sent) > 40
        for frame in router.sent:
            header = frame[14 : 14 + (frame[14] & 15) * 4]
            if frame[12:14] == b"\x08\x00":
                assert len(header) >= HEADER_LENGTH
                assert builders.inet_checksum(header) == 0
