"""What a UDP socket understands, and how it reaches the endpoint (sections 2.1, 2.2, 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.socket.ip.options import IP_MTU_DISCOVER, IPPROTO_IP, ip_level, tos_of, ttl_of
from stack.socket.options import SOL_SOCKET, OptionTable
from stack.socket.options_socket import SO_BROADCAST, SO_RCVBUF, SO_REUSEADDR, SO_REUSEPORT, socket_level

if TYPE_CHECKING:
    from stack.socket.ip.datagram import DatagramSocket
    from stack.udp import UdpEndpoint

DATAGRAM_OPTIONS: Final = OptionTable([*socket_level(), *ip_level(tos_keeps_ecn=False)])


def apply(socket: DatagramSocket, endpoint: UdpEndpoint) -> None:
    """Bring the endpoint's live attributes up to what the socket has been told."""
    values = socket.options
    endpoint.broadcast = bool(values.value(SOL_SOCKET, SO_BROADCAST))
    endpoint.receive_limit = values.value(SOL_SOCKET, SO_RCVBUF)
    endpoint.v4.discover = values.value(IPPROTO_IP, IP_MTU_DISCOVER)
    endpoint.v4.hops, endpoint.v6.hops = ttl_of(socket, version=4), ttl_of(socket, version=6)
    endpoint.v4.tos, endpoint.v6.tos = tos_of(socket, version=4), tos_of(socket, version=6)
    endpoint.bound.reuse_addr = bool(values.value(SOL_SOCKET, SO_REUSEADDR))  # live, row TCP-03
    endpoint.bound.reuse_port = bool(values.value(SOL_SOCKET, SO_REUSEPORT))
