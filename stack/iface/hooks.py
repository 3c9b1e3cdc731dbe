"""What others hang on an interface: handlers of ethertypes and who takes from them, taps, what makes it a bridge or a
port.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from stack.link.device import LandingDevice, RxFrame, TxFrame

if TYPE_CHECKING:
    from stack.iface.interface import Interface


class Taker(Protocol):
    """Who took a frame, and would take those that continue it without another look at what they have in common."""

    def follow(self, burst: Sequence[RxFrame], at: int) -> int:
        """Take the frames from `burst[at]` on as long as they are marked (`FOLLOWS`), each as if it had been handed up
        like the one before. Returns the index of the first one not taken, which is to be handed up then."""
        ...


class Lander(Protocol):
    """Who waits for the payload of a flow with a buffer of his own."""

    def receive(self, device: LandingDevice, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        """As `CoalescingDevice.receive_coalesced`, less what has landed, but that is counted."""
        ...


#: What an ethertype's handler is called with: interface, whole frame, TO_*, offload flags, gso_size (0: no superframe).
#: It may answer who took the frame, if nobody else is to see what continues it.
FrameHandler: TypeAlias = Callable[["Interface", memoryview, int, int, int], Taker | None]

#: Takes what it wants of a burst and returns the rest, the very frames that came.
RxHook: TypeAlias = Callable[[Sequence[RxFrame]], Sequence[RxFrame]]


class Ports(Protocol):
    """What a bridge-like kind lends its interface: other interfaces become its ports."""

    def add(self, port: Interface) -> None:
        """Raises NetError for an interface that cannot be a port: ELOOP, EINVAL, EBUSY."""
        ...

    def remove(self, port: Interface) -> None: ...


class Tap(Protocol):
    """Sees every frame of an interface as it passes: packet sockets, captures."""

    def received(self, burst: Sequence[RxFrame]) -> None: ...
    def transmitted(self, burst: Sequence[TxFrame]) -> None: ...
