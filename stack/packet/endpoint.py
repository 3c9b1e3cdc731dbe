"""`PacketEndpoint`: one packet socket's protocol half: what it wants to see, its bounded queue, what it sends.

A waiting frame is a copy, cut to what the filter keeps, and is charged against the receive limit; what does not fit is
lost and counted (PACKET_STATISTICS), as on Linux.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from stack.bpf import Program, run
from stack.errors import NetError
from stack.iface.loopback import NOTE_SHIFT, note_of
from stack.link.device import GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM
from stack.packet.sighting import (
    ETH_P_802_2,
    ETH_P_ALL,
    PACKET_OTHERHOST,
    PACKET_OUTGOING,
    VLAN_TAGS,
    VNET_HEADER,
    SentFrame,
    Sighting,
)
from stack.wire import ethernet

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.packet.layer import PacketLayer

#: net.core.rmem_default of Linux, bytes.
DEFAULT_RECEIVE_LIMIT: Final = 212_992
#: Charged for a waiting frame besides its bytes: what Linux's sk_buff costs.
OVERHEAD: Final = 768

#: (ifindex, protocol, PACKET_*, ARPHRD_*, hardware address): struct sockaddr_ll in host order.
PacketAddress: TypeAlias = tuple[int, int, int, int, bytes]

_GSO_KNOWN: Final = (GSO_TCPV4, GSO_TCPV6)
_VLAN_ROOM: Final = 4  # bytes a tagged frame may be longer


class Received(NamedTuple):
    """One frame that waits. `length` is what it was before the filter cut it, `network` where its payload begins in
    ``data`` (0 for SOCK_DGRAM); `prefix` is the offload header, if there is one."""

    data: bytes
    address: PacketAddress
    length: int
    network: int
    status: int
    vlan: int
    vlan_tpid: int
    prefix: bytes
    stamp: int  #: when it passed, ns of the Network's clock
    lost: int  #: frames this socket lost before it, ever
    note: int  #: mark and priority, see `stack.iface.loopback`


class PacketEndpoint:
    """Made by `PacketLayer.open`. Options are plain attributes, live."""

    def __init__(self, layer: PacketLayer, *, headers: bool) -> None:
        """`headers`: frames come and go with their link header (SOCK_RAW), or without (SOCK_DGRAM)."""
        self._layer = layer
        self.headers = headers
        self.protocol = 0  #: ethertype or ETH_P_*; 0: nothing is received
        self.ifindex = 0  #: only this interface, 0: all, -1: the one that is gone
        self.filter: Program | None = None
        self.ignore_outgoing = False
        self.mark = self.priority = 0  #: SO_MARK, SO_PRIORITY
        self.no_fcs = False  #: SO_NOFCS
        self.vnet_header = 0  #: length of the offload header, bytes; 0: there is none
        self.receive_limit = DEFAULT_RECEIVE_LIMIT  #: bytes
        self.queue: deque[Received] = deque()
        self.charge = 0  #: bytes
        self.error = 0  #: pending errno
        self.lost_ever = 0  #: frames there was no room for (SO_RXQ_OVFL)
        self.packets = self.lost = 0  #: delivered and dropped since `statistics` was last asked
        self.on_event: Callable[[], None] | None = None
        self.closed = False

    def bind(self, ifindex: int, protocol: int) -> None:
        """See frames of `protocol` (0: the same as before) on one interface (0: on all). Raises NetError(ENODEV)."""
        iface = self._layer.interface(ifindex) if ifindex else None
        self.ifindex = ifindex
        self.protocol = protocol or self.protocol
        self._layer.rebind()
        if self.protocol and iface is not None and not iface.up:
            self.fail(errno.ENETDOWN)

    def set_ignore_outgoing(self, on: bool) -> None:
        """PACKET_IGNORE_OUTGOING: see only what comes in."""
        self.ignore_outgoing = on
        self._layer.rebind()

    def close(self) -> None:
        """Idempotent."""
        if not self.closed:
            self.closed = True
            self.queue.clear()
            self.charge = 0
            self.on_event = None
            self._layer.forget(self)

    # --- receiving ----------------------------------------------------------------------------------------------

    def offer(self, sighting: Sighting) -> None:
        """A frame passes on an interface this endpoint listens on."""
        protocol = self.protocol
        kind = sighting.kind
        if kind == PACKET_OUTGOING:
            if protocol != ETH_P_ALL or sighting.sender is self or self.ignore_outgoing:
                return
        elif protocol != ETH_P_ALL:
            # What a bridge takes does not get as far, and tags nobody has a link for are other hosts' business.
            if protocol != sighting.protocol or sighting.iface.master is not None:
                return
            if sighting.vlan & 0xFFF and sighting.vlan >= 0:
                kind = PACKET_OTHERHOST
        start = 0 if self.headers else sighting.network
        frame = sighting.frame
        length = keep = len(frame) - start
        if self.filter is not None:
            keep = min(run(self.filter, sighting.for_filter(start, self._layer.random)), length)
            if not keep:
                return
        if self.charge >= self.receive_limit:
            self.lost += 1
            self.lost_ever += 1
            return
        shown = sighting.protocol if self.headers else sighting.inner_protocol
        iface = sighting.iface
        data = bytes(frame[start : start + keep])
        self.queue.append(
            Received(
                data,
                (iface.index, shown, kind, iface.link_type, sighting.source),
                length,
                sighting.network - start,
                sighting.status,
                max(sighting.vlan, 0),
                sighting.vlan_tpid,
                sighting.vnet_header(self.vnet_header) if self.vnet_header else b"",
                self._layer.now,
                self.lost_ever,
                sighting.flags >> NOTE_SHIFT,
            )
        )
        self.charge += len(data) + OVERHEAD
        self.packets += 1
        if self.on_event is not None:
            self.on_event()

    def take(self) -> Received | None:
        """The oldest frame."""
        if not self.queue:
            return None
        received = self.queue.popleft()
        self.charge -= len(received.data) + OVERHEAD
        return received

    def statistics(self) -> tuple[int, int]:
        """(frames that were for us, how many of them were lost) since this was last asked."""
        answer = self.packets + self.lost, self.lost
        self.packets = self.lost = 0
        return answer

    def fail(self, error: int) -> None:
        self.error = error
        if self.on_event is not None:
            self.on_event()

    def take_error(self) -> int:
        error, self.error = self.error, 0
        return error

    # --- sending ------------------------------------------------------------------------------------------------

    def send(self, data: bytes, address: PacketAddress | None) -> int:
        """Send one frame, through the interface bound to or that of `address`; returns the bytes of `data`.

        Raises NetError: ENXIO (no interface), ENETDOWN, EPROTONOSUPPORT (SO_NOFCS), EMSGSIZE,
        EINVAL (no whole header, facts that lie), ENOBUFS.
        """
        ifindex, protocol = (self.ifindex, self.protocol) if address is None else address[:2]
        iface = self._layer.find(ifindex)
        if iface is None:
            raise NetError(errno.ENXIO)
        if not iface.up:
            raise NetError(errno.ENETDOWN)
        if self.no_fcs:
            raise NetError(errno.EPROTONOSUPPORT)  # the checksum of the link is never ours to leave out
        facts, frame = self._facts(data)
        if not self.headers:
            to = None if address is None else address[4]
            frame = self._header(iface, to, protocol, len(frame)) + frame
        self._check_length(iface, frame, superframe=facts[1] != GSO_NONE)
        if iface.queued >= iface.tx_queue_length:
            raise NetError(errno.ENOBUFS)
        flags, gso_type, header_length, gso_size, csum_start, csum_offset = facts
        if flags & NEEDS_CSUM and csum_start + csum_offset + 2 > len(frame):
            raise NetError(errno.EINVAL)
        sent = SentFrame(frame)
        sent.sender = self
        sent.protocol = protocol if protocol != ETH_P_ALL else 0
        if iface.loopback:
            flags |= note_of(self.mark, self.priority) << NOTE_SHIFT
        iface.enqueue(((sent,), flags, gso_type, header_length, gso_size, csum_start, csum_offset), len(frame))
        return len(data)

    def _facts(self, data: bytes) -> tuple[tuple[int, int, int, int, int, int], bytes]:
        """(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset) before a frame, and the frame."""
        length = self.vnet_header
        if not length:
            return (0, GSO_NONE, 0, 0, 0, 0), data
        if len(data) < length:
            raise NetError(errno.EINVAL)
        flags, gso_type, header_length, gso_size, start, offset = VNET_HEADER.unpack_from(data)
        flags &= NEEDS_CSUM
        if gso_type != GSO_NONE and (gso_type & ~GSO_ECN not in _GSO_KNOWN or not gso_size or not flags):
            raise NetError(errno.EINVAL)
        if not flags:
            start = offset = 0
        return (flags, gso_type, header_length, gso_size, start, offset), data[length:]

    @staticmethod
    def _header(iface: Interface, to: bytes | None, protocol: int, length: int) -> bytes:
        """The link header of a SOCK_DGRAM frame."""
        if to is None:
            if not iface.loopback and not iface.noarp:
                raise NetError(errno.EINVAL)
            to = b""
        field = length if protocol in (ETH_P_802_2, 0x0001) else protocol
        target = to[: ethernet.MAC_LENGTH].ljust(ethernet.MAC_LENGTH, b"\0")
        return target + iface.mac + (field & 0xFFFF).to_bytes(2, "big")

    @staticmethod
    def _check_length(iface: Interface, frame: bytes, *, superframe: bool) -> None:
        length = len(frame)
        room = iface.mtu + ethernet.HEADER_LENGTH
        if superframe:
            room = 0xFFFF + ethernet.HEADER_LENGTH
        elif int.from_bytes(frame[12:14], "big") in VLAN_TAGS:
            room += _VLAN_ROOM
        if length > room:
            raise NetError(errno.EMSGSIZE)
        if length < ethernet.HEADER_LENGTH:
            raise NetError(errno.EINVAL)
