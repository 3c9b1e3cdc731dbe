"""The host side of every guest's vsock: CID 2, one port space, listeners, connections.

`VsockEngine` holds what is common to all guests; `stack.vsock.guest` has one object for each guest, which is the
`Source` a Network polls; `stack.vsock.connection` is one stream.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from stack.errors import NetError
from stack.iface.changes import ChangeKind, ChangeLog
from stack.scheduler import Scheduler
from stack.vsock.connection import CONNECT_TIMEOUT, DEFAULT_BUFFER, VsockConnection, buffer_size
from stack.vsock.guest import GuestPort
from stack.vsock.listener import VsockListener
from stack.vsock.loopback import Loopback
from stack.vsock.ports import BoundPort, PortTable
from stack.vsock.transport import VsockTransport
from stack.wire.vsock import CID_ANY, CID_HOST, CID_LOCAL, PORT_ANY, TYPE_STREAM

#: Bytes that all receive buffers together may promise: 1024 connections of the default size.
MEMORY_LIMIT: Final = 256 << 20
BUDGET: Final = 256  # packets to itself that the host handles at a time


class VsockEngine:
    """One per Stack. Everything is called with the Network's lock held."""

    def __init__(self, scheduler: Scheduler, *, memory_limit: int = MEMORY_LIMIT) -> None:
        self.scheduler = scheduler
        self.ports = PortTable(scheduler.rng)
        self.guests: dict[int, GuestPort] = {}  #: by CID
        self.listeners: dict[int, VsockListener] = {}  #: by port
        self.changes = ChangeLog()  #: guests that came, went, or changed
        self.memory_limit = memory_limit
        self.reserved = 0  #: bytes promised to peers
        #: This host as its own guest (row VS-20). It needs no Network: its packets arrive as deferred work.
        self._loop = Loopback(scheduler, self._deliver)
        self.loopback = GuestPort(self, scheduler, self._loop, host_cids=frozenset((CID_LOCAL, CID_HOST)))

    def add_guest(self, transport: VsockTransport, *, groups: Iterable[str] = ()) -> GuestPort:
        """Sockets reach the transport's guest from now on. The result is a `Source` for the Network.

        Guests with one of their `groups` in common may connect to each other. Raises ValueError if there is a guest
        with that CID.
        """
        cid = transport.guest_cid
        if cid in self.guests:
            raise ValueError(f"there is a guest with vsock CID {cid} already: give this one another")
        port = GuestPort(self, self.scheduler, transport, groups=frozenset(groups))
        self.guests[cid] = port
        self.changes.append(ChangeKind.NEW_VSOCK, port, 0, "new")
        return port

    def remove_guest(self, cid: int) -> GuestPort | None:
        """Its connections end with ECONNRESET. The transport stays its maker's. None: there was no such guest."""
        port = self.guests.pop(cid, None)
        if port is not None:
            port.close()
            self.changes.append(ChangeKind.DEL_VSOCK, port, 0)
        return port

    def move_guest(self, port: GuestPort, cid: int) -> bool:
        """The guest of `port` has `cid` from now on. False: another one has, and what this one sends is dropped."""
        if cid in self.guests or self.guests.get(port.guest_cid) is not port:
            return False
        del self.guests[port.guest_cid]
        self.guests[cid] = port
        return True

    def _deliver(self) -> None:
        self.loopback.service(BUDGET)
        if self._loop.arm():
            self.scheduler.defer(self._deliver)

    def sibling(self, port: GuestPort, cid: int) -> GuestPort | None:
        """The guest `cid`, if that of `port` may talk to it."""
        sibling = self.guests.get(cid)
        return sibling if sibling is not None and sibling is not port and sibling.groups & port.groups else None

    def listener(self, cid: int, port: int) -> VsockListener | None:
        """Who accepts connections to this address of ours."""
        listener = self.listeners.get(port)
        return listener if listener is not None and listener.cid in (CID_ANY, cid) else None

    def bind(self, port: int, *, privileged: bool = True) -> BoundPort:
        """Take a host port; PORT_ANY chooses one. Raises NetError: EADDRINUSE, EACCES."""
        return self.ports.bind(port, privileged=privileged)

    def connect(
        self,
        cid: int,
        port: int,
        *,
        bound: BoundPort | None = None,
        buffer: int = DEFAULT_BUFFER,
        timeout: int = CONNECT_TIMEOUT,
        kind: int = TYPE_STREAM,
    ) -> VsockConnection:
        """Begin to connect; `on_event` tells how it goes, ETIMEDOUT after `timeout` ns. `bound` stays the caller's.

        CID_LOCAL and CID_HOST are this host itself. Raises NetError: ENODEV without a guest of that CID,
        ESOCKTNOSUPPORT if its driver does not take connections of this `kind` (the wire's type), EADDRINUSE for a pair
        of ports in use already, ENOBUFS when there are too many connections.
        """
        guest = self.loopback if cid in (CID_LOCAL, CID_HOST) else self.guests.get(cid)
        if guest is None:
            raise NetError(errno.ENODEV, f"no guest with vsock CID {cid} is attached here")
        if bound is not None and (bound.port, port) in guest.connections:
            raise NetError(errno.EADDRINUSE, f"port {bound.port} is connected to port {port} of CID {cid} already")
        if guest.transport.carrier and not guest.speaks(kind):
            raise NetError(errno.ESOCKTNOSUPPORT, f"the driver of CID {cid} does not take such connections")
        buffer = buffer_size(buffer)
        if guest.full or not self.reserve(buffer):
            raise NetError(errno.ENOBUFS, "too many vsock connections")
        held = bound.retain() if bound is not None else self.ports.bind(PORT_ANY)
        local, remote = (CID_HOST, held.port), (cid, port)
        return guest.connect(local, remote, buffer=buffer, timeout=timeout, kind=kind, bound=held)

    def listen(
        self,
        port: int,
        backlog: int = 128,
        *,
        bound: BoundPort | None = None,
        buffer: int = DEFAULT_BUFFER,
        kind: int = TYPE_STREAM,
        cid: int = CID_ANY,
    ) -> VsockListener:
        """Accept connections of all guests to `port` (of `bound`, if given, which stays the caller's).

        With a `cid`, only those to this CID of ours. Raises NetError: EADDRINUSE, EACCES.
        """
        held = bound.retain() if bound is not None else self.ports.bind(port)
        if held.port in self.listeners:
            held.release()
            raise NetError(errno.EADDRINUSE, f"vsock port {held.port} is listened to already")
        listener = VsockListener(self, held, backlog, buffer=buffer, kind=kind, cid=cid)
        self.listeners[held.port] = listener
        return listener

    def unlisten(self, listener: VsockListener) -> None:
        """Called by the listener's `close`."""
        if self.listeners.get(listener.local[1]) is listener:
            del self.listeners[listener.local[1]]

    def reserve(self, size: int) -> bool:
        """Set `size` bytes aside for a receive buffer; False if there are not that many left."""
        if self.reserved + size > self.memory_limit:
            return False
        self.reserved += size
        return True

    def reserve_up_to(self, size: int) -> int:
        """As `reserve`, or what is left; a negative `size` gives back. Returns what was set aside."""
        granted = min(size, self.memory_limit - self.reserved)
        self.reserved += granted
        return granted

    def release(self, size: int) -> None:
        """Give a reservation back."""
        self.reserved -= size

    def close(self) -> None:
        """Every listener and connection ends. Idempotent."""
        for cid in list(self.guests):
            self.remove_guest(cid)
        self.loopback.close()
        for listener in list(self.listeners.values()):
            listener.close()
