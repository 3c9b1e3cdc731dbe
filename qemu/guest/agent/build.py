"""Compiles the guest agent, once per state of its sources, into the cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Final

from qemu.guest.arch import FACTS, Arch
from qemu.guest.cache import cached
from qemu.guest.errors import MissingError, SetupError

SOURCES: Final = Path(__file__).parent
WARNINGS: Final = ("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion")
FLAGS: Final = ("-std=gnu11", "-O2", "-static", "-s", *WARNINGS)
_COMPILE_SECONDS: Final = 120


def sources() -> list[Path]:
    return sorted(SOURCES.glob("*.c"))


def build_agent(arch: Arch = "x86_64", *, compiler: str | None = None) -> Path:
    """The agent's path in the cache, compiled first if its sources changed; by default with the architecture's gcc.

    Raises MissingError without a compiler, SetupError with what the compiler said if it fails.
    """
    packages = FACTS[arch].compiler_packages
    compiler = compiler or FACTS[arch].compiler
    entry = agent_entry(compiler)
    return cached(entry, lambda where: compile_agent(where / "agent", compiler, packages=packages)) / "agent"


def agent_entry(compiler: str) -> str:
    """The name of the cache entry of the agent that `compiler` makes."""
    digest = hashlib.sha256(" ".join((compiler, *FLAGS)).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.read_bytes())
    return f"agent-{digest.hexdigest()[:16]}"


def compile_agent(
    output: Path,
    compiler: str,
    flags: tuple[str, ...] = FLAGS,
    packages: str = FACTS["x86_64"].compiler_packages,
) -> None:
    if shutil.which(compiler) is None:
        raise MissingError(f"no C compiler ({compiler}) to build the guest agent with: apt-get install {packages}")
    command = [compiler, *flags, "-o", str(output), *map(str, sources())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
    if done.returncode:
        raise SetupError(f"the guest agent does not compile (is all of {packages} installed?):\n{done.stderr.strip()}")
