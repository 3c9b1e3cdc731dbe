"""The background thread's rests, and what leaders change about them without waking it (`stack.background`).

The thread itself does not run here: its duty is called by hand, and the set of descriptors it would sleep in is asked
what would wake it. The clock stands still.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.background import FAR, FOREVER, RECENT
from stack.patience import Patience
from stack.runner import LOST, SHY
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.socket.poll import IN
from stack.tests.test_runner_handoffs import Outside
from stack.token import PATROL
from stack.waiter import Waiter


class World:
    """A Network with one device, and a background thread that was started but never runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NS_PER_S
        self.network = Network(clock=lambda: self.now)
        runner: Any = self.network.runner
        self.runner = runner
        self.background = runner.background
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda _: None)
            self.network.start()
        self.device = Outside(self.network, mailboxes=1)
        self.network.attach(self.device)
        self.runner.last_traffic = self.now - NS_PER_S

    def duty(self) -> tuple[float, bool]:
        """It looks, as after a rest."""
        background = self.background
        with self.network.lock:
            watched = background._on_watch
            background._on_watch = background.on_patrol = False
            rest: tuple[float, bool] = background._duty(watched=watched)
            background._watch(rest[1])
        return rest

    def leads(self) -> Waiter:
        """Another thread takes the token, as `recv` does."""
        waiter = Waiter(threading.Lock(), self.runner)
        with self.network.lock:
            self.runner.take(waiter)
        return waiter

    def sleeps(self) -> None:
        """The leader goes to sleep in the Network's descriptors."""
        with self.network.lock:
            self.background.yield_watch()

    def leaves(self, *, returns: bool) -> None:
        """It has what it waited for, and will be back or not."""
        with self.network.lock:
            pollee = self.device.pollees[0]
            self.runner.succeeded(pollee, self.now)
            self.runner.leave(pollee, returns=returns)

    def woken(self) -> bool:
        """Whether it would not rest on."""
        return bool(self.background._rest.poll(0))

    def close(self) -> None:
        background = self.background
        background._rest.close()
        background._bell.close()
        background._thread, background.running = None, False
        self.network.close()
        os.close(self.device.fd)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.close()


def test_on_watch_it_is_woken_by_the_device(world: World) -> None:
    assert world.duty() == (-1.0, True)
    assert not world.woken()
    world.device.put(0)
    assert world.woken()
    assert world.duty() == (-1.0, True)
    assert world.device.mail == [1]
    assert not world.woken()


def test_a_leader_that_sleeps_takes_the_watch_without_waking_it(world: World) -> None:
    world.duty()
    world.leads()
    world.sleeps()
    world.device.put(0)
    assert not world.woken()


def test_a_leader_that_leaves_gives_the_watch_back_without_waking_it(world: World) -> None:
    world.duty()
    world.leads()
    world.sleeps()
    world.leaves(returns=False)
    assert not world.woken()
    assert world.network.asleep_until == FOREVER
    world.device.put(0)
    assert world.woken()


def test_on_watch_it_works_at_once_though_somebody_led_a_moment_ago(world: World) -> None:
    world.duty()
    world.leads()
    world.sleeps()
    world.leaves(returns=False)
    world.device.put(0)
    assert world.duty() == (-1.0, True)
    assert world.device.mail == [1]


def test_the_device_is_armed_before_it_is_left(world: World) -> None:
    """A leader that looked by itself had it suppressed: nobody would hear of what comes."""
    world.duty()
    world.leads()
    with world.network.lock:
        world.network.hot[world.device] = None
        world.device.suppress()
    world.leaves(returns=False)
    assert not world.network.hot
    world.device.put(0)
    assert world.woken()


def test_work_that_is_there_when_a_leader_leaves_is_told(world: World) -> None:
    world.duty()
    world.leads()
    with world.network.lock:
        world.network.hot[world.device] = None
        world.device.suppress()
    world.device.put(0)
    assert not world.woken()
    world.leaves(returns=False)
    assert world.woken()
    assert world.network.hot


def test_a_timer_that_is_due_before_it_looks_is_told(world: World) -> None:
    fired: list[int] = []
    timer = world.network.scheduler.timer(lambda: fired.append(1))
    world.duty()
    world.leads()
    world.sleeps()
    with world.network.lock:
        timer.arm(world.now + NS_PER_MS)
    world.leaves(returns=False)
    assert world.woken()
    assert world.duty() == (NS_PER_MS / NS_PER_S, True)
    world.leads()
    world.sleeps()
    world.leaves(returns=False)
    assert world.background._until == world.network.asleep_until == world.now + NS_PER_MS
    world.now += NS_PER_MS
    world.duty()
    assert fired == [1]


def test_a_leader_that_will_be_back_puts_it_on_patrol(world: World) -> None:
    world.duty()
    world.leads()
    world.leaves(returns=True)
    assert world.woken()
    assert world.duty() == (PATROL / NS_PER_S, False)
    assert world.background.on_patrol


def test_on_patrol_nobody_rings_for_it(world: World) -> None:
    """Steady traffic: it looks every `FAR`, whatever comes and whoever leaves."""
    world.runner.last_traffic = world.now
    world.leads()
    assert world.duty() == (FAR / NS_PER_S, False)
    for returns in (True, False) * 3:
        world.leaves(returns=returns)
        world.device.put(0)
        world.leads()
    assert not world.woken()
    assert world.background._until == world.now + FAR


def test_without_recent_traffic_it_is_off_duty_while_somebody_leads(world: World) -> None:
    world.leads()
    world.runner.last_traffic = world.now - RECENT
    assert world.duty() == (-1.0, False)
    world.device.put(0)
    assert not world.woken()
    assert world.background._until == FOREVER


def test_a_spin_looks_on_without_python(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One source alone is hot: it is asked to linger between two turns; here something comes meanwhile, and only so."""
    monkeypatch.setattr(world.device, "linger", lambda: world.device.put(0), raising=False)
    with world.network.lock:
        world.network.hot[world.device] = None
        world.device.suppress()
    assert world.network.block_on(world.device.pollees[0], IN, None, world.device.take, (0,)) is True
    assert world.network.stats.spins == 1
    other = Outside(world.network, mailboxes=1)
    with world.network.lock:
        world.network.hot[other] = None
        world.network.linger()
        del world.network.hot[other]
    assert not world.device.arriving, "it would not see what comes for the other one"
    os.close(other.fd)


@pytest.mark.parametrize(("took", "looks"), [(LOST, SHY + 3), (LOST + 1, 2)])
def test_a_look_that_cost_the_interpreter_is_not_repeated_soon(
    world: World, monkeypatch: pytest.MonkeyPatch, took: int, looks: int
) -> None:
    """In C it takes microseconds; if we are back much later, a thread that computes had the interpreter meanwhile."""
    done: list[int] = []

    def linger() -> None:
        done.append(world.network.stats.spins)
        world.now += took
        if len(done) == looks:
            world.device.put(0)

    monkeypatch.setattr(world.device, "linger", linger, raising=False)
    monkeypatch.setattr(Patience, "window", lambda _: NS_PER_S)
    with world.network.lock:
        world.network.hot[world.device] = None
        world.device.suppress()
    assert world.network.block_on(world.device.pollees[0], IN, None, world.device.take, (0,)) is True
    assert done[-1] - done[0] == SHY + 2 if looks > 2 else SHY + 1
