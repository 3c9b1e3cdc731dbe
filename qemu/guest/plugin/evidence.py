"""What a failing test is shown with: consoles, complaints of kernels, QMP events, sockets, rings, frames, and how to
run it again. Collected while the guests still run, in the report's sections and in a directory of its own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from qemu.guest.console import TAIL_LINES
from qemu.guest.errors import GuestError
from qemu.guest.plugin.sockets import ring_table, socket_table

if TYPE_CHECKING:
    from qemu.guest.guest import Guest
    from qemu.guest.plugin.world import World

_EVENTS_SHOWN: Final = 20
_NAME_BYTES: Final = 100


def complete(world: World, item: pytest.Item, call: pytest.CallInfo[None], report: Any) -> None:
    """Add properties to every report of the test's call or failed set-up; evidence where it failed or is wanted."""
    _blame(world, call, report)
    if call.when == "setup" and not report.failed:
        return
    world.reported = True
    for key, value in properties(world):
        item.user_properties.append((key, value))
    report.user_properties = list(item.user_properties)
    if world.settings.report is not None:
        from qemu.guest.plugin.timeline import timeline

        report.guest_timeline = timeline(world)
    keep_pcap = world.settings.pcap == "always" or (world.settings.pcap == "on-failure" and report.failed)
    if not (report.failed or world.settings.keep or world.settings.pcap == "always"):
        return
    directory = world.settings.artifacts / directory_name(item.nodeid)
    sections = list(collect(world, report))
    written = write(directory, world, sections, report, pcap=keep_pcap)
    if report.failed:
        again = reproduce(world, item)
        sections.append(("guest: evidence", "\n".join([*(str(path) for path in written), "run it again:", again])))
        report.sections.extend(sections)
        report.user_properties.append(("guest_artifacts", str(directory)))
        report.user_properties.append(("guest_reproduce", again))


def properties(world: World) -> Iterator[tuple[str, object]]:
    """JUnit properties: what the guests ran on."""
    for name, guest in world.named():
        verdict = guest.verdict
        if verdict is None:
            continue
        yield f"{name}_accel", str(verdict)
        yield f"{name}_kernel", next((value for key, value in guest.report if key == "kernel"), "")
        yield f"{name}_boot_seconds", f"{guest.boot_seconds:.3f}"
    if world.guests:
        from qemu.guest.arch import FACTS
        from qemu.guest.plugin.summary import qemu_version

        yield "qemu", qemu_version(FACTS[world.settings.arch].qemu)
        yield "seed", str(world.seed)


def collect(world: World, report: Any) -> Iterator[tuple[str, str]]:
    """(title, text) of everything worth a look, the most telling first."""
    findings = world.findings()
    if findings:
        yield "guest: the kernel complained", "\n\n".join(f"{name}: {each.kind}\n{each}" for name, each in findings)
    for service in world.lan.services:
        if service.errors:
            yield f"guest: the handler of {service.name}:{service.port} failed", "\n".join(service.errors)
    for name, guest in world.named():
        yield from _of_guest(name, guest, str(report.longrepr) if report.failed else "")
    if world.lan.opened and not world.lan.network.closed:
        yield "guest: sockets of the gateway", socket_table(world.lan.stack)


def _of_guest(name: str, guest: Guest, shown: str) -> Iterator[tuple[str, str]]:
    if not guest.started:
        return
    tail = guest.console.tail()
    if tail and tail.rpartition("\n")[2] not in shown:  # a command's failure shows it already
        yield f"guest: {name}'s console, last lines", tail
    journal = journal_lines(guest)
    if journal:
        yield f"guest: {name}'s journal, last lines", "\n".join(journal[-TAIL_LINES:])
    if guest.shares:
        yield f"guest: what {name} sees of this machine", "\n".join(map(str, guest.shares))
    errors = guest.qemu_stderr
    if errors.strip():
        yield f"guest: {name}'s QEMU said", errors
    events = [json.dumps(event) for event in guest.qmp_events[-_EVENTS_SHOWN:]]
    if events:
        yield f"guest: {name}'s last QMP events", "\n".join(events)
    rings = ring_table(guest)
    if rings:
        yield f"guest: {name}'s rings", rings


def write(directory: Path, world: World, sections: list[tuple[str, str]], report: Any, *, pcap: bool) -> list[Path]:
    """Write it down; the paths. A disk that is full costs the evidence, not the test."""
    written: list[Path] = []
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name, guest in world.named():
            if guest.started:
                (directory / f"{name}-console.log").write_text(guest.console.text)
                (directory / f"{name}-qemu.txt").write_text(shlex.join(guest.argv) + "\n")
                written.append(directory / f"{name}-console.log")
                journal = journal_lines(guest)
                if journal:
                    (directory / f"{name}-journal.log").write_text("\n".join(journal) + "\n")
                    written.append(directory / f"{name}-journal.log")
        text = [f"=== {title}\n{body}\n" for title, body in sections]
        (directory / "report.txt").write_text("\n".join([f"{report.nodeid} {report.outcome}\n", *text]))
        written.append(directory / "report.txt")
        if pcap and world.lan.opened and not world.lan.network.closed and world.lan.ring.frames:
            world.lan.write_pcap(directory / "net.pcapng", comment=report.nodeid)
            written.append(directory / "net.pcapng")
    except OSError as error:
        sections.append(("guest: evidence", f"could not be written to {directory}: {error.strerror}"))
    return written


def journal_lines(guest: Guest) -> list[str]:
    """The journal that the guest's systemd forwarded; empty where it was not asked to, or does not."""
    try:
        return [str(entry) for entry in guest.journal] if guest.config.systemd else []
    except GuestError:
        return []


def reproduce(world: World, item: pytest.Item) -> str:
    """The command that runs this test alone, with what was chosen."""
    return shlex.join(["pytest", item.nodeid, *world.settings.given])


def directory_name(nodeid: str) -> str:
    """A directory's name that tells the test, and is no longer or stranger than file systems like."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", nodeid.replace("::", "-").replace("/", "-")).strip("-.")
    if len(name) <= _NAME_BYTES:
        return name
    import hashlib

    return f"{name[: _NAME_BYTES - 9]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}"


def _blame(world: World, call: pytest.CallInfo[None], report: Any) -> None:
    """A test that would pass although a kernel complained or a handler failed does not, and shows the lines."""
    for _, guest in world.named():
        guest.settle_findings()
    faults = world.faults()
    if call.when == "call" and faults and report.passed:
        report.outcome = "failed"
        report.longrepr = "\n\n".join(faults)
