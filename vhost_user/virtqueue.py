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
import logging
from array import array
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vhost_user import syscalls
from vhost_user._vring import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.dirty_log import DirtyLog
    from vhost_user.gate import LockLike
    from vhost_user.memory import MemoryTable

log = logging.getLogger(__name__)

#: Ring features this code implements, by virtio feature bit.
F_LOG_ALL: Final = 1 << 26  #: vhost: log written pages
F_INDIRECT_DESC: Final = 1 << 28
F_EVENT_IDX: Final = 1 << 29
F_RING_PACKED: Final = 1 << 34  #: never offered
F_IN_ORDER: Final = 1 << 35  #: kept by construction: chains are used in the order they were made available

#: What one burst may take; the figures of Linux vhost (256 packets, 512 KiB), so that no ring starves another (rule 14)
#: and the slab stays in the second-level cache.
BURST_CHAINS: Final = 256
BURST_BYTES: Final = 512 * 1024

#: Largest ring of the specification (virtio 1.3 section 2.7).
MAX_RING_SIZE: Final = 32768

#: Longest chain `pop` delivers unless the device says otherwise: a 64 KiB packet and room for any header.
MAX_CHAIN_BYTES: Final = 65536 + 256

#: Parts shorter than this are joined into one buffer per burst, longer ones handed to C by address. Measured: joining
#: costs one memcpy, an address about 150 ns.
_BY_ADDRESS: Final = 4096

#: Bursts up to this many bytes become a `bytes` object; larger ones keep the slab C made, whose finalizer costs more
#: than such a copy.
_SMALL_BURST: Final = 8192
_EXTERNAL: Final = lib.GW_PART_EXTERNAL
_U32S: Final = ffi.typeof("uint32_t[]")


class RingError(ValueError):
    """A control message this ring cannot honour; the text says which and why."""


class RingCounters(NamedTuple):
    """What happened on a ring since it was made; never reset."""

    bursts: int  #: data calls that moved at least one chain
    chains: int  #: chains taken and returned
    bytes: int  #: payload bytes copied, either way
    kicks: int  #: times the kick descriptor was found readable by `arm` or `drain_kick`
    calls: int  #: times the call descriptor was written
    calls_spared: int  #: bursts after which the guest did not want a call
    discarded: int  #: chains returned unread by `discard`
    dropped_long: int  #: readable chains longer than max_chain_bytes
    dropped_no_fit: int  #: frames that fit no chain (or not the whole ring), or lack their header
    shortages: int  #: pushes that stopped because too few chains were available
    no_memory: int  #: pops put off because no slab could be allocated


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


