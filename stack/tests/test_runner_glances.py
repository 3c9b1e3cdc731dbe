"""What a call does before it takes a place in the line (`stack.runner`, a glance), or instead of it (`briefly`).

The clock stands still unless a test moves it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.runner import BRIEF
from stack.scheduler import NS_PER_S
from stack.socket.base import AGAIN, Again
from stack.socket.poll import IN
from stack.tests.test_runner_handoffs import Outside
from stack.token import ABSENCE


class World:
    """A Network with a hot device of one mailbox."""

    def __init__(self) -> None:
        self.now = NS_PER_S
        self.network = Network(clock=lambda: self.now)
        self.outside = Outside(self.network, mailboxes=1)
        self.network.attach(self.outside)
        self.outside.put(0)
        self.network.poll(self.now)
        assert self.network.hot
        assert self.outside.take(0)
        self.pollee = self.outside.pollees[0]

    def receive(self, *, after: int = 0) -> None:
        """An item that comes when somebody has looked for it in vain, and `after` ns later."""
        came = False

        def attempt() -> bool | Again:
            nonlocal came
            taken = self.outside.take(0)
            if taken is AGAIN and not came:
                came = True
                self.now += after
                self.outside.put(0)
            return taken

        assert self.network.block_on(self.pollee, IN, None, attempt, ())


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.network.close()
    os.close(world.outside.fd)


def test_what_comes_within_a_glance_takes_no_place_in_the_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(*_: object) -> None:
        raise AssertionError("it stood in the line")

    monkeypatch.setattr(world.network.runner, "block_on", line)
    for _ in range(20):
        world.receive()


def test_an_absence_that_is_no_matter_is_not_averaged(world: World) -> None:
    for _ in range(20):
        world.receive()
        world.now += BRIEF - 1
    assert world.pollee.absence == 0


@pytest.mark.parametrize("away", [BRIEF, 8 * ABSENCE])
def test_a_longer_absence_is(world: World, away: int) -> None:
    """And brief ones are, too, until the average is brief again."""
    world.receive()
    for _ in range(40):
        world.now += away
        world.receive()
    long = world.pollee.absence
    assert long > min(away, 2_000_000) * 0.9
    for _ in range(40):
        world.now += BRIEF // 2
        world.receive()
    assert BRIEF // 2 <= world.pollee.absence < BRIEF


def test_what_was_there_at_once_was_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing about whether looking or sleeping is better."""
    waits: list[int] = []
    runner: Any = world.network.runner
    monkeypatch.setattr(type(runner._patience), "learn", lambda _, waited: waits.append(waited))
    for _ in range(5):
        world.receive()
    assert waits == []


class Step:
    """Something that is done all at once, or not."""

    def __init__(self, world: World, *, can: bool) -> None:
        self.world = world
        self.can = can
        self.seen: list[tuple[str, int, int]] = []
        self.after = 0

    def __call__(self, one: str, two: int) -> bool:
        assert self.world.network.lock.locked()
        scheduler = self.world.network.scheduler
        self.seen.append((one, two, scheduler.now))
        scheduler.defer(self.finished)
        return self.can

    def finished(self) -> None:
        self.after += 1


@pytest.mark.parametrize("can", [True, False])
def test_a_brief_call_is_a_call(world: World, can: bool) -> None:
    """At the present time, under the lock, with what it deferred done at its end."""
    network = world.network
    step = Step(world, can=can)
    calls = network.stats.calls
    world.now += 17
    assert network.briefly(step, "one", 2) is can
    assert step.seen == [("one", 2, world.now)]
    assert step.after == 1
    assert network.stats.calls - calls == can
    assert not network.lock.locked()


def test_a_brief_call_waits_for_nobody(world: World) -> None:
    step = Step(world, can=True)
    with world.network.lock:
        assert not world.network.briefly(step, "one", 2)
    assert not step.seen


def test_there_are_no_brief_calls_of_a_closed_network(world: World) -> None:
    step = Step(world, can=True)
    world.network.close()
    assert not world.network.briefly(step, "one", 2)
    assert not step.seen
