"""The multicast half of a socket: its memberships and their source filters, with the errors Linux gives.

What IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, IP_BLOCK_SOURCE, MCAST_MSFILTER and their likes map to (RFC 3678).
Groups and sources are raw bytes of one family, interfaces are indexes; 0 is the one that routing would send through.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.ip.groups import EVERYBODY, Membership, SourceFilter
from stack.wire import ipv4, ipv6

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IpPacket

MAX_MEMBERSHIPS: Final = 20  # of IPv4; Linux: net.ipv4.igmp_max_memberships


def is_group(address: bytes) -> bool:
    """224/4 or ff00::/8"""
    return ipv4.is_multicast(address) if len(address) == 4 else ipv6.is_multicast(address)


class Listening:
    """The groups of one socket."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._memberships: dict[tuple[bytes, int], Membership] = {}
        self.everything4 = True  #: IP_MULTICAST_ALL: groups that only others joined, too
        self.everything6 = True  #: IPV6_MULTICAST_ALL

    def join(self, group: bytes, ifindex: int = 0) -> None:
        """Raises NetError: EINVAL (no group), ENODEV, EADDRINUSE (joined already), ENOBUFS."""
        iface = self._interface(group, ifindex)
        if (group, iface.index) in self._memberships:
            raise NetError(errno.EADDRINUSE)
        self._add(group, iface, EVERYBODY)

    def leave(self, group: bytes, ifindex: int = 0) -> None:
        """Raises NetError: EINVAL, EADDRNOTAVAIL (not joined, or no such interface)."""
        if not ifindex and is_group(group):
            found = next((key for key in self._memberships if key[0] == group), None)
            if found is not None:
                self._memberships.pop(found).leave()
                return
        try:
            index = self._interface(group, ifindex).index
        except NetError as failure:
            raise NetError(errno.EADDRNOTAVAIL if failure.errno == errno.ENODEV else failure.errno) from None
        membership = self._memberships.pop((group, index), None)
        if membership is None:
            raise NetError(errno.EADDRNOTAVAIL)
        membership.leave()

    def add_source(self, group: bytes, source: bytes, ifindex: int = 0) -> None:
        """Join for one sender, or for one more. Raises NetError: EINVAL (joined for all), EADDRNOTAVAIL (is in)."""
        iface = self._interface(group, ifindex)
        membership = self._memberships.get((group, iface.index))
        if membership is None:
            self._add(group, iface, SourceFilter(exclude=False, sources=frozenset((source,))))
            return
        if membership.filter.exclude:
            raise NetError(errno.EINVAL)
        if source in membership.filter.sources:
            raise NetError(errno.EADDRNOTAVAIL)
        membership.set(SourceFilter(exclude=False, sources=membership.filter.sources | {source}))

    def drop_source(self, group: bytes, source: bytes, ifindex: int = 0) -> None:
        """The opposite; with its last source the group is left. Raises NetError: EINVAL, EADDRNOTAVAIL."""
        membership = self._joined(group, ifindex, exclude=False)
        if source not in membership.filter.sources:
            raise NetError(errno.EADDRNOTAVAIL)
        rest = membership.filter.sources - {source}
        if rest:
            membership.set(SourceFilter(exclude=False, sources=rest))
        else:
            del self._memberships[group, membership.iface.index]
            membership.leave()

    def block(self, group: bytes, source: bytes, ifindex: int = 0) -> None:
        """Of a group joined for all: not this sender. Raises NetError: EINVAL, EADDRNOTAVAIL (is blocked)."""
        membership = self._joined(group, ifindex, exclude=True)
        if source in membership.filter.sources:
            raise NetError(errno.EADDRNOTAVAIL)
        membership.set(SourceFilter(exclude=True, sources=membership.filter.sources | {source}))

    def unblock(self, group: bytes, source: bytes, ifindex: int = 0) -> None:
        """The opposite of `block`. Raises NetError: EINVAL, EADDRNOTAVAIL (is not blocked)."""
        membership = self._joined(group, ifindex, exclude=True)
        if source not in membership.filter.sources:
            raise NetError(errno.EADDRNOTAVAIL)
        membership.set(SourceFilter(exclude=True, sources=membership.filter.sources - {source}))

    def set_filter(self, group: bytes, ifindex: int, *, exclude: bool, sources: Iterable[bytes]) -> None:
        """Replace the whole filter; INCLUDE nobody leaves.

        Raises NetError: EINVAL (not joined), EADDRNOTAVAIL (to be left and not joined), ENOBUFS.
        """
        wanted = SourceFilter(exclude, frozenset(sources))
        if not exclude and not wanted.sources:
            self.leave(group, self._interface(group, ifindex).index)
        else:
            self._joined(group, ifindex).set(wanted)

    def filter_of(self, group: bytes, ifindex: int = 0) -> SourceFilter:
        """Raises NetError(EADDRNOTAVAIL) for a group that was not joined."""
        membership = self._memberships.get((group, self._interface(group, ifindex).index))
        if membership is None:
            raise NetError(errno.EADDRNOTAVAIL)
        return membership.filter

    def hears(self, packet: IpPacket, ifindex: int) -> bool:
        """Does the socket want this packet to a group, which came in, or if it is our own left, through `ifindex`?"""
        membership = self._memberships.get((packet.dst, ifindex))
        if membership is None:
            return self.everything4 if packet.version == 4 else self.everything6
        return membership.filter.allows(packet.src)

    def close(self) -> None:
        """Leave everything. Idempotent."""
        memberships, self._memberships = self._memberships, {}
        for each in memberships.values():
            each.leave()

    def __len__(self) -> int:
        return len(self._memberships)

    def _add(self, group: bytes, iface: Interface, wanted: SourceFilter) -> None:
        if len(group) == 4 and sum(len(key[0]) == 4 for key in self._memberships) >= MAX_MEMBERSHIPS:
            raise NetError(errno.ENOBUFS)
        self._memberships[group, iface.index] = self._ip.groups.join(group, iface, wanted)

    def _joined(self, group: bytes, ifindex: int, *, exclude: bool | None = None) -> Membership:
        membership = self._memberships.get((group, self._interface(group, ifindex).index))
        if membership is None or (exclude is not None and membership.filter.exclude is not exclude):
            raise NetError(errno.EINVAL)
        return membership

    def _interface(self, group: bytes, ifindex: int) -> Interface:
        if not is_group(group):
            raise NetError(errno.EINVAL)
        if ifindex:
            iface = self._ip.interfaces.get(ifindex)
            if iface is None:
                raise NetError(errno.ENODEV)
            return iface
        try:
            return self._ip.route(group).iface
        except NetError:
            raise NetError(errno.ENODEV) from None
