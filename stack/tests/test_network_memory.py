"""A thousand sockets nobody reads, and a bulk stream beside them, stay within their memory limits (design "Buffers").

Measured with tracemalloc, so that what views pin counts as well as what queues say they hold.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Network, Stack
from stack.scheduler import NS_PER_S
from stack.testing.clock import ManualClock

LIMIT = 16 * 1024  # SO_RCVBUF and SO_SNDBUF given, bytes of payload
#: What the kernel doubles its buffers for: book-keeping. Ours is Python objects, those of two sockets.
BOOKKEEPING = 64 * 1024
STREAMS = 500
DATAGRAMS = 500


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network(clock=ManualClock(), rng=random.Random(2)) as network:
        yield network.stack("gw")


def advance(stack: Stack, delay: int) -> None:
    assert isinstance(stack.network, Network)
    stack.network.advance(delay)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


def used() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def stream_pair(stack: Stack, server: Any) -> tuple[Any, Any]:
    client = stack.socket.socket()
    client.setsockopt(stack.socket.SOL_SOCKET, stack.socket.SO_SNDBUF, LIMIT)
    client.setsockopt(stack.socket.IPPROTO_TCP, stack.socket.TCP_NODELAY, 1)
    client.connect(server.getsockname())
    client.setblocking(False)
    return client, server.accept()[0]


def push(sock: Any, piece: bytes, most: int) -> int:
    """Send until the socket takes no more; returns the bytes taken."""
    total = 0
    with suppress(BlockingIOError):
        while total < most:
            total += sock.send(piece)
    return total


@pytest.mark.parametrize("piece", [16, 700, 16384], ids=lambda size: f"{size}-byte writes")
def test_one_unread_stream(stack: Stack, traced: None, piece: int) -> None:
    """Small segments do not pin large buffers: memory stays in proportion to the limit whatever the writes were."""
    with stack.socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(stack.socket.SOL_SOCKET, stack.socket.SO_RCVBUF, LIMIT)
        client, served = stream_pair(stack, server)
        before = used()
        taken = push(client, bytes(piece), 1 << 20)
        advance(stack, NS_PER_S)
        taken += push(client, bytes(piece), 1 << 20)
        assert LIMIT <= taken <= 3 * LIMIT
        assert used() - before <= 2 * (LIMIT + LIMIT) + BOOKKEEPING
        client.close()
        served.close()


def test_a_thousand_unread_sockets_and_a_bulk_stream(stack: Stack, traced: None) -> None:
    socket = stack.socket
    server = socket.create_server(("127.0.0.1", 0), backlog=STREAMS)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMIT)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened: list[Any] = [server, sender]
    before = used()
    for _ in range(STREAMS):
        client, served = stream_pair(stack, server)
        push(client, bytes(2000), 1 << 20)
        opened += [client, served]
    for _ in range(DATAGRAMS):
        unread = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMIT)
        unread.bind(("127.0.0.1", 0))
        for _ in range(30):
            sender.sendto(bytes(1000), unread.getsockname())
        opened.append(unread)
    advance(stack, NS_PER_S)
    allowed = STREAMS * (2 * (LIMIT + LIMIT) + BOOKKEEPING) + DATAGRAMS * (2 * LIMIT + BOOKKEEPING)
    unread_memory = used() - before
    assert unread_memory <= allowed

    # A stream with the default, auto-tuned buffers: limits and the link's queue bound what is on its way.
    with socket.create_server(("127.0.0.1", 0)) as bulk_server:
        source = socket.create_connection(bulk_server.getsockname())
        sink, _ = bulk_server.accept()
    source.setblocking(False)
    config = stack.netns.tcp.config
    bound = config.sndbuf_max + config.rcvbuf_max + (8 << 20)
    before = used()
    tracemalloc.reset_peak()
    block = bytes(256 * 1024)
    transferred = 0
    while transferred < 32 << 20:
        with suppress(BlockingIOError):
            source.send(block)
        transferred += len(sink.recv(1 << 20))
    assert tracemalloc.get_traced_memory()[1] - before <= bound
    for sock in (source, sink):
        sock.close()
    assert used() - before <= 1 << 20  # what the stream had is given back

    for sock in opened:
        sock.close()
