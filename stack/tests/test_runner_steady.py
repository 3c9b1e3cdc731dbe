"""How far apart the background thread's looks are while others lead (`stack.background`, `Token.steady`).

The clock is moved by hand, and so is the background thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from stack.background import FAR, LONG
from stack.scheduler import NS_PER_S
from stack.tests.test_runner_glances import World as Glances
from stack.token import LATE, PATROL, STEADY


class World(Glances):
    """A thread that gets what it waits for again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.runner: Any = self.network.runner

    def lead(self, length: int, *, away: int) -> None:
        """Messages for so many ns, the thread being away for so many after each."""
        until = self.now + length
        while self.now < until:
            self.receive()
            self.now += away

    def rest(self) -> int:
        """How long (ns) the background thread rests after a look; 0: it has taken over."""
        with self.network.lock:
            self.runner.background.on_patrol = False
            seconds, watch = self.runner.background._duty()
        return 0 if watch else round(seconds * NS_PER_S)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.network.close()
    os.close(world.outside.fd)


def test_it_looks_often_until_leaders_have_been_steady_for_a_while(world: World) -> None:
    world.lead(STEADY - PATROL, away=PATROL // 2)
    assert world.rest() == PATROL
    world.lead(2 * PATROL, away=PATROL // 2)
    assert world.rest() == LONG


def test_one_late_return_is_remembered_as_long(world: World) -> None:
    world.lead(2 * STEADY, away=PATROL // 2)
    world.now += LATE
    world.lead(STEADY - PATROL, away=PATROL // 2)
    assert world.rest() == PATROL
    world.lead(2 * PATROL, away=PATROL // 2)
    assert world.rest() == LONG


def test_a_writer_is_a_leader_too(world: World) -> None:
    def write(length: int) -> None:
        until = world.now + length
        while world.now < until:
            world.network.attend()
            world.now += PATROL // 2

    write(2 * STEADY)
    assert world.rest() == LONG
    world.now += LATE
    write(STEADY // 2)
    assert world.rest() == PATROL


def test_while_somebody_else_waits_it_looks_often(world: World) -> None:
    world.lead(2 * STEADY, away=PATROL // 2)
    follower = object()
    world.runner.line[follower] = None
    assert world.rest() == PATROL
    del world.runner.line[follower]
    assert world.rest() == LONG


def test_the_same_while_a_leader_has_a_place_in_the_line(world: World) -> None:
    leader, follower = object(), object()
    world.runner.leader = leader
    world.runner.line[leader] = None
    world.runner.last_traffic = world.runner.late = world.now
    assert world.rest() == FAR
    world.now += STEADY
    world.runner.last_traffic = world.now
    assert world.rest() == LONG
    world.runner.line[follower] = None
    assert world.rest() == FAR
    world.runner.line.clear()
    world.runner.leader = None


def test_it_takes_over_from_who_stays_away_after_all(world: World) -> None:
    world.lead(2 * STEADY, away=PATROL // 2)
    assert world.rest() == LONG
    assert world.outside.suppressed
    world.now += LONG
    world.outside.put(0)
    assert world.rest() == 0
    assert world.outside.mail == [1]
    assert not world.outside.suppressed
