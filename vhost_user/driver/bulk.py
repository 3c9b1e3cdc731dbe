"""A TCP connection's bulk in C, a few MiB a call: for those who measure the other side."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .memory import BytesLike
    from .ring import DriverRing

#: What frames are copied out to, round and round: as much as an application reads into before it begins anew.
OUT_BYTES: Final = 1 << 20
#: Bytes of a segment's headers, struct virtio_net_hdr among them (VDRV_BULK_HEADERS in csrc/vbulk.h).
HEADERS: Final = 66
#: Bytes a call moves before it returns: a millisecond's worth, or a few.
STEP: Final = 4 << 20
#: Buffers that a receiver waits for, as interrupts are moderated, but no longer than for so many looks (some 20 us).
ENOUGH: Final = 64
LOOKS: Final = 500
#: Looks in vain before a call returns, for its caller to sleep. Each pauses the processor.
PATIENCE: Final = 5000


class BulkEnd(IntEnum):
    """Why a call returned (enum vdrv_bulk_end)."""

    MOVED = 0  #: as much was moved as was to be
    IDLE = 1  #: nothing has moved for a while: `Bulk.wait`
    OTHER = 2  #: `Bulk.frame` is something else than the next of these segments


class BulkSegment(NamedTuple):
    """An Ethernet frame with a TCP segment over IPv4, behind its struct virtio_net_hdr: `HEADERS` bytes of headers
    without options, and payload. `sum`: where the device makes no checksums, what the TCP checksum covers but for the
    two numbers, summed (RFC 1071).
    """

    header: BytesLike
    data: BytesLike = b""
    sum: int = -1


class BulkNumbers(NamedTuple):
    """Where a connection stands. Sequence numbers may go on counting where those on the wire wrap."""

    snd_una: int
    snd_nxt: int
    rcv_nxt: int
    window: int  #: the peer's, in bytes from snd_una on


class Bulk:
    """An established connection whose bulk is sent or received by C (csrc/vbulk.c), so that the driver is no slower
    than a guest's kernel. It is a real driver: payload is copied into and out of guest memory, the device is kicked
    when it asks for it, buffers go back. What it knows of TCP is the plain case: whole segments in order,
    acknowledged; anything else ends the call and is the caller's, in `frame`.

    `ack`: a bare acknowledgment of ours, whose addresses and ports say which connection it is; `segment`: what is sent
    again and again, with its numbers written in place. `merge`: the offset of the count of receive buffers in a
    message, -1 without mergeable ones; `scale`: the shift of the peer's window.

    A receiver waits for `enough` buffers to be filled, but for `looks` looks at most, takes in what is there and
    acknowledges it once, as a poll of Linux's does; every 64 frames at least.
    """

    def __init__(
        self,
        tx: DriverRing,
        rx: DriverRing,
        ack: BulkSegment,
        segment: BulkSegment | None = None,
        *,
        merge: int,
        scale: int = 0,
        enough: int = ENOUGH,
        looks: int = LOOKS,
        patience: int = PATIENCE,
    ) -> None:
        from vhost_user._vring import ffi, lib

        self._flood, self._drain = lib.vdrv_flood, lib.vdrv_drain
        self._ffi = ffi
        self.tx, self.rx = tx, rx
        bulk = self._bulk = ffi.new("struct vdrv_bulk *")
        bulk.tx, bulk.rx, bulk.tx_pool, bulk.rx_pool = tx.c_ring, rx.c_ring, tx.c_pool, rx.c_pool
        bulk.tx_kick, bulk.rx_kick = tx.kick_fd, rx.kick_fd
        bulk.merge, bulk.scale = merge, min(scale, 14)  # RFC 7323 section 2.3
        bulk.enough, bulk.looks, bulk.patience = enough, looks, patience
        out = ffi.new("uint8_t[]", OUT_BYTES)
        self._view = memoryview(ffi.buffer(out))
        bulk.out, bulk.size = out, OUT_BYTES
        self._keep: list[Any] = [out]  # what C points to
        self._fill(bulk.ack, ack)
        if segment is not None:
            self._fill(bulk.data, segment)

    def _fill(self, place: Any, segment: BulkSegment) -> None:
        if len(segment.header) != HEADERS:
            raise ValueError(f"{len(segment.header)} bytes of headers, must be {HEADERS}")
        body = self._ffi.from_buffer("uint8_t[]", segment.data)
        length, room = HEADERS + len(body), self.tx.c_pool.size
        if length > room:
            raise DriverError(f"a segment of {length} bytes, buffers of ring {self.tx.index} hold {room}")
        self._keep.append(body)
        self._ffi.memmove(place.header, segment.header, HEADERS)
        place.data, place.length, place.sum = body, len(body), segment.sum

    @property
    def numbers(self) -> BulkNumbers:
        """Where the connection stands; to be set before the first call, and after the caller has changed it."""
        bulk = self._bulk
        return BulkNumbers(bulk.snd_una, bulk.snd_nxt, bulk.rcv_nxt, bulk.window)

    @numbers.setter
    def numbers(self, numbers: BulkNumbers) -> None:
        bulk = self._bulk
        bulk.snd_una, bulk.snd_nxt, bulk.rcv_nxt, bulk.window = numbers

    def flood(self, size: int = STEP) -> BulkEnd:
        """Send the segment until one more would be more than `size` bytes, as fast as the peer's window and the device
        allow. What comes meanwhile is acknowledged. Raises DriverError when the device broke a rule of a ring, or for a
        frame that is too long.
        """
        if not self._bulk.data.length:
            raise ValueError("there is nothing to send")
        return self._go(self._flood, self._bulk.snd_nxt + size)

    def drain(self, size: int = STEP) -> BulkEnd:
        """Take in `size` bytes of payload or a little more, and acknowledge them. Raises as `flood`."""
        return self._go(self._drain, self._bulk.rcv_nxt + size)

    def _go(self, call: Callable[[Any, int], int], end: int) -> BulkEnd:
        came = call(self._bulk, end)
        self.tx.check()
        self.rx.check()
        if came > BulkEnd.OTHER:
            raise DriverError(f"ring {self.rx.index}: a frame of more than {OUT_BYTES // 2} bytes")
        return BulkEnd(came)

    def wait(self, timeout: float) -> None:
        """Sleep until the device has something for us, or has taken what there is no more room for."""
        (self.rx if self.tx.free_buffers else self.tx).wait(timeout)

    @property
    def frame(self) -> memoryview:
        """The frame that came last, behind its struct virtio_net_hdr. It is valid until the next call."""
        frame = self._bulk.frame
        return self._view[frame.offset : frame.offset + frame.length]

    @property
    def kicks(self) -> int:
        """Times the device wanted to be told of a segment or of a buffer, all in all."""
        return int(self._bulk.kicks)
