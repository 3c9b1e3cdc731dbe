"""Guest memory in files: a saved one on disk, and a private copy of it for each guest.

Theory of operation
-------------------
vhost-user shares the guest's memory, so it must be a file that QEMU maps shared; two guests on one file would write
into each other, so each gets a copy. The copy is a memfd: it needs no directory and leaves nothing behind, it is not
bounded by the size of /dev/shm (64 MiB in many containers), and no page of it is ever written back to a disk. Only the
extents that hold data are copied, within the kernel (sendfile), 90 MB in some 40 ms. docs/decisions/0021 has the
alternatives (a reflinked file, allocation in advance).

A memfd has no quota whose end would be a SIGBUS: whether there is room is asked before (`check_room`), while it is
still an error with a remedy.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qemu.guest.errors import SetupError

MIB: Final = 1 << 20
#: What is compared with zero, and left out of a saved file, at once.
_PAGE_BYTES: Final = 4096
_CHUNK_BYTES: Final = 1 << 20
_ZERO_PAGE: Final = bytes(_PAGE_BYTES)
_BLOCK_BYTES: Final = 1 << 16
_ZERO_BLOCK: Final = bytes(_BLOCK_BYTES)
#: QEMU's own memory besides the guest's (measured with the default devices: 60 MiB, the translation buffer unfilled).
_QEMU_BYTES: Final = 64 * MIB


def new_ram(size: int) -> int:
    """The descriptor of a new, empty memory file of `size` bytes; it is not inherited.

    Raises SetupError if the kernel will not promise so much memory.
    """
    descriptor = os.memfd_create("guestwire-ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        raise SetupError(f"no memory for a guest of {size // MIB} MiB: {error.strerror}") from error
    return descriptor


def copy_ram(source: int) -> int:
    """A new memory file with the content of the file `source`. Raises SetupError if there is no room for it."""
    size = os.fstat(source).st_size
    target = new_ram(size)
    try:
        for start, end in _extents(source):
            _copy_range(source, target, start, end)
    except OSError as error:
        os.close(target)
        raise SetupError(f"no memory for a guest of {size // MIB} MiB: {error.strerror}") from error
    except BaseException:
        os.close(target)
        raise
    return target


def save_ram(source: int, path: Path) -> None:
    """Write the memory file to `path` without its pages of zeros. OSError if the disk is full."""
    with path.open("wb", buffering=0) as target:
        for start, end in _extents(source):
            for at in range(start, end, _CHUNK_BYTES):
                data = os.pread(source, min(_CHUNK_BYTES, end - at), at)
                for first, last in _used_runs(data):
                    written = first
                    while written < last:
                        written += os.pwrite(target.fileno(), data[written:last], at + written)
        os.ftruncate(target.fileno(), os.fstat(source).st_size)


def checksum(descriptor: int) -> int:
    """CRC-32 of the file's content and where it lies: differs if a page is missing, cut off or changed.

    Holes count as the zeros that are read from them: file systems differ in what they keep as a hole.
    """
    value = zlib.crc32(os.fstat(descriptor).st_size.to_bytes(8, "little"))
    done = 0
    for start, end in _extents(descriptor):
        for at in range(max(done, start - start % _BLOCK_BYTES), end, _BLOCK_BYTES):
            data = os.pread(descriptor, _BLOCK_BYTES, at)
            if data != _ZERO_BLOCK:
                value = zlib.crc32(data, zlib.crc32(at.to_bytes(8, "little"), value))
            done = at + _BLOCK_BYTES
    return value


def check_room(size: int) -> None:
    """Raises SetupError unless a guest of `size` bytes fits into the memory that is available now."""
    available, why = available_memory()
    if available is not None and size + _QEMU_BYTES > available:
        raise SetupError(
            f"a guest of {size // MIB} MiB does not fit: {available // MIB} MiB of memory are available ({why}); "
            "make it smaller (memory_mib), or run fewer at once"
        )


def available_memory() -> tuple[int | None, str]:
    """Bytes that can still be used here and whose limit that is; None if the kernel does not tell."""
    lines = _text("/proc/meminfo").splitlines()
    known = [(int(line.split()[1]) * 1024, "MemAvailable") for line in lines if line.startswith("MemAvailable:")]
    for line in _text("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            known += _cgroup_room(line[3:])
    return min(known) if known else (None, "")


def _cgroup_room(path: str) -> Iterator[tuple[int, str]]:
    """What each cgroup from `path` upwards still lets its members use (cgroup v2: memory.max)."""
    for directory in (Path("/sys/fs/cgroup") / path.lstrip("/"), *(Path("/sys/fs/cgroup") / path.lstrip("/")).parents):
        limit, used = _text(directory / "memory.max").strip(), _text(directory / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            # The page cache counts as used, and is given up when memory is wanted.
            cache = sum(
                int(line.split()[1])
                for line in _text(directory / "memory.stat").splitlines()
                if line.startswith(("inactive_file ", "active_file "))
            )
            yield max(0, int(limit) - int(used) + cache), f"the limit of the cgroup {directory.name or '/'}"
        if directory == Path("/sys/fs/cgroup"):
            return


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each part of the file that is no hole."""
    end, size = 0, os.fstat(descriptor).st_size
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        copied = os.sendfile(target, source, start, end - start)
        if not copied:
            raise OSError(errno.EIO, "the saved memory became shorter while it was copied")
        start += copied


def _used_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """(first, last) byte offsets of the longest runs of pages that are not all zero."""
    if not data.strip(b"\0"):
        return
    first = -1
    for at in range(0, len(data), _PAGE_BYTES):
        page = data[at : at + _PAGE_BYTES]
        used = page != (_ZERO_PAGE if len(page) == _PAGE_BYTES else bytes(len(page)))
        if used and first < 0:
            first = at
        elif not used and first >= 0:
            yield first, at
            first = -1
    if first >= 0:
        yield first, len(data)
