"""Blocking calls: what ends them, in real time and in virtual time (rows CORE-08, TCP-05; design "Time, waiting")."""

from __future__ import annotations

import errno
import os
import random
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stack import Network, Stack
from stack.link import Impairment, cable
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.socket.base import AGAIN, Again
from stack.socket.poll import IN, Pollee
from stack.testing.clock import ManualClock

PATIENCE = 20.0


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


@pytest.fixture(params=["with background thread", "without"])
def stack(request: pytest.FixtureRequest, network: Network) -> Stack:
    if request.param == "with background thread":
        network.start()
    return network.stack("gw")


def pair(stack: Stack) -> tuple[Any, Any]:
    with stack.socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.socket.create_connection(server.getsockname())
        served, _ = server.accept()
    return client, served


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `call` in a thread; what it answers or raises is put in the list."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # noqa: BLE001 - looked at by the test
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def until_waiting(network: Network, threads: int = 1) -> None:
    """Return once that many threads are in line for `network`."""
    line = network.runner.line  # type: ignore[attr-defined]
    for _ in range(10_000):
        with network.lock:
            if sum(waiter.parked or waiter.asleep for waiter in line) >= threads:
                return
        select.select([], [], [], 0.001)
    raise AssertionError(f"{threads} threads never waited")


# -- real time --------------------------------------------------------------------------------------------------------


def test_data_from_another_thread_ends_a_recv(network: Network, stack: Stack) -> None:
    client, served = pair(stack)
    with client, served:
        thread, outcome = in_thread(lambda: served.recv(10))
        until_waiting(network)
        client.send(b"hello")
        thread.join(PATIENCE)
        assert outcome == [b"hello"]


def test_a_follower_becomes_leader_when_the_leader_leaves(network: Network, stack: Stack) -> None:
    """Exactly one follower gets the token; a timer it alone has to wait for still fires."""
    client, served = pair(stack)
    other_client, other_served = pair(stack)
    with client, served, other_client, other_served:
        first, first_outcome = in_thread(lambda: served.recv(10))
        until_waiting(network)
        other_served.settimeout(PATIENCE)
        second, second_outcome = in_thread(lambda: other_served.recv(10))
        until_waiting(network, 2)
        client.send(b"one")
        first.join(PATIENCE)
        assert first_outcome == [b"one"]
        assert second_outcome == []
        until_waiting(network, 1)
        other_client.send(b"two")
        second.join(PATIENCE)
        assert second_outcome == [b"two"]


def test_timeout_of_a_follower_leaves_the_leader_alone(network: Network, stack: Stack) -> None:
    client, served = pair(stack)
    with client, served:
        thread, outcome = in_thread(lambda: served.recv(10))
        until_waiting(network)
        client.settimeout(0.02)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.send(b"x")
        thread.join(PATIENCE)
        assert outcome == [b"x"]


def test_close_while_another_thread_is_blocked(network: Network, stack: Stack) -> None:
    client, served = pair(stack)
    with client:
        thread, outcome = in_thread(lambda: served.recv(10))
        until_waiting(network)
        served.close()
        thread.join(PATIENCE)
        [error] = outcome
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF


def test_shutdown_while_another_thread_is_blocked(network: Network, stack: Stack) -> None:
    client, served = pair(stack)
    with client, served:
        thread, outcome = in_thread(lambda: served.recv(10))
        until_waiting(network)
        served.shutdown(stack.socket.SHUT_RD)
        thread.join(PATIENCE)
        assert outcome == [b""]


def test_closing_the_network_ends_every_blocked_call(network: Network, stack: Stack) -> None:
    client, served = pair(stack)
    with client, served:
        waiting = [in_thread(lambda s=s: s.recv(10)) for s in (client, served)]  # type: ignore[misc]
        until_waiting(network, 2)
        network.close()
        for thread, outcome in waiting:
            thread.join(PATIENCE)
            [error] = outcome
            assert isinstance(error, OSError)
            assert error.errno == errno.ENETDOWN
            assert "the Network is closed" in str(error)
        with pytest.raises(OSError, match="the Network is closed"):
            client.send(b"x")


