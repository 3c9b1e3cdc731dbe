"""Debian packages of any architecture, downloaded and unpacked, never installed.

They are downloaded with the machine's own apt, from its own sources and checked with its own keys, but through a state
directory of ours: that works without root, takes no lock of the system's and changes nothing in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

from qemu.guest.errors import MissingError

_DOWNLOAD_SECONDS: Final = 600
_TOOLS: Final = ("apt-get", "apt-cache", "dpkg-deb")

Say = Callable[[str], None]


class Debs:
    """apt for one architecture, with its state in `directory`/.apt; packages are unpacked into `directory`.

    A context manager: the state is removed at its end. Raises MissingError without apt, or if apt has no answer.
    """

    def __init__(self, directory: Path, architecture: str, say: Say) -> None:
        self._directory = directory
        self._architecture = architecture
        self._say = say
        self._state = directory / ".apt"
        self._options: list[str] = []
        self._said = ""

    def __enter__(self) -> Self:
        for tool in _TOOLS:
            if shutil.which(tool) is None:
                raise MissingError(f"no {tool} here to fetch {self._architecture} packages with")
        self._options = _private_apt(self._state, self._architecture)
        self._say(f"fetching the {self._architecture} package lists (into a directory of our own)")
        self._said = _last_line(self._run(["apt-get", *self._options, "-q", "update"]))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._state, ignore_errors=True)

    def dependency(self, packages: Sequence[str], pattern: str) -> str:
        """The first package matching `pattern` that the first known one of `packages` depends on."""
        for package in packages:
            depends = self._run(["apt-cache", *self._options, "depends", "--important", package]).stdout
            found = re.search(rf"Depends: ({pattern})", depends)
            if found:
                return found.group(1)
        raise MissingError(
            f"apt knows no {self._architecture} package among {', '.join(packages)}. apt said: {self._said}"
        )

    def known(self, package: str) -> bool:
        return self._run(["apt-cache", *self._options, "show", "--no-all-versions", package]).returncode == 0

    def unpack(self, packages: Sequence[str]) -> None:
        """Download `packages`, of the newest version each, and unpack them."""
        self._say(f"downloading {' and '.join(packages)}")
        done = self._run(["apt-get", *self._options, "-q", "download", *packages])
        files = sorted(self._state.glob("*.deb"))
        if done.returncode or len(files) < len(packages):
            raise MissingError(f"apt could not download {' '.join(packages)}: {_last_line(done)}")
        self._say("unpacking it into the cache")
        for file in files:
            unpacked = self._run(["dpkg-deb", "-x", str(file), str(self._directory)])
            if unpacked.returncode:
                raise MissingError(f"{file.name} cannot be unpacked: {_last_line(unpacked)}")
            file.unlink()

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                cwd=self._state,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_DOWNLOAD_SECONDS,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired as error:
            raise MissingError(f"{command[0]} did not finish within {_DOWNLOAD_SECONDS} s") from error


def _private_apt(state: Path, architecture: str) -> list[str]:
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "Dir::Log": state,
        "Debug::NoLocking": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
    }
    if os.geteuid() == 0:
        settings["APT::Sandbox::User"] = "root"  # the _apt user cannot write into a cache that is root's
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or ["nothing"])[-1]
