"""docs/rules.md says which test shows which rule: those tests exist, and each ring rule has some of its number."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rules.md"
_CITED = re.compile(r"`((?:[a-z_]+/)*test_\w+\.py)`|`(test_\w+)`")


def names_in(file: str) -> set[str]:
    path = ROOT / file if "/" in file else Path(__file__).parent / file
    return set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))


def test_every_test_the_page_names_exists() -> None:
    cited = 0
    for line in PAGE.read_text().splitlines():
        file = ""
        for named, test in _CITED.findall(line):
            file = named or file
            if test:
                assert test in names_in(file), f"{file} has no {test}"
                cited += 1
    assert cited


def test_every_rule_of_the_rings_has_names_in_its_number() -> None:
    section = PAGE.read_text().split("## 4.2", 1)[1].split("## 4.3", 1)[0]
    numbers = re.findall(r"^\| (\d+) \|", section, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 17)]
    names = names_in("test_ring_rules.py")
    for number in numbers:
        assert any(name.startswith(f"test_rule_{number}_") for name in names), f"no test of rule {number}"
