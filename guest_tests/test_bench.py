"""`make bench QUICK=1`: the harness itself, with a real guest and whichever peers this machine has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qemu.guest.bench.peers import OURS, SLIRP

ROWS = (
    "guest at mtu 1500: tcp guest to host,guest at mtu 1500: udp,guest at mtu 1500: idle,polling: tcp request,rig: udp"
)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "qemu.guest.bench", "--quick", "--rows", ROWS, "--output", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Targets" in done.stdout
    return directory


def test_the_rows_asked_for_are_measured_on_our_path_and_on_slirps(output: Path) -> None:
    sections = {section["title"]: section for section in json.loads((output / "bench.json").read_text())["sections"]}
    assert list(sections) == ["guest at MTU 1500", "polling", "driver rig"]
    rows = {row["name"]: row for row in sections["guest at MTU 1500"]["rows"]}
    assert rows["TCP guest to host"]["median"][OURS] > 0.01
    assert rows["TCP guest to host"]["median"][SLIRP] > 0.01
    assert rows["TCP guest to host, CPU of this process"]["median"][OURS] > 0
    assert rows["UDP guest to host"]["median"][OURS] > 0
    assert rows["UDP host to guest"]["median"][OURS] > 0
    assert "idle guest, CPU of this process" in rows
    assert "TCP request/response, median" not in rows


def test_a_peer_that_is_not_there_says_so(output: Path) -> None:
    for section in json.loads((output / "bench.json").read_text())["sections"]:
        for row in section["rows"]:
            for way in section["columns"] if len(section["reference"]) > 1 else ():
                assert row["median"].get(way) or way in row["notes"] or row["name"].startswith("idle")


def test_there_is_a_picture_and_markdown_of_the_last_run(output: Path) -> None:
    assert "</svg>" in (output / "bench.svg").read_text()
    command = [sys.executable, "-m", "qemu.guest.bench", "--markdown", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "### Guest at MTU 1500" in done.stdout


def test_words_that_name_no_row_are_an_error() -> None:
    command = [sys.executable, "-m", "qemu.guest.bench", "--quick", "--rows", "no such row"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no row has any of these in its name" in done.stderr
