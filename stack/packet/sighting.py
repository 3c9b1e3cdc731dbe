"""One frame as it passes an interface, the way packet sockets are shown it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from stack.bpf import FilterPacket
from stack.link.device import DATA_VALID, GSO_ECN, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, RxFrame, TxFrame
from stack.wire import ethernet

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack.iface.interface import Interface

# sll_pkttype, Linux <linux/if_packet.h>.
PACKET_HOST: Final = 0
PACKET_BROADCAST: Final = 1
PACKET_MULTICAST: Final = 2
PACKET_OTHERHOST: Final = 3
PACKET_OUTGOING: Final = 4

# Linux <linux/if_ether.h>.
ETH_P_802_3: Final = 0x0001
ETH_P_ALL: Final = 0x0003
ETH_P_802_2: Final = 0x0004
FIRST_ETHERTYPE: Final = 0x0600  # below, the field is a length (IEEE 802.3 3.2.6)
VLAN_TAGS: Final = frozenset((0x8100, 0x88A8))

# tp_status of struct tpacket_auxdata.
STATUS_USER: Final = 0x1
STATUS_CSUM_NOT_READY: Final = 0x8
STATUS_VLAN_VALID: Final = 0x10
STATUS_VLAN_TPID_VALID: Final = 0x40
STATUS_CSUM_VALID: Final = 0x80
STATUS_GSO_TCP: Final = 0x100

#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VNET_HEADER: Final = struct.Struct("=BBHHHH")
_TYPE: Final = struct.Struct("!H")
_MACS: Final = 12  # bytes
_TAG: Final = 4  # bytes
_TCP_GSO: Final = (GSO_TCPV4, GSO_TCPV6)


class SentFrame(bytes):
    """A frame on its way out that knows which packet socket sent it, and as what protocol."""

    sender: object = None
    protocol: int = 0


class Sighting:
    """`frame` begins with the link header and has lost its outermost VLAN tag, if it came in with one."""

    __slots__ = (
        "csum_offset",
        "csum_start",
        "flags",
        "frame",
        "gso_size",
        "gso_type",
        "iface",
        "kind",
        "network",
        "protocol",
        "sender",
        "vlan",
        "vlan_tpid",
    )

    def __init__(self, iface: Interface, frame: memoryview, kind: int) -> None:
        self.iface = iface
        self.frame = frame
        self.kind = kind  #: PACKET_*
        self.network = ethernet.HEADER_LENGTH  #: offset of the network header
        self.protocol: int = _TYPE.unpack_from(frame, _MACS)[0]
        self.vlan = -1  #: TCI of the tag taken off, -1: there was none
        self.vlan_tpid = 0
        self.sender: object = None  #: the packet socket it comes from
        self.flags = self.gso_type = self.gso_size = self.csum_start = self.csum_offset = 0

    @property
    def source(self) -> bytes:
        return bytes(self.frame[6:12])

    @property
    def inner_protocol(self) -> int:
        """What SOCK_DGRAM sockets are told: behind tags that are still there."""
        protocol, frame = self.protocol, self.frame
        at = ethernet.HEADER_LENGTH
        while protocol in VLAN_TAGS and len(frame) >= at + _TAG:
            protocol = _TYPE.unpack_from(frame, at + 2)[0]
            at += _TAG
        return protocol

    @property
    def status(self) -> int:
        """tp_status."""
        status = STATUS_USER
        if self.flags & NEEDS_CSUM:
            status |= STATUS_CSUM_NOT_READY
        elif self.kind != PACKET_OUTGOING and self.flags & DATA_VALID:
            status |= STATUS_CSUM_VALID
        if self.gso_type & ~GSO_ECN in _TCP_GSO:
            status |= STATUS_GSO_TCP
        if self.vlan >= 0:
            status |= STATUS_VLAN_VALID | STATUS_VLAN_TPID_VALID
        return status

    def vnet_header(self, length: int) -> bytes:
        """The offload facts before the frame (PACKET_VNET_HDR), in a header of `length` bytes."""
        headers = 0
        if self.gso_type:
            at = self.csum_start + 12
            headers = self.csum_start + ((self.frame[at] >> 4) * 4 if at < len(self.frame) else 0)
        needs = self.flags & NEEDS_CSUM
        start, offset = (self.csum_start, self.csum_offset) if needs else (0, 0)
        flags = needs or (self.flags & DATA_VALID if self.kind != PACKET_OUTGOING else 0)
        return VNET_HEADER.pack(flags, self.gso_type, headers, self.gso_size, start, offset).ljust(length, b"\0")

    def for_filter(self, start: int, random: Callable[[], int]) -> FilterPacket:
        """What a filter sees whose offset 0 is `start` in the frame."""
        return FilterPacket(
            self.frame[start:],
            frame=self.frame,
            network=self.network,
            protocol=self.protocol,
            kind=self.kind,
            ifindex=self.iface.index,
            hatype=self.iface.link_type,
            vlan=self.vlan,
            vlan_tpid=self.vlan_tpid,
            random=random,
        )


def incoming(iface: Interface, frame: RxFrame, kind: int) -> Sighting | None:
    """A received frame of at least 14 bytes; None for a tag with nothing behind it."""
    view, flags, gso_type, gso_size, csum_start, csum_offset = frame
    sighting = Sighting(iface, view, kind)
    if sighting.protocol in VLAN_TAGS:
        if len(view) < ethernet.HEADER_LENGTH + _TAG:
            return None
        sighting.vlan_tpid = sighting.protocol
        sighting.vlan = _TYPE.unpack_from(view, _MACS + 2)[0]
        sighting.frame = memoryview(bytes(view[:_MACS]) + bytes(view[_MACS + _TAG :]))
        sighting.protocol = _TYPE.unpack_from(sighting.frame, _MACS)[0]
        csum_start = max(csum_start - _TAG, 0)
    if sighting.protocol < FIRST_ETHERTYPE:
        raw = bytes(view[14:16]) == b"\xff\xff"  # how Novell put IPX straight into 802.3 (eth_type_trans of Linux)
        sighting.protocol = ETH_P_802_3 if raw else ETH_P_802_2
    sighting.flags, sighting.gso_type, sighting.gso_size = flags, gso_type, gso_size
    sighting.csum_start, sighting.csum_offset = csum_start, csum_offset
    return sighting


def outgoing(iface: Interface, frame: TxFrame) -> Sighting | None:
    """A frame as it was handed to the device; None for one without a whole header."""
    parts, flags, gso_type, _, gso_size, csum_start, csum_offset = frame
    first = parts[0]
    view = memoryview(first if len(parts) == 1 else b"".join(parts))
    if len(view) < ethernet.HEADER_LENGTH:
        return None
    sighting = Sighting(iface, view, PACKET_OUTGOING)
    protocol = sighting.protocol
    while protocol in VLAN_TAGS and len(view) >= sighting.network + _TAG:
        protocol = _TYPE.unpack_from(view, sighting.network + 2)[0]
        sighting.network += _TAG
    if isinstance(first, SentFrame):
        sighting.sender = first.sender
        sighting.protocol = first.protocol or sighting.protocol
    sighting.flags, sighting.gso_type, sighting.gso_size = flags, gso_type, gso_size
    sighting.csum_start, sighting.csum_offset = csum_start, csum_offset
    return sighting