def test_two_threads_in_one_socket(network: Network, stack: Stack) -> None:
    """Each message wakes both; one gets it, the other goes on waiting."""
    client, served = pair(stack)
    with client, served:
        waiting = [in_thread(lambda: served.recv(1)) for _ in range(2)]
        until_waiting(network, 2)
        client.send(b"1")
        client.send(b"2")
        for thread, _ in waiting:
            thread.join(PATIENCE)
        assert sorted(map(repr, (outcome[0] for _, outcome in waiting))) == ["b'1'", "b'2'"]


def test_a_failing_turn_does_not_strand_the_others(network: Network) -> None:
    """Whatever happens in one thread's turn (a Ctrl-C, say), other waiters look again for themselves."""
    done: list[str] = []

    def attempt() -> str | Again:
        return done[0] if done else AGAIN

    pollee = Pollee(lambda: 0, network.marks)
    thread, outcome = in_thread(lambda: network.block_on(pollee, IN, None, attempt, ()))
    until_waiting(network)
    done.append("and nobody was told")

    def strike() -> None:
        raise KeyboardInterrupt

    timer = network.scheduler.timer(strike)
    with network.lock:
        timer.arm(0)
        with pytest.raises(KeyboardInterrupt):
            network.turn(network.clock(), [])
    thread.join(PATIENCE)
    assert outcome == ["and nobody was told"]


INTERRUPTED = """
import os, signal, sys, threading
from contextlib import closing
from stack import Network

network = Network()
with closing(network):
    {start}
    stack = network.stack("gw")
    sock = stack.socket.socket(stack.socket.AF_INET, stack.socket.SOCK_DGRAM)
    other = stack.socket.socket(stack.socket.AF_INET, stack.socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    other.bind(("127.0.0.1", 0))
    def strike():
        line = network.runner.line
        while not any({state} for w in list(line)):
            pass
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=strike, daemon=True).start()
    try:
        sock.recv(10)
    except KeyboardInterrupt:
        print("interrupted")
    sock.settimeout(10)
    other.sendto(b"alive", sock.getsockname())
    print(sock.recv(10))
    sock.close()
    other.close()
"""


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_ctrl_c_ends_a_blocked_recv_at_once(role: str, tmp_path: Path) -> None:
    """In a process of its own: SIGINT to the main thread while it leads, or follows another thread."""
    # Without descriptors the background thread keeps the token if there is one: whoever waits follows it.
    start, state = ("", "w.asleep") if role == "leader" else ("network.start()", "w.parked")
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED.format(start=start, state=state))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore::ResourceWarning"},
        capture_output=True,
        timeout=PATIENCE,
        text=True,
        check=False,
    )
    assert done.stdout == "interrupted\nb'alive'\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_background_thread_drives_the_network_when_nobody_waits(network: Network) -> None:
    """Timers fire and links move although no thread is in a call: a delayed cable, answered by the other side."""
    network.start()
    left, right = cable(network.scheduler)
    one, other = network.stack("one"), network.stack("other")
    one.add_interface(left, addresses=["10.0.0.1/24"])
    other.add_interface(right, addresses=["10.0.0.2/24"])
    fired = threading.Event()
    timer = network.scheduler.timer(fired.set)

    def arm() -> None:
        timer.arm_in(20 * NS_PER_MS)

    network.call(arm, ())
    assert fired.wait(PATIENCE)


def test_finalisers_never_take_the_lock(network: Network) -> None:
    """A socket collected while its thread holds the lock is closed by whoever comes next, and warned about."""
    stack = network.stack("gw")
    sock = stack.socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    with network.lock, pytest.warns(ResourceWarning, match="unclosed"):
        del sock
    with stack.socket.create_server(address):
        pass


