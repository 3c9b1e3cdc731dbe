"""The virtio-vsock device: packets between one guest and whoever keeps the connections.

Theory of operation
-------------------
Satisfies `stack.vsock.transport.VsockTransport` by shape. It knows packets, not connections: structure and the
guest's own CID are checked here (`csrc/vvsock.c`), meaning is the engine's business, RSTs included.

Payloads to the guest are cut into its receive buffers (about 4 KiB each under Linux) by the ring code, with a header
in each. What a ring has is used: a packet that finds too few buffers leaves as far as it goes, and its caller sends the
rest, so nothing is too large for any ring and no byte is ever left out. When the ring has no room `transmit` accepts
less, and `arm` asks for a kick when buffers come back. The transmit ring is emptied regardless of the receive ring's
state, so the two directions cannot lock each other up.

A buffer that cannot hold a header and one byte more breaks the ring, as every other nonsense in it does. Nothing can be
exchanged any more until the driver starts anew, so that is the end of all connections: a new generation.

`generation` tells the engine which connections are dead. When rings stop nobody can know yet whether the guest was
paused (QMP `stop`) or its driver has reset the device: QEMU says the same. Their next start tells. A paused guest goes
on where it stopped: same size, same addresses, and the index each ring had reached. A driver that begins anew begins at
index 0. Only if both rings had just come by 0 the two look alike, and then nothing was ever exchanged (or 65536 times n
chains on both at once). So rings that go on anywhere else begin a new generation, and so does a front-end that leaves.

What was negotiated, not what was offered, decides which types of connection there are: SEQPACKET if acknowledged, and
STREAM too, unless NO_IMPLIED_STREAM was acknowledged and STREAM was not (virtio 1.3 section 5.10.3.1).

A ring that is disabled - QEMU disables rings a moment before it stops them for a pause - is left alone, and packets to
a ring that is not there stay with their owner. A network card may drop frames then; here bytes would be missing.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from vhost_user._vring import ffi, lib

from .device import MAX_RING_SIZE, Device
from .features import VsockFeature
from .message import Protocol
from .slab import slab_views

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview
VsockRx = tuple[int, int, int, int, int, int, int, int, int, memoryview]
VsockTx = tuple[int, int, int, int, int, int, int, int, int, Buffer]

#: struct virtio_vsock_hdr (virtio 1.3 section 5.10.6): src_cid, dst_cid, src_port, dst_port, len, type, op, flags,
#: buf_alloc, fwd_cnt; packed.
_HEADER: Final = Struct("<QQIIIHHIII")
_LENGTH_AT: Final = 24
#: `flags`: the end-of-message marks of a SEQPACKET payload belong to its last piece alone (5.10.6.6.1).
_FLAGS_AT: Final = 32
#: struct vvsock_record: the same without len, then begin, end, chunk, padding.
_RECORD: Final = Struct("=QQIIHHIIIIII4x")

_OP_RW: Final = 5

RX, TX = 0, 1  #: ring numbers: device to guest, guest to device

MAX_PAYLOAD: Final = 64 << 10
MIN_GUEST_CID: Final = 3  #: 0, 1 and 2 are reserved (5.10.4) ...
MAX_GUEST_CID: Final = 0xFFFF_FFFE  #: ... and so is VMADDR_CID_ANY; upper 32 bits must be 0

BURST_PACKETS: Final = 256
BURST_BYTES: Final = 512 << 10

#: Names of enum vvsock_drop in csrc/vvsock.h, in its order.
RX_DROPS: Final = ("header", "long", "payload", "src-cid")

_EMPTY: Final = memoryview(b"")


class _Place(NamedTuple):
    """A ring and where the device is in it."""

    base: int
    num: int
    addresses: tuple[int, ...] | None  #: of descriptors, used and available ring, as in SET_VRING_ADDR


class VsockDevice(Device):
    """A guest's vsock, seen from the host.

    `guest_cid`: the CID the guest learns from the device, 3..0xfffffffe. `disable` names features (bits of
    `VsockFeature`) not to offer: without SEQPACKET and NO_IMPLIED_STREAM it is the device of virtio 1.1. Raises
    ValueError for a reserved CID.
    """

    def __init__(
        self,
        guest_cid: int,
        *,
        disable: int = 0,
        max_ring_size: int = MAX_RING_SIZE,
        name: str = "vsock",
    ) -> None:
        if not MIN_GUEST_CID <= guest_cid <= MAX_GUEST_CID:
            raise ValueError(f"guest CID {guest_cid} is reserved: use {MIN_GUEST_CID}..{MAX_GUEST_CID}")
        if disable & VsockFeature.VERSION_1:
            raise ValueError("VERSION_1 cannot be disabled: legacy devices are not served")
        offered = (
            VsockFeature.STREAM
            | VsockFeature.SEQPACKET
            | VsockFeature.NO_IMPLIED_STREAM
            | VsockFeature.INDIRECT_DESC
            | VsockFeature.EVENT_IDX
            | VsockFeature.VERSION_1
        )
        super().__init__(
            name=name,
            device_features=offered & ~disable,
            protocol_features=Protocol.REPLY_ACK
            | Protocol.BACKEND_REQ
            | Protocol.CONFIG
            | Protocol.CONFIGURE_MEM_SLOTS
            | Protocol.STATUS,
            ring_count=2,
            reported_queues=2,
            config=guest_cid.to_bytes(8, "little"),
            max_ring_size=max_ring_size,
        )
        self.guest_cid = guest_cid
        self._next_cid = guest_cid  # what config space says
        self.carrier = False
        self.stream = True  #: negotiated or implied
        self.seqpacket = False
        self.generation = 1
        self.packets_in = 0  #: from the guest
        self.packets_out = 0  #: to the guest, accepted by its ring
        self._generation = 1  # as the control thread counts
        self._was_started = [False, False]
        #: Where each ring stopped. None: it has not run since the front-end came, so there is nothing to go on from.
        self._stopped_at: list[_Place | None] = [None, None]
        self._begun = False  # this start has been counted
        self._reads_config = True  # the driver that starts next begins by reading config space
        self._records = ffi.new("struct vvsock_record[]", BURST_PACKETS)
        self._record_bytes = memoryview(ffi.buffer(self._records))
        self._chunks = ffi.new("struct chunk[]", BURST_PACKETS)
        self._chunk_bytes = memoryview(ffi.buffer(self._chunks))
        self._bad = ffi.new("uint64_t[]", lib.VVSOCK_DROPS)
        self._inbox = ffi.new("struct vvsock_inbox *")
        self._inbox.records, self._inbox.chunks, self._inbox.drops = self._records, self._chunks, self._bad
        self._inbox.guest_cid = guest_cid
        self._tx_drops: dict[str, int] = {}
        self._head = ffi.new("uint8_t[]", _HEADER.size)
        self._head_bytes = memoryview(ffi.buffer(self._head))
        self._rest = ffi.new("uint8_t[]", MAX_PAYLOAD)
        self._rest_bytes = memoryview(ffi.buffer(self._rest))
        self._forward = ffi.new("struct gw_forward *", {"header": self._head, "rest": self._rest, "most": MAX_PAYLOAD})
        self.partial = 0  #: payload bytes that left of the packet behind those `transmit` accepted last
        self._blocked = False  # `transmit` found no buffer
        self._parched = False  # `receive_from` found none
        self._breaks = 0  # generations that ended with a broken ring
        self._broke = False
        self.rings[TX].max_chain_bytes = lib.VVSOCK_HEADER + MAX_PAYLOAD

    def set_guest_cid(self, guest_cid: int) -> bool:
        """Give the guest another CID, on any thread. Its driver takes it when it starts anew (Linux: when it rebinds).

        True: QEMU was told and lets the driver know; otherwise it learns of it when it connects again. Raises
        ValueError for a reserved CID.
        """
        if not MIN_GUEST_CID <= guest_cid <= MAX_GUEST_CID:
            raise ValueError(f"guest CID {guest_cid} is reserved: use {MIN_GUEST_CID}..{MAX_GUEST_CID}")
        with self.control_lock:
            self._next_cid = guest_cid
            self.config = guest_cid.to_bytes(8, "little")
            return self.tell_config_changed()

    # -- control thread -------------------------------------------------------------------------------------------

    def on_connect(self) -> None:
        self._stopped_at = [None, None]
        self._was_started = [False, False]
        self._begun = False
        self._reads_config = True

    def on_disconnect(self) -> None:
        self._generation += 1

    def on_rings_changed(self) -> None:
        for index, ring in enumerate(self.rings):
            if ring.started == self._was_started[index]:
                continue
            self._was_started[index] = ring.started
            if not ring.started:
                self._stopped_at[index] = self._place(index)
                self._begun = False
            elif not self._begun and self._stopped_at[index] not in (None, self._place(index)):
                self._generation += 1
                self._begun = self._reads_config = True

    def _place(self, index: int) -> _Place:
        ring = self.rings[index]
        return _Place(ring.base, ring.num, None if ring.addresses is None else ring.addresses[1:4])

    # -- data thread ----------------------------------------------------------------------------------------------

    def on_refresh(self) -> None:
        self.carrier = not self.closed and self.rings[RX].live and self.rings[TX].live
        self._blocked = False
        broken = any(ring.broken is not None for ring in self.rings)
        self._breaks += broken and not self._broke
        self._broke = broken
        self.generation = self._generation + self._breaks
        if self.carrier and self._reads_config:
            self._reads_config = False
            self.guest_cid = self._inbox.guest_cid = self._next_cid
        self.seqpacket = bool(self.features & VsockFeature.SEQPACKET)
        self.stream = bool(self.features & VsockFeature.STREAM) or not self.features & VsockFeature.NO_IMPLIED_STREAM
        if self.carrier:
            self.rings[RX].suppress()  # its kicks say "more buffers", which only matters after a shortage

    def receive(self, budget: int) -> list[VsockRx]:
        """Up to `budget` packets from the guest, structure and source checked. Never waits, never raises."""
        if self._changed:
            self.refresh()
        if not self.carrier or self.faults.holding:
            return []
        burst = self.rings[TX].pop(min(budget, BURST_PACKETS), BURST_BYTES)
        if not burst.count:
            return []
        view = burst.view
        inbox = self._inbox
        count = lib.vvsock_take(inbox, ffi.from_buffer(burst.records), burst.count, len(view))
        self.packets_in += count
        views = slab_views(view, self._chunk_bytes, inbox.nchunks)
        records = _RECORD.iter_unpack(self._record_bytes[: count * _RECORD.size])
        return [
            (src, dst, sport, dport, kind, op, flags, alloc, fwd, views[chunk][begin:end] if end else _EMPTY)
            for src, dst, sport, dport, kind, op, flags, alloc, fwd, begin, end, chunk in records
        ]

    def transmit(self, burst: Sequence[VsockTx]) -> int:
        """Packets to the guest, in order; returns how many were accepted whole: none without carrier.

        Of the next one the first `partial` bytes of its payload have left too, where that is not 0.
        """
        self.partial = 0
        if not self.carrier or self.faults.stalled:
            return 0
        pack = _HEADER.pack
        done, total = 0, len(burst)
        while done < total:
            frames: list[tuple[Buffer, ...]] = []
            for src, dst, sport, dport, kind, op, flags, alloc, fwd, payload in burst[done:]:
                length = len(payload)
                if length > MAX_PAYLOAD:
                    break
                header = pack(src, dst, sport, dport, length, kind, op, flags, alloc, fwd)
                frames.append((header, payload) if length else (header,))
            if not frames:
                self._drop("long", 1)
                done += 1
                continue
            ring = self.rings[RX]
            accepted, self.partial = ring.push_split(
                frames, header_size=_HEADER.size, length_at=_LENGTH_AT, marks_at=_FLAGS_AT
            )
            done += accepted
            self.packets_out += accepted
            if accepted < len(frames):
                self._blocked = ring.live
                if not ring.live:
                    self.notify_change()  # it stopped or broke a moment ago
                return done
        self._blocked = False
        return done

    def receive_from(self, packet: VsockTx, fd: int, limit: int) -> int | None:
        """`packet` (RW, without payload) to the guest, and as payload up to `limit` bytes received from the socket
        `fd`, which the kernel puts straight into the guest's buffers.

        Returns the bytes moved, 0 at the end of the socket's stream, None when the guest has no buffers: see `roomy`.
        Raises OSError as recv(2) does; BlockingIOError when the socket has nothing now.
        """
        if not self.carrier or self.faults.stalled:
            self._parched = True
            return None
        src, dst, sport, dport, kind, op, flags, alloc, fwd, _ = packet
        header = _HEADER.pack(src, dst, sport, dport, 0, kind, op, flags, alloc, fwd)
        ring = self.rings[RX]
        try:
            count = ring.receive_from(fd, limit, header, length_at=_LENGTH_AT, most=MAX_PAYLOAD)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._parched = True
            if not ring.live:
                self.notify_change()
            return None
        self._parched = False
        self.packets_out += 1
        return count

    def next_data(self) -> tuple[int, int, int, int, int] | None:
        """src_cid, dst_cid, src_port, dst_port and type of the next packet, if it is RW: see `send_on`."""
        if self._changed or not self.carrier or self.faults.holding or not self.rings[TX].peek(self._head):
            return None
        src, dst, sport, dport, _, kind, op, _, _, _ = _HEADER.unpack(self._head_bytes)
        return (src, dst, sport, dport, kind) if op == _OP_RW and src == self.guest_cid else None

    def send_on(self, fd: int, limit: int, enough: int) -> tuple[int, int, bytes, int, int]:
        """The payload of the packet `next_data` told of, and of those of its stream right behind it until there are
        `enough` bytes, to the socket `fd`, which the kernel takes straight from the guest's buffers.

        Packets that would exceed `limit` bytes are left. Returns how many packets were taken, bytes sent, what of the
        last packet the socket did not take, and that packet's buf_alloc and fwd_cnt. No packets: they are for
        `receive`. Raises OSError as send(2) does, BlockingIOError when the socket takes nothing now.
        """
        asked = self._forward
        asked.socket, asked.limit, asked.enough = fd, limit, enough
        taken = self.rings[TX].forward(asked)
        self.packets_in += taken
        size = asked.rest_size if taken else 0
        rest = self._rest_bytes[:size].tobytes() if size else b""
        return taken, int(asked.sent), rest, int(asked.buf_alloc), int(asked.fwd_cnt)

    @property
    def roomy(self) -> bool:
        """`receive_from` may find buffers where it last found none."""
        if not self._parched:
            return True
        return self.carrier and not self.faults.stalled and self.rings[RX].room() > 0

    def suppress(self) -> None:
        """No kicks until `arm`: we look by ourselves."""
        self.rings[TX].suppress()

    def arm(self) -> bool:
        """Kicks again from now on. True: look once more (packets came, room came, or something changed)."""
        self.clear_events()
        work = self.refresh()
        ring = self.rings[TX]
        if self.carrier and not self.faults.holding:
            work |= ring.arm()
        if (self._blocked or self._parched) and not self.faults.stalled:
            room = self.rings[RX].arm()
            self._parched &= not room  # told once: whoever found none may be gone meanwhile
            work |= room
        if self.carrier and not (self.rings[RX].live and self.rings[TX].live):
            self.notify_change()  # a ring broke: carrier is about to go
            work = True
        return work

    def close(self) -> None:
        """Idempotent. The front-end is hung up on, `carrier` is False from here on."""
        super().close()
        self.on_refresh()

    # -- books ----------------------------------------------------------------------------------------------------

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by reason; ``rx-`` from the guest, ``tx-`` to it. Reasons that never occurred are absent."""
        counted = {f"rx-{name}": int(self._bad[i]) for i, name in enumerate(RX_DROPS)}
        counted["rx-chain"] = self.rings[TX].counters.dropped_long
        counted.update({f"tx-{name}": count for name, count in self._tx_drops.items()})
        return {name: count for name, count in counted.items() if count}

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._tx_drops[reason] = self._tx_drops.get(reason, 0) + count
