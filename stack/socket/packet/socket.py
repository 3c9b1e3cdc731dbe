"""AF_PACKET sockets: the socket object and its addresses as CPython gives and takes them."""

from __future__ import annotations

import errno
import os
import socket as _kernel
from typing import TYPE_CHECKING, ClassVar, Final

from stack.packet.endpoint import PacketAddress
from stack.packet.membership import Memberships
from stack.socket.families import AF_PACKET
from stack.socket.options import OptionTable
from stack.socket.packet.open import PacketOpen
from stack.socket.packet.options import PACKET_OPTIONS
from stack.socket.record import RecordSocket

if TYPE_CHECKING:
    from stack.socket.base import Host

_SOCK_RAW: Final = 3
_LONGEST_HARDWARE_ADDRESS: Final = 8  # bytes of sll_addr


class PacketSocket(RecordSocket):
    """socket(AF_PACKET, SOCK_RAW or SOCK_DGRAM, protocol); `protocol` is an ethertype in network byte order."""

    family = AF_PACKET
    options_table: ClassVar[OptionTable] = PACKET_OPTIONS

    def __init__(self, host: Host, kind: int, protocol: int) -> None:
        super().__init__(host, kind, protocol)
        layer = host.netns.packet
        self.endpoint = layer.open(headers=kind == _SOCK_RAW)
        self.memberships = Memberships(layer)
        self.phase = PacketOpen(self)
        self.endpoint.bind(0, _kernel.ntohs(protocol & 0xFFFF))

    def address_in(self, address: object) -> PacketAddress:
        """(interface name, protocol[, packet kind[, hardware type[, hardware address]]])."""
        if not isinstance(address, tuple):
            raise TypeError(f"AF_PACKET address must be tuple, not {type(address).__name__}")
        name, protocol, kind, hardware, link = _parsed(*address)
        interface = self.host.netns.interfaces.get(name)
        if interface is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if len(link) > _LONGEST_HARDWARE_ADDRESS:
            raise ValueError("Hardware address must be 8 bytes or less")
        if not 0 <= protocol <= 0xFFFF:
            raise OverflowError("proto must be 0-65535.")
        return interface.index, protocol, kind & 0xFF, hardware & 0xFFFF, link

    def input_queue(self) -> int:
        """SIOCINQ: the first frame's length, bytes."""
        queue = self.endpoint.queue
        return len(queue[0].data) if queue else 0

    def output_queue(self) -> int:
        """SIOCOUTQ: what is sent is gone."""
        return 0

    def address_out(self, address: PacketAddress) -> object:
        ifindex, *rest = address
        interface = self.host.netns.ip.interfaces.get(ifindex)
        return ("" if interface is None else interface.name, *rest)


def _parsed(*parts: object) -> tuple[str, int, int, int, bytes]:
    """What PyArg_ParseTuple(args, "si|iiy*") makes of the tuple. Raises what that raises."""
    if not 2 <= len(parts) <= 5 or not isinstance(parts[0], str):
        raise TypeError("AF_PACKET address must be a tuple of two to five elements")
    name = parts[0]
    if "\0" in name:
        raise ValueError("embedded null character")
    numbers = [0, 0, 0]
    for place, part in enumerate(parts[1:4]):
        numbers[place] = _c_int(part)
    link = b""
    if len(parts) == 5:
        if isinstance(parts[4], str):
            raise TypeError("a bytes-like object is required, not 'str'")
        link = bytes(memoryview(parts[4]).cast("B"))  # type: ignore[arg-type]  # raises TypeError for what is none
    return name, numbers[0], numbers[1], numbers[2], link


def _c_int(value: object) -> int:
    if not hasattr(value, "__index__"):
        raise TypeError(f"'{type(value).__name__}' object cannot be interpreted as an integer")
    number: int = value.__index__()
    if not -(1 << 31) <= number < 1 << 31:
        raise OverflowError(f"signed integer is {'greater than maximum' if number > 0 else 'less than minimum'}")
    return number
