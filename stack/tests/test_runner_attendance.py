"""Who writes a lot takes in what comes meanwhile; the background thread rests on patrol, and takes over when he stops.

The clock is moved by hand, and the background thread's look is called by hand: nothing depends on threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stack import Network
from stack.runner import ATTENDANCE
from stack.scheduler import NS_PER_S
from stack.token import PATROL


class Card:
    """A source whose other side is quick: each look but the next finds something, and all of it is taken."""

    on_ready: Callable[[], None] | None = None

    def __init__(self) -> None:
        self.now = NS_PER_S
        self.fd = os.eventfd(1)
        self.waiting = 0
        self.looks = 0
        self.armed = True

    def fileno(self) -> int:
        return self.fd

    def service(self, budget: int) -> int:
        self.looks += 1
        taken, self.waiting = self.waiting, 0
        return taken

    def suppress(self) -> None:
        self.armed = False

    def arm(self) -> bool:
        self.armed = True
        return False


class World:
    def __init__(self) -> None:
        self.card = Card()
        self.network = Network(clock=lambda: self.card.now)
        self.network.attach(self.card)
        self.runner: Any = self.network.runner

    def attend(self) -> int:
        """How often the card was looked at by a writer."""
        looks = self.card.looks
        self.network.attend()
        return self.card.looks - looks

    def duty(self) -> tuple[float, bool]:
        """What the background thread does when it looks: how long it rests then (s), and whether on watch."""
        with self.network.lock:
            self.runner.background.on_patrol = False
            rest: tuple[float, bool] = self.runner.background._duty()
            return rest


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with open(world.card.fd, "rb"):
        yield world
        world.network.close()


def test_a_writer_looks_once_in_a_while(world: World) -> None:
    assert world.attend() == 0, "what is cool wakes whoever sleeps"
    with world.network.lock:
        world.network.turn(world.card.now, world.network.events())
    assert not world.card.armed
    looks = []
    for _ in range(9):
        world.card.waiting = 3
        looks.append(world.attend())
        world.card.now += ATTENDANCE // 2
    assert looks == [1, 0, 1, 0, 1, 0, 1, 0, 1]


def test_nobody_looks_twice(world: World) -> None:
    with world.network.lock:
        world.network.turn(world.card.now, world.network.events())
        assert world.attend() == 0, "who holds the lock is at it"
    world.runner.leader = object()
    assert world.attend() == 0, "a leader is at it"
    world.runner.leader = None
    assert world.attend() == 1


def test_the_background_thread_stays_on_patrol_beside_a_writer_and_takes_over_from_him(world: World) -> None:
    world.card.waiting = 5
    assert world.duty() == (-1.0, True), "alone, it goes on watch"
    assert world.card.armed
    with world.network.lock:
        world.network.turn(world.card.now, world.network.events())
    for _ in range(20):
        world.card.now += PATROL // 2
        world.card.waiting = 1
        assert world.attend() == 1
        assert world.duty() == (PATROL / NS_PER_S, False)
        assert not world.card.armed
    world.card.waiting = 7
    world.card.now += PATROL
    assert world.duty() == (-1.0, True), "he has stayed away"
    assert world.card.waiting == 0
    assert world.card.armed


def test_a_closed_network_is_left_alone(world: World) -> None:
    with world.network.lock:
        world.network.turn(world.card.now, world.network.events())
    world.network.closed = True
    assert world.attend() == 0
    world.network.closed = False
