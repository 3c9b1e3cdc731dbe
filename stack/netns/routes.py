"""The routes and rules of a network namespace, and the records of their changes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from stack.errors import NetError
from stack.iface.address import network_of, parse_address, parse_prefix
from stack.iface.changes import ChangeKind, ChangeLog
from stack.iface.interface import Interface
from stack.ip.layer import IpLayer
from stack.ip.policy import RoutingPolicy, Rule
from stack.ip.route import RouteEntry, RouteKind
from stack.netns.implied import METRIC6_USER
from stack.netns.marks import IMPLIED

PROTOCOL_STATIC: Final = 4  # RTPROT_STATIC


class Routes:
    """The part of a `NetNamespace` that is about routes; the rest fills in what is declared here."""

    ip: IpLayer
    changes: ChangeLog
    _by_name: dict[str, Interface]

    def interface(self, which: str | int) -> Interface:
        """By name or index. Raises NetError(ENODEV)."""
        found = self._by_name.get(which) if isinstance(which, str) else self.ip.interfaces.get(which)
        if found is None:
            raise NetError(errno.ENODEV, f"no interface {which!r} here; there are: {', '.join(self._by_name)}")
        return found

    @property
    def routes(self) -> list[RouteEntry]:
        """Both families, longest prefixes first."""
        return [*self.ip.routes4, *self.ip.routes6]

    def add_route(
        self,
        dst: str,
        gateway: str | None = None,
        dev: str | Interface | None = None,
        metric: int | None = None,
        *,
        src: str | None = None,
        kind: RouteKind = RouteKind.UNICAST,
        protocol: int = PROTOCOL_STATIC,
    ) -> RouteEntry:
        """A route to `dst` (``10.1.0.0/16``, ``default``) by way of `gateway`, interface `dev`, or both (IF-15).

        Raises ValueError for text that is no address or a prefix with host bits set, NetError: EEXIST, ENODEV (no such
        interface, or neither gateway nor dev), ENETUNREACH (the gateway is on no subnet of ours).
        """
        via = None if gateway is None else parse_address(gateway)
        if dst == "default":
            width = 4 if via is None else len(via)
            network, length = bytes(width), 0
        else:
            network, length = parse_prefix(dst)
            if network_of(network, length) != network:
                raise ValueError(f"host bits are set in {dst!r}")
        iface = self.interface(dev) if isinstance(dev, str) else dev
        if kind == RouteKind.UNICAST and iface is None:
            if via is None:
                raise NetError(errno.ENODEV, f"a route to {dst} needs a gateway or a device")
            iface = next(
                (each for each in self._by_name.values() if any(one.covers(via) for one in each.addresses)), None
            )
            if iface is None:
                raise NetError(errno.ENETUNREACH, f"gateway {gateway} is on no subnet of ours")
        if metric is None:
            metric = 0 if len(network) == 4 else METRIC6_USER
        source = None if src is None else parse_address(src)
        entry = RouteEntry(network, length, iface, gateway=via, metric=metric, src=source, kind=kind, protocol=protocol)
        if not self.ip.add_route(entry):
            raise NetError(errno.EEXIST, f"there is a route to {dst} like this already")
        self.changes.append(ChangeKind.NEW_ROUTE, entry, iface.index if iface else 0)
        return entry

    def put_route(self, entry: RouteEntry, how: str = "") -> None:
        """As `add_route`, of an entry made already; `how` goes into the record. Raises NetError(EEXIST)."""
        if not self.ip.add_route(entry):
            raise NetError(errno.EEXIST)
        self.changes.append(ChangeKind.NEW_ROUTE, entry, entry.iface.index if entry.iface else 0, how)

    def replace_route(self, old: RouteEntry, new: RouteEntry) -> None:
        """`new` in the place of `old`; there is no moment without either."""
        self.ip.add_route(new)
        self.ip.remove_route(old)
        self.changes.append(ChangeKind.NEW_ROUTE, new, new.iface.index if new.iface else 0, "replaced")

    def add_rule(self, policy: RoutingPolicy, rule: Rule) -> None:
        """A rule for one family's lookups."""
        policy.add_rule(rule)
        self.ip.invalidate()
        self.changes.append(ChangeKind.NEW_RULE, rule, 0)

    def remove_rule(self, policy: RoutingPolicy, rule: Rule) -> None:
        policy.remove_rule(rule)
        self.ip.invalidate()
        self.changes.append(ChangeKind.DEL_RULE, rule, 0)

    def remove_route(self, entry: RouteEntry) -> None:
        """Raises NetError(ESRCH) if it is not there."""
        if not self.ip.remove_route(entry):
            raise NetError(errno.ESRCH, f"no such route: {entry}")
        self.changes.append(ChangeKind.DEL_ROUTE, entry, entry.iface.index if entry.iface else 0)

    def _table(self, address: bytes) -> Iterable[RouteEntry]:
        return self.ip.routes4 if len(address) == 4 else self.ip.routes6

    def _tell_route(self, kind: ChangeKind, entry: RouteEntry | None) -> None:
        if entry is not None and entry.iface is not None:
            self.changes.append(kind, entry, entry.iface.index, IMPLIED)
