"""One message to the device and its answer, in one call into C: for those who measure the other side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .errors import DriverError

if TYPE_CHECKING:
    from .memory import BytesLike
    from .ring import DriverRing

#: Bytes of the longest answer; what is longer stays in the ring, and is an error.
ANSWER_BYTES: Final = 128 << 10


class Exchange:
    """A message, (header, data), that is sent on `tx` again and again, and what comes back on `rx` each time.

    A header given as a bytearray may be changed in place between sends. `merge` is the offset of the count of receive
    buffers in a message, -1 without mergeable ones; `patience`: seconds to look for an answer, which is done without
    sleeping. Each is one call into C (csrc/vtrip.c), so that the driver adds a microsecond to a trip at most.
    """

    def __init__(
        self, tx: DriverRing, rx: DriverRing, header: BytesLike, data: BytesLike, *, merge: int, patience: float
    ) -> None:
        from vhost_user._vring import ffi, lib

        self._call = lib.vdrv_trip
        self.tx, self.rx = tx, rx
        head, body = ffi.from_buffer("uint8_t[]", header), ffi.from_buffer("uint8_t[]", data)
        out = ffi.new("uint8_t[]", ANSWER_BYTES)
        self._view = memoryview(ffi.buffer(out))
        self._keep: tuple[Any, ...] = (head, body, out)  # what C points to
        trip = self._trip = ffi.new("struct vdrv_trip *")
        trip.tx, trip.rx, trip.tx_pool, trip.rx_pool = tx.c_ring, rx.c_ring, tx.c_pool, rx.c_pool
        trip.tx_kick, trip.rx_kick = tx.kick_fd, rx.kick_fd
        trip.message.header, trip.message.header_length = head, len(head)
        trip.message.data, trip.message.data_length = body, len(body)
        trip.merge, trip.patience = merge, int(patience * 1e9)
        trip.out, trip.size = out, ANSWER_BYTES
        self._answer = trip.answer

    def ask(self) -> memoryview:
        """Send the message; the first message that comes then, or has come before. It is valid until the next call.

        Raises TimeoutError if none does, and DriverError when there is no room for the message, when the device broke a
        rule of the ring, or for an answer that is too long.
        """
        return self._go(1)

    def look(self) -> memoryview:
        """As `ask`, but nothing is sent: the last answer was not the one."""
        return self._go(0)

    def _go(self, send: int) -> memoryview:
        outcome = self._call(self._trip, send)
        if outcome == 1:  # VDRV_ANSWER
            return self._view[: self._answer.length]
        self.tx.check()
        self.rx.check()
        if outcome:
            raise DriverError(f"ring {self.tx.index} has no room for a message")
        if self.rx.pending:
            raise DriverError(f"ring {self.rx.index}: an answer of more than {ANSWER_BYTES} bytes")
        raise TimeoutError("no answer")

    @property
    def nanoseconds(self) -> int:
        """From before the message was copied to guest memory until its answer was copied out of it."""
        return int(self._trip.ended - self._trip.began)

    @property
    def kicks(self) -> int:
        """Times the device wanted to be told of a message or of a buffer, all in all."""
        return int(self._trip.kicks)
