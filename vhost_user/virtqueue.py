"""One split virtqueue: bursts of chains in, used entries out, notification suppression. The work is in csrc/vring.c.

Theory of operation
-------------------
A ring is *started* (the front-end gave it a kick descriptor) and, independently, *enabled*. Control methods are
called by session code with the ring's gate held; data methods are called by the thread that drives the device and take
the gate themselves, for one burst, that is one C call. So a control message waits for one burst at most, and once
it holds the gate nothing touches guest memory through this ring (virtio ring rule 16).

The device takes chains and returns them within the same call, in order, so at rest nothing is in flight: the next
available index *is* the state, and what GET_VRING_BASE answers. Any structural error in what the guest wrote stops the
ring: nothing more is taken, the error descriptor is signalled, `broken` says why, one line is logged. The process and
the other rings live on. The session clears it by stopping and starting the ring again.

Packed rings are not offered: `set_features` refuses bit 34.

Notifications. `suppress` asks the guest not to kick, `arm` asks for a kick again, empties the kick descriptor and says
whether something arrived in between. Without `arm` the kick descriptor stays readable, so a forgotten one costs
wake-ups, never a lost kick. The guest's own suppression (used_event, NO_INTERRUPT) is obeyed in C, and the call
descriptor is written there.
"""

from __future__ import annotations

import errno
from array import array
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from vhost_user._vring import ffi, lib
from vhost_user.ring_control import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_LOG_ALL,
    F_RING_PACKED,
    MAX_RING_SIZE,
    RingControl,
    RingCounters,
    RingError,
)
from vhost_user.slab import SMALL_BURST, burst_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.gate import LockLike

__all__ = [
    "BURST_BYTES",
    "BURST_CHAINS",
    "EMPTY_BURST",
    "F_EVENT_IDX",
    "F_INDIRECT_DESC",
    "F_IN_ORDER",
    "F_LOG_ALL",
    "F_RING_PACKED",
    "MAX_CHAIN_BYTES",
    "MAX_RING_SIZE",
    "PopBurst",
    "RingCounters",
    "RingError",
    "Virtqueue",
]

#: What one burst may take; the figures of Linux vhost (256 packets, 512 KiB), so that no ring starves another (rule 14)
#: and the slab stays in the second-level cache.
BURST_CHAINS: Final = 256
BURST_BYTES: Final = 512 * 1024

#: Longest chain `pop` delivers unless the device says otherwise: a 64 KiB packet and room for any header.
MAX_CHAIN_BYTES: Final = 65536 + 256

#: Parts shorter than this are joined into one buffer per burst, longer ones handed to C by address. Measured: joining
#: costs one memcpy, an address about 150 ns.
_BY_ADDRESS: Final = 4096

#: For so many looks in vain a call may be owed.
OWED_LOOKS: Final[int] = lib.GW_OWED_LOOKS

_EXTERNAL: Final = lib.GW_PART_EXTERNAL
_take_one: Final[Any] = lib.gw_take_one
_push_one: Final[Any] = lib.gw_vring_push_one
_ONE: Final = lib.GW_PUSH_ONE
_MERGE: Final = lib.GW_PUSH_MERGE
_SPLIT: Final = lib.GW_PUSH_SPLIT
_U32S: Final = ffi.typeof("uint32_t[]")


class PopBurst:
    """Chains copied out of guest memory.

    `view` is one memoryview over all payload; it and anything sliced from it keep the memory alive. `records` is a
    memoryview of `count` packed native (offset: u32, length: u32) pairs, offsets relative to `view`; iterate with
    ``Struct("=II").iter_unpack(burst.records)`` or ``burst.records.cast("I").tolist()``.
    """

    __slots__ = ("count", "records", "view")

    def __init__(self, view: memoryview, records: memoryview, count: int) -> None:
        self.view = view
        self.records = records
        self.count = count


#: What `pop` answers when there is nothing: always this object.
EMPTY_BURST: Final = PopBurst(memoryview(b""), memoryview(b""), 0)


