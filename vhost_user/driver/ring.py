"""One virtqueue from the driver's side: rings and buffers in guest memory, eventfds, and raw access to every byte.

The operations that move data are C (`csrc/vdriver.c`): bursts are copied in and out of guest memory for real, fast
enough to measure a back-end with. The raw ones (`write_descriptor`, `write_avail`, `set_avail_index`...) write what
they are told, wherever the bookkeeping of the well-behaved side stands.
"""

from __future__ import annotations

import os
import select
import time
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from .errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .memory import BytesLike, GuestMemory

DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4
DESCRIPTOR: Final = Struct("<QIHH")  #: address, length, flags, next
USED_ELEMENT: Final = Struct("<II")  #: head, bytes written

#: Descriptors of one chain, and of one indirect table (VDRV_PIECES in csrc/vdriver.h).
MAX_PIECES: Final = 32

_FAULTS: Final = (
    "",
    "the device moved used.idx past what was in flight",
    "a used entry names no chain in flight",
    "a used entry claims more bytes than its buffer holds",
    "a frame announces more buffers than were published with it, or none",
)


class Descriptor(NamedTuple):
    """One entry of a descriptor table, for raw access."""

    address: int  #: guest-physical
    length: int  #: bytes
    flags: int = 0
    next: int = 0


