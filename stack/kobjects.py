"""The objects of a Stack that have kernel events, where their events come from, and who hears them.

Theory of operation
-------------------
Nobody below calls upward: namespaces and the vsock engine append to their `ChangeLog`, and at the end of the turn
`Events` drains those and says what a kernel would have said. A link that appears is an ``add`` of the device and of
its queues, one that goes a ``remove`` of the queues and of the device, a rename a ``move`` (UE-07, UE-08). Going to
another namespace is a ``remove`` here and an ``add`` there, of the device alone (measured).

What Linux has no event for, a front-end that comes and goes behind a device, is told with the words it has:
``online`` and ``offline`` when QEMU connects and disconnects (or dies), ``change`` with ``CARRIER=1`` or ``0`` when the
guest's driver is ready or is reset. They are said of links that were plugged in, and of the vsock of each guest.

Every event has a number, counted for the whole Stack whether anybody listens or not (UE-04), and is heard in the
network namespace of its object: by group 1 of NETLINK_KOBJECT_UEVENT, and by `Subscription`, which needs no socket.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from stack.errors import NetError
from stack.events import Action, Uevent, parse_synthetic
from stack.iface.changes import Change, ChangeKind, ChangeLog
from stack.netns import ARRIVED, MOVED
from stack.socket.base import AGAIN, Again, Timeout, os_error
from stack.socket.netlink import multicast
from stack.socket.poll import ERR, IN, Pollee
from stack.wire.netlink.header import NETLINK_KOBJECT_UEVENT

if TYPE_CHECKING:
    from stack.core import World
    from stack.credentials import Credentials
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace
    from stack.vsock import VsockEngine
    from stack.vsock.guest import GuestPort

KERNEL_GROUP: Final = 1  # group 2 is udevd's own (UE-06)
QUEUE_EVENTS: Final = 1024  # events a subscription keeps
_NET: Final = "/devices/virtual/net"
_VSOCK: Final = "/devices/virtual/vsock"
#: Kinds that name themselves as a device type (SET_NETDEV_DEVTYPE in the kernel's drivers).
_DEVICE_TYPES: Final = frozenset(("bridge", "macvlan", "vlan"))


@dataclass(frozen=True, slots=True)
class Object:
    """One place in the tree."""

    netns: NetNamespace
    devpath: str
    subsystem: str
    environment: dict[str, str]


class Kobject:
    """An object's uevent file. Made by `Stack.kobject`."""

    def __init__(self, events: Events, found: Object, credentials: Credentials) -> None:
        self.devpath = found.devpath
        self._events, self._object, self._credentials = events, found, credentials

    def read(self) -> str:
        """What reading the file gives: the object's own variables, a line each."""
        return "".join(f"{key}={value}\n" for key, value in self._object.environment.items())

    def uevent(self, text: str | bytes) -> int:
        """Write to the file: a synthetic event (UE-05). Returns the bytes taken, all of them.

        Raises OSError: EINVAL for what is none, EACCES for who is not root, ENODEV for an object that is gone.
        """
        data = text.encode() if isinstance(text, str) else text
        try:
            self._events.world.call(self._events.synthesize, (self._object, data, self._credentials))
        except NetError as error:
            raise os_error(error) from None
        return len(data)


class Subscription:
    """Kernel events for Python code: iterate, or `get` them one by one. Close it, or use it in a ``with`` block."""

    def __init__(self, events: Events, netns: NetNamespace | None) -> None:
        self.netns = netns  #: the namespace listened to; None: every one of the Stack
        self._events = events
        self._queue: deque[Uevent] = deque()
        self._overrun = False
        self._pollee = Pollee(self._bits, events.world.marks)

    def get(self, timeout: float | None = None) -> Uevent:
        """The next event; waits at most `timeout` seconds, None for ever.

        Raises TimeoutError, and OSError(ENOBUFS), once, if events were lost since the last call (UE-09).
        """
        limit: Timeout = None if timeout is None else max(int(timeout * 1e9), 0)
        try:
            event = self._events.world.block_on(self._pollee, IN, limit, self._take, ())
        except NetError as error:
            raise os_error(error) from None
        if event is AGAIN:
            raise TimeoutError(f"no kernel event within {timeout:g} s")
        return event

    def pending(self) -> list[Uevent]:
        """Take everything that is there, without waiting."""
        return self._events.world.call(self._take_all, ())

    def __iter__(self) -> Iterator[Uevent]:
        while True:
            yield self.get()

    def close(self) -> None:
        """Idempotent."""
        self._events.subscriptions.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def deliver(self, event: Uevent) -> None:
        """For `Events`."""
        if len(self._queue) >= QUEUE_EVENTS:
            self._overrun = True
        else:
            self._queue.append(event)
        self._pollee.notify()

    def _bits(self) -> int:
        return (IN if self._queue else 0) | (ERR if self._overrun else 0)

    def _take(self) -> Uevent | Again:
        if self._overrun:
            self._overrun = False
            raise NetError(errno.ENOBUFS, "kernel events were lost")
        return self._queue.popleft() if self._queue else AGAIN

    def _take_all(self) -> list[Uevent]:
        taken = list(self._queue)
        self._queue.clear()
        return taken


