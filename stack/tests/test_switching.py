"""The switch interval: shortened beside a computing thread, given back (docs/decisions/0002-switch-interval.md)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from stack import Network
from stack.scheduler import NS_PER_S
from stack.switching import BUSY_CALLS, SHORT, STALE, WINDOW, SwitchInterval
from stack.tests.test_network_turns import FakeSource

ME = 1
USUAL = 0.004


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(USUAL)
    yield
    sys.setswitchinterval(before)


def interval() -> float:
    return round(sys.getswitchinterval(), 6)


@pytest.mark.parametrize(
    ("cpu_share", "calls", "shortened"),
    [(1.0, 0, True), (0.3, 10, True), (0.1, 0, False), (1.0, BUSY_CALLS, False), (0.0, 0, False)],
)
def test_evidence(cpu_share: float, calls: int, shortened: bool) -> None:
    policy = SwitchInterval()
    policy.look(NS_PER_S, ME, 0, 0)
    policy.look(NS_PER_S + 2 * WINDOW, ME, int(2 * WINDOW * cpu_share), calls)
    assert policy.shortened is shortened
    assert interval() == (SHORT if shortened else USUAL)
    policy.look(NS_PER_S + 4 * WINDOW, ME, int(2 * WINDOW * cpu_share), calls)  # and now the others rest
    assert interval() == USUAL


def test_stretches_nobody_watched_are_no_evidence() -> None:
    policy = SwitchInterval()
    policy.look(NS_PER_S, ME, 0, 0)
    policy.look(NS_PER_S + STALE, ME, STALE, 0)
    policy.look(NS_PER_S + STALE + WINDOW, ME + 1, STALE + WINDOW, 0)  # another thread: "the others" are others now
    assert not policy.shortened


def test_a_look_is_due_once_a_window() -> None:
    policy = SwitchInterval()
    policy.look(NS_PER_S, ME, 0, 0)
    assert not policy.due(NS_PER_S + WINDOW - 1)
    assert policy.due(NS_PER_S + WINDOW)


def test_what_others_set_stays() -> None:
    policy = SwitchInterval()
    policy.look(NS_PER_S, ME, 0, 0)
    policy.look(NS_PER_S + WINDOW, ME, WINDOW, 0)
    assert interval() == SHORT
    sys.setswitchinterval(0.002)
    policy.restore()
    assert interval() == 0.002


def test_a_shorter_one_is_left_alone() -> None:
    sys.setswitchinterval(SHORT / 2)
    policy = SwitchInterval()
    policy.look(NS_PER_S, ME, 0, 0)
    policy.look(NS_PER_S + WINDOW, ME, WINDOW, 0)
    assert not policy.shortened
    assert interval() == SHORT / 2


def test_beside_a_computing_thread_and_after() -> None:
    """End to end: a Network with a descriptor, a thread that computes; closing restores."""
    stop = threading.Event()
    seen = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            for _ in range(1000):
                pass
            if interval() == SHORT:
                seen.set()

    with Network() as network:
        source = FakeSource(fd=True)
        network.attach(source)
        stack = network.stack("gw")
        thread = threading.Thread(target=compute)
        thread.start()
        with stack.socket.socket(stack.socket.AF_INET, stack.socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.02)
            for _ in range(500):  # ten seconds at most
                with pytest.raises(TimeoutError):
                    sock.recv(1)
                if seen.is_set():
                    break
        stop.set()
        thread.join()
        assert seen.is_set()
        network.detach(source)
        os.close(source.fd)
    assert interval() == USUAL


def test_without_descriptors_nothing_is_touched() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    with Network() as network:
        stack = network.stack("gw")
        thread.start()
        with stack.socket.socket(stack.socket.AF_INET, stack.socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.02)
            for _ in range(10):
                with pytest.raises(TimeoutError):
                    sock.recv(1)
                assert interval() == USUAL
        stop.set()
        thread.join()
