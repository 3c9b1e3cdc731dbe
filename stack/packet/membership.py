"""What a packet socket wants of interfaces beyond frames to them (PACKET_ADD_MEMBERSHIP): counted, and given back.

Counted twice: an interface serves many sockets, and a socket that asks for the same twice must leave it twice.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, TypeAlias

from stack.errors import NetError
from stack.wire import ethernet

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.packet.layer import PacketLayer

# Linux <linux/if_packet.h>.
PACKET_MR_MULTICAST: Final = 0
PACKET_MR_PROMISC: Final = 1
PACKET_MR_ALLMULTI: Final = 2
PACKET_MR_UNICAST: Final = 3

#: (ifindex, PACKET_MR_*, hardware address)
Wish: TypeAlias = tuple[int, int, bytes]


class Memberships:
    """Those of one socket."""

    def __init__(self, layer: PacketLayer) -> None:
        self._layer = layer
        self._held: dict[Wish, tuple[Interface, int]] = {}

    def add(self, wish: Wish) -> None:
        """Raises NetError: ENODEV, EINVAL for a wrong address."""
        ifindex, kind, address = wish
        iface = self._layer.interface(ifindex)
        if len(address) > ethernet.MAC_LENGTH:
            raise NetError(errno.EINVAL)
        if kind in (PACKET_MR_MULTICAST, PACKET_MR_UNICAST) and len(address) != ethernet.MAC_LENGTH:
            raise NetError(errno.EINVAL)
        known = self._held.get(wish)
        if known is not None and known[0] is iface:
            self._held[wish] = iface, known[1] + 1
            return
        self._held[wish] = iface, 1
        _count(iface, kind, address, 1)

    def drop(self, wish: Wish) -> None:
        """Undo one `add`. What is not held is nothing to drop, as on Linux."""
        known = self._held.pop(wish, None)
        if known is None:
            return
        iface, times = known
        if times > 1:
            self._held[wish] = iface, times - 1
        else:
            _count(iface, wish[1], wish[2], -1)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        held, self._held = self._held, {}
        for (_, kind, address), (iface, _) in held.items():
            _count(iface, kind, address, -1)

    def __len__(self) -> int:
        return len(self._held)


def _count(iface: Interface, kind: int, address: bytes, by: int) -> None:
    if kind == PACKET_MR_PROMISC:
        iface.promiscuous += by
    elif kind == PACKET_MR_ALLMULTI:
        iface.all_multicast += by
    elif kind in (PACKET_MR_MULTICAST, PACKET_MR_UNICAST):
        wanted = iface.link_addresses
        wanted[address] = wanted.get(address, 0) + by
        if not wanted[address]:
            del wanted[address]
