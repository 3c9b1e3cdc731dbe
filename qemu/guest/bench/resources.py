"""What a guest costs that does nothing: CPU time and memory of this process."""

from __future__ import annotations

import time
from pathlib import Path as FilePath
from typing import Final

from qemu.guest.bench.figure import Figure
from qemu.guest.bench.meter import cpu_seconds
from qemu.guest.bench.peers import OURS, Path
from qemu.guest.guest import Guest

_KIB: Final = 1024
IDLE: Final = "idle guest, CPU of this process"


def anonymous_bytes(pid: str | int = "self") -> int:
    """Memory of a process that is its own: no file's, and not the guest's, which is shared with QEMU (proc(5))."""
    for line in FilePath(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * _KIB
    return 0


def idle_guest(guest: Guest, seconds: float, paths: list[Path]) -> list[Figure]:
    """Shares of a core while nobody does anything: this process, those of the peers, and what the guest itself does."""
    time.sleep(0.2)  # what the last row left behind
    pids = [(path.name, pid) for path in paths if path.name != OURS for pid in path.processes]
    before = time.process_time(), cpu_seconds(guest.pid), [cpu_seconds(pid) for _, pid in pids]
    time.sleep(seconds)
    own = time.process_time() - before[0]
    figures = [Figure(IDLE, own / seconds * 100, "%", "of a core; everything attached, nobody talking")]
    for (name, pid), used in zip(pids, before[2], strict=True):
        figures.append(Figure(f"idle guest, CPU of {name}", (cpu_seconds(pid) - used) / seconds * 100, "%"))
    qemu = (cpu_seconds(guest.pid) - before[1]) / seconds * 100
    figures.append(Figure("idle guest, CPU of QEMU", qemu, "%", "the guest's own timers"))
    return figures


def memory(without: int, guest: Guest, paths: list[Path]) -> list[Figure]:
    """`without`: `anonymous_bytes` before the guest was started."""
    now = anonymous_bytes()
    mib = 1 << 20
    figures = [
        Figure("memory of this process", now / mib, "MiB", "private; interpreter, stack and bench"),
        Figure("memory of this process, for the guest", (now - without) / mib, "MiB", "after it has been measured"),
        Figure("memory of QEMU", anonymous_bytes(guest.pid) / mib, "MiB", "private, without the guest's own"),
    ]
    figures += [
        Figure(f"memory of {path.name}", anonymous_bytes(pid) / mib, "MiB", "private")
        for path in paths
        for pid in path.processes
    ]
    return figures
