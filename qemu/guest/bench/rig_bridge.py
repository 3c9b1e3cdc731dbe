"""Queue pairs on the driver rig: what a second thread brings to work that is all C.

Two cards with two pairs each, and a guest's driver behind each of them, in this process. One guest's transmit rings are
filled and the other's receive rings are empty; the helper is woken; then, and only then, the clock runs: while the
first card moves all frames to the second. The drivers' part is not measured and does not take the second core away
meanwhile.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final, Self

from qemu.guest.bench.figure import Measured
from stack.testing import builders
from vhost_user import NetDevice, Server
from vhost_user.driver import GuestMemory, NetDriver

_PAIRS: Final = 2
_RING: Final = 1024
_ONE: Final = bytes.fromhex("020000000001")
_TWO: Final = bytes.fromhex("020000000002")
_UDP: Final = 17
_PORTS: Final = range(1000, 1016)
_MEMORY: Final = 1 << 30
#: Twice what a helper needs to wake up (csrc/pool.c).
_WAKING_NS: Final = 100_000


def multiqueue(seconds: float, *, threads: int = 2, size: int = 1514) -> Measured:
    """UDP frames of `size` bytes with complete checksums, verified on the way, of several flows, from two rings to two
    rings, by one thread or two. Frames a second while they move, and per second of CPU time."""
    with ExitStack() as stack:
        server = stack.enter_context(Server())
        cards, drivers = [], []
        for _ in range(2):
            card = NetDevice(queues=_PAIRS, workers=threads - 1)
            stack.callback(card.close)
            ours, theirs = socket.socketpair()
            server.adopt(card, ours)
            driver = NetDriver(
                theirs, queues=_PAIRS, rx_size=_RING, tx_size=_RING, rx_buffer=2048, memory=GuestMemory([(0, _MEMORY)])
            )
            drivers.append(stack.enter_context(driver))
            card.refresh()
            cards.append(card)
        one, two = cards
        one.route(_TWO + _ONE, two, 0, None)
        bursts = [NetDriver.burst(_frames(size, pair)) for pair in range(_PAIRS)]
        receiver = drivers[1]
        for pair, burst in enumerate(bursts):
            # The receiving guest has said something in each flow too, so each has its pair there (steering.py).
            burst.send(receiver.tx(pair), count=len(_PORTS))
            two.receive(256)

        def fill(pair: int) -> int:
            while receiver.drain(queue=pair)[0]:
                pass
            return bursts[pair].send(drivers[0].tx(pair))

        moved = wall = cpu = 0
        with _OtherCore() as other:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                waiting = fill(0) + other.call(fill, 1)
                moved += waiting
                _wake(one, two)
                began, used = time.perf_counter_ns(), time.process_time_ns()
                while waiting > 0:
                    told, _ = one.forward(256, 0, ())
                    waiting -= sum(count for _, count in told)
                wall += time.perf_counter_ns() - began
                cpu += time.process_time_ns() - used
    return Measured(moved * 1e9 / max(wall, 1), moved * 1e9 / max(cpu, 1))


def _wake(card: NetDevice, other: NetDevice) -> None:
    """Wake the helper, who has gone to sleep while the drivers worked, as he does not between bursts of a flow that
    goes on: calls that look at the rings and move nothing, since `other` is said to take nothing."""
    ready = time.perf_counter_ns() + _WAKING_NS
    while time.perf_counter_ns() < ready:
        card.forward(256, 0, (other,))


class _OtherCore:
    """A thread on the last core this process may use, while the caller is on the first: each pair's guest is where its
    frames are made and read."""

    def __enter__(self) -> Self:
        self._cores = os.sched_getaffinity(0)
        self._pool = ThreadPoolExecutor(1)
        self._pool.submit(os.sched_setaffinity, 0, {max(self._cores)}).result()
        return self

    def call(self, work: Callable[[int], int], argument: int) -> int:
        return self._pool.submit(work, argument).result()

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()


def _frames(size: int, pair: int) -> list[bytes]:
    one, two = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    frames = []
    for port in _PORTS:
        datagram = builders.udp(one, two, port + 100 * pair, 9, bytes(size - 42))
        packet = builders.ipv4(one, two, _UDP, datagram)
        frames.append(builders.ethernet(_TWO, _ONE, builders.ETHERTYPE_IPV4, packet))
    return frames * (_RING // len(frames))
