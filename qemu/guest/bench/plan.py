"""Which rows there are, and what each needs set up: one section after the other, those nobody asked for left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

from qemu.guest.bench import (
    conditions,
    cost,
    paths,
    peers,
    resources,
    rig,
    rig_bridge,
    rig_frames,
    rig_pairs,
    rows,
    sockets,
    targets,
    vsock,
)
from qemu.guest.bench.figure import Figure, Measured, Row
from qemu.guest.bench.peers import NAMES, OURS, PASST, SLIRP, TAP, NotComparable, Path
from qemu.guest.bench.rows import Measurement, Way
from qemu.guest.guest import Guest
from qemu.guest.qmp_client import QmpError

#: Column of the rig's tables: the rate by CPU time of our process.
PER_CPU: Final = "per CPU second"
#: There are many of these rows; each is measured for no longer than this.
VSOCK_SECONDS: Final = 0.3
RIG_SECONDS: Final = 0.7
#: Rows that compare us with ourselves: there are three columns of them.
VARIATION_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 5.0
#: A quick run of everything has so many measurements in each section that varies the first one.
_QUICK_ROWS: Final = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What of it is measured, and for how long."""

    seconds: float = 1.2
    rounds: int = 3
    wanted: tuple[str, ...] = ()  #: words, one of which is in "section: row"; (): everything
    passt: str | None = None  #: the program, or what to look for on PATH
    quick: bool = False
    say: Callable[[str], None] = lambda _: None

    def wants(self, section: str, name: str) -> bool:
        whole = f"{section}: {name}".lower()
        return not self.wanted or any(word in whole for word in self.wanted)

    def short(self, most: float) -> float:
        return min(self.seconds, most)

    @property
    def vsock_sizes(self) -> tuple[int, ...]:
        return vsock.SIZES[-1:] if self.quick else vsock.SIZES


@dataclass(slots=True)
class Section:
    """One table: rows that compare columns, or single figures."""

    title: str
    columns: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()  #: the columns ratios are given to
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


def sections(options: Options) -> Iterator[Section]:
    """Everything asked for, measured."""
    yield from _guest_1500(options)
    yield from _guest(options, targets.MTU_65520, rows.BULK, mtu=65520)
    yield from _guest(
        options, targets.NO_OFFLOAD, (rows.GUEST_TO_HOST, rows.HOST_TO_GUEST, rows.ROUND_TRIP), offload=False
    )
    yield from _rig(options)
    yield from _pairs(options)
    yield from _vsock_rig(options)
    yield from _stack_alone(options)


# -- with a guest -----------------------------------------------------------------------------------------------------

_EVERYTHING: Final = (*rows.BULK, *rows.DATAGRAMS, rows.ROUND_TRIP, rows.CONNECTS, rows.CONNECTS_THREADED)
_VSOCK: Final = "vsock with the guest"


def _guest_1500(options: Options) -> Iterator[Section]:
    """The guest most sections share."""
    title = targets.MTU_1500
    wanted = _wanted(options, title, _EVERYTHING)
    idle = options.wants(title, "idle guest, memory")
    others = {
        targets.NEIGHBOURS: _wanted(
            options, targets.NEIGHBOURS, (rows.GUEST_TO_HOST, rows.HOST_TO_GUEST, rows.ROUND_TRIP)
        ),
        targets.POLLING: _wanted(options, targets.POLLING, (rows.ROUND_TRIP_COST, rows.CONNECTS, rows.GUEST_TO_HOST)),
    }
    with_vsock = options.wants(_VSOCK, "")
    if not (wanted or idle or with_vsock or any(others.values())):
        return
    before = resources.anonymous_bytes()
    with ExitStack() as stack:
        options.say("booting the guest")
        guest = stack.enter_context(Guest(user_net=True, spare_ports=peers.PORTS))
        ours = peers.ours(guest)
        section = _section(guest, title)
        ways: list[Way] = [Way(OURS, ours)]
        if wanted or idle:
            notes = _add_peers(stack, options, guest, ways, 1500)
            section.rows += _measured(options, section, guest, wanted, ways, notes)
        if idle:
            options.say("letting the guest be idle")
            through = [way.path for way in ways]
            figures = resources.idle_guest(guest, 1.0 if options.quick else IDLE_SECONDS, through)
            section.rows.append(Row(figures[0].name, figures[0].unit, False, {OURS: [figures[0].value]}))
            section.figures += figures[1:] + resources.memory(before, guest, through)
        yield section
        for name, variants in (
            (
                targets.NEIGHBOURS,
                (
                    Way(conditions.ALONE, ours),
                    Way(conditions.BUSY, ours, conditions.busy_thread),
                    Way(conditions.BUSY_LEFT, ours, conditions.busy_thread_interval_left_alone),
                ),
            ),
            (
                targets.POLLING,
                (
                    Way(conditions.ADAPTIVE, ours),
                    Way(conditions.NEVER, ours, conditions.never_polling),
                    Way(conditions.ALWAYS, ours, conditions.always_polling),
                ),
            ),
        ):
            if others[name]:
                columns = tuple(way.name for way in variants)
                section = Section(name, columns, columns[:1])
                shorter = replace(options, seconds=options.short(VARIATION_SECONDS))
                section.rows += _measured(shorter, section, guest, others[name], variants, {})
                yield section
        if with_vsock:
            options.say(_VSOCK)
            section = Section(_VSOCK, (vsock.SOCKET,), ())
            section.rows += vsock.guest_rows(guest, options.short(VSOCK_SECONDS), options.rounds, options.vsock_sizes)
            yield section


