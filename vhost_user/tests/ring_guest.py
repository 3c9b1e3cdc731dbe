"""A guest's memory and rings, written by hand: every field of every ring can be set to anything.

Guest-physical layout, with two adjacent regions whose bytes are *not* adjacent in the file, then a hole::

    0x00000 - 0x20000   region A, file offset 0         rings at 0, buffers from 0x8000
    0x20000 - 0x30000   region B, file offset 0x30000
    0x30000 - 0x40000   a hole
    0x40000 - 0x50000   region C, file offset 0x20000
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from typing import Final, Self

from vhost_user.memory import MemoryTable, Region
from vhost_user.virtqueue import Virtqueue

NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4

F_INDIRECT: Final = 1 << 28
F_EVENT_IDX: Final = 1 << 29
F_LOG_ALL: Final = 1 << 26

BUFFERS: Final = 0x8000  #: where tests put buffers in region A
REGION_A: Final = Region(0, 0x20000, 0x7F0000000000, 0)
REGION_B: Final = Region(0x20000, 0x10000, 0x7F0000400000, 0x30000)
REGION_C: Final = Region(0x40000, 0x10000, 0x7F0000800000, 0x20000)
REGIONS: Final = (REGION_A, REGION_B, REGION_C)
HOLE: Final = 0x30000
FILE_SIZE: Final = 0x40000

#: Descriptor table, avail and used ring of the one ring in this memory, up to 1024 entries; all in region A.
DESC: Final = 0x0000
AVAIL: Final = 0x4000
USED: Final = 0x5000


def memory_file(size: int, *, sealed: bool = True) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


class Guest:
    """The memory above, its table, and access by guest-physical address."""

    def __init__(self, *, sealed: bool = True) -> None:
        self.fd = memory_file(FILE_SIZE, sealed=sealed)
        self.memory = mmap.mmap(self.fd, FILE_SIZE)
        self.table = MemoryTable.build([(region, self.fd) for region in REGIONS])

    def close(self) -> None:
        self.table.close()
        self.memory.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def place(gpa: int) -> int:
        """File offset of a guest-physical address."""
        for region in REGIONS:
            if 0 <= gpa - region.gpa < region.size:
                return region.mmap_offset + gpa - region.gpa
        raise LookupError(f"{gpa:#x} is in a hole")

    def write(self, gpa: int, data: bytes) -> None:
        for index, byte in enumerate(data):
            self.memory[self.place(gpa + index)] = byte

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.memory[self.place(gpa + index)] for index in range(size))

    def fill(self, gpa: int, byte: int, size: int) -> None:
        self.write(gpa, bytes([byte]) * size)


class Ring:
    """One ring in a Guest's region A, and the device's Virtqueue on it."""

    def __init__(
        self,
        guest: Guest,
        num: int = 8,
        *,
        features: int = F_INDIRECT | F_EVENT_IDX,
        base: int = 0,
        max_size: int = 1024,
        start: bool = True,
    ) -> None:
        self.guest = guest
        self.num = num
        self.index = base
        guest.memory[0:BUFFERS] = bytes(BUFFERS)
        self.set_avail_idx(base)
        self.set_used_idx(base)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.err = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.queue = Virtqueue(0, max_size, gate=threading.Lock())
        self.queue.set_features(features)
        self.queue.set_memory(guest.table)
        self.queue.set_num(num)
        self.queue.set_addr(0, self.uva(DESC), self.uva(USED), self.uva(AVAIL), 0)
        self.queue.set_base(base)
        self.queue.set_kick(os.dup(self.kick))
        self.queue.set_call(os.dup(self.call))
        self.queue.set_err(os.dup(self.err))
        if start:
            self.queue.start()
            self.queue.enabled = True
            self.calls()  # the one given at the start

    def close(self) -> None:
        self.queue.close()
        for fd in (self.kick, self.call, self.err):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def uva(gpa: int) -> int:
        return REGION_A.uva + gpa

    # what the driver writes

    def desc(self, index: int, gpa: int, length: int, flags: int = 0, following: int = 0, *, table: int = DESC) -> None:
        self.guest.write(table + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def offer(self, *heads: int) -> None:
        """Make chains available, as a driver does: entries first, then the index."""
        for head in heads:
            struct.pack_into("<H", self.guest.memory, AVAIL + 4 + 2 * (self.index % self.num), head)
            self.index = self.index + 1 & 0xFFFF
        self.set_avail_idx(self.index)

    def offer_buffers(self, *buffers: tuple[int, int], flags: int = 0, first: int = 0) -> None:
        """One single-descriptor chain per (gpa, length), from descriptor `first` on."""
        for position, (gpa, length) in enumerate(buffers):
            self.desc(first + position, gpa, length, flags)
        self.offer(*range(first, first + len(buffers)))

    def set_avail_idx(self, index: int) -> None:
        struct.pack_into("<H", self.guest.memory, AVAIL + 2, index)

    def set_avail_flags(self, flags: int) -> None:
        struct.pack_into("<H", self.guest.memory, AVAIL, flags)

    def set_used_event(self, index: int) -> None:
        struct.pack_into("<H", self.guest.memory, AVAIL + 4 + 2 * self.num, index)

    def set_used_idx(self, index: int) -> None:
        struct.pack_into("<H", self.guest.memory, USED + 2, index)

    # what the device wrote

    @property
    def used_idx(self) -> int:
        return int(struct.unpack_from("<H", self.guest.memory, USED + 2)[0])

    @property
    def used_flags(self) -> int:
        return int(struct.unpack_from("<H", self.guest.memory, USED)[0])

    @property
    def avail_event(self) -> int:
        return int(struct.unpack_from("<H", self.guest.memory, USED + 4 + 8 * self.num)[0])

    def used(self, index: int) -> tuple[int, int]:
        """(id, len) of the used entry with this free-running index."""
        head, length = struct.unpack_from("<II", self.guest.memory, USED + 4 + 8 * (index % self.num))
        return head, length

    def calls(self) -> int:
        """How often the device called since the last look."""
        return _count(self.call)

    def errors(self) -> int:
        return _count(self.err)

    # what the device answers

    def pop(self, budget: int = 256, max_bytes: int = 1 << 19) -> list[bytes]:
        burst = self.queue.pop(budget, max_bytes)
        found = [
            bytes(burst.view[offset : offset + length]) for offset, length in struct.iter_unpack("=II", burst.records)
        ]
        assert len(found) == burst.count
        return found


def _count(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
