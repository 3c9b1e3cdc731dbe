"""RTM_GETSTATS: the 64-bit counters of links, without everything else about them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from stack.iface.changes import ChangeKind
from stack.socket.netlink.kernel import Request
from stack.socket.netlink.route.link import counters
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.link import STATISTICS
from stack.wire.netlink.rtnetlink import Rtm

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

LINK_64: Final = 1  #: the bit of IFLA_STATS_LINK_64 in the filter


def show(iface: Interface, mask: int) -> bytes:
    attributes = {"link_64": counters(iface)} if mask & LINK_64 else {}
    return STATISTICS.emit({"index": iface.index, "filter_mask": mask}, attributes)


def _mask(request: Request) -> int:
    if len(request.body) < STATISTICS.header_length:
        raise NetlinkError(errno.EINVAL, "Invalid header for stats dump" if request.wants_dump else "")
    fields = STATISTICS.parse_fields(request.body)
    if not fields["filter_mask"]:
        raise NetlinkError(errno.EINVAL, "Filter mask must be set for stats dump" if request.wants_dump else "")
    return fields["filter_mask"]


def get(netns: NetNamespace, request: Request) -> None:
    mask = _mask(request)
    index = STATISTICS.parse_fields(request.body)["index"]
    if not index:
        raise NetlinkError(errno.EINVAL)
    iface = netns.ip.interfaces.get(index)
    if iface is None:
        raise NetlinkError(errno.ENODEV)
    request.reply(Rtm.NEWSTATS, show(iface, mask))


def dump(netns: NetNamespace, request: Request) -> None:
    request.dump(_dump(netns, request), generation=lambda: netns.changes.counts[ChangeKind.NEW_LINK])


def _dump(netns: NetNamespace, request: Request) -> Iterator[tuple[int, bytes]]:
    mask = _mask(request)
    for _, iface in sorted(netns.ip.interfaces.items()):
        yield Rtm.NEWSTATS, show(iface, mask)
