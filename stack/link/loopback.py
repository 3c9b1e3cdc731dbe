"""lo: what is transmitted is received, offload facts and all.

Nothing sent here ever needs a checksum finished or a superframe cut: the receiver is the sender. Frames carry an
Ethernet header of zeros as on Linux. The queue is bounded; when it is full `transmit` refuses, and `on_change` reports
when there is room again (rows IF-01, IF-02).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from stack.link.device import Offload, RxFrame, TxFrame
from stack.link.offload import ALL_OFFLOADS, as_received

LOOPBACK_MTU: Final = 65536  # bytes; Linux's lo
#: Ethernet header plus the largest IPv4 total length (and more than the largest unjumbo IPv6 payload plus header).
LOOPBACK_MAX_FRAME: Final = 14 + LOOPBACK_MTU
QUEUE_BYTES: Final = 4 << 20  # one TCP window of the default limit, as Linux bounds it by its socket buffers
RECEIVE_BYTES: Final = 512 << 10  # most that one `receive` hands over, see LinkDevice


class FrameQueue:
    """A bounded queue of received frames: the receiving half of every link inside the Network."""

    __slots__ = ("bytes", "frames", "limit")

    def __init__(self, limit: int = QUEUE_BYTES) -> None:
        self.frames: deque[RxFrame] = deque()
        self.bytes = 0
        self.limit = limit  #: bytes; one frame is always taken by an empty queue

    def put(self, frame: RxFrame) -> bool:
        """Append `frame`; False, and nothing done, if it does not fit."""
        length = len(frame[0])
        if self.bytes + length > self.limit and self.frames:
            return False
        self.bytes += length
        self.frames.append(frame)
        return True

    def take(self, budget: int) -> Sequence[RxFrame]:
        """Up to `budget` frames and about `RECEIVE_BYTES`, oldest first."""
        frames = self.frames
        if len(frames) <= budget and self.bytes <= RECEIVE_BYTES:
            burst = list(frames)
            frames.clear()
            self.bytes = 0
            return burst
        count = size = 0
        for frame in islice(frames, budget):
            if size >= RECEIVE_BYTES:
                break
            size += len(frame[0])
            count += 1
        self.bytes -= size
        return [frames.popleft() for _ in range(count)]

    def clear(self) -> None:
        self.frames.clear()
        self.bytes = 0


class Loopback:
    """A `LinkDevice` whose other side is itself."""

    def __init__(self, *, mtu: int = LOOPBACK_MTU, queue_bytes: int = QUEUE_BYTES) -> None:
        self.mtu = mtu
        self.mac = bytes(6)
        self.carrier = True
        self.offloads: Offload = ALL_OFFLOADS
        self.max_superframe = LOOPBACK_MAX_FRAME
        self.on_change: Callable[[], None] | None = None
        self.dropped = 0  #: frames longer than `max_superframe`
        self._queue = FrameQueue(queue_bytes)
        self._refused = False

    def receive(self, budget: int) -> Sequence[RxFrame]:
        burst = self._queue.take(budget)
        if burst and self._refused:
            self._refused = False
            self._changed()
        return burst

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        if not self.carrier:
            return len(burst)
        queue = self._queue
        was_empty = not queue.frames
        accepted = 0
        for frame in burst:
            received = as_received(frame)
            if len(received[0]) > self.max_superframe:
                self.dropped += 1
            elif not queue.put(received):
                self._refused = True
                break
            accepted += 1
        if was_empty and queue.frames:
            self._changed()
        return accepted

    def suppress(self) -> None:
        """Nothing to suppress: work is reported by `on_change`, which is cheap."""

    def arm(self) -> bool:
        return bool(self._queue.frames)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.carrier = False
        self._queue.clear()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()
