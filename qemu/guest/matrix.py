"""The same tests on many kernels and images: a matrix of pytest runs, carried out by any `concurrent.futures` executor.

Theory of operation
-------------------
A cell is one kernel with one image; running it is `pytest` with ``--guest-kernel`` and ``--guest-image``, in a process
of its own, so cells disturb each other no more than sessions do, and an executor may be of threads, of processes, or of
other machines (``dask.distributed.Client(...).get_executor()``). A cell goes there and its outcome comes back as plain
values that pickle. What it names by path (kernels, images, tests) must be there under that path, and Guestwire
installed; each machine keeps its own templates.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

#: pytest's own exit codes that mean: it ran, and tests passed or failed.
_PASSED, _FAILED = 0, 1
EXIT_HARNESS: Final = 125
_OUTPUT_KEPT: Final = 64 * 1024
DEFAULT_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Target:
    """A kernel and the modules that belong to it; None: what Guestwire has by default."""

    kernel: str | None = None
    modules: str | None = None

    @property
    def name(self) -> str:
        return _short(self.kernel) if self.kernel else "default"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of pytest."""

    target: Target
    image: str | None
    arguments: tuple[str, ...]  #: tests and options for pytest
    directory: str  #: where pytest is started
    seconds: float = DEFAULT_SECONDS

    @property
    def name(self) -> str:
        return f"{self.target.name} x {_short(self.image) if self.image else 'busybox'}"

    def command(self) -> list[str]:
        options = [
            *([f"--guest-kernel={self.target.kernel}"] if self.target.kernel else []),
            *([f"--guest-modules={self.target.modules}"] if self.target.modules else []),
            *([f"--guest-image={self.image}"] if self.image else []),
        ]
        return [sys.executable, "-m", "pytest", *options, *self.arguments]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell."""

    cell: Cell
    code: int  #: pytest's exit code; 125 if it could not be run or did not end
    passed: int
    failed: tuple[str, ...]  #: names of the tests
    seconds: float
    output: str  #: the end of what pytest printed

    @property
    def succeeded(self) -> bool:
        return self.code == _PASSED


def cells(
    targets: Sequence[Target], images: Sequence[str | None], arguments: Sequence[str], directory: Path
) -> list[Cell]:
    """Every kernel with every image."""
    made = itertools.product(targets or [Target()], images or [None])
    return [Cell(target, image, tuple(arguments), str(directory)) for target, image in made]


def run(executor: Executor, wanted: Sequence[Cell]) -> Iterator[Outcome]:
    """Outcomes as they come. A cell that is lost with its worker is an outcome too; nothing is raised for it."""
    waiting = {executor.submit(run_cell, cell): cell for cell in wanted}
    for future in as_completed(waiting):
        try:
            yield future.result()
        except Exception as error:  # noqa: BLE001 - whatever an executor has to say of a lost worker
            yield Outcome(waiting[future], EXIT_HARNESS, 0, (), 0.0, f"{type(error).__name__}: {error}")


def run_cell(cell: Cell) -> Outcome:
    """Run one cell here and now."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="guestwire-") as directory:
        junit = Path(directory, "junit.xml")
        command = [*cell.command(), f"--junitxml={junit}"]
        try:
            done = subprocess.run(
                command,
                cwd=cell.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=cell.seconds,
                check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(word for word in sys.path if word)},
            )
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")
            code, output = EXIT_HARNESS, f"{said}\nnot ended after {cell.seconds:g} s"
        except OSError as error:
            code, output = EXIT_HARNESS, f"cannot run pytest in {cell.directory}: {error.strerror}"
        passed, failed = _read_junit(junit)
    return Outcome(cell, code, passed, failed, time.monotonic() - begun, output[-_OUTPUT_KEPT:])


def table(outcomes: Sequence[Outcome]) -> str:
    """One line for each cell: what, how it went, how long."""
    lines = []
    for each in sorted(outcomes, key=lambda outcome: outcome.cell.name):
        if each.code in (_PASSED, _FAILED):
            verdict = f"{each.passed} passed" + (f", {len(each.failed)} failed" if each.failed else "")
        else:
            verdict = f"no result (exit code {each.code})"
        lines.append((each.cell.name, verdict, f"{each.seconds:.1f} s"))
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(3)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _read_junit(path: Path) -> tuple[int, tuple[str, ...]]:
    try:
        tests = list(ET.parse(path).iter("testcase"))  # noqa: S314 - pytest wrote it, in a directory of ours
    except (OSError, ET.ParseError):
        return 0, ()
    bad = [case for case in tests if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in tests if case.find("skipped") is not None]
    names = tuple(f"{case.get('classname', '')}::{case.get('name', '')}" for case in bad)
    return len(tests) - len(bad) - len(skipped), names


def _short(path: str) -> str:
    """The end of a path that tells it apart: a kernel is often called bzImage."""
    parts = Path(path).parts
    return parts[-1] if not parts[-1].startswith(("bzImage", "vmlinux", "vmlinuz")) else "/".join(parts[-2:])
