"""The memory of a guest without QEMU: one memfd, shared with the back-end as one or several regions.

Regions are given as guest-physical ranges and lie one behind the other in the memfd, as QEMU lays them out; between
them the guest-physical address space has holes. Two regions that touch are adjacent in the memfd too, so a buffer may
straddle their border.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from .errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Sequence

BytesLike: TypeAlias = bytes | bytearray | memoryview

MIB: Final = 1 << 20
PAGE: Final = 4096

#: What QEMU's memory-backend-memfd sets by default (seal=on).
_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class MemoryRegion(NamedTuple):
    """One range of guest memory, as the front-end describes it to the back-end. All in bytes."""

    gpa: int  #: guest-physical address
    size: int
    uva: int  #: address in the front-end's process; ring addresses are sent in this space
    mmap_offset: int  #: where the range starts in the memfd


class GuestMemory:
    """Guest-physical memory, readable and writable by address, with a simple allocator for rings and buffers.

    `regions`: (guest-physical address, size) pairs in bytes, page multiples, ascending and without overlap.
    The default is one region of 256 MiB at 0; pages exist only once touched. `sealed=False` leaves out F_SEAL_SHRINK,
    so that a test may truncate the file under the back-end.
    """

    def __init__(self, regions: Sequence[tuple[int, int]] = ((0, 256 * MIB),), *, sealed: bool = True) -> None:
        if not regions:
            raise ValueError("guest memory needs at least one region")
        self.size = sum(size for _, size in regions)
        end = 0
        for gpa, size in regions:
            if gpa < end or size <= 0 or gpa % PAGE or size % PAGE:
                raise ValueError(f"region {gpa:#x}+{size:#x} overlaps, is empty or is no multiple of {PAGE} bytes")
            end = gpa + size
        self.fd = os.memfd_create("guestwire-driver", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            if sealed:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise
        from vhost_user._vring import ffi

        #: The whole memfd as C sees it; released by `close`.
        self._c = ffi.from_buffer("uint8_t[]", self._map, require_writable=True)
        self._base = int(ffi.cast("uintptr_t", self._c))
        self._view = memoryview(self._map)
        self.regions: list[MemoryRegion] = []
        offset = 0
        for gpa, size in regions:
            self.regions.append(MemoryRegion(gpa, size, self._base + offset, offset))
            offset += size
        self._next = [region.gpa for region in self.regions]
        self.closed = False

    def offset(self, gpa: int, size: int = 1) -> int:
        """Where [gpa, gpa + size) lies in the memfd. Raises ValueError when it touches a hole."""
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + region.size:
                start = gpa - region.gpa + region.mmap_offset
                while gpa + size > region.gpa + region.size:
                    follower = self._region_at(region.gpa + region.size)
                    if follower is None:
                        break
                    region = follower
                else:
                    return start
                break
        raise ValueError(f"no guest memory at {gpa:#x}+{size:#x}")

    def _region_at(self, gpa: int) -> MemoryRegion | None:
        return next((region for region in self.regions if region.gpa == gpa), None)

    def uva(self, gpa: int) -> int:
        """The front-end's address of `gpa`: what SET_VRING_ADDR carries."""
        return self._base + self.offset(gpa)

    def address(self, gpa: int, size: int = 1) -> int:
        """The address of [gpa, gpa + size) in this process, for C. Valid until `close`."""
        return self._base + self.offset(gpa, size)

    def view(self, gpa: int, size: int) -> memoryview:
        """Writable view of guest memory. Release it before `close`."""
        start = self.offset(gpa, size)
        return self._view[start : start + size]

    def read(self, gpa: int, size: int) -> bytes:
        start = self.offset(gpa, size)
        return self._map[start : start + size]

    def write(self, gpa: int, data: BytesLike) -> None:
        with memoryview(data).cast("B") as source:
            start = self.offset(gpa, len(source) or 1)
            self._view[start : start + len(source)] = source

    def allocate(self, size: int, align: int = 16, *, region: int | None = None) -> int:
        """A guest-physical range of `size` bytes inside one region (any, or the given one); never freed.

        Raises DriverError when no region has room.
        """
        for index in range(len(self.regions)) if region is None else (region,):
            gpa = -(-self._next[index] // align) * align
            if gpa + size <= self.regions[index].gpa + self.regions[index].size:
                self._next[index] = gpa + size
                return gpa
        raise DriverError(f"guest memory is too small for {size} more bytes: give the driver larger regions")

    def close(self) -> None:
        """Unmap and close the memfd. Idempotent. Rings and buffers in it must no longer be used."""
        if self.closed:
            return
        self.closed = True
        from vhost_user._vring import ffi

        ffi.release(self._c)
        self._view.release()
        self._map.close()
        os.close(self.fd)