def _guest(
    options: Options, title: str, measurements: Sequence[Measurement], *, mtu: int = 1500, offload: bool = True
) -> Iterator[Section]:
    wanted = _wanted(options, title, measurements)
    if not wanted:
        return
    with ExitStack() as stack:
        options.say(f"booting the {title}")
        guest = stack.enter_context(Guest(user_net=True, spare_ports=peers.PORTS, mtu=mtu, offload=offload))
        section = _section(guest, title)
        ways = [Way(OURS, peers.ours(guest))]
        notes = _add_peers(stack, options, guest, ways, mtu, offload=offload)
        section.rows += _measured(options, section, guest, wanted, ways, notes)
        yield section


def _section(guest: Guest, title: str) -> Section:
    verdict = guest.verdict
    facts = {"accelerator": f"{verdict.accelerator}: {verdict.reason}"} if verdict else {}
    return Section(title, NAMES, (PASST, SLIRP, TAP), facts=facts)


def _add_peers(
    stack: ExitStack, options: Options, guest: Guest, ways: list[Way], mtu: int, *, offload: bool = True
) -> dict[str, str]:
    """Plug every peer in that can be had; why the others cannot, by name."""
    notes: dict[str, str] = {}
    openings: dict[str, Callable[[], Path]] = {
        PASST: lambda: stack.enter_context(peers.passt(guest, peers.passt_program(options.passt), mtu=mtu)),
        SLIRP: lambda: peers.slirp(guest, mtu=mtu),
        TAP: lambda: stack.enter_context(peers.tap(guest, mtu=mtu, offload=offload)),
    }
    for name, opening in openings.items():
        options.say(f"plugging in {name}")
        try:
            ways.append(Way(name, opening()))
        except (NotComparable, QmpError) as reason:
            notes[name] = f"not comparable: {reason}"
    return notes


def _wanted(options: Options, title: str, measurements: Sequence[Measurement]) -> list[Measurement]:
    found = [each for each in measurements if options.wants(title, each.name)]
    if options.quick and not options.wanted and title != targets.MTU_1500:
        return found[:_QUICK_ROWS]
    return found


def _measured(
    options: Options,
    section: Section,
    guest: Guest,
    measurements: Sequence[Measurement],
    ways: Sequence[Way],
    notes: dict[str, str],
) -> Iterator[Row]:
    for each in measurements:
        options.say(f"{section.title}: {each.name}")
        yield from rows.measure(guest, (each,), ways, seconds=options.seconds, rounds=options.rounds, notes=notes)


# -- without --------------------------------------------------------------------------------------------------------

#: Rows of the driver rig that are rates: name, unit, what two copies beside it move through, and the measurement.
_RATES: Final[tuple[tuple[str, str, rig.WorkingSet | None, Callable[[float], Measured]], ...]] = (
    ("TCP driver to socket, 64 KiB superframes", "Gb/s", rig.TO_SOCKET, rig.guest_to_stack),
    ("TCP socket to driver, 64 KiB superframes", "Gb/s", rig.TO_DRIVER, rig.stack_to_guest),
    ("TCP driver to socket, 1500-byte frames", "Gb/s", rig.TO_SOCKET, lambda s: rig.guest_to_stack(s, frame=1460)),
    (
        "TCP driver to socket, 1500-byte frames, no offload",
        "Gb/s",
        rig.TO_SOCKET,
        lambda s: rig.guest_to_stack(s, frame=1460, offload=False),
    ),
    ("TCP socket to driver, no offload", "Gb/s", rig.TO_DRIVER, lambda s: rig.stack_to_guest(s, offload=False)),
    ("ring, 64-byte frames read one by one", "/s", None, rig_frames.ring_in),
    ("ring, 1514-byte frames read one by one", "/s", None, lambda s: rig_frames.ring_in(s, size=1514)),
    ("card, 64-byte frames read one by one", "/s", None, rig_frames.card_in),
    ("card, 1514-byte frames read one by one", "/s", None, lambda s: rig_frames.card_in(s, size=1514)),
    ("card, 64-byte frames to the driver", "/s", None, rig_frames.ring_out),
    ("UDP driver to socket, 64-byte frames", "/s", None, rig_frames.udp_in),
    ("UDP driver to socket, 64-byte frames, recvmmsg", "/s", None, lambda s: rig_frames.udp_in(s, batch=True)),
    ("UDP driver to socket, 64-byte frames, UDP_GRO", "/s", None, lambda s: rig_frames.udp_in(s, coalesce=True)),
    ("UDP socket to driver, 64-byte frames", "/s", None, rig_frames.udp_out),
    ("UDP socket to driver, 64-byte frames, sendmmsg", "/s", None, lambda s: rig_frames.udp_out(s, batch=True)),
    ("switch, 64-byte frames between two guests", "/s", None, rig_frames.switching),
    ("switch, 1514-byte frames between two guests", "/s", None, lambda s: rig_frames.switching(s, size=1514)),
)
#: Rows of two queue pairs: name, unit, and the measurement, of so many seconds with so many threads.
_PAIR_ROWS: Final[tuple[tuple[str, str, Callable[[float, int], float]], ...]] = (
    (targets.SWITCHED, "/s", lambda seconds, threads: rig_bridge.multiqueue(seconds, threads=threads).rate),
    (
        "64-byte frames switched to two pairs",
        "/s",
        lambda seconds, threads: rig_bridge.multiqueue(seconds, threads=threads, size=64).rate,
    ),
    (
        "superframes of 60 kB received, checksums to verify",
        "Gb/s",
        lambda seconds, threads: rig_pairs.pairs_in(seconds, workers=threads - 1),
    ),
)
_TRIP: Final = "round trip of a 1-byte segment"
#: The row that has a target in microseconds has more and shorter rounds: a shared core changes its pace by the second.
_TRIP_ROUNDS: Final = 4
_TRIP_WAYS: Final[dict[str, Callable[[], Any]]] = {
    "": nullcontext,
    ", busy thread": conditions.busy_thread,
    ", busy thread, interval left alone": conditions.busy_thread_interval_left_alone,
    ", never polls": conditions.never_polling,
}