# -- virtual time -----------------------------------------------------------------------------------------------------


@pytest.fixture
def virtual() -> Iterator[Network]:
    with Network(clock=ManualClock(), rng=random.Random(3)) as made:
        yield made


def test_a_timeout_takes_its_time_in_virtual_time(virtual: Network) -> None:
    client, served = pair(virtual.stack("gw"))
    with client, served:
        before = virtual.clock()
        client.settimeout(3600.0)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert virtual.clock() - before == 3600 * NS_PER_S


def test_tcp_05_28_connecting_to_nobody_gives_up_after_two_minutes_of_virtual_time(virtual: Network) -> None:
    """A blocking connect to nobody ends after the SYN retransmissions, two minutes of virtual time."""
    left, _ = cable(virtual.scheduler)
    stack = virtual.stack("gw")
    stack.add_interface(left, addresses=["10.0.0.1/24"])
    virtual_before = virtual.clock()
    with stack.socket.socket() as sock, pytest.raises(OSError) as caught:  # noqa: PT011 - which one is asserted below
        sock.connect(("10.0.0.9", 80))
    assert caught.value.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH)
    assert NS_PER_S < virtual.clock() - virtual_before < 200 * NS_PER_S


def test_tcp_22_lingering_close_waits_for_the_peer(virtual: Network) -> None:
    """TCP-22: until everything is acknowledged, or for as long as was asked for; without SO_LINGER not at all."""
    outage = Impairment(delay_ns=100 * NS_PER_MS, seed=1)
    left, right = cable(virtual.scheduler, a_to_b=outage, b_to_a=outage)
    one, other = virtual.stack("one"), virtual.stack("other")
    one.add_interface(left, addresses=["10.0.0.1/24"])
    interface = other.add_interface(right, addresses=["10.0.0.2/24"])
    server = other.socket.create_server(("10.0.0.2", 80))

    def closing_takes(linger: tuple[int, int], *, cut: bool) -> int:
        sock = one.socket.create_connection(("10.0.0.2", 80))
        served, _ = server.accept()
        sock.setsockopt(one.socket.SOL_SOCKET, one.socket.SO_LINGER, struct.pack("ii", *linger))
        sock.sendall(b"last words")
        virtual.call(interface.set_up, (not cut,))
        before = virtual.clock()
        sock.close()
        took = virtual.clock() - before
        virtual.call(interface.set_up, (True,))
        served.close()
        return took

    assert closing_takes((0, 0), cut=False) == 0
    assert 200 * NS_PER_MS <= closing_takes((1, 30), cut=False) < 400 * NS_PER_MS
    assert closing_takes((1, 3), cut=True) == 3 * NS_PER_S
    server.close()


def test_a_call_that_can_never_end_is_an_error(virtual: Network) -> None:
    with virtual.stack("gw").socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(OSError, match="would block for ever") as caught:
            server.accept()
        assert caught.value.errno == errno.EDEADLK


def test_a_second_blocking_thread_is_an_error_in_virtual_time(virtual: Network) -> None:
    stack = virtual.stack("gw")
    client, served = pair(stack)
    runner: Any = virtual.runner
    with client, served:
        runner._blocked = threading.get_native_id() + 1  # another thread is inside
        with pytest.raises(RuntimeError, match="second thread"):
            client.recv(1)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):  # calls that do not wait are none of its business
            client.recv(1)
        runner._blocked = None


def test_virtual_time_is_reproducible() -> None:
    def run() -> tuple[int, int]:
        with Network(clock=ManualClock(), rng=random.Random(9)) as network:
            client, served = pair(network.stack("gw"))
            with client, served:
                client.settimeout(0)
                total = client.send(bytes(1 << 20))
                got = 0
                served.settimeout(5)
                while got < total:
                    got += len(served.recv(1 << 16))
                return network.clock(), network.stats.turns

    assert run() == run()
