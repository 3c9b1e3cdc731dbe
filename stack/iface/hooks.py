"""What others hang on an interface: handlers of ethertypes, taps, what makes it a bridge or a port."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from stack.link.device import RxFrame, TxFrame

if TYPE_CHECKING:
    from stack.iface.interface import Interface

#: What an ethertype's handler is called with: interface, whole frame, TO_*, offload flags, gso_size (0: no superframe).
FrameHandler: TypeAlias = Callable[["Interface", memoryview, int, int, int], None]

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
