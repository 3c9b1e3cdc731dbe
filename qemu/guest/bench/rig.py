"""The driver rig: what ring, stack and socket carry when no guest and no QEMU slow them down.

A second process plays the guest (rig_guest.py). This one serves its card, and one thread moves bytes through a socket.
Beside it, in the same run, stands the cheapest thing the same bytes could have cost: copying them twice.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qemu.guest.bench.farend import READ_BYTES, WRITTEN_BYTES, FarEnd, Transfer, echo, sink, source
from qemu.guest.bench.figure import Measured
from stack import Network, Stack
from stack.link import LinkDevice
from vhost_user import NetDevice, Server

GATEWAY: Final = "10.0.2.2"
GUEST: Final = "10.0.2.15"
GUEST_MAC: Final = bytes.fromhex("525400776601")
#: What is copied at a time: a superframe's payload.
_PIECE_BYTES: Final = 65483
#: ... and how many of them between two looks at the clock.
_PIECES: Final = 64
#: How often a loop is tried.
_LOOPS: Final = 50


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """The memory a row's bytes move through, in bytes at each of its three stations; each is used round and round."""

    first: int
    second: int
    third: int


#: Guest memory, of which a whole window is in flight most of the time; slabs, two bursts of them; the reader's buffer.
TO_SOCKET: Final = WorkingSet(4 << 20, 1 << 20, READ_BYTES)
#: The writer's buffer; guest memory, 256 receive buffers of 4 KiB; what the driver copies them out to.
TO_DRIVER: Final = WorkingSet(WRITTEN_BYTES, 1 << 20, 1 << 20)


class RigError(RuntimeError):
    """The process that plays the guest failed; the message is what it said."""


@contextmanager
def served_card(
    *, offload: bool = True, around: Callable[[Network, NetDevice], LinkDevice] = lambda _, device: device
) -> Iterator[tuple[Stack, Path]]:
    """A Stack with a card that listens on a socket file for a front-end. `around` says what the Stack sees of it."""
    with tempfile.TemporaryDirectory(prefix="guestwire-rig-") as directory, Network() as network, Server() as server:
        network.start()
        stack = network.stack("gw")
        device = NetDevice(mac=bytes.fromhex("52540077aa01"), offload=offload)
        stack.add_interface(around(network, device), addresses=[f"{GATEWAY}/24"])
        path = Path(directory) / "net"
        server.listen(device, path=path)
        yield stack, path


def guest_to_stack(seconds: float, *, frame: int = 65483, offload: bool = True) -> Measured:
    """TCP from the driver through ring, stack and socket, Gb/s."""
    with served_card(offload=offload) as (stack, path), FarEnd(stack.socket, GATEWAY, sink, one_by_one=True) as far:
        _, cpu = _play_guest(path, "send", far.port, seconds, frame)
    gbps = far.transfers[0].gbps
    return Measured(gbps, far.transfers[0].bytes * 8e-9 / cpu)


def stack_to_guest(seconds: float, *, offload: bool = True) -> Measured:
    """TCP from a socket through stack and ring to the driver, Gb/s as it received them; without `offload` in packets
    of 1500 bytes."""
    far_end = source(seconds)
    with served_card(offload=offload) as (stack, path), FarEnd(stack.socket, GATEWAY, far_end, one_by_one=True) as far:
        said, cpu = _play_guest(path, "recv", far.port, seconds, 0)
    return Measured(float(said), float(said) * seconds / cpu)


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """Microseconds: the median, the 99th percentile, what one cost this process in CPU time, and what the interpreter
    needed for a thousand additions right after."""

    median: float
    p99: float
    cpu: float
    additions: float


def round_trips(seconds: float, *, size: int = 1) -> RoundTrips:
    """A segment of `size` bytes from the driver to an echoing socket and back, one after the other without a pause."""
    additions = []

    def far_end(connection: Any, transfer: Transfer) -> None:
        try:
            echo(connection, transfer)
        finally:
            additions.append(thousand_additions())  # by the thread that answered, before it can be anywhere else

    with served_card() as (stack, path), FarEnd(stack.socket, GATEWAY, far_end, one_by_one=True) as far:
        said, cpu = _play_guest(path, "rr", far.port, seconds, size)
    middle, slow, count = map(float, said.split())
    return RoundTrips(middle, slow, cpu / count * 1e6, max(additions))


def thousand_additions() -> float:
    """Microseconds of a thousand additions in a loop, the lowest of some: how quick the interpreter is here, now.

    On a shared machine a core is often half of one, and a good deal quicker while the other half has nothing to do.
    """
    lowest = 1 << 62
    for _ in range(_LOOPS):
        began = time.perf_counter_ns()
        total = 0
        for number in range(1000):
            total += number
        lowest = min(lowest, time.perf_counter_ns() - began)
    return lowest * 1e-3


def two_copies(seconds: float, through: WorkingSet = TO_SOCKET) -> float:
    """Copying the same bytes twice, superframe by superframe, through the same working set: Gb/s."""
    data, slab, user = (memoryview(bytearray(size)) for size in (through.first, through.second, through.third))
    piece = _PIECE_BYTES
    moved = count = 0
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        for _ in range(_PIECES):
            at, between, end = (count % (len(room) // piece) * piece for room in (data, slab, user))
            slab[between : between + piece] = data[at : at + piece]
            user[end : end + piece] = slab[between : between + piece]
            count += 1
        moved += _PIECES * piece
    return moved * 8e-9 / (now - began)


def _play_guest(path: Path, mode: str, port: int, seconds: float, frame: int) -> tuple[str, float]:
    """What the process that plays the guest printed, and the CPU seconds this one used meanwhile."""
    return run_beside("rig_guest", path, mode, port, seconds, frame)


def run_beside(module: str, *words: object) -> tuple[str, float]:
    """Run a module of this bench that prints "go" and, at its end, a line: that line, and the CPU seconds this process
    used between the two. Raises RigError with what it complained of.
    """
    command = [sys.executable, "-m", f"qemu.guest.bench.{module}", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            lines = []
            for _ in range(2):
                lines.append((process.stdout.readline().strip(), time.process_time()))
                if not lines[-1][0]:
                    process.kill()
                    raise RigError(f"the driver rig failed: {process.stderr.read().strip()}")
        finally:
            process.kill()
    return lines[1][0], lines[1][1] - lines[0][1]
