"""Generic receive offload in Python: the model of what a device that coalesces does, and a device that does it.

The rules are those of `CoalescingDevice`: only neighbours are joined, only where cutting the superframe gives the very
packets back; what continues the frame before it is marked (`trains`). The vhost-user card does this in C; tests hold
that against this model, and put `Coalescing` between any device and the stack, so that what is tested without it can be
tested with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from stack.link.around import AroundDevice
from stack.link.device import (
    DATA_VALID,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    LinkDevice,
    RxFrame,
    TxFrame,
)
from stack.link.offload import MINIMUM_GSO_SIZE, verify_rx
from stack.testing import trains
from stack.testing.builders import inet_checksum, pseudo_header

_ETHERNET: Final = 14
_TCP: Final = 6
_UDP: Final = 17
_PSH: Final = 0x08
_ACK: Final = 0x10
_DONT_FRAGMENT: Final = 0x4000
MAX_PACKET: Final = 65535  # bytes, IP header included
MAX_DATAGRAMS: Final = 64  # UDP_GRO_CNT_MAX of Linux


class _Segment:
    """A frame that may be part of a run, taken apart."""

    def __init__(self, frame: bytes) -> None:
        self.v4 = frame[12:14] == b"\x08\x00"
        self.transport = _ETHERNET + (20 if self.v4 else 40)
        self.proto = frame[23] if self.v4 else frame[20]
        length = int.from_bytes(frame[16:18], "big") - 20 if self.v4 else int.from_bytes(frame[18:20], "big")
        self.l4 = frame[self.transport : self.transport + length]
        size = (self.l4[12] >> 4) * 4 if self.proto == _TCP else 8
        self.header = frame[: self.transport] + self.l4[:size]
        self.data = self.l4[size:]
        self.ident = int.from_bytes(frame[18:20], "big") if self.v4 else 0
        self.counts_up = self.v4 and not int.from_bytes(frame[20:22], "big") & _DONT_FRAGMENT
        self.seq = int.from_bytes(self.l4[4:8], "big")
        self.pushes = self.proto == _TCP and bool(self.l4[13] & _PSH)

    @property
    def flow(self) -> bytes:
        """All of the headers that must be equal."""
        head, l4 = self.header, self.header[self.transport :]
        ip = head[:16] + head[20:24] + head[26:34] if self.v4 else head[:18] + head[20:54]
        if self.proto == _UDP:
            return ip + l4[:4]
        return ip + l4[:4] + l4[8:13] + l4[14:16] + l4[18:]


def _joinable(frame: bytes, flags: int, gso_type: int, csum_start: int, csum_offset: int) -> bool:
    """Plain TCP data or a plain datagram, for one station, with a checksum that somebody vouches for."""
    if gso_type or not flags or frame[0] & 1:
        return False
    packet = frame[_ETHERNET:]
    if frame[12:14] == b"\x08\x00":
        if len(packet) < 20 or packet[0] != 0x45:
            return False
        _, total, _, fragment, _, proto = struct.unpack_from("!HHHHBB", packet)
        if not 20 <= total <= len(packet) or fragment & 0x3FFF or inet_checksum(packet[:20]):
            return False
        transport, l4 = _ETHERNET + 20, packet[20:total]
    elif frame[12:14] == b"\x86\xdd":
        if len(packet) < 40 or packet[0] >> 4 != 6:
            return False
        length, proto = struct.unpack_from("!HB", packet, 4)
        if length > len(packet) - 40:
            return False
        transport, l4 = _ETHERNET + 40, packet[40 : 40 + length]
    else:
        return False
    if proto == _TCP:
        field, fits = 16, len(l4) >= 20 and not l4[12] & 15 and l4[13] & ~_PSH == _ACK and l4[12] >> 4 >= 5
        fits = fits and len(l4) > (l4[12] >> 4) * 4
    elif proto == _UDP:
        field, fits = 6, len(l4) > 8 and int.from_bytes(l4[4:6], "big") == len(l4) and l4[6:8] != bytes(2)
    else:
        return False
    return fits and (flags != NEEDS_CSUM or (csum_start, csum_offset) == (transport, field))


class _Run:
    """Neighbours of one flow."""

    def __init__(self, frame: RxFrame) -> None:
        self.frame = frame
        self.segments: list[_Segment] = []
        if _joinable(bytes(frame[0]), frame[1], frame[2], frame[4], frame[5]):
            self.segments.append(_Segment(bytes(frame[0])))

    def takes(self, other: _Run) -> bool:
        if not self.segments or not other.segments:
            return False
        first, last, new = self.segments[0], self.segments[-1], other.segments[0]
        size = len(first.data)
        length = len(first.header) - _ETHERNET + sum(len(each.data) for each in self.segments) + len(new.data)
        if (
            last.pushes
            or len(last.data) < size
            or len(new.data) > size
            or length > MAX_PACKET
            or first.flow != new.flow
        ):
            return False
        if first.counts_up and new.ident != (first.ident + len(self.segments)) & 0xFFFF:
            return False
        if first.proto == _UDP:
            return len(self.segments) < MAX_DATAGRAMS
        return size >= MINIMUM_GSO_SIZE and new.seq == (last.seq + len(last.data)) & 0xFFFFFFFF

    def joined(self) -> RxFrame:
        if len(self.segments) < 2:
            return self.frame
        first = self.segments[0]
        data = b"".join(each.data for each in self.segments)
        head = bytearray(first.header)
        at = first.transport
        length = len(head) - at + len(data)
        if first.v4:
            head[16:18] = (20 + length).to_bytes(2, "big")
            head[24:26] = bytes(2)
            head[24:26] = inet_checksum(bytes(head[14:34])).to_bytes(2, "big")
            src, dst = bytes(head[26:30]), bytes(head[30:34])
            gso_type = GSO_TCPV4
        else:
            head[18:20] = length.to_bytes(2, "big")
            src, dst = bytes(head[22:38]), bytes(head[38:54])
            gso_type = GSO_TCPV6
        offset = 16
        if first.proto == _UDP:
            gso_type, offset = GSO_UDP_L4, 6
            head[at + 4 : at + 6] = length.to_bytes(2, "big")
        elif self.segments[-1].pushes:
            head[at + 13] |= _PSH
        partial = ~inet_checksum(pseudo_header(src, dst, first.proto, length)) & 0xFFFF
        head[at + offset : at + offset + 2] = partial.to_bytes(2, "big")
        return memoryview(bytes(head) + data), NEEDS_CSUM, gso_type, len(first.data), at, offset


def coalesce(burst: Iterable[RxFrame]) -> list[RxFrame]:
    """The burst with neighbours joined where nothing is lost by it."""
    runs: list[_Run] = []
    for frame in burst:
        run = _Run(frame)
        if runs and runs[-1].takes(run):
            runs[-1].segments += run.segments
        else:
            runs.append(run)
    return [run.joined() for run in runs]


class Coalescing(AroundDevice):
    """A `CoalescingDevice` around any `LinkDevice`; checksums nobody has looked at are verified, as a card does."""

    def __init__(self, device: LinkDevice) -> None:
        super().__init__(device)
        self.joined = 0  #: frames that became part of the one before

    def receive_coalesced(self, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        burst = self.device.receive(budget)
        frames = trains.mark(coalesce(map(_verified, burst)))
        self.joined += len(burst) - len(frames)
        return frames, len(burst), sum(len(frame[0]) for frame in burst)

    def receive(self, budget: int) -> Sequence[RxFrame]:
        return self.device.receive(budget)

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        return self.device.transmit(burst)

    def __getattr__(self, name: str) -> Any:
        """What a device has beyond the seam (tests look at it)."""
        return getattr(self.device, name)


def _verified(frame: RxFrame) -> RxFrame:
    view, flags, gso_type, gso_size, csum_start, csum_offset = frame
    data = bytes(view)
    if flags or not _joinable(data, DATA_VALID, gso_type, csum_start, csum_offset) or not verify_rx(frame):
        return frame
    return view, DATA_VALID, gso_type, gso_size, csum_start, csum_offset
