"""The front-end's memory table: which file ranges are the guest's RAM, and where they are mapped here.

Theory of operation
-------------------
A table is immutable. `build`, `with_added` and `with_removed` each make a new one (sharing the mappings both have in
common); the caller swaps it in ring by ring under the rings' gates and closes the old one. Mappings are counted: the
creator of a table holds one reference, every ring using it another, every table holds one on each of its mappings,
and `munmap` happens when the last is gone. So no ring can be left with a pointer into unmapped memory, whatever order
messages come in. References are only ever taken and dropped by the thread that handles control messages.

Every rule of the message reference for memory messages is checked here, before anything is mapped: a size of zero,
sums that overflow, overlap in guest-physical or in user addresses, and a file shorter than the region claims, which
would turn the first access into SIGBUS. A file may also be truncated later: a memfd sealed against shrinking cannot,
anything else can, so the C side of a table knows whether any region is unsealed and guards bursts over it.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import stat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from vhost_user._vring import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Slots a table can have. SET_MEM_TABLE alone carries at most 8; ADD_MEM_REG may go on up to this.
MAX_REGIONS: Final[int] = lib.GW_REGIONS_MAX

_U64_LIMIT: Final = 1 << 64


class MemoryTableError(ValueError):
    """A memory message that cannot be honoured; the text names the region and what is wrong with it."""


class Region(NamedTuple):
    """One region as vhost-user messages describe it. All in bytes."""

    gpa: int  #: guest-physical address
    size: int
    uva: int  #: the same place in the front-end's address space (ring addresses are given in these)
    mmap_offset: int  #: where the region starts in the file

    def __str__(self) -> str:
        return f"region gpa {self.gpa:#x} size {self.size:#x} uva {self.uva:#x} offset {self.mmap_offset:#x}"


class Mapping:
    """Part of a file, mapped shared and writable, and counted. `base` is the address of byte `offset` of the file."""

    __slots__ = ("_length", "_start", "base", "sealed", "users")

    def __init__(self, fd: int, size: int, offset: int) -> None:
        """Maps [offset, offset+size) of `fd`, which stays the caller's.

        Raises MemoryTableError if the file is not a regular one, is too short, or cannot be mapped writable.
        """
        # Seals first: once shrinking is sealed off, the size read afterwards is final.
        self.sealed = _sealed_against_shrinking(fd)
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise MemoryTableError(f"file descriptor {fd}: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            raise MemoryTableError("the descriptor is not a memory file")
        if offset + size > status.st_size:
            raise MemoryTableError(
                f"the file has {status.st_size:#x} bytes, bytes {offset:#x} to {offset + size:#x} were promised"
            )
        # hugetlbfs wants offset and length in whole huge pages, and tells their size as st_blksize.
        align = max(mmap.PAGESIZE, status.st_blksize)
        if align & (align - 1):
            align = mmap.PAGESIZE
        below = offset % align
        length = -(-(size + below) // align) * align
        start = lib.gw_map(fd, length, offset - below)
        if start == ffi.NULL:
            raise MemoryTableError(f"mmap of {length:#x} bytes: {os.strerror(ffi.errno)}")
        self._start = start
        self._length = length
        self.base = start + below
        self.users = 1

    def retain(self) -> Self:
        self.users += 1
        return self

    def release(self) -> None:
        self.users -= 1
        if self.users == 0:
            lib.gw_unmap(self._start, self._length)


def _sealed_against_shrinking(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # not a memfd: whoever can open the file can truncate it
        return False


def _check(regions: Sequence[Region]) -> None:
    if not 1 <= len(regions) <= MAX_REGIONS:
        raise MemoryTableError(f"{len(regions)} memory regions; between 1 and {MAX_REGIONS} can be used")
    for region in regions:
        if region.size == 0:
            raise MemoryTableError(f"{region}: empty")
        for name, start in (("gpa", region.gpa), ("uva", region.uva), ("offset", region.mmap_offset)):
            if start < 0 or start + region.size >= _U64_LIMIT:
                raise MemoryTableError(f"{region}: {name} + size overflows")
    by_gpa = sorted(regions)
    for low, high in itertools.pairwise(by_gpa):
        if low.gpa + low.size > high.gpa:
            raise MemoryTableError(f"{low} and {high} overlap in guest-physical addresses")
    by_uva = sorted(regions, key=lambda region: region.uva)
    for low, high in itertools.pairwise(by_uva):
        if low.uva + low.size > high.uva:
            raise MemoryTableError(f"{low} and {high} overlap in user addresses")


class MemoryTable:
    """An immutable set of mapped regions. Close it when done; rings that use it keep the mappings alive."""

    def __init__(self, placed: Sequence[tuple[Region, Mapping]]) -> None:
        """Takes over one reference on each mapping. Use `build`."""
        self._placed = tuple(sorted(placed, key=lambda item: item[0].gpa))
        self._users = 1
        self._closed = False
        handle = ffi.new("struct gw_memory *")
        handle.count = len(self._placed)
        handle.unsealed = not all(mapping.sealed for _, mapping in self._placed)
        for slot, (region, mapping) in enumerate(self._placed):
            entry = handle.region[slot]
            entry.gpa, entry.size, entry.uva, entry.host = region.gpa, region.size, region.uva, mapping.base
        #: the C side: struct gw_memory *, valid while a reference is held
        self.handle: Any = handle

    @classmethod
    def build(cls, regions: Sequence[tuple[Region, int]]) -> MemoryTable:
        """Checks and maps (region, fd) pairs. The fds stay the caller's and may be closed afterwards.

        Raises MemoryTableError; then nothing stays mapped.
        """
        _check([region for region, _ in regions])
        placed: list[tuple[Region, Mapping]] = []
        try:
            for region, fd in regions:
                placed.append((region, _map(region, fd)))
        except MemoryTableError:
            for _, mapping in placed:
                mapping.release()
            raise
        return cls(placed)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions, by guest-physical address."""
        return tuple(region for region, _ in self._placed)

    @property
    def unsealed(self) -> bool:
        """True if a region's file can be truncated under us, so that bursts are guarded against SIGBUS."""
        return bool(self.handle.unsealed)

    def with_added(self, region: Region, fd: int) -> MemoryTable:
        """A new table that has `region` too. An exact duplicate adds nothing (QEMU 7.2 repeats ADD_MEM_REG per queue
        pair) but still gives a new table. The old one stays open. Raises MemoryTableError."""
        shared = [(known, mapping.retain()) for known, mapping in self._placed]
        try:
            if region not in self.regions:
                _check([*self.regions, region])
                shared.append((region, _map(region, fd)))
        except MemoryTableError:
            for _, mapping in shared:
                mapping.release()
            raise
        return MemoryTable(shared)

    def with_removed(self, region: Region) -> MemoryTable | None:
        """A new table without `region`, which must match one here in gpa, size and uva; None if it was the last.

        The old table stays open. Raises MemoryTableError if there is no such region.
        """
        kept = [item for item in self._placed if item[0][:3] != region[:3]]
        if len(kept) == len(self._placed):
            raise MemoryTableError(f"{region}: not in the table")
        if not kept:
            return None
        return MemoryTable([(known, mapping.retain()) for known, mapping in kept])

    def retain(self) -> Self:
        """One more user (a ring). Every `retain` needs its `release`."""
        if self._users == 0:
            raise MemoryTableError("the memory table is gone")
        self._users += 1
        return self

    def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            for _, mapping in self._placed:
                mapping.release()

    def close(self) -> None:
        """Drop the creator's reference. Idempotent."""
        if not self._closed:
            self._closed = True
            self.release()


def _map(region: Region, fd: int) -> Mapping:
    try:
        return Mapping(fd, region.size, region.mmap_offset)
    except MemoryTableError as error:
        raise MemoryTableError(f"{region}: {error}") from None
