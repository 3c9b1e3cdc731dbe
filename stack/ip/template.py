"""The bytes in front of a transport header that stay the same for a whole flow, and what they depend on.

A transport that sends thousands of packets to one place keeps a `HeaderTemplate` of `IpLayer.template` and packs
Ethernet, IP and its own header in one go, then hands the frame to `iface.enqueue`: what `IpLayer.output` would have
done, without asking again what cannot have changed. `good` is to be asked before each use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.wire import ipv4
from stack.wire.ipv6 import HEADER_LENGTH as HEADER_LENGTH6

if TYPE_CHECKING:
    from stack.ip.route import Route
    from stack.link.neighbour import Neighbour

MAX_PAYLOAD4: Final = ipv4.MAX_TOTAL_LENGTH - ipv4.HEADER_LENGTH
MAX_PAYLOAD6: Final = 65535
_ETHERNET: Final = 14  # bytes


class HeaderTemplate:
    """For packets that are not fragmented, without IP options or flow label, to one neighbour.

    ``front``, the length, and ``back`` make the headers. IPv4: `front` (16 bytes) ends with TOS; then follow the total
    length, identification and DF, TTL and protocol (`word`), the header's checksum (of `base` and the total length),
    and `back`. IPv6: `front` (18 bytes) ends with the flow label; then follow the payload's length and `back`. In both
    `back` ends with what the caller gave as the first bytes of its own header.
    """

    __slots__ = (
        "back",
        "base",
        "front",
        "generation",
        "iface",
        "limit",
        "macs",
        "most",
        "neighbour",
        "start",
        "tos",
        "ttl",
        "word",
    )

    def __init__(
        self,
        route: Route,
        neighbour: Neighbour,
        macs: bytes,
        src: bytes,
        dst: bytes,
        proto: int,
        ttl: int,
        tos: int,
        first: bytes,
    ) -> None:
        self.iface = route.iface
        self.generation = route.generation
        self.neighbour = neighbour
        self.macs = macs
        self.ttl = ttl
        self.tos = tos
        self.word = self.base = 0
        if len(dst) == 4:
            self.front = macs + b"\x08\x00\x45" + bytes((tos,))
            self.word = ttl << 8 | proto
            addresses = int.from_bytes(src, "big") + int.from_bytes(dst, "big")
            self.base = (0x4500 + tos + ipv4.FLAG_DF + self.word + addresses) % 0xFFFF
            self.back = src + dst + first
            self.start = _ETHERNET + ipv4.HEADER_LENGTH  #: where the transport header begins in the frame
            self.most = MAX_PAYLOAD4  #: longest transport datagram, bytes
            self.limit = min(route.mtu - ipv4.HEADER_LENGTH, self.most)  #: ... that is no superframe
        else:
            self.front = macs + b"\x86\xdd" + (0x60000000 | tos << 20).to_bytes(4, "big")
            self.back = bytes((proto, ttl)) + src + dst + first
            self.start = _ETHERNET + HEADER_LENGTH6
            self.most = MAX_PAYLOAD6
            self.limit = route.mtu - HEADER_LENGTH6

    def good(self, generation: int, ttl: int, tos: int) -> bool:
        """Whether it is still what `IpLayer.output` would write; `generation` is the layer's."""
        if (
            self.macs is not self.neighbour.header
            or self.generation != generation
            or self.ttl != ttl
            or self.tos != tos
        ):
            return False
        return self.iface.up
