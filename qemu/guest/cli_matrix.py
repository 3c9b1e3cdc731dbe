"""`guestwire matrix`: the same tests on many kernels and images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from qemu.guest.cli_options import FILE
from qemu.guest.matrix import EXIT_HARNESS, Outcome, Target, cells, run, table


def target(value: str) -> Target:
    """KERNEL or KERNEL:MODULES."""
    kernel, _, modules = value.partition(":")
    if not Path(kernel).is_file():
        raise click.BadParameter(f"no such kernel: {kernel}")
    if modules and not Path(modules).is_dir():
        raise click.BadParameter(f"no such modules directory: {modules}")
    return Target(str(Path(kernel).absolute()), str(Path(modules).absolute()) if modules else None)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--kernel", "targets", type=target, multiple=True, metavar="KERNEL[:MODULES]", help="Kernel, and its modules."
)
@click.option("--image", "images", type=FILE, multiple=True, help="Root: disk or archive. Default: busybox.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def matrix(targets: tuple[Target, ...], images: tuple[Path, ...], jobs: int, arguments: tuple[str, ...]) -> int:
    """Run pytest with ARGUMENTS once for every kernel with every image, and print how each went.

    On several machines: qemu.guest.matrix.run takes any concurrent.futures executor.

    Exit codes: 0 all passed, 1 a test failed, 125 a run gave no result.
    """
    wanted = cells(targets, [str(image.absolute()) for image in images], arguments, Path.cwd())
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(jobs) as executor:
        for outcome in run(executor, wanted):
            outcomes.append(outcome)
            if not outcome.succeeded:
                click.echo(f"--- {outcome.cell.name}\n{outcome.output.rstrip()}")
    click.echo(table(outcomes))
    if any(outcome.code not in (0, 1) for outcome in outcomes):
        return EXIT_HARNESS
    return int(not all(outcome.succeeded for outcome in outcomes))
