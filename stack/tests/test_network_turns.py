"""A Network polled by hand: turns, budgets, hot sources, what a turn costs (design "Time, waiting, threads")."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from stack import Network, Stack
from stack.network import BUDGET
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.testing.clock import ManualClock


class FakeSource:
    """A source with `work` items; with `fd` it announces them by an eventfd, else by on_ready."""

    def __init__(self, *, fd: bool) -> None:
        self.on_ready: Callable[[], None] | None = None
        self.fd = os.eventfd(0, os.EFD_NONBLOCK) if fd else -1
        self.work = 0
        self.calls: list[str] = []
        self.served: list[int] = []
        self.suppressed = False

    def add(self, items: int) -> None:
        self.work += items
        if self.fd >= 0:
            if not self.suppressed:
                os.eventfd_write(self.fd, 1)
        elif self.on_ready is not None:
            self.on_ready()

    def fileno(self) -> int:
        return self.fd

    def service(self, budget: int) -> int:
        count = min(budget, self.work)
        self.work -= count
        self.calls.append("service")
        if count:
            self.served.append(count)
        return count

    def suppress(self) -> None:
        self.suppressed = True
        self.calls.append("suppress")

    def arm(self) -> bool:
        self.suppressed = False
        self.calls.append("arm")
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        return self.work > 0

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def network(clock: ManualClock) -> Iterator[Network]:
    with Network(clock=clock, rng=random.Random(1)) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["on_ready", "descriptor"])
def source(request: pytest.FixtureRequest, network: Network) -> Iterator[FakeSource]:
    made = FakeSource(fd=request.param)
    network.attach(made)
    while network.poll(network.clock()) == network.clock():
        pass
    made.calls.clear()
    yield made
    network.detach(made)
    made.close()


def test_poll_answers_the_next_deadline(network: Network, clock: ManualClock) -> None:
    assert network.poll(clock()) is None
    fired: list[int] = []
    timer = network.scheduler.timer(lambda: fired.append(network.scheduler.now))
    timer.arm(clock() + NS_PER_S)
    assert network.poll(clock()) == clock() + NS_PER_S
    due = clock() + NS_PER_S
    assert network.poll(due - 1) == due
    assert fired == []
    assert network.poll(due) == due  # something was done: look again
    assert network.poll(due) is None
    assert fired == [due]
    assert clock() == due


def test_advance_runs_what_falls_due(network: Network, clock: ManualClock) -> None:
    fired: list[int] = []
    start = clock()

    def tick() -> None:
        fired.append(clock() - start)
        timer.arm_in(3)

    timer = network.scheduler.timer(tick)
    timer.arm(start + 3)
    network.advance(10)
    assert fired == [3, 6, 9]
    assert clock() == start + 10


def test_real_time_cannot_be_advanced() -> None:
    with Network() as real, pytest.raises(RuntimeError, match="ManualClock"):
        real.advance(1)


def test_the_clock_never_goes_back(network: Network, clock: ManualClock) -> None:
    clock.advance(5)
    with pytest.raises(ValueError, match="cannot go back"):
        network.poll(clock() - 1)


def test_a_turn_serves_each_source_within_its_budget(network: Network, source: FakeSource) -> None:
    source.add(2 * BUDGET + 5)
    now = network.clock()
    while network.poll(now) == now:
        pass
    assert source.served == [BUDGET, BUDGET, 5]


def test_no_source_starves_beside_a_greedy_one(network: Network, source: FakeSource) -> None:
    modest = FakeSource(fd=False)
    network.attach(modest)
    source.add(100 * BUDGET)
    modest.add(1)
    network.poll(network.clock())
    network.poll(network.clock())
    assert modest.served == [1]
    assert sum(source.served) <= 2 * BUDGET
    network.detach(modest)


def test_idle_sources_are_not_looked_at(network: Network, source: FakeSource) -> None:
    others = [FakeSource(fd=index % 2 == 0) for index in range(20)]
    for other in others:
        network.attach(other)
    while network.poll(network.clock()) == network.clock():
        pass
    for other in others:
        other.calls.clear()
    source.add(10)
    while network.poll(network.clock()) == network.clock():
        pass
    assert [other.calls for other in others] == [[]] * 20
    for other in others:
        network.detach(other)
        other.close()


class RingSource(FakeSource):
    """Its other side tells of an item only if that is the one it was asked to tell of, as with EVENT_IDX."""

    def __init__(self) -> None:
        super().__init__(fd=True)
        self.added = self.told_of = 0

    def add(self, items: int) -> None:
        self.work += items
        if self.added <= self.told_of < self.added + items:
            os.eventfd_write(self.fd, 1)
        self.added += items

    def arm(self) -> bool:
        self.told_of = self.added - self.work
        return super().arm()


def test_a_source_that_says_look_is_told_of_what_comes_afterwards(network: Network) -> None:
    """It was cold, and looked by itself: what told of its work is gone, and that work is taken without it."""
    source = RingSource()
    network.attach(source)
    try:
        for round_number in range(1, 4):
            source.add(3)
            assert source.arm()
            assert source.on_ready is not None
            source.on_ready()
            while network.poll(network.clock()) == network.clock():
                pass
            source.add(2)
            while network.poll(network.clock()) == network.clock():
                pass
            assert sum(source.served) == 5 * round_number
    finally:
        network.detach(source)
        source.close()


def test_a_hot_source_is_suppressed_once_and_armed_when_quiet(network: Network) -> None:
    source = FakeSource(fd=True)
    network.attach(source)
    while network.poll(network.clock()) == network.clock():
        pass
    source.calls.clear()
    source.add(BUDGET + 1)
    while network.poll(network.clock()) == network.clock():
        pass
    assert source.calls == ["suppress", "service", "service", "service", "arm"]
    source.add(1)  # and the next event is announced again
    assert network.poll(network.clock()) == network.clock()
    network.detach(source)
    source.close()


def test_work_that_appears_while_arming_is_not_lost(network: Network) -> None:
    class Late(FakeSource):
        def arm(self) -> bool:
            if "arm" not in self.calls:
                self.work += 1  # between the last look and the arming
            return super().arm()

    source = Late(fd=True)
    network.attach(source)
    source.add(1)
    for _ in range(10):
        network.poll(network.clock())
    assert sum(source.served) == 2
    network.detach(source)
    source.close()


def test_a_detached_source_is_left_alone(network: Network, source: FakeSource) -> None:
    source.add(1)
    network.detach(source)
    network.detach(source)
    source.calls.clear()
    network.poll(network.clock())
    assert source.calls == []
    assert source.on_ready is None


def test_detaching_after_the_descriptor_was_closed(network: Network) -> None:
    source = FakeSource(fd=True)
    network.attach(source)
    source.close()
    network.detach(source)


def test_a_source_may_change_its_descriptor(network: Network) -> None:
    """`on_ready` also says that fileno has changed."""
    source = FakeSource(fd=False)
    network.attach(source)
    network.poll(network.clock())
    source.fd = os.eventfd(0, os.EFD_NONBLOCK)
    assert source.on_ready is not None
    source.on_ready()
    network.poll(network.clock())
    source.add(3)
    network.poll(network.clock())
    assert sum(source.served) == 3
    network.detach(source)
    source.close()


def test_deferred_work_runs_before_the_turn_ends(network: Network, clock: ManualClock) -> None:
    order: list[str] = []

    def tick() -> None:
        order.append("timer")
        network.scheduler.defer(lambda: order.append("deferred"))

    network.scheduler.timer(tick).arm(clock() + NS_PER_MS)
    network.poll(clock() + NS_PER_MS)
    assert order == ["timer", "deferred"]


def test_the_cost_of_a_turn_does_not_grow_with_what_sleeps(network: Network) -> None:
    """A thousand idle connections change nothing about how often anything is called in a turn."""
    stack = network.stack("gw")
    ports = []
    with stack.socket.create_server(("127.0.0.1", 80), backlog=4096) as server:
        for _ in range(300):
            client = stack.socket.create_connection(("127.0.0.1", 80))
            ports.append((client, server.accept()[0]))
        network.advance(10 * NS_PER_S)
        before = network.stats.served
        turns = network.stats.turns
        network.poll(network.clock())
        assert network.stats.served == before
        assert network.stats.turns == turns + 1
        for pair in ports:
            for sock in pair:
                sock.close()


# -- life -------------------------------------------------------------------------------------------------------------


def test_closed_network(network: Network) -> None:
    stack = network.stack("gw")
    sock = stack.socket.socket()
    network.close()
    network.close()
    assert network.poll(10**18) is None
    with pytest.raises(OSError, match="the Network is closed"):
        sock.bind(("127.0.0.1", 0))
    sock.close()
    assert repr(network) == "<Network without stacks closed>"


def test_names_of_stacks_are_unique(network: Network) -> None:
    network.stack("gw")
    with pytest.raises(ValueError, match="'gw' already"):
        network.stack("gw")
    network.stacks["gw"].close()
    network.stack("gw")


def test_a_stack_alone_has_a_network_of_its_own() -> None:
    with Stack("gw") as stack, stack.socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.socket.create_connection(server.getsockname())
        served, _ = server.accept()
        with client, served:
            client.sendall(b"hello")
            assert served.recv(10) == b"hello"
    assert stack.network.poll(0) is None  # type: ignore[attr-defined]


def test_no_descriptor_is_left_behind() -> None:
    def count() -> int:
        gc.collect()  # what others left goes now, not in between
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = count()
    for _ in range(20):
        with Network() as network:
            stack = network.stack("gw")
            with stack.socket.create_server(("127.0.0.1", 0)) as server:
                server.fileno()
    for _ in range(20):
        Network()  # not even closed
    gc.collect()
    assert count() <= before  # what others left may have gone meanwhile
