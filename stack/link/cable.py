"""A cable between two places of one Network: two `LinkDevice` ends, each direction perfect or impaired.

Frames keep their offload facts on the way: a superframe crosses whole, and nobody sums a checksum for a line that
cannot corrupt it. Ends made with fewer `offloads` make their stacks use the software path instead. A perfect
direction is a bounded queue that pushes back (`transmit` refuses); an impaired one drops what does not fit, as a line
does, and counts it in `CableEnd.stats`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from stack.link.device import NEEDS_CSUM, Offload, RxFrame, TxFrame
from stack.link.impairment import ImpairedPath, Impairment, PathStats
from stack.link.loopback import QUEUE_BYTES, FrameQueue
from stack.link.offload import ALL_OFFLOADS, ETHERNET_HEADER, VLAN_TAG, as_received, missing_offload, wire_length
from stack.scheduler import Scheduler

MAX_SUPERFRAME: Final = ETHERNET_HEADER + 65535
DEFAULT_MTU: Final = 1500
#: Locally administered addresses of the two ends, unless told otherwise.
DEFAULT_MAC_A: Final = bytes.fromhex("02677700000a")
DEFAULT_MAC_B: Final = bytes.fromhex("02677700000b")


class CableEnd:
    """One end of a cable: a `LinkDevice` whose frames arrive at the other end."""

    def __init__(self, *, mtu: int, mac: bytes, offloads: Offload, queue_bytes: int) -> None:
        self.mtu = mtu
        self.mac = mac
        self.carrier = True
        self.offloads = offloads
        self.max_superframe = MAX_SUPERFRAME if offloads & (Offload.TSO4 | Offload.TSO6) else ETHERNET_HEADER + mtu
        self.on_change: Callable[[], None] | None = None
        self.dropped = 0  #: frames this end could not carry: too long, too short, or needing an offload not offered
        self._inbox = FrameQueue(queue_bytes)
        self._peer: CableEnd = self
        self._path: ImpairedPath | None = None
        self._refused = False

    @property
    def stats(self) -> PathStats | None:
        """What became of frames transmitted here; None for a perfect direction."""
        return None if self._path is None else self._path.stats

    @property
    def peer(self) -> CableEnd:
        return self._peer

    def receive(self, budget: int) -> Sequence[RxFrame]:
        burst = self._inbox.take(budget)
        if burst:
            self._peer.room_made()
        return burst

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        if not self.carrier:
            return len(burst)
        path = self._path
        if path is not None:
            for frame in burst:
                if self._carries(frame, wire_length(frame)):
                    path.push(frame)
            path.run()
            return len(burst)
        accept = self._peer.accept
        accepted = 0
        for frame in burst:
            received = as_received(frame)
            if self._carries(frame, len(received[0])) and not accept(received):
                self._refused = True
                break
            accepted += 1
        return accepted

    def accept(self, frame: RxFrame) -> bool:
        """Take a frame that arrived at this end; False if the queue is full. For the cable's own use."""
        inbox = self._inbox
        was_empty = not inbox.frames
        taken = inbox.put(frame)
        if was_empty and taken:
            self.changed()
        return taken

    def room_made(self) -> None:
        """The other end took frames: if this one was refused, it may try again. For the cable's own use."""
        if self._refused:
            self._refused = False
            self.changed()

    def suppress(self) -> None:
        """Nothing to suppress: work is reported by `on_change`, which is cheap."""

    def arm(self) -> bool:
        return bool(self._inbox.frames)

    def fileno(self) -> int:
        return -1

    def plug(self, carrier: bool) -> None:
        """Pull the cable out (False: both ends lose carrier and everything under way) or plug it back in."""
        for end in (self, self._peer):
            if end.carrier != carrier:
                end.carrier = carrier
                if not carrier:
                    end.lose()
                end.changed()

    def close(self) -> None:
        """For good: the other end sees its carrier go."""
        self.plug(False)

    def lose(self) -> None:
        """Drop everything queued and under way. For the cable's own use."""
        self._inbox.clear()
        self._refused = False
        if self._path is not None:
            self._path.clear()

    def connect(self, scheduler: Scheduler, peer: CableEnd, impairment: Impairment | None) -> None:
        """Join to `peer`, with `impairment` on frames from here to there. Called by `cable`."""
        self._peer = peer
        self._path = None if impairment is None else ImpairedPath(scheduler, impairment, peer.accept)

    def impair(self, impairment: Impairment) -> None:
        """Change the impairment of frames sent from here while running.

        Raises `ValueError` for a direction that was made perfect: pass `Impairment()` to `cable` for it instead.
        """
        if self._path is None:
            raise ValueError(
                "this direction was made without impairment; pass Impairment() to cable() to change it later"
            )
        self._path.impair(impairment)

    def changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _carries(self, frame: TxFrame, length: int) -> bool:
        _, flags, gso_type, _, _, csum_start, csum_offset = frame
        longest = self.max_superframe if gso_type else ETHERNET_HEADER + VLAN_TAG + self.mtu
        if (
            not ETHERNET_HEADER <= length <= longest
            or (flags & NEEDS_CSUM and csum_start + csum_offset + 2 > length)
            or (
                (flags or gso_type) and self.offloads is not ALL_OFFLOADS and missing_offload(frame, int(self.offloads))
            )
        ):
            self.dropped += 1
            return False
        return True


def cable(
    scheduler: Scheduler,
    *,
    a_to_b: Impairment | None = None,
    b_to_a: Impairment | None = None,
    mtu: int = DEFAULT_MTU,
    mac_a: bytes = DEFAULT_MAC_A,
    mac_b: bytes = DEFAULT_MAC_B,
    offloads: Offload = ALL_OFFLOADS,
    queue_bytes: int = QUEUE_BYTES,
) -> tuple[CableEnd, CableEnd]:
    """Two joined `LinkDevice` ends. `queue_bytes` bounds what waits at each end to be received."""
    a = CableEnd(mtu=mtu, mac=mac_a, offloads=offloads, queue_bytes=queue_bytes)
    b = CableEnd(mtu=mtu, mac=mac_b, offloads=offloads, queue_bytes=queue_bytes)
    a.connect(scheduler, b, a_to_b)
    b.connect(scheduler, a, b_to_a)
    return a, b
