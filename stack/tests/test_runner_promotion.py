"""The poll token goes where the data goes (`stack.runner`): promotion, keeping the token, passing it on.

The clock stands still unless a test moves it, so nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stack import Network
from stack.scheduler import NS_PER_S
from stack.socket.poll import IN, Pollee
from stack.tests.test_runner_handoffs import Outside
from stack.token import ABSENCE, PATROL

PATIENCE = 20.0
ACCEPTOR, WORKER = 0, 1


class World:
    """A Network with a device of two mailboxes, a clock that is moved by hand, and a thread per mailbox."""

    def __init__(self, *, background: bool) -> None:
        self.now = NS_PER_S
        self.network = Network(clock=lambda: self.now)
        runner: Any = self.network.runner
        self.runner = runner
        runner._can_spin = False  # it would never end where time stands still
        if background:
            self.network.start()
        self.outside = Outside(self.network, mailboxes=2)
        self.network.attach(self.outside)
        self.orders: list[queue.SimpleQueue[bool]] = [queue.SimpleQueue(), queue.SimpleQueue()]
        self.got: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._consume, args=(box,), daemon=True) for box in (0, 1)]
        for thread in self.threads:
            thread.start()

    def _consume(self, box: int) -> None:
        """Wait for one item per order."""
        while self.orders[box].get():
            self.network.block_on(self.pollee(box), IN, None, self.outside.take, (box,))
            self.got.put(box)

    def pollee(self, box: int) -> Pollee:
        return self.outside.pollees[box]

    def wait_in(self, box: int) -> None:
        """Have the mailbox's thread wait for an item; returns when it does."""
        self.orders[box].put(True)
        self.until(lambda: any(w.pollee is self.pollee(box) and (w.parked or w.asleep) for w in self.runner.line))

    def until(self, true: Callable[[], bool]) -> None:
        for _ in range(int(PATIENCE * 1000)):
            with self.network.lock:
                if true():
                    return
            select.select([], [], [], 0.001)
        raise AssertionError(f"never came: leader {self.leader()}")

    def leader(self) -> int | None:
        """Whose thread has the token."""
        waiter = self.runner.leader
        return None if waiter is None else self.outside.pollees.index(waiter.pollee)

    def deliver(self, box: int) -> None:
        self.outside.put(box)
        assert self.got.get(timeout=PATIENCE) == box

    def close(self) -> None:
        for box in (0, 1):
            self.orders[box].put(False)
            for _ in range(3):  # whoever still waits gets what it waits for
                self.outside.put(box)
        for _ in range(int(PATIENCE * 1000)):
            if not any(thread.is_alive() for thread in self.threads):
                break
            self.now += PATROL
            self.threads[0].join(0.001)
            self.threads[1].join(0.001)
        else:
            raise AssertionError("a thread still waits")
        self.network.close()
        os.close(self.outside.fd)


@pytest.fixture
def world() -> Iterator[World]:
    made = World(background=True)
    yield made
    made.close()


def test_the_thread_whose_data_arrives_becomes_leader_and_stays_it(world: World) -> None:
    """A server's acceptor had the token first; from its first item on the worker polls for itself."""
    world.wait_in(ACCEPTOR)
    assert world.leader() == ACCEPTOR
    world.wait_in(WORKER)
    assert world.leader() == ACCEPTOR
    for _ in range(50):
        world.deliver(WORKER)
        world.wait_in(WORKER)
        assert world.leader() == WORKER
    assert world.network.stats.handovers == 1


def test_the_deposed_leader_still_gets_its_items(world: World) -> None:
    world.wait_in(ACCEPTOR)
    world.wait_in(WORKER)
    world.deliver(WORKER)
    world.wait_in(WORKER)
    for _ in range(10):
        world.deliver(ACCEPTOR)
        world.wait_in(ACCEPTOR)
        world.deliver(WORKER)
        world.wait_in(WORKER)


def test_a_token_that_lies_too_long_is_taken_by_the_background_thread(world: World) -> None:
    """The worker left with its item and does not come back: what arrives for the other is not delayed for ever."""
    world.wait_in(ACCEPTOR)
    world.wait_in(WORKER)
    world.deliver(WORKER)
    assert world.leader() is None
    world.outside.put(ACCEPTOR)
    with pytest.raises(queue.Empty):
        world.got.get_nowait()
    world.now += 2 * PATROL
    assert world.got.get(timeout=PATIENCE) == ACCEPTOR


def test_a_thread_that_closes_its_socket_passes_the_token_on(world: World) -> None:
    world.wait_in(ACCEPTOR)
    world.wait_in(WORKER)
    world.deliver(WORKER)
    assert world.leader() is None
    with world.network.lock:
        world.pollee(ACCEPTOR).retire()  # not the one it lies there for
        assert world.leader() is None
        world.pollee(WORKER).retire()
        assert world.leader() == ACCEPTOR
    world.deliver(ACCEPTOR)


def test_a_thread_woken_in_vain_takes_the_token_and_keeps_it(world: World) -> None:
    """Nobody led when it was woken: it must not make way for the thread that was woken last, which is itself."""
    world.wait_in(ACCEPTOR)
    world.wait_in(WORKER)
    world.deliver(ACCEPTOR)
    assert world.leader() is None
    with world.network.lock:
        [waiter] = world.runner.line
        waiter.rouse()
    world.until(lambda: waiter.asleep)
    assert world.leader() == WORKER
    world.deliver(WORKER)


def test_a_thread_that_stays_away_is_not_waited_for(world: World) -> None:
    """It computes between its items: the others go on polling, and it follows."""
    world.wait_in(WORKER)
    while world.pollee(WORKER).absence < ABSENCE:
        world.deliver(WORKER)
        world.now += 10 * PATROL
        world.wait_in(WORKER)
    world.wait_in(ACCEPTOR)
    world.deliver(WORKER)
    assert world.leader() == ACCEPTOR
    world.now += 10 * PATROL
    world.wait_in(WORKER)
    world.deliver(WORKER)
    assert world.leader() == ACCEPTOR


def test_without_a_background_thread_the_token_never_lies() -> None:
    world = World(background=False)
    try:
        world.wait_in(ACCEPTOR)
        world.wait_in(WORKER)
        world.deliver(WORKER)
        assert world.leader() == ACCEPTOR
        world.deliver(ACCEPTOR)
        world.wait_in(WORKER)
        assert world.leader() == WORKER
    finally:
        world.close()


def test_closing_a_socket_hands_the_token_to_the_acceptor() -> None:
    """The same as users see it, over lo in a Network that polls a descriptor: accept goes on after close."""
    with Network() as network:
        idle = Outside(network, mailboxes=0)
        network.attach(idle)
        stack = network.stack("gw")
        with stack.socket.create_server(("127.0.0.1", 0)) as server:
            accepted: queue.SimpleQueue[Any] = queue.SimpleQueue()

            def accept() -> None:
                for _ in range(20):
                    accepted.put(server.accept()[0])

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            for _ in range(20):
                client = stack.socket.create_connection(server.getsockname())
                with client, accepted.get(timeout=PATIENCE) as served:
                    client.sendall(b"x")
                    assert served.recv(1) == b"x"
            thread.join(PATIENCE)
            assert not thread.is_alive()
        network.detach(idle)
        os.close(idle.fd)
