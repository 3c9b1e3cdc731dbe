"""`guestwire ip`: look at and change the gateway of a running guest, as with iproute2's `ip`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qemu.guest.cli_options import SOCKET


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Output and abbreviations are iproute2's. Exit codes: 1 no such thing, 2 the request was refused.",
)
@click.option("--stack", "path", type=SOCKET, metavar="SOCK", envvar="GUESTWIRE_STACK", required=True, show_envvar=True)
@click.option("-4", "family", flag_value=2, type=int, help="IPv4 only.")
@click.option("-6", "family", flag_value=10, type=int, help="IPv6 only.")
@click.option("-json", "-j", "as_json", is_flag=True, help="Print JSON.")
@click.argument("words", nargs=-1, metavar="[addr|link|route|neigh|monitor] [COMMAND ...]")
def ip(path: Path, family: int | None, as_json: bool, words: tuple[str, ...]) -> int:
    """Look at and change the node that SOCK leads to: see `guestwire serve --control`."""
    from qemu.guest.control import connect
    from qemu.guest.errors import SetupError
    from qemu.guest.iproute.client import AnswerError, Client, NoDeviceError
    from qemu.guest.iproute.command import Style, groups, run

    wanted = list(words) or ["addr"]
    try:
        with connect(path, groups=groups(wanted)) as connection:
            for text in run(Client(connection), wanted, Style(family or 0, as_json)):
                click.echo(text)
                sys.stdout.flush()
    except AnswerError as error:
        click.echo(str(error), err=True)
        return 2
    except (NoDeviceError, SetupError) as error:
        click.echo(str(error), err=True)
        return 1
    return 0
