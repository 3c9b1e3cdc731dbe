"""Bursts from several transmit rings of one card at the same time (csrc/take.c).

Taking frames out of a ring is copying and checksumming in C, without the GIL; with several queue pairs each ring is a
job of its own, for whoever of the card's workers is awake. What Python makes of the frames is one thread's business
again. So pairs pay where C has the most to do: superframes, and checksums the guest did not spare us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vhost_user._vring import ffi, lib

from .slab import SMALL_BURST, burst_view, sliced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .slab import RxFrame
    from .steering import Steering
    from .virtqueue import Virtqueue
    from .workers import Workers

#: A ring with as many bytes in a burst is worth another thread.
_MUCH: Final = 32 << 10


class Pairs:
    """The transmit rings of a card with several pairs. `inbox`: the card's struct vnet_inbox, its drops among them."""

    def __init__(self, inbox: Any, steering: Steering, workers: Workers, *, frames: int, max_bytes: int) -> None:
        """`frames` and `max_bytes` bound what one call takes, of all rings together."""
        self._inbox = inbox
        self._steering = steering
        self._workers = workers
        self._frames, self._max_bytes = frames, max_bytes
        self._rings: list[Virtqueue] = []
        self._turn = 0
        self._takes: Any = ffi.NULL
        self._buffers: list[tuple[memoryview, memoryview, memoryview, Any]] = []

    def place(self, rings: Sequence[Virtqueue]) -> None:
        """These rings are served now."""
        self._rings = list(rings)
        self._takes = ffi.new("struct gw_take[]", max(1, len(rings)))
        self._buffers = []
        for take, ring in zip(self._takes, rings, strict=False):
            small = ffi.new("uint8_t[]", SMALL_BURST)
            records = ffi.new("struct vnet_record[]", self._frames)
            chunks = ffi.new("struct chunk[]", self._frames)
            drops = ffi.new("uint64_t[]", lib.VNET_DROPS)
            take.ring, take.pair, take.steer = ring.handle, ring.index // 2, self._steering.handle
            take.max_bytes, take.max_chain = self._max_bytes // len(rings), ring.max_chain_bytes
            take.burst.small, take.burst.small_size = small, SMALL_BURST
            take.inbox.records, take.inbox.chunks, take.inbox.drops = records, chunks, drops
            self._buffers.append((*(memoryview(ffi.buffer(made)) for made in (small, records, chunks)), drops))
        self._workers.serve(len(rings))

    def take(self, budget: int, join: int) -> tuple[list[RxFrame], int, int]:
        """Up to `budget` frames: each ring its share, and another one begins next time. `join`: neighbours of one flow
        are put together (csrc/gro.c). Returns them, and of how many frames and bytes of the guest they are made."""
        rings, takes, inbox = self._rings, self._takes, self._inbox
        number = len(rings)
        if not number:
            return [], 0, 0
        budget = min(budget, self._frames)
        self._turn = turn = (self._turn + 1) % number
        order = [*range(turn, number), *range(turn)]
        accept, mtu = inbox.accept, inbox.mtu
        for ring in rings:  # of one device: ascending
            ring.gate.acquire()
        try:
            for place, at in enumerate(order):
                take = takes[at]
                take.budget = (budget + number - 1 - place) // number if rings[at].live else 0
                take.inbox.accept, take.inbox.mtu, take.join = accept, mtu, join
            lib.gw_take(self._workers.pool, takes, number, self._workers.wake)
            chains = [ring.check(take.chains) for ring, take in zip(rings, takes, strict=True)]
        finally:
            for ring in reversed(rings):
                ring.gate.release()
        frames: list[RxFrame] = []
        busy = count = total = 0
        for at in order:
            if chains[at] > 0:
                count += takes[at].inbox.frames
                total += takes[at].inbox.bytes
                busy += takes[at].burst.bytes >= _MUCH
                frames += self._frames_of(takes[at], chains[at], self._buffers[at])
        self._workers.note(busy)
        return frames, count, total

    def _frames_of(
        self, take: Any, chains: int, buffers: tuple[memoryview, memoryview, memoryview, Any]
    ) -> list[RxFrame]:
        small, records, chunks, drops = buffers
        raw = burst_view(take.burst, small)
        if take.inbox.frames < chains:  # some were bad
            total = self._inbox.drops
            for reason in range(lib.VNET_DROPS):
                total[reason] += drops[reason]
                drops[reason] = 0
        return sliced(raw[8 * chains :], records, take.frames, chunks, take.inbox.nchunks, take.inbox.alike)
