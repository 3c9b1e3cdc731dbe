"""Idle connections cost memory and nothing else: what a poll does is the same beside none and beside many.

Counted in calls rather than in seconds, so that it is the same on every machine; `make bench` has the seconds.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import pytest

from stack import Network
from stack.link import cable
from stack.testing.clock import ManualClock


def calls(work: Callable[[], object]) -> int:
    """How many functions, ours and Python's, are called while `work` runs."""
    counted = 0

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # its callbacks are no business of ours
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return counted


def measured(idle: int) -> tuple[int, int]:
    """(calls of a poll with nothing to do, calls of a round trip of one byte) beside `idle` connections."""
    with Network(clock=ManualClock()) as network, ExitStack() as kept:
        near, far = network.stack("near"), network.stack("far")
        for node, end, address in zip((near, far), cable(network.scheduler), ("10.0.0.1", "10.0.0.2"), strict=True):
            node.add_interface(end, addresses=[f"{address}/24"])
        listener = kept.enter_context(far.socket.create_server(("10.0.0.2", 80), backlog=16))

        def connection() -> tuple[Any, Any]:
            client = kept.enter_context(near.socket.create_connection(("10.0.0.2", 80)))
            served, _ = listener.accept()
            return client, kept.enter_context(served)

        client, served = connection()
        for _ in range(idle):
            connection()

        def trip() -> None:
            client.send(b"?")
            served.recv(1)
            served.send(b"!")
            client.recv(1)

        def settle() -> None:
            for _ in range(20):
                trip()
            network.poll(network.clock())

        settle()
        return calls(lambda: network.poll(network.clock())), calls(trip)


def test_a_poll_and_a_round_trip_cost_the_same_beside_idle_connections() -> None:
    """Beside 500 as beside none, within a tenth."""
    none, many = measured(0), measured(500)
    assert min(none) > 5
    assert many == pytest.approx(none, rel=0.1)
