"""Next-hop determination (RFC 4861 section 5.2, RFC 1122 section 3.3.1): where a packet goes, and from which address.

Our own addresses come first, then broadcasts, then groups through a given interface; for everything else the routing
tables are asked. What comes out is a `Route`, which `IpLayer.route` keeps for who asks again.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.ip.packet import PacketKind
from stack.ip.route import Route, RouteKind
from stack.ip.source import select4
from stack.wire import ipv4, ipv6

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer
    from stack.ip.pmtu import PathMtus

_REFUSALS: Final = {
    RouteKind.BLACKHOLE: errno.EINVAL,
    RouteKind.UNREACHABLE: errno.EHOSTUNREACH,
    RouteKind.PROHIBIT: errno.EACCES,
}


def is_group(address: bytes) -> bool:
    """Whether it is a multicast address."""
    return 224 <= address[0] <= 239 if len(address) == 4 else address[0] == 0xFF


class NextHops:
    """Of one namespace."""

    def __init__(self, ip: IpLayer, path_mtus: PathMtus) -> None:
        self._ip = ip
        self._path_mtus = path_mtus

    def determine(self, dst: bytes, src: bytes | None, oif: int, mark: int) -> Route:
        """See `IpLayer.route`, which remembers what comes out."""
        ip = self._ip
        if oif and oif not in ip.interfaces:
            raise NetError(errno.ENODEV)
        width = len(dst)
        if not any(dst):
            dst = ipv4.LOOPBACK if width == 4 else ipv6.LOOPBACK
        kind = ip.local.get(dst)
        if oif and kind is PacketKind.UNICAST and width == 16 and ipv6.is_link_local(dst) and not self._has(oif, dst):
            kind = None  # ours on another link
        if kind is PacketKind.UNICAST or (width == 4 and ipv4.is_loopback(dst) and kind is not PacketKind.BROADCAST):
            if not ip.loopback.up:
                raise NetError(errno.ENETUNREACH)
            return self._make(ip.loopback, src or dst, dst, dst, RouteKind.LOCAL)
        if kind is PacketKind.BROADCAST or dst == ipv4.LIMITED_BROADCAST:
            iface = self._broadcast_interface(dst, src, oif)
            return self._make(iface, src or self._source(iface, dst, dst), dst, dst, RouteKind.BROADCAST)
        group = is_group(dst)
        if group and oif:
            iface = ip.interfaces[oif]
            return self._make(iface, src or self._source(iface, dst, dst), dst, dst, RouteKind.MULTICAST)
        entry = ip.table(dst).lookup(dst, oif, src, mark)
        if entry is None:
            raise NetError(errno.ENETUNREACH)
        if entry.iface is None:
            raise NetError(_REFUSALS.get(entry.kind, errno.ENETUNREACH))
        iface, gateway = entry.hop(dst, src, oif)
        if gateway is not None and ip.local.get(gateway) is PacketKind.UNICAST:
            gateway = None  # our own address stands for the link, as on Linux
        next_hop = dst if group or gateway is None else gateway
        route_kind = RouteKind.MULTICAST if group else RouteKind.UNICAST
        source = src or entry.src or self._source(iface, dst, next_hop)
        route = self._make(iface, source, dst, next_hop, route_kind)
        if entry.metrics:
            route.mtu = min(route.mtu, entry.metrics.get("mtu") or route.mtu)
        return route

    def _has(self, index: int, address: bytes) -> bool:
        return any(each.address == address for each in self._ip.interfaces[index].addresses)

    def _make(self, iface: Interface, src: bytes, dst: bytes, next_hop: bytes, kind: RouteKind) -> Route:
        # lo's 65536 is more than IPv4 can say
        mtu = self._ip.mtu6(iface) if len(dst) == 16 else min(iface.mtu, ipv4.MAX_TOTAL_LENGTH)
        known = self._path_mtus.get(dst)
        if known is not None:
            mtu = min(mtu, known)
        return Route(iface, src, dst, next_hop, mtu, kind, self._ip.generation)

    def _broadcast_interface(self, dst: bytes, src: bytes | None, oif: int) -> Interface:
        """Whose subnet `dst` is the broadcast of; for 255.255.255.255 the source's or the default route's."""
        ip = self._ip
        if oif:
            return ip.interfaces[oif]
        if ipv4.is_loopback(dst):
            return ip.loopback
        for iface in ip.interfaces.values():
            for each in iface.addresses:
                ours = dst in (each.broadcast, each.network) or each.address == src
                if iface.up and ours and each.broadcast is not None:
                    return iface
        entry = ip.routes4.lookup(dst)
        if entry is None or entry.iface is None:
            raise NetError(errno.ENETUNREACH)
        return entry.iface

    def _source(self, iface: Interface, dst: bytes, next_hop: bytes) -> bytes:
        """The address to send from, see `stack.ip.source`."""
        ip = self._ip
        if len(dst) == 16:
            found = ip.source_selection.select6(dst, iface, ip.interfaces.values())
            if found is None:
                raise NetError(errno.EADDRNOTAVAIL)
            return found
        # An interface not yet configured may still ask for an address.
        return select4(next_hop, iface, ip.interfaces.values(), on_link=dst == next_hop) or ipv4.ANY
