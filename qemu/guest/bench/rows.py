"""Rows measured with a real guest: its load generator against the far end, over our card and over a peer's.

All cards are in the same guest, so kernel, CPU model, accelerator and core count are the same; rounds alternate
A B A B, and what is compared are medians. One measurement may give several rows: a bulk transfer says how fast it was
and what it cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from qemu.guest.bench.datagrams import DatagramSink, DatagramSource
from qemu.guest.bench.farend import FarEnd, echo, sink, source
from qemu.guest.bench.figure import Row
from qemu.guest.bench.meter import Meter
from qemu.guest.bench.peers import OURS, Path
from qemu.guest.errors import GuestDiedError, GuestError
from qemu.guest.guest import Guest

_GRACE_SECONDS: Final = 15.0
#: The far end would go on for so much longer than the guest listens.
_LONGER_SECONDS: Final = 2.0
#: Payload of a datagram that fills an Ethernet frame.
DATAGRAM: Final = 1472

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Way:
    """A column of a table: a path, and what is different while it is measured."""

    name: str
    path: Path
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True)
class Quantity:
    """A row that comes of a measurement: its name after the measurement's, and what it is in."""

    key: str
    suffix: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is done with the guest over each path, and what it says."""

    name: str
    measure: Callable[[Guest, Path, float], Figures]
    quantities: tuple[Quantity, ...]


def guest_to_host(guest: Guest, path: Path, seconds: float, streams: int = 1) -> Figures:
    """Bulk TCP out of the guest, as received."""
    with FarEnd(path.sockets, path.bind, sink) as far, Meter(guest, path) as meter:
        loads = [guest.load("send", path.reach, far.port, seconds=seconds) for _ in range(streams)]
        for load in loads:
            load.result(timeout=seconds + _GRACE_SECONDS)
    giga = sum(transfer.bytes for transfer in far.transfers) * 1e-9
    if not giga:
        raise GuestError("no byte arrived")
    took = max(t.ended for t in far.transfers) - min(t.began for t in far.transfers)
    return {"gbps": 8 * giga / max(took, 1e-6), "own": meter.own / giga, "host": meter.host / giga}


def host_to_guest(guest: Guest, path: Path, seconds: float, streams: int = 1) -> Figures:
    """Bulk TCP into the guest, as received there. The guest ends it: passt loses ends of streams (seen with two)."""
    with FarEnd(path.sockets, path.bind, source(seconds + _LONGER_SECONDS)) as far, Meter(guest, path) as meter:
        loads = [guest.load("recv", path.reach, far.port, seconds=seconds) for _ in range(streams)]
        results = [load.result(timeout=seconds + _GRACE_SECONDS) for load in loads]
        ended = time.monotonic()
    giga = sum(int(result["bytes"]) for result in results) * 1e-9
    if not giga:
        raise GuestError("no byte arrived")
    gbps = float(results[0]["gbps"])
    if streams > 1:  # each says how long it took by itself, which may be one after the other
        gbps = 8 * giga / (ended - min(transfer.began for transfer in far.transfers))
    return {"gbps": gbps, "own": meter.own / giga, "host": meter.host / giga}


def datagrams_out(guest: Guest, path: Path, seconds: float) -> Figures:
    """Datagrams out of the guest as fast as it can, as received."""
    with DatagramSink(path.sockets, path.bind) as far:
        load = guest.load("send", path.reach, far.port, family="udp", seconds=seconds, size=DATAGRAM)
        load.result(timeout=seconds + _GRACE_SECONDS)
    return {"gbps": far.transfer.gbps}


def datagrams_in(guest: Guest, path: Path, seconds: float) -> Figures:
    """Datagrams into the guest as fast as the far end can, as received there."""
    with DatagramSource(path.sockets, path.bind, seconds, DATAGRAM) as far:
        load = guest.load("recv", path.reach, far.port, family="udp", size=2048, timeout=1.0)
        figures = load.result(timeout=seconds + _GRACE_SECONDS)
    return {"gbps": float(figures["gbps"])}


def request_response(guest: Guest, path: Path, seconds: float) -> Figures:
    """One byte there and back on one connection, microseconds; and what one cost this process in CPU time."""
    with FarEnd(path.sockets, path.bind, echo) as far, Meter(guest, path) as meter:
        load = guest.load("rr", path.reach, far.port, seconds=seconds, size=1, response=1)
        figures = load.result(timeout=seconds + _GRACE_SECONDS)
    cost = meter.own / max(int(figures["count"]), 1) * 1e6
    return {"median": float(figures["p50_us"]), "p99": float(figures["p99_us"]), "own": cost}


def connect_request_response(guest: Guest, path: Path, seconds: float, *, threads: bool = False) -> Figures:
    """Connect, one byte there and back, close: per second. `threads`: the far end makes one for each connection."""
    with FarEnd(path.sockets, path.bind, echo, one_by_one=not threads) as far:
        load = guest.load("crr", path.reach, far.port, seconds=seconds, size=1, response=1)
        figures = load.result(timeout=seconds + _GRACE_SECONDS)
    return {"rate": float(figures["count"]) / float(figures["seconds"])}


_RATE: Final = Quantity("gbps", "", "Gb/s", True)
_COSTS: Final = (
    Quantity("own", ", CPU of this process", "s/GB", False),
    Quantity("host", ", CPU of the host without the guest's", "s/GB", False),
)
_TRIP: Final = (Quantity("median", ", median", "us", False), Quantity("p99", ", 99th percentile", "us", False))

GUEST_TO_HOST: Final = Measurement("TCP guest to host", guest_to_host, (_RATE, *_COSTS))
HOST_TO_GUEST: Final = Measurement("TCP host to guest", host_to_guest, (_RATE, *_COSTS))
ROUND_TRIP: Final = Measurement("TCP request/response", request_response, _TRIP)
ROUND_TRIP_COST: Final = Measurement(
    "TCP request/response", request_response, (*_TRIP, Quantity("own", ", CPU of this process", "us", False))
)
_PER_SECOND: Final = (Quantity("rate", "", "/s", True),)
CONNECTS: Final = Measurement("TCP connect/request/close", connect_request_response, _PER_SECOND)
CONNECTS_THREADED: Final = Measurement(
    "TCP connect/request/close, a thread each",
    lambda g, p, s: connect_request_response(g, p, s, threads=True),
    _PER_SECOND,
)
BULK: Final = (
    GUEST_TO_HOST,
    HOST_TO_GUEST,
    Measurement("TCP guest to host, 8 streams", lambda g, p, s: guest_to_host(g, p, s, 8), (_RATE,)),
    Measurement("TCP host to guest, 8 streams", lambda g, p, s: host_to_guest(g, p, s, 8), (_RATE,)),
)
DATAGRAMS: Final = (
    Measurement("UDP guest to host", datagrams_out, (_RATE,)),
    Measurement("UDP host to guest", datagrams_in, (_RATE,)),
)


def measure(
    guest: Guest,
    measurements: Sequence[Measurement],
    ways: Sequence[Way],
    *,
    seconds: float,
    rounds: int,
    notes: dict[str, str] | None = None,
) -> Iterator[Row]:
    """Every measurement over every way, rounds alternating between the ways.

    A peer that fails has no figures in that row, and a note; what fails on our own path is raised. `notes`: by way, why
    it is not there at all.
    """
    for each in measurements:
        rows = [
            Row(each.name + q.suffix, q.unit, q.higher_is_better, {way.name: [] for way in ways}, dict(notes or {}))
            for q in each.quantities
        ]
        for _ in range(rounds):
            for way in ways:
                if way.name in rows[0].notes:
                    continue
                try:
                    with way.around():
                        figures = each.measure(guest, way.path, seconds)
                except GuestDiedError:
                    raise
                except (GuestError, OSError) as error:
                    if way.path.name == OURS:
                        raise
                    for row in rows:
                        row.figures[way.name].clear()
                        row.notes[way.name] = str(error).splitlines()[0]
                    continue
                for row, quantity in zip(rows, each.quantities, strict=True):
                    row.figures[way.name].append(figures[quantity.key])
        yield from rows
