"""What a device does not take off the stack, done in software at the edge of the link layer, once.

Theory of operation
-------------------
TCP and IP hand down frames with offload facts (`stack.link.device`): a transport checksum still to be finished
(`NEEDS_CSUM`), a superframe still to be cut into packets (`gso_type`). A device that offers the matching `Offload`
takes them as they are. For every other device `prepare` brings a burst into a form it does take:

* `finish_checksum` sums the frame from ``csum_start`` on, the partial pseudo-header sum in the field included
  (virtio 1.3 section 5.1.6.2), and stores the complement. For UDP zero is stored as 0xffff: the two are equal in one's
  complement arithmetic, and a zero would mean "no checksum" (RFC 768).
* `segment` cuts a TCP superframe: headers are copied once per piece, payload is passed on as views. Total length,
  IPv4 identification and header checksum, sequence number and flags are those a sender without offload would have
  written: FIN and PSH only on the last piece, CWR only on the first (RFC 3168 section 6.1.2). The partial checksum
  is corrected for the piece's length, so that the pieces may keep `NEEDS_CSUM` for a device that only lacks TSO.
  A UDP superframe (USO) is cut the same way into whole datagrams.

`prepare` is idempotent and returns the burst itself when there is nothing to do, which is the hot case. Frames whose
facts contradict their bytes are left out and counted by the caller: they can never be carried.

`verify_rx` is the mirror image: it tells whether a received frame's transport checksum holds, for devices that
deliver frames without `DATA_VALID`.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from stack.link.device import (
    DATA_VALID,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    Buffer,
    Offload,
    RxFrame,
    TxFrame,
)
from stack.wire.checksum import partial_sum, sum_parts

ETHERNET_HEADER: Final = 14
VLAN_TAG: Final = 4
ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_VLAN: Final = (0x8100, 0x88A8)
ETHERTYPE_IPV6: Final = 0x86DD

#: Headers of a superframe are looked for in this many leading bytes: Ethernet and two tags (22), IP (60), TCP (60),
#: and room for IPv6 extension headers.
HEADER_WINDOW: Final = 256
#: Smallest gso_size that is cut: 536 is the smallest default MSS (RFC 9293 section 3.7.1), but peers may announce
#: less. 48 bounds what one hostile 64 KiB superframe can be blown up to (reference, section 4.3).
MINIMUM_GSO_SIZE: Final = 48
#: Datagrams a UDP superframe may be cut into if they are smaller than that: UDP_MAX_SEGMENTS of Linux.
MAXIMUM_DATAGRAMS: Final = 128
#: Everything a device may take over.
ALL_OFFLOADS: Final = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN | Offload.USO

# Plain ints: operators of an IntFlag cost a microsecond each.
_ALL: Final = int(ALL_OFFLOADS)
_CSUM: Final = int(Offload.CSUM)
_TSO_ECN: Final = int(Offload.TSO_ECN)
_TSO: Final = {GSO_TCPV4: int(Offload.TSO4), GSO_TCPV6: int(Offload.TSO6), GSO_UDP_L4: int(Offload.USO)}
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_PROTOCOL_TCP: Final = 6
_PROTOCOL_UDP: Final = 17
_PROTOCOL_ICMPV6: Final = 58
#: Offset of the checksum field in each transport header, by protocol number.
_CHECKSUM_FIELD: Final = {_PROTOCOL_TCP: 16, _PROTOCOL_UDP: 6, _PROTOCOL_ICMPV6: 2}
_UDP_HEADER: Final = 8
_IPV6_EXTENSIONS: Final = frozenset((0, 43, 60))  # hop-by-hop, routing, destination options

_U16: Final = Struct("!H")
_U32: Final = Struct("!I")


class OffloadError(ValueError):
    """The offload facts of a frame contradict its bytes. The message says how."""


def wire_length(frame: TxFrame) -> int:
    """Bytes of the frame, Ethernet header included."""
    total = 0
    for part in frame[0]:
        total += len(part)
    return total


def as_transmit(frame: RxFrame) -> TxFrame:
    """A received frame as one to transmit elsewhere, its payload shared, its offload facts kept."""
    view, flags, gso_type, gso_size, csum_start, csum_offset = frame
    header_length = 0
    if gso_type:
        header_length = headers_length(view, gso_type, csum_start)
    return (view,), flags, gso_type, header_length, gso_size, csum_start, csum_offset


def headers_length(view: memoryview, gso_type: int, csum_start: int) -> int:
    """Bytes before the payload of a superframe; 0 if it is too short to say."""
    if gso_type == GSO_UDP_L4:
        return csum_start + _UDP_HEADER
    if csum_start + 12 >= len(view):
        return 0
    return csum_start + (view[csum_start + 12] >> 4) * 4


def as_received(frame: TxFrame) -> RxFrame:
    """A frame handed over for transmission as the other side receives it.

    The result owns its bytes: read-only parts are immutable and kept, anything else is copied. Several parts are
    joined, because a received frame is one contiguous view.
    """
    parts, flags, gso_type, _, gso_size, csum_start, csum_offset = frame
    if len(parts) == 1:
        view = memoryview(parts[0])
        if not view.readonly:
            view = memoryview(bytes(view))
    else:
        view = memoryview(b"".join(parts))
    return view, flags, gso_type, gso_size, csum_start, csum_offset


def owned_parts(parts: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    """`parts` if all of them are immutable, else one `bytes` with their contents: safe to keep after `transmit`."""
    for part in parts:
        if type(part) is not bytes and not memoryview(part).readonly:
            return (b"".join(parts),)
    return parts


def _headers(parts: tuple[Buffer, ...], needed: int) -> tuple[bytearray, tuple[Buffer, ...]]:
    """Split a frame after its first `needed` bytes: a private copy of these, and the untouched rest as views."""
    head = bytearray()
    for index, part in enumerate(parts):
        missing = needed - len(head)
        if len(part) > missing:
            head += part[:missing]
            return head, (memoryview(part)[missing:], *parts[index + 1 :])
        head += part
        if len(head) == needed:
            return head, parts[index + 1 :]
    raise OffloadError(f"a frame of {len(head)} bytes has no byte {needed - 1}")


def finish_checksum(frame: TxFrame) -> TxFrame:
    """`frame` with its transport checksum complete and no offload left to do but segmentation.

    Frames without `NEEDS_CSUM` come back unchanged. Raises `OffloadError` if the field lies outside the frame.
    """
    parts, flags, gso_type, header_length, gso_size, csum_start, csum_offset = frame
    if not flags & NEEDS_CSUM:
        return frame
    field = csum_start + csum_offset
    head, rest = _headers(parts, field + 2)
    check = ~sum_parts((memoryview(head)[csum_start:], *rest)) & 0xFFFF
    if not check and csum_offset == _CHECKSUM_FIELD[_PROTOCOL_UDP]:
        check = 0xFFFF
    _U16.pack_into(head, field, check)
    return (bytes(head), *rest), flags & ~NEEDS_CSUM, gso_type, header_length, gso_size, 0, 0


def _network_offset(head: bytearray | memoryview) -> tuple[int, int]:
    """(ethertype, offset of the layer-3 header), tags skipped; (0, 0) if the frame is too short to say."""
    if len(head) < ETHERNET_HEADER:
        return 0, 0
    offset = ETHERNET_HEADER
    ethertype: int = _U16.unpack_from(head, 12)[0]
    while ethertype in ETHERTYPE_VLAN and len(head) >= offset + VLAN_TAG:
        ethertype = _U16.unpack_from(head, offset + 2)[0]
        offset += VLAN_TAG
    return ethertype, offset


def segment(frame: TxFrame, *, keep_partial: bool = False) -> list[TxFrame]:
    """Cut a superframe into the packets that go on the wire, in order; other frames come back alone.

    `keep_partial` leaves `NEEDS_CSUM` on the pieces, for a device that finishes checksums but does not segment;
    otherwise they are complete. Raises `OffloadError` when the frame is no superframe of its `gso_type`.
    """
    parts, flags, gso_type, _, gso_size, csum_start, csum_offset = frame
    if gso_type == GSO_NONE:
        return [frame if keep_partial else finish_checksum(frame)]
    if gso_type == GSO_UDP_L4:
        return _segment_udp(frame, keep_partial=keep_partial)
    family = gso_type & ~GSO_ECN
    if family not in (GSO_TCPV4, GSO_TCPV6):
        raise OffloadError(f"segmentation type {gso_type:#x} is neither TCP nor UDP over IPv4 or IPv6")
    if gso_size < MINIMUM_GSO_SIZE:
        raise OffloadError(f"segments of {gso_size} bytes are below the least of {MINIMUM_GSO_SIZE}")
    if not flags & NEEDS_CSUM or csum_offset != 16:
        raise OffloadError("a superframe needs a partial TCP checksum to be cut")
    total = wire_length(frame)
    if csum_start + 20 > total or csum_start + 60 > HEADER_WINDOW:
        raise OffloadError(f"a TCP header at byte {csum_start} of a frame of {total} bytes is out of place")
    peek, _ = _headers(parts, csum_start + 20)
    ethertype, network = _network_offset(peek)
    header_length = csum_start + (peek[csum_start + 12] >> 4) * 4
    if header_length < csum_start + 20 or header_length > total:
        raise OffloadError(f"a TCP header of {header_length - csum_start} bytes does not fit its frame")
    if family == GSO_TCPV4:
        well_formed = (
            ethertype == ETHERTYPE_IPV4
            and csum_start >= network + 20
            and network + (peek[network] & 0x0F) * 4 == csum_start
            and peek[network + 9] == _PROTOCOL_TCP
        )
    else:
        well_formed = ethertype == ETHERTYPE_IPV6 and csum_start >= network + 40
    if not well_formed:
        raise OffloadError(f"a superframe of type {gso_type:#x} does not hold that protocol")
    head, rest = _headers(parts, header_length)
    payload = memoryview(rest[0] if len(rest) == 1 else b"".join(rest))
    return _cut(head, payload, network, csum_start, gso_size, ipv4=family == GSO_TCPV4, keep_partial=keep_partial)


def _cut(
    head: bytearray, payload: memoryview, network: int, start: int, size: int, *, ipv4: bool, keep_partial: bool
) -> list[TxFrame]:
    """The pieces of a checked superframe: `head` is Ethernet, IP and TCP header; the TCP header is at `start`."""
    header_length = len(head)
    remaining = len(payload)
    flags = head[start + 13]
    sequence: int = _U32.unpack_from(head, start + 4)[0]
    identification: int = _U16.unpack_from(head, network + 4)[0] if ipv4 else 0
    # The field covers the length of the whole; taking it out leaves addresses and protocol, to be used for each piece.
    partial = _U16.unpack_from(head, start + 16)[0] - (header_length - start + remaining)
    # The sums of what stays the same in every piece.
    head[start + 13] = flags & ~(_FIN_PSH | _CWR)
    head[start + 16 : start + 18] = b"\0\0"
    head[start + 4 : start + 8] = b"\0\0\0\0"
    tcp_sum = partial_sum(head[start:])
    if ipv4:
        head[network + 2 : network + 6] = b"\0\0\0\0"
        head[network + 10 : network + 12] = b"\0\0"
        ip_sum = partial_sum(head[network:start])
    pieces: list[TxFrame] = []
    offset = 0
    first = True
    while first or remaining:
        length = min(remaining, size)
        remaining -= length
        piece = bytearray(head)
        piece_flags = flags & ~_CWR if not first else flags
        if remaining:
            piece_flags &= ~_FIN_PSH
        piece[start + 13] = piece_flags
        _U32.pack_into(piece, start + 4, sequence)
        if ipv4:
            ip_length = header_length - network + length
            _U16.pack_into(piece, network + 2, ip_length)
            _U16.pack_into(piece, network + 4, identification)
            ip_check = 0xFFFF - ((ip_sum + ip_length + identification) % 0xFFFF or 0xFFFF)
            _U16.pack_into(piece, network + 10, ip_check)
            identification = (identification + 1) & 0xFFFF
        else:
            _U16.pack_into(piece, network + 4, header_length - network - 40 + length)
        body = payload[offset : offset + length]
        check = (partial + header_length - start + length) % 0xFFFF
        if keep_partial:
            _U16.pack_into(piece, start + 16, check)
            pieces.append(((bytes(piece), body), NEEDS_CSUM, GSO_NONE, header_length, 0, start, 16))
        else:
            # flags is the low byte of its word; header length is a multiple of four, so payload words stay aligned.
            changed = (sequence >> 16) + (sequence & 0xFFFF) + (piece_flags & (_FIN_PSH | _CWR))
            total = (check + tcp_sum + changed + partial_sum(body)) % 0xFFFF or 0xFFFF
            _U16.pack_into(piece, start + 16, 0xFFFF - total)
            pieces.append(((bytes(piece), body), 0, GSO_NONE, 0, 0, 0, 0))
        sequence = (sequence + length) & 0xFFFFFFFF
        offset += length
        first = False
    return pieces


def _segment_udp(frame: TxFrame, *, keep_partial: bool) -> list[TxFrame]:
    """As `segment`, of a superframe that stands for datagrams of ``gso_size`` bytes of payload each."""
    parts, flags, _, _, size, start, csum_offset = frame
    if not flags & NEEDS_CSUM or csum_offset != _CHECKSUM_FIELD[_PROTOCOL_UDP]:
        raise OffloadError("a superframe needs a partial UDP checksum to be cut")
    header_length = start + _UDP_HEADER
    total = wire_length(frame)
    if header_length > total or header_length > HEADER_WINDOW:
        raise OffloadError(f"a UDP header at byte {start} of a frame of {total} bytes is out of place")
    remaining = total - header_length
    if not size or (size < MINIMUM_GSO_SIZE and remaining > size * MAXIMUM_DATAGRAMS):
        raise OffloadError(f"{remaining} bytes in datagrams of {size}: more than {MAXIMUM_DATAGRAMS} of them")
    head, rest = _headers(parts, header_length)
    ethertype, network = _network_offset(head)
    ipv4 = ethertype == ETHERTYPE_IPV4
    if ipv4:
        well_formed = (
            start >= network + 20
            and network + (head[network] & 0x0F) * 4 == start
            and head[network + 9] == _PROTOCOL_UDP
        )
    else:
        well_formed = ethertype == ETHERTYPE_IPV6 and start >= network + 40
    if not well_formed:
        raise OffloadError("a UDP superframe does not hold that protocol")
    payload = memoryview(rest[0] if len(rest) == 1 else b"".join(rest))
    # As in `_cut`: the field covers the length of the whole, and the sums of what every piece has are made once.
    partial = _U16.unpack_from(head, start + 6)[0] - (_UDP_HEADER + remaining)
    head[start + 4 : start + 8] = bytes(4)
    ports_sum = partial_sum(head[start:])
    identification: int = _U16.unpack_from(head, network + 4)[0] if ipv4 else 0
    if ipv4:
        head[network + 2 : network + 6] = bytes(4)
        head[network + 10 : network + 12] = bytes(2)
        ip_sum = partial_sum(head[network:start])
    pieces: list[TxFrame] = []
    for offset in range(0, max(remaining, 1), size):
        body = payload[offset : offset + size]
        length = _UDP_HEADER + len(body)
        piece = bytearray(head)
        _U16.pack_into(piece, start + 4, length)
        if ipv4:
            ip_length = start - network + length
            _U16.pack_into(piece, network + 2, ip_length)
            _U16.pack_into(piece, network + 4, identification)
            ip_check = 0xFFFF - ((ip_sum + ip_length + identification) % 0xFFFF or 0xFFFF)
            _U16.pack_into(piece, network + 10, ip_check)
            identification = (identification + 1) & 0xFFFF
        else:
            _U16.pack_into(piece, network + 4, start - network - 40 + length)
        check = (partial + length) % 0xFFFF
        if keep_partial:
            _U16.pack_into(piece, start + 6, check)
            pieces.append(((bytes(piece), body), NEEDS_CSUM, GSO_NONE, header_length, 0, start, 6))
        else:
            summed = (check + ports_sum + length + partial_sum(body)) % 0xFFFF or 0xFFFF
            _U16.pack_into(piece, start + 6, 0xFFFF - summed or 0xFFFF)
            pieces.append(((bytes(piece), body), 0, GSO_NONE, 0, 0, 0, 0))
    return pieces


def missing_offload(frame: TxFrame, offloads: int) -> bool:
    """Whether carrying `frame` needs an offload beyond `offloads`."""
    gso_type = frame[2]
    if gso_type:
        needed = _TSO.get(gso_type & ~GSO_ECN)
        if needed is None:
            return True
        if gso_type & GSO_ECN:
            needed |= _TSO_ECN
        return needed & ~offloads != 0
    return bool(frame[1] & NEEDS_CSUM) and not offloads & _CSUM


def prepare(
    burst: Sequence[TxFrame], offloads: int, max_frame: int = 65549, refused: list[TxFrame] | None = None
) -> Sequence[TxFrame]:
    """`burst` in a form that a device with `offloads` takes: checksums finished, superframes cut, order kept.

    `max_frame` is the device's `max_superframe`; a superframe above it is cut as well. Frames that can never be carried
    (`OffloadError`) are left out and appended to `refused`, for the caller to count. Returns `burst` itself when
    nothing had to be done.
    """
    offloads = int(offloads)
    if offloads & _ALL == _ALL and max_frame >= 65549:
        return burst
    prepared: list[TxFrame] = []
    changed = False
    keep_partial = bool(offloads & _CSUM)
    for frame in burst:
        if not missing_offload(frame, offloads) and (not frame[2] or max_frame >= wire_length(frame)):
            prepared.append(frame)
            continue
        changed = True
        try:
            if frame[2]:
                prepared += segment(frame, keep_partial=keep_partial)
            else:
                prepared.append(finish_checksum(frame))
        except OffloadError:
            if refused is not None:
                refused.append(frame)
    return prepared if changed else burst


def verify_rx(frame: RxFrame) -> bool:
    """Whether the TCP, UDP or ICMPv6 checksum of a received frame holds.

    True without looking when the device vouches for it (`DATA_VALID`) or it never left this machine
    (`NEEDS_CSUM`), and for everything that carries no transport checksum here: other protocols, fragments, UDP over
    IPv4 with a zero field. False for frames too short to hold what their headers claim.
    """
    view, flags = frame[0], frame[1]
    if flags & (DATA_VALID | NEEDS_CSUM):
        return True
    ethertype, network = _network_offset(view)
    if ethertype == ETHERTYPE_IPV4:
        return _verify_ipv4(view, network)
    if ethertype == ETHERTYPE_IPV6:
        return _verify_ipv6(view, network)
    return True


def _verify_ipv4(view: memoryview, network: int) -> bool:
    if len(view) < network + 20:
        return False
    start = network + (view[network] & 0x0F) * 4
    end = network + _U16.unpack_from(view, network + 2)[0]
    if start < network + 20 or end < start or end > len(view):
        return False
    if _U16.unpack_from(view, network + 6)[0] & 0x3FFF:
        return True  # a fragment: only the whole datagram has a checksum
    return _verify_transport(view[network + 12 : network + 20], view[network + 9], view[start:end], optional=True)


def _verify_ipv6(view: memoryview, network: int) -> bool:
    start = network + 40
    if len(view) < start:
        return False
    end = start + _U16.unpack_from(view, network + 4)[0]
    if end > len(view):
        return False
    protocol = view[network + 6]
    while protocol in _IPV6_EXTENSIONS:
        if end < start + 8:
            return False
        if protocol == 43 and view[start + 3]:
            return True  # segments left: the checksum is over the final destination, not the one in the header
        protocol, start = view[start], start + 8 + view[start + 1] * 8
        if start > end:
            return False
    return _verify_transport(view[network + 8 : network + 40], protocol, view[start:end], optional=False)


def _verify_transport(addresses: memoryview, protocol: int, body: memoryview, *, optional: bool) -> bool:
    field = _CHECKSUM_FIELD.get(protocol)
    if field is None or (protocol == _PROTOCOL_ICMPV6 and optional):
        return True
    if len(body) < field + 2:
        return False
    if protocol == _PROTOCOL_UDP:
        if optional and _U16.unpack_from(body, field)[0] == 0:
            return True
        # The UDP length may be shorter than the datagram's (RFC 768); its checksum ends there.
        length: int = _U16.unpack_from(body, 4)[0]
        if not 8 <= length <= len(body):
            return False
        body = body[:length]
    return (partial_sum(addresses) + protocol + len(body) + partial_sum(body)) % 0xFFFF == 0


def addressed(frame: TxFrame, macs: bytes) -> TxFrame:
    """`frame` with its blank MACs filled in."""
    parts, *facts = frame
    return ((macs + bytes(parts[0][12:]), *parts[1:]), *facts)  # type: ignore[return-value]  # same arity
