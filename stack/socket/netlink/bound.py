"""A netlink socket with a port id: bound by the user, or by its first send or connect (rows NL-04, NL-05)."""

from __future__ import annotations

import errno
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.netlink.phase import NetlinkPhase

if TYPE_CHECKING:
    from stack.socket.netlink.socket import NetlinkAddress, NetlinkSocket


def set_groups(socket: NetlinkSocket, groups: AbstractSet[int]) -> None:
    """bind's mask replaces the memberships among the first 32 groups; those above stay."""
    endpoint = socket.endpoint
    for group in {each for each in endpoint.groups if each <= 32} - groups:
        socket.table.leave(endpoint, group)
    for group in groups - endpoint.groups:
        socket.table.join(endpoint, group)


class NetlinkBound(NetlinkPhase):
    __slots__ = ()

    def bind(self, address: NetlinkAddress) -> None:
        """Again, for other groups: the port id must be the same."""
        port, groups = address
        joined = self.socket.check_groups(groups)
        if port != self.socket.endpoint.port:
            raise NetError(errno.EINVAL)
        set_groups(self.socket, joined)
