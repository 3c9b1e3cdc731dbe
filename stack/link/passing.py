"""A device around another one that mostly does nothing with frames: then it can what the one inside can.

Theory of operation
-------------------
A line that may go bad, a recorder: most of the time they pass frames on and that is all. A device may have more than a
`LinkDevice` must (`CoalescingDevice`, `LandingDevice`, `LoneDevice`, `VolleyDevice`, `LingeringDevice`), and an
interface asks once, when it is plugged in, what its device has. So a `PassingDevice` has from the beginning what the
device inside has, and decides in each call what becomes of it: while it `passes`, the call is the device's own;
otherwise frames come and go one by one, by `receive` and `transmit`. Whoever calls may hold the methods and need not be
told when `passes` changes, which it may do between any two calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stack.link.around import AroundDevice
from stack.link.device import (
    NOTHING_LANDED,
    Buffer,
    CoalescingDevice,
    Landed,
    LandingDevice,
    LingeringDevice,
    LinkDevice,
    LoneDevice,
    RxFrame,
    TxFacts,
    TxFrame,
    VolleyDevice,
    VolleyHead,
    Wanted,
)


class PassingDevice(AroundDevice):
    """A subclass says what `passes` is, and what `receive` and `transmit` do while it is false."""

    if TYPE_CHECKING:
        receive: Callable[[int], Sequence[RxFrame]]
        transmit: Callable[[Sequence[TxFrame]], int]

        @property
        def passes(self) -> bool:
            """Just now nothing is done with frames (see stack.link.direct)."""
            ...

    def __init__(self, device: LinkDevice) -> None:
        super().__init__(device)
        # What the device cannot, this one has not: whoever uses it looks for the method.
        if isinstance(device, CoalescingDevice):
            self._coalesced = device.receive_coalesced
            self.receive_coalesced = self._receive_coalesced
        if isinstance(device, LandingDevice):
            self._landing = device.receive_landing
            self.receive_landing = self._receive_landing
        if isinstance(device, LoneDevice):
            self._alone = device.transmit_alone
            self.transmit_alone = self._transmit_alone
        if isinstance(device, VolleyDevice):
            self._volley = device.transmit_volley
            self.transmit_volley = self._transmit_volley
        if isinstance(device, LingeringDevice):
            self.linger = device.linger  # it looks for frames, and takes none

    def _receive_coalesced(self, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        if self.passes:
            return self._coalesced(budget)
        frames = self.receive(budget)
        return frames, len(frames), sum(len(frame[0]) for frame in frames)

    def _receive_landing(
        self, budget: int, wanted: Wanted, ground: memoryview
    ) -> tuple[Sequence[RxFrame], int, int, Landed]:
        if self.passes:
            return self._landing(budget, wanted, ground)
        return *self._receive_coalesced(budget), NOTHING_LANDED

    def _transmit_alone(self, parts: tuple[Buffer, ...], facts: TxFacts) -> bool:
        return self.passes and self._alone(parts, facts)

    def _transmit_volley(
        self, head: VolleyHead, last: VolleyHead, count: int, number: tuple[int, int], parts: Sequence[Buffer]
    ) -> int:
        return self._volley(head, last, count, number, parts) if self.passes else 0
