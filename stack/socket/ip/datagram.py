"""UDP sockets (rows UDP-01..17): the socket object; its phases are `datagram_unbound` and `datagram_bound`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from stack.errors import NetError
from stack.socket.base import Socket
from stack.socket.ip import IPPROTO_UDP, SOCK_DGRAM
from stack.socket.ip.address import IpAddress, address_in, address_out
from stack.socket.ip.datagram_bound import DatagramBound
from stack.socket.ip.datagram_options import DATAGRAM_OPTIONS
from stack.socket.ip.datagram_unbound import DatagramUnbound
from stack.socket.options import OptionTable

if TYPE_CHECKING:
    from stack.socket.base import Host


class DatagramSocket(Socket):
    """socket(AF_INET or AF_INET6, SOCK_DGRAM)."""

    options_table: ClassVar[OptionTable] = DATAGRAM_OPTIONS

    def __init__(self, host: Host, family: int) -> None:
        super().__init__(host, SOCK_DGRAM, IPPROTO_UDP)
        self.family = family
        self.phase = DatagramUnbound(self)

    def address_in(self, address: object) -> IpAddress:
        return address_in(self.host, self.family, address)

    def address_out(self, address: IpAddress) -> object:
        return address_out(self.family, address)

    def is_bound(self) -> bool:
        return isinstance(self.phase, DatagramBound)

    def path_mtu(self) -> int:
        """IP_MTU: of the route to the peer, bytes. Raises NetError(ENOTCONN)."""
        phase = self.phase
        if not isinstance(phase, DatagramBound) or phase.endpoint.remote is None:
            raise NetError(errno.ENOTCONN)
        ip = self.host.netns.ip
        return ip.mtu_for(ip.route(phase.endpoint.remote[0]))
