"""What goes from guest memory straight to where it is read: asking for it and hearing of it (csrc/landing.c)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from vhost_user._vring import ffi

if TYPE_CHECKING:
    from .virtqueue import Virtqueue

#: The first fields of struct gw_landing behind `ground`, and those behind them.
_WANTED: Final = Struct("=16s12sHHIIIII")
_LANDED: Final = Struct("=IIIIII")

Wanted: TypeAlias = tuple[bytes, bytes, int, int, int, int, int, int, int]
#: frames, segments, bytes of payload, bytes of frames, longest segment's payload, time stamp
Landed: TypeAlias = tuple[int, int, int, int, int, int]
NOTHING: Final = (0, 0, 0, 0, 0, 0)


class Strip:
    """The landing of a card's `struct gw_take *`."""

    __slots__ = ("_bytes", "_landing")

    def __init__(self, taking: Any) -> None:
        self._landing = ffi.addressof(taking, "landing")
        self._bytes = memoryview(ffi.buffer(self._landing))[ffi.offsetof("struct gw_landing", "head") :]

    def take(self, ring: Virtqueue, taking: Any, wanted: Wanted, ground: memoryview) -> tuple[int, Landed]:
        """As `Virtqueue.take`; also what has landed."""
        memory = ffi.from_buffer(ground, require_writable=True)
        self._landing.ground = memory
        _WANTED.pack_into(self._bytes, 0, *wanted)
        chains = ring.take(taking)
        landed: Landed = _LANDED.unpack_from(self._bytes, _WANTED.size)
        return chains, landed
