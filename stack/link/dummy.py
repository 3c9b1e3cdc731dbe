"""A device that takes every frame and gives none: Linux's `dummy`, a home for addresses and routes of no real link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from stack.link.device import Offload, RxFrame, TxFrame
from stack.link.offload import ALL_OFFLOADS

DUMMY_MTU: Final = 1500  # bytes, until told otherwise
MAX_SUPERFRAME: Final = 65549  # bytes: 14 + 65535, see LinkDevice.max_superframe


class Dummy:
    """A `LinkDevice` with a carrier and nobody at the other end."""

    def __init__(self, *, mac: bytes, mtu: int = 65535) -> None:
        """`mac`: 6 bytes; `mtu`: the most an interface on it may be set to."""
        self.mac = mac
        self.mtu = mtu
        self.carrier = True
        self.offloads: Offload = ALL_OFFLOADS
        self.max_superframe = MAX_SUPERFRAME
        self.on_change: Callable[[], None] | None = None

    def receive(self, budget: int) -> Sequence[RxFrame]:  # noqa: ARG002 - the shape of every LinkDevice
        return ()

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        return len(burst)

    def suppress(self) -> None:
        """Nothing ever arrives."""

    def arm(self) -> bool:
        return False

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.carrier = False