class Events:
    """`Stack.events`. Everything but `subscribe` is called with the Network's lock held."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seqnum = 0  #: of the last event: /sys/kernel/uevent_seqnum
        self.subscriptions: dict[Subscription, None] = {}
        self._cursors: dict[ChangeLog, int] = {}
        self._namespaces: dict[ChangeLog, NetNamespace] = {}
        self._fronts: dict[object, bool] = {}  # a device, and whether a front-end was there when last told
        self._due = False

    def subscribe(self, netns: NetNamespace | None = None) -> Subscription:
        """Hear of what happens in `netns`, or in every namespace of the Stack, from now on."""
        subscription = Subscription(self, netns)
        with self.world.lock:
            self._drain()
            self.subscriptions[subscription] = None
        return subscription

    def watch(self, netns: NetNamespace, log: ChangeLog | None = None) -> None:
        """Tell of what `netns` (or `log`, whose objects belong there) records, all that it holds already included."""
        log = netns.changes if log is None else log
        self._cursors[log] = 0
        self._namespaces[log] = netns
        log.observers.append(self._note)
        self._note()

    def unwatch(self, log: ChangeLog) -> None:
        """Tell what is left to be told, and no more."""
        self._drain()
        if self._cursors.pop(log, None) is not None:
            del self._namespaces[log]
            log.observers.remove(self._note)

    def emit(self, found: Object, action: str, extra: dict[str, str] | None = None) -> None:
        """One event of an object, numbered and delivered."""
        self.seqnum += 1
        environment = {**(extra or {}), **found.environment}
        event = Uevent(action, found.devpath, found.subsystem, environment, self.seqnum)
        for subscription in tuple(self.subscriptions):
            if subscription.netns in (None, found.netns):
                subscription.deliver(event)
        if found.netns.netlink is not None:  # somebody has a netlink socket there
            multicast(found.netns, NETLINK_KOBJECT_UEVENT, KERNEL_GROUP, event.emit())

    def synthesize(self, found: Object, text: bytes, credentials: Credentials) -> None:
        """See `Kobject.uevent`. Raises NetError."""
        if credentials.uid != 0:
            raise NetError(errno.EACCES, "only root writes to uevent files")
        self._drain()
        parsed = parse_synthetic(text)
        if parsed is not None:
            action, variables = parsed
            self.emit(found, action, variables)

    def find(self, netns: NetNamespace, vsock: VsockEngine | None, path: str) -> Object:
        """The object at `path`: /devices/virtual/net/lo, /sys/class/net/lo/uevent... Raises NetError(ENOENT)."""
        wanted = path.removeprefix("/sys").rstrip("/").removesuffix("/uevent")
        wanted = wanted.replace("/class/net/", f"{_NET}/", 1) if wanted.startswith("/class/net/") else wanted
        for iface in netns.interfaces.values():
            for found in (net_object(netns, iface, iface.name), *queue_objects(netns, iface, iface.name)):
                if found.devpath == wanted:
                    return found
        for guest in vsock.guests.values() if vsock is not None else ():
            if (found := vsock_object(netns, guest)).devpath == wanted:
                return found
        raise NetError(errno.ENOENT, f"no object {path!r} here")

    # -- draining -----------------------------------------------------------------------------------------------------

    def _note(self, _change: Change | None = None) -> None:
        if not self._due:
            self._due = True
            self.world.scheduler.defer(self._drain)

    def _drain(self) -> None:
        self._due = False
        for log, cursor in tuple(self._cursors.items()):
            records, _ = log.since(cursor)
            self._cursors[log] = log.end
            netns = self._namespaces[log]
            for record in records:
                if record.kind is ChangeKind.NEW_LINK:
                    self._link(netns, record)
                elif record.kind is ChangeKind.DEL_LINK:
                    self._link_gone(netns, record)
                elif record.kind is ChangeKind.NEW_VSOCK:
                    self._vsock(vsock_object(netns, record.subject), record)
                elif record.kind is ChangeKind.DEL_VSOCK:
                    self._front(vsock_object(netns, record.subject), record.subject, connected=False)
                    self.emit(vsock_object(netns, record.subject), Action.REMOVE)

    def _link(self, netns: NetNamespace, record: Change) -> None:
        iface, detail = record.subject, record.detail
        device = net_object(netns, iface, record.name, record.ifindex)
        if detail == ARRIVED:
            self.emit(device, Action.ADD)
        elif detail == "new":
            self.emit(device, Action.ADD)
            for queue in queue_objects(netns, iface, record.name):
                self.emit(queue, Action.ADD)
            if not iface.kind:
                self._front(device, iface.device, connected=getattr(iface.device, "connected", False))
        elif detail.startswith(_RENAMED):
            self.emit(device, Action.MOVE, {"DEVPATH_OLD": f"{_NET}/{detail.removeprefix(_RENAMED)}"})
        elif not iface.kind and not iface.loopback:
            self._changed(device, iface.device, detail)

    def _link_gone(self, netns: NetNamespace, record: Change) -> None:
        iface = record.subject
        device = net_object(netns, iface, record.name, record.ifindex)
        if record.detail != MOVED:
            self._front(device, iface.device, connected=False)
            for queue in queue_objects(netns, iface, record.name):
                self.emit(queue, Action.REMOVE)
        self.emit(device, Action.REMOVE)

    def _vsock(self, found: Object, record: Change) -> None:
        if record.detail == "new":
            self.emit(found, Action.ADD)
            self._front(found, record.subject, connected=getattr(record.subject.transport, "connected", False))
        else:
            self._changed(found, record.subject, record.detail)

    def _changed(self, found: Object, what: object, detail: str) -> None:
        """A front-end came or went, its driver became ready or was reset."""
        words = detail.split(", ")
        if "connected" in words:
            self._front(found, what, connected=True)
        for word, carrier in (("no carrier", "0"), ("carrier", "1")):
            if word in words:
                self.emit(found, Action.CHANGE, {"CARRIER": carrier})
        if "reset" in words:
            self.emit(found, Action.CHANGE, {"RESET": "1"})
        if "disconnected" in words:
            self._front(found, what, connected=False)

    def _front(self, found: Object, what: object, *, connected: bool) -> None:
        if self._fronts.get(what, False) != connected:
            self._fronts[what] = connected
            self.emit(found, Action.ONLINE if connected else Action.OFFLINE)
        if not connected:
            self._fronts.pop(what, None)


_RENAMED: Final = "renamed from "


def net_object(netns: NetNamespace, iface: Interface, name: str, index: int = 0) -> Object:
    """A network device; `name` and `index` as they were at the time."""
    environment = {"DEVTYPE": iface.kind} if iface.kind in _DEVICE_TYPES else {}
    environment |= {"INTERFACE": name, "IFINDEX": str(index or iface.index)}
    return Object(netns, f"{_NET}/{name}", "net", environment)


def queue_objects(netns: NetNamespace, iface: Interface, name: str) -> list[Object]:
    """Its queues, receiving ones first."""
    pairs = range(getattr(iface.device, "queue_pairs", 1))
    make = partial(Object, netns, subsystem="queues", environment={})
    return [make(devpath=f"{_NET}/{name}/queues/{kind}-{n}") for kind in ("rx", "tx") for n in pairs]


def vsock_object(netns: NetNamespace, guest: GuestPort) -> Object:
    """The vsock of one guest."""
    cid = str(guest.guest_cid)
    return Object(netns, f"{_VSOCK}/guest{cid}", "vsock", {"CID": cid})
