"""The command `guestwire`: reads arguments, maps errors to exit codes. What the commands do is in ``cli_*.py``.

Exit codes of `run`: the guest command's own, 128 + n if signal n ended it; 124 it did not end in time; 125 the harness
failed (bad arguments included, so that they cannot be mistaken for the command's 2); 77 nothing to run it with.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import click

from qemu.guest.errors import CommandTimeoutError, GuestError, MissingError

EXIT_TIMEOUT: Final = 124  # timeout(1)
EXIT_HARNESS: Final = 125  # docker run, timeout(1)
EXIT_MISSING: Final = 77  # automake and meson: skipped
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE: Final = 141
_EXIT_USAGE: Final = 2

_COMMANDS: Final = {
    "run": "run a command in a guest",
    "serve": "serve the devices of a QEMU you start yourself",
    "exec": "run a program of this machine on a LAN with guests",
    "ip": "look at and change the network of a served guest's gateway, as with iproute2",
    "matrix": "run the same tests on many kernels and images",
    "vsock": "reach a served guest's vsock from a shell",
    "doctor": "check what this machine has and lacks",
}


class _Lazy(click.Group):
    """Imports a command's module only when it is used: `run` needs no tables, `doctor` no stack."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"qemu.guest.cli_{cmd_name}")
        command = getattr(module, cmd_name if cmd_name != "exec" else "exec_")
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="guestwire")
def guestwire() -> None:
    """Plug a QEMU guest into a Python process: its network card and vsock served over vhost-user.

    No root, no TAP device, no kernel module and no KVM needed.
    """


def run_cli(arguments: Sequence[str]) -> int:
    """The exit code of ``guestwire ARGUMENTS``."""
    try:
        outcome = guestwire.main(list(arguments), prog_name="guestwire", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_HARNESS if arguments[:1] in (["run"], ["exec"]) else _EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr = None  # nobody reads any more; Python would complain at exit while flushing
        return EXIT_PIPE
    except CommandTimeoutError as error:
        return _failed(error, EXIT_TIMEOUT)
    except MissingError as error:
        return _failed(error, EXIT_MISSING)
    except GuestError as error:
        return _failed(error, EXIT_HARNESS)
    except Exception:  # noqa: BLE001 - a bug of ours: shown whole, and never taken for the command's own exit code 1
        traceback.print_exc()
        return EXIT_HARNESS


def main() -> None:
    """Entry point of the `guestwire` command."""
    sys.exit(run_cli(sys.argv[1:]))


def _failed(error: GuestError, code: int) -> int:
    click.echo(f"guestwire: {error}", err=True)
    return code


if __name__ == "__main__":
    main()
