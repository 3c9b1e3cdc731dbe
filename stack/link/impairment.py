"""One direction of a bad line: loss, bursts of loss, duplicates, reordering, corruption, delay, jitter, a rate.

Theory of operation
-------------------
`Impairment` is the description, immutable; `ImpairedPath` carries it out. Everything is in the Scheduler's time and
drawn from one seeded generator, so that a run is reproduced exactly by its seed, in virtual time as fast as the
processor allows. A frame passes these stages in this order, as it would a real line:

1. A superframe is cut into the packets the wire would carry (`per_packet`), so that loss hits one packet, not 64 KiB.
   A packet longer than `mtu` goes no further and nobody is told: a black hole, as a misconfigured tunnel makes.
2. Loss: each frame alone (`loss`), or in bursts after Gilbert's two-state model: a burst begins with probability
   `burst_loss` per frame and lasts `burst_length` frames on average (geometric).
3. Corruption flips one bit behind the Ethernet header. The checksum is finished first: on a wire it would have been.
4. Duplication sends the frame twice.
5. The rate: frames are serialised one after another at `rate_bps`; what waits is bounded by `queue_bytes`, and a
   frame that does not fit is dropped (drop-tail).
6. Delay plus up to `jitter_ns` more, uniformly. Jitter alone never reorders: a line is a queue.
7. Reordering holds a frame back until 1 to `reorder_depth` later ones have overtaken it, or `reorder_hold_ns` passed.

The name of each field is also that of the counter it feeds in `PathStats`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stack.link.device import NEEDS_CSUM, RxFrame, TxFrame
from stack.link.offload import OffloadError, as_received, finish_checksum, segment
from stack.scheduler import NS_PER_MS, NS_PER_S, Randomness, Scheduler

ETHERNET_HEADER: Final = 14
#: Most that may be under way without a rate to bound it: a second of delay at 1 Gb/s is 125 MB; half of that.
FLIGHT_BYTES: Final = 64 << 20
_MASK64: Final = (1 << 64) - 1


class SplitMix64:
    """A small seeded generator of the `Randomness` shape (Steele, Lea, Flood 2014), one per direction of a line.

    Its own sequence for each direction: what one side draws does not disturb the other, so that a failing seed keeps
    failing in the same place while the code on the other side changes.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK64

    def getrandbits(self, k: int, /) -> int:
        value = 0
        for _ in range((k + 63) // 64):
            value = value << 64 | self._next()
        return value >> (-k % 64)

    def random(self) -> float:
        return (self._next() >> 11) / (1 << 53)

    def randrange(self, start: int, stop: int, /) -> int:
        return start + self._next() * (stop - start) // (1 << 64)

    def _next(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        z = self._state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK64
        return z ^ z >> 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What one direction of a line does to its frames. All probabilities are per frame, 0..1.

    Raises `ValueError` for a probability outside 0..1 or a negative time, rate or size.
    """

    loss: float = 0.0
    burst_loss: float = 0.0  #: probability that a burst of loss begins
    burst_length: float = 4.0  #: mean frames of a burst
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_depth: int = 3  #: at most this many frames overtake one
    reorder_hold_ns: int = 10 * NS_PER_MS  #: a held frame goes at the latest after this
    corrupt: float = 0.0
    delay_ns: int = 0
    jitter_ns: int = 0  #: 0 to this is added to the delay
    rate_bps: int = 0  #: bits per second, Ethernet header included; 0 is unlimited
    queue_bytes: int = 256 << 10  #: what may wait for the rate
    mtu: int = 0  #: longest packet (bytes, without Ethernet header) that passes; 0: every one
    per_packet: bool = True  #: cut superframes first; False impairs them whole
    seed: int | None = None  #: None draws from the Scheduler's generator

    def __post_init__(self) -> None:
        for name in ("loss", "burst_loss", "duplicate", "reorder", "corrupt"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, 0 to 1, not {getattr(self, name)}")
        for name in ("delay_ns", "jitter_ns", "rate_bps", "queue_bytes", "mtu", "reorder_hold_ns"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative: {getattr(self, name)}")
        if self.burst_length < 1 or self.reorder_depth < 1:
            raise ValueError("burst_length and reorder_depth are at least 1")


@dataclass(slots=True)
class PathStats:
    """What happened to the frames of one direction, in wire packets where superframes are cut."""

    offered: int = 0
    delivered: int = 0
    mtu: int = 0  #: dropped because the packet was too long
    loss: int = 0
    burst_loss: int = 0
    corrupt: int = 0
    duplicate: int = 0
    reorder: int = 0
    queue_bytes: int = 0  #: dropped because the queue before the rate was full
    overrun: int = 0  #: dropped because the receiver did not take its frames, or too much was under way
    malformed: int = 0  #: offload facts contradict the frame


class _Held:
    """A frame waiting to be overtaken. `frame` is None once it went."""

    __slots__ = ("frame", "overtakers")

    def __init__(self, frame: RxFrame, overtakers: int) -> None:
        self.frame: RxFrame | None = frame
        self.overtakers = overtakers


class ImpairedPath:
    """Carries frames in one direction. `deliver` gets each surviving frame and answers whether it was taken."""

    def __init__(self, scheduler: Scheduler, impairment: Impairment, deliver: Callable[[RxFrame], bool]) -> None:
        self.stats = PathStats()
        self._scheduler = scheduler
        self._deliver = deliver
        self._timer = scheduler.timer(self.run)
        self._heap: list[tuple[int, int, _Held]] = []
        self._sequence = 0
        self._held: list[_Held] = []
        self._flight_bytes = 0
        self.impair(impairment)

    def impair(self, impairment: Impairment) -> None:
        """Behave like this from the next frame on; what is under way keeps its time of arrival."""
        self.impairment = impairment
        self._rng: Randomness = self._scheduler.rng if impairment.seed is None else SplitMix64(impairment.seed)
        self._in_burst = False
        self._busy_until = 0
        self._last_arrival = 0

    def push(self, frame: TxFrame) -> None:
        """Send one frame down the path. Call `run` after a burst, for what arrives at once."""
        try:
            pieces = segment(frame, keep_partial=True) if frame[2] and self.impairment.per_packet else (frame,)
            for piece in pieces:
                self._pass(piece)
        except OffloadError:
            self.stats.malformed += 1

    def run(self) -> None:
        """Deliver everything due at the Scheduler's time, and see to be called for the rest."""
        heap = self._heap
        now = self._scheduler.now
        while heap and heap[0][0] <= now:
            held = heapq.heappop(heap)[2]
            frame = held.frame
            if frame is None:
                continue
            held.frame = None
            self._flight_bytes -= len(frame[0])
            if self._deliver(frame):
                self.stats.delivered += 1
            else:
                self.stats.overrun += 1
        if heap:
            self._timer.arm(heap[0][0])
        else:
            self._timer.cancel()

    def clear(self) -> None:
        """Lose everything under way, as a cable that is pulled does."""
        self._heap.clear()
        self._held.clear()
        self._flight_bytes = 0
        self._timer.cancel()

    @property
    def in_flight(self) -> int:
        """Bytes that were sent and have not arrived."""
        return self._flight_bytes

    def _pass(self, frame: TxFrame) -> None:
        impairment, stats = self.impairment, self.stats
        stats.offered += 1
        if impairment.mtu and self._too_long(frame):
            stats.mtu += 1
            return
        if impairment.loss and self._rng.random() < impairment.loss:
            stats.loss += 1
            return
        if impairment.burst_loss and self._lost_in_burst():
            stats.burst_loss += 1
            return
        if impairment.corrupt and self._rng.random() < impairment.corrupt:
            stats.corrupt += 1
            if frame[2]:
                self._pass_corrupted(segment(frame, keep_partial=True))
                return
            received = self._corrupted(frame)
        else:
            received = as_received(frame)
        if impairment.duplicate and self._rng.random() < impairment.duplicate:
            stats.duplicate += 1
            self._queue(received)
        self._queue(received)

    def _too_long(self, frame: TxFrame) -> bool:
        parts, _, gso_type, hdr_len, gso_size, _, _ = frame
        length = hdr_len + gso_size if gso_type else sum(map(len, parts))
        return length > ETHERNET_HEADER + self.impairment.mtu

    def _lost_in_burst(self) -> bool:
        if self._in_burst:
            self._in_burst = self._rng.random() >= 1.0 / self.impairment.burst_length
        else:
            self._in_burst = self._rng.random() < self.impairment.burst_loss
        return self._in_burst

    def _pass_corrupted(self, pieces: list[TxFrame]) -> None:
        """A superframe with one bit flipped travels in packets after all: whole, its sum would be finished too late."""
        hit = self._rng.randrange(0, len(pieces))
        for number, piece in enumerate(pieces):
            self._queue(self._corrupted(piece) if number == hit else as_received(piece))

    def _corrupted(self, frame: TxFrame) -> RxFrame:
        """The frame as it arrives with one bit flipped; nobody vouches for its checksum any more."""
        if frame[1] & NEEDS_CSUM:
            frame = finish_checksum(frame)
        view, _, gso_type, gso_size, csum_start, csum_offset = as_received(frame)
        data = bytearray(view)
        if len(data) > ETHERNET_HEADER:
            data[self._rng.randrange(ETHERNET_HEADER, len(data))] ^= 1 << self._rng.randrange(0, 8)
        return memoryview(bytes(data)), 0, gso_type, gso_size, csum_start, csum_offset

    def _queue(self, frame: RxFrame) -> None:
        impairment, stats = self.impairment, self.stats
        length = len(frame[0])
        if self._flight_bytes + length > FLIGHT_BYTES:
            stats.overrun += 1
            return
        arrival = now = self._scheduler.now
        if impairment.rate_bps:
            waiting = max(0, self._busy_until - now)
            if waiting and waiting * impairment.rate_bps // (8 * NS_PER_S) + length > impairment.queue_bytes:
                stats.queue_bytes += 1
                return
            self._busy_until = now + waiting + length * 8 * NS_PER_S // impairment.rate_bps
            arrival = self._busy_until
        arrival += impairment.delay_ns
        if impairment.jitter_ns:
            arrival += self._rng.randrange(0, impairment.jitter_ns + 1)
        arrival = self._last_arrival = max(arrival, self._last_arrival)
        self._flight_bytes += length
        if impairment.reorder and self._rng.random() < impairment.reorder:
            stats.reorder += 1
            held = _Held(frame, self._rng.randrange(1, impairment.reorder_depth + 1))
            self._held.append(held)
            self._push(arrival + impairment.reorder_hold_ns, held)
            return
        self._push(arrival, _Held(frame, 0))
        if self._held:
            self._overtake(arrival)

    def _overtake(self, arrival: int) -> None:
        """One more frame went: held ones that were overtaken often enough follow right behind it."""
        still: list[_Held] = []
        for held in self._held:
            if held.frame is None:
                continue  # its time had come
            held.overtakers -= 1
            if held.overtakers:
                still.append(held)
            else:
                self._push(arrival, held)
        self._held = still

    def _push(self, arrival: int, held: _Held) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (arrival, self._sequence, held))
