"""Leader, followers, background thread: no wake-up is ever lost, whoever polls (design "Time, waiting, threads").

One sender passes a token to one of eight threads that wait in eight different ways, and waits for the answer. With a
single token on its way nothing else can heal a lost wake-up: the sender's time-out would show it.
"""

from __future__ import annotations

import random
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stack import Network, Stack

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
    return sock.recv(64)


def with_short_timeout(sock: Any) -> bytes:
    sock.settimeout(0.0007)
    while True:
        try:
            return sock.recv(64)
        except TimeoutError:
            continue


def into_a_buffer(sock: Any) -> bytes:
    buffer = bytearray(64)
    return bytes(buffer[: sock.recv_into(buffer)])


def by_select(sock: Any) -> bytes:
    sock.setblocking(False)
    while True:
        select.select([sock], [], [])
        try:
            return sock.recv(64)
        except BlockingIOError:
            continue


def by_file(sock: Any) -> bytes:
    with sock.makefile("rb", buffering=0) as file:
        return file.read(64)


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


def test_eight_mixed_waiters_and_a_sender_lose_no_wakeup(network: Network) -> None:
    pass_tokens(network, 100_000, seed=1)


@pytest.mark.long
def test_eight_mixed_waiters_and_a_sender_lose_no_wakeup_in_a_million_handoffs(network: Network) -> None:
    pass_tokens(network, 1_000_000, seed=2)
