"""``make profile``: flame graphs of bulk TCP with a real guest, both directions, of Python's frames and C's.

py-spy samples this process from outside while it serves the guest; flame.py draws what it saw. It needs leave to look
into another process (ptrace(2)); where a policy refuses that, the error names what grants it. To walk C's frames it
stops the process for each sample, so that figures measured meanwhile are low; shares are not.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from qemu.guest import Guest, GuestError
from qemu.guest.bench import flame, peers, rows

#: Allows anybody who otherwise may to trace this process, where Yama allows a parent only (prctl(2)).
_PR_SET_PTRACER: Final = 0x59616D61
_ANY: Final = ctypes.c_ulong(-1).value
_SAMPLES_PER_SECOND: Final = 250
#: Of load before and after what is sampled.
_MARGIN_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 60.0
_WARM_SECONDS: Final = 0.5

DIRECTIONS: Final[dict[str, Callable[[Guest, peers.Path, float], rows.Figures]]] = {
    "guest-to-host": rows.guest_to_host,
    "host-to-guest": rows.host_to_guest,
}


class ProfileError(RuntimeError):
    """No flame graph; the message says why, and what to do."""


def find_sampler() -> str:
    """py-spy of this environment, or on PATH. Raises ProfileError."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise ProfileError("no py-spy: `make profile` installs it (pip install --group bench)")
    return found


def command(sampler: str, output: Path, seconds: float, *, native: bool) -> list[str]:
    """What samples this process for so long and draws `output`."""
    words = [sampler, "record", "--pid", str(os.getpid()), "--output", str(output), "--format", "raw"]
    words += ["--duration", str(max(1, round(seconds))), "--rate", str(_SAMPLES_PER_SECOND)]
    return [*words, "--native"] if native else words


def complaint(said: str) -> str:
    """What to tell the user when py-spy failed with `said`."""
    if any(word in said.lower() for word in ("permission denied", "eperm", "not permitted")):
        return (
            "this system does not let py-spy look into this process (ptrace). Run as root, or allow it: "
            "`sudo sysctl kernel.yama.ptrace_scope=1`; in a container start it with --cap-add SYS_PTRACE"
        )
    return f"py-spy failed: {said.strip().splitlines()[-1] if said.strip() else 'it said nothing'}"


def sample(sampler: str, output: Path, seconds: float, load: Callable[[float], None]) -> bool:
    """Collapsed stacks of this process while `load` runs, in `output`. False: without C's frames, which cannot be had.

    Raises ProfileError.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
    for native in (True, False):
        words = command(sampler, output, seconds, native=native)
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                load(seconds + 2 * _MARGIN_SECONDS)
                said = process.communicate(timeout=_GRACE_SECONDS)[1]
            except subprocess.TimeoutExpired:
                raise ProfileError(f"py-spy was not done {_GRACE_SECONDS:g} s after its time") from None
            finally:
                process.kill()
        if process.returncode == 0:
            return native
        if "ative" not in said:
            break
    raise ProfileError(complaint(said))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=float, default=5.0, show_default=True, help="How long each direction is sampled.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("bench-out"), show_default=True
)
def main(seconds: float, output: Path) -> None:
    """Sample this process while it serves a guest's bulk TCP, and draw where its time goes."""
    console = Console()
    try:
        sampler = find_sampler()
        # No spinner: its thread would be in the picture.
        console.print("booting the guest")
        with Guest() as guest:
            path = peers.ours(guest)
            for name, measure in DIRECTIONS.items():
                measure(guest, path, _WARM_SECONDS)  # what happens once, such as imports, is not what is looked for
                console.print(f"sampling bulk TCP {name} for {seconds:g} s", highlight=False)
                figures: list[rows.Figures] = []

                def load(length: float, measure: Callable[..., rows.Figures] = measure) -> None:
                    figures.append(measure(guest, path, length))  # noqa: B023 - called within this round

                output.mkdir(parents=True, exist_ok=True)
                stacks = output / f"profile-{name}.txt"
                native = sample(sampler, stacks, seconds, load)
                root = flame.tree(flame.parse(stacks.read_text()))
                file = output / f"profile-{name}.svg"
                note = f"{root.samples} samples of working threads, {_SAMPLES_PER_SECOND} a second, {seconds:g} s."
                file.write_text(flame.draw(root, f"Bulk TCP {name.replace('-', ' ')}, this process", note))
                without = "" if native else " (Python only: py-spy has no native frames here)"
                console.print(f"{file}: {figures[-1]['gbps']:.2f} Gb/s while sampled{without}", highlight=False)
    except (GuestError, ProfileError) as error:
        console.print(f"[red]profile: {error}[/red]", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
