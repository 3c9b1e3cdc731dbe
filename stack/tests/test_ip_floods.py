"""Floods meet limits that the statistics show, and who came in peace is served meanwhile."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from stack.iface.address import parse_address
from stack.netns import NetNamespace
from stack.testing import builders
from stack.tests.ip_world import World
from stack.wire import icmpv6

BROADCAST = b"\xff" * 6
ROUNDS = 3000
VICTIM = {4: parse_address("10.0.0.1"), 6: parse_address("fd01::1")}
FRIEND = {4: parse_address("10.0.0.2"), 6: parse_address("fd01::2")}


class Scene:
    """A victim and, on the same cable, a friend; what is hostile is sent from the friend's end as raw frames."""

    def __init__(self) -> None:
        self.world = World()
        self.victim_if, self.friend_if = self.world.join(
            "victim", "friend", a_addresses=["10.0.0.1/16", "fd01::1/64"], b_addresses=["10.0.0.2/16", "fd01::2/64"]
        )
        self.victim: NetNamespace = self.world.node("victim")
        self.friend: NetNamespace = self.world.node("friend")
        self.rng = random.Random(4)
        self.world.turn()
        for family in (4, 6):
            assert self.served(family, 100)

    def served(self, family: int, size: int) -> bool:
        """The friend's datagram of `size` bytes is echoed by the victim's UDP."""
        any_address = bytes(len(VICTIM[family]))
        server, client = self.victim.udp.bind(any_address, 7), self.friend.udp.bind(any_address)
        try:
            client.send(self.rng.randbytes(size), (VICTIM[family], 7))
            self.world.turn()
            request = server.recv()
            if request is None:
                return False
            server.send(request.data, request.src)
            self.world.turn()
            answer = client.recv()
            return answer is not None and answer.data == request.data
        finally:
            server.close()
            client.close()

    def inject(self, ethertype: int, packet: bytes, dst: bytes | None = None) -> None:
        self.friend_if.send_frame(dst or self.victim_if.mac, ethertype, packet)

    def flood(self, send: Callable[[int], None]) -> None:
        for number in range(ROUNDS):
            send(number)
            if number % 500 == 499:
                self.world.turn()
        self.world.turn()

    def limits(self) -> dict[str, tuple[int, int]]:
        found = self.victim.stats()["limits"]
        for name, (used, most) in found.items():  # type: ignore[misc]  # of limits these are pairs
            assert used <= most, name
        return found  # type: ignore[return-value]  # as above


def fragment(family: int, source: bytes, number: int, rng: random.Random) -> bytes:
    """The first of two fragments; the second never comes."""
    body = builders.udp(source, VICTIM[family], 9, 7, rng.randbytes(1400))[:1400]
    if family == 4:
        return builders.ipv4(source, VICTIM[4], 17, body, identification=number & 0xFFFF, flags_fragment=0x2000)
    return builders.ipv6(source, VICTIM[6], 44, struct.pack("!BBHI", 17, 0, 1, number) + body)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("spoofed", [False, True])
def test_fragments(family: int, spoofed: bool) -> None:
    """One source loses its own fragments first, so that other people's are still put together."""
    scene = Scene()
    base = bytes((10, 0, 9, 9)) if family == 4 else parse_address("fd01::9:9")

    def send(number: int) -> None:
        tail = (number + 3 if spoofed else 0).to_bytes(2, "big")
        source = base[:-2] + tail if spoofed else base
        scene.inject(0x0800 if family == 4 else 0x86DD, fragment(family, source, number, scene.rng))

    scene.flood(send)
    used, most = scene.limits()[f"reassembly{family}-bytes"]
    assert used > most // 5
    assert scene.victim.stats()["ip"]["fragment-limit"]
    assert scene.served(family, 8000), "fragmented both ways"
    assert scene.served(family, 100)
    scene.world.pass_time(61)
    assert scene.limits()[f"reassembly{family}-bytes"][0] == 0


def test_arp() -> None:
    """Requests of made-up neighbours fill the cache and no more; the friend is still talked to."""
    scene = Scene()

    def send(number: int) -> None:
        source = bytes((10, 0, 16 + (number >> 8), number & 255))
        mac = b"\x02\x99" + number.to_bytes(4, "big")
        scene.inject(0x0806, builders.arp(1, mac, source, bytes(6), VICTIM[4]), BROADCAST)

    scene.flood(send)
    assert scene.limits()["neighbours"][0] >= 1024
    assert scene.victim.stats()["eth0 neighbours"]["neighbour-cache-full"]
    assert scene.served(4, 4000)


def test_neighbour_solicitations() -> None:
    scene = Scene()

    def send(number: int) -> None:
        source = parse_address(f"fd01::7:{number:x}")
        mac = b"\x02\x99" + number.to_bytes(4, "big")
        message = icmpv6.emit_neighbour(icmpv6.NEIGHBOUR_SOLICITATION, VICTIM[6], mac, 0, source, VICTIM[6])
        scene.inject(0x86DD, builders.ipv6(source, VICTIM[6], 58, message, hop_limit=255))

    scene.flood(send)
    assert scene.limits()["neighbours"][0] >= 1024
    assert scene.served(6, 4000)


@pytest.mark.parametrize("family", [4, 6])
def test_datagrams_to_closed_ports(family: int) -> None:
    """Errors are rate limited, for one peer and for all together (RFC 1812 4.3.2.8, RFC 4443 2.4 f)."""
    scene = Scene()
    base = FRIEND[family]

    def send(number: int) -> None:
        source = base[:-2] + (number % 2000 + 3).to_bytes(2, "big")
        body = builders.udp(source, VICTIM[family], 9, 9, b"x")
        if family == 4:
            scene.inject(0x0800, builders.ipv4(source, VICTIM[4], 17, body))
        else:
            scene.inject(0x86DD, builders.ipv6(source, VICTIM[6], 17, body))

    scene.flood(send)
    assert scene.victim.stats()["ip"]["rate-limited"] >= ROUNDS - 100  # type: ignore[operator]  # drops are numbers
    scene.limits()
    assert scene.served(family, 4000)


def test_echo_requests_and_errors_about_nothing() -> None:
    scene = Scene()
    quoted = builders.ipv4(VICTIM[4], FRIEND[4], 17, builders.udp(VICTIM[4], FRIEND[4], 5, 5, b""))
    message = struct.pack("!BBHHH", 3, 4, 0, 0, 600) + quoted
    message = message[:2] + struct.pack("!H", builders.inet_checksum(message)) + message[4:]
    scene.flood(lambda _: scene.inject(0x0800, builders.ipv4(FRIEND[4], VICTIM[4], 1, message)))
    scene.flood(
        lambda n: scene.inject(0x0800, builders.ipv4(FRIEND[4], VICTIM[4], 1, builders.icmp_echo(1, n & 65535)))
    )
    assert scene.victim.ip.path_mtu(FRIEND[4]) == 1500
    assert scene.limits()["path-mtus"][0] == 0
    assert scene.served(4, 4000)


def test_packets_to_a_neighbour_that_never_answers() -> None:
    """What waits for a neighbour is bounded, and does not hold up what is for others."""
    scene = Scene()
    socket = scene.victim.udp.bind(bytes(4))
    scene.flood(lambda _: (socket.send(bytes(1000), (bytes((10, 0, 77, 77)), 7)), None)[1])
    drops = scene.victim.stats()["eth0 neighbours"]
    assert drops["neighbour-queue-full"] >= ROUNDS - 213  # type: ignore[operator]  # drops are numbers
    assert scene.served(4, 4000)
