"""Links for tests: a device that records and is fed by hand, and a pair of them joined by a cable.

Nothing here reads a clock or waits: whoever tests calls, looks, and moves the Scheduler's time on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from stack.link.cable import MAX_SUPERFRAME, CableEnd, cable
from stack.link.device import NEEDS_CSUM, Offload, RxFrame, TxFrame
from stack.link.impairment import Impairment
from stack.link.offload import ALL_OFFLOADS, as_received
from stack.scheduler import Scheduler

DEFAULT_MAC: Final = bytes.fromhex("026777000001")


class RecorderDevice:
    """A `LinkDevice` whose other side is the test: it keeps what is transmitted and delivers what it is fed.

    `room` limits how many frames `transmit` accepts before it refuses (None: no limit); raise it and call `changed`,
    as a device does whose ring got buffers back.
    """

    def __init__(
        self, *, mtu: int = 1500, mac: bytes = DEFAULT_MAC, offloads: Offload = ALL_OFFLOADS, room: int | None = None
    ) -> None:
        self.mtu = mtu
        self.mac = mac
        self.carrier = True
        self.offloads = offloads
        self.max_superframe = MAX_SUPERFRAME if offloads & (Offload.TSO4 | Offload.TSO6) else mtu + 14
        self.on_change: Callable[[], None] | None = None
        self.room = room
        self.sent: list[RxFrame] = []  #: what was transmitted, each as its receiver sees it
        self.bursts: list[int] = []  #: how many frames each `transmit` was offered
        self.armed = True
        self.closed = False
        self._inbox: deque[RxFrame] = deque()

    def feed(self, *frames: bytes, flags: int = 0) -> None:
        """Let `frames` arrive, in order, and report it."""
        self.feed_frames(*((memoryview(frame), flags, 0, 0, 0, 0) for frame in frames))

    def feed_frames(self, *frames: RxFrame) -> None:
        """As `feed`, with offload facts."""
        self._inbox.extend(frames)
        self.changed()

    def take(self) -> list[bytes]:
        """The frames transmitted since the last call, as bytes."""
        frames = [bytes(frame[0]) for frame in self.sent]
        self.sent.clear()
        return frames

    def changed(self) -> None:
        """Report a change, as a device does: call it after altering carrier, offloads, mtu or room."""
        if self.on_change is not None:
            self.on_change()

    def receive(self, budget: int) -> Sequence[RxFrame]:
        inbox = self._inbox
        return [inbox.popleft() for _ in range(min(budget, len(inbox)))]

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        self.bursts.append(len(burst))
        if not self.carrier:
            return len(burst)
        count = len(burst) if self.room is None else min(len(burst), self.room)
        for frame in burst[:count]:
            lacking = frame[1] & NEEDS_CSUM and not self.offloads & Offload.CSUM
            assert not lacking, "a frame with a partial checksum for a device without CSUM"
            self.sent.append(as_received(frame))
        if self.room is not None:
            self.room -= count
        return count

    def suppress(self) -> None:
        self.armed = False

    def arm(self) -> bool:
        self.armed = True
        return bool(self._inbox)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True
        self.carrier = False
        self._inbox.clear()


class LinkPair:
    """Two cable ends and the Scheduler they live in, for tests of whatever is put at the ends.

    `seed` makes both directions' randomness reproducible and different from each other.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        impairment: Impairment | None = None,
        *,
        mtu: int = 1500,
        offloads: Offload = ALL_OFFLOADS,
        seed: int | None = None,
    ) -> None:
        forward = backward = impairment
        if impairment is not None and seed is not None:
            forward = seeded(impairment, seed * 2)
            backward = seeded(impairment, seed * 2 + 1)
        self.scheduler = scheduler
        self.a: CableEnd
        self.b: CableEnd
        self.a, self.b = cable(scheduler, a_to_b=forward, b_to_a=backward, mtu=mtu, offloads=offloads)


def seeded(impairment: Impairment, seed: int) -> Impairment:
    """`impairment` with this seed."""
    return replace(impairment, seed=seed)
