"""AF_NETLINK: sockets to the kernel side of a network namespace, and to each other (rows NL-01..NL-18).

The kernel side of NETLINK_ROUTE is in `route`, the generic controller in `generic`. Whoever has something to tell a
group calls `multicast`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.netns import NetNamespace
    from stack.socket.base import Host, Socket

AF_NETLINK: Final = 16
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3


def create(host: Host, kind: int, protocol: int) -> Socket:
    """socket(AF_NETLINK, kind, protocol). Raises NetError: ESOCKTNOSUPPORT, EPROTONOSUPPORT."""
    if kind not in (SOCK_DGRAM, SOCK_RAW):
        raise NetError(errno.ESOCKTNOSUPPORT)
    from stack.socket.netlink.socket import NetlinkSocket
    from stack.socket.netlink.tables import PROTOCOLS

    if protocol not in PROTOCOLS:
        raise NetError(errno.EPROTONOSUPPORT)
    return NetlinkSocket(host, kind, protocol)


def multicast(netns: NetNamespace, protocol: int, group: int, payload: bytes) -> None:
    """From the kernel to the members of `group` in `netns`. The Network's lock is held."""
    from stack.socket.netlink.tables import multicast as deliver

    deliver(netns, protocol, group, payload)
