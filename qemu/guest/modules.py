"""Which kernel modules to load, and in which order, read from the modules themselves.

An unpacked kernel package has no ``modules.dep`` (depmod makes it at installation), so dependencies are read where
depmod reads them: in each module's ``.modinfo`` section, as NUL-terminated ``key=value`` strings. Only the modules
that are asked for and what they need are opened.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

_SUFFIXES: Final = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


class ModuleError(ValueError):
    """A module, or one it depends on, is missing or unreadable; the message names both."""


class ModuleTree:
    """The modules of one kernel: a ``lib/modules/RELEASE`` directory, as a package lays it out."""

    def __init__(self, directory: Path) -> None:
        """Raises ModuleError if `directory` is not one."""
        if not directory.is_dir():
            raise ModuleError(f"no modules directory {directory}")
        self.directory = directory

    def resolve(self, names: list[str]) -> list[Path]:
        """The files of `names` and everything they depend on, each after what it needs.

        What the kernel has built in (modules.builtin) is left out. Raises ModuleError for a module that is neither
        there nor built in, naming the chain of who needs it.
        """
        order: dict[str, Path] = {}
        for name in names:
            self._visit(_canonical(name), order, ())
        return list(order.values())

    def has(self, name: str) -> bool:
        """Whether `name` is a module of this kernel, or built into it."""
        return _canonical(name) in self._files or _canonical(name) in self._builtin

    def read(self, path: Path) -> bytes:
        """A module's content, decompressed (the guest then needs no decompressor of its own)."""
        data = path.read_bytes()
        match path.suffix:
            case ".xz":
                return lzma.decompress(data)
            case ".gz":
                import gzip

                return gzip.decompress(data)
            case ".zst":
                return _zstd(path, data)
        return data

    def _visit(self, name: str, order: dict[str, Path], users: tuple[str, ...]) -> None:
        if name in order or name in self._builtin:
            return
        if name in users:
            raise ModuleError(f"kernel modules depend on each other in a circle: {' -> '.join((*users, name))}")
        path = self._files.get(name)
        if path is None:
            needed_by = f", which {users[-1]} depends on," if users else ""
            raise ModuleError(
                f"kernel module {name}{needed_by} is neither in {self.directory} nor built into that kernel; "
                "pass the modules directory that belongs to the kernel"
            )
        for dependency in self._depends(path):
            self._visit(dependency, order, (*users, name))
        order[name] = path

    def _depends(self, path: Path) -> list[str]:
        try:
            section = ELFFile(io.BytesIO(self.read(path))).get_section_by_name(".modinfo")
            strings = section.data().split(b"\0") if section is not None else []
        except (ELFError, lzma.LZMAError, ValueError, OSError, EOFError) as error:
            raise ModuleError(f"{path} is not a readable kernel module: {error}") from error
        for string in strings:
            if string.startswith(b"depends="):
                return [_canonical(name) for name in string[len(b"depends=") :].decode().split(",") if name]
        return []

    @cached_property
    def _files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(self.directory.rglob("*.ko*")):
            for suffix in _SUFFIXES:
                if path.name.endswith(suffix):
                    found.setdefault(_canonical(path.name[: -len(suffix)]), path)
                    break
        return found

    @cached_property
    def _builtin(self) -> frozenset[str]:
        try:
            lines = (self.directory / "modules.builtin").read_text().splitlines()
        except OSError:
            return frozenset()
        return frozenset(_canonical(Path(line).name.removesuffix(".ko")) for line in lines if line)


def _canonical(name: str) -> str:
    """Module names use '-' and '_' interchangeably (modprobe(8))."""
    return name.strip().replace("-", "_")


def _zstd(path: Path, data: bytes) -> bytes:
    tool = shutil.which("zstd")
    if tool is None:
        raise ModuleError(f"{path} is compressed with zstd: install the package 'zstd'")
    done = subprocess.run([tool, "-dcq"], input=data, capture_output=True, check=False)
    if done.returncode:
        raise ModuleError(f"{path} cannot be decompressed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
