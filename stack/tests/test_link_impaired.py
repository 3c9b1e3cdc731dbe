"""A device behind a line that may go bad while it runs, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from stack import Network
from stack.link import Impairment, cable
from stack.link.device import (
    NOTHING_LANDED,
    CoalescingDevice,
    LandingDevice,
    LingeringDevice,
    LoneDevice,
    VolleyDevice,
    Wanted,
)
from stack.link.impaired import PARTITION, ImpairedDevice, Moment, Timeline
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.testing.clock import ManualClock
from stack.testing.links import RecorderDevice
from stack.tests.able_device import AbleDevice


class World:
    """Two stacks, one of them behind a line that may be impaired: `line`."""

    def __init__(self) -> None:
        self.network = Network(clock=ManualClock(), rng=random.Random(5))
        near, far = cable(self.network.scheduler)
        self.line = ImpairedDevice(self.network.scheduler, near)
        self.gw, self.guest = self.network.stack("gw"), self.network.stack("guest")
        self.gw.add_interface(self.line, addresses=["10.0.0.1/24"])
        self.guest.add_interface(far, addresses=["10.0.0.2/24"])
        self.ours, self.theirs = (
            stack.socket.socket(stack.socket.AF_INET, stack.socket.SOCK_DGRAM) for stack in (self.gw, self.guest)
        )
        self.ours.bind(("10.0.0.1", 1))
        self.theirs.bind(("10.0.0.2", 1))
        self.exchange(1)  # addresses are resolved
        assert not self.line.impaired

    def impair(self, *ways: Impairment | None) -> None:
        with self.network.lock:
            self.line.impair(*ways)

    def mend(self) -> None:
        with self.network.lock:
            self.line.mend()

    def exchange(self, count: int, wait: int = NS_PER_S) -> tuple[int, int]:
        """Datagrams both ways; how many arrived at the guest, and from it."""
        for _ in range(count):
            self.ours.sendto(b"x" * 100, ("10.0.0.2", 1))
            self.theirs.sendto(b"y" * 100, ("10.0.0.1", 1))
        self.network.advance(wait)
        return self.arrived(self.theirs), self.arrived(self.ours)

    @staticmethod
    def arrived(sock: object) -> int:
        sock.setblocking(False)  # type: ignore[attr-defined]  # a socket of the Stack's
        count = 0
        while True:
            try:
                sock.recv(200)  # type: ignore[attr-defined]
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ours.close()
    world.theirs.close()
    world.network.close()


def test_a_line_without_impairment_is_the_device_itself(world: World) -> None:
    assert world.line.transmit == world.line.device.transmit
    assert world.exchange(10) == (10, 10)


def test_each_direction_has_its_own_loss(world: World) -> None:
    world.impair(Impairment(loss=0.5, seed=1), None)
    there, back = world.exchange(200)
    assert 60 < there < 140
    assert back == 200
    world.impair(None, PARTITION)
    assert world.exchange(50) == (50, 0)
    out, into = world.line.stats
    assert out.loss > 0
    assert into.loss == 50


#: Each kind of impairment, and the counter that tells how often it struck.
KINDS = {
    "loss": (Impairment(loss=0.3, seed=1), "loss"),
    "burst loss": (Impairment(burst_loss=0.1, burst_length=5, seed=1), "burst_loss"),
    "duplication": (Impairment(duplicate=0.3, seed=1), "duplicate"),
    "reordering": (Impairment(reorder=0.3, seed=1), "reorder"),
    "corruption": (Impairment(corrupt=0.3, seed=1), "corrupt"),
    "rate": (Impairment(rate_bps=1_000_000, queue_bytes=2000), "queue_bytes"),
    "mtu": (Impairment(mtu=100), "mtu"),
    "partition": (PARTITION, "loss"),
}


@pytest.mark.parametrize("outward", [True, False], ids=["out", "in"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_strikes_its_direction_alone_and_the_same_frames_each_time(kind: str, outward: bool) -> None:
    bad, counter = KINDS[kind]
    runs = []
    for _ in range(2):
        world = World()
        try:
            world.impair(*((bad, None) if outward else (None, bad)))
            there, back = world.exchange(100)
            struck, spared = world.line.stats if outward else reversed(world.line.stats)
            assert getattr(struck, counter) > 0
            assert (there if outward else back) != 100 or kind == "reordering"
            assert (back if outward else there) == 100
            assert getattr(spared, counter) == 0
            runs.append((there, back, getattr(struck, counter)))
        finally:
            world.ours.close()
            world.theirs.close()
            world.network.close()
    assert runs[0] == runs[1]


@pytest.mark.parametrize("outward", [True, False], ids=["out", "in"])
def test_jitter_is_added_to_the_delay_of_its_direction_alone(world: World, outward: bool) -> None:
    bad = Impairment(delay_ns=50 * NS_PER_MS, jitter_ns=100 * NS_PER_MS, seed=1)
    world.impair(*((bad, None) if outward else (None, bad)))
    arrived = [world.exchange(count, wait * NS_PER_MS) for count, wait in ((20, 49), (0, 40), (0, 70))]
    late, prompt = zip(*(each if outward else each[::-1] for each in arrived), strict=True)
    assert prompt == (20, 0, 0)
    assert late[0] == 0
    assert sum(late) == 20


def test_delay_and_mending_lose_nothing_on_the_way(world: World) -> None:
    world.impair(Impairment(delay_ns=500 * NS_PER_MS), Impairment(delay_ns=300 * NS_PER_MS))
    assert world.exchange(5, 400 * NS_PER_MS) == (0, 5)
    world.mend()
    assert world.line.impaired  # five are under way still
    world.network.advance(NS_PER_S)
    assert world.arrived(world.theirs) == 5
    assert world.exchange(5) == (5, 5)
    assert [way.offered for way in world.line.stats] == [5, 5]  # of the time it was impaired
    assert not world.line.impaired


def test_tcp_over_a_line_that_gets_worse_and_better(world: World) -> None:
    bad = Impairment(loss=0.2, delay_ns=20 * NS_PER_MS, reorder=0.1, seed=3)
    with world.network.lock:
        timeline = Timeline(
            world.network.scheduler,
            world.line,
            [Moment(0, bad, bad), Moment(5, PARTITION, PARTITION), Moment(20, bad, None), Moment(40)],
        )
    with world.guest.socket.create_server(("10.0.0.2", 80)) as listener:
        client = world.gw.socket.create_connection(("10.0.0.2", 80))
        served, _ = listener.accept()
    with client, served:
        data = bytes(range(256)) * 8000
        client.setblocking(False)
        sent = 0
        got = b""
        served.setblocking(False)
        while len(got) < len(data):
            with suppress(BlockingIOError):
                sent += client.send(data[sent : sent + 50_000]) if sent < len(data) else 0
            world.network.advance(100 * NS_PER_MS)
            with suppress(BlockingIOError):
                got += served.recv(1 << 20)
        assert got == data
        world.network.advance(60 * NS_PER_S)
        assert timeline.done == 4
        assert not world.line.impaired


def test_a_timeline_can_be_stopped_and_must_be_in_order(world: World) -> None:
    with world.network.lock:
        scheduler = world.network.scheduler
        timeline = Timeline(scheduler, world.line, [Moment(1, PARTITION, PARTITION), Moment(5)])
        with pytest.raises(ValueError, match="in order"):
            Timeline(scheduler, world.line, [Moment(2), Moment(1)])
        with pytest.raises(ValueError, match="begins at 0"):
            Timeline(scheduler, world.line, [Moment(-1)])
    world.network.advance(NS_PER_S + 1)
    assert world.exchange(1) == (0, 0)
    with world.network.lock:
        timeline.cancel()
    world.network.advance(5 * NS_PER_S)
    assert world.exchange(1) == (0, 0)
    world.mend()
    assert min(world.exchange(1)) >= 1  # and perhaps what had waited for a neighbour


def test_what_the_device_refuses_waits_and_what_is_too_much_is_dropped() -> None:
    with Network(clock=ManualClock()) as network:
        device = RecorderDevice(room=3)
        line = ImpairedDevice(network.scheduler, device)
        frame = (b"\xff" * 60_000,), 0, 0, 0, 0, 0, 0
        with network.lock:
            line.impair(Impairment(per_packet=False))
            assert line.transmit([frame] * 100) == 100
            network.scheduler.run_deferred()
            assert len(device.sent) == 3
            out, _ = line.stats
            assert out.overrun > 20
            device.room = 1000
            device.changed()
            network.scheduler.run_deferred()
            assert len(device.sent) == 100 - out.overrun
            device.carrier = False
            device.changed()
            assert line.transmit([frame]) == 1
            line.close()
        assert device.closed


def test_a_bad_line_sees_each_frame_by_itself() -> None:
    with Network(clock=ManualClock()) as network, network.lock:
        device = AbleDevice()
        line = ImpairedDevice(network.scheduler, device)
        assert isinstance(line, CoalescingDevice)
        assert isinstance(line, LoneDevice)
        assert isinstance(line, LandingDevice)
        assert isinstance(line, VolleyDevice)
        assert isinstance(line, LingeringDevice)
        # Held from the beginning, as an interface does.
        receive, volley, linger = line.receive_coalesced, line.transmit_volley, line.linger
        alone = line.transmit_alone
        head = b"h" * 14, (0, 0, 0, 0, 0, 0), 100
        wanted: Wanted = (bytes(16), bytes(12), 0, 0, 0, 0, 0, 40, 200)
        ground = bytearray(200)
        fine = []
        for wrong in (False, True, False):
            if wrong:
                line.impair(None, Impairment(loss=0.0))
            device.feed(b"a" * 60, b"b" * 60)
            frames, count, size = receive(64)
            assert (count, size) == (2, 120)
            fine.append(len(frames) == 1)
            device.feed(b"c" * 60, b"d" * 60)
            frames, count, size, landed = line.receive_landing(64, wanted, memoryview(ground))
            assert (count, size) == (2, 120)
            assert (landed == NOTHING_LANDED) == wrong == (len(frames) == 2)
            fine.append(volley(head, head, 2, (0, 0), [b"x" * 200]) == 2)
            fine.append(alone(head[:1], head[1]))
            linger()
            line.mend()
            network.scheduler.run_deferred()
        assert fine == [True] * 3 + [False] * 3 + [True] * 3
        assert device.lingered == 3
