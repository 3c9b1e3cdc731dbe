"""Messages out of and into guest memory, many per call into C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .memory import BytesLike
    from .ring import DriverRing

#: Bytes one receive call may return; several of the largest messages.
_INBOX: Final = 1 << 20
_RECORDS: Final = 256


class Burst:
    """(header, data) pairs whose addresses C already knows, to be copied into guest memory and sent, again and again.

    A header given as a bytearray may be changed in place between sends: that is how a bench counts its sequence
    numbers up.
    """

    def __init__(self, messages: Sequence[tuple[BytesLike, BytesLike]]) -> None:
        from vhost_user._vring import ffi, lib

        self._lib = lib
        self.count = len(messages)
        self._array = ffi.new("struct vdrv_message[]", max(self.count, 1))
        self._keep: list[Any] = []  # the buffers the array points into
        self._longest = max((len(header) + len(data) for header, data in messages), default=0)
        for entry, (header, data) in zip(self._array, messages, strict=False):
            head, body = ffi.from_buffer("uint8_t[]", header), ffi.from_buffer("uint8_t[]", data)
            self._keep += (head, body)
            entry.header, entry.header_length = head, len(head)
            entry.data, entry.data_length = body, len(body)

    def send(self, ring: DriverRing, *, first: int = 0, count: int | None = None, timeout: float | None = 0.0) -> int:
        """Send messages [first, first + count) on `ring`; returns how many went out before `timeout` seconds.

        Raises DriverError for a message that is longer than the ring's buffers.
        """
        if self._longest > ring.c_pool.size:
            raise DriverError(
                f"a message of {self._longest} bytes, buffers of ring {ring.index} hold {ring.c_pool.size}"
            )
        end = self.count if count is None else min(first + count, self.count)
        done = first
        while done < end:
            done += self._lib.vdrv_send(ring.c_ring, ring.c_pool, self._array + done, end - done)
            ring.check()
            ring.publish()
            if done >= end:
                break
            if ring.free_buffers and not ring.in_flight:
                raise DriverError(f"message {done} needs more descriptors than ring {ring.index} has")
            if timeout == 0.0 or not ring.wait(timeout):
                break
        return done - first


class Inbox:
    """The private memory received messages are copied to, as a guest copies them to its user."""

    def __init__(self) -> None:
        from vhost_user._vring import ffi, lib

        self._lib = lib
        self._out = ffi.new("uint8_t[]", _INBOX)
        self._view = memoryview(ffi.buffer(self._out))
        self._records = ffi.new("struct vdrv_received[]", _RECORDS)

    def _fill(self, ring: DriverRing, limit: int, timeout: float | None, merge: int) -> int:
        if not ring.pending and (timeout == 0.0 or not ring.wait(timeout)):
            return 0
        count: int = self._lib.vdrv_receive(
            ring.c_ring, ring.c_pool, self._out, _INBOX, self._records, min(limit, _RECORDS), merge
        )
        ring.check()
        ring.post()
        return count

    def receive(self, ring: DriverRing, limit: int, *, timeout: float | None, merge: int) -> list[bytes]:
        """Up to `limit` messages; see `NetDriver.recv`."""
        count = self._fill(ring, limit, timeout, merge)
        records = self._records
        return [bytes(self._view[records[i].offset : records[i].offset + records[i].length]) for i in range(count)]

    def heads(
        self, ring: DriverRing, limit: int, size: int, *, timeout: float | None, merge: int = -1
    ) -> list[tuple[bytes, int]]:
        """As `receive`, but only the first `size` bytes of each message, and its length."""
        count = self._fill(ring, limit, timeout, merge)
        records = self._records
        places = [(records[i].offset, records[i].length) for i in range(count)]
        return [(bytes(self._view[offset : offset + min(size, length)]), length) for offset, length in places]

    def drain(self, ring: DriverRing, limit: int, *, timeout: float | None, merge: int) -> tuple[int, int]:
        """(messages, bytes), copied out and forgotten."""
        count = self._fill(ring, limit, timeout, merge)
        if not count:
            return 0, 0
        last = self._records[count - 1]
        return count, last.offset + last.length
