"""A netlink socket without a port id. It may be member of groups already (row NL-04)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.socket.netlink.bound import NetlinkBound, set_groups
from stack.socket.netlink.phase import NetlinkPhase

if TYPE_CHECKING:
    from stack.socket.netlink.socket import NetlinkAddress


class NetlinkUnbound(NetlinkPhase):
    __slots__ = ()

    def bind(self, address: NetlinkAddress) -> None:
        port, groups = address
        socket = self.socket
        joined = socket.check_groups(groups)
        if port:
            socket.table.bind(socket.endpoint, port)
            socket.phase = NetlinkBound(socket)
        else:
            self.ensure_bound()
        set_groups(socket, joined)

    def ensure_bound(self) -> None:
        socket = self.socket
        socket.table.autobind(socket.endpoint, socket.pid)
        socket.phase = NetlinkBound(socket)
