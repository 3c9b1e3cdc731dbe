"""Leader, followers, background thread: no wake-up is ever lost, whoever polls (design "Time, waiting, threads").

One sender passes a token to one of eight threads that wait in eight different ways, and waits for the answer. With a
single token on its way nothing else can heal a lost wake-up: the sender's time-out would show it.
"""

from __future__ import annotations

import os
import queue
import random
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from stack import Network, Stack
from stack.runner import LOOK_AROUND
from stack.socket.base import AGAIN, Again
from stack.socket.poll import IN, Pollee

PATIENCE = 30.0  # seconds without an answer: a wake-up was lost


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(rng=random.Random(5)) as made:
        yield made


def stream_pair(stack: Stack) -> tuple[Any, Any]:
    with stack.socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.socket.create_connection(server.getsockname())
        served, _ = server.accept()
    client.setsockopt(stack.socket.IPPROTO_TCP, stack.socket.TCP_NODELAY, 1)
    served.setsockopt(stack.socket.IPPROTO_TCP, stack.socket.TCP_NODELAY, 1)
    return client, served


def datagram_pair(stack: Stack) -> tuple[Any, Any]:
    one, other = (stack.socket.socket(stack.socket.AF_INET, stack.socket.SOCK_DGRAM) for _ in range(2))
    one.bind(("127.0.0.1", 0))
    other.bind(("127.0.0.1", 0))
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    return one, other


def blocking(sock: Any) -> bytes:
    data: bytes = sock.recv(64)
    return data


def with_short_timeout(sock: Any) -> bytes:
    sock.settimeout(0.0007)
    while True:
        with suppress(TimeoutError):
            return blocking(sock)


def into_a_buffer(sock: Any) -> bytes:
    buffer = bytearray(64)
    return bytes(buffer[: sock.recv_into(buffer)])


def by_select(sock: Any) -> bytes:
    sock.setblocking(False)
    while True:
        select.select([sock], [], [])
        with suppress(BlockingIOError):
            return blocking(sock)


def by_file(sock: Any) -> bytes:
    with sock.makefile("rb", buffering=0) as file:
        data: bytes = file.read(64)
        return data


WAYS: list[tuple[Callable[[Stack], tuple[Any, Any]], Callable[[Any], bytes]]] = [
    (stream_pair, blocking),
    (stream_pair, with_short_timeout),
    (stream_pair, into_a_buffer),
    (stream_pair, by_select),
    (stream_pair, by_file),
    (datagram_pair, blocking),
    (datagram_pair, with_short_timeout),
    (datagram_pair, by_select),
]


