"""Bursts from the one transmit ring of a card that has one pair (csrc/take.c); of several pairs: `pairs.py`.

One call into C takes what is in the ring, judges it, and leaves records (csrc/vnet.c); here they become frames. A
question, an answer, or one superframe is a burst of one, which has a shorter way. Where somebody waits for bulk with a
buffer of his own, payload goes there instead (csrc/landing.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vhost_user._vring import ffi, lib

from .landing import Strip
from .slab import RECORD, SMALL_BURST, burst_view, sliced

if TYPE_CHECKING:
    from .landing import Landed, Wanted
    from .owed import OwedCall
    from .slab import RxFrame
    from .virtqueue import Virtqueue

#: What a burst of one chain has in front of its payload, bytes; and where that ends at most if C has put it into the
#: buffer for small bursts.
_INDEX: Final = 8
_ONE_SMALL: Final = SMALL_BURST - _INDEX
_unpack_record: Final = RECORD.unpack_from


class Intake:
    """What one ring's bursts are taken into, and counted. Several pairs share `inbox`: what the guest may send."""

    def __init__(self, owed: OwedCall, *, frames: int, max_bytes: int) -> None:
        """`frames` and `max_bytes` bound what one call takes."""
        self._owed = owed
        self._most = frames
        self.frames = 0  #: from the guest, as it sent them, whoever took them
        self.bytes = 0  #: of them
        self._records = ffi.new("struct vnet_record[]", frames)
        self._record_bytes = memoryview(ffi.buffer(self._records))
        self._chunks = ffi.new("struct chunk[]", frames)
        self._chunk_bytes = memoryview(ffi.buffer(self._chunks))
        self.drops: Any = ffi.new("uint64_t[]", lib.VNET_DROPS)  #: by enum vnet_drop
        small = ffi.new("uint8_t[]", SMALL_BURST)
        self._one_small = ffi.buffer(small)  # a slice of it is `bytes`
        self._small = memoryview(self._one_small)
        self._taking = ffi.new("struct gw_take *", {"max_bytes": max_bytes})
        self._burst = self._taking.burst
        self._burst.small, self._burst.small_size = small, SMALL_BURST
        self.inbox: Any = ffi.addressof(self._taking, "inbox")  #: struct vnet_inbox *
        self.inbox.records, self.inbox.chunks, self.inbox.drops = self._records, self._chunks, self.drops
        self._strip = Strip(self._taking)
        self._budget = self._join = 0  # as `_taking` says them

    def place(self, ring: Virtqueue) -> None:
        """This ring is the one `take` and `take_landing` will be asked for."""
        self._taking.ring, self._taking.max_chain = ring.handle, ring.max_chain_bytes

    def take(self, ring: Virtqueue, budget: int, join: int) -> tuple[list[RxFrame], int, int]:
        """Up to `budget` frames; and of how many frames and bytes of the guest they are made. `join`: neighbours of one
        flow are put together (csrc/gro.c)."""
        taking = self._taking
        if budget != self._budget or join != self._join:  # attributes of C's cost what a call of Python's does
            self._ask(budget, join)
        chains = ring.take(taking)
        if not chains:
            self._owed.look()
            return [], 0, 0
        if chains == 1:
            # A question, an answer, or one superframe; of the small ones C has left everything in `_small`.
            begin, end, _, flags, gso_type, gso_size, start, offset = _unpack_record(self._record_bytes)
            if 0 < end <= _ONE_SMALL:  # 0: it was bad
                size = end - begin
                self.frames += 1
                self.bytes += size
                frame = memoryview(self._one_small[_INDEX + begin : _INDEX + end])
                return [(frame, flags, gso_type, gso_size, start, offset)], 1, size
        inbox = self.inbox
        count, size = inbox.frames, inbox.bytes
        self.frames += count
        self.bytes += size
        view = burst_view(self._burst, self._small)[8 * chains :]
        frames = sliced(view, self._record_bytes, taking.frames, self._chunk_bytes, inbox.nchunks, inbox.alike)
        return frames, count, size

    def take_landing(
        self, ring: Virtqueue, budget: int, wanted: Wanted, ground: memoryview
    ) -> tuple[list[RxFrame], int, int, Landed]:
        """As `take` with neighbours joined, but the payload of the first frames goes to `ground` if it is `wanted`
        there."""
        taking = self._taking
        if budget != self._budget or self._join != 1:
            self._ask(budget, 1)
        chains, landed = self._strip.take(ring, taking, wanted, ground)
        if not chains and not landed[0]:
            self._owed.look()
            return [], 0, 0, landed
        inbox = self.inbox
        count, size = inbox.frames, inbox.bytes
        self.frames += count
        self.bytes += size
        if not chains:
            return [], count, size, landed
        view = burst_view(self._burst, self._small)[8 * chains :]
        frames = sliced(view, self._record_bytes, taking.frames, self._chunk_bytes, inbox.nchunks, inbox.alike)
        return frames, count, size, landed

    def _ask(self, budget: int, join: int) -> None:
        self._budget, self._join = budget, join
        self._taking.budget = min(budget, self._most)
        self._taking.join = join
