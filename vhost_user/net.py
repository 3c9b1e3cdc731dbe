"""The virtio-net device: virtio_net_hdr on one side, frames with offload facts on the other.

Theory of operation
-------------------
Satisfies `stack.link.device.LinkDevice` by shape; neither side imports the other.

*From the guest.* A burst of chains arrives in one slab (`Virtqueue.pop`). One call into C (`csrc/vnet.c`) judges every
header and frame by virtio 1.3 section 5.1.6.2, verifies TCP and UDP checksums nobody else will verify, and leaves one
packed record per good frame; one list comprehension makes `RxFrame` tuples of them. A bad frame is counted by reason
and costs nobody else anything. Large frames are views of the slab; small ones are views of copies of at most 8 KiB
(`csrc/chunk.h`), so that keeping 40 bytes never keeps half a megabyte.

*To the guest.* A header is packed in front of the frame's parts and everything goes to the ring in a few calls. The
stack may always leave checksums to us (`CSUM`): a guest that takes partial checksums gets them, for another one they
are finished here, in C. Superframes are taken as far as the guest acknowledged GUEST_TSO4/6 and has buffers for them.

*Calls that can wait.* An interrupt may cost the guest more than the frame it is for; see `owed.py` for those to the
guest. The buffer of a segment without data holds nobody up, nor does one of a bulk transfer (`vnet_can_wait` in C).

*Control thread.* Features, MTU and RARP come from there. What the data path needs from features is computed in
`on_features`, before any ring can run with them; what the owner sees (`carrier`, `offloads`, `mtu`) is computed in
`on_refresh`, on the owner's thread, followed by `on_change`.

*Several queue pairs.* All enabled ones are served, their copying and checksumming by several threads (`pairs.py`).
Frames to the guest go to the pair it sends their flow through (`steering.py`), so a flow stays in one ring and in
order. Transmit rings the guest has not enabled are emptied and discarded, as the specification wants, so that it never
waits for them.

*From guest to guest.* A switch may have frames moved from here into another card's rings without seeing them:
`route`, `unroute`, `forward` (`forwarding.py`).
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from vhost_user._vring import ffi, lib

from .device import F_LOG_ALL, MAX_RING_SIZE, Device
from .features import NetFeature, net_offer, without_orphans
from .forwarding import Forwarder, Port
from .frames import ETHER_HEADER, MIN_FRAME, VLAN_TAG, Buffer, finished, rarp, tagged
from .landing import NOTHING, Landed, Strip, Wanted
from .message import Protocol
from .net_offloads import OFFLOAD_CSUM, RX_DROPS, may_send, offloads, takes, vnet_bits
from .owed import OwedCall, patience
from .pairs import Pairs
from .slab import RECORD, SMALL_BURST, RxFrame, burst_view, sliced
from .steering import Steering
from .volley import Head, push_volley
from .workers import Workers

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .virtqueue import Virtqueue

TxFrame = tuple[tuple[Buffer, ...], int, int, int, int, int, int]
TxFacts = tuple[int, int, int, int, int, int]  # of it, all but the parts

NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2
#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
_HEADER: Final = Struct("<BBHHHHH")
_HEADER_BYTES: Final = _HEADER.size
_NUM_BUFFERS_AT: Final = 10

MAX_PACKET: Final = 65535
MAX_SUPERFRAME: Final = ETHER_HEADER + MAX_PACKET
_PADDING: Final = bytes(MIN_FRAME)

#: Frames and bytes of one burst, either way; the figures of Linux vhost, with room for the headers of the superframes:
#: eight of the longest are one burst, not seven and a lone one that costs a turn and an acknowledgment of its own.
BURST_FRAMES: Final = 256
BURST_BYTES: Final = 8 * (lib.VNET_HEADER + MAX_SUPERFRAME)
#: Frames go to the ring in portions of about this many bytes, so that the guest starts on the first ones while we
#: copy the next: a prototype pushed 4 superframes a call a third faster than 15, which left both sides in lockstep.
PORTION_BYTES: Final = 256 << 10

#: How often `linger` looks: 5 us to 15 us, by how long a processor pauses. Who wants the Network waits that long.
LINGER_LOOKS: Final = 256

#: What a burst of one chain has in front of its payload, bytes; and where that ends at most if C has put it into the
#: buffer for small bursts.
_INDEX: Final = 8
_ONE_SMALL: Final = SMALL_BURST - _INDEX

#: A frame that leaves alone is put together first if its payload is not longer than this, bytes.
_LONE_BYTES: Final = 2048

#: Headers remembered, by offload facts.
_MAX_HEADERS: Final = 256
_UNKNOWN: Final = (b"", 1, 0)  # good for no length

#: Announcements waiting for the data thread; the front-end can send them as fast as it likes.
_MAX_ANNOUNCEMENTS: Final = 16

DEFAULT_MAC: Final = bytes.fromhex("525500000002")


class NetDevice(Device):
    """A guest's network card, seen from the host.

    `mac`: hardware address suggested for *our* end of the link, 6 bytes (the guest's own comes from its QEMU).
    `mtu`: largest layer-3 packet in bytes, 68..65535; NET_SET_MTU may change it. `queues`: pairs offered.

    `offload=False` offers no checksum or segmentation offload in either direction; `disable` names single features
    (bits of `NetFeature`) not to offer, and those that need them go with them. `verify_checksums=False` lets TCP and
    UDP checksums of the guest through unseen. `workers`: threads that help when several pairs are busy (None: as many
    as there are cores for).

    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        *,
        mac: bytes = DEFAULT_MAC,
        mtu: int = 1500,
        queues: int = 1,
        offload: bool = True,
        disable: int = 0,
        verify_checksums: bool = True,
        workers: int | None = None,
        max_ring_size: int = MAX_RING_SIZE,
        name: str = "net",
    ) -> None:
        if len(mac) != 6 or mac[0] & 1:
            raise ValueError(f"mac {mac.hex(':')!r} is not the address of one station: 6 bytes, first one even")
        if not 68 <= mtu <= MAX_PACKET:
            raise ValueError(f"mtu {mtu} is not within 68..{MAX_PACKET}")
        if not 1 <= queues <= 128:
            raise ValueError(f"{queues} queue pairs: 1 to 128 can be served")
        if disable & NetFeature.VERSION_1:
            raise ValueError("VERSION_1 cannot be disabled: legacy devices are not served")
        offered = without_orphans(net_offer(queues, offload) & ~NetFeature(disable))
        protocol = Protocol.REPLY_ACK | Protocol.RARP | Protocol.NET_MTU | Protocol.LOG_SHMFD
        protocol |= Protocol.CONFIGURE_MEM_SLOTS | Protocol.STATUS
        if queues > 1:
            protocol |= Protocol.MQ
        super().__init__(
            name=name,
            device_features=offered | F_LOG_ALL,
            protocol_features=protocol,
            ring_count=2 * queues,
            reported_queues=queues,
            max_ring_size=max_ring_size,
        )
        self.mac = bytes(mac)
        self.mtu = mtu
        self.carrier = False
        self.offloads = OFFLOAD_CSUM
        self.max_superframe = ETHER_HEADER + mtu
        self.frames_in = 0  #: from the guest
        self.bytes_in = 0  #: of them
        self.frames_out = 0  #: to the guest, accepted by its ring
        self.announced: list[bytes] = []  #: MACs SEND_RARP named, oldest first, the last few
        self._announcements: deque[bytes] = deque(maxlen=_MAX_ANNOUNCEMENTS)
        self._wanted_mtu = mtu
        self._verify = lib.VNET_VERIFY if verify_checksums else 0
        self._records = ffi.new("struct vnet_record[]", BURST_FRAMES)
        self._record_bytes = memoryview(ffi.buffer(self._records))
        self._chunks = ffi.new("struct chunk[]", BURST_FRAMES)
        self._chunk_bytes = memoryview(ffi.buffer(self._chunks))
        self._bad = ffi.new("uint64_t[]", lib.VNET_DROPS)
        small = ffi.new("uint8_t[]", SMALL_BURST)
        self._one_small = ffi.buffer(small)  # a slice of it is `bytes`
        self._small = memoryview(self._one_small)
        self._taking = ffi.new("struct gw_take *", {"max_bytes": BURST_BYTES})
        self._burst = self._taking.burst
        self._burst.small, self._burst.small_size = small, SMALL_BURST
        self._inbox = ffi.addressof(self._taking, "inbox")
        self._inbox.records, self._inbox.chunks, self._inbox.drops = self._records, self._chunks, self._bad
        self._inbox.mtu = mtu
        self._strip = Strip(self._taking)
        self._asked = (0, 0)  # budget and join, as `_taking` says them
        self._tx_drops: dict[str, int] = {}
        self.steering = Steering()  #: which pair a flow goes through
        self.workers = Workers(workers)
        self.port = Port(self.steering)  #: as other cards forward to it
        self._forwarder = Forwarder(self, self._inbox, BURST_BYTES)
        self._pairs = Pairs(self._inbox, self.steering, self.workers, frames=BURST_FRAMES, max_bytes=BURST_BYTES)
        self._sources: list[Virtqueue] = []  # rings we take frames from
        self._ignored: list[Virtqueue] = []  # started but not enabled: emptied
        self._sinks: list[Virtqueue] = []  # rings we put frames into
        self._blocked: Virtqueue | None = None  # the ring that had no room for the last frame
        self._blocked_room = 0
        self._owed = OwedCall()
        self.on_features(0)
        for ring in self.rings[1::2]:
            ring.max_chain_bytes = lib.VNET_HEADER + MAX_SUPERFRAME + VLAN_TAG

    # -- control thread -------------------------------------------------------------------------------------------

    def on_features(self, features: int) -> None:
        """What the data path goes by. Rings cannot run while features change, so none sees a mixture."""
        self._inbox.accept = self._verify | may_send(features)
        self._guest_csum = bool(features & NetFeature.GUEST_CSUM)
        self._fixup = _NUM_BUFFERS_AT if features & NetFeature.MRG_RXBUF else -1
        self._gso_types = takes(features)
        self.port.take_features(guest_csum=self._guest_csum, merge=self._fixup >= 0, gso=vnet_bits(self._gso_types))
        self._headers: dict[tuple[int, ...], tuple[bytes, int, int]] = {}  # last: it is made from the others

    def set_mtu(self, mtu: int) -> bool:
        self._inbox.mtu = self._wanted_mtu = mtu
        self.notify_change()
        return True

    def on_rarp(self, mac: bytes) -> None:
        """The guest arrived here by migration: `receive` will deliver a RARP request in its name."""
        self._announcements.append(bytes(mac))
        self.notify_change()

    # -- data thread ----------------------------------------------------------------------------------------------

    def on_refresh(self) -> None:
        rings = self.rings
        self.mtu = self._wanted_mtu
        self.carrier = not self.closed and rings[0].live and rings[1].live
        self._sources = [] if self.faults.holding else [ring for ring in rings[1::2] if ring.live]
        if len(self._sources) == 1:
            only = self._sources[0]
            self._taking.ring, self._taking.max_chain = only.handle, only.max_chain_bytes
        self._ignored = [ring for ring in rings[1::2] if ring.started and not ring.enabled and ring.broken is None]
        # A pair is used for sending only when both of its rings run: the guest reaps them together.
        self._sinks = [ring for ring, back in zip(rings[0::2], rings[1::2], strict=True) if ring.live and back.live]
        self.steering.place([ring.index // 2 for ring in self._sinks])
        self._pairs.place(self._sources)
        self.port.place(self._sinks, self.gates, self.mtu)
        self._forwarder.place(self._sources, steer=len(rings) > 2)
        self._blocked = None
        self._owed.settle()
        self._headers = {}
        self.offloads = offloads(self._gso_types)
        self.max_superframe = MAX_SUPERFRAME if self._gso_types else ETHER_HEADER + self.mtu
        for ring in self._sinks:
            ring.suppress()  # its kicks say "more buffers", which only matters after a shortage

    def receive(self, budget: int) -> list[RxFrame]:
        """Up to `budget` frames from the guest and at most about 512 KiB. Never waits, never raises."""
        return self._receive(budget, 0)

    def receive_coalesced(self, budget: int) -> tuple[list[RxFrame], int, int]:
        """As `receive`, with neighbours of one flow put together to superframes, as if the guest had not cut them up
        (csrc/gro.c), and those marked that continue the one before (csrc/train.c). Returns them, and of how many frames
        and bytes they are made."""
        sources = self._sources
        if len(sources) == 1 and not (self._changed or self._ignored or self._announcements):
            return self._take(sources[0], budget, 1)
        count, size = self.frames_in, self.bytes_in
        frames = self._receive(budget, 1)
        return frames, self.frames_in - count, self.bytes_in - size

    def receive_landing(
        self, budget: int, wanted: Wanted, ground: memoryview
    ) -> tuple[list[RxFrame], int, int, Landed]:
        """As `receive_coalesced`, but the payload of the first frames goes to `ground` if it is `wanted` there
        (csrc/landing.c)."""
        sources = self._sources
        if len(sources) != 1 or self._changed or self._ignored or self._announcements:
            return *self.receive_coalesced(budget), NOTHING
        taking = self._taking
        if self._asked != (budget, 1):
            self._asked = budget, 1
            taking.budget = min(budget, BURST_FRAMES)
            taking.join = 1
        chains, landed = self._strip.take(sources[0], taking, wanted, ground)
        if not chains and not landed[0]:
            self._owed.look()
            return [], 0, 0, landed
        inbox = self._inbox
        count, size = inbox.frames, inbox.bytes
        self.frames_in += count
        self.bytes_in += size
        if not chains:
            return [], count, size, landed
        view = burst_view(self._burst, self._small)[8 * chains :]
        frames = sliced(view, self._record_bytes, taking.frames, self._chunk_bytes, inbox.nchunks, inbox.alike)
        return frames, count, size, landed

    def _receive(self, budget: int, join: int) -> list[RxFrame]:
        if self._changed:
            self.refresh()
        for ring in self._ignored:
            ring.discard(budget)
        sources = self._sources
        if len(sources) == 1:
            frames, _, _ = self._take(sources[0], budget, join)
        else:
            frames, count, size = self._pairs.take(budget, join)
            if not count:
                self._owed.look()
            self.frames_in += count
            self.bytes_in += size
        if self._announcements:
            frames.extend(self._announce())
        return frames

    def _take(self, ring: Virtqueue, budget: int, join: int) -> tuple[list[RxFrame], int, int]:
        """What is in the one ring that is served; and of how many frames and bytes it is made."""
        taking = self._taking
        if self._asked != (budget, join):  # attributes of C's cost what a call of Python's does
            self._asked = budget, join
            taking.budget = min(budget, BURST_FRAMES)
            taking.join = join
        chains = ring.take(taking)
        if not chains:
            self._owed.look()
            return [], 0, 0
        if chains == 1:
            # A question, an answer, or one superframe; of the small ones C has left everything in `_small`.
            begin, end, _, flags, gso_type, gso_size, start, offset = RECORD.unpack_from(self._record_bytes)
            if 0 < end <= _ONE_SMALL:  # 0: it was bad
                size = end - begin
                self.frames_in += 1
                self.bytes_in += size
                frame = memoryview(self._one_small[_INDEX + begin : _INDEX + end])
                return [(frame, flags, gso_type, gso_size, start, offset)], 1, size
        inbox = self._inbox
        count, size = inbox.frames, inbox.bytes
        self.frames_in += count
        self.bytes_in += size
        view = burst_view(self._burst, self._small)[8 * chains :]
        frames = sliced(view, self._record_bytes, taking.frames, self._chunk_bytes, inbox.nchunks, inbox.alike)
        return frames, count, size

    def linger(self) -> None:
        """Look for frames for some microseconds, or until there is one; other threads have the interpreter meanwhile.
        A card with several queue pairs returns at once."""
        sources = self._sources
        if len(sources) == 1:
            sources[0].linger(LINGER_LOOKS)

    def _announce(self) -> list[RxFrame]:
        frames: list[RxFrame] = []
        while self._announcements:
            mac = self._announcements.popleft()
            self.announced = [*self.announced[1 - _MAX_ANNOUNCEMENTS :], mac]
            frame = rarp(mac)
            self.frames_in += 1
            self.bytes_in += len(frame)
            frames.append((memoryview(frame), 0, 0, 0, 0, 0))
        return frames

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        """Frames to the guest, in order; returns how many were accepted (see `LinkDevice.transmit`)."""
        sinks = self._sinks
        if not sinks or not self.carrier:
            self._drop("no-carrier", len(burst))
            return len(burst)
        if self.faults.stalled:
            return 0
        blocked = self._blocked
        if len(burst) == 1 and self.transmit_alone(burst[0][0], burst[0][1:]):
            return 1
        if blocked is not None and len(sinks) == 1 and blocked.room() <= self._blocked_room and blocked.live:
            return 0  # not a buffer more than when its next frame did not fit
        done = 0
        total = len(burst)
        slots = self.steering.slots(burst) if len(sinks) > 1 else b""
        while done < total:
            ring, end = sinks[0], total
            if slots:
                slot, end = slots[done], done + 1
                ring = sinks[slot]
                while end < total and slots[end] == slot:
                    end += 1
            ready, reason = self._prepare(burst[done:end])
            if ready:
                accepted = ring.push(ready, header_fixup=self._fixup)
                if accepted < len(ready):
                    accepted += self._insist(ring, ready[accepted])
                done += accepted
                self.frames_out += accepted
                if accepted < len(ready):
                    if ring.live:
                        if self._blocked is None:
                            continue
                        return done
                    # Broken or stopped meanwhile: there is nobody left to wait for.
                    self._drop("no-carrier", total - done)
                    self.notify_change()
                    return total
            if reason:
                self._drop(reason, 1)
                done += 1
        self._blocked = None
        return done

    def transmit_volley(
        self, head: Head, last: Head, count: int, number: tuple[int, int], parts: Sequence[Buffer]
    ) -> int:
        """Superframes that differ in a number; how many were accepted (`stack.link.device.VolleyDevice`)."""
        sinks = self._sinks
        if len(sinks) != 1 or self._blocked is not None or self.faults.stalled or not self.carrier:
            return 0
        accepted = push_volley(sinks[0], self._headers, self._fixup, head, last, count, number, parts)
        self.frames_out += accepted
        return accepted

    def transmit_alone(self, parts: tuple[Buffer, ...], facts: TxFacts) -> bool:
        """One frame of facts seen before, an answer or an ACK: True if it is in the ring. False: nothing was done."""
        sinks = self._sinks
        if (
            len(sinks) != 1
            or self._blocked is not None
            or not self.carrier
            or self.faults.stalled
            or len(parts) > 2
            or len(parts[-1]) > _LONE_BYTES
        ):
            return False
        header, shortest, longest = self._headers.get(facts, _UNKNOWN)
        whole = b"".join((header, *parts))
        length = len(whole) - _HEADER_BYTES
        if not shortest <= length <= longest:
            return False
        if length < MIN_FRAME:
            whole += _PADDING[length:]
        ring = sinks[0]
        if (
            len(parts) == 1
            and self._owed.looking
            and (looks := patience(parts[0], facts[4], facts[5], self._inbox.heard))
        ):
            self._owed.note(ring, looks)
            accepted = ring.push_one(whole, self._fixup, patiently=True)
        else:
            accepted = ring.push_one(whole, self._fixup)
        if not accepted:
            return False
        self.frames_out += 1
        return True

    def _insist(self, ring: Virtqueue, frame: tuple[Buffer, ...]) -> int:
        """Once more for the first frame there was no room for; 1 if there is now.

        Otherwise notes what to wait for. The guest adds buffers all the time: the room seen *before* an attempt that
        failed is certainly too little, the room seen after it may be all there will ever be.
        """
        room = ring.room()
        accepted = ring.push([frame], header_fixup=self._fixup)
        self._blocked = None if accepted else ring
        self._blocked_room = room
        return accepted

    def _prepare(self, frames: Sequence[TxFrame]) -> tuple[list[tuple[Buffer, ...]], str]:
        """A portion of `frames` with their headers.

        Returns it and, when it ends before a frame that can never be sent, why that one cannot.
        """
        ready: list[tuple[Buffer, ...]] = []
        append = ready.append
        headers = self._headers
        last: tuple[int, ...] = ()
        header, shortest, longest = _UNKNOWN
        size = 0
        for frame in frames:
            facts = frame[1:]
            if facts != last:
                header, shortest, longest = headers.get(facts, _UNKNOWN)
                last = facts
            parts = frame[0]
            length = 0
            for part in parts:
                length += len(part)
            if shortest <= length <= longest:
                append((header, *parts) if length >= MIN_FRAME else (header, *parts, _PADDING[length:]))
            else:
                plain = self._special(frame, length, headers)
                if isinstance(plain, str):
                    return ready, plain
                append(plain)
                last = ()
            size += length
            if size >= PORTION_BYTES:
                break
        return ready, ""

    def _special(
        self, frame: TxFrame, length: int, headers: dict[tuple[int, ...], tuple[bytes, int, int]]
    ) -> tuple[Buffer, ...] | str:
        """A frame that is not like those before it: its parts behind a header, or why it cannot be sent.

        Offload facts are few and repeat; what has been judged once is remembered in `headers`: the header and the
        lengths it is good for as it is.
        """
        parts, flags, gso_type, hdr_len, gso_size, start, offset = frame
        longest = ETHER_HEADER + self.mtu
        if gso_type:
            if gso_type not in self._gso_types:
                return "gso-type"
            if not flags & NEEDS_CSUM or not gso_size:
                return "gso-facts"
            longest = MAX_SUPERFRAME
        elif length > longest and tagged(parts):
            longest += VLAN_TAG
        if length > longest:
            return "long"
        if length < ETHER_HEADER:
            return "short"
        if flags & NEEDS_CSUM and start + offset + 2 > length:
            return "csum-range"
        if flags and not self._guest_csum:
            if flags & NEEDS_CSUM:
                parts = (finished(parts, start, offset),)
            header = _HEADER.pack(0, 0, 0, 0, 0, 0, 1)
        else:
            header = _HEADER.pack(flags, gso_type, hdr_len, gso_size, start, offset, 1)
            if len(headers) >= _MAX_HEADERS:
                headers.clear()
            least = max(ETHER_HEADER, start + offset + 2 if flags & NEEDS_CSUM else 0)
            headers[frame[1:]] = (header, least, MAX_SUPERFRAME if gso_type else ETHER_HEADER + self.mtu)
        if length < MIN_FRAME:
            return (header, *parts, _PADDING[length:])
        return (header, *parts)

    def suppress(self) -> None:
        """No kicks until `arm`: we look by ourselves."""
        self._owed.looking = True
        for ring in self._sources:
            ring.suppress()
        for ring in self._ignored:
            ring.suppress()

    def arm(self) -> bool:
        """Kicks again from now on. True: look once more (frames came, room came, or something changed)."""
        self.clear_events()
        work = self.refresh() or bool(self._announcements)
        self._owed.looking = False
        self._owed.settle()
        for ring in self._sources:
            work |= ring.arm()
        for ring in self._ignored:
            if ring.arm():
                ring.discard()
                work = True
        if self._blocked is not None:
            work |= self._blocked.arm(self._blocked_room)
        if self.carrier and not (self.rings[0].live and self.rings[1].live):
            self.notify_change()  # a ring broke: carrier is about to go
            work = True
        return work

    # -- from guest to guest, for switches: see stack.link.direct -----------------------------------------------------

    def route(self, key: bytes, other: object, deadline: int, token: object) -> bool:
        """Until `deadline` (ns, as `now` of `forward`) frames that begin with the 12 bytes `key` may go to `other`
        without being seen. False: they cannot."""
        return isinstance(other, NetDevice) and other is not self and self._forwarder.route(key, other, deadline, token)

    def unroute(self, key: bytes) -> None:
        """No more; unknown keys are no error."""
        self._forwarder.unroute(key)

    def forward(self, budget: int, now: int, closed: Collection[object]) -> tuple[Sequence[tuple[object, int]], bool]:
        """Move up to `budget` frames of each ring that have a route, except to the devices in `closed`.

        Returns (token, frames) for each route used, and whether frames are left that only `receive` can take.
        """
        if self._changed:
            self.refresh()
        moved, left = self._forwarder.run(budget, now, closed)
        if not moved and not left:  # a look in vain, and nobody else will look
            for ring in self._sources:
                ring.elapse(1)
            self._owed.look()
        return moved, left

    def close(self) -> None:
        """Idempotent. The front-end is hung up on, `carrier` is False from here on."""
        super().close()
        self.on_refresh()

    # -- books ----------------------------------------------------------------------------------------------------

    @property
    def drops(self) -> dict[str, int]:
        """Frames dropped, by reason; ``rx-`` from the guest, ``tx-`` to it. Reasons that never occurred are absent."""
        counted = {f"rx-{name}": int(self._bad[i]) for i, name in enumerate(RX_DROPS)}
        counted["rx-chain"] = sum(ring.counters.dropped_long for ring in self.rings[1::2])
        counted["rx-disabled"] = sum(ring.counters.discarded for ring in self.rings[1::2])
        counted["tx-buffer"] = sum(ring.counters.dropped_no_fit for ring in self.rings[0::2])
        counted.update({f"tx-{name}": count for name, count in self._tx_drops.items()})
        return {name: count for name, count in counted.items() if count}

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._tx_drops[reason] = self._tx_drops.get(reason, 0) + count
