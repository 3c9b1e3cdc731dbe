"""Frames to the guest as tuples, and looks into them where virtio-net cannot do without: tags, checksums to finish, an
announcement to make."""

from __future__ import annotations

from typing import Final

from vhost_user._vring import ffi, lib

Buffer = bytes | bytearray | memoryview
#: A frame to the guest, as `stack.link.device` has it: parts, flags, gso_type, hdr_len, gso_size, csum_start,
#: csum_offset.
TxFrame = tuple[tuple[Buffer, ...], int, int, int, int, int, int]
TxFacts = tuple[int, int, int, int, int, int]  # of it, all but the parts

NEEDS_CSUM: Final = 1

ETHER_HEADER: Final = 14
VLAN_TAG: Final = 4
#: The shortest Ethernet frame without its FCS (IEEE 802.3: 64 bytes with it); drivers may rely on it.
MIN_FRAME: Final = 60

MAX_PACKET: Final = 65535
MAX_SUPERFRAME: Final = ETHER_HEADER + MAX_PACKET


def finished(parts: tuple[Buffer, ...], start: int, offset: int) -> bytearray:
    """One buffer of the frame with its checksum complete. The field lies inside, that was checked."""
    frame = bytearray().join(parts)
    lib.vnet_finish_checksum(ffi.from_buffer(frame), len(frame), start, offset)
    return frame


def first_bytes(parts: tuple[Buffer, ...], size: int) -> bytes:
    head = bytes(parts[0][:size])
    for part in parts[1:]:
        if len(head) >= size:
            break
        head += part[: size - len(head)]
    return head


def tagged(parts: tuple[Buffer, ...]) -> bool:
    """The frame carries a VLAN tag, which does not count against the MTU."""
    return first_bytes(parts, ETHER_HEADER)[12:14] in (b"\x81\x00", b"\x88\xa8")


def rarp(mac: bytes) -> bytes:
    """A reverse ARP request (RFC 903) as the owner of `mac` would broadcast it: switches learn where it is now."""
    body = b"\x00\x01\x08\x00\x06\x04\x00\x03" + (mac + bytes(4)) * 2
    return (b"\xff" * 6 + mac + b"\x80\x35" + body).ljust(MIN_FRAME, b"\0")
