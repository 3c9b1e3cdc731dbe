"""docs/rfc.md says what is done about each section of each RFC: the tests it names exist, and no RFC is forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rfc.md"

ROOMS = ("stack/tests", "stack/tests/tcp", "stack/tests/services", ".")
"""Where the page's file names start, as its head says."""

REQUIRED = {
    "IP": (791, 815, 5722, 8200, 1191, 8201, 4821, 8899, 6724, 1122, 1812),
    "ICMP and groups": (792, 4443, 2236, 3376, 2710, 3810),
    "neighbours": (826, 4861, 4862, 5227, 8106),
    "services": (1034, 1035, 2131, 2132, 8415),
    "UDP": (768,),
    "TCP": (9293, 7323, 6298, 6528, 6191, 1337, 5961, 4987, 7413, 5482, 6093),
    "TCP loss recovery": (2018, 2883, 6675, 8985, 6937, 9937, 3042, 5682),
    "TCP congestion control": (5681, 6582, 9438, 9406, 3168, 8511, 6928),
}
"""RFCs that have a section on the page, by layer."""

STATUSES = ("implemented", "chosen", "not applicable", "beyond the RFC", "see RFC ")

_CITED = re.compile(r"`((?:[\w.]+/)*)(test_\w+)?(\.py)?(?:::(test_\w+))?`")


@cache
def names_in(file: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^(?:    )?(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))


def file_named(folder: str, module: str) -> Path | None:
    found = ((ROOT / room / folder / f"{module}.py").resolve() for room in ROOMS)
    return next((path for path in found if path.is_file()), None)


def missing_in(line: str) -> Iterator[str]:
    """What `line` cites and is not there. A test without file is of the file named last in the line."""
    file: Path | None = None
    for cited in _CITED.finditer(line):
        folder, module, suffix, test = cited.groups()
        if not (module or test):
            continue
        named = file_named(folder, module) if module else None
        if named is not None:
            file = named
        elif module and not (suffix or test or folder):
            test = module  # a test's name alone
        elif module:
            yield cited[0]
            continue
        if test and (file is None or test not in names_in(file)):
            yield cited[0]


def rows() -> Iterator[tuple[str, str, str]]:
    """Heading, section and status of each row of the page's tables."""
    heading = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| ") and not line.startswith("| section |"):
            section, _, status = line.strip("| ").partition(" | ")
            yield heading, section, status


def test_every_test_the_page_names_exists() -> None:
    """Each file and each test that is cited is there."""
    lines = PAGE.read_text().splitlines()
    missing = [f"line {number}: {what}" for number, line in enumerate(lines, 1) for what in missing_in(line)]
    assert not missing, "\n".join(missing)
    assert sum(len(_CITED.findall(line)) for line in lines) > 200


@pytest.mark.parametrize("layer", REQUIRED)
def test_no_rfc_is_forgotten(layer: str) -> None:
    """Each RFC the stack is to follow has a heading of its own or shares one, with rows below it."""
    headings = {int(number) for heading, _, _ in rows() for number in re.findall(r"\b\d{3,4}\b", heading)}
    assert not set(REQUIRED[layer]) - headings


def test_every_row_has_a_status_and_what_is_implemented_names_its_test() -> None:
    """A row is implemented and says where that is shown, or chosen otherwise or not applicable and says why."""
    for heading, section, status in rows():
        where = f"{heading}: {section}"
        assert status.startswith(STATUSES), where
        if status.startswith("implemented"):
            shown = "`test_" in status or "::test_" in status or "/test_" in status
            assert shown or re.search(r"RFC \d+", status), f"{where}: no test named"
        elif not status.startswith("see RFC "):
            assert len(status) > len("not applicable: "), f"{where}: no reason"
