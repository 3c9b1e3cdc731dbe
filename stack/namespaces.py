"""The network namespaces of a node: made, held, and ended when nobody holds them any more (network_namespaces(7)).

A namespace lives while something holds it: its name (`Stack.add_netns`, as the file below /run/netns does), a task that
is in it, a socket that was made in it, an open handle (`Stack.keeping`, as a descriptor of /proc/PID/ns/net does). With
the last of them it ends, as on Linux: links made by kind go, and with them their peers wherever they are; what was
plugged in goes back to the node's own namespace. That one lives as long as its node.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING

from stack.credentials import Capability, Credentials, UserNamespace
from stack.errors import NetError
from stack.netns import NetNamespace

if TYPE_CHECKING:
    from stack.core import World
    from stack.iface.interface import Interface
    from stack.kobjects import Events


class NetNamespaces:
    """Those of one Stack, the first being the node's own. Lock held by the caller, always."""

    def __init__(self, network: World, events: Events, on_end: Callable[[NetNamespace], None]) -> None:
        """`on_end` is told of each that ended."""
        self._network = network
        self._events = events
        self._on_end = on_end
        self._all: list[NetNamespace] = []
        self._names: dict[NetNamespace, object] = {}  # the holds of those that have one
        self._unheld: list[NetNamespace] = []

    def __iter__(self) -> Iterator[NetNamespace]:
        return iter(self._all)

    @property
    def own(self) -> NetNamespace:
        """The node's own."""
        return self._all[0]

    def make(self, user_ns: UserNamespace, name: str = "", *, up: bool = False) -> NetNamespace:
        """A new one, held by nobody yet."""
        network = self._network
        netns = NetNamespace(network.scheduler, name=name, user_ns=user_ns)
        if not up:
            netns.set_up(netns.lo, False)
        for interface in netns.interfaces.values():
            network.attach_locked(interface)
        netns.attach = network.attach_locked
        netns.detach = network.detach_locked
        if self._all:
            netns.on_unheld = self._let_go
        self._all.append(netns)
        self._events.watch(netns)
        return netns

    def name(self, netns: NetNamespace) -> None:
        """Its name holds it from now on, until `remove`."""
        self._names[netns] = netns.hold()

    def remove(self, netns: NetNamespace, credentials: Credentials) -> None:
        """The name goes, and with it the namespace unless something else holds it.

        Raises NetError: EBUSY for the node's own and for one that is not here, EINVAL for one without a name, EPERM
        without CAP_SYS_ADMIN in its owner.
        """
        if netns not in self._all or netns is self.own:
            raise NetError(errno.EBUSY, "this namespace is the node's own, or not of this Stack")
        if netns not in self._names:
            raise NetError(errno.EINVAL, "this namespace has no name to be removed")
        if not credentials.may(Capability.SYS_ADMIN, netns.user_ns):
            raise NetError(errno.EPERM)
        netns.let_go(self._names.pop(netns))

    def move(self, name: str, here: NetNamespace, there: NetNamespace, credentials: Credentials) -> Interface:
        """See `Stack.move_interface`."""
        for each in (here, there):
            if not credentials.may(Capability.NET_ADMIN, each.user_ns):
                raise NetError(errno.EPERM)
        interface = here.interface(name)
        there.adopt(interface)
        return interface

    def close(self) -> None:
        """All of them end, with everything in them."""
        for netns in reversed(self._all):
            self._end(netns)
        self._all.clear()

    def _let_go(self, netns: NetNamespace) -> None:
        """The last hold is gone: at the end of the turn, for this one may be in the middle of something there."""
        self._unheld.append(netns)
        self._network.scheduler.defer(self._reap)

    def _reap(self) -> None:
        unheld, self._unheld = self._unheld, []
        for netns in unheld:
            if netns in self._all and not netns.held:
                self._bring_home(netns)
                self._end(netns)
                self._all.remove(netns)

    def _bring_home(self, netns: NetNamespace) -> None:
        """What was plugged in goes back, as `dev0`, `dev1`... if its name is taken there."""
        own = self.own
        for interface in netns.interfaces.values():
            if not interface.kind and not interface.loopback:
                free = (f"dev{number}" for number in count())
                taken = interface.name in own.interfaces
                own.adopt(interface, next(each for each in free if each not in own.interfaces) if taken else None)

    def _end(self, netns: NetNamespace) -> None:
        netns.on_unheld = None
        for interface in netns.interfaces.values():
            self._network.detach_locked(interface)
        netns.close()
        self._events.unwatch(netns.changes)
        self._on_end(netns)
