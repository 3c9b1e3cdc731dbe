"""A learning Ethernet switch: stacks, guests and cables of one Network as ports of one segment.

Theory of operation
-------------------
A frame comes in at a port, its source address is learned there, and its destination decides where it goes out: the
one port that address was learned at, or every other port if it is unknown or a group address (IEEE 802.1D-2004,
clause 7). It never goes out where it came in, and the reserved group addresses 01:80:c2:00:00:0x stay on their link.

There are two kinds of port, made by two calls:

* ``port()`` is a `LinkDevice` for an interface of a stack to use. It takes and gives every offload, for nothing leaves
  this process on the way; its inbox holds what was switched to it.
* ``attach(device)`` plugs a device in: a guest's network card, a cable, a TAP. The result is a `Source` for the
  Network to poll. What is switched to it is queued and transmitted once, at the end of the turn, in the form that
  device takes (`stack.link.offload.prepare`): a guest without offloads gets finished packets while another gets the
  same flood as superframes.

Frames are never copied on the way from a device: the view that arrived is the view that is passed on. Frames from a
stack are joined once when they go to another stack, and not at all when they go to a device.

Two devices that can move frames between themselves are told which (`stack.link.direct`): known addresses, both ways
known, and nothing queued in between. The switch then sees only the first frame of a pair of addresses, and whatever is
unusual.

Every queue is bounded in bytes and drops its tail, as a switch does: one guest that stops reading costs the others
nothing. The address table is bounded for each port, so that a port inventing addresses only displaces its own.
Addresses age by the Scheduler's clock, looked at when they are used: there is no timer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from stack.bursts import histogram
from stack.errors import DropReason, Drops
from stack.link.device import LinkDevice, Offload, RxFrame, TxFrame
from stack.link.direct import DirectDevice, Shortcuts, unwrapped
from stack.link.loopback import FrameQueue
from stack.link.offload import (
    ALL_OFFLOADS,
    ETHERNET_HEADER,
    VLAN_TAG,
    as_received,
    as_transmit,
    owned_parts,
    prepare,
    wire_length,
)
from stack.scheduler import NS_PER_S, Scheduler

MAC_AGEING: Final = 300 * NS_PER_S  # IEEE 802.1D-2004 table 7-5, the recommended default
MACS_PER_PORT: Final = 256
PORT_QUEUE_BYTES: Final = 8 << 20  # one TCP window of 4 MiB in each of two streams
PORT_QUEUE_FRAMES: Final = 8192  # what those bytes hold in packets of 1 KiB
TRANSMIT_BURST: Final = 256  # frames a call: a ring of QEMU's default size
MAX_SUPERFRAME: Final = ETHERNET_HEADER + 65535
#: Frames a device should move at once; if it moved fewer, so many times more are taken the other way.
_WORTH: Final = 8
#: 01:80:c2:00:00:00 to :0f are for the bridge itself and never forwarded (IEEE 802.1D-2004 table 7-10).
_RESERVED: Final = frozenset(bytes.fromhex(f"0180c200000{low:x}") for low in range(16))


class Port:
    """What both kinds of port share: a name, counters, and the addresses learned there."""

    def __init__(self, switch: Switch, name: str) -> None:
        self.switch = switch
        self.name = name
        self.carrier = True
        self.drops = Drops()
        self.macs: dict[bytes, int] = {}  #: address to time last seen (ns), in the order they were learned
        self.received = 0  #: frames that came in here from outside
        self.delivered = 0  #: frames that went out here

    def switched(self, frame: RxFrame) -> None:
        """Send out a frame that a device received."""
        raise NotImplementedError

    def sent(self, frame: TxFrame) -> None:
        """Send out a frame that a stack transmitted."""
        raise NotImplementedError


class StackPort(Port):
    """The `LinkDevice` end of a port: give it to an interface."""

    def __init__(self, switch: Switch, name: str, *, mtu: int, mac: bytes) -> None:
        super().__init__(switch, name)
        self.mtu = mtu
        self.mac = mac
        self.offloads: Offload = ALL_OFFLOADS
        self.max_superframe = MAX_SUPERFRAME
        self.on_change: Callable[[], None] | None = None
        self._inbox = FrameQueue(PORT_QUEUE_BYTES)

    def receive(self, budget: int) -> Sequence[RxFrame]:
        return self._inbox.take(budget)

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        if self.carrier:
            self.received += len(burst)
            self.switch.forward_sent(self, burst)
        return len(burst)

    def suppress(self) -> None:
        """Nothing to suppress: work is reported by `on_change`, which is cheap."""

    def arm(self) -> bool:
        return bool(self._inbox.frames)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Unplug from the switch, for good."""
        if self.carrier:
            self.carrier = False
            self._inbox.clear()
            self.switch.remove(self)

    def switched(self, frame: RxFrame) -> None:
        if not frame[2] and len(frame[0]) > self.mtu + ETHERNET_HEADER + VLAN_TAG:
            self.drops.count(DropReason.TOO_LONG)
            return
        was_empty = not self._inbox.frames
        if not self._inbox.put(frame):
            self.drops.count(DropReason.QUEUE_FULL)
            return
        self.delivered += 1
        if was_empty and self.on_change is not None:
            self.on_change()

    def sent(self, frame: TxFrame) -> None:
        self.switched(as_received(frame))


