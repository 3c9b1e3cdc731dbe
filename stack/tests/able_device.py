"""A device for tests that can all that a guest's card can, in the simplest way that shows it was asked."""

from __future__ import annotations

from collections.abc import Sequence

from stack.link.device import (
    Buffer,
    CoalescingDevice,
    Landed,
    LandingDevice,
    LingeringDevice,
    LoneDevice,
    RxFrame,
    TxFacts,
    VolleyDevice,
    VolleyHead,
    Wanted,
)
from stack.testing.links import RecorderDevice


class AbleDevice(RecorderDevice):
    """Joins frames, puts them where they are wanted, takes one or a volley by a short way, looks on by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lingered = 0

    def receive_coalesced(self, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        frames = self.receive(budget)
        size = sum(len(frame[0]) for frame in frames)
        joined = memoryview(b"".join(frame[0] for frame in frames))
        return ([(joined, 0, 0, 0, 0, 0)] if frames else []), len(frames), size

    def receive_landing(
        self, budget: int, wanted: Wanted, ground: memoryview
    ) -> tuple[Sequence[RxFrame], int, int, Landed]:
        frames, count, size = self.receive_coalesced(budget)
        ground[:size] = frames[0][0]
        return [], count, size, (count, count, size, size, 0, 0)

    def transmit_volley(
        self,
        head: VolleyHead,
        last: VolleyHead,
        count: int,
        number: tuple[int, int],
        parts: Sequence[Buffer],
    ) -> int:
        return self.transmit([((head[0], b"".join(parts)), *head[1])]) * count

    def transmit_alone(self, parts: tuple[Buffer, ...], facts: TxFacts) -> bool:
        return self.transmit([(parts, *facts)]) == 1

    def linger(self) -> None:
        self.lingered += 1


ABILITIES = (CoalescingDevice, LandingDevice, LoneDevice, VolleyDevice, LingeringDevice)
