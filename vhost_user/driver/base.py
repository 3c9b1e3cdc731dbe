"""A virtio driver behind a vhost-user front-end: negotiation in QEMU's order, start, stop, reset.

QEMU says the same things to every device but not in the same order; a back-end has to take both (`Order`):

* net: rings are enabled *before* features, memory and addresses are known;
* vsock: rings are enabled *after* they were kicked, and call descriptors come again before and after.
"""

from __future__ import annotations

import os
import socket
from enum import Enum
from typing import TYPE_CHECKING, Final, Self

from vhost_user.message import Protocol

from .errors import DriverError
from .frontend import DEFAULT_TIMEOUT, Frontend
from .memory import MIB, GuestMemory

if TYPE_CHECKING:
    from types import TracebackType

    from .ring import DriverRing

F_VERSION_1: Final = 1 << 32
F_PROTOCOL_FEATURES: Final = 1 << 30
F_EVENT_IDX: Final = 1 << 29
F_INDIRECT_DESC: Final = 1 << 28

STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8

#: Every protocol feature the front-end here can speak; what is not offered is not asked for.
ALL_PROTOCOL_FEATURES: Final = (
    Protocol.MQ
    | Protocol.RARP
    | Protocol.REPLY_ACK
    | Protocol.NET_MTU
    | Protocol.BACKEND_REQ
    | Protocol.CONFIG
    | Protocol.CONFIGURE_MEM_SLOTS
    | Protocol.STATUS
)


class Order(Enum):
    """Whose order of messages to follow."""

    NET = "net"
    VSOCK = "vsock"