class DevicePort(Port):
    """A device plugged into the switch, and the `Source` that drives it. Made by `Switch.attach`."""

    def __init__(self, switch: Switch, name: str, device: LinkDevice, scheduler: Scheduler) -> None:
        super().__init__(switch, name)
        self.device = device
        self.sent_bursts = histogram()
        self.carrier = device.carrier
        self.on_ready: Callable[[], None] | None = None
        self._scheduler = scheduler
        self._queue: deque[TxFrame] = deque()
        self._queued_bytes = 0
        self._flush_asked = False
        self._suppressed = False
        #: the device within whatever is around it, if it can move frames by itself
        self.direct, self._wrappers = unwrapped(device)
        self._seen = 1  # frames taken one by one after those the device moved
        device.on_change = self._device_changed

    def fileno(self) -> int:
        return self.device.fileno()

    def service(self, budget: int) -> int:
        """Retry what the device refused, then switch up to `budget` frames that arrived."""
        if self._queue:
            self._flush()
        if self.direct is not None and self in self.switch.shortcuts and self._passes():
            return self._service_direct(self.direct, budget)
        return self._service_seen(budget)

    def _service_seen(self, budget: int) -> int:
        burst = self.device.receive(budget)
        if not burst:
            return 0
        self.received += len(burst)
        self.switch.forward_received(self, burst)
        return len(burst)

    def _service_direct(self, device: DirectDevice, budget: int) -> int:
        """Have the device move what it can, and look at the rest: one frame, and more each time that was not enough."""
        done = 0
        now = self._scheduler.now
        macs = self.macs
        while True:
            closed = [port.direct for port in self.switch.shortcuts.targets(self) if port.closed()]
            told, left = device.forward(budget - done, now, closed)
            moved = 0
            for (source, port), count in told:
                moved += count
                port.delivered += count
                if source in macs:
                    macs[source] = now
            self.received += moved
            done += moved
            self._seen = 1 if moved >= _WORTH else min(self._seen * _WORTH, TRANSMIT_BURST)
            if not left or done >= budget:
                return done
            seen = self._service_seen(min(self._seen, budget - done))
            done += seen
            if not seen or done >= budget:
                return done

    def closed(self) -> bool:
        """Frames for the device must come this way: something around it wants to see them, or older ones wait here
        though it was offered them just now."""
        if self._queue:
            self._flush()
        return bool(self._queue) or not self._passes()

    def _passes(self) -> bool:
        return not self._wrappers or all(wrapper.passes for wrapper in self._wrappers)

    def suppress(self) -> None:
        self._suppressed = True
        self.device.suppress()

    def arm(self) -> bool:
        self._suppressed = False
        return self.device.arm()

    def switched(self, frame: RxFrame) -> None:
        self._enqueue(as_transmit(frame), len(frame[0]))

    def sent(self, frame: TxFrame) -> None:
        self._enqueue((owned_parts(frame[0]), *frame[1:]), wire_length(frame))

    def detach(self) -> LinkDevice:
        """Unplug the device from the switch without closing it, and return it."""
        self.switch.remove(self)
        self.device.on_change = None
        self._clear()
        return self.device

    @property
    def queued(self) -> int:
        """Bytes waiting for the device to take them."""
        return self._queued_bytes

    def _enqueue(self, frame: TxFrame, length: int) -> None:
        if not frame[2] and length > self.device.mtu + ETHERNET_HEADER + VLAN_TAG:
            self.drops.count(DropReason.TOO_LONG)
            return
        queue = self._queue
        if not self._flush_asked:
            # Each turn that brings frames tries again: its kicks are asked for only once the Network has nothing to do.
            self._flush_asked = True
            self._scheduler.defer(self._flush)
        if queue and (self._queued_bytes + length > PORT_QUEUE_BYTES or len(queue) >= PORT_QUEUE_FRAMES):
            self.drops.count(DropReason.QUEUE_FULL)
            return
        queue.append(frame)
        self._queued_bytes += length

    def _flush(self) -> None:
        """Hand the queue to the device until it refuses; what it refuses stays at the head, prepared."""
        queue, device = self._queue, self.device
        self._flush_asked = False
        while queue:
            taken = [queue.popleft() for _ in range(min(len(queue), TRANSMIT_BURST))]
            refused: list[TxFrame] = []
            burst = prepare(taken, device.offloads, device.max_superframe, refused)
            if refused:
                self.drops.count(DropReason.BAD_HEADER, len(refused))
            accepted = device.transmit(burst)
            self.sent_bursts[accepted.bit_length()] += 1
            self.delivered += accepted
            if accepted < len(burst):
                queue.extendleft(reversed(burst[accepted:]))
                self._queued_bytes = sum(map(wire_length, queue))
                if not self._suppressed and device.arm() and self.on_ready is not None:
                    self.on_ready()  # there was nobody about to arm it, and room came meanwhile
                return
            self._queued_bytes -= sum(map(wire_length, taken))

    def _device_changed(self) -> None:
        """Carrier, offloads, mtu or work: a device that lost its other side has nobody behind it any more."""
        carrier = self.device.carrier
        if carrier != self.carrier:
            self.carrier = carrier
            if not carrier:
                self.switch.forget(self)
                self._clear()
        if self._queue:
            self._scheduler.defer(self._flush)
        if self.on_ready is not None:
            self.on_ready()

    def _clear(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0


_Targets: TypeAlias = "tuple[Port, ...]"


class Switch:
    """One Ethernet segment. All its ports belong to one Network, whose `Scheduler` it takes."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        name: str = "switch",
        mtu: int = 1500,
        mac_ageing: int = MAC_AGEING,
        macs_per_port: int = MACS_PER_PORT,
    ) -> None:
        self.name = name
        self.mtu = mtu  #: of ports made without one
        self.drops = Drops()
        self.shortcuts: Shortcuts[DevicePort] = Shortcuts()
        self._scheduler = scheduler
        self._mac_ageing = mac_ageing
        self._macs_per_port = macs_per_port
        self._ports: list[Port] = []
        self._where: dict[bytes, Port] = {}
        self._made = 0

    @property
    def ports(self) -> tuple[Port, ...]:
        """Everything plugged in, in that order."""
        return tuple(self._ports)

    def port(self, name: str | None = None, *, mtu: int | None = None, mac: bytes | None = None) -> StackPort:
        """A new port as a `LinkDevice` for a stack's interface. `mac` is a random local one unless given."""
        if mac is None:
            mac = b"\x02gw" + self._scheduler.rng.getrandbits(24).to_bytes(3, "big")
        port = StackPort(self, self._name(name), mtu=self.mtu if mtu is None else mtu, mac=mac)
        self._ports.append(port)
        return port

    def attach(self, device: LinkDevice, name: str | None = None) -> DevicePort:
        """Plug `device` in. The result is a `Source`: attach it to the Network, or nothing will move."""
        port = DevicePort(self, self._name(name), device, self._scheduler)
        self._ports.append(port)
        return port

    def join(self, port: Port) -> None:
        """Take a port made elsewhere into the segment."""
        self._ports.append(port)

    def remove(self, port: Port) -> None:
        """Take `port` out of the segment. Idempotent."""
        if port in self._ports:
            self._ports.remove(port)
        self.forget(port)

    def forget(self, port: Port) -> None:
        """Forget every address learned at `port`."""
        for mac in port.macs:
            del self._where[mac]
            self.shortcuts.forget(mac)
        port.macs.clear()

    def addresses(self) -> Iterator[tuple[bytes, str, int]]:
        """The address table: (MAC, name of its port, nanoseconds since it was last seen)."""
        now = self._scheduler.now
        for mac, port in self._where.items():
            yield mac, port.name, now - port.macs[mac]

    def forward_received(self, ingress: Port, burst: Sequence[RxFrame]) -> None:
        """Switch frames that a device received. Called by its port."""
        last: bytes | None = None
        targets: _Targets = ()
        for frame in burst:
            key = bytes(frame[0][:ETHERNET_HEADER])
            if key != last:
                targets = self._targets(ingress, key)
                last = key if targets else None  # what goes nowhere is looked at, and counted, each time
            for port in targets:
                port.switched(frame)

    def forward_sent(self, ingress: Port, burst: Sequence[TxFrame]) -> None:
        """Switch frames that a stack transmitted. Called by its port."""
        last: bytes | None = None
        targets: _Targets = ()
        for frame in burst:
            parts = frame[0]
            key = bytes(parts[0][:ETHERNET_HEADER])
            if len(key) < ETHERNET_HEADER:
                key = b"".join(parts)[:ETHERNET_HEADER]
            if key != last:
                targets = self._targets(ingress, key)
                last = key if targets else None
            for port in targets:
                port.sent(frame)

    def _targets(self, ingress: Port, header: bytes) -> _Targets:
        """Where a frame with this Ethernet header goes; its source is learned on the way."""
        if len(header) < ETHERNET_HEADER:
            ingress.drops.count(DropReason.TOO_SHORT)
            return ()
        destination, source = header[:6], header[6:12]
        if source[0] & 1:
            ingress.drops.count(DropReason.MARTIAN_SOURCE)  # a group address is nobody's
            return ()
        self._learn(ingress, source)
        if not destination[0] & 1:
            port = self._where.get(destination)
            if port is not None:
                deadline = port.macs[destination] + self._mac_ageing
                if self._scheduler.now <= deadline:
                    if port is ingress:
                        return ()
                    if isinstance(ingress, DevicePort) and isinstance(port, DevicePort):
                        self.shortcuts.add(ingress, header, port, deadline)
                    return (port,)
                del self._where[destination], port.macs[destination]
                self.shortcuts.forget(destination)
        elif destination in _RESERVED:
            return ()
        return tuple(port for port in self._ports if port is not ingress and port.carrier)

    def _learn(self, port: Port, mac: bytes) -> None:
        macs = port.macs
        known = self._where.get(mac)
        if known is not port:
            if known is not None:  # it moved
                del known.macs[mac]
                self.shortcuts.forget(mac)
            elif not any(mac):
                return  # all zeros is nobody
            if len(macs) >= self._macs_per_port:
                oldest = next(iter(macs))
                del macs[oldest], self._where[oldest]
                self.shortcuts.forget(oldest)
            self._where[mac] = port
        macs[mac] = self._scheduler.now

    def _name(self, name: str | None) -> str:
        number = self._made
        self._made += 1
        return f"port{number}" if name is None else name
