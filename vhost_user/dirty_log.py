"""The dirty log of a live migration: one bit per 4 KiB page, set by whoever writes guest memory (vhost-user "log").

The front-end gives the file by SET_LOG_BASE; rings write to it while VHOST_F_LOG_ALL is acked. Every bit's place is
checked against the size of the log (CVE-2020-10722): a page beyond it is simply not logged.
"""

from __future__ import annotations

from typing import Any, Self

from vhost_user._vring import ffi
from vhost_user.memory import Mapping, MemoryTableError


class DirtyLog:
    """A mapped log. Counted like a MemoryTable: the creator closes it, rings retain and release it."""

    def __init__(self, fd: int, size: int, offset: int) -> None:
        """Maps `size` bytes of `fd` from `offset`; the fd stays the caller's. Raises MemoryTableError."""
        if size <= 0 or offset < 0 or size + offset >= 1 << 64:
            raise MemoryTableError(f"dirty log of {size:#x} bytes at offset {offset:#x}")
        self._mapping = Mapping(fd, size, offset)
        self._closed = False
        handle = ffi.new("struct gw_log *")
        handle.bits, handle.size, handle.unsealed = self._mapping.base, size, not self._mapping.sealed
        #: the C side: struct gw_log *, valid while a reference is held
        self.handle: Any = handle

    def retain(self) -> Self:
        self._mapping.retain()
        return self

    def release(self) -> None:
        self._mapping.release()

    def close(self) -> None:
        """Drop the creator's reference. Idempotent."""
        if not self._closed:
            self._closed = True
            self.release()
