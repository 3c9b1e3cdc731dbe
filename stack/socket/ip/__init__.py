"""AF_INET and AF_INET6 sockets: streams over TCP, datagrams over UDP, pings over ICMP, raw packets of any protocol."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.families import AF_INET

if TYPE_CHECKING:
    from stack.socket.base import Host, Socket

SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3
IPPROTO_ICMP: Final = 1
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17
IPPROTO_ICMPV6: Final = 58
IPPROTO_MAX: Final = 263  # Linux: one more than IPPROTO_MPTCP


def create(host: Host, family: int, kind: int, protocol: int) -> Socket:
    """socket(AF_INET or AF_INET6, kind, protocol). Raises NetError as measured for row CORE-02."""
    if not 0 <= protocol < IPPROTO_MAX:
        raise NetError(errno.EINVAL)
    if kind == SOCK_STREAM:
        if protocol not in (0, IPPROTO_TCP):
            raise NetError(errno.EPROTONOSUPPORT)
        from stack.socket.ip.stream import StreamSocket

        return StreamSocket(host, family)
    if kind == SOCK_RAW:
        from stack.socket.ip.raw import create_raw

        return create_raw(host, family, protocol)
    if kind == SOCK_DGRAM and protocol == (IPPROTO_ICMP if family == AF_INET else IPPROTO_ICMPV6):
        from stack.socket.ip.raw import create_ping

        return create_ping(host, family)
    if kind == SOCK_DGRAM:
        if protocol not in (0, IPPROTO_UDP):
            raise NetError(errno.EPROTONOSUPPORT)
        from stack.socket.ip.datagram import DatagramSocket

        return DatagramSocket(host, family)
    raise NetError(errno.ESOCKTNOSUPPORT)
