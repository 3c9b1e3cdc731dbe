"""`RouteService`: which handler a NETLINK_ROUTE request goes to (rows RT-E2..RT-E4, RT-E14)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from stack.socket.netlink.kernel import KernelSocket, Request
from stack.socket.netlink.route import address, link, neighbour, route, rule, statistics
from stack.socket.netlink.route.notify import Notifier
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.rtnetlink import RTM_MAX, Rtm

if TYPE_CHECKING:
    from stack.netns import NetNamespace
    from stack.socket.netlink.tables import ProtocolTable

#: (namespace, request); raises NetlinkError or NetError before it changes anything.
Handler: TypeAlias = Callable[["NetNamespace", Request], None]

_GET: Final = 2  #: of each group of four types: NEW 0, DEL 1, GET 2, SET 3

CHANGES: Final[dict[int, Handler]] = {
    Rtm.NEWLINK: link.new,
    Rtm.SETLINK: link.change,
    Rtm.DELLINK: link.delete,
    Rtm.NEWADDR: address.new,
    Rtm.DELADDR: address.delete,
    Rtm.NEWROUTE: route.new,
    Rtm.DELROUTE: route.delete,
    Rtm.NEWNEIGH: neighbour.new,
    Rtm.DELNEIGH: neighbour.delete,
    Rtm.NEWRULE: rule.new,
    Rtm.DELRULE: rule.delete,
}
ANSWERS: Final[dict[int, Handler]] = {
    Rtm.GETLINK: link.get,
    Rtm.GETADDR: address.get,
    Rtm.GETROUTE: route.get,
    Rtm.GETNEIGH: neighbour.get,
    Rtm.GETSTATS: statistics.get,
}
DUMPS: Final[dict[int, Handler]] = {
    Rtm.GETLINK: link.dump,
    Rtm.GETADDR: address.dump,
    Rtm.GETROUTE: route.dump,
    Rtm.GETNEIGH: neighbour.dump,
    Rtm.GETNEIGHTBL: neighbour.dump_tables,
    Rtm.GETRULE: rule.dump,
    Rtm.GETSTATS: statistics.dump,
}


class RouteService(KernelSocket):
    """Port 0 of NETLINK_ROUTE."""

    def __init__(self, table: ProtocolTable) -> None:
        self.netns = table.netns
        self.notifier = Notifier(table)

    def handle(self, request: Request) -> None:
        if request.type > RTM_MAX:
            raise NetlinkError(errno.EOPNOTSUPP)
        if not request.body:
            return  # not even a family: Linux lets it pass
        if request.type & 3 == _GET:
            handlers = DUMPS if request.wants_dump else ANSWERS
        else:
            if not request.capable:
                raise NetlinkError(errno.EPERM)
            handlers = CHANGES
        handler = handlers.get(request.type)
        if handler is None:
            raise NetlinkError(errno.EOPNOTSUPP)
        with self.notifier.on_behalf_of(request):
            handler(self.netns, request)