class Virtqueue:
    """One ring of one device. `gate` is the lock between control and data, held for one burst at most."""

    def __init__(self, index: int, max_size: int = 1024, *, gate: LockLike) -> None:
        """`max_size`: largest ring accepted by SET_VRING_NUM, a power of two up to 32768."""
        if not 1 <= max_size <= MAX_RING_SIZE or max_size & (max_size - 1):
            raise ValueError(f"max_size {max_size}: a power of two up to {MAX_RING_SIZE} is wanted")
        self.index = index
        self.max_size = max_size
        #: longest chain `pop` delivers; longer ones are returned unread and counted
        self.max_chain_bytes = MAX_CHAIN_BYTES
        #: why the ring was stopped, or None
        self.broken: str | None = None
        self._gate = gate
        ring = lib.gw_vring_new(max_size)
        if ring == ffi.NULL:
            raise MemoryError(f"virtqueue {index}")
        self._ring = ffi.gc(ring, lib.gw_vring_free)
        small = ffi.new("uint8_t[]", _SMALL_BURST)
        self._small = memoryview(ffi.buffer(small))
        self._got = ffi.new("int64_t *")
        self._muted = False
        self._burst = ffi.new("struct gw_burst *", {"small": small, "small_size": _SMALL_BURST})
        self._kick_fd = -1
        self._call_fd = -1
        self._err_fd = -1
        self._memory: MemoryTable | None = None
        self._log: DirtyLog | None = None
        self._num = 0
        self._features = 0
        self._base = 0
        self._addresses: tuple[int, int, int, int, int] | None = None
        self._started = False
        self._enabled = False
        self._live = False

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def num(self) -> int:
        """Ring size in descriptors; 0 before SET_VRING_NUM."""
        return self._num

    @property
    def started(self) -> bool:
        return self._started

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        """SET_VRING_ENABLE: remembered whatever else the ring's state is (QEMU enables net rings first of all)."""
        self._enabled = bool(value)
        self._refresh()

    @property
    def live(self) -> bool:
        """Started, enabled, placed in memory and not broken: `pop` and `push` may find work."""
        return self._live

    @property
    def kick_fd(self) -> int | None:
        """For the owner's epoll. Unregister it *before* set_kick, stop, reset or close: the front-end holds the same
        open file, so the kernel would not forget it at close."""
        return self._kick_fd if self._kick_fd >= 0 else None

    @property
    def base(self) -> int:
        """The next available index the device will look at."""
        return int(lib.gw_vring_base(self._ring)) if self._started else self._base

    @property
    def addresses(self) -> tuple[int, int, int, int, int] | None:
        """What SET_VRING_ADDR said last (see `set_addr`), or None."""
        return self._addresses

    @property
    def counters(self) -> RingCounters:
        counters = lib.gw_vring_counters(self._ring)
        return RingCounters(*[int(getattr(counters, name)) for name in RingCounters._fields])

    # -- control: the gate is held by the caller -------------------------------------------------------------------

    def set_features(self, features: int) -> None:
        """The acked virtio feature bits. Raises RingError if they change the format of a running ring."""
        if features & F_RING_PACKED:
            raise RingError("packed rings are not offered")
        changed = (self._features ^ features) & (F_INDIRECT_DESC | F_EVENT_IDX)
        if self._started and changed:
            raise RingError(f"ring {self.index} is running: its features cannot change by {changed:#x}")
        self._features = features
        lib.gw_vring_set_features(self._ring, features)

    def set_num(self, num: int) -> None:
        if self._started:
            raise RingError(f"ring {self.index} is running: its size cannot change")
        if not 1 <= num <= self.max_size or num & (num - 1):
            raise RingError(f"ring {self.index}: size {num} is not a power of two up to {self.max_size}")
        self._num = num

    def set_addr(self, flags: int, desc_uva: int, used_uva: int, avail_uva: int, log_gpa: int) -> None:
        """SET_VRING_ADDR, in the message's order. On a running ring the new place is checked, then swapped in.

        Raises RingError for unknown flags, misalignment, or (when memory and size are known) a ring that does not lie
        inside one region; then nothing changed.
        """
        if flags & ~1:
            raise RingError(f"ring {self.index}: address flags {flags:#x}")
        if desc_uva % 16 or avail_uva % 2 or used_uva % 4:
            raise RingError(
                f"ring {self.index}: misaligned (desc {desc_uva:#x}, avail {avail_uva:#x}, used {used_uva:#x})"
            )
        addresses = (flags, desc_uva, used_uva, avail_uva, log_gpa)
        if self._started or (self._memory is not None and self._num):
            self._place(self._memory, addresses)
        self._addresses = addresses
        self._refresh()

    def set_base(self, base: int) -> None:
        """The next available index to look at, 0..65535."""
        if self._started:
            raise RingError(f"ring {self.index} is running: its base cannot change")
        if not 0 <= base <= 0xFFFF:
            raise RingError(f"ring {self.index}: base {base} does not fit 16 bits")
        self._base = base

    def set_memory(self, memory: MemoryTable | None) -> None:
        """Use another memory table (None: none). A running ring whose place is not in it becomes broken; without any
        memory it waits. The ring holds its own reference."""
        old = self._memory
        self._memory = None if memory is None else memory.retain()
        lib.gw_vring_unplace(self._ring)
        if self._started and self._memory is not None and self._addresses is not None and not self.broken:
            try:
                self._place(self._memory, self._addresses)
            except RingError as error:
                self._break(f"{error}, after the memory changed")
        self._refresh()
        if old is not None:
            old.release()

    def set_log(self, dirty_log: DirtyLog | None) -> None:
        """Where to mark written pages while VHOST_F_LOG_ALL is acked. The ring holds its own reference."""
        old, self._log = self._log, None if dirty_log is None else dirty_log.retain()
        lib.gw_vring_set_log(self._ring, ffi.NULL if dirty_log is None else dirty_log.handle)
        if old is not None:
            old.release()

    def set_kick(self, fd: int | None) -> None:
        """Owns `fd` from now on and closes the one before.

        Raises RingError if it is no eventfd; then it stays the caller's, and the one before stays in use.
        """
        self._check_event(fd, "kick")
        self._kick_fd = _replace(self._kick_fd, fd)
        lib.gw_vring_set_kick(self._ring, self._kick_fd)

    def set_call(self, fd: int | None) -> None:
        """As `set_kick`. A running ring signals the new one at once: a call may have gone to the old one unseen."""
        self._check_event(fd, "call")
        self._call_fd = _replace(self._call_fd, fd)
        if self._muted:
            return
        lib.gw_vring_set_call(self._ring, self._call_fd)
        if self._started and not self.broken:
            lib.gw_vring_signal(self._ring)

    def set_err(self, fd: int | None) -> None:
        """As `set_kick`; signalled when the ring breaks."""
        self._check_event(fd, "err")
        self._err_fd = _replace(self._err_fd, fd)

    def start(self) -> None:
        """Begin: used index from guest memory, notifications armed, one call in case the last one before us was lost.

        Needs size and addresses; memory may still come. Idempotent. Raises RingError.
        """
        if self._started:
            return
        if not self._num or self._addresses is None:
            raise RingError(f"ring {self.index}: started before its {'address' if self._num else 'size'} is known")
        self._place(self._memory, self._addresses)
        self.broken = None
        self._started = True
        self._refresh()
        self._check(lib.gw_vring_start(self._ring, self._base))

    def stop(self) -> int:
        """GET_VRING_BASE: the next available index. Closes kick and call; guest memory is not touched afterwards."""
        if self._started:
            self._base = int(lib.gw_vring_base(self._ring))
        self._started = False
        lib.gw_vring_stop(self._ring)
        self.set_kick(None)
        self.set_call(None)
        self._refresh()
        return self._base

    def reset(self) -> None:
        """As if never set up: stopped, disabled, no memory, no log, no descriptors."""
        self.stop()
        self.set_err(None)
        self.set_memory(None)
        self.set_log(None)
        self.broken = None
        self._num = self._base = self._features = 0
        self._addresses = None
        lib.gw_vring_set_features(self._ring, 0)
        self.enabled = False

    def close(self) -> None:
        """Idempotent. The object may be set up again afterwards."""
        self.reset()

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
        size = burst.bytes
        if size > _SMALL_BURST:
            raw = memoryview(ffi.buffer(ffi.gc(burst.slab, lib.gw_slab_free, size), size))
        else:
            raw = memoryview(self._small[:size].tobytes())
        cut = 8 * count
        return PopBurst(raw[cut:], raw[:cut], count)

    def push(self, frames: Sequence[Sequence[bytes | bytearray | memoryview]], *, header_fixup: int = -1) -> int:
        """Copy frames into device-writable chains, in order; returns how many were accepted.

        A frame is the concatenation of its parts (bytes-like, format "B"). With `header_fixup` >= 0 buffers are
        mergeable: a frame may span chains, and their number is written as le16 at that offset of the frame (10 in a
        virtio_net_hdr). Otherwise each frame goes into exactly one chain.

        All or nothing per frame: too few chains available leaves the frame and those after it to the caller. A frame no
        ring of this size (or, unmerged, not the next chain) can ever take is counted, dropped and accepted; so is one
        shorter than its header. On a ring that is not live: 0.
        """
        mode = lib.GW_PUSH_ONE if header_fixup < 0 else lib.GW_PUSH_MERGE
        return self._push(frames, mode, max(header_fixup, 0), 0)

    def push_split(
        self, frames: Sequence[Sequence[bytes | bytearray | memoryview]], *, header_size: int, length_at: int
    ) -> int:
        """As `push`, for packets that may be cut (vsock): a frame is a header and payload, and is spread over as many
        chains as it needs, each beginning with its own copy of the header.

        `header_size` <= 64 bytes; at `length_at` in each copy the payload bytes of that chain are written as le32. All
        or nothing per frame; used.len is header and payload. A chain that holds no payload byte breaks the ring.
        """
        return self._push(frames, lib.GW_PUSH_SPLIT, length_at, header_size)

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

    # -- inside ----------------------------------------------------------------------------------------------------

    def _drain(self) -> bool:
        return bool(lib.gw_vring_drain_kick(self._ring))

    def _refresh(self) -> None:
        placed = self._memory is not None and self._addresses is not None
        self._live = self._started and self._enabled and placed and self.broken is None

    def _place(self, memory: MemoryTable | None, addresses: tuple[int, int, int, int, int]) -> None:
        if memory is None:
            return
        flags, desc, used, avail, log_gpa = addresses
        code = lib.gw_vring_place(self._ring, memory.handle, self._num, desc, avail, used, flags, log_gpa)
        if code in (lib.GW_BROKEN_PLACE, lib.GW_BROKEN_ALIGNMENT):
            raise RingError(f"ring {self.index}: {self._reason(code)}")
        self._check(code)  # memory that came after the start was looked into at once

    def _reason(self, code: int) -> str:
        text = str(ffi.string(lib.gw_vring_strerror(code)), "ascii")
        return f"{text} ({lib.gw_vring_error_value(self._ring):#x})"

    def _check(self, code: int) -> int:
        """What a C call answered: its count, or 0 after breaking the ring."""
        if code >= 0:
            return code
        if code != lib.GW_NO_MEMORY:  # counted in C; the chains stay where they are
            self._break(self._reason(code))
        return 0

    def _break(self, reason: str) -> None:
        self.broken = reason
        self._refresh()
        log.warning("ring %d stopped: %s", self.index, reason)
        if self._err_fd >= 0:
            lib.gw_event_signal(self._err_fd)

    def _check_event(self, fd: int | None, name: str) -> None:
        """Only an eventfd can stand for a notification, and one that never blocks us: a front-end may leave its counter
        full (the flag is the front-end's too; every VMM sets it itself)."""
        if fd is None:
            return
        try:
            if syscalls.kind(fd) != "anon_inode:[eventfd]":
                raise RingError(f"ring {self.index}: the {name} descriptor is not an eventfd")
            syscalls.set_nonblocking(fd)
        except OSError as error:
            raise RingError(f"ring {self.index}: {name} descriptor: {errno.errorcode[error.errno or 0]}") from None


def _replace(old: int, new: int | None) -> int:
    if old >= 0:
        syscalls.close(old)
    return -1 if new is None else new
