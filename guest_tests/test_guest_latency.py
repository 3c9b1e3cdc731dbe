"""A busy process still answers: QEMU's control messages and the guest's ping, beside Python that does not let go.

One thread runs pure Python without pause, another calls again and again into C code that holds the interpreter's lock
for tens of milliseconds at a time. Control messages are answered by a thread of their own, which needs the lock once
per message; QEMU holds its own big lock while it waits. How long that takes is a row of the benchmark; here it is
how often they are passed over: waits are counted in turns of the thread that holds the lock, whose length is measured
meanwhile. Whatever else keeps the machine makes both longer.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from qemu.guest import Guest

#: How long the C call below holds the lock, roughly; the interpreter cannot be made to wait less than that.
HOLD_SECONDS = 0.03
#: One set_link is some twenty replies and QMP in the same interpreter besides.
CONTROL_P99_TURNS = 33
PING_P99_TURNS = 20


@contextmanager
def busy_interpreter() -> Iterator[Callable[[], float]]:
    """A pure-Python thread and one that holds the lock in C, until the block ends. Gives what answers how long a turn
    of the second one has taken on average, in seconds."""
    stop = threading.Event()
    turns = 0

    def pure() -> None:
        n = 0
        while not stop.is_set():
            for _ in range(1000):
                n += 1

    size = 200_000
    began = time.perf_counter()
    sorted(range(size, 0, -1), key=str)
    size = int(size * HOLD_SECONDS / (time.perf_counter() - began))
    values = list(range(size, 0, -1))

    def holding() -> None:
        nonlocal turns
        while not stop.is_set():
            sorted(values, key=str)  # one C call; nothing in it lets the lock go
            turns += 1

    threads = [threading.Thread(target=target, daemon=True) for target in (pure, holding)]
    for thread in threads:
        thread.start()
    since = time.perf_counter()
    try:
        yield lambda: (time.perf_counter() - since) / max(turns, 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def echo_replies(guest: Guest) -> int:
    """How many the guest's kernel has received so far (type 0)."""
    lines = [line.split() for line in guest.get("/proc/net/snmp").decode().splitlines() if line.startswith("IcmpMsg:")]
    return int(dict(zip(*lines, strict=True)).get("InType0", 0)) if lines else 0


def ping_times(guest: Guest, count: int) -> list[float]:
    """Every request is answered; the kernel's counter says so, because busybox's socket holds a few replies only."""
    before = echo_replies(guest)
    out = guest.run(["ping", "-c", str(count), "-i", "0.02", "-W", "5", guest.gateway], check=True).stdout
    assert echo_replies(guest) - before == count
    return [float(ms) / 1e3 for ms in re.findall(r"time=([\d.]+) ms", out)]


def control_times(guest: Guest, count: int) -> list[float]:
    """set_link off and on: QEMU stops and restarts every ring of the card, some twenty messages each, and waits."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        for up in (False, True):
            guest.qmp.execute("set_link", {"name": "net0", "up": up})
        times.append((time.perf_counter() - began) / 2)
    return times


@pytest.mark.parametrize(
    ("what", "measure", "count", "bound"),
    [
        ("ping", ping_times, 100, PING_P99_TURNS),
        ("control messages", control_times, 20, CONTROL_P99_TURNS),
    ],
)
def test_a_busy_interpreter_bounds_what_the_guest_and_qemu_wait(
    what: str,
    measure: Callable[[Guest, int], list[float]],
    count: int,
    bound: int,
    guest: Guest,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    idle = measure(guest, count)
    with busy_interpreter() as turn:
        busy = measure(guest, count)
        length = turn()
    waits = [wait / length for wait in busy]
    record_property(f"{what} p99 idle, ms", round(p99(idle) * 1e3, 2))
    record_property(f"{what} p99 busy, ms", round(p99(busy) * 1e3, 2))
    with capsys.disabled():
        print(
            f"\n{what}: p99 {p99(idle) * 1e3:.1f} ms idle, {p99(busy) * 1e3:.1f} ms beside busy threads, "
            f"{p99(waits):.1f} turns of theirs"
        )
    assert p99(waits) < bound
