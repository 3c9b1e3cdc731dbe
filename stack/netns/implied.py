"""Routes that follow from links and addresses, as the kernel makes them: the table `local`, and that to a subnet."""

from __future__ import annotations

from typing import Final

from stack.iface.address import (
    IFA_F_NOPREFIXROUTE,
    SCOPE_HOST,
    SCOPE_LINK,
    InterfaceAddress,
    broadcast_of,
)
from stack.iface.interface import Interface
from stack.ip.policy import TABLE_LOCAL
from stack.ip.route import RouteEntry, RouteKind

PROTOCOL_KERNEL: Final = 2  # RTPROT_KERNEL: routes that follow from addresses
#: Metric of IPv6 routes that follow from addresses (IP6_RT_PRIO_ADDRCONF) and of others (IP6_RT_PRIO_USER).
METRIC6_KERNEL: Final = 256
METRIC6_USER: Final = 1024


def implied(
    network: bytes, prefix_length: int, iface: Interface, kind: RouteKind, address: InterfaceAddress
) -> RouteEntry:
    """A line of the table `local`."""
    ipv4 = len(network) == 4
    scope = (SCOPE_HOST if kind is RouteKind.LOCAL else SCOPE_LINK) if ipv4 else 0
    return RouteEntry(
        network,
        prefix_length,
        iface,
        src=address.address if ipv4 else None,
        kind=kind,
        protocol=PROTOCOL_KERNEL,
        scope=scope,
        table=TABLE_LOCAL,
    )


def multicast_route(iface: Interface) -> RouteEntry:
    """ff00::/8, of every link that is up."""
    entry = implied(b"\xff" + bytes(15), 8, iface, RouteKind.MULTICAST, InterfaceAddress(bytes(16), 128))
    entry.metric = METRIC6_KERNEL
    return entry


def broadcast_route(iface: Interface, address: InterfaceAddress) -> RouteEntry | None:
    """None if there is none: IPv6, /31 and /32, a secondary address, a link that is down."""
    broadcast = broadcast_of(address.address, address.prefix_length)
    if broadcast is None or address.secondary or not iface.up:
        return None
    return implied(broadcast, 32, iface, RouteKind.BROADCAST, address)


def connected_route(iface: Interface, address: InterfaceAddress) -> RouteEntry | None:
    """The route to an address's own subnet, as the kernel makes it; None for a lone host address or on lo."""
    width = len(address.address)
    lone = address.prefix_length == width * 8
    if iface.loopback or lone or address.secondary or address.flags & IFA_F_NOPREFIXROUTE:
        return None
    return RouteEntry(
        address.network,
        address.prefix_length,
        iface,
        metric=0 if width == 4 else METRIC6_KERNEL,
        src=address.address if width == 4 else None,
        protocol=PROTOCOL_KERNEL,
        scope=SCOPE_LINK if width == 4 else 0,
    )
