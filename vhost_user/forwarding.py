"""Frames from one card's guest to another card's guest without Python touching them (csrc/bridge.c).

Theory of operation
-------------------
A switch that has decided where frames with certain addresses go can leave it to the devices: `Forwarder.route` says so
for one pair of addresses and a limited time, and `Forwarder.run` has C move what is waiting. Whatever has no route, or
is unusual in any way, stays in its ring; `Device.receive` then takes it as ever. So routes are a cache of decisions,
never a decision.

The receiving card's side is a `Port`: its rings and what its guest takes. Facts that follow from features are written
when features are acknowledged, on the control thread, as all such facts are: no ring runs meanwhile. Which rings run is
looked up in every call, with their gates held. Gates are taken in the order of their serial numbers, of all devices
alike: whoever takes several cannot wait for somebody who waits for him.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vhost_user._vring import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .gate import Gate
    from .net import NetDevice
    from .steering import Steering
    from .virtqueue import Virtqueue
    from .workers import Workers

#: A job with as many chains is worth another thread: some 5 microseconds of work.
_MUCH: Final = 32
#: Beside the longest chain, for padding.
_SCRATCH_SPARE: Final = 64
_MOVED: Final[int] = lib.BRIDGE_MOVED
_LEFT: Final[int] = lib.BRIDGE_LEFT
_BROKE: Final[int] = lib.BRIDGE_BROKE
_CROSSED: Final[int] = lib.BRIDGE_CROSSED
#: Calls made by one thread after flows were found to cross: then the loss of trying again does not count.
_PAUSE: Final = 63


class Port:
    """A card as others forward to it."""

    def __init__(self, steering: Steering) -> None:
        self.rings: list[Virtqueue] = []
        self.gates: list[Gate] = []  #: of all of the card's rings
        #: counts up whenever `rings` may have changed
        self.layout = 0
        #: the C side: struct gw_port *
        self.handle: Any = ffi.new("struct gw_port *")
        self.handle.steer = steering.handle
        self._keep = steering
        self._outlets: Any = None

    def take_features(self, *, guest_csum: bool, merge: bool, gso: int) -> None:
        """Control thread: what the guest takes; `gso` are lib.VNET_* bits."""
        self.handle.guest_csum, self.handle.merge, self.handle.gso = guest_csum, merge, gso

    def place(self, rings: Sequence[Virtqueue], gates: list[Gate], mtu: int) -> None:
        """Data thread: frames can be put into these rings now. Those who forward here look at `layout`."""
        self.layout += 1
        self.rings, self.gates = list(rings), gates
        self._outlets = ffi.new("struct gw_outlet[]", max(1, len(rings)))
        for outlet, ring in zip(self._outlets, rings, strict=False):
            outlet.ring = ring.handle
        self.handle.outlets, self.handle.count, self.handle.mtu = self._outlets, len(rings), mtu

    def outlets(self) -> list[Any]:
        """struct gw_outlet * of each ring. Good until `layout` changes."""
        return [self._outlets + number for number in range(len(self.rings))]


class Forwarder:
    """The sending side of one card. `inbox`: its struct vnet_inbox, which says what its guest may send."""

    def __init__(self, device: NetDevice, inbox: Any, max_bytes: int) -> None:
        """`max_bytes`: what one call moves from one ring, about."""
        self._device = device
        self._inbox = inbox
        self._max_bytes = max_bytes
        self._table = ffi.new("struct gw_routes *")
        self._numbers: dict[bytes, int] = {}  # of routes, by their addresses
        self._routes: list[tuple[object, NetDevice] | None] = []  # token and destination, by number
        self._free: list[int] = []
        self._others: list[NetDevice] = []
        self._sources: list[Virtqueue] = []
        self._steer = False
        self._layouts: list[int] = []
        self._jobs: list[Any] = []
        self._outlets: list[Any] = []
        self._rings: list[Virtqueue] = []  # of the jobs, then of the outlets
        self._live: list[bool] = []  # as C was told
        self._gates: list[Gate] = []
        self._together = 0  # calls to come that one thread makes alone
        self._keep: list[Any] = []  # what C points to

    def place(self, sources: Sequence[Virtqueue], *, steer: bool) -> None:
        """Frames are taken from these rings now. `steer`: others than these may come."""
        self._sources = list(sources)
        self._steer = steer
        self._layouts = []

    def route(self, key: bytes, other: NetDevice, deadline: int, token: object) -> bool:
        """See `NetDevice.route`. False: there are too many routes already."""
        number = self._numbers.get(key)
        if number is None:
            if len(self._numbers) >= lib.BRIDGE_ROUTES:
                return False
            if not self._free:
                self._free.append(len(self._routes))
                self._routes.append(None)
            number = self._numbers[key] = self._free.pop()
        if other not in self._others:
            self._others.append(other)
            self._layouts = []
        self._routes[number] = token, other
        lib.gw_route_put(self._table, key, number, self._others.index(other) + 1, deadline)
        return True

    def unroute(self, key: bytes) -> None:
        """See `NetDevice.unroute`."""
        number = self._numbers.pop(key, None)
        if number is None:
            return
        lib.gw_route_remove(self._table, key)
        self._routes[number] = None
        self._free.append(number)
        if not self._numbers:
            self._others.clear()  # nobody is kept for having been sent to
            self._layouts = []

    def run(self, budget: int, now: int, closed: Collection[object]) -> tuple[list[tuple[object, int]], bool]:
        """See `NetDevice.forward`."""
        layouts = [other.port.layout for other in self._others]
        if layouts != self._layouts:
            self._arrange()
            self._layouts = layouts
        jobs = self._jobs
        if not jobs:
            return [], True
        for other in self._others:
            shut = other in closed or other.faults.stalled or not other.carrier
            if shut or other.port.handle.closed:
                other.port.handle.closed = shut
        workers = self._device.workers
        gates = self._gates
        for gate in gates:
            gate.acquire()
        try:
            live = [ring.live for ring in self._rings]
            if live != self._live:
                self._live = live
                for user, usable in zip((*jobs, *self._outlets), live, strict=True):
                    user.usable = usable
            answer = lib.gw_bridge(self._pool(workers), jobs[0], len(jobs), workers.wake, budget, now)
            if answer & _CROSSED:
                self._together = _PAUSE
            if answer & _BROKE:
                for user, ring in zip((*jobs, *self._outlets), self._rings, strict=True):
                    ring.check(user.result)
        finally:
            for gate in gates:
                gate.release()
        return self._told() if answer & _MOVED else [], bool(answer & _LEFT)

    def _pool(self, workers: Workers) -> Any:
        """Who helps: for a while nobody after threads were in each other's way."""
        if self._together:
            self._together -= 1
            return ffi.NULL
        return workers.pool

    def _told(self) -> list[tuple[object, int]]:
        told: list[tuple[object, int]] = []
        busy = 0
        for job in self._jobs:
            frames = job.frames
            busy += frames >= _MUCH
            self._device.intake.frames += frames
            self._device.intake.bytes += job.bytes
            hit, count = job.hit, job.count
            for i in range(job.hits):
                number = hit[i]
                route = self._routes[number]
                if route is not None:
                    route[1].delivery.frames += count[number]
                    told.append((route[0], count[number]))
        self._device.workers.note(busy)
        return told

    def _arrange(self) -> None:
        """What C is given, anew: rings came or went, here or where frames go."""
        sources = self._sources
        ports = [other.port for other in self._others]
        self._outlets = [outlet for port in ports for outlet in port.outlets()]
        self._rings = [*sources, *(ring for port in ports for ring in port.rings)]
        self._live = []
        self._jobs = []
        if not self._outlets or not sources or len(self._outlets) > lib.BRIDGE_OUTLETS:
            return
        gates = [self._device.gates[ring.index] for ring in sources]
        gates += [port.gates[ring.index] for port in ports for ring in port.rings]
        self._gates = sorted(gates, key=lambda gate: gate.serial)
        handles = ffi.new("struct gw_port *[]", [port.handle for port in ports])
        outlets = ffi.new("struct gw_outlet *[]", self._outlets)
        jobs = ffi.new("struct gw_bridge[]", len(sources))
        self._keep = [handles, outlets, jobs]
        for number, ring in enumerate(sources):
            job = jobs + number
            scratch = ffi.new("uint8_t[]", ring.max_chain_bytes + _SCRATCH_SPARE)
            self._keep.append(scratch)
            self._jobs.append(job)
            job.source, job.routes, job.ports, job.inbox = ring.handle, self._table, handles, self._inbox
            job.outlets, job.outlet_count = outlets, len(self._outlets)
            job.steer = self._device.steering.handle if self._steer else ffi.NULL
            job.pair = ring.index // 2
            job.max_bytes, job.max_chain, job.scratch = self._max_bytes, ring.max_chain_bytes, scratch
