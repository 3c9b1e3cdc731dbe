"""Finds a kernel to boot: Debian's cloud kernel, fetched into the cache, or any kernel file the user names.

The package is downloaded with the machine's own apt, but through a state directory of ours: that works without
root, takes no lock of the system's and changes nothing in it. The package is unpacked, never installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qemu.guest.cache import cached

#: Meta-packages that depend on the current kernel image: Debian's cloud flavour; on Ubuntu the nearest equivalent.
_META_PACKAGES: Final = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64")
_DOWNLOAD_SECONDS: Final = 600
_ENTRY: Final = "kernel-amd64"

Say = Callable[[str], None]


class KernelError(RuntimeError):
    """There is no kernel to boot, or a file is none; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What QEMU's ``-kernel`` takes, and the modules that belong to it."""

    image: Path
    modules_dir: Path | None  #: a lib/modules/RELEASE directory; None: everything needed must be built in
    release: str  #: e.g. "6.1.0-40-cloud-amd64"; "" if the image does not tell


def find_kernel(*, say: Say = lambda _: None) -> Kernel:
    """The cached distribution kernel, downloaded and unpacked first if it is not there (about 30 MB, once).

    `say` gets a line for each step that takes a while. Raises KernelError.
    """
    entry = cached(_ENTRY, lambda directory: _fetch(directory, say))
    images = sorted(entry.glob("boot/vmlinuz-*"))
    if not images:
        raise KernelError(f"the cached kernel in {entry} is damaged: remove that directory and try again")
    release = images[-1].name.removeprefix("vmlinuz-")
    for modules in (entry / "lib/modules" / release, entry / "usr/lib/modules" / release):
        if modules.is_dir():
            return Kernel(images[-1], modules, release)
    raise KernelError(f"the cached kernel in {entry} has no modules: remove that directory and try again")


def kernel_from_file(image: Path, modules_dir: Path | None = None) -> Kernel:
    """A kernel the user names: a bzImage, or a vmlinux ELF file that QEMU can boot (PVH).

    Without `modules_dir`, the modules of that release are used if this machine has them installed; otherwise the
    drivers must be built in. Raises KernelError if `image` is missing or no kernel.
    """
    try:
        with image.open("rb") as file:
            head = file.read(0x10000)
    except OSError as error:
        raise KernelError(f"cannot read the kernel {image}: {error.strerror}") from error
    if head[:4] == b"\x7fELF":
        release = ""
    elif head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS":
        release = _bzimage_release(head)
    else:
        raise KernelError(f"{image} is no kernel: expected an x86 bzImage or an ELF vmlinux")
    if modules_dir is None and release:
        installed = Path("/lib/modules") / release
        beside = image.parent.parent / "lib/modules" / release
        modules_dir = next((d for d in (installed, beside) if d.is_dir()), None)
    if modules_dir is not None and not modules_dir.is_dir():
        raise KernelError(f"no modules directory {modules_dir}")
    return Kernel(image, modules_dir, release)


def _bzimage_release(head: bytes) -> str:
    """The version string that the setup header points to (kernel: Documentation/arch/x86/boot.rst, kernel_version)."""
    offset = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    words = head[offset : offset + 256].split(b"\0", 1)[0].split()
    return words[0].decode(errors="replace") if words else ""


def _fetch(directory: Path, say: Say) -> None:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise KernelError(
                f"no {tool} here to fetch a guest kernel with: pass one with --kernel FILE (a bzImage or vmlinux)"
            )
    state = directory / ".apt"
    options = _private_apt(state)
    say("fetching the package lists (into a directory of our own)")
    update = _run(["apt-get", *options, "-q", "update"], state)
    package = _resolve(options, state)
    if package is None:
        raise KernelError(
            "apt knows no kernel package among "
            + ", ".join(_META_PACKAGES)
            + f": pass a kernel with --kernel FILE. apt said: {_last_line(update)}"
        )
    names = [package]
    # Ubuntu splits the modules off into a package of their own.
    modules = package.replace("linux-image-", "linux-modules-", 1)
    if _known(modules, options, state):
        names.append(modules)
    say(f"downloading {' and '.join(names)}")
    done = _run(["apt-get", *options, "-q", "download", *names], state)
    packages = sorted(state.glob("*.deb"))
    if done.returncode or len(packages) < len(names):
        raise KernelError(f"apt could not download {' '.join(names)}: {_last_line(done)}")
    say("unpacking it into the cache")
    for file in packages:
        unpacked = _run(["dpkg-deb", "-x", str(file), str(directory)], state)
        if unpacked.returncode:
            raise KernelError(f"{file.name} cannot be unpacked: {_last_line(unpacked)}")
    shutil.rmtree(state)
    if not list(directory.glob("boot/vmlinuz-*")):
        raise KernelError(f"the package {package} has no kernel image in it")


def _private_apt(state: Path) -> list[str]:
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
        "APT::Architecture": "amd64",
    }
    if os.geteuid() == 0:
        settings["APT::Sandbox::User"] = "root"  # the _apt user cannot write into a cache that is root's
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _resolve(options: list[str], state: Path) -> str | None:
    """The versioned image package that the first known meta-package depends on."""
    for meta in _META_PACKAGES:
        depends = _run(["apt-cache", *options, "depends", "--important", meta], state).stdout
        found = re.search(r"Depends: (linux-image-(?:unsigned-)?\d\S+)", depends)
        if found:
            return found.group(1)
    return None


def _known(package: str, options: list[str], state: Path) -> bool:
    return _run(["apt-cache", *options, "show", "--no-all-versions", package], state).returncode == 0


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=cwd,
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
        raise KernelError(f"{command[0]} did not finish within {_DOWNLOAD_SECONDS} s") from error


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or ["nothing"])[-1]
