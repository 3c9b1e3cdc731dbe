"""Floods below TCP, seen through `Stack.stats`: each meets its limit, and TCP connections on the same stack go on.

`test_ip_floods` shows the same limits from inside, with UDP; `tcp/test_tcp_floods` and `tcp/test_tcp_syn_cookies` what
floods of segments meet.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from stack.tcp import Connection, TcpState
from stack.testing import builders
from stack.tests.tcp.world import A6, B6, A, B, World
from stack.wire import icmpv6

ROUNDS = 3000
BROADCAST = b"\xff" * 6


class Scene:
    """Stack b and its friend a, with a connection over each version of IP; frames from nowhere come over a's cable."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(3)
        self.listeners = {
            six: world.b.tcp.listen(world.b.tcp.ports.bind(B6 if six else B, 80), 16) for six in (False, True)
        }
        self.pairs = {six: world.pair_on(self.listeners[six], six=six) for six in (False, True)}

    @property
    def stats(self) -> Any:
        return self.world.network.stacks["b"].stats

    def limit(self, name: str) -> tuple[int, int]:
        found = self.stats["limits"]
        assert all(one["used"] <= one["most"] for one in found.values())
        return found[name]["used"], found[name]["most"]

    def inject(self, ethertype: int, packet: bytes, dst: bytes | None = None) -> None:
        mac = self.world.b.interfaces["eth0"].mac
        self.world.a.interfaces["eth0"].send_frame(dst or mac, ethertype, packet)

    def flood(self, send: Callable[[int], None]) -> None:
        for number in range(ROUNDS):
            send(number)
            if number % 250 == 249:
                self.world.advance()
        self.world.run_until(lambda: False, 0.01)

    def echoed(self, near: Connection, far: Connection) -> bool:
        data = self.rng.randbytes(20_000)
        near.write(data)
        if not self.world.run_until(lambda: far.readable == len(data), 30):
            return False
        far.write(far.read(len(data)))
        if not self.world.run_until(lambda: near.readable == len(data), 30):
            return False
        return near.read(len(data)) == data

    def served(self) -> bool:
        """Both old connections work, and a new one of each kind."""
        for six, old in self.pairs.items():
            new = self.world.pair_on(self.listeners[six], six=six)
            if not (self.echoed(*old) and self.echoed(*new)):
                return False
            for one in new:
                one.abort()
        return all(one.state is TcpState.ESTABLISHED for pair in self.pairs.values() for one in pair)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with World(6) as world:
        scene = Scene(world)
        assert scene.served()
        yield scene


def host(number: int, *, six: bool) -> bytes:
    """A neighbour that does not exist."""
    if six:
        return B6[:-4] + (number + 0x10000).to_bytes(4, "big")
    return B[:3] + bytes((3 + number % 250,))


@pytest.mark.parametrize("six", [False, True])
def test_fragments_that_never_become_whole(scene: Scene, six: bool) -> None:
    """First fragments fill the memory for reassembly and no more; it is free again when their time is over."""
    name = f"reassembly{6 if six else 4}-bytes"

    def send(number: int) -> None:
        source, body = host(number, six=six), scene.rng.randbytes(1200)
        if six:
            packet = builders.ipv6(source, B6, 44, struct.pack("!BBHI", 17, 0, 1, number) + body)
            scene.inject(0x86DD, packet)
        else:
            scene.inject(0x0800, builders.ipv4(source, B, 17, body, identification=number, flags_fragment=0x2000))

    scene.flood(send)
    used, most = scene.limit(name)
    assert most // 5 < used <= most
    assert scene.stats["ip"]["drops"]["fragment-limit"] > 0
    assert scene.served()
    scene.world.run_until(lambda: False, 65)
    assert scene.limit(name)[0] == 0


def test_arp_from_nobody(scene: Scene) -> None:
    """Requests of made-up neighbours: the cache stays within its bound."""

    def send(number: int) -> None:
        mac = b"\x02\x77" + number.to_bytes(4, "big")
        scene.inject(0x0806, builders.arp(1, mac, host(number, six=False), bytes(6), B), BROADCAST)

    scene.flood(send)
    assert 0 < scene.limit("neighbours")[0] <= 260
    assert scene.stats["neighbours"]["eth0"]["entries"] == scene.limit("neighbours")[0]
    assert scene.served()


