"""Routes: the table (longest prefix, then lowest metric), and the resolved `Route` that a transport caches (IF-15)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.link.neighbour import Neighbour


_GOLDEN: Final = 0x9E3779B1  # 2**32 over the golden ratio: spreads what a checksum keeps together (Knuth, TAOCP 6.4)


class RouteKind(IntEnum):
    """What becomes of packets that match. Values of RTN_* in <linux/rtnetlink.h>."""

    UNICAST = 1
    LOCAL = 2  #: our own address: delivered through `lo`
    BROADCAST = 3
    MULTICAST = 5
    BLACKHOLE = 6  #: EINVAL to local senders, as Linux
    UNREACHABLE = 7  #: EHOSTUNREACH
    PROHIBIT = 8  #: EACCES


class Route:
    """Where packets to one destination go. Made by `IpLayer.route`; good while ``generation`` equals the layer's."""

    __slots__ = (
        "address_sum",
        "dst",
        "generation",
        "iface",
        "kind",
        "mtu",
        "neighbour",
        "next_hop",
        "src",
    )

    def __init__(
        self,
        iface: Interface,
        src: bytes,
        dst: bytes,
        next_hop: bytes,
        mtu: int,
        kind: RouteKind,
        generation: int,
    ) -> None:
        self.iface = iface
        self.src = src  #: preferred source address
        self.dst = dst  #: the destination asked for; for 0.0.0.0 and :: the loopback address they stand for
        self.next_hop = next_hop  #: the gateway, or `dst` on the link
        self.mtu = mtu  #: largest packet towards `dst`: the link's, or less by path MTU discovery
        self.kind = kind
        self.generation = generation
        #: Link-layer side of next_hop, looked up at first use.
        self.neighbour: Neighbour | None = None
        #: Ones' complement sum of src and dst, so that an IPv4 header costs three additions (RFC 1071).
        self.address_sum = (int.from_bytes(src, "big") + int.from_bytes(dst, "big")) % 0xFFFF

    def with_mtu(self, mtu: int) -> Route:
        """The same, taking packets of up to `mtu` bytes."""
        if mtu == self.mtu:
            return self
        other = Route(self.iface, self.src, self.dst, self.next_hop, mtu, self.kind, self.generation)
        other.neighbour = self.neighbour
        return other

    def __repr__(self) -> str:
        return f"Route(to {self.dst.hex()} via {self.next_hop.hex()} dev {self.iface.name} {self.kind.name})"


class NextHop(NamedTuple):
    """One way of a multipath route; `weight` is relative to the others'."""

    iface: Interface
    gateway: bytes | None
    weight: int = 1
    onlink: bool = False


