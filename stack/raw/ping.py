"""`PingEndpoint`: one ping socket's protocol half: echo requests under one identifier, and the replies to them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.raw.endpoint import MAX_LENGTH, IpEndpoint
from stack.udp.sending import PLAIN, SendOptions
from stack.wire import icmp, icmpv6
from stack.wire.checksum import checksum, pseudo_sum
from stack.wire.ipv4 import PROTO_ICMP
from stack.wire.ipv6 import ICMPV6

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IcmpError, IpPacket

_HEADER: Final = 8  # bytes: type, code, checksum, identifier, sequence number
EXTENDED_REQUEST4: Final = 42  # RFC 8335 2.1
EXTENDED_REQUEST6: Final = 160
_REQUESTS4: Final = (icmp.ECHO_REQUEST, EXTENDED_REQUEST4)
_REQUESTS6: Final = (icmpv6.ECHO_REQUEST, EXTENDED_REQUEST6)


class PingEndpoint(IpEndpoint):
    """Holds an identifier from `bind` on."""

    def __init__(self, ip: IpLayer, version: int) -> None:
        super().__init__(ip, version, PROTO_ICMP if version == 4 else ICMPV6)
        self.ident = 0  #: 0: none yet
        self.reuse = True  #: SO_REUSEADDR

    def bind(self, address: bytes, ident: int = 0) -> None:
        """Hold `ident` (0: any that is free) for replies to `address` (all zero: any).

        Raises NetError: EINVAL if it holds one, EADDRNOTAVAIL for an address that is not ours, EADDRINUSE.
        """
        if self.ident:
            raise NetError(errno.EINVAL)
        if len(address) != len(self.any) or (any(address) and not self._ip.is_own_unicast(address)):
            raise NetError(errno.EADDRNOTAVAIL)
        self.ident = self._ip.pings.hold(self, ident)
        self.bound_address = address

    def left(self) -> None:
        if self.ident:
            self._ip.pings.release(self, self.ident)

    def fits(self, packet: IpPacket) -> bool:
        """As Linux: whom it is connected to does not count, a reply may come from anywhere."""
        if packet.version != self.version or (self.bind_ifindex and self._ip.arrival(packet) != self.bind_ifindex):
            return False
        local = self.local_address
        return not any(local) or local == packet.dst

    def offer(self, packet: IpPacket) -> bool:
        if not self.fits(packet):
            return False
        self.put(packet, packet.payload)
        return True

    def failed(self, error: IcmpError) -> bool:
        local = self.local_address
        if error.version != self.version or (any(local) and local != error.local):
            return False
        self.report(error)
        return True

    def send(self, data: bytes, dst: bytes | None = None, how: SendOptions = PLAIN) -> int:
        """Send an echo request: `data` begin with its header, whose identifier and checksum are filled in.

        Raises NetError: EINVAL for any other message, EMSGSIZE, EDESTADDRREQ, EACCES (broadcast), what
        `IpLayer.route` raises, ENETDOWN.
        """
        size = len(data)
        if size > MAX_LENGTH:
            raise NetError(errno.EMSGSIZE)
        if size < _HEADER or data[0] not in (_REQUESTS4 if self.version == 4 else _REQUESTS6) or data[1]:
            raise NetError(errno.EINVAL)
        if dst is None:
            if self.remote is None:
                raise NetError(errno.EDESTADDRREQ)
            dst = self.remote[0]
        route, dst = self.way(dst, how)
        message = bytearray(data)
        message[2:4] = b"\0\0"
        message[4:6] = self.ident.to_bytes(2, "big")
        pseudo = 0 if self.version == 4 else pseudo_sum(route.src, dst, ICMPV6, size)
        message[2:4] = checksum(message, pseudo).to_bytes(2, "big")
        self.emit(route, dst, self.proto, (bytes(message),), size, how)
        return size
