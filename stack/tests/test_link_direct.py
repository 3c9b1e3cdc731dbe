"""Which frames a switch lets devices move by themselves, and when it takes that back."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

from stack.link import Switch
from stack.link.capture_ring import CaptureRing
from stack.link.impaired import ImpairedDevice
from stack.link.impairment import Impairment
from stack.link.switch import MAC_AGEING, DevicePort
from stack.scheduler import Scheduler
from stack.testing import builders as b
from stack.testing.links import RecorderDevice

ONE, TWO, THREE = (bytes((2, 0, 0, 0, 0, number)) for number in (1, 2, 3))


class Direct(RecorderDevice):
    """A device that can move frames by itself: what it was told, and what it says it did."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: dict[bytes, tuple[object, int, Any]] = {}
        self.moved: list[tuple[bytes, int]] = []
        self.left = False
        self.closed_to: list[Collection[object]] = []
        self.full = False

    def route(self, key: bytes, other: object, deadline: int, token: object) -> bool:
        if self.full or not isinstance(other, Direct):
            return False
        self.routes[key] = other, deadline, token
        return True

    def unroute(self, key: bytes) -> None:
        del self.routes[key]

    def forward(self, budget: int, now: int, closed: Collection[object]) -> tuple[Sequence[tuple[Any, int]], bool]:
        assert budget > 0
        self.closed_to.append(closed)
        told = [(self.routes[key][2], count) for key, count in self.moved]
        self.moved = []
        return told, self.left or bool(self._inbox)


class Segment:
    def __init__(self, devices: Sequence[RecorderDevice]) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.switch = Switch(self.scheduler)
        self.devices = devices
        self.ports: list[DevicePort] = [self.switch.attach(device) for device in devices]

    def send(self, guest: int, dst: bytes, src: bytes, count: int = 1) -> None:
        self.devices[guest].feed(*[b.ethernet(dst, src, 0x0800, b"payload")] * count)
        self.turn()

    def turn(self) -> int:
        served = sum([port.service(256) for port in self.ports])
        self.scheduler.run_deferred()
        return served


def lan() -> tuple[Segment, Direct, Direct, Direct]:
    one, two, three = Direct(), Direct(), Direct()
    return Segment((one, two, three)), one, two, three


def test_the_first_frame_between_known_addresses_makes_a_shortcut() -> None:
    segment, one, two, _ = lan()
    segment.send(0, TWO, ONE)
    assert not one.routes  # it was flooded: who knows where TWO is
    segment.send(1, ONE, TWO)
    assert two.routes == {ONE + TWO: (one, MAC_AGEING, (TWO, segment.ports[0]))}
    segment.scheduler.now = 5
    segment.send(0, TWO, ONE)
    assert one.routes == {TWO + ONE: (two, MAC_AGEING, (ONE, segment.ports[1]))}


def test_group_addresses_and_unknown_ones_never_make_one() -> None:
    segment, one, two, three = lan()
    for dst in (b.BROADCAST, bytes.fromhex("01005e000001"), THREE):
        segment.send(0, dst, ONE)
        segment.send(1, dst, TWO)
    assert not any(device.routes for device in (one, two, three))


def test_a_device_of_another_kind_or_without_room_gets_none() -> None:
    one, other = Direct(), RecorderDevice()
    segment = Segment((one, other))
    segment.send(0, TWO, ONE)
    segment.send(1, ONE, TWO)
    segment.send(0, TWO, ONE)
    assert not one.routes
    assert len(other.take()) == 2
    segment, one, two, _ = lan()
    one.full = True
    segment.send(0, TWO, ONE)
    segment.send(1, ONE, TWO)
    segment.send(0, TWO, ONE)
    assert not one.routes
    assert two.routes


def joined() -> tuple[Segment, Direct, Direct, Direct]:
    """ONE and TWO have shortcuts both ways."""
    segment, one, two, three = lan()
    segment.send(0, TWO, ONE)
    segment.send(1, ONE, TWO)
    segment.send(0, TWO, ONE)
    assert one.routes
    assert two.routes
    return segment, one, two, three


def test_moved_frames_are_counted_and_keep_the_sender_known() -> None:
    segment, one, _, _ = joined()
    before = [(port.received, port.delivered) for port in segment.ports]
    segment.scheduler.now = 77
    one.moved = [(TWO + ONE, 100)]
    assert segment.turn() == 100
    after = [(port.received, port.delivered) for port in segment.ports]
    assert after[0] == (before[0][0] + 100, before[0][1])
    assert after[1] == (before[1][0], before[1][1] + 100)
    assert {mac: age for mac, _, age in segment.switch.addresses()} == {ONE: 0, TWO: 77}


