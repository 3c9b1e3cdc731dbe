"""What a whole run says: the header, and the summary that GitHub shows beside a job."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

from qemu.guest import accel
from qemu.guest.cache import cache_root
from qemu.guest.config import DEFAULT_QEMU

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.guest.plugin.settings import Settings

_VERSION_SECONDS: Final = 10.0
#: GitHub refuses summaries of more than 1 MiB.
_SECTION_BYTES: Final = 4000
_FAILURES_SHOWN: Final = 50


def header(settings: Settings) -> list[str]:
    """QEMU's version, the accelerator and why, the kernel. Never downloads or boots anything."""
    if shutil.which(DEFAULT_QEMU) is None:
        return [f"guests: no {DEFAULT_QEMU} on PATH: apt-get install qemu-system-x86"]
    verdict = accel.choose(DEFAULT_QEMU, allow_kvm=settings.accel != "tcg")
    return [f"guests: QEMU {qemu_version()}, {verdict}; kernel {_kernel(settings.kernel)}"]


@functools.cache
def qemu_version() -> str:
    try:
        done = subprocess.run(
            [DEFAULT_QEMU, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    words = done.stdout.split()
    return words[words.index("version") + 1] if "version" in words[:-1] else "unknown"


def _kernel(chosen: Path | None) -> str:
    if chosen is not None:
        return str(chosen)
    cached = sorted(cache_root().glob("kernel-*/boot/vmlinuz-*"))
    return cached[-1].name.removeprefix("vmlinuz-") if cached else "Debian's cloud kernel, downloaded when first used"


class StepSummary:
    """Writes what failed to the file GitHub shows as the job's summary. One per run: workers only report."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._failed: list[Any] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and any(key == "guest_artifacts" for key, _ in report.user_properties):
            self._failed.append(report)

    def pytest_sessionfinish(self) -> None:
        if not self._failed:
            return
        lines = ["## Guest tests that failed", "", "| test | kernel | accelerator | boot | run it again |"]
        lines.append("|---|---|---|---|---|")
        for report in self._failed[:_FAILURES_SHOWN]:
            facts = dict(report.user_properties)
            cells = [
                report.nodeid,
                *(str(facts.get(f"guest1_{key}", "")) for key in ("kernel", "accel", "boot_seconds")),
            ]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + f" | `{_cell(facts['guest_reproduce'])}` |")
        for report in self._failed[:_FAILURES_SHOWN]:
            for title, text in report.sections:
                if title.startswith("guest: "):
                    lines += ["", f"<details><summary>{report.nodeid}: {title.removeprefix('guest: ')}</summary>"]
                    lines += ["", "```", text[-_SECTION_BYTES:].replace("```", "'''"), "```", "</details>"]
        try:
            with open(self._path, "a", encoding="utf-8", errors="replace") as out:
                out.write("\n".join(lines) + "\n")
        except OSError as error:
            os.write(2, f"guestwire: cannot write {self._path}: {error.strerror}\n".encode())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
