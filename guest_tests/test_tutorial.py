"""docs/tutorial.md does what it says: its tests are red, and green after the change it makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guest_tests.project import run_project

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"


@pytest.mark.long
def test_the_tutorial_goes_from_red_to_green(tmp_path: Path) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    first, tests, *_ = [text for kind, text in blocks if kind == "python"]
    red, green = [text for kind, text in blocks if kind == "sh" and text.startswith("#!")]
    source = f"{tests}\n{first}"
    (tmp_path / "agent.sh").write_text(red)
    run = run_project(tmp_path, source)
    assert "1 failed, 2 passed" in run.output, run.output
    assert "wget: server returned error: HTTP/1.1 503 Service Unavailable" in run.output
    evidence = run.sections("guest: evidence")[0].splitlines()
    assert "pytest test_it.py::test_it_tries_again" in evidence
    assert any(line.endswith("net.pcapng") for line in evidence)
    (tmp_path / "agent.sh").write_text(green)
    run = run_project(tmp_path, source)
    assert "3 passed" in run.output, run.output
