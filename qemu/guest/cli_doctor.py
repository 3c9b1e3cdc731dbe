"""`guestwire doctor`: what this machine has, what it lacks, and how to get it."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from qemu.guest import accel
from qemu.guest.agent.build import agent_entry
from qemu.guest.arch import FACTS
from qemu.guest.cache import cache_root
from qemu.guest.cli import EXIT_MISSING
from qemu.guest.config import DEFAULT_MEMORY_MIB, DEFAULT_QEMU
from qemu.guest.elf import ElfError, closure
from qemu.guest.image import busybox_entry
from qemu.guest.kernel import cache_entry

#: A guest's memory, QEMU's own and this process's, in MiB.
_NEEDED_MIB: Final = DEFAULT_MEMORY_MIB + 256
_VERSION_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `ok` None: not as it should be, but guests run without it."""

    what: str
    ok: bool | None
    detail: str
    remedy: str = ""


@click.command()
@click.option("--qemu", default=DEFAULT_QEMU, show_default=True, help="QEMU's name or path.")
def doctor(qemu: str) -> int:
    """Check what this machine has and lacks to run guests, and say how to get it.

    Exit code: 0 if guests can run, 77 if something they need is missing.
    """
    from rich.console import Console
    from rich.table import Table

    findings = examine(qemu)
    table = Table(box=None, show_header=False, pad_edge=False)
    marks = {True: "[green]ok[/]", False: "[red]missing[/]", None: "[yellow]note[/]"}
    for finding in findings:
        table.add_row(marks[finding.ok], finding.what, finding.detail)
        if finding.remedy:
            table.add_row("", "", f"[bold]{finding.remedy}[/]")
    Console(highlight=False, soft_wrap=True).print(table)
    return 0 if all(finding.ok is not False for finding in findings) else EXIT_MISSING


def examine(qemu: str) -> list[Finding]:
    checks: tuple[Callable[[], Finding], ...] = (
        _machine,
        lambda: _qemu(qemu),
        lambda: _accelerator(qemu),
        _kernel,
        _busybox,
        _compiler,
        _extension,
        _memory,
        _memfd,
        _aarch64,
    )
    return [check() for check in checks]


def _machine() -> Finding:
    name = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    usable = platform.system() == "Linux" and platform.machine() == "x86_64"
    return Finding("machine", usable, name, "" if usable else "guests need Linux on x86-64")


def _qemu(name: str) -> Finding:
    found = shutil.which(name)
    if found is None:
        return Finding("QEMU", False, f"no {name} on PATH", "apt-get install qemu-system-x86")
    try:
        done = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("QEMU", False, f"{found} does not run: {error}", "apt-get install --reinstall qemu-system-x86")
    version = done.stdout.partition("\n")[0].removeprefix("QEMU emulator version ")
    return Finding("QEMU", done.returncode == 0, f"{found}, {version}")


def _accelerator(qemu: str) -> Finding:
    verdict = accel.choose(qemu)
    return Finding("accelerator", True if verdict.accelerator == "kvm" else None, str(verdict))


def _kernel() -> Finding:
    cached = sorted((cache_root() / cache_entry("x86_64", "cloud")).glob("boot/vmlinuz-*"))
    if cached:
        return Finding("guest kernel", True, f"{cached[-1].name.removeprefix('vmlinuz-')} in the cache")
    if shutil.which("apt-get") is not None:
        return Finding("guest kernel", True, "not in the cache yet; it is fetched (30 MB) when first needed")
    return Finding("guest kernel", False, "none in the cache, and no apt-get to fetch it with", "pass --kernel FILE")


def _busybox() -> Finding:
    found = shutil.which("busybox")
    remedy = "apt-get install busybox-static"
    if found is None:
        return Finding("busybox", False, "none on PATH", remedy)
    try:
        libraries = list(closure(Path(found)))
    except ElfError as error:
        return Finding("busybox", False, f"{found}: {error}", remedy)
    if libraries:
        return Finding("busybox", None, f"{found} is not static: it is packed with {len(libraries)} libraries", remedy)
    return Finding("busybox", True, f"{found}, static")


def _compiler() -> Finding:
    cached = sorted(cache_root().glob("agent-*/agent"))
    found = shutil.which("gcc")
    if found is None and not cached:
        return Finding("C compiler", False, "none, and no guest agent in the cache", "apt-get install gcc libc6-dev")
    return Finding("C compiler", True, found or "none, but the guest agent is in the cache")


def _extension() -> Finding:
    try:
        module = importlib.import_module("vhost_user._vring")
    except ImportError as error:
        return Finding("ring extension", False, str(error), "pip install . (it needs gcc and python3-dev)")
    return Finding("ring extension", True, Path(str(module.__file__)).name)


def _memory() -> Finding:
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) // 1024
    enough = available >= _NEEDED_MIB
    remedy = "" if enough else f"a guest of {DEFAULT_MEMORY_MIB} MiB needs about {_NEEDED_MIB}: run with less --memory"
    return Finding("memory", True if enough else None, f"{available} MiB available", remedy)


def _memfd() -> Finding:
    try:
        os.close(os.memfd_create("guestwire-doctor"))
    except OSError as error:
        return Finding("shared memory", False, f"memfd_create: {error.strerror}", "allow memfd_create in this sandbox")
    return Finding("shared memory", True, "memfd works (guest memory is not limited by /dev/shm)")


def _aarch64() -> Finding:
    """What aarch64 guests need besides: nobody misses it who has none."""
    facts, root = FACTS["aarch64"], cache_root()
    lacking = []
    if shutil.which(facts.qemu) is None:
        lacking.append((facts.qemu, facts.qemu_package))
    if shutil.which(facts.compiler) is None and not (root / agent_entry(facts.compiler)).is_dir():
        lacking.append((facts.compiler, facts.compiler_packages))
    if lacking:
        names, packages = zip(*lacking, strict=True)
        return Finding("aarch64 guests", None, f"no {' and no '.join(names)}", f"apt-get install {' '.join(packages)}")
    fetched = all((root / entry).is_dir() for entry in (cache_entry("aarch64", "cloud"), busybox_entry("aarch64")))
    if not fetched and shutil.which("apt-get") is None:
        return Finding("aarch64 guests", None, "no kernel in the cache, and no apt-get to fetch it with")
    return Finding("aarch64 guests", True, "under TCG" + ("" if fetched else "; kernel and busybox are fetched first"))
