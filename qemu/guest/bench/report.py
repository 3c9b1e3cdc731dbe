"""A bench run as a table for people and a JSON file for machines. Ratios first: only they carry over."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from qemu.guest.bench.figure import Figure
from qemu.guest.bench.rows import Row

#: The peer every ratio is taken to.
PEER: Final = "slirp"
OURS: Final = "guestwire"


def show(console: Console, rows: list[Row], rig: dict[str, float]) -> None:
    """Both tables."""
    table = Table(title=f"Same guest, same run: {OURS} beside QEMU's {PEER}")
    table.add_column("row")
    table.add_column("ratio", justify="right")
    for name in (OURS, PEER):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row.median(name):,.2f} {row.unit} ±{row.spread(name):.0%}" for name in (OURS, PEER)]
        table.add_row(row.name, f"{row.ratio(OURS, PEER):.2f}x", *cells)
    console.print(table)
    if rig:
        copies = rig["two copies"]
        table = Table(title="Driver rig: ring, TCP and socket, no guest; beside copying the same bytes twice")
        table.add_column("row")
        table.add_column("ratio", justify="right")
        table.add_column("Gb/s", justify="right")
        for name, gbps in rig.items():
            table.add_row(name, f"{gbps / copies:.2f}x", f"{gbps:.2f}")
        console.print(table)


def show_vsock(console: Console, title: str, rows: list[Row], peer: str) -> None:
    """Every way of each row; ratios to `peer` where it was measured."""
    ways = list(rows[0].figures) if rows else []
    table = Table(title=title)
    table.add_column("row")
    for way in ways:
        table.add_column(way, justify="right")
    for row in rows:
        cells = []
        for way in ways:
            ratio = f"  {row.ratio(way, peer):.2f}x" if peer in row.figures and way != peer else ""
            cells.append(f"{row.median(way):,.2f} {row.unit}{ratio}")
        table.add_row(row.name, *cells)
    console.print(table)


def show_figures(console: Console, title: str, figures: list[Figure]) -> None:
    """Single figures, each with what stands beside it."""
    table = Table(title=title)
    table.add_column("row")
    table.add_column("figure", justify="right")
    table.add_column("beside")
    for figure in figures:
        digits = 0 if abs(figure.value) >= 1000 else 2
        table.add_row(figure.name, f"{figure.value:,.{digits}f} {figure.unit}", figure.beside)
    console.print(table)


def save(
    path: Path,
    rows: list[Row],
    rig: dict[str, float],
    facts: dict[str, str],
    vsock: dict[str, list[Row]],
    figures: dict[str, list[Figure]],
) -> None:
    """Everything measured, the single figures too."""
    content: dict[str, Any] = {
        "machine": {"kernel": platform.release(), "python": platform.python_version(), **facts},
        "rows": [
            {
                "name": row.name,
                "unit": row.unit,
                "ratio": row.ratio(OURS, PEER),
                "figures": row.figures,
            }
            for row in rows
        ],
        "rig_gbps": rig,
        "figures": {title: [asdict(figure) for figure in section] for title, section in figures.items()},
        "vsock": {
            where: [{"name": row.name, "unit": row.unit, "figures": row.figures} for row in measured]
            for where, measured in vsock.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
