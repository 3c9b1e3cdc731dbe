"""One network interface: a link device with a name, addresses and neighbours, and a bounded transmit queue.

Theory of operation
-------------------
In: `service` takes one burst from the device, and `demux` reads 14 bytes of each frame and calls the handler registered
for the ethertype. A device that can join neighbours of one flow is asked to, and to mark those that continue the one
before, unless somebody here looks at frames as they come (taps, bridges, VLANs). Out: the layers above append whole
frames with `enqueue`; the first one of a turn asks the Scheduler to run `flush` at the end of the turn, so that
everything queued meanwhile leaves in one `transmit`. What the device does not accept stays in order at the head of the
queue and is retried at the next `service`, which the device's descriptor (or `on_change`) brings about. The queue is
bounded in frames and bytes and drops at the tail, counted.

A queued frame carries the offload facts its sender likes; before `transmit` the burst passes `stack.link.offload`
if the device lacks something. Frames made ready for one set of offloads are looked at again if the device changes
them (a guest's driver was reset) before they leave.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from stack.bursts import histogram
from stack.errors import DropReason, Drops, NetError
from stack.iface.arp import Arp
from stack.iface.changes import ChangeKind, ChangeLog
from stack.iface.demux import deliver
from stack.iface.facts import InterfaceFlags, InterfaceStats, hardware_type, shown_flags
from stack.iface.hooks import FrameHandler, Lander, Ports, RxHook, Tap
from stack.iface.shown import show
from stack.link.device import (
    GSO_UDP_L4,
    Buffer,
    CoalescingDevice,
    LandingDevice,
    LingeringDevice,
    LinkDevice,
    LoneDevice,
    Offload,
    TxFacts,
    TxFrame,
    VolleyDevice,
)
from stack.link.neighbour import Neighbour, NeighbourCache, NeighbourState
from stack.link.offload import ALL_OFFLOADS, addressed, prepare, wire_length
from stack.wire import ethernet
from stack.wire.ipv4 import MIN_MTU

if TYPE_CHECKING:
    from stack.iface.address import InterfaceAddress
    from stack.netns import NetNamespace
    from stack.scheduler import Scheduler

TX_QUEUE_FRAMES: Final = 1000  # Linux: txqueuelen of an Ethernet device
TX_QUEUE_BYTES: Final = 16 << 20  # a few receive windows of a 6 MiB autotuned peer
MAX_SUPERFRAME: Final = 65549  # bytes: 14 + 65535, see LinkDevice.max_superframe

_TSO4: Final = int(Offload.TSO4)
_TSO6: Final = int(Offload.TSO6)
_USO: Final = int(Offload.USO)
#: UDP superframes are so rare that their absence is no reason to look at every frame, see `enqueue`.
_EVERYTHING: Final = int(ALL_OFFLOADS) & ~_USO

_ETHERTYPE: Final = struct.Struct("!H")


class Interface:
    """A link of one network namespace. Implements `stack.iface.source.Source`."""

    def __init__(
        self,
        scheduler: Scheduler,
        device: LinkDevice,
        *,
        name: str,
        index: int,
        changes: ChangeLog,
        mac: bytes | None = None,
        mtu: int | None = None,
        loopback: bool = False,
        kind: str = "",
        noarp: bool = False,
        up: bool = True,
    ) -> None:
        """`mac` (6 bytes) and `mtu` replace what the device suggests. Raises ValueError for values no link can have."""
        self.scheduler = scheduler
        self.device = device
        self.name = name
        self.index = index
        self.loopback = loopback
        self.mac = device.mac if mac is None else mac
        if len(self.mac) != ethernet.MAC_LENGTH or ethernet.is_group(self.mac):
            raise ValueError(f"{name}: not the MAC address of a host: {self.mac.hex(':')!r}")
        self._mtu_set = mtu is not None
        self.mtu = device.mtu if mtu is None else mtu  #: largest layer-3 packet, bytes
        if self.mtu < MIN_MTU or self.mtu > device.mtu:
            raise ValueError(f"{name}: MTU {self.mtu} is not within {MIN_MTU}..{device.mtu}, what the device carries")
        self.up = up  #: administratively; see `set_up`
        self.carrier = device.carrier
        self.carrier_changes = 0
        self._connected = bool(getattr(device, "connected", False))  # a front-end is there, if the device can tell
        self.kind = kind  #: IFLA_INFO_KIND, "" for a device that was plugged in
        self.kind_data: Mapping[str, Any] = {}  #: what the kind shows of itself, by names of its IFLA_INFO_DATA
        self.noarp = noarp  #: IFF_NOARP: neighbours are not asked for
        self.link: Interface | None = None  #: the interface below this one: a VLAN's, a peer's (IFLA_LINK)
        self.master: Interface | None = None  #: the bridge this is a port of
        self.ports: Ports | None = None  #: of a bridge: takes and gives back ports
        self.alias = ""  #: IFLA_IFALIAS
        self.group = 0  #: IFLA_GROUP
        self.tx_queue_length = TX_QUEUE_FRAMES  #: frames
        self.on_removed: Callable[[], None] | None = None  #: set by its kind: what else goes when it goes
        self.netns: NetNamespace | None = None  #: where it is; set by the namespace
        self.uppers: list[Interface] = []  #: links that stand on this one (VLANs, macvlans) and go with it
        #: Set by its kind: told when it was taken up or down, before anybody else; raises NetError to refuse.
        self.on_up: Callable[[], None] | None = None
        #: See each burst before the layers above do, in this order, and give on what they leave (bridge, VLAN).
        self.rx_hooks: list[RxHook] = []
        #: Interfaces that stand on this one: called with (interface, what) after flags, carrier, MTU or MAC changed.
        self.watchers: list[Callable[[Interface, str], None]] = []
        self.offloads = Offload.NONE  #: of the device, as last seen; so are the two below
        self.max_superframe = 0
        self.tso4 = self.tso6 = False  #: the device cuts superframes of TCP over IPv4, over IPv6
        self.uso = False  #: the device cuts superframes of UDP
        self._prepare_always = True  # the device lacks an offload that TCP uses
        self._needs_prepare = True
        self._note_offloads()
        self.addresses: list[InterfaceAddress] = []
        self.promiscuous = 0  #: how many want frames for others too
        self.all_multicast = 0  #: how many want frames to every group
        self.link_addresses: dict[bytes, int] = {}  #: further addresses that frames are wanted for, and by how many
        self.asked = InterfaceFlags(0)  #: PROMISC and ALLMULTI, if the administrator is among those
        self.stats, self.sent_bursts = InterfaceStats(), histogram()
        self.drops = Drops()
        self.taps: list[Tap] = []
        self.on_ready: Callable[[], None] | None = None
        #: Called with (interface, what) after flags, carrier, MTU or MAC changed; set by the network layer.
        self.on_link_change: Callable[[Interface, str], None] | None = None
        #: Gets frames whose neighbour never answered; set by the network layer.
        self.on_unreachable: Callable[[Interface, list[TxFrame]], None] | None = None
        self.handlers: dict[int, FrameHandler] = {}
        #: Asks for a 16-byte address's MAC (neighbour solicitation); set by the network layer.
        self.solicit6: Callable[[Interface, Neighbour], None] | None = None
        self._changes = changes
        self.neighbours = NeighbourCache(
            scheduler,
            mac=self.mac,
            solicit=self._solicit,
            on_resolved=self._resolved,
            on_failed=self._neighbour_failed,
            on_change=self._neighbour_changed,
        )
        self.arp = Arp(self)
        if not loopback:
            self.handlers[ethernet.ETHERTYPE_ARP] = self.arp.receive
        self._queue: list[TxFrame] = []  # not yet looked at for offloads
        self._ready: list[TxFrame] = []  # good for `offloads`, refused by the device so far
        self._queued_bytes = 0
        self._drain_callbacks: list[Callable[[], None]] = []
        self._flush_asked = False
        self._suppressed = self._closed = False
        self._coalesced = device.receive_coalesced if isinstance(device, CoalescingDevice) else None
        self._alone = device.transmit_alone if isinstance(device, LoneDevice) else None
        self.lands = device if isinstance(device, LandingDevice) else None
        self.landing: Lander | None = None  #: who has room for what comes next, if the device lands
        self.volley = device.transmit_volley if isinstance(device, VolleyDevice) else None  #: see `stack.iface.volley`
        self.linger = device.linger if isinstance(device, LingeringDevice) else None  #: looks on without Python
        device.on_change = self._device_changed

    # --- Source -------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._closed else self.device.fileno()

    def suppress(self) -> None:
        self._suppressed = True
        self.device.suppress()

    def arm(self) -> bool:
        self._suppressed = False
        return self.device.arm()

    def service(self, budget: int) -> int:
        """Retry what the device refused, then take and handle one burst of up to `budget` frames."""
        if self._ready:
            self.flush()
        coalesced = self._coalesced
        if coalesced is None or self.taps or self.rx_hooks:
            return show(self, self.device.receive(budget))
        if self.landing is None or not self.up:
            burst, count, size = coalesced(budget)
        else:
            assert self.lands is not None
            burst, count, size = self.landing.receive(self.lands, budget)
        if count:
            if self.up:
                deliver(self, burst)
                stats = self.stats
                stats.rx_packets += count
                stats.rx_bytes += size
            else:
                self.drops.count(DropReason.LINK_DOWN, count)
        return count

    # --- transmitting -------------------------------------------------------------------------------------------

    def enqueue(self, frame: TxFrame, length: int) -> None:
        """Queue a whole frame of `length` bytes; it leaves at the end of the turn. Drops at the tail when full."""
        queue = self._queue
        queued = self._queued_bytes + length
        if queued > TX_QUEUE_BYTES or len(queue) + len(self._ready) >= self.tx_queue_length:
            self.drops.count(DropReason.QUEUE_FULL)
            return
        self._queued_bytes = queued
        queue.append(frame)
        if frame[2] == GSO_UDP_L4 and not self.uso:
            self._needs_prepare = True
        if not self._flush_asked:
            self._ask_flush()

    def send_alone(self, parts: tuple[Buffer, ...], facts: TxFacts, length: int) -> None:
        """As `enqueue` of a frame (`parts`, *`facts`) and `flush`, called when nothing else is to be done in this turn:
        what would be flushed next anyhow leaves at once, unless there is more to it.
        """
        if (
            self._queue
            or self._ready
            or self._needs_prepare
            or self.taps
            or self._drain_callbacks
            or self.loopback
            or not self.tx_queue_length
        ):
            self.enqueue((parts, *facts), length)
            return
        alone = self._alone
        if alone is not None and alone(parts, facts):
            stats = self.stats
            stats.tx_packets += 1
            stats.tx_bytes += length
            self.sent_bursts[1] += 1
            return
        burst: list[TxFrame] = [(parts, *facts)]
        offloads = self.offloads
        self._queued_bytes = length
        accepted = self.device.transmit(burst)
        if accepted and not self._queue:
            stats = self.stats
            stats.tx_packets += 1
            stats.tx_bytes += length
            self.sent_bursts[1] += 1
            self._queued_bytes = 0
        else:
            self._sent(burst, accepted, offloads)

    def send_frame(self, dst: bytes, ethertype: int, payload: bytes) -> None:
        """Queue one frame made of plain bytes."""
        if self.up:
            head = dst + self.mac + _ETHERTYPE.pack(ethertype)
            self.enqueue(((head, payload), 0, 0, 0, 0, 0, 0), len(head) + len(payload))

    def send_unresolved(self, neighbour: Neighbour, frame: TxFrame, length: int) -> None:
        """Send, or hold until `neighbour` answers, a frame whose first 12 bytes (the MACs) are still blank."""
        header = neighbour.header or neighbour.resolve()
        if header is None:
            neighbour.hold((frame, length), length)
        else:
            self.enqueue(addressed(frame, header), length)

    @property
    def direct(self) -> bool:
        """A volley may pass: nobody here looks at single frames, and none waits before it."""
        return self.volley is not None and not (self._queue or self._ready or self._needs_prepare or self.taps)

    @property
    def backlog(self) -> int:
        """Bytes the device has refused so far, and what waits behind them; 0 while it takes everything."""
        return self._queued_bytes if self._ready else 0

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the device has taken some of the backlog."""
        if callback not in self._drain_callbacks:
            self._drain_callbacks.append(callback)

    @property
    def queued(self) -> int:
        """Frames waiting for the end of the turn or for the device."""
        return len(self._queue) + len(self._ready)

    def flush(self) -> None:
        """Hand what is queued to the device: the end of a turn, or the device has room again."""
        self._flush_asked = False
        burst, fresh = self._ready, self._queue
        if fresh:
            self._queue = []
            prepared: Sequence[TxFrame] = fresh
            if self._needs_prepare:
                refused: list[TxFrame] = []
                prepared = prepare(fresh, self.offloads, self.max_superframe, refused)
                self._needs_prepare = self._prepare_always
                if refused:
                    self.drops.count(DropReason.DEVICE_ERROR, len(refused))
            if burst:
                burst.extend(prepared)
            else:
                burst = self._ready = prepared if isinstance(prepared, list) else list(prepared)
        if not burst:
            self._queued_bytes = 0
            return
        self._ready = []
        offloads = self.offloads
        self._sent(burst, self.device.transmit(burst), offloads)

    def _sent(self, burst: list[TxFrame], accepted: int, offloads: Offload) -> None:
        """The device has accepted so many of them, which were made ready for `offloads`."""
        stats = self.stats
        stats.tx_packets += accepted
        self.sent_bursts[accepted.bit_length()] += 1
        done = burst
        if accepted < len(burst):
            done = burst[:accepted]
            if self.offloads is offloads:
                self._ready = burst[accepted:]
            else:  # the device changed its mind meanwhile
                self._queue[:0] = burst[accepted:]
                self._needs_prepare = True
                self._ask_flush()
            if not self._suppressed and self.device.arm() and self.on_ready is not None:
                self.on_ready()  # there was nobody about to arm it, and room came meanwhile
        if self._ready or self._queue:
            # Software segmentation changes the number of bytes: count what is really there.
            stats.tx_bytes += sum(map(wire_length, done))
            self._queued_bytes = sum(map(wire_length, self._ready)) + sum(map(wire_length, self._queue))
        else:
            stats.tx_bytes += self._queued_bytes
            self._queued_bytes = 0
        if self._drain_callbacks and accepted:
            callbacks, self._drain_callbacks = self._drain_callbacks, []
            for callback in callbacks:
                callback()
        if self.taps and done:
            for tap in self.taps:
                tap.transmitted(done)

    # --- configuration ------------------------------------------------------------------------------------------

    @property
    def flags(self) -> InterfaceFlags:
        """IFF_* as Linux shows them (IF-01, IF-02)."""
        return shown_flags(self.asked, loopback=self.loopback, up=self.up, carrier=self.carrier, noarp=self.noarp)

    @property
    def running(self) -> bool:
        """Up, and somebody at the other end."""
        return self.up and self.carrier

    @property
    def link_type(self) -> int:
        """ARPHRD_*"""
        return hardware_type(loopback=self.loopback)

    @property
    def broadcast_mac(self) -> bytes:
        return ethernet.NULL_MAC if self.loopback else ethernet.BROADCAST

    def has_address(self, address: bytes) -> bool:
        return any(each.address == address for each in self.addresses)

    def answers_for(self, address: bytes) -> bool:
        """Is `address` one that ARP and neighbour discovery answer for here?"""
        return any(each.address == address and each.usable for each in self.addresses)

    def source_for(self, address: bytes) -> bytes | None:
        """Our address to talk to `address` from: on its subnet if there is one, else the first of its family."""
        first = None
        for each in self.addresses:
            if len(each.address) == len(address) and each.usable:
                if each.covers(address):
                    return each.address
                if first is None:
                    first = each.address
        return first

    def set_up(self, up: bool, why: str = "") -> None:
        """Take the interface up or down. Going down forgets neighbours and drops what is queued.

        `why` is what the record of the change says, instead of "up" or "down".
        """
        if up == self.up:
            return
        self.up = up
        if self.on_up is not None:
            try:
                self.on_up()
            except NetError:
                self.up = not up
                raise
        if not up:
            self.neighbours.flush()
            self._drop_queue()
        self._link_changed(why or ("up" if up else "down"))

    def set_mtu(self, mtu: int) -> None:
        """Raises NetError(EINVAL) outside of 68..device.mtu."""
        if not MIN_MTU <= mtu <= self.device.mtu:
            raise NetError(errno.EINVAL, f"{self.name}: MTU {mtu} is not within {MIN_MTU}..{self.device.mtu}")
        self._mtu_set = True
        if mtu != self.mtu:
            self.mtu = mtu
            self._link_changed("mtu")

    def set_mac(self, mac: bytes) -> None:
        """Change the hardware address (6 bytes). Raises NetError(EADDRNOTAVAIL) for one no host can have."""
        if len(mac) != ethernet.MAC_LENGTH or ethernet.is_group(mac) or self.loopback:
            raise NetError(errno.EADDRNOTAVAIL, f"{self.name}: not the MAC address of a host: {mac.hex(':')!r}")
        if mac != self.mac:
            self.mac = mac
            self.neighbours.set_mac(mac)
            self._link_changed("mac")

    def move(self, changes: ChangeLog) -> None:
        """Belong to another namespace from now on, whose log is `changes`. Called by that namespace."""
        self._changes = changes

    def close(self) -> None:
        """Let go of the device (which stays open: it is its maker's). Idempotent."""
        if not self._closed:
            self._closed = True
            self.up = False
            self.neighbours.flush(keep_permanent=False)
            self._drop_queue()
            self.device.on_change = None

    def _ask_flush(self) -> None:
        self._flush_asked = True
        self.scheduler.defer(self.flush)

    def _drop_queue(self) -> None:
        if self._queue or self._ready:
            self.drops.count(DropReason.LINK_DOWN, len(self._queue) + len(self._ready))
        self._queue = []
        self._ready = []
        self._queued_bytes = 0

    def _link_changed(self, what: str) -> None:
        self._changes.append(ChangeKind.NEW_LINK, self, self.index, what)
        if self.on_link_change is not None:
            self.on_link_change(self, what)
        for watcher in tuple(self.watchers):
            watcher(self, what)

    # --- called by the device and the neighbour cache -------------------------------------------------------------

    def _device_changed(self) -> None:
        """Carrier, offloads, MTU or pending work changed."""
        device = self.device
        what = []
        if int(device.offloads) != int(self.offloads) or device.max_superframe != self.max_superframe:
            self._note_offloads()
            self._queue = self._ready + self._queue
            self._ready = []
            if self._queue:
                self._ask_flush()
            what.append("offloads")
        mtu = min(self.mtu, device.mtu) if self._mtu_set else device.mtu
        if mtu != self.mtu and mtu >= MIN_MTU:
            self.mtu = mtu
            what.append("mtu")
        if device.carrier != self.carrier:
            self.carrier = device.carrier
            self.carrier_changes += 1
            what.append("carrier" if self.carrier else "no carrier")
            if not self.carrier:
                self.neighbours.flush()
        connected = getattr(device, "connected", self._connected)
        if connected != self._connected:
            self._connected = connected
            what.append("connected" if connected else "disconnected")
        if what:
            self._link_changed(", ".join(what))
        if self.on_ready is not None:
            self.on_ready()

    def _note_offloads(self) -> None:
        """Arithmetic on flags is slow: do it once per change, not per frame."""
        offloads = int(self.device.offloads)
        self.offloads = Offload(offloads)
        self.max_superframe = self.device.max_superframe
        self.tso4 = bool(offloads & _TSO4)
        self.tso6 = bool(offloads & _TSO6)
        self.uso = bool(offloads & _USO)
        self._prepare_always = offloads & _EVERYTHING != _EVERYTHING or self.max_superframe < MAX_SUPERFRAME
        self._needs_prepare = True  # for what is queued

    def _solicit(self, entry: Neighbour) -> None:
        if len(entry.address) == 4:
            self.arp.solicit(entry)
        elif self.solicit6 is not None:
            self.solicit6(self, entry)

    def _resolved(self, entry: Neighbour, waiting: list[Any]) -> None:
        header = entry.header or entry.resolve()
        if header is not None:
            for frame, length in waiting:
                self.enqueue(addressed(frame, header), length)

    def _neighbour_failed(self, _entry: Neighbour, waiting: list[Any]) -> None:
        if self.on_unreachable is not None:
            self.on_unreachable(self, [frame for frame, _ in waiting])

    def _neighbour_changed(self, entry: Neighbour) -> None:
        dead = entry.state == NeighbourState.DEAD
        self._changes.append(ChangeKind.DEL_NEIGHBOUR if dead else ChangeKind.NEW_NEIGHBOUR, entry, self.index)

    def __repr__(self) -> str:
        return f"Interface({self.index}: {self.name} {self.mac.hex(':')} mtu {self.mtu})"
