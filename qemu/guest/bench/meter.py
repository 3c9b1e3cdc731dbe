"""CPU time of those that carry a path's bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path as FilePath
from types import TracebackType
from typing import Final, Self

from qemu.guest.bench.peers import Path
from qemu.guest.guest import Guest

_TICKS: Final = os.sysconf("SC_CLK_TCK")
#: Fields of /proc/PID/stat behind the command's name: utime and stime (proc(5)).
_UTIME, _STIME = 11, 12


def cpu_seconds(pid: int, thread: int | None = None) -> float:
    """What a process, or one thread of it, has used so far; 0 if it is gone."""
    place = f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat"
    try:
        fields = FilePath(place).read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS


class Meter:
    """Seconds of CPU time while the block lasted.

    `own`: of this process, our stack (or, for a peer, the far end alone) and the bench. `host`: that, the processes of
    the path, and QEMU without the threads that are the guest's CPUs: slirp and TAP run in its main loop.
    """

    def __init__(self, guest: Guest, path: Path) -> None:
        self.own = self.host = 0.0
        self._guest = guest
        self._path = path
        self._vcpus = [int(cpu["thread-id"]) for cpu in guest.qmp.execute("query-cpus-fast")]

    def _read(self) -> tuple[float, float]:
        own = time.process_time()
        qemu = self._guest.pid
        others = sum(map(cpu_seconds, self._path.processes)) + cpu_seconds(qemu)
        return own, own + others - sum(cpu_seconds(qemu, thread) for thread in self._vcpus)

    def __enter__(self) -> Self:
        self._own, self._host = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        own, host = self._read()
        self.own, self.host = own - self._own, host - self._host
