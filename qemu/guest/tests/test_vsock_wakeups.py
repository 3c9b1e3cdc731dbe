"""No wake-up is lost between two guests, wherever their processors happen to be while we serve them.

Two drivers that only work when they are interrupted, as a guest's kernel does, have their turns in the middle of ours:
before and after every look at a descriptor or a ring. Once nobody has anything to do and nobody was told to do
anything, everything must have arrived.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from stack import Network
from stack.testing.clock import ManualClock
from vhost_user import Server, VsockDevice
from vhost_user.driver import VsockDriver, VsockPacket
from vhost_user.driver.vsock import (
    ALL_FEATURES,
    OP_CREDIT_REQUEST,
    OP_CREDIT_UPDATE,
    OP_REQUEST,
    OP_RESPONSE,
    OP_RST,
    OP_RW,
)
from vhost_user.features import VsockFeature

CIDS = (40, 41)
PORT = 7000
SMALL = 1 << 11  # bytes: a guest's receive buffer, used up often


class Shape(NamedTuple):
    """Of a guest's rings."""

    rx_size: int
    rx_buffer: int
    tx_size: int
    features: int = ALL_FEATURES


#: Rings that are short of room all the time; the last one without EVENT_IDX.
SHAPES = [Shape(1, 100, 2), Shape(2, 300, 2), Shape(4, 144, 4), Shape(8, 600, 4), Shape(16, 4096, 16),
          Shape(4, 300, 4, ALL_FEATURES & ~VsockFeature.EVENT_IDX)]  # fmt: skip


class Flow:
    """One of a guest's connections."""

    def __init__(self, local: int, peer_cid: int, peer: int) -> None:
        self.local, self.peer_cid, self.peer = local, peer_cid, peer
        self.connected = False
        self.left = 0  #: bytes to write
        self.sent = self.received = self.allowed = 0


class Kernel:
    """A guest's kernel: it sleeps until an interrupt comes, works until there is nothing to do, and asks for the next
    one. What it wants to say waits in a queue, and for an interrupt when the ring is full.
    """

    def __init__(self, driver: VsockDriver, rng: random.Random) -> None:
        self.driver = driver
        self.flows: dict[tuple[int, int], Flow] = {}  # by port of ours and of the peer's
        self.refused = 0
        self._rng = rng
        self._say: list[VsockPacket] = []
        self._full = False  # the transmit ring was, and an interrupt is to say when it is not any more
        driver.rx.arm()

    def packet(self, flow: Flow, op: int, payload: bytes = b"") -> VsockPacket:
        driver = self.driver
        return VsockPacket(
            driver.guest_cid, flow.peer_cid, flow.local, flow.peer, op, payload, buf_alloc=SMALL, fwd_cnt=flow.received
        )

    def connect(self, local: int, cid: int, port: int) -> Flow:
        flow = self.flows[local, port] = Flow(local, cid, port)
        self._say.append(self.packet(flow, OP_REQUEST))
        return flow

    def say(self, packet: VsockPacket) -> None:
        self._say.append(packet)

    def run(self) -> bool:
        """Some of what there is to do; False: it sleeps."""
        worked = False
        if not self._full or self.driver.tx.drain_calls():
            self._full = False
            worked = self._transmit()
        if self.driver.rx.drain_calls():
            worked = True
            while True:
                packets = self.driver.recv(self._rng.randint(1, 4))
                for packet in packets:
                    self._handle(packet)
                if not packets and not self.driver.rx.arm():
                    break
        return worked

    def _transmit(self) -> bool:
        for flow in self.flows.values():
            room = min(flow.left, flow.allowed - flow.sent, self._rng.randint(1, 900))
            if flow.connected and room > 0 and len(self._say) < 8:
                self._say.append(self.packet(flow, OP_RW, bytes(room)))
                flow.sent += room
                flow.left -= room
        count = self.driver.send(self._say)
        del self._say[:count]
        if self._say:
            self._full = not self.driver.tx.arm()
        return count > 0

    def _handle(self, packet: VsockPacket) -> None:
        flow = self.flows.get((packet.dst_port, packet.src_port))
        if packet.op == OP_REQUEST and packet.dst_port == PORT:
            flow = self.flows[PORT, packet.src_port] = Flow(PORT, packet.src_cid, packet.src_port)
            flow.left = 20_000
            self._say.append(self.packet(flow, OP_RESPONSE))
            flow.connected = True
        if flow is None:
            if packet.op == OP_REQUEST:
                refused = Flow(packet.dst_port, packet.src_cid, packet.src_port)
                self._say.append(self.packet(refused, OP_RST))
            return
        flow.allowed = packet.fwd_cnt + packet.buf_alloc
        if packet.op == OP_RESPONSE:
            flow.connected = True
        elif packet.op == OP_RW:
            flow.received += len(packet.payload)
            self._say.append(self.packet(flow, OP_CREDIT_UPDATE))
        elif packet.op == OP_CREDIT_REQUEST:
            self._say.append(self.packet(flow, OP_CREDIT_UPDATE))
        elif packet.op == OP_RST:
            self.refused += 1
            del self.flows[flow.local, flow.peer]


