"""A device, a control thread and a driver in one process, and frames to send through them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vhost_user.driver import NetDriver, VsockDriver
from vhost_user.frames import Buffer, TxFrame
from vhost_user.net import NetDevice
from vhost_user.server import Server
from vhost_user.vsock import VsockDevice

GUEST_MAC = bytes.fromhex("525400123456")
HOST_MAC = bytes.fromhex("525500000002")
CID = 3


@contextmanager
def net_rig(device: NetDevice | None = None, **driver: Any) -> Iterator[tuple[NetDevice, NetDriver]]:
    """A NetDevice with a NetDriver connected to it; `driver` are the driver's arguments."""
    device = device or NetDevice()
    ours, theirs = socket.socketpair()
    with Server() as server:
        try:
            server.adopt(device, ours)
            with NetDriver(theirs, **driver) as guest:
                device.refresh()
                yield device, guest
        finally:
            device.close()


@contextmanager
def vsock_rig(
    device: VsockDevice | None = None, *, keep: bool = False, **driver: Any
) -> Iterator[tuple[VsockDevice, VsockDriver]]:
    """A VsockDevice with a VsockDriver connected to it. `keep`: the device goes on living afterwards."""
    device = device or VsockDevice(CID)
    ours, theirs = socket.socketpair()
    with Server() as server:
        try:
            server.adopt(device, ours)
            with VsockDriver(theirs, **driver) as guest:
                device.refresh()
                yield device, guest
        finally:
            if not keep:
                device.close()


# -- frames -------------------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """RFC 1071, the slow and obvious way: the oracle for the C."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(ethertype: int, payload: bytes, *, vlans: int = 0) -> bytes:
    tags = b"".join(struct.pack(">HH", 0x8100, 7) for _ in range(vlans))
    return HOST_MAC + GUEST_MAC + tags + struct.pack(">H", ethertype) + payload


def ipv4(proto: int, segment: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    total = 20 + len(options) + len(segment)
    ihl = 0x45 + len(options) // 4
    source, destination = bytes([10, 0, 2, 15]), bytes([10, 0, 2, 2])
    fields = (ihl, 0, total & 0xFFFF, 1, fragment, 64, proto, 0, source, destination)
    return struct.pack(">BBHHHBBH4s4s", *fields) + options + segment


def ipv6(proto: int, segment: bytes, *, extensions: bytes = b"", first: int | None = None) -> bytes:
    source, destination = b"\xfd" + bytes(14) + b"\x0f", b"\xfd" + bytes(14) + b"\x02"
    length = (len(extensions) + len(segment)) & 0xFFFF
    head = struct.pack(">IHBB", 0x60000000, length, proto if first is None else first, 64)
    return head + source + destination + extensions + segment


PSEUDO4 = bytes([10, 0, 2, 15, 10, 0, 2, 2])
PSEUDO6 = b"\xfd" + bytes(14) + b"\x0f" + b"\xfd" + bytes(14) + b"\x02"


def tcp(payload: bytes, *, pseudo: bytes = PSEUDO4, words: int = 5, spoil: int = 0, partial: bool = False) -> bytes:
    """A TCP segment with the right checksum, a wrong one (`spoil`), or only the pseudo-header's sum (`partial`)."""
    head = struct.pack(">HHIIBBHHH", 40000, 80, 1, 2, words << 4, 0x18, 65535, 0, 0) + bytes(4 * max(words - 5, 0))
    return _seal(head + payload, pseudo, 6, 16, spoil, partial)


def udp(payload: bytes, *, pseudo: bytes = PSEUDO4, spoil: int = 0, partial: bool = False) -> bytes:
    return _seal(struct.pack(">HHHH", 5000, 53, 8 + len(payload), 0) + payload, pseudo, 17, 6, spoil, partial)


def _seal(segment: bytes, pseudo: bytes, proto: int, at: int, spoil: int, partial: bool) -> bytes:
    words = pseudo + struct.pack(">II", len(segment), proto)
    value = ~checksum(words) & 0xFFFF if partial else checksum(words + segment) or 0xFFFF
    return segment[:at] + struct.pack(">H", value ^ spoil) + segment[at + 2 :]


def superframe4(payload: int, **arguments: Any) -> bytes:
    """An IPv4 TCP superframe as a driver hands it over: partial checksum."""
    return ether(0x0800, ipv4(6, tcp(bytes(payload), partial=True, **arguments)))


def superframe6(payload: int, **arguments: Any) -> bytes:
    return ether(0x86DD, ipv6(6, tcp(bytes(payload), pseudo=PSEUDO6, partial=True, **arguments)))


def broadcast(size: int, seed: int = 0) -> bytes:
    """A frame of `size` bytes that is no IP, with contents of its own."""
    body = bytes((seed * 7 + i * 13) & 0xFF for i in range(size - 14))
    return ether(0x88B5, body)  # IEEE 802 local experimental ethertype


def plain(*parts: Buffer) -> TxFrame:
    """A frame to transmit, without offloads."""
    return (parts, 0, 0, 0, 0, 0, 0)