class RouteEntry:
    """One line of the routing table."""

    __slots__ = (
        "gateway",
        "hops",
        "iface",
        "kind",
        "metric",
        "metrics",
        "network",
        "onlink",
        "prefix_length",
        "protocol",
        "scope",
        "src",
        "table",
    )

    def __init__(
        self,
        network: bytes,
        prefix_length: int,
        iface: Interface | None,
        *,
        gateway: bytes | None = None,
        metric: int = 0,
        src: bytes | None = None,
        kind: RouteKind = RouteKind.UNICAST,
        protocol: int = 4,  # RTPROT_STATIC
        scope: int = 0,  # RT_SCOPE_UNIVERSE
        table: int = 254,  # RT_TABLE_MAIN
        metrics: Mapping[str, int] | None = None,
        hops: tuple[NextHop, ...] = (),
        onlink: bool = False,
    ) -> None:
        self.network = network  #: 4 or 16 bytes, host bits zero
        self.prefix_length = prefix_length
        self.iface = iface  #: None for kinds that go nowhere
        self.gateway = gateway
        self.metric = metric
        self.src = src  #: preferred source, None: chosen by the layer
        self.kind = kind
        self.protocol = protocol  #: who made it: 2 kernel, 3 boot, 4 static, 16 dhcp (RTPROT_*)
        self.scope = scope
        self.table = table
        self.metrics = metrics or {}  #: by the names of RTAX_*; ``mtu`` bounds the packets
        self.hops = hops  #: more than one way; `iface` and `gateway` are then the first one's
        self.onlink = onlink  #: the gateway need not be on a subnet of ours

    def uses(self, iface: Interface) -> bool:
        """Packets of this route may leave through `iface`."""
        return self.iface is iface or any(hop.iface is iface for hop in self.hops)

    @property
    def alive(self) -> bool:
        """There is an interface that is up."""
        if self.hops:
            return any(hop.iface.up for hop in self.hops)
        return self.iface is not None and self.iface.up

    def leaves_by(self, oif: int) -> bool:
        """One of its ways is interface `oif`."""
        if self.hops:
            return any(hop.iface.index == oif for hop in self.hops)
        return self.iface is not None and self.iface.index == oif

    def hop(self, dst: bytes, src: bytes | None, oif: int = 0) -> tuple[Interface, bytes | None]:
        """(interface, gateway) for a flow. A flow keeps to one way; the ways get shares by their weights (RFC 2992)."""
        assert self.iface is not None
        ways = [each for each in self.hops if each.iface.up and (not oif or each.iface.index == oif)]
        if not ways:
            return self.iface, self.gateway
        mixed = crc32(dst + (src or b"")) * _GOLDEN & 0xFFFFFFFF
        share = mixed * sum(each.weight for each in ways) >> 32
        for each in ways:
            share -= each.weight
            if share < 0:
                break
        return each.iface, each.gateway

    def same_as(self, other: RouteEntry) -> bool:
        """The same line for the purpose of "already exists": destination, metric, gateway and device agree."""
        return (
            self.network == other.network
            and self.prefix_length == other.prefix_length
            and self.metric == other.metric
            and self.gateway == other.gateway
            and self.iface is other.iface
            and self.hops == other.hops
            and self.kind == other.kind
        )

    def __repr__(self) -> str:
        via = f" via {self.gateway.hex()}" if self.gateway else ""
        dev = f" dev {self.iface.name}" if self.iface else ""
        return f"RouteEntry({self.network.hex()}/{self.prefix_length}{via}{dev} metric {self.metric} {self.kind.name})"


class RouteTable:
    """Entries of one address family by prefix length. Lookups are for cache misses: callers keep their `Route`."""

    def __init__(self, width: int) -> None:
        self._bits = width * 8  #: 32 or 128
        self._by_length: dict[int, dict[int, list[RouteEntry]]] = {}
        self._lengths: list[int] = []  # descending

    def add(self, entry: RouteEntry) -> bool:
        """Insert by metric; False if the same line is there already."""
        bucket = self._by_length.setdefault(entry.prefix_length, {})
        entries = bucket.setdefault(self._key(entry.network, entry.prefix_length), [])
        if any(entry.same_as(other) for other in entries):
            return False
        entries.append(entry)
        entries.sort(key=lambda each: each.metric)  # stable: of equal metrics the older wins
        self._lengths = sorted(self._by_length, reverse=True)
        return True

    def remove(self, entry: RouteEntry) -> bool:
        """Take out this very entry; False if it is not there."""
        key = self._key(entry.network, entry.prefix_length)
        bucket = self._by_length.get(entry.prefix_length, {})
        entries = bucket.get(key, [])
        if entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del bucket[key]
        if not bucket:
            del self._by_length[entry.prefix_length]
            self._lengths = sorted(self._by_length, reverse=True)
        return True

    def lookup(self, dst: bytes, oif: int = 0) -> RouteEntry | None:
        """The entry for `dst`: longest prefix, then lowest metric, through an interface that is up (and is `oif`)."""
        value = int.from_bytes(dst, "big")
        for length in self._lengths:
            for entry in self._by_length[length].get(value >> (self._bits - length), ()):
                iface = entry.iface
                if iface is None:
                    if not oif:
                        return entry
                elif entry.hops:
                    if entry.alive and (not oif or entry.leaves_by(oif)):
                        return entry
                elif iface.up and (not oif or iface.index == oif):
                    return entry
        return None

    def __iter__(self) -> Iterator[RouteEntry]:
        for length in self._lengths:
            for entries in self._by_length[length].values():
                yield from entries

    def _key(self, network: bytes, prefix_length: int) -> int:
        return int.from_bytes(network, "big") >> (self._bits - prefix_length)
