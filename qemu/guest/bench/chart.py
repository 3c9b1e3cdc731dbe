"""A bench run as one picture: our ratios to every peer, the figures behind them, and how the targets stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from qemu.guest.bench import targets
from qemu.guest.bench.peers import NAMES, OURS, PASST, SLIRP, TAP

_COLOURS: Final = {OURS: "#1f5fbf", PASST: "#e08a1e", SLIRP: "#8c8c8c", TAP: "#4d9a5b"}
_MET, _NOT_MET, _UNKNOWN = "#2e8b57", "#c0392b", "#b0b0b0"
_COLUMN_INCHES: Final = 8.0
_ROW_INCHES: Final = 0.17
_BAR: Final = 0.8
_HEADING: Final = "Guestwire beside other ways out of the same guest, in one run: relative to it, longer is better"
#: No bar and no axis goes further: a peer that hardly moved must not squeeze the others.
_LEAST, _MOST = 1 / 30, 30.0
#: Costs are in the tables; the picture is about what a user sees.
_LEFT_OUT: Final = "CPU"


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture; the suffix says in which format."""
    panels: list[tuple[Any, str, Any, float]] = []
    for section in found["sections"]:
        if section["columns"][:1] != [OURS] or len(section["reference"]) < 2:
            continue
        rows = [row for row in section["rows"] if OURS in row["median"] and _LEFT_OUT not in row["name"]]
        if rows:
            panels.append((_compare, section["title"], rows, len(rows) * (len(NAMES) + 0.6) + 4))
    if found["targets"]:
        judged = found["targets"]
        panels.append((_judge, "Targets: 1 is met", judged, len(judged) * 1.6 + 4))
    if not panels:
        return
    columns = _balanced(panels)
    inches = max(sum(panel[3] for panel in column) for column in columns) * _ROW_INCHES + 0.7
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(_COLUMN_INCHES * len(columns), inches), layout="constrained")
        parts = figure.subfigures(1, len(columns), squeeze=False)[0]
        for part, column in zip(parts, columns, strict=True):
            axes = part.subplots(len(column), 1, height_ratios=[panel[3] for panel in column], squeeze=False)[:, 0]
            for axis, (panel, title, content, _) in zip(axes, column, strict=True):
                panel(axis, title, content)
        figure.suptitle(_HEADING, fontsize=13, fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _balanced(panels: list[tuple[Any, str, Any, float]]) -> list[list[tuple[Any, str, Any, float]]]:
    """In two columns of about the same height, the order kept."""
    whole = sum(panel[3] for panel in panels)
    left: list[tuple[Any, str, Any, float]] = []
    for panel in panels:
        if left and sum(each[3] for each in left) + panel[3] / 2 > whole / 2:
            break
        left.append(panel)
    return [column for column in (left, panels[len(left) :]) if column]


def _compare(axis: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    """Bars relative to ours, longer is better whatever the unit, with the figure at the end of each."""
    places, labels = [], []
    for number, row in enumerate(rows):
        places.append(float(number))
        labels.append(f"{row['name']}\n{row['unit']}")
        ways = [way for way in NAMES if way in row["median"]]
        thick = _BAR / len(NAMES)
        for way in NAMES:
            at = number + (NAMES.index(way) - (len(NAMES) - 1) / 2) * thick
            if way not in ways:
                axis.text(
                    0.01,
                    at,
                    f"{way}: {_reason(row, way)}",
                    va="center",
                    fontsize=7,
                    color="#808080",
                    transform=axis.get_yaxis_transform(),
                )
                continue
            ours, value = row["median"][OURS], row["median"][way]
            length = (value / ours if row["higher_is_better"] else ours / value) if ours and value else 0.0
            end = min(max(length, _LEAST), _MOST)
            axis.barh(at, end, thick * 0.92, color=_COLOURS[way])
            axis.text(end * 1.03, at, _short(value), va="center", fontsize=7, color="#303030")
    axis.axvline(1.0, color=_COLOURS[OURS], linewidth=0.8, linestyle=":")
    axis.set_yticks(places, labels)
    axis.set_ylim(len(rows) - 0.45, -0.55)
    _ratios(axis)
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    handles = [Patch(color=_COLOURS[way], label=way) for way in NAMES]
    axis.legend(handles=handles, loc="upper right", ncols=1, frameon=True, framealpha=0.9, fontsize=8)


def _reason(row: dict[str, Any], way: str) -> str:
    """Why there is no bar, in the two words there is room for; the tables have the rest."""
    note = row["notes"].get(way, "")
    return "failed" if note and not note.startswith("not comparable") else "not comparable"


def _judge(axis: Axes, title: str, judged: list[dict[str, Any]]) -> None:
    for number, each in enumerate(judged):
        bound, most = _bound(each)
        value, met = each["value"], each["met"]
        reached = 0.0 if met is None or not value else (bound / value if most else value / bound)
        colour = _UNKNOWN if met is None else _MET if met else _NOT_MET
        end = min(max(reached, _LEAST), _MOST)
        axis.barh(number, end, _BAR, color=colour)
        said = "not comparable" if met is None else f"{_short(value)}  ({each['target']})"
        axis.text(end * 1.04, number, said, va="center", fontsize=8)
    axis.axvline(1.0, color="#303030", linewidth=1.0)
    axis.set_yticks(range(len(judged)), [f"{each['section']}: {each['row']}" for each in judged])
    axis.set_ylim(len(judged) - 0.5, -0.5)
    _ratios(axis)
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")


def _bound(judged: dict[str, Any]) -> tuple[float, bool]:
    for target in targets.of(judged["section"], judged["row"]):
        if target.text == judged["target"]:
            return target.bound, target.most
    return 1.0, False


def _ratios(axis: Axes) -> None:
    """A logarithmic axis of ratios: twice as good is as far from 1 as half as good."""
    axis.set_xscale("log")
    lengths = [patch.get_width() for patch in axis.patches if isinstance(patch, Rectangle)]
    axis.set_xlim(min([0.2, *(length / 1.5 for length in lengths)]), max([2.0, *lengths]) * 4)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", which="major", color="#e0e0e0", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
