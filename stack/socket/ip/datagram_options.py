"""What a UDP socket understands, and how it reaches the endpoint (sections 2.1, 2.2, 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.socket.families import AF_INET
from stack.socket.filter import attached, filter_level
from stack.socket.ip import memberships
from stack.socket.ip.options import (
    IP_MTU_DISCOVER,
    IP_MULTICAST_ALL,
    IP_MULTICAST_LOOP,
    IP_MULTICAST_TTL,
    IP_OPTIONS,
    IP_RECVERR,
    IP_RECVERR_RFC4884,
    IP_UNICAST_IF,
    IPPROTO_IP,
    IPPROTO_IPV6,
    ip_rows,
    multicast_interface,
    rows_beside6,
    tos_of,
    ttl_of,
    unicast_interface,
)
from stack.socket.ip.options6 import (
    IPV6_AUTOFLOWLABEL,
    IPV6_DONTFRAG,
    IPV6_DSTOPTS,
    IPV6_HOPOPTS,
    IPV6_MTU_DISCOVER,
    IPV6_MULTICAST_ALL,
    IPV6_MULTICAST_HOPS,
    IPV6_MULTICAST_IF,
    IPV6_MULTICAST_LOOP,
    IPV6_RECVERR,
    IPV6_RECVERR_RFC4884,
    IPV6_RECVPATHMTU,
    IPV6_RTHDR,
    IPV6_UNICAST_IF,
    datagram_rows6,
    path_mtu_limit,
    prefers_temporary,
    settled,
)
from stack.socket.ip.options_udp import (
    IPPROTO_UDP,
    UDP_GRO,
    UDP_NO_CHECK6_RX,
    UDP_NO_CHECK6_TX,
    UDP_SEGMENT,
    udp_rows,
)
from stack.socket.ip.peername import peer_name_row
from stack.socket.ip.wire_options import chain
from stack.socket.options import SOL_SOCKET, OptionTable
from stack.socket.options_device import SO_MARK, bound_interface
from stack.socket.options_socket import (
    SO_BROADCAST,
    SO_DONTROUTE,
    SO_NO_CHECK,
    SO_PRIORITY,
    SO_RCVBUF,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SO_SNDBUF,
    socket_level,
)

if TYPE_CHECKING:
    from stack.socket.ip.datagram import DatagramSocket
    from stack.udp import UdpEndpoint

_ROWS4: Final = [
    *socket_level(),
    *filter_level(),
    peer_name_row(),
    *ip_rows(stream=False),
    *memberships.rows4(),
    *udp_rows(),
]
#: AF_INET sockets do not know IPPROTO_IPV6, AF_INET6 ones know both.
DATAGRAM_OPTIONS: Final = OptionTable(_ROWS4)
DATAGRAM6_OPTIONS: Final = OptionTable([*rows_beside6(_ROWS4), *datagram_rows6(), *memberships.rows6()])


def apply(socket: DatagramSocket, endpoint: UdpEndpoint) -> None:
    """Bring the endpoint's live attributes up to what the socket has been told."""
    value = socket.options.value
    endpoint.broadcast = bool(value(SOL_SOCKET, SO_BROADCAST))
    endpoint.receive_limit = value(SOL_SOCKET, SO_RCVBUF)
    endpoint.send_limit = value(SOL_SOCKET, SO_SNDBUF)
    endpoint.direct = bool(value(SOL_SOCKET, SO_DONTROUTE))
    endpoint.mark = value(SOL_SOCKET, SO_MARK)
    endpoint.priority = value(SOL_SOCKET, SO_PRIORITY)
    endpoint.bind_ifindex = endpoint.bound.ifindex = bound_interface(socket)
    endpoint.filter = attached(socket.options)
    endpoint.no_checksum = bool(value(SOL_SOCKET, SO_NO_CHECK))
    endpoint.no_checksum6 = bool(value(IPPROTO_UDP, UDP_NO_CHECK6_TX))
    endpoint.zero_checksum6 = bool(value(IPPROTO_UDP, UDP_NO_CHECK6_RX))
    endpoint.segment = value(IPPROTO_UDP, UDP_SEGMENT)
    endpoint.coalesce = bool(value(IPPROTO_UDP, UDP_GRO))
    endpoint.bound.reuse_addr = bool(value(SOL_SOCKET, SO_REUSEADDR))  # live, row TCP-03
    endpoint.bound.reuse_port = bool(value(SOL_SOCKET, SO_REUSEPORT))
    v4 = endpoint.v4
    v4.hops = ttl_of(socket, version=4)
    v4.tos = tos_of(socket, version=4)
    v4.discover = value(IPPROTO_IP, IP_MTU_DISCOVER)
    v4.report_errors = bool(value(IPPROTO_IP, IP_RECVERR))
    v4.report_extensions = bool(value(IPPROTO_IP, IP_RECVERR_RFC4884))
    v4.multicast_hops = value(IPPROTO_IP, IP_MULTICAST_TTL)
    v4.loop = bool(value(IPPROTO_IP, IP_MULTICAST_LOOP))
    v4.multicast_ifindex, source = multicast_interface(socket)
    v4.multicast_source = source if any(source) else None
    v4.unicast_ifindex = unicast_interface(socket, IPPROTO_IP, IP_UNICAST_IF)
    v4.options = value(IPPROTO_IP, IP_OPTIONS)
    everything4 = bool(value(IPPROTO_IP, IP_MULTICAST_ALL))
    everything6 = True
    if socket.family != AF_INET:
        everything6 = bool(value(IPPROTO_IPV6, IPV6_MULTICAST_ALL))
        _apply6(socket, endpoint)
    if endpoint.groups is not None or not (everything4 and everything6):
        endpoint.listening.everything4, endpoint.listening.everything6 = everything4, everything6


def _apply6(socket: DatagramSocket, endpoint: UdpEndpoint) -> None:
    def value(number: int) -> int:
        return int(socket.options.value(IPPROTO_IPV6, number))

    v6 = endpoint.v6
    v6.hops = ttl_of(socket, version=6)
    v6.tos = tos_of(socket, version=6)
    v6.discover = value(IPV6_MTU_DISCOVER)
    v6.dont_fragment = bool(value(IPV6_DONTFRAG))
    v6.report_errors = bool(value(IPV6_RECVERR))
    v6.report_extensions = bool(value(IPV6_RECVERR_RFC4884))
    v6.multicast_hops = value(IPV6_MULTICAST_HOPS)
    v6.loop = bool(value(IPV6_MULTICAST_LOOP))
    v6.multicast_ifindex = value(IPV6_MULTICAST_IF)
    v6.report_mtu = bool(value(IPV6_RECVPATHMTU))
    v6.flow_label = bool(value(IPV6_AUTOFLOWLABEL))
    v6.longest = path_mtu_limit(socket)
    interface, source = settled(socket)
    v6.unicast_ifindex = interface or unicast_interface(socket, IPPROTO_IPV6, IPV6_UNICAST_IF)
    v6.source = source or None
    v6.temporary = prefers_temporary(socket)
    headers = (socket.options.value(IPPROTO_IPV6, number) for number in (IPV6_HOPOPTS, IPV6_RTHDR, IPV6_DSTOPTS))
    v6.extension = chain(*headers)