class Virtqueue(RingControl):
    """One ring of one device. `gate` is the lock between control and data, held for one burst at most."""

    def __init__(self, index: int, max_size: int = 1024, *, gate: LockLike) -> None:
        super().__init__(index, max_size, gate=gate)
        #: longest chain `pop` delivers; longer ones are returned unread and counted
        self.max_chain_bytes = MAX_CHAIN_BYTES
        small = ffi.new("uint8_t[]", SMALL_BURST)
        self._small = memoryview(ffi.buffer(small))
        self._got = ffi.new("int64_t *")
        self._partial = 0  # what push_split answers beside the count
        self._burst = ffi.new("struct gw_burst *", {"small": small, "small_size": SMALL_BURST})

    # -- data: takes the gate for one burst ------------------------------------------------------------------------

    def pop(self, budget: int = BURST_CHAINS, max_bytes: int = BURST_BYTES) -> PopBurst:
        """Take up to `budget` chains of a device-readable queue and at most `max_bytes` of payload (one chain always).

        Each is copied once into fresh memory and returned to the guest. A chain longer than `max_chain_bytes` is
        returned unread and counted. A burst may be shorter than what waits: call again until it is empty.
        """
        self._gate.acquire()  # `with` costs three times as much, and this is done for every burst; see gate.py
        try:
            if not self._live:
                return EMPTY_BURST
            burst = self._burst
            count = lib.gw_vring_pop(self._ring, budget, max_bytes, self.max_chain_bytes, burst)
            if count <= 0:
                self._check(count)
                return EMPTY_BURST
        finally:
            self._gate.release()
        raw = burst_view(burst, self._small)
        cut = 8 * count
        return PopBurst(raw[cut:], raw[:cut], count)

    def take(self, take: Any) -> int:
        """As `pop`, with everything judged in the same call (`struct gw_take *`, csrc/take.h); how many chains."""
        gate = self._gate
        # Read before they are called: where they are called they would be looked for as methods first, in vain.
        acquire, release = gate.acquire, gate.release
        acquire()
        try:
            if not self._live:
                return 0
            count: int = _take_one(take)
            return count if count >= 0 else self._check(count)
        finally:
            release()

    def push(self, frames: Sequence[Sequence[bytes | bytearray | memoryview]], *, header_fixup: int = -1) -> int:
        """Copy frames into device-writable chains, in order; returns how many were accepted.

        A frame is the concatenation of its parts (bytes-like, format "B"). With `header_fixup` >= 0 buffers are
        mergeable: a frame may span chains, and their number is written as le16 at that offset of the frame (10 in a
        virtio_net_hdr). Otherwise each frame goes into exactly one chain.

        All or nothing per frame: too few chains available leaves the frame and those after it to the caller. A frame no
        ring of this size (or, unmerged, not the next chain) can ever take is counted, dropped and accepted; so is one
        shorter than its header. On a ring that is not live: 0.
        """
        mode = _ONE if header_fixup < 0 else _MERGE
        return self._push(frames, mode, max(header_fixup, 0), 0)

    def push_one(self, frame: bytes, header_fixup: int = -1, *, patiently: bool = False) -> int:
        """As `push` of one frame that is one part, for a third of the price.

        `patiently`: the guest's call may wait for the next one, or until `elapse` has counted `OWED_LOOKS`.
        """
        mode, at = _MERGE, header_fixup
        if header_fixup < 0:
            mode, at = _ONE, 0
        if patiently:
            mode |= lib.GW_PUSH_PATIENTLY
        gate = self._gate
        acquire, release = gate.acquire, gate.release  # see `take`
        acquire()
        try:
            if not self._live:
                return 0
            accepted: int = _push_one(self._ring, mode, at, frame, len(frame))
            return accepted if accepted >= 0 else self._check(accepted)
        finally:
            release()

    def push_volley(
        self,
        headers: bytes,
        number_at: int,
        number: int,
        sizes: tuple[int, int],
        count: int,
        parts: Sequence[bytes | bytearray | memoryview],
        *,
        header_fixup: int = -1,
    ) -> int:
        """As `push` of `count` frames that are made here: a header and the next stretch of the payload `parts` each.

        `headers` is that of all but the last one and that of the last one, of one length (at most
        `lib.GW_VOLLEY_HEADER_MAX`). At `number_at` of each is written, big-endian, `number` and what payload went
        before. `sizes`: payload of all but the last one, and of that. Nothing is dropped: what cannot be placed stays
        the caller's.
        """
        pointers = [ffi.from_buffer(part) for part in parts]
        mode, at = (lib.GW_PUSH_ONE, 0) if header_fixup < 0 else (lib.GW_PUSH_MERGE, header_fixup)
        self._gate.acquire()
        try:
            if not self._live:
                return 0
            accepted = lib.gw_vring_volley(
                self._ring,
                mode,
                at,
                headers,
                len(headers) // 2,
                number_at,
                number,
                *sizes,
                count,
                [len(pointer) | _EXTERNAL for pointer in pointers],
                pointers,
                len(pointers),
            )
            if accepted == lib.GW_BAD_ARGUMENT:
                raise ValueError("the payload is not what the sizes say, or the header does not fit")
            return self._check(accepted)
        finally:
            self._gate.release()

    def push_split(
        self,
        frames: Sequence[Sequence[bytes | bytearray | memoryview]],
        *,
        header_size: int,
        length_at: int,
        marks_at: int = 0,
    ) -> tuple[int, int]:
        """As `push`, for packets that may be cut (vsock): a frame is a header and payload, and is spread over as many
        chains as it needs, each beginning with its own copy of the header.

        `header_size` <= 64 bytes; at `length_at` in each copy the payload bytes of that chain are written as le32. With
        `marks_at` the le32 there is 0 in every copy but the one whose chain ends the packet. Returns how many frames
        were accepted whole, and how many payload bytes of the next one found room: whatever the ring has is used, so no
        packet is too large for it. used.len is header and payload. A chain that holds no payload byte breaks the ring.
        """
        self._partial = 0
        accepted = self._push(frames, _SPLIT, length_at | marks_at << 16, header_size)
        return accepted, self._partial

    def receive_from(self, fd: int, limit: int, header: bytes, *, length_at: int, most: int) -> int:
        """Receive up to `limit` bytes from the socket `fd`, without waiting, straight into device-writable chains.

        Spread as `push_split` does it, with `header` in front of every at most `most` bytes. Returns how many bytes; 0
        at the end of the stream. Raises OSError as recv(2) does, BlockingIOError among it when the socket has nothing,
        and ENOBUFS when the ring has no chain or is not live: then nothing was received.
        """
        self._gate.acquire()
        try:
            got = self._got
            got[0] = -errno.ENOBUFS
            if self._live:
                self._check(lib.gw_vring_receive(self._ring, header, len(header), length_at, most, fd, limit, got))
            count = int(got[0])
        finally:
            self._gate.release()
        if count < 0:
            raise OSError(-count, errno.errorcode.get(-count, "?"))
        return count

    def peek(self, header: Any) -> bool:
        """The vsock header of the next chain into `header` (uint8_t[44]), without taking it. False: there is none."""
        self._gate.acquire()
        try:
            return self._live and self._check(lib.gw_vring_peek(self._ring, header)) > 0
        finally:
            self._gate.release()

    def forward(self, asked: Any) -> int:
        """Send payload from the next chains to a socket, without waiting (`struct gw_forward *`, csrc/vring.h).

        Returns how many chains were taken. Raises OSError as send(2) does, BlockingIOError among it; then none was.
        """
        asked.sent = 0
        self._gate.acquire()
        try:
            taken = self._check(lib.gw_vring_forward(self._ring, asked)) if self._live else 0
        finally:
            self._gate.release()
        if not taken and asked.sent < 0:
            code = -int(asked.sent)
            raise OSError(code, errno.errorcode.get(code, "?"))
        return taken

    def _push(
        self, frames: Sequence[Sequence[bytes | bytearray | memoryview]], mode: int, at: int, header_size: int
    ) -> int:
        live = self._live  # looked at again below, with the gate held
        if not live or not frames:
            return 0
        # What C is told: how many parts each frame has, then how long each part is.
        external: list[Any] = []
        words: Any
        if len(frames) == 1:
            # Plain steps: for a lone frame the iterators below cost more than all the rest.
            inline: list[bytes | bytearray | memoryview] = []
            words = [len(frames[0])]
            for part in frames[0]:
                length = len(part)
                if length < _BY_ADDRESS:
                    inline.append(part)
                else:
                    view = ffi.from_buffer(part)
                    external.append(view)
                    length = len(view) | _EXTERNAL
                words.append(length)
            part_count = len(words) - 1
            blob = b"".join(inline)
        else:
            parts = list(chain.from_iterable(frames))
            lengths = list(map(len, parts))
            part_count = len(lengths)
            if lengths and max(lengths) >= _BY_ADDRESS:
                inline = []
                for position, part in enumerate(parts):
                    if lengths[position] < _BY_ADDRESS:
                        inline.append(part)
                    else:
                        view = ffi.from_buffer(part)
                        external.append(view)
                        lengths[position] = len(view) | _EXTERNAL
                parts = inline
            blob = b"".join(parts)
            numbers = array("I", map(len, frames))  # an array costs a third of a list
            numbers.extend(lengths)
            words = ffi.from_buffer(_U32S, numbers)
        # These names hold every buffer during the call; from_buffer pins a bytearray against resizing.
        self._gate.acquire()
        try:
            if not self._live:
                return 0
            accepted = lib.gw_vring_push(
                self._ring,
                mode,
                at,
                header_size,
                words,
                len(frames),
                part_count,
                blob,
                len(blob),
                external,
                len(external),
            )
            if accepted == lib.GW_BAD_ARGUMENT:
                raise ValueError("a part is not a one-dimensional buffer of bytes, or the header does not fit")
            if mode == _SPLIT and 0 <= accepted < len(frames):
                self._partial = int(lib.gw_vring_partial(self._ring))
            return self._check(accepted)
        finally:
            self._gate.release()

    def discard(self, budget: int = BURST_CHAINS) -> int:
        """Return up to `budget` chains unread, also when the ring is disabled (a disabled transmit ring must not block
        the guest). How many were."""
        with self._gate:
            if not self._started or self.broken:
                return 0
            return self._check(lib.gw_vring_discard(self._ring, budget))

    def mute(self, muted: bool) -> None:
        """Lose every call to the guest from now on (a fault, see faults.py), or none any more. Takes the gate."""
        with self._gate:
            self._muted = muted
            lib.gw_vring_set_call(self._ring, -1 if muted else self._call_fd)

    def fault(self, kind: int, count: int, value: int = 0) -> int:
        """Commit a fault of `lib.GW_FAULT_*` (see faults.py); how many entries or chains. 0 if not live."""
        with self._gate:
            if not self._live:
                return 0
            return self._check(lib.gw_vring_fault(self._ring, kind, count, value))

    def room(self) -> int:
        """Chains now available to us; 0 if not live."""
        with self._gate:
            if not self._live:
                return 0
            return self._check(lib.gw_vring_room(self._ring))

    def pending(self) -> bool:
        """At least one chain is available."""
        return self.room() > 0

    def linger(self, looks: int) -> bool:
        """Look up to `looks` times in C, a pause of the processor after each (some 20 ns to 60 ns): True as soon as a
        chain is available. Nobody else waits for the interpreter meanwhile.
        """
        self._gate.acquire()
        try:
            return self._live and self._check(lib.gw_vring_linger(self._ring, looks)) > 0
        finally:
            self._gate.release()

    def elapse(self, looks: int) -> None:
        """So many looks for work were in vain, or will be (`OWED_LOOKS`): a call owed for that long is made."""
        with self._gate:
            if self._live:
                lib.gw_vring_elapse(self._ring, looks)

    def suppress(self) -> None:
        """We look by ourselves: the guest need not kick until `arm`."""
        with self._gate:
            if self._started and not self.broken:
                self._check(lib.gw_vring_suppress(self._ring))

    def arm(self, beyond: int = 0) -> bool:
        """Empty the kick descriptor and ask for a kick when more than `beyond` chains are available. True if they
        already are: look once more before sleeping.

        Works on a disabled ring too (its chains may be discarded); a receive ring that has buffers enough needs no
        arming, only `drain_kick`, and one that ran short wants ``arm(beyond=room_seen)``.
        """
        with self._gate:
            if not self._started or self.broken:
                self._drain()
                return False
            return bool(self._check(lib.gw_vring_arm(self._ring, beyond)))

    def drain_kick(self) -> bool:
        """Empty the kick descriptor (so that epoll rests); True if it had been signalled."""
        with self._gate:
            return self._drain()

    def _drain(self) -> bool:
        return bool(lib.gw_vring_drain_kick(self._ring))
