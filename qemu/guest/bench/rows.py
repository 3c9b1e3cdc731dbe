"""Rows measured with a real guest: its load generator against the far end, over our card and over a peer's.

Both cards are in the same guest, so kernel, CPU model, accelerator and core count are the same; rounds alternate
A B A B, and what is compared are medians.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from qemu.guest.bench.farend import FarEnd, echo, sink, source
from qemu.guest.guest import Guest

#: Where the guest finds this host behind QEMU's own network (argv.py), and what it calls itself there.
SLIRP_HOST: Final = "10.0.3.2"
SLIRP_GUEST: Final = "10.0.3.15/24"
_GRACE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Path:
    """One way from the guest to this process."""

    name: str
    sockets: Any  #: the module whose sockets are at the far end
    bind: str  #: the far end's address there
    reach: str  #: the same, as the guest sees it


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity: a figure per path and round."""

    name: str
    unit: str
    higher_is_better: bool
    figures: dict[str, list[float]]

    def median(self, path: str) -> float:
        return median(self.figures[path])

    def spread(self, path: str) -> float:
        """Half of the range, as a fraction of the median."""
        values = self.figures[path]
        middle = median(values)
        return (max(values) - min(values)) / 2 / middle if middle else 0.0

    def ratio(self, path: str, peer: str) -> float:
        """How much better `path` is than `peer`: above 1 is ahead, whatever the unit."""
        ours, theirs = self.median(path), self.median(peer)
        if not ours or not theirs:
            return 0.0
        return ours / theirs if self.higher_is_better else theirs / ours


def our_path(guest: Guest) -> Path:
    return Path("guestwire", guest.stack.socket, guest.gateway, guest.gateway)


def slirp_path(guest: Guest) -> Path:
    """The guest's second card, on QEMU's own user network; brings it up."""
    guest.run(f"ip addr add {SLIRP_GUEST} dev eth1 && ip link set eth1 up", check=True)
    return Path("slirp", socket, "127.0.0.1", SLIRP_HOST)


def guest_to_host(guest: Guest, path: Path, seconds: float) -> float:
    """Bulk TCP out of the guest, Gb/s as received."""
    with FarEnd(path.sockets, path.bind, sink) as far:
        guest.load("send", path.reach, far.port, seconds=seconds).result(timeout=seconds + _GRACE_SECONDS)
    return far.transfers[0].gbps


def host_to_guest(guest: Guest, path: Path, seconds: float) -> float:
    """Bulk TCP into the guest, Gb/s as received there."""
    with FarEnd(path.sockets, path.bind, source(seconds)) as far:
        figures = guest.load("recv", path.reach, far.port).result(timeout=seconds + _GRACE_SECONDS)
    return float(figures["gbps"])


def request_response(guest: Guest, path: Path, seconds: float) -> float:
    """One byte there and back on one connection, median in microseconds."""
    with FarEnd(path.sockets, path.bind, echo) as far:
        load = guest.load("rr", path.reach, far.port, seconds=seconds, size=1, response=1)
        figures = load.result(timeout=seconds + _GRACE_SECONDS)
    return float(figures["p50_us"])


def connect_request_response(guest: Guest, path: Path, seconds: float) -> float:
    """Connect, one byte there and back, close: per second."""
    with FarEnd(path.sockets, path.bind, echo) as far:
        load = guest.load("crr", path.reach, far.port, seconds=seconds, size=1, response=1)
        figures = load.result(timeout=seconds + _GRACE_SECONDS)
    return float(figures["count"]) / float(figures["seconds"])


Measure = Callable[[Guest, Path, float], float]

GUEST_ROWS: Final[tuple[tuple[str, str, bool, Measure], ...]] = (
    ("TCP guest to host", "Gb/s", True, guest_to_host),
    ("TCP host to guest", "Gb/s", True, host_to_guest),
    ("TCP request/response", "us", False, request_response),
    ("TCP connect/request/close", "/s", True, connect_request_response),
)


def measure(guest: Guest, paths: list[Path], *, seconds: float, rounds: int) -> Iterator[Row]:
    """Every row over every path, rounds alternating between the paths."""
    for name, unit, higher, row in GUEST_ROWS:
        figures: dict[str, list[float]] = {path.name: [] for path in paths}
        for _ in range(rounds):
            for path in paths:
                figures[path.name].append(row(guest, path, seconds))
        yield Row(name, unit, higher, figures)