class Driver:
    """Base of `NetDriver` and `VsockDriver`; usable by itself with `rings` of one's own.

    `target`: a socket path, ``@name`` for an abstract one, or a connected socket (owned from here on).
    `features`: what the driver would like; acknowledged is what is also offered.
    `protocol_features`: likewise, of vhost-user. `memory`: closed with the driver. `timeout`: longest wait for a
    reply, in seconds.

    The constructor connects and says nothing. Then `negotiate`, `start`; `stop` and `start` again; `reset`; `close`.
    """

    order = Order.NET
    ring_count = 2
    default_memory = 256 * MIB

    def __init__(
        self,
        target: str | os.PathLike[str] | socket.socket,
        *,
        features: int,
        protocol_features: int = ALL_PROTOCOL_FEATURES,
        memory: GuestMemory | None = None,
        order: Order | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if isinstance(target, socket.socket):
            self.frontend = Frontend(target, timeout=timeout)
        else:
            self.frontend = Frontend.connect(target, timeout=timeout)
        self.order = order or type(self).order
        self.wanted = features
        self.wanted_protocol = protocol_features
        self.memory = memory or GuestMemory([(0, self.default_memory)])
        self.offered = 0  #: feature bits the device offers
        self.features = 0  #: feature bits acknowledged
        self.rings: list[DriverRing] = []
        self.running = False
        self._bases: list[int] = []  # of stopped rings, by index
        self._memory_sent = False
        #: What the device says unasked arrives here (BACKEND_REQ); None: it does not.
        self.channel: socket.socket | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up without a word, as a QEMU that was killed, and give everything back. Idempotent."""
        self.running = False
        self.frontend.close()
        if self.channel is not None:
            self.channel.close()
        for ring in self.rings:
            ring.close()
        self.memory.close()

    def negotiate(self) -> None:
        """What QEMU says when the device is realized, and the driver's choice of features."""
        fe = self.frontend
        self.offered = fe.get_features()
        if self.offered & F_PROTOCOL_FEATURES:
            fe.set_protocol_features(fe.get_protocol_features() & self.wanted_protocol)
        if fe.protocol_features & Protocol.MQ:
            self.on_queue_num(fe.get_queue_num())
        if fe.protocol_features & Protocol.CONFIGURE_MEM_SLOTS:
            fe.get_max_mem_slots()
        if fe.protocol_features & Protocol.BACKEND_REQ:
            self.channel, theirs = socket.socketpair()
            with theirs:
                fe.set_backend_req_fd(theirs.fileno())
        fe.set_owner()
        if fe.get_features() != self.offered:
            raise DriverError("the device offers other features when asked again")
        self.features = self.offered & self.wanted
        if not self.features & F_VERSION_1:
            raise DriverError("the device does not offer VIRTIO_F_VERSION_1")
        self.rings = self.make_rings()
        for ring in self.rings:
            fe.set_vring_call(ring.index, ring.call_fd)
            fe.set_vring_err(ring.index, ring.err_fd)
        self.on_negotiated()

    def start(self) -> None:
        """DRIVER_OK: rings are described, kicked and enabled. Receive buffers are posted before that."""
        fe = self.frontend
        if not self._bases:
            self._bases = [0] * len(self.rings)
            self.prepare_rings()
        if self.order is Order.NET:
            self._enable(True)
        else:
            self._send_calls()
        fe.set_features(self.features | self.offered & F_PROTOCOL_FEATURES)
        if fe.protocol_features & Protocol.STATUS:
            fe.set_status(fe.get_status() | STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK)
        self.send_memory()
        for ring, base in zip(self.rings, self._bases, strict=True):
            self.start_ring(ring, base)
        if self.order is Order.VSOCK:
            self._enable(True)
            self._send_calls()
        if fe.protocol_features & Protocol.STATUS:
            fe.set_status(fe.get_status() | STATUS_DRIVER_OK)
        self.running = True

    def start_ring(self, ring: DriverRing, base: int) -> None:
        """Describe one ring and hand over its kick descriptor, which starts it."""
        fe = self.frontend
        fe.set_vring_num(ring.index, ring.num)
        fe.set_vring_base(ring.index, base)
        uva = self.memory.uva
        fe.set_vring_addr(ring.index, uva(ring.desc), uva(ring.used), uva(ring.avail))
        fe.set_vring_kick(ring.index, ring.kick_fd)
        fe.set_vring_call(ring.index, ring.call_fd)

    def stop(self) -> list[int]:
        """Pause, as QEMU's `stop` does. Returns the rings' bases; `start` goes on from there."""
        fe = self.frontend
        if self.order is Order.VSOCK:
            self._enable(False)
        elif fe.protocol_features & Protocol.STATUS:
            fe.set_status(0)
        self._bases = [fe.get_vring_base(ring.index) for ring in self.rings]
        if self.order is Order.VSOCK:
            self._send_calls()
        self.running = False
        return list(self._bases)

    def reset(self) -> None:
        """A driver that resets its device: rings stopped, everything in flight forgotten, rings zeroed."""
        if self.running:
            self.stop()
        if self.order is Order.NET:
            self._enable(False)
        self._bases = []
        for ring in self.rings:
            ring.reset()

    def send_memory(self) -> None:
        """Tell the back-end about guest memory: one table, or a message for each region when it has slots.

        As QEMU does, slots are only told once per connection, a table at every start.
        """
        fe = self.frontend
        if not fe.protocol_features & Protocol.CONFIGURE_MEM_SLOTS:
            fe.set_mem_table(self.memory.regions, self.memory.fd)
        elif not self._memory_sent:
            for region in self.memory.regions:
                fe.add_mem_reg(region, self.memory.fd)
        self._memory_sent = True

    def _enable(self, enable: bool) -> None:
        if self.offered & F_PROTOCOL_FEATURES:
            for ring in self.rings_to_enable():
                self.frontend.set_vring_enable(ring.index, enable)

    def _send_calls(self) -> None:
        for ring in self.rings:
            self.frontend.set_vring_call(ring.index, ring.call_fd)

    # -- hooks ----------------------------------------------------------------------------------------------------

    def make_rings(self) -> list[DriverRing]:
        """The driver's rings, once features are known."""
        return list(self.rings)

    def prepare_rings(self) -> None:
        """Before the first start and after a reset: post receive buffers."""

    def rings_to_enable(self) -> list[DriverRing]:
        return self.rings

    def on_queue_num(self, count: int) -> None:
        """The answer to GET_QUEUE_NUM."""

    def on_negotiated(self) -> None:
        """Features are chosen; rings do not run yet."""

    def has(self, feature: int) -> bool:
        """`feature` (bits) was acknowledged in full."""
        return self.features & feature == feature
