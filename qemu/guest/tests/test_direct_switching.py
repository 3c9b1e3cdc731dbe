"""Two guests' cards on a switch: what they move between themselves arrives as if the switch had looked at every frame.

The same frames, at the same moments, go through two LANs that differ in one thing: the cards of one may move frames by
themselves. Everything that can be seen from outside must be equal: what each guest receives, in order and with its
header, every counter of cards and ports, every drop by its reason, and the address table.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from stack.link import Switch
from stack.link.switch import MAC_AGEING, DevicePort
from stack.scheduler import Scheduler
from stack.testing import builders as b
from vhost_user import NetDevice, Server
from vhost_user.driver import GuestMemory, NetDriver, NetFrame
from vhost_user.driver.net import ALL_FEATURES as ALL
from vhost_user.features import NetFeature
from vhost_user.slab import RxFrame

MIB = 1 << 20


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def address(number: int) -> bytes:
    return bytes((10, 0, 0, number))


class Lan:
    """Guests on one switch; `guests` are the arguments of their drivers."""

    def __init__(
        self, undo: ExitStack, direct: bool, guests: list[dict[str, Any]], cards: list[dict[str, Any]]
    ) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.switch = Switch(self.scheduler)
        self.devices: list[NetDevice] = []
        self.drivers: list[NetDriver] = []
        self.ports: list[DevicePort] = []
        self.received: list[list[NetFrame]] = [[] for _ in guests]
        server = undo.enter_context(Server())
        for arguments, card in zip(guests, cards, strict=True):
            device = NetDevice(**card)
            undo.callback(device.close)
            ours, theirs = socket.socketpair()
            server.adopt(device, ours)
            sealed = arguments.get("sealed", True)
            memory = GuestMemory([(0, 64 * MIB)], sealed=sealed)
            words = {name: value for name, value in arguments.items() if name != "sealed"}
            driver = undo.enter_context(NetDriver(theirs, memory=memory, **words))
            device.refresh()
            port = self.switch.attach(device)
            if not direct:
                port.direct = None
            self.devices.append(device)
            self.drivers.append(driver)
            self.ports.append(port)

    def turn(self) -> None:
        while sum([port.service(256) for port in self.ports]):
            self.scheduler.run_deferred()
        self.scheduler.run_deferred()

    def drain(self, guest: int, limit: int = 1 << 30) -> None:
        driver = self.drivers[guest]
        for queue in range(driver.queues):
            left = limit
            while left > 0 and (got := driver.recv(min(64, left), queue=queue)):
                left -= len(got)
                self.received[guest] += got

    def books(self) -> list[object]:
        table = sorted(self.switch.addresses())
        ports = [(port.received, port.delivered, dict(port.drops.items()), port.queued) for port in self.ports]
        cards = [(card.frames_in, card.bytes_in, card.frames_out, card.drops) for card in self.devices]
        rings = [
            [(ring.counters.chains, ring.counters.bytes, ring.broken, ring.base) for ring in card.rings]
            for card in self.devices
        ]
        return [table, ports, cards, rings, dict(self.switch.drops.items())]


@contextmanager
def twins(guests: list[dict[str, Any]], cards: list[dict[str, Any]] | None = None) -> Iterator[tuple[Lan, Lan]]:
    """The same LAN twice: one whose cards move frames by themselves, one where the switch sees all of them."""
    with ExitStack() as undo:
        cards = cards or [{} for _ in guests]
        yield Lan(undo, True, guests, cards), Lan(undo, False, guests, cards)


def udp4(to: int, of: int, payload: bytes, *, partial: bool = False, spoil: bool = False, port: int = 5000) -> NetFrame:
    one, other = address(of), address(to)
    if partial:
        checksum = b.partial_checksum(one, other, 17, 8 + len(payload))
        segment = b.udp(one, other, port, 7, payload, checksum=checksum)
    else:
        segment = b.udp(one, other, port, 7, payload)
        if spoil:
            segment = segment[:6] + bytes((segment[6] ^ 1,)) + segment[7:]
    frame = b.ethernet(mac(to), mac(of), 0x0800, b.ipv4(one, other, 17, segment))
    return NetFrame(frame, 1, csum_start=34, csum_offset=6) if partial else NetFrame(frame)


def superframe(to: int, of: int, size: int, *, mss: int = 1448) -> NetFrame:
    one, other = address(of), address(to)
    checksum = b.partial_checksum(one, other, 6, 20 + size)
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]
    segment = b.tcp(one, other, 4000, 80, seq=1, ack=1, flags=0x18, payload=payload, checksum=checksum)
    frame = b.ethernet(mac(to), mac(of), 0x0800, b.ipv4(one, other, 6, segment))
    return NetFrame(frame, 1, 1, 0, mss, 34, 16)


def some_frame(rng: random.Random, of: int, count: int) -> NetFrame:
    """Mostly what guests send each other; sometimes anything."""
    to = rng.choice([number for number in range(1, count + 1) if number != of])
    kind = rng.randrange(40)
    body = rng.randbytes(rng.choice((0, 1, 18, 100, 1000, 1472)))
    if kind < 14:
        return udp4(to, of, body, partial=True, port=rng.randrange(1000, 1004))
    if kind < 22:
        return udp4(to, of, body, port=rng.randrange(1000, 1004))
    if kind < 28:
        return superframe(to, of, rng.choice((1500, 9000, 30000, 65483)), mss=rng.choice((1448, 536)))
    if kind < 30:
        return udp4(to, of, body, spoil=True)
    if kind < 32:
        return NetFrame(b.ethernet(b.BROADCAST, mac(of), 0x0806, bytes(46)))
    if kind == 32:
        return NetFrame(b.ethernet(mac(77), mac(of), 0x88B5, body))
    if kind == 33:
        return NetFrame(b.ethernet(mac(to), mac(rng.randrange(1, 100)), 0x88B5, body))
    if kind == 34:
        return NetFrame(b.ethernet(mac(to), mac(of), 0x8100, b"\0\7\x08\0" + rng.randbytes(1500)))
    if kind == 35:
        return NetFrame(mac(to) + mac(of) + rng.randbytes(rng.randrange(3)))
    if kind == 36:
        return NetFrame(b.ethernet(mac(to), mac(of), 0x88B5, rng.randbytes(1501)))
    if kind == 37:
        return NetFrame(b.ethernet(mac(to), b"\x03" + mac(of)[1:], 0x88B5, body))
    return NetFrame(
        b.ethernet(mac(to), mac(of), rng.choice((0x0800, 0x86DD, 0x88B5)), rng.randbytes(200)),
        *(rng.choice(values) for values in ((0, 1), (0, 1, 4, 5, 0x81), (0,), (0, 100, 1448), (14, 34, 2000), (6, 16))),
    )


NO_CSUM = ALL & ~(NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_USO4)
World = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]
WORLDS: dict[str, World] = {
    "alike": ([{}, {}, {}], None),
    "small rings": ([{"rx_size": 16, "tx_size": 64}, {"rx_size": 32}, {"rx_buffer": 2048, "rx_size": 64}], None),
    "different": (
        [
            {"features": ALL & ~NetFeature.MRG_RXBUF},
            {"features": NO_CSUM, "rx_pieces": (12, 100)},
            {"features": ALL & ~NetFeature.GUEST_TSO4, "tx_pieces": (12, 14, 20, 1)},
        ],
        [{}, {}, {"mtu": 9000}],
    ),
    "unsealed": ([{"sealed": False}, {}, {"sealed": False}], None),
    "two pairs": ([{"queues": 2}, {"queues": 2}, {}], [{"queues": 2, "workers": 0}, {"queues": 2, "workers": 1}, {}]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("world", WORLDS)
def test_nothing_that_can_be_seen_is_different(world: str, seed: int) -> None:
    """Random frames between three guests, with full rings, pauses and ageing in between."""
    guests, cards = WORLDS[world]
    with twins(guests, cards) as lans:
        moves = random.Random(f"{world} {seed}")
        for _ in range(40):
            guest = moves.randrange(3)
            queue = moves.randrange(lans[0].drivers[guest].queues)
            frames = [some_frame(moves, guest + 1, 3) for _ in range(moves.randrange(1, 30))]
            for index in range(0, len(frames), 5):
                sent = {lan.drivers[guest].send(frames[index : index + 5], queue=queue) for lan in lans}
                assert len(sent) == 1
            age = MAC_AGEING if moves.randrange(12) == 0 else 1
            reader, limit = moves.randrange(3), moves.randrange(1, 50)
            for lan in lans:
                lan.turn()
                lan.drain(reader, limit)
                lan.scheduler.now += age
        for _ in range(60):
            for lan in lans:
                for guest in range(3):
                    lan.drain(guest)
                lan.turn()
        direct, seen = lans
        for guest in range(3):
            assert_same_frames(direct.received[guest], seen.received[guest], pairs=direct.drivers[guest].queues)
        assert direct.books() == seen.books()
        assert sum(map(len, direct.received)) > 100


def assert_same_frames(one: list[NetFrame], other: list[NetFrame], *, pairs: int) -> None:
    """With one pair in the same order; with several, which are read one after the other, in any."""
    assert (sorted(one) if pairs > 1 else one) == (sorted(other) if pairs > 1 else other)


def test_ordinary_frames_are_not_seen_by_the_switch() -> None:
    """After the first frame each way the switch learns of frames only by their number."""
    with twins([{}, {}]) as (lan, _):
        for of, to in ((1, 2), (2, 1), (1, 2)):
            lan.drivers[of - 1].send([udp4(to, of, b"hello")])
            lan.turn()
        seen = []

        def receive(budget: int) -> list[RxFrame]:
            seen.append(budget)
            return []

        lan.devices[0].receive = receive  # type: ignore[method-assign] # a spy
        lan.drivers[0].send([udp4(2, 1, bytes([n])) for n in range(100)])
        lan.turn()
        assert not seen
        lan.drain(1)
        assert [bytes(frame.data)[42] for frame in lan.received[1][-100:]] == list(range(100))
        assert lan.ports[0].received == lan.devices[0].frames_in == 102
        assert lan.ports[1].delivered == 102


@pytest.mark.parametrize("victim", [0, 1], ids=["sender", "receiver"])
def test_memory_that_is_truncated_costs_its_owner_only(victim: int) -> None:
    """Ring rule 4.1: an unsealed memfd may shrink under us; whose it is loses its ring, the other guest nothing."""
    with twins([{"sealed": False}, {"sealed": False}]) as (lan, _):
        for of, to in ((1, 2), (2, 1), (1, 2)):
            lan.drivers[of - 1].send([udp4(to, of, b"hello")])
            lan.turn()
        lan.drivers[0].send([udp4(2, 1, b"lost")])
        os.ftruncate(lan.drivers[victim].memory.fd, 0)
        try:
            lan.turn()
        finally:
            os.ftruncate(lan.drivers[victim].memory.fd, 64 * MIB)
        rings = [ring for card in lan.devices for ring in card.rings]
        broken = [number for number, ring in enumerate(rings) if ring.broken]
        assert broken in ([[1]] if victim == 0 else [[2], [2, 3]])
        assert "truncated" in str(rings[broken[0]].broken)


def test_a_guest_that_lies_about_its_receive_ring_does_not_hurt_the_sender(caplog: pytest.LogCaptureFixture) -> None:
    with twins([{}, {}, {}]) as lans:
        for lan in lans:
            for of, to in ((1, 2), (2, 1), (3, 1), (1, 3), (1, 2)):
                lan.drivers[of - 1].send([udp4(to, of, b"hello")])
                lan.turn()
            ring = lan.drivers[1].rx()
            ring.set_avail_index(ring.avail_index + 300)
            lan.drivers[0].send([udp4(to, 1, bytes([n])) for n in range(20) for to in (2, 3)])
            lan.turn()
            lan.drain(2)
            assert lan.devices[1].rings[0].broken
            assert not any(ring.broken for ring in lan.devices[0].rings + lan.devices[2].rings)
        assert lans[0].received[2] == lans[1].received[2]
        assert len(lans[0].received[2]) >= 21
    assert "available index" in caplog.text
