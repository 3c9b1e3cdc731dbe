"""Trains in Python: the model of what a device marks with `FOLLOWS`, said the other way round.

A frame follows the one before if it is, but for its payload, what can be made of that one's headers by writing the
numbers into them that may differ. Among them are of bare acknowledgments what they acknowledge, if it is more, and the
window.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from stack.link.device import FOLLOWS, RxFrame
from stack.testing.builders import inet_checksum

_ETHERNET: Final = 14
_TCP: Final = 6
_PSH: Final = 0x08
_ACK: Final = 0x10


def _headers(frame: bytes) -> tuple[int, int] | None:
    """Where TCP's header begins and ends in a frame that holds a whole segment and nothing more."""
    packet = frame[_ETHERNET:]
    if frame[12:14] == b"\x08\x00" and packet[:1] == b"\x45" and len(packet) >= 20:
        fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
        if fragment or packet[9] != _TCP or inet_checksum(packet[:20]):
            return None
        length, transport = int.from_bytes(packet[2:4], "big"), _ETHERNET + 20
    elif frame[12:14] == b"\x86\xdd" and len(packet) >= 40 and packet[6] == _TCP:
        length, transport = int.from_bytes(packet[4:6], "big") + 40, _ETHERNET + 40
    else:
        return None
    if length != len(packet) or len(frame) < transport + 20:
        return None
    end = transport + (frame[transport + 12] >> 4) * 4
    return (transport, end) if transport + 20 <= end <= len(frame) else None


def follows(before: RxFrame, frame: RxFrame) -> bool:
    """Whether `frame` is to be marked behind `before`."""
    if before[1] & ~FOLLOWS != frame[1] or not frame[1] or before[2:] != frame[2:]:
        return False
    one, other = bytes(before[0]), bytes(frame[0])
    places = _headers(one)
    if places is None or _headers(other) != places:
        return False
    transport, end = places
    bare = len(one) == end
    if bare != (len(other) == end):
        return False
    wanted = bytearray(one[:end])
    if transport == _ETHERNET + 20:
        wanted[16:18] = (len(other) - _ETHERNET).to_bytes(2, "big")
        wanted[18:20] = other[18:20]
        wanted[24:26] = bytes(2)
        wanted[24:26] = inet_checksum(bytes(wanted[_ETHERNET:transport])).to_bytes(2, "big")
        if other[24:26] == b"\xff\xff":  # the same number as the zero that RFC 1071 would make
            wanted[24:26] = other[24:26] if wanted[24:26] == bytes(2) else wanted[24:26]
    else:
        wanted[18:20] = (len(other) - transport).to_bytes(2, "big")
    if bare:
        before_ack, ack = (int.from_bytes(each[transport + 8 : transport + 12], "big") for each in (one, other))
        if one[transport + 13] != _ACK or frame[2] or not 0 < (ack - before_ack) & 0xFFFFFFFF < 1 << 31:
            return False
        wanted[transport + 8 : transport + 12] = other[transport + 8 : transport + 12]
        wanted[transport + 14 : transport + 18] = other[transport + 14 : transport + 18]
        return bytes(wanted) == other
    seq = int.from_bytes(one[transport + 4 : transport + 8], "big") + len(one) - end
    wanted[transport + 4 : transport + 8] = (seq & 0xFFFFFFFF).to_bytes(4, "big")
    wanted[transport + 13] = one[transport + 13] & ~_PSH | other[transport + 13] & _PSH
    wanted[transport + 16 : transport + 18] = other[transport + 16 : transport + 18]
    return bytes(wanted) == other[:end]


def mark(burst: Iterable[RxFrame]) -> list[RxFrame]:
    """The burst, with `FOLLOWS` where it belongs."""
    marked: list[RxFrame] = []
    for frame in burst:
        view, flags, *facts = frame
        follower = bool(marked) and follows(marked[-1], frame)
        marked.append((view, flags | FOLLOWS, *facts) if follower else frame)  # type: ignore[arg-type]  # same arity
    return marked