class World:
    """Two guests of a group. `meanwhile` runs wherever a guest's processor could run while we serve it."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=random.Random(1))
        self.stack = self.network.stack("host")
        self.server = Server()
        self.devices = [VsockDevice(cid) for cid in CIDS]
        self.kernels: list[Kernel] = []
        self.meanwhile: Callable[[], object] = lambda: None
        for device in self.devices:
            with self.network.lock:
                port = self.stack.vsock.add_guest(device, groups=("friends",))
                self.network.attach_locked(port)
            ours, theirs = socket.socketpair()
            self.server.adopt(device, ours)
            driver = VsockDriver(
                theirs,
                rx_size=shape.rx_size,
                rx_buffer=shape.rx_buffer,
                tx_size=shape.tx_size,
                features=shape.features,
            )
            self.kernels.append(Kernel(driver, self.rng))
        self.settle()
        self._interrupt(self.network, "events")
        for device in self.devices:
            for name in ("receive", "transmit", "clear_events"):
                self._interrupt(device, name)
            for ring in device.rings:
                for name in ("arm", "suppress"):
                    self._interrupt(ring, name)

    def _interrupt(self, owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def interrupted(*words: Any, **named: Any) -> Any:
            self.meanwhile()
            result = method(*words, **named)
            self.meanwhile()
            return result

        setattr(owner, name, interrupted)

    def sometimes(self) -> None:
        while self.rng.random() < 0.4:
            self.rng.choice(self.kernels).run()

    def settle(self) -> None:
        """Until we and the guests sleep, and nobody has woken anybody."""
        for _ in range(100_000):
            if self.network.poll(self.clock()) == self.clock():
                continue
            if not any(kernel.run() for kernel in self.kernels) and not self.network.epoll.poll(0):
                return
        raise AssertionError("it goes on for ever")

    def listens(self) -> bool:
        """Whoever sleeps is told of the next packet of any guest."""
        rings = [kernel.driver.tx for kernel in self.kernels]
        return all(ring.avail_event == ring.avail_index if ring.event_idx else not ring.used_flags for ring in rings)

    def close(self) -> None:
        self.meanwhile = lambda: None
        for kernel in self.kernels:
            kernel.driver.close()
        self.network.close()
        for device in self.devices:
            device.close()
        self.server.close()


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(*request.param)
    yield made
    made.close()


@pytest.mark.parametrize("world", [(SHAPES[1], 0)], indirect=True, ids=["small"])
def test_what_a_guest_says_while_another_one_fills_its_ring_does_not_silence_it(world: World) -> None:
    """A guest that was asleep to us says something; before we hear of it, its ring is found full, and has room again.

    All it says afterwards must be announced as before.
    """
    one, two = world.kernels
    flow = one.connect(5, CIDS[1], PORT)
    world.settle()
    far = two.flows[PORT, 5]
    assert (flow.received, far.received) == (20_000, 0)
    transmit, refusals = world.devices[1].transmit, []

    def refused(burst: Any) -> int:
        accepted = transmit(burst)
        if accepted < len(burst):
            refusals.append(accepted)
            while two.run():  # it takes what was sent, gives the buffers back, and says so
                pass
        return accepted

    world.devices[1].transmit = refused  # type: ignore[method-assign]
    flow.sent += 600  # bytes: more than the ring of the other one holds, less than twice as much
    one.say(one.packet(flow, OP_RW, bytes(600)))
    world.settle()
    assert refusals == [0]
    assert far.received == 600
    far.left = 10
    world.settle()
    assert flow.received == 20_010
    assert world.listens()


CASES = [(shape, seed) for shape in SHAPES for seed in (*range(8), 22)]


@pytest.mark.parametrize("world", CASES, indirect=True, ids=[f"{case[0].rx_size}-{case[1]}" for case in CASES])
def test_everything_arrives_wherever_the_guests_are_meanwhile(world: World) -> None:
    """Bulk both ways at once between two guests, then a connection to a port without a listener."""
    world.meanwhile = world.sometimes
    flows = [world.kernels[0].connect(5, CIDS[1], PORT), world.kernels[1].connect(6, CIDS[0], PORT)]
    for flow in flows:
        flow.left = 20_000
    world.settle()
    got = [flow.received for kernel in world.kernels for flow in kernel.flows.values()]
    assert got == [20_000] * 4
    assert world.listens()
    world.kernels[0].connect(8, CIDS[1], 7999)
    world.settle()
    assert world.kernels[0].refused == 1
    assert world.listens()