def test_neighbour_solicitations_from_nobody(scene: Scene) -> None:
    """As many neighbours as there are addresses: the cache fills, and who is talked to stays in it."""

    def send(number: int) -> None:
        source, mac = host(number, six=True), b"\x02\x77" + number.to_bytes(4, "big")
        message = icmpv6.emit_neighbour(icmpv6.NEIGHBOUR_SOLICITATION, B6, mac, 0, source, B6)
        scene.inject(0x86DD, builders.ipv6(source, B6, 58, message, hop_limit=255))

    scene.flood(send)
    used, most = scene.limit("neighbours")
    assert used >= most // 2
    assert scene.stats["icmp"]["Icmp6InType135"] >= 1000
    drops = scene.stats["neighbours"]["eth0"]["drops"]
    assert drops["neighbour-cache-full"] > 0
    assert scene.served()


@pytest.mark.parametrize("six", [False, True])
def test_echo_requests(scene: Scene, six: bool) -> None:
    """Answered as they come; nothing is kept."""

    def send(number: int) -> None:
        if six:
            message = icmpv6.Icmpv6Message(icmpv6.ECHO_REQUEST, 0, number, memoryview(bytes(56))).emit(A6, B6)
            scene.inject(0x86DD, builders.ipv6(A6, B6, 58, message))
        else:
            scene.inject(0x0800, builders.ipv4(A, B, 1, builders.icmp_echo(1, number & 0xFFFF)))

    scene.flood(send)
    counters = scene.stats["icmp"]
    asked, answered = (129 - 1, 129) if six else (8, 0)
    version = "Icmp6" if six else "IcmpMsg"
    assert counters[f"{version}InType{asked}"] >= 1000
    assert counters[f"{version}OutType{answered}"] <= counters[f"{version}InType{asked}"]
    assert scene.served()


@pytest.mark.parametrize("six", [False, True])
def test_datagrams_to_closed_ports(scene: Scene, six: bool) -> None:
    """ICMP errors are limited in rate, for one peer and for all together."""

    def send(number: int) -> None:
        source, target = host(number, six=six), B6 if six else B
        body = builders.udp(source, target, 9, 9, b"x")
        if six:
            scene.inject(0x86DD, builders.ipv6(source, target, 17, body))
        else:
            scene.inject(0x0800, builders.ipv4(source, target, 17, body))

    scene.flood(send)
    assert scene.stats["ip"]["drops"]["rate-limited"] >= 1000
    assert scene.stats["icmp"].get("Icmp6OutType1" if six else "IcmpMsgOutType3", 0) <= 400
    assert scene.limit("icmp-error-peers")[1] > 0
    assert scene.served()


def test_errors_about_our_connections_that_quote_nonsense(scene: Scene) -> None:
    """RFC 5927: "fragmentation needed" and "unreachable" about segments never sent change nothing."""
    near, far = scene.pairs[False]

    def send(number: int) -> None:
        quoted = builders.ipv4(B, A, 6, builders.tcp(B, A, 80, near.local[1], seq=scene.rng.getrandbits(32))[:8])
        code, mtu = (4, 300) if number % 2 else (1, 0)
        message = struct.pack("!BBHHH", 3, code, 0, 0, mtu) + quoted
        message = message[:2] + struct.pack("!H", builders.inet_checksum(message)) + message[4:]
        scene.inject(0x0800, builders.ipv4(A, B, 1, message))

    mss = far.mss
    scene.flood(send)
    assert scene.stats["tcp"]["TcpExtOutOfWindowIcmps"] >= 1000
    assert far.mss == mss
    assert scene.limit("path-mtus")[0] == 0
    assert scene.served()


def test_every_flood_at_once(scene: Scene) -> None:
    """Everything above, mixed with SYNs and rubbish: all limits hold, and TCP works."""

    def mac(number: int) -> bytes:
        return b"\x02\x77" + number.to_bytes(4, "big")

    mixed: list[Callable[[int], None]] = [
        lambda n: scene.inject(0x0806, builders.arp(1, mac(n), host(n, six=False), bytes(6), B)),
        lambda n: scene.inject(
            0x0800, builders.ipv4(host(n, six=False), B, 17, bytes(1200), identification=n, flags_fragment=0x2000)
        ),
        lambda n: scene.inject(
            0x0800,
            builders.ipv4(host(n, six=False), B, 6, builders.tcp(host(n, six=False), B, 1024 + n, 80, flags=2)),
        ),
        lambda n: scene.inject(
            0x86DD,
            builders.ipv6(host(n, six=True), B6, 6, builders.tcp(host(n, six=True), B6, 1024 + n, 80, flags=2)),
        ),
        lambda n: scene.inject(0x0800, scene.rng.randbytes(60)),
        lambda n: scene.inject(0x86DD, scene.rng.randbytes(90)),
    ]
    scene.flood(lambda number: mixed[number % len(mixed)](number))
    stats = scene.stats
    assert isinstance(stats["limits"], Mapping)
    assert scene.limit("tcp-half-open")[0] <= 2 * 17
    assert stats["tcp"]["TcpExtSyncookiesSent"] > 300
    assert scene.served()
