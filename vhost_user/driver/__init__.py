"""A guest without QEMU: a vhost-user front-end and virtio drivers on a memfd, in this or another process.

For tests of devices and stacks in milliseconds, for benches, and for users who want to talk to a vhost-user back-end.

* `NetDriver`, `VsockDriver`: connect to a back-end's socket, negotiate in QEMU's order, send and receive. Well-behaved.
* `Frontend`: every message by name, and any bytes with any descriptors (`Frontend.send`, `send_bytes`).
* `Exchange`: a message and its answer, over and over, timed: the driver's part of a round trip costs a microsecond.
* `Bulk`: a TCP connection's segments, sent or taken in and acknowledged by C, megabytes a call.
* `DriverRing`: beside the well-behaved operations, raw writes to descriptors, rings and indexes.
* `GuestMemory`: a memfd in one or several regions with holes, sealed like QEMU's or not.

Being hostile is a matter of using the raw half: write descriptors that point into holes, jump avail.idx, change what
was already published, truncate an unsealed memfd, hang up in the middle of a message.

Nothing here waits longer than the timeout it was given.
"""

from .base import Driver, Order
from .bulk import Bulk, BulkEnd, BulkNumbers, BulkSegment
from .burst import Burst
from .errors import DriverError
from .exchange import Exchange
from .frontend import Frontend
from .memory import GuestMemory, MemoryRegion
from .net import NetDriver, NetFrame
from .ring import Descriptor, DriverRing
from .vsock import VsockDriver, VsockPacket

__all__ = [
    "Bulk",
    "BulkEnd",
    "BulkNumbers",
    "BulkSegment",
    "Burst",
    "Descriptor",
    "Driver",
    "DriverError",
    "DriverRing",
    "Exchange",
    "Frontend",
    "GuestMemory",
    "MemoryRegion",
    "NetDriver",
    "NetFrame",
    "Order",
    "VsockDriver",
    "VsockPacket",
]
