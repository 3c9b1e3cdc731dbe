"""A flood of work leaves other threads room: the background thread rests if somebody else makes socket calls.

CPython's lock is not fair to a thread that wants it beside one that gives it up for a microsecond at a time, as every
call into C does: each time the waiting thread wakes too late, and its patience begins anew. Work without an end would
keep readers from what it brings. The clock here moves with the work, so nothing depends on how fast the machine is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stack import Network
from stack.network import BUDGET
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.token import COMPANY, PATROL

TURN = PATROL // 4


class Flood:
    """A source that has work for `left` turns of a quarter of a millisecond each."""

    on_ready: Callable[[], None] | None = None

    def __init__(self) -> None:
        self.now = NS_PER_S
        self.left = 0
        self.fd = os.eventfd(1)

    def fileno(self) -> int:
        return self.fd

    def service(self, budget: int) -> int:
        if not self.left:
            return 0
        self.left -= 1
        self.now += TURN
        return budget

    def suppress(self) -> None:
        pass

    def arm(self) -> bool:
        return False


def duty(network: Network) -> tuple[float, bool]:
    """What the background thread does when it looks: how long it rests then (s), and whether on watch."""
    runner: Any = network.runner
    with network.lock:
        rest: tuple[float, bool] = runner.background._duty()
        return rest


@contextmanager
def world(turns: int) -> Iterator[tuple[Network, Flood]]:
    flood = Flood()
    with open(flood.fd, "rb"):
        network = Network(clock=lambda: flood.now)
        network.attach(flood)
        flood.left = turns
        try:
            yield network, flood
        finally:
            network.close()


def test_a_flood_is_worked_off_in_one_go_where_nobody_else_is() -> None:
    with world(turns=1000) as (network, flood):
        assert duty(network) == (-1.0, True)
        assert flood.left == 0
        assert network.stats.served == 1000 * BUDGET


def test_beside_a_thread_that_makes_calls_it_rests_every_millisecond() -> None:
    """It works for no longer than it rests, and is on patrol meanwhile, so that nobody rings for it."""
    with world(turns=1000) as (network, flood):
        for _ in range(20):
            left = flood.left
            network.call(lambda: None, ())
            assert duty(network) == (PATROL / NS_PER_S, False)
            assert 0 < left - flood.left <= PATROL // TURN + 2
            assert network.runner.background.on_patrol  # type: ignore[attr-defined]  # of the real one


def test_a_thread_that_was_kept_from_calling_is_still_reckoned_with() -> None:
    """One that waits for the interpreter makes no calls: only after a tenth of a second without any it is forgotten."""
    with world(turns=100_000) as (network, flood):
        network.call(lambda: None, ())
        began = flood.now
        while duty(network)[0] > 0 and flood.left:
            assert flood.now - began < 2 * COMPANY
        assert flood.now - began >= COMPANY
        assert flood.left == 0, "alone again, it goes on to the end"


def test_an_answer_is_not_delayed() -> None:
    """Work that is done within a millisecond is no flood: the background thread goes on watch as ever."""
    with world(turns=PATROL // TURN) as (network, flood):
        network.call(lambda: None, ())
        assert duty(network) == (-1.0, True)
        assert flood.left == 0
        assert flood.now - NS_PER_S <= NS_PER_MS
