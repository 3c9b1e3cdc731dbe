"""What every vhost-user device is made of: rings with gates, features, and one descriptor to sleep on.

Theory of operation
-------------------
Two threads meet here. The *control thread* (`server.py`) answers the front-end; QEMU holds its big lock while it
waits for that answer, so it must never wait long. The *data thread* (whoever polls the Network) moves frames. They
share the rings, and each ring has a **gate**: a lock the data path holds for one burst and the control thread for one
change. Nothing else is shared that needs a lock; in particular the control thread never takes the Network's lock.

When the control thread changed something that the owner of the device must hear about (rings came up, features were
acknowledged, the front-end went away) it calls `notify_change`: a flag and an eventfd, no callback. The data thread
calls `refresh` at the start of `receive` and `arm`; it sees the flag, lets the subclass recompute what it publishes
(`on_refresh`) and only then calls `on_change`, on the thread that holds the Network's lock, as the seam promises.

`fileno` is an epoll descriptor holding the eventfd and the kick descriptors, all *edge triggered*: nothing ever reads
an eventfd. An edge stays visible to the outside until `clear_events` asks the epoll once, which costs one system call
for any number of rings, and a kick on a ring that cannot run (not started, disabled, broken) cannot make anybody
spin. Kick descriptors leave the epoll explicitly before they are closed: QEMU holds the same eventfd, so closing ours
alone would leave a ghost behind that fires for ever.

`control_lock` serialises the control thread's handling of one message with `close()`, which may come from any thread.
Order of locks: Network's lock, `control_lock`, a ring's gate. The control thread starts at the second.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

from . import syscalls
from .faults import Faults
from .gate import Gate
from .message import CONFIG_CHANGE
from .virtqueue import Virtqueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from .dirty_log import DirtyLog
    from .memory import MemoryTable

#: Bit 30: SET_PROTOCOL_FEATURES and friends are understood; rings start disabled once it is acknowledged.
F_PROTOCOL_FEATURES: Final = 1 << 30
#: Bit 26 (VHOST_F_LOG_ALL): the only feature a front-end may toggle while rings run; never shown to the guest.
F_LOG_ALL: Final = 1 << 26

#: Largest ring QEMU sets up (its VIRTQUEUE_MAX_SIZE), in descriptors.
MAX_RING_SIZE: Final = 1024

_EDGE: Final = select.EPOLLIN | select.EPOLLET


class Device:
    """Base of `NetDevice` and `VsockDevice`: what the session drives on one side and the stack on the other.

    Subclasses pass what they offer and override the hooks. Hooks say on which thread they run; those on the control
    thread must not wait and must not touch what the data thread publishes (leave that to `on_refresh`).
    """

    def __init__(
        self,
        *,
        name: str,
        device_features: int,
        protocol_features: int,
        ring_count: int,
        reported_queues: int,
        config: bytes = b"",
        max_ring_size: int = MAX_RING_SIZE,
    ) -> None:
        """`reported_queues` answers GET_QUEUE_NUM (queue *pairs* for net); `config` is the device's config space."""
        self.name = name
        self.device_features = device_features | F_PROTOCOL_FEATURES  #: virtio feature bits offered
        self.protocol_features = protocol_features  #: vhost-user protocol feature bits offered
        self.reported_queues = reported_queues
        self.config = config
        self.max_ring_size = max_ring_size
        self.features = 0  #: bits the driver acknowledged, transport bits 26 and 30 removed
        self.memory: MemoryTable | None = None  #: the guest's memory, owned here; control thread only
        self._log: DirtyLog | None = None
        self._channel: socket.socket | None = None  # our messages to the front-end
        self.connected = False  #: a front-end owns the device
        self.closed = False
        #: Set by the owner; called on the data thread from `refresh`.
        self.on_change: Callable[[], None] | None = None
        #: Set by the server; called once by `close`, on the closing thread, to let go of sockets.
        self.on_closed: Callable[[], None] | None = None
        #: Set by the server; called by `hang_up` with the reason.
        self.on_hang_up: Callable[[str], bool] | None = None
        self.faults = Faults(self)  #: misbehaviour asked for
        self.control_lock = threading.RLock()
        self.gates = [Gate() for _ in range(ring_count)]
        self.rings = [Virtqueue(i, max_ring_size, gate=gate) for i, gate in enumerate(self.gates)]
        self._kicks: list[int] = [-1] * ring_count  # descriptors now in the epoll, by ring
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._changed_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._changed_fd, _EDGE)
        self._changed = False

    # -- data thread: the Network's lock is held ------------------------------------------------------------------

    def fileno(self) -> int:
        """The epoll descriptor to sleep on; -1 once closed."""
        return -1 if self.closed else self._epoll.fileno()

    def refresh(self) -> bool:
        """Report what the control thread changed since the last call. True: something had changed.

        Subclasses call this first in `receive` and `arm` (not in `transmit`: its caller is mid-burst).
        """
        if not self._changed:
            return False
        self._changed = False  # before looking: a change made while we look is reported again, never lost
        self.on_refresh()
        if self.on_change is not None:
            self.on_change()
        return True

    def clear_events(self) -> None:
        """Take back readiness of `fileno`. Call it in `arm`, *before* the rings are armed and looked at again."""
        if not self.closed:
            self._epoll.poll(0, len(self.rings) + 1)

    def on_refresh(self) -> None:
        """Hook, data thread: recompute carrier, offloads, generation... from `features` and the rings."""

    # -- any thread -----------------------------------------------------------------------------------------------

    def notify_change(self) -> None:
        """Make `fileno` readable and have the next `refresh` report. Never waits, never calls back."""
        self._changed = True
        if not self.closed:
            syscalls.signal(self._changed_fd)

    def hang_up(self, reason: str) -> bool:
        """End the front-end's connection, as if this process had gone; it may connect again. False: there is none.

        Not to be called with the Network's lock held: it waits for the control thread.
        """
        return self.on_hang_up is not None and self.on_hang_up(reason)

    def close(self) -> None:
        """Stop and release everything; idempotent. The owner has taken `fileno` out of its own epoll before."""
        with self.control_lock:
            if self.closed:
                return
            self.disconnect()
            for gate, ring in zip(self.gates, self.rings, strict=True):
                with gate.control:
                    ring.close()
            self.closed = True
            self._epoll.close()
            os.close(self._changed_fd)
        if self.on_closed is not None:
            self.on_closed()

    # -- control thread: `control_lock` is held -------------------------------------------------------------------

    def connect(self) -> None:
        """A front-end claims the device: everything starts from scratch."""
        self.connected = True
        self.on_connect()
        self.notify_change()

    def disconnect(self) -> None:
        """The front-end is gone: rings stopped, descriptors closed, guest memory let go. Idempotent."""
        for index, gate in enumerate(self.gates):
            with gate.control:
                self.set_kick(index, None)
                self.rings[index].reset()
        self.set_memory(None)
        self.set_log(None)
        self.set_channel(None)
        self.features = 0
        if self.connected:
            self.connected = False
            self.on_disconnect()
            self.notify_change()

    def set_kick(self, index: int, fd: int | None) -> None:
        """Give ring `index` its kick descriptor (owned from here on), or take it away. The ring's gate is held."""
        old = self._kicks[index]
        if old >= 0:
            self._epoll.unregister(old)
            self._kicks[index] = -1
        self.rings[index].set_kick(fd)
        if fd is not None:
            self._epoll.register(fd, _EDGE)
            self._kicks[index] = fd

    def stop_ring(self, index: int) -> int:
        """GET_VRING_BASE: stop a ring, close its kick and call, return the next available index. The gate is held."""
        self.set_kick(index, None)
        return self.rings[index].stop()

    def set_memory(self, table: MemoryTable | None) -> None:
        """Move every ring to `table` (owned from here on), each between two bursts, then let the old one go."""
        old, self.memory = self.memory, table
        for gate, ring in zip(self.gates, self.rings, strict=True):
            with gate.control:
                ring.set_memory(table)
        if old is not None:
            old.close()

    def set_log(self, log: DirtyLog | None) -> None:
        """Have every ring mark the pages it writes in `log` (owned from here on) while F_LOG_ALL is acknowledged."""
        old, self._log = self._log, log
        for gate, ring in zip(self.gates, self.rings, strict=True):
            with gate.control:
                ring.set_log(log)
        if old is not None:
            old.close()

    def set_channel(self, channel: socket.socket | None) -> None:
        """Where the front-end hears from us unasked (owned from here on)."""
        old, self._channel = self._channel, channel
        if old is not None:
            old.close()

    def tell_config_changed(self) -> bool:
        """Have the front-end ask for config space again. False: it gave us no way to tell it, or does not listen."""
        if self._channel is None:
            return False
        try:
            sent = self._channel.send(CONFIG_CHANGE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return sent == len(CONFIG_CHANGE)

    def set_features(self, features: int) -> None:
        """The driver acknowledged `features`, already checked to be a subset of what was offered."""
        self.features = features & ~(F_PROTOCOL_FEATURES | F_LOG_ALL)
        for gate, ring in zip(self.gates, self.rings, strict=True):
            with gate.control:
                ring.set_features(features)
        self.on_features(self.features)
        self.notify_change()

    def on_connect(self) -> None:
        """Hook, control thread: a front-end claimed the device."""

    def on_disconnect(self) -> None:
        """Hook, control thread: the front-end is gone; rings are already stopped."""

    def on_features(self, features: int) -> None:
        """Hook, control thread: the driver acknowledged `features` (no gate held)."""

    def on_rings_changed(self) -> None:
        """Hook, control thread: a ring was started, stopped, enabled or disabled (no gate held).

        `notify_change` follows; this is for devices that keep books of their own, such as a generation.
        """

    def on_rarp(self, mac: bytes) -> None:
        """Hook, control thread: SEND_RARP asks to announce the guest's `mac` (6 bytes) after a migration."""

    def set_mtu(self, mtu: int) -> bool:  # noqa: ARG002 - a hook's default
        """Hook, control thread: NET_SET_MTU, 68..65535 checked. False refuses it."""
        return False

    def get_config(self, offset: int, size: int) -> bytes | None:
        """`size` bytes of config space at `offset`; None when they are not all inside it."""
        if offset + size > len(self.config):
            return None
        return self.config[offset : offset + size]

    def set_config(self, offset: int, data: bytes, flags: int) -> bool:  # noqa: ARG002 - a hook's default
        """Hook, control thread: SET_CONFIG, range checked. False refuses it (config space is read-only)."""
        return False