def pass_tokens(network: Network, count: int, seed: int) -> None:
    stack = network.stack("gw")
    pairs = [make(stack) for make, _ in WAYS]
    failures: list[BaseException] = []

    def serve(sock: Any, wait: Callable[[Any], bytes]) -> None:
        try:
            while wait(sock) != b"end":
                sock.settimeout(PATIENCE)
                sock.send(b"back")
                sock.settimeout(None)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [
        threading.Thread(target=serve, args=(theirs, wait), daemon=True)
        for (_, theirs), (_, wait) in zip(pairs, WAYS, strict=True)
    ]
    for thread in threads:
        thread.start()
    draw = random.Random(seed)
    for _ in range(count // 2):  # there and back: two hand-offs
        ours, _ = pairs[draw.randrange(len(pairs))]
        ours.settimeout(PATIENCE)
        ours.send(b"token")
        assert ours.recv(64) == b"back"
    for ours, _ in pairs:
        ours.send(b"end")
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert failures == []
    for pair in pairs:
        for sock in pair:
            sock.close()


class Outside:
    """A source like a guest's device: another thread puts items in and kicks, unless notifications are suppressed."""

    def __init__(self, network: Network, mailboxes: int) -> None:
        self.on_ready: Callable[[], None] | None = None
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.suppressed = False
        self.arriving: deque[int] = deque()
        self.mail = [0] * mailboxes
        self.pollees = [
            Pollee(lambda index=index: IN if self.mail[index] else 0, network.marks)  # type: ignore[misc]
            for index in range(mailboxes)
        ]

    def put(self, index: int) -> None:
        """Any thread, no lock: as a driver publishes a buffer and looks whether to kick."""
        self.arriving.append(index)
        if not self.suppressed:
            os.eventfd_write(self.fd, 1)

    def take(self, index: int) -> bool | Again:
        if not self.mail[index]:
            return AGAIN
        self.mail[index] -= 1
        return True

    def fileno(self) -> int:
        return self.fd

    def service(self, budget: int) -> int:
        count = 0
        while self.arriving and count < budget:
            index = self.arriving.popleft()
            self.mail[index] += 1
            self.pollees[index].notify()
            count += 1
        return count

    def suppress(self) -> None:
        self.suppressed = True

    def arm(self) -> bool:
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        self.suppressed = False
        return bool(self.arriving)


@contextmanager
def polled(network: Network, *, descriptor: bool) -> Iterator[None]:
    """With a descriptor to poll, whoever waits leads; without one the background thread does."""
    if not descriptor:
        yield
        return
    idle = Outside(network, mailboxes=0)
    network.attach(idle)
    yield
    network.detach(idle)
    os.close(idle.fd)


def test_eight_mixed_waiters_and_a_sender_lose_no_wakeup(network: Network) -> None:
    with polled(network, descriptor=True):
        pass_tokens(network, 100_000, seed=1)


def test_the_same_where_the_background_thread_keeps_the_token(network: Network) -> None:
    pass_tokens(network, 30_000, seed=3)


@pytest.mark.long
@pytest.mark.parametrize("descriptor", [True, False], ids=["threads lead", "background thread leads"])
def test_eight_mixed_waiters_and_a_sender_lose_no_wakeup_in_a_million_handoffs(
    network: Network, descriptor: bool
) -> None:
    with polled(network, descriptor=descriptor):
        pass_tokens(network, 1_000_000, seed=2)


@pytest.mark.parametrize("pause", [0, 200, 3000], ids=lambda count: f"pause {count}")
@pytest.mark.parametrize("background", [True, False], ids=["with background thread", "without"])
def test_no_kick_from_outside_is_lost(network: Network, pause: int, background: bool) -> None:
    """Leaders come and go, spin, arm, sleep and leave the source suppressed; the background thread takes over and is
    told to yield. Whatever state a kick meets, its item arrives.
    """
    if not background:
        network = Network(rng=random.Random(5))
    outside = Outside(network, mailboxes=2)
    network.attach(outside)
    answers: queue.SimpleQueue[int] = queue.SimpleQueue()
    failures: list[BaseException] = []
    tokens = 6000 if pause < 1000 else 1500

    def consume(index: int, count: int) -> None:
        try:
            for _ in range(count):
                timeout = int(PATIENCE * 1e9)
                assert network.block_on(outside.pollees[index], IN, timeout, outside.take, (index,)) is True
                answers.put(index)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    draw = random.Random(pause)
    plan = [draw.randrange(2) for _ in range(tokens)]
    threads = [threading.Thread(target=consume, args=(index, plan.count(index)), daemon=True) for index in range(2)]
    for thread in threads:
        thread.start()
    for index in plan:
        for _ in range(draw.randrange(pause + 1)):
            pass
        outside.put(index)
        assert answers.get(timeout=PATIENCE) == index
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    network.detach(outside)
    os.close(outside.fd)
    network.close()


def test_what_leaders_leave_behind_is_picked_up(network: Network) -> None:
    """A leader leaves its source suppressed; if no other comes, the background thread takes over within a moment."""
    outside = Outside(network, mailboxes=1)
    network.attach(outside)
    draw = random.Random(8)
    for round_ in range(300):
        outside.put(0)
        timeout = int(PATIENCE * 1e9)
        assert network.block_on(outside.pollees[0], IN, timeout, outside.take, (0,)) is True
        if draw.random() < 0.3:
            select.select([], [], [], draw.random() * 0.004)
        outside.put(0)  # nobody waits for this one
        for _ in range(20_000):
            if outside.mail[0]:
                break
            select.select([], [], [], 0.001)
        else:
            pytest.fail(f"round {round_}: nobody looked")
        assert outside.take(0) is True
    network.detach(outside)
    os.close(outside.fd)


def test_a_call_that_does_not_wait_leaves_sleepers_their_notifications(network: Network) -> None:
    """A non-blocking call's turn suppresses the source; the leader asleep meanwhile still hears of what comes."""
    outside = Outside(network, mailboxes=2)
    network.attach(outside)
    got = threading.Event()

    def consume() -> None:
        if network.block_on(outside.pollees[0], IN, int(PATIENCE * 1e9), outside.take, (0,)) is True:
            got.set()

    for _ in range(50):
        got.clear()
        thread = threading.Thread(target=consume)
        thread.start()
        while not network.asleep_until:
            select.select([], [], [], 0.001)
        outside.put(1)
        while network.block_on(outside.pollees[1], IN, 0, outside.take, (1,)) is AGAIN:
            pass
        outside.put(0)
        assert got.wait(PATIENCE)
        thread.join()
    network.detach(outside)
    os.close(outside.fd)


def test_a_device_that_kicks_is_seen_though_another_is_hot_all_the_time() -> None:
    """A reader who never has to sleep looks at the descriptors now and then, for those who wait for another device."""
    with closing(Network()) as network:
        busy, quiet = Outside(network, mailboxes=1), Outside(network, mailboxes=1)
        for device in (busy, quiet):
            network.attach(device)
        busy.put(0)
        assert network.block_on(busy.pollees[0], IN, None, busy.take, (0,)) is True
        assert busy.suppressed
        assert not quiet.suppressed
        quiet.put(0)
        for _ in range(2 * LOOK_AROUND):
            busy.put(0)
            assert network.block_on(busy.pollees[0], IN, None, busy.take, (0,)) is True
        assert quiet.mail == [1]
    for device in (busy, quiet):
        os.close(device.fd)
