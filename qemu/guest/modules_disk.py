"""A small disk with the kernel's modules, for a guest whose root is a disk image.

The image brings its own user space but not our kernel's modules, and what is in it wants some: udev for the devices it
finds, systemd for automounts, mount for file systems. So the modules directory, with the index that modprobe needs, is
made into a read-only disk once, kept in the cache, and put in its place by the agent (agent/root.c).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qemu.guest.cache import cached, prune, used
from qemu.guest.errors import MissingError, SetupError

#: Administrators' tools, which are not on everybody's PATH.
_SBIN: Final = ("/usr/sbin", "/sbin", "/usr/local/sbin")
_PREFIX: Final = "modules-"
_KEPT: Final = 4
_TOOL_SECONDS: Final = 300
_BLOCK_BYTES: Final = 4096
#: What modprobe looks modules up in; `make modules_install` and packages' installation leave it, packages do not.
_INDEX: Final = "modules.dep.bin"
_FILE: Final = "modules.ext2"
_FORMAT: Final = "1"


def find_tool(name: str, package: str) -> str:
    """The path of an administrator's tool. Raises MissingError naming the package."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))
    found = shutil.which(name, path=path)
    if found is None:
        raise MissingError(f"no {name} here, which a guest with a disk image needs: apt-get install {package}")
    return found


def modules_disk(modules_dir: Path) -> Path:
    """The disk with what is in `modules_dir`, a lib/modules/RELEASE. Made once, some seconds; raises MissingError.

    Raises SetupError if the directory cannot be read.
    """
    try:
        entry = cached(_PREFIX + _key(modules_dir), lambda directory: _build(directory, modules_dir))
        used(entry)
        prune(entry.parent, _PREFIX + "*", _KEPT)
    except OSError as error:
        raise SetupError(f"cannot make a disk of the modules in {modules_dir}: {error.strerror or error}") from error
    return entry / _FILE


def _files(directory: Path) -> Iterator[Path]:
    """Regular files below it, in order; links to the kernel's sources are left out."""
    for base, directories, names in os.walk(directory):
        directories.sort()
        yield from (Path(base, name) for name in sorted(names) if not os.path.islink(os.path.join(base, name)))


def _key(directory: Path) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {directory.name}\n".encode())
    for path in _files(directory):
        status = path.stat()
        digest.update(f"{path.relative_to(directory)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _build(entry: Path, modules_dir: Path) -> None:
    mke2fs, depmod = find_tool("mke2fs", "e2fsprogs"), find_tool("depmod", "kmod")
    staging = entry / "staging"
    copy = staging / "lib/modules" / modules_dir.name
    size = files = 0
    for path in _files(modules_dir):
        target = copy / path.relative_to(modules_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        size += -(-path.stat().st_size // _BLOCK_BYTES) * _BLOCK_BYTES
        files += 1
    if not (copy / _INDEX).exists():
        (staging / "usr").symlink_to(".")  # where newer ones look
        _run([depmod, "-b", str(staging), modules_dir.name])
    room = size + size // 8 + (8 << 20)  # directories, indirect blocks, the index
    image = entry / _FILE
    words = [mke2fs, "-q", "-t", "ext2", "-b", str(_BLOCK_BYTES), "-N", str(2 * files + 256), "-E", "root_owner=0:0"]
    _run([*words, "-L", "guestwire-mods", "-d", str(copy), str(image), f"{room >> 10}k"])
    shutil.rmtree(staging)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TOOL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"{command[0]} did not finish within {_TOOL_SECONDS} s") from error
    if done.returncode:
        raise SetupError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
