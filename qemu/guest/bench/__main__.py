"""``python -m qemu.guest.bench``, which is ``make bench``."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from qemu.guest import GuestError
from qemu.guest.bench import plan, report, rig

QUICK_SECONDS = 0.2
_WIDE = 180


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Short, one round: shows that the bench works, not what the figures are.")
@click.option("--seconds", type=float, default=1.2, show_default=True, help="Length of one measurement.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Measurements of each row and way.")
@click.option(
    "--rows",
    default="",
    metavar="WORDS",
    help='Only rows with one of these in "section: row", separated by commas: "rig: udp,request/response".',
)
@click.option(
    "--passt", envvar="PASST", metavar="PROGRAM", help="The passt to compare with; by default the one on PATH."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench-out"),
    show_default=True,
    help="Directory for bench.json and, with matplotlib, bench.svg.",
)
@click.option("--markdown", is_flag=True, help="Measure nothing: print the tables of the last run as Markdown.")
def main(quick: bool, seconds: float, rounds: int, rows: str, passt: str | None, output: Path, markdown: bool) -> None:
    """Measure a real guest over our card and over its peers, alternating, and our rings and stack alone."""
    file = output / "bench.json"
    if markdown:
        if not file.exists():
            raise click.UsageError(f"{file} is not there: measure first")
        click.echo(report.markdown(json.loads(file.read_text())))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)  # into a file: nothing to fit
    wanted = tuple(word.strip().lower() for word in rows.split(",") if word.strip())
    options = plan.Options(seconds, rounds, wanted, passt)
    if quick:
        options = replace(options, seconds=min(seconds, QUICK_SECONDS), rounds=1, quick=True)
    began = time.monotonic()
    try:
        options = replace(options, say=lambda text: _progress(console, began, text))
        found = []
        for section in plan.sections(options):
            found.append(section)
            _progress(console, began, f"measured: {section.title}", keep=True)
    except (GuestError, rig.RigError) as error:
        console.print(f"[red]bench: {error}[/red]", highlight=False)
        sys.exit(1)
    if not found:
        raise click.UsageError(f"no row has any of these in its name: {rows}")
    result = report.content(found, {"seconds": f"{options.seconds:g}", "rounds": str(options.rounds)})
    report.show(console, result)
    report.save(file, result)
    console.print(f"figures in {file}", highlight=False)
    _draw(console, result, output / "bench.svg")


def _progress(console: Console, began: float, text: str, *, keep: bool = False) -> None:
    """What is being done, in one line that the next one replaces: a spinner's thread would be measured too."""
    if keep or console.is_terminal:
        line = f"{time.monotonic() - began:4.0f} s  {text}"
        console.print(f"{line:<{console.width - 1}}", end="\n" if keep else "\r", highlight=False, markup=False)


def _draw(console: Console, result: dict[str, object], path: Path) -> None:
    try:
        from qemu.guest.bench import chart
    except ImportError:
        console.print("no chart without matplotlib: `make bench` installs it", highlight=False)
        return
    chart.draw(result, path)
    console.print(f"chart in {path}", highlight=False)


if __name__ == "__main__":
    main()
