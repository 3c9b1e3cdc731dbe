"""A card that sleeps and whose ring is full: what waits goes on once there is room, and the guest is heard as before.

An interface of the stack, and a port of a switch; each on a virtio-net device with a driver at its other end.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from stack import Network
from stack.link import Switch
from stack.testing import builders
from stack.testing.clock import ManualClock
from vhost_user import NetDevice, Server
from vhost_user.driver import NetDriver, NetFrame

RING = 4  # descriptors of the receive ring of a guest that sleeps
FRAMES = 10


def frame(number: int) -> bytes:
    return builders.ethernet(b"\xff" * 6, bytes.fromhex("520000000001"), 0x88B5, bytes([number]) * 100)


class World:
    def __init__(self, undo: ExitStack) -> None:
        self.clock = ManualClock()
        self.network = undo.enter_context(Network(clock=self.clock, rng=random.Random(1)))
        self.server = undo.enter_context(Server())
        self.undo = undo

    def plug(self, device: NetDevice, *, rx_size: int) -> NetDriver:
        ours, theirs = socket.socketpair()
        self.server.adopt(device, ours)
        self.undo.callback(device.close)
        return self.undo.enter_context(NetDriver(theirs, rx_size=rx_size))

    def settle(self) -> None:
        """Until whoever waits for the Network would sleep, and nothing wakes him."""
        for _ in range(1000):
            if self.network.poll(self.clock()) != self.clock() and not self.network.epoll.poll(0):
                return
        raise AssertionError("it goes on for ever")


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as undo:
        yield World(undo)


def test_a_port_whose_guest_sleeps_with_a_full_ring_sends_the_rest_when_there_is_room(world: World) -> None:
    """On a switch: the guest says nothing meanwhile but that it has buffers again."""
    switch = Switch(world.network.scheduler)
    guests = []
    for size in (64, RING):
        device = NetDevice()
        port = switch.attach(device)
        world.network.attach(port)
        world.undo.callback(world.network.detach, port)
        guests.append(world.plug(device, rx_size=size))
    world.settle()
    assert guests[0].send([frame(number) for number in range(FRAMES)]) == FRAMES
    world.settle()
    got: list[bytes] = []
    while received := guests[1].recv():
        got += [bytes(each.data) for each in received]
        world.settle()
    assert got == [frame(number) for number in range(FRAMES)]


def test_an_interface_hears_its_guest_after_its_ring_was_full_for_a_moment(world: World) -> None:
    """What the guest says in the very moment its ring is found full is taken; what it says later must be too."""
    device = NetDevice()
    stack = world.network.stack("gw")
    eth = stack.add_interface(device, addresses=["10.0.2.2/24"])
    guest = world.plug(device, rx_size=RING)
    world.settle()
    transmit = device.transmit
    received: list[NetFrame] = []

    def refused(burst: Any) -> int:
        accepted = transmit(burst)
        if accepted < len(burst) and not received:
            received.extend(guest.recv())
            assert guest.send([frame(0)]) == 1
        return accepted

    device.transmit = refused
    with stack.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sender.sendto(bytes(1472 * (RING + 2)), ("10.0.2.255", 9))
    world.settle()
    received += guest.recv()
    assert len(received) > RING
    before = eth.stats.rx_packets
    assert before == 1
    for number in range(1, 4):
        assert guest.send([frame(number)]) == 1
        world.settle()
        assert eth.stats.rx_packets == before + number