def test_an_address_that_moves_takes_every_shortcut_with_it() -> None:
    segment, one, two, three = joined()
    segment.send(2, b.BROADCAST, TWO)
    assert not one.routes
    assert not two.routes
    segment.send(0, TWO, ONE)
    assert one.routes[TWO + ONE][0] is three


def test_an_address_that_ages_or_is_displaced_is_no_shortcut() -> None:
    segment, one, two, _ = joined()
    segment.scheduler.now = MAC_AGEING + 1
    segment.send(0, TWO, ONE)
    assert not one.routes
    assert not two.routes
    segment, one, two, _ = joined()
    segment.devices[0].feed(
        *(b.ethernet(b.BROADCAST, bytes((2, 9, 0, 0, n >> 8, n & 255)), 0x0800, b"") for n in range(256))
    )
    segment.turn()
    assert not one.routes  # ONE was displaced by those 256
    assert not two.routes


def test_a_port_that_loses_its_carrier_or_leaves_is_no_target() -> None:
    segment, one, two, _ = joined()
    two.carrier = False
    two.changed()
    assert not one.routes
    assert not two.routes
    segment, one, two, _ = joined()
    segment.ports[0].detach()
    assert not one.routes
    assert not two.routes


def test_a_bad_line_on_either_side_sees_every_frame() -> None:
    one, two = Direct(), Direct()
    segment = Segment((one, two))
    scheduler = segment.scheduler
    lines = [ImpairedDevice(scheduler, device) for device in (one, two)]
    for port in segment.ports:
        port.detach()
    segment.ports = [segment.switch.attach(line) for line in lines]
    segment.send(0, TWO, ONE)
    segment.send(1, ONE, TWO)
    segment.send(0, TWO, ONE)
    assert one.routes[TWO + ONE][0] is two
    lines[1].impair(Impairment(loss=1.0))
    one.closed_to.clear()
    segment.turn()
    assert one.closed_to == [[two]]
    lines[0].impair(Impairment(loss=1.0))
    one.closed_to.clear()
    two.take()
    segment.send(0, TWO, ONE)
    assert one.closed_to == []
    assert two.take() == []
    for line in lines:
        line.mend()
    segment.turn()
    assert one.closed_to[-1] == []


def test_what_is_recorded_is_seen() -> None:
    one, two = Direct(), Direct()
    segment = Segment((one, two))
    ring = CaptureRing(segment.scheduler)
    for port in segment.ports:
        port.detach()
    segment.ports = [
        segment.switch.attach(ring.tap(one, "one")),
        segment.switch.attach(two),
    ]
    segment.send(0, TWO, ONE)
    segment.send(1, ONE, TWO)
    segment.send(0, TWO, ONE)
    one.closed_to.clear()
    segment.turn()
    assert one.closed_to == []
    ring.paused = True
    segment.turn()
    assert one.closed_to == [[]]


def test_frames_never_overtake_those_that_wait_for_the_same_device() -> None:
    segment, one, two, _ = joined()
    two.room = 0
    segment.send(2, TWO, THREE, 3)  # they wait
    assert segment.ports[1].queued
    one.closed_to.clear()
    segment.turn()
    assert one.closed_to == [[two]]
    two.room = None
    two.take()
    one.closed_to.clear()
    segment.turn()
    assert one.closed_to == [[]]
    assert len(two.take()) == 3  # sent before ONE's device was asked


def test_what_a_device_leaves_is_switched_as_ever_in_ever_larger_portions() -> None:
    segment, one, two, _ = joined()
    two.take()
    asked = []
    receive = one.receive

    def spy(budget: int) -> Sequence[Any]:
        asked.append(budget)
        return receive(budget)

    one.receive = spy  # type: ignore[method-assign] # a spy
    segment.send(0, TWO, ONE, 200)
    assert len(two.take()) == 200
    assert asked[:3] == [8, 64, 256 - 8 - 64]
    asked.clear()
    one.moved = [(TWO + ONE, 8)]
    segment.send(0, TWO, ONE, 1)
    assert asked == [1]


def test_a_turn_stays_within_its_budget() -> None:
    segment, one, _, _ = joined()
    one.moved = [(TWO + ONE, 256)]
    one.left = True
    asked = len(one.closed_to)
    assert segment.ports[0].service(256) == 256
    assert len(one.closed_to) == asked + 1
