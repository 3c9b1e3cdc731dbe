"""What socket calls cost beside the kernel's, through the same interpreter, in the same run, in one thread.

Rounds alternate between the two and the least of each counts: what is compared is work, and everything that disturbs
only adds. CPU time of the thread is taken, which holds what the kernel does for it, not what other processes do.
"""

from __future__ import annotations

import gc
import socket as kernel
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from qemu.guest.bench.figure import Figure
from stack import Network

#: How many times the kernel's cost a call may have, by what is measured.
LIMITS: Final = {
    "send and recv on a Unix pair": 5.0,
    "send and recv on loopback TCP": 15.0,
    "connect, accept and close": 20.0,
}
_DATA: Final = bytes(64)
_PAIR_CALLS: Final = 1000
_CONNECTS: Final = 100

Measure = Callable[[Any], float]


def send_and_recv(pair: Callable[[Any], tuple[Any, Any]]) -> Measure:
    """Microseconds for one send and the recv of it."""

    def measure(module: Any) -> float:
        one, other = pair(module)
        with one, other:
            send, recv = one.send, other.recv
            began = time.thread_time()
            for _ in range(_PAIR_CALLS):
                send(_DATA)
                recv(100)
            return (time.thread_time() - began) / _PAIR_CALLS * 1e6

    return measure


def unix_pair(module: Any) -> tuple[Any, Any]:
    one, other = module.socketpair()
    return one, other


def tcp_pair(module: Any) -> tuple[Any, Any]:
    with module.create_server(("127.0.0.1", 0)) as server:
        client = module.create_connection(server.getsockname())
        client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_NODELAY, 1)  # what is measured is no wait for an ACK
        return client, server.accept()[0]


def connect_accept_close(module: Any) -> float:
    """Microseconds for a connection made, accepted and closed by both ends."""
    with module.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        began = time.thread_time()
        for _ in range(_CONNECTS):
            client = module.socket()
            client.connect(address)
            served, _ = server.accept()
            client.close()
            served.close()
        return (time.thread_time() - began) / _CONNECTS * 1e6


_MEASURES: Final[dict[str, Measure]] = dict(
    zip(LIMITS, (send_and_recv(unix_pair), send_and_recv(tcp_pair), connect_accept_close), strict=True)
)


def costs(rounds: int = 9) -> dict[str, tuple[float, float]]:
    """(the kernel's, ours) in microseconds, by what is measured."""
    with Network() as network:
        ours = network.stack("bench").socket
        found = {}
        for name, measure in _MEASURES.items():
            pairs = [(measure(kernel), measure(ours)) for _ in range(rounds)]
            found[name] = min(theirs for theirs, _ in pairs), min(mine for _, mine in pairs)
        return found


def figures(rounds: int = 9, count: int = 200) -> Iterator[Figure]:
    """Costs, their ratios to the kernel's, and the memory of sockets."""
    for name, (theirs, ours) in costs(rounds).items():
        yield Figure(name, ours, "us")
        yield Figure(f"{name}: times the kernel's {theirs:.1f} us, at most {LIMITS[name]:g}", ours / theirs, "")
    yield from memory(count)


@contextmanager
def _traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def memory(count: int = 200) -> Iterator[Figure]:
    """Bytes of Python memory per socket, by kind; of a pair or a connection, half of both."""
    makers: dict[str, Callable[[Any], tuple[Any, ...]]] = {
        "a fresh TCP socket": lambda module: (module.socket(),),
        "a connected TCP socket": tcp_pair,
        "a UDP socket": lambda module: (module.socket(kernel.AF_INET, kernel.SOCK_DGRAM),),
        "one of a Unix pair": unix_pair,
        "the descriptor of a socket": lambda module: _with_descriptor(module.socket()),
    }
    with Network() as network, _traced():
        module = network.stack("bench").socket
        for name, make in makers.items():
            kept = [make(module)]  # what is made once for all
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            kept += [make(module) for _ in range(count)]
            gc.collect()
            used = tracemalloc.get_traced_memory()[0] - before
            yield Figure(f"memory of {name}", used / count / len(kept[0]), "bytes")
            for socks in kept:
                for sock in socks:
                    sock.close()


def _with_descriptor(sock: Any) -> tuple[Any]:
    sock.fileno()
    return (sock,)
