"""What the network layer hands to transports: `IpPacket`, and `IcmpError` for packets of theirs that failed."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from inspect import signature
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from stack.iface.hooks import Taker
    from stack.iface.interface import Interface


class PacketKind(IntEnum):
    """To whom an incoming packet was addressed. The values are those of <linux/if_packet.h>."""

    UNICAST = 0  #: one of our own addresses, on whatever interface (`lo` included)
    BROADCAST = 1  #: a broadcast address of ours, or our address inside a link-layer broadcast
    MULTICAST = 2  #: a group we are in, or our address inside a link-layer multicast


class IpPacket:
    """One received packet: unfragmented or reassembled, destined to us. `payload` starts at the transport header.

    The views stay valid for as long as they are kept; keep the parts you need, not the packet.
    """

    note = 0  #: mark and priority its sender gave it, see `stack.iface.loopback`
    largest = 0  #: of what was put together from fragments, the longest one's length with its headers, bytes

    __slots__ = (
        "csum_ok",
        "dst",
        "frame",
        "gso_size",
        "header_length",
        "iface",
        "kind",
        "payload",
        "proto",
        "src",
        "start",
        "tos",
        "total_length",
        "ttl",
        "version",
    )

    def __init__(
        self,
        version: int,
        src: bytes,
        dst: bytes,
        proto: int,
        ttl: int,
        tos: int,
        payload: memoryview,
        csum_ok: bool,
        gso_size: int,
        iface: Interface,
        frame: memoryview,
        start: int,
        header_length: int,
        total_length: int,
        kind: PacketKind,
    ) -> None:
        self.version = version  #: 4 or 6
        self.src = src  #: 4 or 16 bytes
        self.dst = dst
        self.proto = proto  #: IANA protocol number of the payload
        self.ttl = ttl  #: or hop limit
        self.tos = tos  #: or traffic class
        self.payload = payload  #: transport header and data, link padding cut off
        self.csum_ok = csum_ok  #: TCP/UDP checksum: the link vouches for it or it was summed here
        self.gso_size = gso_size  #: > 0: a superframe that stands for segments of this many payload bytes
        self.iface = iface  #: the interface it came in through
        self.frame = frame  #: what it arrived in; the IP header is at ``start``
        self.start = start
        self.header_length = header_length  #: of the IP header with options or extension headers, bytes
        self.total_length = total_length  #: of header and payload
        self.kind = kind

    @property
    def datagram(self) -> memoryview:
        """The whole packet from the IP header on."""
        return self.frame[self.start : self.start + self.total_length]

    @property
    def header(self) -> memoryview:
        """The IP header with its options or extension headers."""
        return self.frame[self.start : self.start + self.header_length]


#: What takes the packets of a protocol. It may answer who takes what continues one (`stack.link.device.FOLLOWS`), if
#: nobody else is to see that.
PacketHandler: TypeAlias = "Callable[[IpPacket], Taker | None]"


class ReassembledPacket(IpPacket):
    """One that came in fragments."""

    __slots__ = ("largest",)


class NotedPacket(IpPacket):
    """One from a sender on this host who noted something on it."""

    __slots__ = ("note",)

    @classmethod
    def of(cls, packet: IpPacket, note: int) -> IpPacket:
        """`packet` with a note."""
        noted = cls(*(getattr(packet, name) for name in _FIELDS))
        noted.note = note
        return noted


#: In the order `IpPacket` is made of.
_FIELDS: Final = tuple(name for name in signature(IpPacket).parameters)


class IcmpError:
    """A packet of ours failed, as an ICMP(v6) error or our own link layer tells. Handed to its transport's on_error."""

    __slots__ = (
        "code", "described", "errno", "hard", "header", "info", "local", "mtu", "payload", "proto", "remote", "src",
        "type", "version",
    )  # fmt: skip

    def __init__(
        self,
        *,
        version: int,
        type: int,  # noqa: A002 - the field's name in RFC 792 and in struct sock_extended_err
        code: int,
        errno: int,
        hard: bool,
        mtu: int,
        info: int,
        src: bytes,
        local: bytes,
        remote: bytes,
        proto: int,
        payload: memoryview,
        header: int = 0,
        described: int = 0,
    ) -> None:
        self.version = version  #: 4 or 6
        self.type = type  #: ICMP type; for a local failure the type an ICMP error would have had
        self.code = code
        self.errno = errno  #: what a socket reports, as Linux maps it (icmp_err_convert)
        self.hard = hard  #: fatal for a connection being set up; soft ones are only remembered (RFC 5461)
        self.mtu = mtu  #: > 0: "fragmentation needed"/"packet too big" with this next-hop MTU
        self.info = info  #: the message's 32-bit field as received
        self.src = src  #: who reports: a router's or the peer's address; our own for local failures
        self.local = local  #: source address of the failed packet
        self.remote = remote  #: its destination
        self.proto = proto
        self.payload = payload  #: its transport header and as much data as was quoted (at least 8 bytes)
        self.header = header  #: bytes of the quoted IP header before it
        self.described = (
            described  #: RFC 4884: bytes of the quotation, IP header included, before extensions; 0: unsaid
        )
