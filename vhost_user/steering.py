"""Which queue pair a frame to the guest goes through (csrc/steer.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhost_user._vring import ffi, lib

from .frames import first_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .frames import TxFrame

_HEAD: int = lib.STEER_HEAD


class Steering:
    """Automatic receive steering (virtio 1.3 section 5.1.6.5.5): answers go to the pair the guest sent the flow
    through, other flows are spread by a hash. A flow is in one pair at a time, so it stays in order."""

    def __init__(self) -> None:
        #: the C side: struct gw_steer *
        self.handle: Any = ffi.new("struct gw_steer *")
        self.forget()

    def forget(self) -> None:
        """Nothing is known of any flow."""
        lib.gw_steer_clear(self.handle)

    def place(self, pairs: Sequence[int]) -> None:
        """Frames can be sent through these pairs now; their positions here are the slots `slots` answers."""
        places = [lib.STEER_NOWHERE] * lib.STEER_PAIRS
        for slot, pair in enumerate(pairs):
            places[pair] = slot
        self.handle.slots = len(pairs)
        self.handle.slot[0 : len(places)] = places

    def slots(self, burst: Sequence[TxFrame]) -> bytes:
        """For each frame its slot. There is at least one."""
        heads = b"".join([_head(frame[0]) for frame in burst])
        slots = bytearray(len(burst))
        lib.gw_steer_burst(self.handle, heads, len(burst), ffi.from_buffer(slots))
        return bytes(slots)


def _head(parts: tuple[bytes | bytearray | memoryview, ...]) -> bytes:
    first = parts[0]
    if len(first) >= _HEAD:
        return bytes(first[:_HEAD])
    return first_bytes(parts, _HEAD).ljust(_HEAD, b"\0")
