"""What a UDP socket understands, and how it reaches the endpoint (sections 2.1, 2.2, 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.socket.families import AF_INET
from stack.socket.ip.options import IP_MTU_DISCOVER, IPPROTO_IP, ip_level, tos_of, ttl_of
from stack.socket.options import SOL_SOCKET, OptionTable
from stack.socket.options_socket import SO_BROADCAST, SO_RCVBUF, SO_REUSEADDR, SO_REUSEPORT, socket_level

if TYPE_CHECKING:
    from stack.socket.ip.datagram import DatagramSocket
    from stack.udp import UdpEndpoint

#: IP_PMTUDISC_DO, IP_PMTUDISC_PROBE: datagrams are never fragmented.
_NEVER_FRAGMENT: Final = (2, 3)

DATAGRAM_OPTIONS: Final = OptionTable([*socket_level(), *ip_level(tos_keeps_ecn=False)])


def apply(socket: DatagramSocket, endpoint: UdpEndpoint) -> None:
    """Bring the endpoint's live attributes up to what the socket has been told."""
    values = socket.options
    version = 4 if socket.family == AF_INET else 6
    endpoint.broadcast = bool(values.value(SOL_SOCKET, SO_BROADCAST))
    endpoint.receive_limit = values.value(SOL_SOCKET, SO_RCVBUF)
    endpoint.dont_fragment = values.value(IPPROTO_IP, IP_MTU_DISCOVER) in _NEVER_FRAGMENT
    endpoint.ttl = ttl_of(socket, version=version)
    endpoint.tos = tos_of(socket, version=version)
    endpoint.bound.reuse_addr = bool(values.value(SOL_SOCKET, SO_REUSEADDR))  # live, row TCP-03
    endpoint.bound.reuse_port = bool(values.value(SOL_SOCKET, SO_REUSEPORT))
