"""A bench run as JSON for machines, and that as tables for people. Ratios first: only they carry over."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from qemu.guest.bench import targets
from qemu.guest.bench.figure import Row
from qemu.guest.bench.peers import OURS
from qemu.guest.bench.plan import Section

_NOTHING: Final = "-"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table in words. The first column is text, the others are numbers."""

    title: str
    header: list[str]
    cells: list[list[str]]
    notes: tuple[str, ...] = ()  #: lines below it


def content(sections: Sequence[Section], facts: dict[str, str]) -> dict[str, Any]:
    """Everything measured, medians and ratios and verdicts with it."""
    machine = {"kernel": platform.release(), "python": platform.python_version(), "cores": os.cpu_count(), **facts}
    for section in sections:
        machine |= section.facts
    judged = [
        verdict.as_dict()
        for section in sections
        for row in section.rows
        for verdict in targets.judge(section.title, row)
    ]
    return {"machine": machine, "targets": judged, "sections": [_section(section) for section in sections]}


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "columns": list(section.columns),
        "reference": list(section.reference),
        "rows": [_row(section, row) for row in section.rows],
        "figures": [asdict(figure) for figure in section.figures],
    }


def _row(section: Section, row: Row) -> dict[str, Any]:
    measured = [way for way in row.figures if row.figures[way]]
    first = section.columns[0]
    # Ratios say how many times better the first column is; beside a variation, how much better that is.
    pairs = [(way, peer) for peer in section.reference for way in measured if way != peer]
    if first not in section.reference:
        pairs = [(way, peer) for way, peer in pairs if way == first or len(section.reference) == 1]
    return {
        "name": row.name,
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "median": {way: row.median(way) for way in measured},
        "spread": {way: row.spread(way) for way in measured},
        "ratios": [[way, peer, row.ratio(way, peer)] for way, peer in pairs if row.ratio(way, peer)],
        "figures": row.figures,
        "notes": row.notes,
    }


def save(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


def grids(found: dict[str, Any]) -> list[Grid]:
    """The tables of a run: its targets, then each section."""
    tables = [_targets(found["targets"])] if found["targets"] else []
    for section in found["sections"]:
        if section["rows"]:
            peers = section["columns"][0] == OURS and len(section["reference"]) > 1
            tables.append(_beside_peers(section) if peers else _beside_one(section))
        if section["figures"]:
            cells = [[f["name"], f"{_number(f['value'])} {f['unit']}", f["beside"]] for f in section["figures"]]
            tables.append(Grid(section["title"], ["row", "figure", "beside"], cells))
    return tables


def _targets(judged: list[dict[str, Any]]) -> Grid:
    cells = []
    for each in judged:
        met = each["met"]
        verdict = "not comparable" if met is None else "met" if met else "not met"
        value = _NOTHING if met is None else _number(each["value"])
        cells.append([f"{each['section']}: {each['row']}", each["target"], value, verdict])
    return Grid("Targets", ["row", "target", "measured", ""], cells)


def _beside_peers(section: dict[str, Any]) -> Grid:
    """The ratios to each peer, then everybody's figures."""
    columns, reference = section["columns"], section["reference"]
    notes: dict[str, None] = {}  # in order, each once
    cells = []
    for row in section["rows"]:
        ratios = {peer: ratio for way, peer, ratio in row["ratios"] if way == columns[0]}
        for name, reason in row["notes"].items():
            whole = reason.startswith("not comparable")
            notes[f"{name}: {reason}" if whole else f"{row['name']}: {name} failed: {reason}"] = None
        words = [f"{row['name']}, {row['unit']}"]
        words += [f"{ratios[peer]:.2f}x" if peer in ratios else _NOTHING for peer in reference]
        words += [_value(row, way) for way in columns]
        cells.append(words)
    header = ["row", *(f"to {peer}" for peer in reference), *columns]
    return Grid(section["title"], header, cells, tuple(notes))


def _beside_one(section: dict[str, Any]) -> Grid:
    """Each column's figure, and its ratio to the one that is the reference."""
    cells = []
    for row in section["rows"]:
        ratios = {way: ratio for way, _, ratio in row["ratios"]}
        words = [f"{row['name']}, {row['unit']}"]
        for way in section["columns"]:
            ratio = f"  {ratios[way]:.2f}x" if way in ratios else ""
            words.append(_value(row, way) + ratio)
        cells.append(words)
    return Grid(section["title"], ["row", *section["columns"]], cells)


def _value(row: dict[str, Any], way: str) -> str:
    if way not in row["median"]:
        return _NOTHING
    spread = f" ±{row['spread'][way]:.0%}" if len(row["figures"][way]) > 1 else ""
    return _number(row["median"][way]) + spread


def _number(value: float) -> str:
    """Three figures that matter."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size else "0"


def show(console: Console, found: dict[str, Any]) -> None:
    """Every table."""
    for grid in grids(found):
        table = Table(title=grid.title, title_justify="left")
        for number, name in enumerate(grid.header):
            table.add_column(name, justify="right" if number and name != "beside" else "left")
        for words in grid.cells:
            table.add_row(*words)
        console.print(table)
        for note in grid.notes:
            console.print(f"  {note}", highlight=False, markup=False)


def markdown(found: dict[str, Any]) -> str:
    """Every table, as docs/performance.md has them."""
    lines = []
    for grid in grids(found):
        lines += [f"### {grid.title[:1].upper()}{grid.title[1:]}", "", "| " + " | ".join(grid.header) + " |"]
        lines.append("|" + "|".join(["---"] * len(grid.header)) + "|")
        lines += ["| " + " | ".join(words) + " |" for words in grid.cells]
        lines += ["", *(f"- {note}" for note in grid.notes), *([""] if grid.notes else [])]
    return "\n".join(lines)
