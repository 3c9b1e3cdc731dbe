"""Builds an initramfs: a cpio archive of the "newc" format, which the kernel unpacks into its first root.

The format is a sequence of entries, each a 110-byte header of ASCII hex fields, the NUL-terminated name, and the
data, name and data each padded to four bytes (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
It is written directly because no archive tool needs to be installed for it, and because entries can be made that
the user could not make as files: device nodes, root's ownership.

The same content always gives the same bytes (entries sorted, times zero), so an archive can be cached by its hash.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from qemu.guest.elf import ElfError, closure, is_elf, read, script_interpreter

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
#: newc keeps sizes in 32 bits.
_MAX_FILE_BYTES: Final = 0xFFFF_FFFF
_COPY_BYTES: Final = 1 << 20


class InitramfsError(ValueError):
    """Something cannot be packed; the message names it and the remedy."""


@dataclass(slots=True)
class _Entry:
    mode: int
    data: bytes = b""
    source: Path | None = None
    device: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        return self.source.stat().st_size if self.source is not None else len(self.data)


class Initramfs:
    """The content of a guest's first root file system, added piece by piece, then written as one archive.

    Paths inside the guest are absolute (``/bin/sh``). Missing parent directories are made. Adding the same path
    again replaces it, except that a directory stays a directory.
    """

    def __init__(self, machine: str | None = None) -> None:
        """`machine`: the guest's, as ELF calls it (EM_X86_64); programs for another are refused."""
        self._machine = machine
        self._entries: dict[str, _Entry] = {}

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        self._put(path, _Entry(stat.S_IFDIR | mode))

    def add_bytes(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._put(path, _Entry(stat.S_IFREG | mode, data=data))

    def add_file(self, path: str, source: Path, mode: int | None = None) -> None:
        """Pack the host's regular file `source` at `path`. It is read when the archive is written.

        Raises InitramfsError if `source` is missing, unreadable, no regular file or larger than 4 GiB.
        """
        try:
            status = source.stat()
        except OSError as error:
            raise InitramfsError(f"cannot pack {source}: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise InitramfsError(f"cannot pack {source}: not a regular file")
        if status.st_size > _MAX_FILE_BYTES:
            raise InitramfsError(f"cannot pack {source}: larger than the 4 GiB an initramfs can hold in one file")
        permissions = stat.S_IMODE(status.st_mode) if mode is None else mode
        self._put(path, _Entry(stat.S_IFREG | permissions, source=source))

    def add_symlink(self, path: str, target: str) -> None:
        self._put(path, _Entry(stat.S_IFLNK | 0o777, data=os.fsencode(target)))

    def add_device(self, path: str, kind: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A device node; `kind` is "c" (character) or "b" (block)."""
        file_type = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}[kind]
        self._put(path, _Entry(file_type | mode, device=(major, minor)))

    def add_program(self, program: str | Path, path: str | None = None) -> None:
        """Pack a program of the host so that it runs in the guest: with its interpreter and all its libraries.

        `program` is a path or a name to be found on PATH; `path` is where it goes in the guest (default: where the
        host has it). Libraries are found by reading the ELF files, nothing is run. What a program opens by itself
        at run time (NSS modules, plug-ins, data files) is not known to this and must be added by hand.

        Raises InitramfsError naming the library that is missing.
        """
        located = _locate(program)
        target = path or str(located)
        self.add_file(target, located, mode=0o755)
        try:
            if is_elf(located):
                found = read(located).machine
                if self._machine is not None and found != self._machine:
                    raise InitramfsError(f"cannot pack {program}: it is for {found}, the guest for {self._machine}")
                for library_path, library in closure(located):
                    self.add_file(library_path, library, mode=0o755)
                return
            interpreters = script_interpreter(located)
        except ElfError as error:
            raise InitramfsError(f"cannot pack {program}: {error}") from error
        for interpreter in interpreters:
            if interpreter not in self:
                self.add_program(interpreter)

    def add_tree(self, path: str, source: Path) -> None:
        """Pack a directory of the host with everything in it (symlinks as such, special files left out)."""
        if not source.is_dir():
            raise InitramfsError(f"cannot pack {source}: not a directory")
        self.add_directory(path)
        for directory, names, files in os.walk(source):
            names.sort()
            inside = PurePosixPath(path) / Path(directory).relative_to(source).as_posix()
            for name in sorted(names + files):
                item = Path(directory) / name
                where = str(inside / name)
                if item.is_symlink():
                    self.add_symlink(where, os.readlink(item))
                elif item.is_dir():
                    self.add_directory(where, stat.S_IMODE(item.stat().st_mode))
                elif item.is_file():
                    self.add_file(where, item)

    def __contains__(self, path: str) -> bool:
        return _normal(path) in self._entries

    @property
    def paths(self) -> list[str]:
        return sorted(self._entries)

    @property
    def unpacked_bytes(self) -> int:
        """What the content takes up in the guest's memory, page rounding aside."""
        return sum(entry.size for entry in self._entries.values())

    def write(self, path: Path) -> None:
        """Write the archive to `path`, replacing it only once it is complete."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as out:
                for chunk in self._chunks():
                    out.write(chunk)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def to_bytes(self) -> bytes:
        return b"".join(self._chunks())

    def digest(self) -> str:
        """SHA-256 of the archive, hex: the key under which it may be cached."""
        sha = hashlib.sha256()
        for chunk in self._chunks():
            sha.update(chunk)
        return sha.hexdigest()

    def _put(self, path: str, entry: _Entry) -> None:
        name = _normal(path)
        if name == "/":
            return
        for parent in PurePosixPath(name).parents:
            if str(parent) != "/" and str(parent) not in self._entries:
                self._entries[str(parent)] = _Entry(stat.S_IFDIR | 0o755)
        known = self._entries.get(name)
        if known is not None and stat.S_ISDIR(known.mode) and not stat.S_ISDIR(entry.mode):
            raise InitramfsError(f"{name} is a directory already and cannot become a file")
        self._entries[name] = entry

    def _chunks(self) -> Iterator[bytes]:
        # Sorted order puts a directory before what is in it, as the kernel's unpacker needs.
        for inode, (name, entry) in enumerate(sorted(self._entries.items()), start=1):
            yield from _entry_chunks(inode, name.lstrip("/"), entry)
        yield from _entry_chunks(0, _TRAILER, _Entry(0))


def _entry_chunks(inode: int, name: str, entry: _Entry) -> Iterator[bytes]:
    encoded = os.fsencode(name) + b"\0"
    size = entry.size
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, size, 0, 0, *entry.device, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    yield _padded(header + encoded)
    if entry.source is None:
        if size:
            yield _padded(entry.data)
        return
    with entry.source.open("rb") as source:
        yield from _exactly(source, size, entry.source)
    yield b"\0" * (-size % 4)


def _exactly(source: BinaryIO, size: int, name: Path) -> Iterator[bytes]:
    """Just `size` bytes: the header with that number is written already, and the file may be changing."""
    left = size
    while left:
        chunk = source.read(min(left, _COPY_BYTES))
        if not chunk:
            raise InitramfsError(f"{name} became shorter while it was packed")
        left -= len(chunk)
        yield chunk


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _normal(path: str) -> str:
    parts = PurePosixPath("/", path)
    if ".." in parts.parts:
        raise InitramfsError(f"{path}: a path in the guest may not contain '..'")
    return str(parts)


def _locate(program: str | Path) -> Path:
    text = str(program)
    if "/" in text:
        located = Path(text)
        if not located.exists():
            raise InitramfsError(f"cannot pack {text}: no such file")
        return located.absolute()
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        candidate = Path(directory) / text
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
    raise InitramfsError(f"cannot pack {text}: no such program on PATH")
