"""What a guest could leave behind on this machine, and the command line as a subprocess."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
SECONDS = 90.0


def command_line(*words: str) -> list[str]:
    return [sys.executable, "-m", "qemu.guest.cli", *words]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **changes}


def guestwire(*words: str, stdin: bytes = b"", **changes: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command_line(*words), input=stdin, capture_output=True, timeout=SECONDS, env=environment(**changes), check=False
    )


def ended(pid: int) -> bool:
    """Wait until process `pid` has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], SECONDS)[0])
    finally:
        os.close(descriptor)


def guest_directories(base: Path) -> list[str]:
    return sorted(path.name for path in base.glob("guestwire-*"))
