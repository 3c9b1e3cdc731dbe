"""The virtio-net device: virtio_net_hdr on one side, frames with offload facts on the other.

Theory of operation
-------------------
Satisfies `stack.link.device.LinkDevice` by shape; neither side imports the other.

*From the guest* (`intake.py`, `slab.py`). A burst of chains arrives in one slab. The same call into C (`csrc/take.c`,
`csrc/vnet.c`) judges every header and frame by virtio 1.3 section 5.1.6.2, verifies TCP and UDP checksums nobody else
will verify, and leaves one packed record per good frame; one list comprehension makes `RxFrame` tuples of them. A bad
frame is counted by reason and costs nobody else anything. Large frames are views of the slab; small ones are views of
copies of at most 8 KiB (`csrc/chunk.h`), so that keeping 40 bytes never keeps half a megabyte.

*To the guest*: `delivery.py`.

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
from typing import TYPE_CHECKING, Final

from vhost_user._vring import lib

from .delivery import Delivery
from .device import F_LOG_ALL, MAX_RING_SIZE, Device
from .features import NetFeature, net_offer, without_orphans
from .forwarding import Forwarder, Port
from .frames import ETHER_HEADER, MAX_PACKET, MAX_SUPERFRAME, VLAN_TAG, rarp
from .intake import Intake
from .landing import NOTHING
from .message import Protocol
from .net_offloads import OFFLOAD_CSUM, RX_DROPS, may_send, offloads, takes, vnet_bits
from .owed import OwedCall
from .pairs import Pairs
from .steering import Steering
from .workers import Workers

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .landing import Landed, Wanted
    from .slab import RxFrame
    from .virtqueue import Virtqueue

#: Frames and bytes of one burst, either way; the figures of Linux vhost, with room for the headers of the superframes:
#: eight of the longest are one burst, not seven and a lone one that costs a turn and an acknowledgment of its own.
BURST_FRAMES: Final = 256
BURST_BYTES: Final = 8 * (lib.VNET_HEADER + MAX_SUPERFRAME)
#: How often `linger` looks: 5 us to 15 us, by how long a processor pauses. Who wants the Network waits that long.
LINGER_LOOKS: Final = 256

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
        self.announced: list[bytes] = []  #: MACs SEND_RARP named, oldest first, the last few
        self._announcements: deque[bytes] = deque(maxlen=_MAX_ANNOUNCEMENTS)
        self._wanted_mtu = mtu
        self._verify = lib.VNET_VERIFY if verify_checksums else 0
        self._owed = OwedCall()
        self.intake = Intake(self._owed, frames=BURST_FRAMES, max_bytes=BURST_BYTES)
        self._inbox = self.intake.inbox
        self._inbox.mtu = mtu
        self.steering = Steering()  #: which pair a flow goes through
        self.workers = Workers(workers)
        self.port = Port(self.steering)  #: as other cards forward to it
        self._forwarder = Forwarder(self, self._inbox, BURST_BYTES)
        self._pairs = Pairs(self._inbox, self.steering, self.workers, frames=BURST_FRAMES, max_bytes=BURST_BYTES)
        self._sources: list[Virtqueue] = []  # rings we take frames from
        self._source: Virtqueue | None = None  # the only one of these
        self._ignored: list[Virtqueue] = []  # started but not enabled: emptied
        delivery = Delivery(self.faults, self.steering, self._inbox, self._owed, on_broken=self.notify_change)
        self.delivery = delivery
        #: Frames to the guest, see `Delivery`. Attributes, because a call saved is worth it here.
        self.transmit = delivery.transmit
        self.transmit_alone = delivery.transmit_alone
        self.transmit_volley = delivery.transmit_volley
        self.on_features(0)
        for ring in self.rings[1::2]:
            ring.max_chain_bytes = lib.VNET_HEADER + MAX_SUPERFRAME + VLAN_TAG

    # -- control thread -------------------------------------------------------------------------------------------

    def on_features(self, features: int) -> None:
        """What the data path goes by. Rings cannot run while features change, so none sees a mixture."""
        self._inbox.accept = self._verify | may_send(features)
        guest_csum, merge = bool(features & NetFeature.GUEST_CSUM), bool(features & NetFeature.MRG_RXBUF)
        self._gso_types = takes(features)
        self.port.take_features(guest_csum=guest_csum, merge=merge, gso=vnet_bits(self._gso_types))
        self.delivery.take_features(guest_csum=guest_csum, merge=merge, gso_types=self._gso_types)

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
        self._source = self._sources[0] if len(self._sources) == 1 else None
        if self._source is not None:
            self.intake.place(self._source)
        self._ignored = [ring for ring in rings[1::2] if ring.started and not ring.enabled and ring.broken is None]
        # A pair is used for sending only when both of its rings run: the guest reaps them together.
        sinks = [ring for ring, back in zip(rings[0::2], rings[1::2], strict=True) if ring.live and back.live]
        self.steering.place([ring.index // 2 for ring in sinks])
        self._pairs.place(self._sources)
        self.port.place(sinks, self.gates, self.mtu)
        self._forwarder.place(self._sources, steer=len(rings) > 2)
        self.delivery.place(sinks if self.carrier else [], self.mtu)
        self._owed.settle()
        self.offloads = offloads(self._gso_types)
        self.max_superframe = MAX_SUPERFRAME if self._gso_types else ETHER_HEADER + self.mtu
        for ring in sinks:
            ring.suppress()  # its kicks say "more buffers", which only matters after a shortage

    def receive(self, budget: int) -> list[RxFrame]:
        """Up to `budget` frames from the guest and at most about 512 KiB. Never waits, never raises."""
        return self._receive(budget, 0)

    def receive_coalesced(self, budget: int) -> tuple[list[RxFrame], int, int]:
        """As `receive`, with neighbours of one flow put together to superframes, as if the guest had not cut them up
        (csrc/gro.c), and those marked that continue the one before (csrc/train.c). Returns them, and of how many frames
        and bytes they are made."""
        ring = self._source
        if ring is not None and not (self._changed or self._ignored or self._announcements):
            return self.intake.take(ring, budget, 1)
        count, size = self.frames_in, self.bytes_in
        frames = self._receive(budget, 1)
        return frames, self.frames_in - count, self.bytes_in - size

    def receive_landing(
        self, budget: int, wanted: Wanted, ground: memoryview
    ) -> tuple[list[RxFrame], int, int, Landed]:
        """As `receive_coalesced`, but the payload of the first frames goes to `ground` if it is `wanted` there
        (csrc/landing.c)."""
        ring = self._source
        if ring is None or self._changed or self._ignored or self._announcements:
            return *self.receive_coalesced(budget), NOTHING
        return self.intake.take_landing(ring, budget, wanted, ground)

    def _receive(self, budget: int, join: int) -> list[RxFrame]:
        if self._changed:
            self.refresh()
        for ignored in self._ignored:
            ignored.discard(budget)
        ring = self._source
        if ring is not None:
            frames, _, _ = self.intake.take(ring, budget, join)
        else:
            frames, count, size = self._pairs.take(budget, join)
            if not count:
                self._owed.look()
            self.intake.frames += count
            self.intake.bytes += size
        if self._announcements:
            frames.extend(self._announce())
        return frames

    def linger(self) -> None:
        """Look for frames for some microseconds, or until there is one; other threads have the interpreter meanwhile.
        A card with several queue pairs returns at once."""
        if self._source is not None:
            self._source.linger(LINGER_LOOKS)

    def _announce(self) -> list[RxFrame]:
        frames: list[RxFrame] = []
        while self._announcements:
            mac = self._announcements.popleft()
            self.announced = [*self.announced[1 - _MAX_ANNOUNCEMENTS :], mac]
            frame = rarp(mac)
            self.intake.frames += 1
            self.intake.bytes += len(frame)
            frames.append((memoryview(frame), 0, 0, 0, 0, 0))
        return frames

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
        work |= self.delivery.arm()
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
    def frames_in(self) -> int:
        """Frames from the guest, as it sent them; bad ones do not count."""
        return self.intake.frames

    @property
    def bytes_in(self) -> int:
        """Bytes of them."""
        return self.intake.bytes

    @property
    def frames_out(self) -> int:
        """Frames to the guest, accepted by its rings."""
        return self.delivery.frames

    @property
    def drops(self) -> dict[str, int]:
        """Frames dropped, by reason; ``rx-`` from the guest, ``tx-`` to it. Reasons that never occurred are absent."""
        counted = {f"rx-{name}": int(self.intake.drops[i]) for i, name in enumerate(RX_DROPS)}
        counted["rx-chain"] = sum(ring.counters.dropped_long for ring in self.rings[1::2])
        counted["rx-disabled"] = sum(ring.counters.discarded for ring in self.rings[1::2])
        counted["tx-buffer"] = sum(ring.counters.dropped_no_fit for ring in self.rings[0::2])
        counted.update({f"tx-{name}": count for name, count in self.delivery.drops.items()})
        return {name: count for name, count in counted.items() if count}
