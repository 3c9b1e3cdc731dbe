"""What changed in a namespace, told to the groups of NETLINK_ROUTE (row RT-17)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from stack.iface.changes import Change, ChangeKind
from stack.netns import IMPLIED, SILENT
from stack.socket.netlink.endpoint import KERNEL, Datagram
from stack.socket.netlink.kernel import Request
from stack.socket.netlink.route import address, link, neighbour, route, rule
from stack.wire.netlink.header import NLM_F_ECHO, pack
from stack.wire.netlink.rtnetlink import Group, Rtm

if TYPE_CHECKING:
    from stack.socket.netlink.tables import ProtocolTable

#: Changes whose messages carry the requester's port id and sequence number, and which NLM_F_ECHO repeats to him.
_ATTRIBUTED: Final = frozenset(
    {
        ChangeKind.NEW_ADDRESS,
        ChangeKind.DEL_ADDRESS,
        ChangeKind.NEW_ROUTE,
        ChangeKind.DEL_ROUTE,
        ChangeKind.NEW_RULE,
        ChangeKind.DEL_RULE,
    }
)


_OF_ADDRESSES: Final = frozenset({ChangeKind.NEW_ADDRESS, ChangeKind.DEL_ADDRESS})
#: Changes that are of no group here.
_OTHERS: Final = frozenset({ChangeKind.NEW_VSOCK, ChangeKind.DEL_VSOCK})


class Notifier:
    """Observes a namespace's changes. Costs a look at the group when nobody listens."""

    def __init__(self, table: ProtocolTable) -> None:
        self._table = table
        self._netns = table.netns
        self._request: Request | None = None
        self._cursor = self._netns.changes.end
        self._netns.changes.observers.append(self._drain)

    @contextmanager
    def on_behalf_of(self, request: Request) -> Iterator[None]:
        """Meanwhile changes are `request`'s."""
        changes = self._netns.changes
        self._request = request
        changes.origin = request.origin
        try:
            yield
        finally:
            self._request = None
            changes.origin = (0, 0)

    def _drain(self) -> None:
        """At once, while the subject still is as the change left it."""
        changes = self._netns.changes
        records, _ = changes.since(self._cursor)
        self._cursor = changes.end
        for record in records:
            self.observe(record)

    def observe(self, change: Change) -> None:
        if change.detail == SILENT or change.kind in _OTHERS:
            return
        if change.detail in ("carrier", "no carrier") and not change.subject.up:
            return  # Linux watches the carriers of links that are up
        if change.kind in _OF_ADDRESSES and change.ifindex not in self._netns.ip.interfaces:
            return  # the link is gone, and has been told of
        group = self._group(change)
        request = self._request
        echo = request is not None and bool(request.flags & NLM_F_ECHO) and change.kind in _ATTRIBUTED
        if not echo and not self._table.has_listeners(group):
            return
        kind, flags, body = self._message(change)
        port, seq = change.origin
        if change.kind is ChangeKind.NEW_NEIGHBOUR:
            seq = 0
        elif change.kind not in _ATTRIBUTED or _implied(change):
            port = seq = 0
        data = pack(kind, flags, seq, port, body)
        if echo and request is not None and port:
            self._table.multicast(group, data, skip=request.endpoint.port)
            request.endpoint.deliver(Datagram(data, 0, 0, KERNEL))
        else:
            self._table.multicast(group, data)

    def _group(self, change: Change) -> Group:
        match change.kind:
            case ChangeKind.NEW_LINK | ChangeKind.DEL_LINK:
                return Group.LINK
            case ChangeKind.NEW_NEIGHBOUR | ChangeKind.DEL_NEIGHBOUR:
                return Group.NEIGH
            case ChangeKind.NEW_ADDRESS | ChangeKind.DEL_ADDRESS:
                return Group.IPV4_IFADDR if len(change.subject.address) == 4 else Group.IPV6_IFADDR
            case ChangeKind.NEW_ROUTE | ChangeKind.DEL_ROUTE:
                return Group.IPV4_ROUTE if len(change.subject.network) == 4 else Group.IPV6_ROUTE
            case _:
                return Group.IPV4_RULE if change.subject.width == 4 else Group.IPV6_RULE

    def _message(self, change: Change) -> tuple[int, int, bytes]:
        """(type, flags, body)"""
        subject = change.subject
        gone = change.kind.startswith("del-")
        match change.kind:
            case ChangeKind.NEW_LINK | ChangeKind.DEL_LINK:
                kind = Rtm.DELLINK if gone else Rtm.NEWLINK
                return kind, 0, link.show(subject, change=link.changed_bits(change), gone=gone)
            case ChangeKind.NEW_NEIGHBOUR | ChangeKind.DEL_NEIGHBOUR:
                return Rtm.DELNEIGH if gone else Rtm.NEWNEIGH, 0, neighbour.show(subject, change.ifindex)
            case ChangeKind.NEW_ADDRESS | ChangeKind.DEL_ADDRESS:
                iface = self._netns.ip.interfaces[change.ifindex]
                return Rtm.DELADDR if gone else Rtm.NEWADDR, 0, address.show(iface, subject)
            case ChangeKind.NEW_ROUTE | ChangeKind.DEL_ROUTE:
                return (
                    Rtm.DELROUTE if gone else Rtm.NEWROUTE,
                    0 if gone else route.flags_of(change),
                    route.show(subject),
                )
            case _:
                return Rtm.DELRULE if gone else Rtm.NEWRULE, 0, rule.show(subject)


def _implied(change: Change) -> bool:
    """A route that only follows from an address: nobody asked for it."""
    return change.detail == IMPLIED
