"""The summary that GitHub shows beside a job: which guest tests failed, on what, and what there is to see."""

from __future__ import annotations

import os
from typing import Any, Final

#: GitHub refuses summaries of more than 1 MiB.
_SECTION_BYTES: Final = 4000
_FAILURES_SHOWN: Final = 50


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
