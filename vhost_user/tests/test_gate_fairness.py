"""A ring's gate: the control thread waits for one burst, however greedily the data path takes the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vhost_user.gate import Gate
from vhost_user.session import Session
from vhost_user.virtqueue import Virtqueue

from .raw_front_end import FrontEnd, net_device

PATIENCE = 30.0


def order_after_a_burst(gate: Gate, next_burst: Callable[[], object]) -> list[str]:
    """The data path is in a burst when the control thread asks; it ends it and begins the next one at once."""
    order: list[str] = []

    def control() -> None:
        with gate.control:
            order.append("control")

    gate.acquire()
    thread = threading.Thread(target=control)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while gate.acquire != gate._behind_the_door:  # until it has asked
        assert time.monotonic() < deadline
    gate.release()
    next_burst()
    order.append("data")
    thread.join()
    return order


def test_the_control_thread_waits_for_one_burst_only() -> None:
    gate = Gate()

    def burst() -> None:
        with gate:
            pass

    for _ in range(100):
        assert order_after_a_burst(gate, burst) == ["control", "data"]


def test_rings_respect_that() -> None:
    device = net_device(pairs=1)
    with FrontEnd(Session(device)) as front:
        front.start_net()
        ring = device.rings[1]
        for burst in (ring.pop, lambda: ring.push([(b"x",)]), ring.discard, ring.room, ring.arm, ring.suppress):
            for _ in range(20):
                assert order_after_a_burst(device.gates[1], burst) == ["control", "data"]
    device.close()


def test_nobody_is_inside_while_the_control_thread_is() -> None:
    gate = Gate()
    inside = 0
    clashes = 0
    stop = False

    def data() -> None:
        nonlocal inside, clashes
        while not stop:
            with gate:
                inside += 1
                clashes += inside != 1
                inside -= 1

    threads = [threading.Thread(target=data) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        with gate.control:
            inside += 1
            clashes += inside != 1
            inside -= 1
    stop = True
    for thread in threads:
        thread.join()
    assert clashes == 0


def test_an_error_inside_leaves_the_gate_open() -> None:
    gate = Gate()
    for way in (gate, gate.control):
        with pytest.raises(ZeroDivisionError), way:
            raise ZeroDivisionError
        with gate, pytest.raises(ZeroDivisionError):
            raise ZeroDivisionError
        with gate.control:
            pass


def test_a_plain_lock_will_do_where_nobody_else_changes_the_ring() -> None:
    ring = Virtqueue(0, 16, gate=threading.Lock())
    assert ring.pop().count == 0
    ring.close()
