"""Runs pytest on a project of a user's, in a process of its own, as he would."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from guest_tests.traces import SECONDS


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of pytest left behind."""

    code: int
    output: str
    place: Path

    def sections(self, title: str) -> list[str]:
        """The text below each line ``--- title ---`` in the output, up to the next such line."""
        found = []
        for part in self.output.split(f" {title} -")[1:]:
            lines = part.splitlines()[1:]
            ends = [n for n, line in enumerate(lines) if line.startswith(("-----", "_____", "====="))]
            found.append("\n".join(lines[: ends[0]] if ends else lines))
        assert found, f"no section {title!r} in\n{self.output}"
        return found

    def junit(self, test: str) -> dict[str, str]:
        """The properties of a test in the JUnit file."""
        for case in ET.parse(self.place / "junit.xml").iter("testcase"):
            if case.get("name") == test:
                return {each.get("name", ""): each.get("value", "") for each in case.iter("property")}
        raise AssertionError(f"no test {test} in the JUnit file")


def run_project(place: Path, source: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Run:
    """Write `source` as ``test_it.py`` into `place` and run it."""
    (place / "test_it.py").write_text(textwrap.dedent(source))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "--junitxml=junit.xml"]
    if not any(word.startswith("asyncio") for word in arguments):
        command += ["-p", "no:asyncio"]  # it warns in a project that has not made up its mind about it
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GUESTWIRE_", "GITHUB_", "PYTEST_"))}
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [*command, *arguments, "test_it.py"],
        cwd=place,
        env={**kept, "PYTHONPATH": path, "COLUMNS": "150", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=3 * SECONDS,
        check=False,
    )
    return Run(done.returncode, done.stdout, place)