def _rig(options: Options) -> Iterator[Section]:
    title = targets.RIG
    seconds = options.short(RIG_SECONDS)
    section = Section(title, (OURS, PER_CPU, targets.COPIES), (targets.COPIES,))
    for name, unit, through, measurement in _RATES:
        if not options.wants(title, name):
            continue
        options.say(f"{title}: {name}")
        figures: dict[str, list[float]] = {OURS: [], PER_CPU: []}
        for _ in range(options.rounds):
            measured = measurement(seconds)
            figures[OURS].append(measured.rate)
            figures[PER_CPU].append(measured.cpu)
            if through:
                figures.setdefault(targets.COPIES, []).append(rig.two_copies(min(seconds, 0.3), through))
        section.rows.append(Row(name, unit, True, figures))
    for suffix, around in _TRIP_WAYS.items():
        if not options.wants(title, _TRIP + suffix):
            continue
        options.say(f"{title}: {_TRIP}{suffix}")
        trips = []
        shorter = 1 if suffix else _TRIP_ROUNDS
        for _ in range(options.rounds * shorter):
            with around():
                trips.append(rig.round_trips(seconds / shorter))
        quantities = {"median": [t.median for t in trips], "99th percentile": [t.p99 for t in trips]}
        quantities["CPU of this process"] = [t.cpu for t in trips]
        if not suffix:  # which says whether the core was ours
            quantities["a thousand additions right after"] = [t.additions for t in trips]
        for what, values in quantities.items():
            section.rows.append(Row(f"{_TRIP}{suffix}, {what}", "us", False, {OURS: values}))
    if section.rows:
        yield section


def _pairs(options: Options) -> Iterator[Section]:
    title = targets.PAIRS
    seconds = options.short(RIG_SECONDS)
    section = Section(title, (OURS, targets.ONE_THREAD), (targets.ONE_THREAD,))
    for name, unit, measurement in _PAIR_ROWS:
        if not options.wants(title, name):
            continue
        options.say(f"{title}: {name}")
        figures: dict[str, list[float]] = {OURS: [], targets.ONE_THREAD: []}
        for _ in range(options.rounds):
            for threads, way in ((2, OURS), (1, targets.ONE_THREAD)):
                figures[way].append(measurement(seconds, threads))
        section.rows.append(Row(name, unit, True, figures))
    if section.rows:
        yield section


def _vsock_rig(options: Options) -> Iterator[Section]:
    title = "vsock on the driver rig"
    if not options.wants(title, ""):
        return
    options.say(title)
    found = list(vsock.rig_rows(options.short(VSOCK_SECONDS), options.rounds, options.vsock_sizes))
    ways = tuple(found[0].figures)
    yield Section(title, ways, (vsock.PAIR,), found)


def _stack_alone(options: Options) -> Iterator[Section]:
    seconds = options.short(RIG_SECONDS)
    counts = (0, 100) if options.quick else (0, 1_000, 10_000)
    works: dict[str, Callable[[], list[Figure]]] = {
        "a superframe of TCP from one stack to another, by stage": lambda: cost.superframe_stages(seconds),
        "packets without any offload, one core": lambda: cost.packet_rates(seconds),
        "connections that say nothing": lambda: cost.idle_connections(counts),
        "socket calls, beside the kernel's": lambda: list(sockets.figures(3 if options.quick else 9)),
        "bulk TCP over a simulated path": lambda: paths.figures(1, warm=1) if options.quick else paths.figures(10),
    }
    for title, work in works.items():
        if options.wants(title, ""):
            options.say(title)
            yield Section(title, figures=work())
