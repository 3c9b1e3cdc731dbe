"""Timers fire once, in order, at the deadline they have when it comes; deferred work runs once per turn."""

from __future__ import annotations

from functools import partial
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from stack.scheduler import Scheduler, Timer


def scheduler() -> Scheduler:
    return Scheduler(rng=Random(0))


def at(world: Scheduler, now: int) -> int:
    world.now = now
    return world.run_timers()


def test_a_timer_fires_once_at_its_deadline() -> None:
    world, fired = scheduler(), []
    world.timer(lambda: fired.append(world.now)).arm(100)
    assert (at(world, 99), at(world, 100), at(world, 200)) == (0, 1, 0)
    assert fired == [100]


def test_moving_a_deadline_later_needs_no_new_heap_entry() -> None:
    world, fired = scheduler(), []
    timer = world.timer(lambda: fired.append(world.now))
    for deadline in range(100, 10_000):  # as an RTO moves with every ACK
        timer.arm(deadline)
    assert len(world.heap) == 1
    assert world.next_deadline() == 9_999
    at(world, 9_998)
    assert fired == []
    at(world, 9_999)
    assert fired == [9_999]


def test_moving_a_deadline_earlier_fires_at_the_earlier_one_only() -> None:
    world, fired = scheduler(), []
    timer = world.timer(lambda: fired.append(world.now))
    timer.arm(100)
    timer.arm(50)
    assert world.next_deadline() == 50
    at(world, 60)
    at(world, 100)
    assert fired == [60]


def test_a_cancelled_timer_does_not_fire_and_is_no_deadline() -> None:
    world, fired = scheduler(), []
    timer = world.timer(lambda: fired.append(1))
    timer.arm(10)
    timer.cancel()
    assert world.next_deadline() is None
    at(world, 20)
    assert fired == []
    timer.arm_in(5)
    assert world.next_deadline() == 25


def test_a_callback_may_cancel_or_move_a_timer_due_in_the_same_turn() -> None:
    world, fired = scheduler(), []
    second = world.timer(lambda: fired.append("second"))
    third = world.timer(lambda: fired.append("third"))

    def first() -> None:
        fired.append("first")
        second.cancel()
        third.arm_in(10)

    world.timer(first).arm(1)
    second.arm(2)
    third.arm(3)
    at(world, 5)
    assert fired == ["first"]
    at(world, 15)
    assert fired == ["first", "third"]


def test_a_timer_that_re_arms_itself_into_the_past_cannot_hold_up_the_turn() -> None:
    world, count = scheduler(), [0]
    timer: Timer

    def again() -> None:
        count[0] += 1
        timer.arm(0)

    timer = world.timer(again)
    timer.arm(0)
    assert at(world, 10) == 1
    assert at(world, 10) == 1
    assert count == [2]


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 50)), st.integers(0, 5))))
def test_timers_behave_as_a_plain_list_of_deadlines_would(steps: list[tuple[int, int | None, int]]) -> None:
    """Oracle: per timer one deadline, looked through linearly. (timer, new deadline or cancel, time passing)"""
    world = scheduler()
    fired: list[int] = []
    timers = [world.timer(partial(fired.append, i)) for i in range(6)]
    model: dict[int, int] = {}
    for index, deadline, passing in steps:
        if deadline is None:
            timers[index].cancel()
            model.pop(index, None)
        else:
            timers[index].arm(deadline)
            model[index] = deadline
        assert world.next_deadline() == min(model.values(), default=None)
        now = world.now + passing
        fired.clear()
        at(world, now)
        due = {i for i, d in model.items() if d <= now}
        assert sorted(fired) == sorted(due)
        for i in due:
            del model[i]


def test_deferred_work_runs_once_in_the_order_first_asked_for() -> None:
    world, ran = scheduler(), []

    class Flow:
        def __init__(self, name: str) -> None:
            self.name = name

        def flush(self) -> None:
            ran.append(self.name)

    a, b = Flow("a"), Flow("b")
    for flow in (a, b, a, a, b):
        world.defer(flow.flush)
    assert world.has_deferred
    assert world.run_deferred() == 2
    assert ran == ["a", "b"]
    assert world.run_deferred() == 0


def test_work_deferred_by_deferred_work_runs_in_the_same_turn() -> None:
    world, ran = scheduler(), []

    def flush() -> None:
        ran.append("flush")
        world.defer(lambda: ran.append("transmit"))

    world.defer(flush)
    world.run_deferred()
    assert ran == ["flush", "transmit"]
