"""What features a network card's driver acknowledged mean for frames: what it may send, what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vhost_user._vring import lib

from .features import NetFeature

if TYPE_CHECKING:
    from collections.abc import Collection

GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

#: `offloads` bits, as in stack.link.device.Offload.
OFFLOAD_CSUM: Final = 1
OFFLOAD_TSO4: Final = 2
OFFLOAD_TSO6: Final = 4
OFFLOAD_ECN: Final = 8
OFFLOAD_USO: Final = 16

_SENT: Final = (
    (NetFeature.CSUM, lib.VNET_CSUM),
    (NetFeature.HOST_TSO4, lib.VNET_TSO4),
    (NetFeature.HOST_TSO6, lib.VNET_TSO6),
    (NetFeature.HOST_ECN, lib.VNET_ECN),
    (NetFeature.HOST_USO, lib.VNET_USO),
)
#: Superframes the guest takes: what C calls them, and the stack.
_TAKEN: Final = (
    (GSO_TCPV4, lib.VNET_TSO4, OFFLOAD_TSO4),
    (GSO_TCPV6, lib.VNET_TSO6, OFFLOAD_TSO6),
    (GSO_TCPV4 | GSO_ECN, lib.VNET_ECN, OFFLOAD_ECN),
    (GSO_TCPV6 | GSO_ECN, lib.VNET_ECN, OFFLOAD_ECN),
    (GSO_UDP_L4, lib.VNET_USO, OFFLOAD_USO),
)

#: Names of enum vnet_drop in csrc/vnet.h, in its order: what no guest may send, and frames that are damaged.
RX_DROPS: Final = (
    "header",
    "short",
    "long",
    "csum-refused",
    "csum-range",
    "gso-type",
    "gso-size",
    "gso-csum",
    "gso-headers",
    "checksum",
)


def may_send(features: int) -> int:
    """lib.VNET_* bits of what the guest may send."""
    return sum(bit for feature, bit in _SENT if features & feature)


def takes(features: int) -> frozenset[int]:
    """Types of superframes the guest takes."""
    types = set()
    if features & NetFeature.GUEST_TSO4:
        types.add(GSO_TCPV4)
    if features & NetFeature.GUEST_TSO6:
        types.add(GSO_TCPV6)
    if features & NetFeature.GUEST_ECN:
        types |= {gso_type | GSO_ECN for gso_type in types}
    # One type for both versions: it is sent to a guest that takes both.
    if features & NetFeature.GUEST_USO4 and features & NetFeature.GUEST_USO6:
        types.add(GSO_UDP_L4)
    return frozenset(types)


def vnet_bits(types: Collection[int]) -> int:
    """lib.VNET_* bits of these types."""
    bits = 0
    for gso_type, bit, _ in _TAKEN:
        bits |= bit if gso_type in types else 0
    return bits


def offloads(types: Collection[int]) -> int:
    """What the stack may leave to the card of a guest that takes these types."""
    bits = OFFLOAD_CSUM
    for gso_type, _, bit in _TAKEN:
        bits |= bit if gso_type in types else 0
    return bits
