"""Who listens: ports and multicast groups, per protocol and per network namespace (rows NL-03, NL-04, NL-11)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.netlink.endpoint import KERNEL, Datagram, Endpoint
from stack.wire.netlink.header import NETLINK_GENERIC, NETLINK_KOBJECT_UEVENT, NETLINK_ROUTE, NETLINK_USERSOCK
from stack.wire.netlink.rtnetlink import PRIVILEGED_GROUPS, RTNLGRP_MAX

if TYPE_CHECKING:
    from stack.netns import NetNamespace

#: Handles what a socket sends to the kernel: (the sender, its bytes, whether it may change the network).
KernelSide = Callable[[Endpoint, bytes, bool], None]

_U32: Final = 0xFFFFFFFF
#: Where automatic port ids begin when the process's own is taken: negative as an int, as Linux's.
_FIRST_ROVER: Final = -4096
_LOWEST_ROVER: Final = -(2**31)


@dataclass(frozen=True, slots=True)
class Protocol:
    """One protocol of AF_NETLINK: `groups` is how many there are; who may without CAP_NET_ADMIN send or join."""

    number: int
    groups: int
    anyone_receives: bool
    anyone_sends: bool = False
    privileged_groups: frozenset[int] = frozenset()


PROTOCOLS: Final = {
    each.number: each
    for each in (
        Protocol(NETLINK_ROUTE, RTNLGRP_MAX, anyone_receives=True, privileged_groups=PRIVILEGED_GROUPS),
        Protocol(NETLINK_USERSOCK, 32, anyone_receives=False, anyone_sends=True),
        Protocol(NETLINK_KOBJECT_UEVENT, 32, anyone_receives=True),
        Protocol(NETLINK_GENERIC, 32, anyone_receives=True),
    )
}


class ProtocolTable:
    """The sockets of one protocol in one namespace."""

    def __init__(self, netns: NetNamespace, protocol: Protocol) -> None:
        self.netns = netns
        self.protocol = protocol
        self.ports: dict[int, Endpoint] = {}
        self._members: dict[int, dict[Endpoint, None]] = {}  # in order of joining
        self.kernel: KernelSide | None = None  #: who is port 0; None: nobody, and sending there is refused

    # --- ports ----------------------------------------------------------------------------------------------------

    def bind(self, endpoint: Endpoint, port: int) -> None:
        """Raises NetError(EADDRINUSE)."""
        if port in self.ports:
            raise NetError(errno.EADDRINUSE)
        self.ports[port] = endpoint
        endpoint.port = port

    def autobind(self, endpoint: Endpoint, pid: int) -> None:
        """The process's id if that is free, else one of Linux's negative numbers."""
        port = pid
        rover = _FIRST_ROVER
        while port in self.ports:
            port = rover & _U32
            rover = self.netns.scheduler.rng.randrange(_LOWEST_ROVER, _FIRST_ROVER)
        self.bind(endpoint, port)

    # --- groups ---------------------------------------------------------------------------------------------------

    def join(self, endpoint: Endpoint, group: int) -> None:
        endpoint.groups.add(group)
        self._members.setdefault(group, {})[endpoint] = None

    def leave(self, endpoint: Endpoint, group: int) -> None:
        endpoint.groups.discard(group)
        self._members.get(group, {}).pop(endpoint, None)

    def has_listeners(self, group: int) -> bool:
        return bool(self._members.get(group))

    def forget(self, endpoint: Endpoint) -> None:
        """Closed: no port, no groups."""
        for group in tuple(endpoint.groups):
            self.leave(endpoint, group)
        if self.ports.get(endpoint.port) is endpoint:
            del self.ports[endpoint.port]

    # --- delivery -------------------------------------------------------------------------------------------------

    def multicast(
        self,
        group: int,
        data: bytes,
        *,
        pid: int = 0,
        credentials: tuple[int, int, int] = KERNEL,
        without: Endpoint | None = None,
        skip: int = 0,
    ) -> None:
        """A copy for every member but `without` and the one with port `skip`; whose queue overruns learns of it itself.

        As on Linux a member that never bound, with port 0, is skipped unless another is.
        """
        datagram = Datagram(data, pid, group, credentials)
        for endpoint in tuple(self._members.get(group, ())):
            if endpoint is not without and endpoint.port != skip:
                endpoint.deliver(datagram)


class NetlinkTables:
    """All protocols of one namespace."""

    def __init__(self, netns: NetNamespace) -> None:
        from stack.socket.netlink.generic import Controller
        from stack.socket.netlink.route.service import RouteService

        self._tables = {number: ProtocolTable(netns, protocol) for number, protocol in PROTOCOLS.items()}
        self._tables[NETLINK_ROUTE].kernel = RouteService(self._tables[NETLINK_ROUTE]).receive
        self._tables[NETLINK_GENERIC].kernel = Controller(self._tables[NETLINK_GENERIC]).receive
        self._tables[NETLINK_KOBJECT_UEVENT].kernel = _deaf

    def __getitem__(self, protocol: int) -> ProtocolTable:
        return self._tables[protocol]


def _deaf(endpoint: Endpoint, data: bytes, capable: bool) -> None:
    """The kernel's end of NETLINK_KOBJECT_UEVENT takes what is sent and does nothing with it (row UE-06)."""


def tables_of(netns: NetNamespace) -> NetlinkTables:
    """The namespace's tables, made when they are first asked for."""
    if netns.netlink is None:
        netns.netlink = NetlinkTables(netns)
    return netns.netlink


def multicast(netns: NetNamespace, protocol: int, group: int, payload: bytes) -> None:
    """Send `payload` from the kernel to a group's members. Lock held; cheap when nobody listens."""
    if netns.netlink is not None:
        netns.netlink[protocol].multicast(group, payload)