class DriverRing:
    """A split virtqueue of `num` descriptors (a power of two) at `index`, with the `buffers`
    buffers of `buffer_size` bytes it uses.

    `writable`: buffers are for the device to write to (a receive queue). `pieces`: sizes of the leading descriptors
    of each chain, the rest goes in one more; () makes one descriptor of each buffer. `indirect`: chains of several
    descriptors go through an indirect table. `event_idx`: VIRTIO_F_EVENT_IDX was negotiated.
    """

    def __init__(
        self,
        memory: GuestMemory,
        index: int,
        num: int,
        *,
        writable: bool,
        buffers: int,
        buffer_size: int,
        indirect: bool = False,
        event_idx: bool = False,
        pieces: Sequence[int] = (),
    ) -> None:
        if num < 1 or num & (num - 1):
            raise ValueError(f"ring size {num} is no power of two")
        if len(pieces) >= MAX_PIECES or min(pieces, default=1) < 1:
            raise ValueError(f"pieces {list(pieces)!r}: at most {MAX_PIECES - 1} sizes of one byte or more")
        from vhost_user._vring import ffi, lib

        self._ffi, self._lib = ffi, lib
        self.memory = memory
        self.index = index
        self.num = num
        self.buffer_size = buffer_size
        self.event_idx = event_idx
        #: Guest-physical addresses of the three parts (virtio 1.3 section 2.7: alignment 16, 2, 4).
        self.desc = memory.allocate(16 * num, 16)
        self.avail = memory.allocate(6 + 2 * num, 2)
        self.used = memory.allocate(6 + 8 * num, 4)
        self.tables = memory.allocate(16 * MAX_PIECES * num, 16)
        stride = -(-buffer_size // 64) * 64 or 64
        self.buffers = memory.allocate(stride * max(buffers, 1), 4096)
        self._slots = ffi.new("struct vdrv_slot[]", num)
        self._free = ffi.new("uint32_t[]", max(buffers, 1))
        self.c_pool = ffi.new("struct vdrv_pool *")
        self.c_pool.memory = self._pointer(self.buffers, stride * max(buffers, 1))
        self.c_pool.gpa = self.buffers
        self.c_pool.size = stride if not writable else buffer_size
        self.c_pool.count = buffers
        self.c_pool.free = self._free
        self.c_ring = ffi.new("struct vdrv_ring *")
        self.c_ring.slots = self._slots
        self.c_ring.num = num
        self.c_ring.desc = self._pointer(self.desc, 16 * num)
        self.c_ring.avail = self._pointer(self.avail, 6 + 2 * num)
        self.c_ring.used = self._pointer(self.used, 6 + 8 * num)
        self.c_ring.tables = self._pointer(self.tables, 16 * MAX_PIECES * num)
        self.c_ring.tables_gpa = self.tables
        self.c_ring.event_idx = event_idx
        self.c_ring.indirect = indirect
        self.c_ring.writable = writable
        self.c_ring.npieces = len(pieces)
        self.c_ring.piece[0 : len(pieces)] = list(pieces)
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.kicks = 0  #: kicks given
        self.closed = False
        self.reset()

    def _pointer(self, gpa: int, size: int) -> object:
        return self._ffi.cast("uint8_t *", self.memory.address(gpa, size))

    def reset(self) -> None:
        """As a driver does after a device reset: zeroed rings, everything free."""
        self.memory.write(self.desc, bytes(16 * self.num))
        self.memory.write(self.avail, bytes(6 + 2 * self.num))
        self.memory.write(self.used, bytes(6 + 8 * self.num))
        self._lib.vdrv_init(self.c_ring)
        self._lib.vdrv_pool_init(self.c_pool)

    def close(self) -> None:
        """Close the eventfds. Idempotent."""
        if not self.closed:
            self.closed = True
            for fd in (self.kick_fd, self.call_fd, self.err_fd):
                os.close(fd)

    # -- the well-behaved driver ----------------------------------------------------------------------------------

    @property
    def fault(self) -> str:
        """What the device did wrong, in words; empty while it behaves."""
        return _FAULTS[self.c_ring.fault]

    @property
    def free_buffers(self) -> int:
        return int(self.c_pool.nfree)

    @property
    def in_flight(self) -> int:
        """Chains published and not yet taken back."""
        return int(self.c_ring.published - self.c_ring.last_used) & 0xFFFF

    @property
    def pending(self) -> int:
        """Used entries waiting to be taken back. Raises DriverError if the device broke the ring's rules."""
        count = self._lib.vdrv_pending(self.c_ring)
        self.check()
        return int(count)

    def linger(self, enough: int = 1, *, looks: int) -> int:
        """As `pending`, having looked up to `looks` times more until there are `enough`: in C, the processor pausing
        each time (some 20 ns to 60 ns), which leaves its other half to whoever is waited for.
        """
        count = self._lib.vdrv_linger(self.c_ring, enough, looks)
        self.check()
        return int(count)

    def check(self) -> None:
        if self.c_ring.fault:
            raise DriverError(f"ring {self.index}: {self.fault}")

    def publish(self) -> bool:
        """Show the device what was added, and kick it if it wants to know. True: it was kicked."""
        if self._lib.vdrv_publish(self.c_ring):
            self.kick()
            return True
        return False

    def kick(self) -> None:
        """Kick, wanted or not."""
        self.kicks += 1
        os.eventfd_write(self.kick_fd, 1)

    def post(self) -> int:
        """Give every free buffer to the device (a receive queue). Returns how many."""
        posted = self._lib.vdrv_post(self.c_ring, self.c_pool)
        if posted:
            self.publish()
        return int(posted)

    def reclaim(self) -> int:
        """Take back what the device used (a transmit queue). Returns how many chains."""
        count = self._lib.vdrv_reclaim(self.c_ring, self.c_pool)
        self.check()
        return int(count)

    def suppress(self) -> None:
        self._lib.vdrv_suppress(self.c_ring)

    def arm(self, after: int = 1) -> bool:
        """Ask for an interrupt once `after` more chains are used. True: that many wait already."""
        due = bool(self._lib.vdrv_arm(self.c_ring, after))
        self.check()
        return due

    def wait(self, timeout: float | None, *, after: int = 1) -> bool:
        """Sleep until `after` chains are used, at most `timeout` seconds (None: for ever). False: time is up."""
        if self.pending >= after:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        poller = select.poll()
        poller.register(self.call_fd, select.POLLIN)
        while True:
            self.drain_calls()
            due = self.arm(after)
            left = None if deadline is None else deadline - time.monotonic()
            if not due and (left is None or left > 0):
                poller.poll(None if left is None else left * 1000)
            self.suppress()
            # It may have been for what was seen before: without VIRTIO_F_EVENT_IDX a device that reads our flags late
            # cannot know.
            if due or self.pending >= after:
                return True
            if left is not None and left <= 0:
                return False

    def drain_calls(self) -> int:
        """Interrupts since the last time."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def drain_errors(self) -> int:
        """Times the device signalled the ring's error descriptor."""
        try:
            return os.eventfd_read(self.err_fd)
        except BlockingIOError:
            return 0

    # -- raw access -----------------------------------------------------------------------------------------------

    def write_descriptor(self, slot: int, descriptor: Descriptor, *, table: int | None = None) -> None:
        """Overwrite descriptor `slot` of the ring, or of the table at guest-physical address `table`."""
        where = (self.desc if table is None else table) + DESCRIPTOR.size * slot
        self.memory.write(where, DESCRIPTOR.pack(*descriptor))

    def read_descriptor(self, slot: int) -> Descriptor:
        return Descriptor(*DESCRIPTOR.unpack(self.memory.read(self.desc + DESCRIPTOR.size * slot, DESCRIPTOR.size)))

    def write_avail(self, slot: int, head: int) -> None:
        """Overwrite entry `slot` of the available ring."""
        self.memory.write(self.avail + 4 + 2 * slot, head.to_bytes(2, "little"))

    def set_avail_flags(self, flags: int) -> None:
        self._lib.vdrv_store16(self._pointer(self.avail, 2), flags)

    def set_avail_index(self, index: int) -> None:
        """Store avail.idx with release ordering."""
        self._lib.vdrv_store16(self._pointer(self.avail + 2, 2), index & 0xFFFF)

    @property
    def avail_index(self) -> int:
        return int(self._lib.vdrv_load16(self._pointer(self.avail + 2, 2)))

    @property
    def used_index(self) -> int:
        return int(self._lib.vdrv_load16(self._pointer(self.used + 2, 2)))

    def set_used_index(self, index: int) -> None:
        """Scribble over the device's index."""
        self._lib.vdrv_store16(self._pointer(self.used + 2, 2), index & 0xFFFF)

    def read_used(self, slot: int) -> tuple[int, int]:
        """Entry `slot` of the used ring: (head, bytes written)."""
        head, length = USED_ELEMENT.unpack(self.memory.read(self.used + 4 + 8 * slot, 8))
        return head, length

    @property
    def avail_event(self) -> int:
        """The device's wish (EVENT_IDX): kick when avail.idx passes this."""
        return int(self._lib.vdrv_load16(self._pointer(self.used + 4 + 8 * self.num, 2)))

    @property
    def used_flags(self) -> int:
        return int(self._lib.vdrv_load16(self._pointer(self.used, 2)))

    def set_used_event(self, index: int) -> None:
        self._lib.vdrv_store16(self._pointer(self.avail + 4 + 2 * self.num, 2), index & 0xFFFF)

    def make_available(self, chain: Sequence[Descriptor], *, first: int = 0) -> None:
        """Write `chain` to descriptors `first`... exactly as given, make its head available, publish, and kick.

        Uses avail.idx as it stands in guest memory: do not mix with `send` and `post` on the same ring.
        """
        for number, descriptor in enumerate(chain):
            self.write_descriptor((first + number) % self.num, descriptor)
        index = self.avail_index
        self.write_avail(index % self.num, first)
        self.set_avail_index(index + 1)
        self.kick()

    def scratch(self, data: BytesLike = b"", *, size: int = 0, at: int = 0) -> int:
        """Put `data` at byte `at` of the buffer area; returns its guest-physical address. `size` only checks room."""
        gpa = self.buffers + at
        self.memory.offset(gpa, max(size, len(data), 1))
        self.memory.write(gpa, data)
        return gpa
