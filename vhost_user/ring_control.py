"""One ring as the control thread knows it: size, place, base, descriptors; started, enabled, live, broken.

`vhost_user.virtqueue` adds what the data path does, and tells how the two get along. Control methods are called by
session code with the ring's gate held.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vhost_user import syscalls
from vhost_user._vring import ffi, lib

if TYPE_CHECKING:
    from vhost_user.dirty_log import DirtyLog
    from vhost_user.gate import LockLike
    from vhost_user.memory import MemoryTable

log = logging.getLogger("vhost_user.virtqueue")

#: Ring features this code implements, by virtio feature bit.
F_LOG_ALL: Final = 1 << 26  #: vhost: log written pages
F_INDIRECT_DESC: Final = 1 << 28
F_EVENT_IDX: Final = 1 << 29
F_RING_PACKED: Final = 1 << 34  #: never offered
F_IN_ORDER: Final = 1 << 35  #: kept by construction: chains are used in the order they were made available

#: Largest ring of the specification (virtio 1.3 section 2.7).
MAX_RING_SIZE: Final = 32768


class RingError(ValueError):
    """A control message this ring cannot honour; the text says which and why."""


class RingCounters(NamedTuple):
    """What happened on a ring since it was made; never reset."""

    bursts: int  #: data calls that moved at least one chain
    chains: int  #: chains taken and returned
    bytes: int  #: payload bytes copied, either way
    kicks: int  #: times the kick descriptor was found readable by `arm` or `drain_kick`
    calls: int  #: times the call descriptor was written
    calls_spared: int  #: bursts after which the guest did not want a call
    discarded: int  #: chains returned unread by `discard`
    dropped_long: int  #: readable chains longer than max_chain_bytes
    dropped_no_fit: int  #: frames that fit no chain (or not the whole ring), or lack their header
    shortages: int  #: pushes that stopped because too few chains were available
    no_memory: int  #: pops put off because no slab could be allocated
    burst_sizes: tuple[int, ...]  #: bursts of 1, 2 to 3, 4 to 7, ... chains; 16 of them


class RingControl:
    """The control side of one ring of one device. `gate` is the lock between control and data."""

    def __init__(self, index: int, max_size: int, *, gate: LockLike) -> None:
        """`max_size`: largest ring accepted by SET_VRING_NUM, a power of two up to 32768."""
        if not 1 <= max_size <= MAX_RING_SIZE or max_size & (max_size - 1):
            raise ValueError(f"max_size {max_size}: a power of two up to {MAX_RING_SIZE} is wanted")
        self.index = index
        self.max_size = max_size
        #: why the ring was stopped, or None
        self.broken: str | None = None
        self._gate = gate
        ring = lib.gw_vring_new(max_size)
        if ring == ffi.NULL:
            raise MemoryError(f"virtqueue {index}")
        self._ring: Any = ffi.gc(ring, lib.gw_vring_free)
        self._muted = False
        self._kick_fd = -1
        self._call_fd = -1
        self._err_fd = -1
        self._memory: MemoryTable | None = None
        self._log: DirtyLog | None = None
        self._num = 0
        self._features = 0
        self._base = 0
        self._addresses: tuple[int, int, int, int, int] | None = None
        self._started = False
        self._enabled = False
        self._live = False

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def num(self) -> int:
        """Ring size in descriptors; 0 before SET_VRING_NUM."""
        return self._num

    @property
    def started(self) -> bool:
        return self._started

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        """SET_VRING_ENABLE: remembered whatever else the ring's state is (QEMU enables net rings first of all)."""
        self._enabled = bool(value)
        self._refresh()

    @property
    def live(self) -> bool:
        """Started, enabled, placed in memory and not broken: `pop` and `push` may find work."""
        return self._live

    @property
    def handle(self) -> Any:
        """The C side, struct gw_vring *, for what works on several rings at once. The gate is to be held."""
        return self._ring

    @property
    def gate(self) -> LockLike:
        return self._gate

    def check(self, code: int) -> int:
        """What a C call on `handle` answered: its count, or 0 after breaking the ring. The gate is held."""
        return self._check(code)

    @property
    def kick_fd(self) -> int | None:
        """For the owner's epoll. Unregister it *before* set_kick, stop, reset or close: the front-end holds the same
        open file, so the kernel would not forget it at close."""
        return self._kick_fd if self._kick_fd >= 0 else None

    @property
    def base(self) -> int:
        """The next available index the device will look at."""
        return int(lib.gw_vring_base(self._ring)) if self._started else self._base

    @property
    def addresses(self) -> tuple[int, int, int, int, int] | None:
        """What SET_VRING_ADDR said last (see `set_addr`), or None."""
        return self._addresses

    @property
    def counters(self) -> RingCounters:
        counters = lib.gw_vring_counters(self._ring)
        numbers = {name: int(getattr(counters, name)) for name in RingCounters._fields if name != "burst_sizes"}
        return RingCounters(**numbers, burst_sizes=tuple(counters.burst_sizes))

    # -- control: the gate is held by the caller -------------------------------------------------------------------

    def set_features(self, features: int) -> None:
        """The acked virtio feature bits. Raises RingError if they change the format of a running ring."""
        if features & F_RING_PACKED:
            raise RingError("packed rings are not offered")
        changed = (self._features ^ features) & (F_INDIRECT_DESC | F_EVENT_IDX)
        if self._started and changed:
            raise RingError(f"ring {self.index} is running: its features cannot change by {changed:#x}")
        self._features = features
        lib.gw_vring_set_features(self._ring, features)

    def set_num(self, num: int) -> None:
        if self._started:
            raise RingError(f"ring {self.index} is running: its size cannot change")
        if not 1 <= num <= self.max_size or num & (num - 1):
            raise RingError(f"ring {self.index}: size {num} is not a power of two up to {self.max_size}")
        self._num = num

    def set_addr(self, flags: int, desc_uva: int, used_uva: int, avail_uva: int, log_gpa: int) -> None:
        """SET_VRING_ADDR, in the message's order. On a running ring the new place is checked, then swapped in.

        Raises RingError for unknown flags, misalignment, or (when memory and size are known) a ring that does not lie
        inside one region; then nothing changed.
        """
        if flags & ~1:
            raise RingError(f"ring {self.index}: address flags {flags:#x}")
        if desc_uva % 16 or avail_uva % 2 or used_uva % 4:
            raise RingError(
                f"ring {self.index}: misaligned (desc {desc_uva:#x}, avail {avail_uva:#x}, used {used_uva:#x})"
            )
        addresses = (flags, desc_uva, used_uva, avail_uva, log_gpa)
        if self._started or (self._memory is not None and self._num):
            self._place(self._memory, addresses)
        self._addresses = addresses
        self._refresh()

    def set_base(self, base: int) -> None:
        """The next available index to look at, 0..65535."""
        if self._started:
            raise RingError(f"ring {self.index} is running: its base cannot change")
        if not 0 <= base <= 0xFFFF:
            raise RingError(f"ring {self.index}: base {base} does not fit 16 bits")
        self._base = base

    def set_memory(self, memory: MemoryTable | None) -> None:
        """Use another memory table (None: none). A running ring whose place is not in it becomes broken; without any
        memory it waits. The ring holds its own reference."""
        old = self._memory
        self._memory = None if memory is None else memory.retain()
        lib.gw_vring_unplace(self._ring)
        if self._started and self._memory is not None and self._addresses is not None and not self.broken:
            try:
                self._place(self._memory, self._addresses)
            except RingError as error:
                self._break(f"{error}, after the memory changed")
        self._refresh()
        if old is not None:
            old.release()

    def set_log(self, dirty_log: DirtyLog | None) -> None:
        """Where to mark written pages while VHOST_F_LOG_ALL is acked. The ring holds its own reference."""
        old, self._log = self._log, None if dirty_log is None else dirty_log.retain()
        lib.gw_vring_set_log(self._ring, ffi.NULL if dirty_log is None else dirty_log.handle)
        if old is not None:
            old.release()

    def set_kick(self, fd: int | None) -> None:
        """Owns `fd` from now on and closes the one before.

        Raises RingError if it is no eventfd; then it stays the caller's, and the one before stays in use.
        """
        self._check_event(fd, "kick")
        self._kick_fd = _replace(self._kick_fd, fd)
        lib.gw_vring_set_kick(self._ring, self._kick_fd)

    def set_call(self, fd: int | None) -> None:
        """As `set_kick`. A running ring signals the new one at once: a call may have gone to the old one unseen."""
        self._check_event(fd, "call")
        self._call_fd = _replace(self._call_fd, fd)
        if self._muted:
            return
        lib.gw_vring_set_call(self._ring, self._call_fd)
        if self._started and not self.broken:
            lib.gw_vring_signal(self._ring)

    def set_err(self, fd: int | None) -> None:
        """As `set_kick`; signalled when the ring breaks."""
        self._check_event(fd, "err")
        self._err_fd = _replace(self._err_fd, fd)

    def start(self) -> None:
        """Begin: used index from guest memory, notifications armed, one call in case the last one before us was lost.

        Needs size and addresses; memory may still come. Idempotent. Raises RingError.
        """
        if self._started:
            return
        if not self._num or self._addresses is None:
            raise RingError(f"ring {self.index}: started before its {'address' if self._num else 'size'} is known")
        self._place(self._memory, self._addresses)
        self.broken = None
        self._started = True
        self._refresh()
        self._check(lib.gw_vring_start(self._ring, self._base))

    def stop(self) -> int:
        """GET_VRING_BASE: the next available index. Closes kick and call; guest memory is not touched afterwards."""
        if self._started:
            self._base = int(lib.gw_vring_base(self._ring))
        self._started = False
        lib.gw_vring_stop(self._ring)
        self.set_kick(None)
        self.set_call(None)
        self._refresh()
        return self._base

    def reset(self) -> None:
        """As if never set up: stopped, disabled, no memory, no log, no descriptors."""
        self.stop()
        self.set_err(None)
        self.set_memory(None)
        self.set_log(None)
        self.broken = None
        self._num = self._base = self._features = 0
        self._addresses = None
        lib.gw_vring_set_features(self._ring, 0)
        self.enabled = False

    def close(self) -> None:
        """Idempotent. The object may be set up again afterwards."""
        self.reset()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        placed = self._memory is not None and self._addresses is not None
        self._live = self._started and self._enabled and placed and self.broken is None

    def _place(self, memory: MemoryTable | None, addresses: tuple[int, int, int, int, int]) -> None:
        if memory is None:
            return
        flags, desc, used, avail, log_gpa = addresses
        code = lib.gw_vring_place(self._ring, memory.handle, self._num, desc, avail, used, flags, log_gpa)
        if code in (lib.GW_BROKEN_PLACE, lib.GW_BROKEN_ALIGNMENT):
            raise RingError(f"ring {self.index}: {self._reason(code)}")
        self._check(code)  # memory that came after the start was looked into at once

    def _reason(self, code: int) -> str:
        text = str(ffi.string(lib.gw_vring_strerror(code)), "ascii")
        return f"{text} ({lib.gw_vring_error_value(self._ring):#x})"

    def _check(self, code: int) -> int:
        """What a C call answered: its count, or 0 after breaking the ring."""
        if code >= 0:
            return code
        if code != lib.GW_NO_MEMORY:  # counted in C; the chains stay where they are
            self._break(self._reason(code))
        return 0

    def _break(self, reason: str) -> None:
        self.broken = reason
        self._refresh()
        log.warning("ring %d stopped: %s", self.index, reason)
        if self._err_fd >= 0:
            lib.gw_event_signal(self._err_fd)

    def _check_event(self, fd: int | None, name: str) -> None:
        """Only an eventfd can stand for a notification, and one that never blocks us: a front-end may leave its counter
        full (the flag is the front-end's too; every VMM sets it itself)."""
        if fd is None:
            return
        try:
            if syscalls.kind(fd) != "anon_inode:[eventfd]":
                raise RingError(f"ring {self.index}: the {name} descriptor is not an eventfd")
            syscalls.set_nonblocking(fd)
        except OSError as error:
            raise RingError(f"ring {self.index}: {name} descriptor: {errno.errorcode[error.errno or 0]}") from None


def _replace(old: int, new: int | None) -> int:
    if old >= 0:
        syscalls.close(old)
    return -1 if new is None else new
