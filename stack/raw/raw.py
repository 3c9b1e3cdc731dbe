"""`RawEndpoint`: one raw socket's protocol half (raw(7), RFC 1122 3.4, RFC 3542 2 and 3).

IPv4 packets are delivered with their header, IPv6 packets without. What is sent gets a header, unless the user writes
it (IP_HDRINCL): then checksum and total length, and source and identification where they are 0, are filled in, for
IPv4; and nothing for IPv6.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import DropReason, NetError
from stack.raw.endpoint import MAX_LENGTH, IpEndpoint
from stack.udp.sending import PLAIN, SendOptions
from stack.wire import ipv4, ipv6
from stack.wire.checksum import checksum, partial_sum, pseudo_sum

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IcmpError, IpPacket
    from stack.ip.route import Route

IPPROTO_RAW: Final = 255
_UDP: Final = 17
_SUMMED_BY_DEVICES: Final = (6, 17)
_ICMP: Final = {4: ipv4.PROTO_ICMP, 6: ipv6.ICMPV6}
_TYPE_AND_CODE: Final = 2  # bytes
_DF: Final = 0x40  # in the seventh byte of an IPv4 header


class RawEndpoint(IpEndpoint):
    """Listens from its making to its close."""

    def __init__(self, ip: IpLayer, version: int, proto: int) -> None:
        super().__init__(ip, version, proto)
        self.header_included = proto == IPPROTO_RAW  #: IP_HDRINCL
        #: IPV6_CHECKSUM: where in the payload a checksum is put and verified; -1: nowhere.
        self.checksum = 2 if version == 6 and proto == ipv6.ICMPV6 else -1
        self.blocked_types = 0  #: ICMP_FILTER and ICMP6_FILTER: types that are not delivered, as a mask
        ip.raw.listen(version, proto, self)

    def bind(self, address: bytes, *, freebind: bool = False) -> None:
        """Receive what is for `address` only, and send from it. Raises NetError: EINVAL (connected), EADDRNOTAVAIL."""
        if self.remote is not None:
            raise NetError(errno.EINVAL)
        wrong = len(address) != len(self.any)
        if wrong or (any(address) and not freebind and not self._ip.is_local(address)):
            raise NetError(errno.EADDRNOTAVAIL)
        self.bound_address = address

    def left(self) -> None:
        self._ip.raw.leave(self.version, self.proto, self)
        if self in self._ip.alerts:
            self._ip.alerts.leave(self)

    # --- receiving ----------------------------------------------------------------------------------------------

    def offer(self, packet: IpPacket) -> bool:
        if not self.fits(packet):
            return False
        payload = packet.payload
        blocked = self.blocked_types
        if blocked and payload and blocked >> payload[0] & 1:
            return True
        if self.version == 4:
            self.put(packet, packet.datagram)
        elif self.checksum >= 0 and not self._intact(packet):
            self.drops.count(DropReason.BAD_CHECKSUM)
        else:
            self.put(packet, payload)
        return True

    def alerted(self, packet: IpPacket) -> None:
        """A packet on its way through us (IP_ROUTER_ALERT)."""
        self.put(packet, packet.datagram)

    def _intact(self, packet: IpPacket) -> bool:
        """RFC 3542 3.1: the checksum asked for is verified, too."""
        if packet.proto in _SUMMED_BY_DEVICES and packet.csum_ok:
            return True
        payload = packet.payload
        return partial_sum(payload, pseudo_sum(packet.src, packet.dst, packet.proto, len(payload))) == 0xFFFF

    def failed(self, error: IcmpError) -> None:
        if self.is_mine(error):
            if error.mtu:
                try:
                    self._ip.update_path_mtu(error.remote, error.mtu)
                except NetError:  # there is no way there any more
                    self.drops.count(DropReason.NO_ROUTE)
            self.report(error)

    # --- sending ------------------------------------------------------------------------------------------------

    def send(self, data: bytes, dst: bytes | None = None, how: SendOptions = PLAIN, *, proto: int = 0) -> int:
        """Send one packet; returns the bytes of `data`. `proto`: instead of its own, for IPPROTO_RAW over IPv6.

        Raises NetError: EDESTADDRREQ, EMSGSIZE, EACCES (broadcast), EINVAL (a header that is none, no room for the
        checksum), EFAULT (ICMP of less than two bytes), what `IpLayer.route` raises, ENETDOWN.
        """
        size = len(data)
        if size > MAX_LENGTH:
            raise NetError(errno.EMSGSIZE)
        if dst is None:
            if self.remote is None:
                raise NetError(errno.EDESTADDRREQ)
            dst = self.remote[0]
        if not self.header_included and size < _TYPE_AND_CODE and self.proto == _ICMP[self.version]:
            raise NetError(errno.EFAULT)  # Linux looks at type and code, for its routing policy
        if self.header_included and (self.v4.options if how.options is None else how.options):
            raise NetError(errno.EINVAL)  # there is no header of ours to put them into
        route, dst = self.way(dst, how)
        if self.header_included:
            if size > route.iface.mtu:
                raise self.too_long(route)
            loop = self.settings.loop
            queued = self._ip.loopback.fresh
            self._ip.output_whole(route, self._header4(data, route) if self.version == 4 else _header6(data), loop=loop)
            self._ip.loopback.annotate(queued, how.note(self.mark, self.priority))
            return size
        if self.checksum >= 0:
            data = self._summed(data, route, dst, proto or self.proto)
        self.emit(route, dst, proto or self.proto, (data,), size, how)
        return size

    def _header4(self, data: bytes, route: Route) -> bytes:
        """An IPv4 packet as the user wrote it, with what Linux fills in (raw(7))."""
        length = len(data)
        words = data[0] & 0x0F if data else 0
        if length < ipv4.HEADER_LENGTH or not ipv4.HEADER_LENGTH <= words * 4 <= length:
            raise NetError(errno.EINVAL)
        header = bytearray(data[: words * 4])
        header[2:4] = length.to_bytes(2, "big")
        if not any(header[12:16]):
            header[12:16] = route.src
        if not any(header[4:6]) and not header[6] & _DF:
            ident = self._ip.ident4(bytes(header[12:16]), bytes(header[16:20]), header[9])
            header[4:6] = ident.to_bytes(2, "big")
        header[10:12] = b"\0\0"
        header[10:12] = checksum(header).to_bytes(2, "big")
        return bytes(header) + data[words * 4 :]

    def _summed(self, data: bytes, route: Route, dst: bytes, proto: int) -> bytes:
        """`data` with the checksum RFC 3542 3.1 promises."""
        at = self.checksum
        if at >= len(data) - 1:
            raise NetError(errno.EINVAL)
        blank = data[:at] + b"\0\0" + data[at + 2 :]
        value = checksum(blank, pseudo_sum(route.src, dst, proto, len(data)))
        if not value and proto == _UDP:
            value = 0xFFFF
        return data[:at] + value.to_bytes(2, "big") + data[at + 2 :]


def _header6(data: bytes) -> bytes:
    """An IPv6 packet goes as it is."""
    if len(data) < ipv6.HEADER_LENGTH:
        raise NetError(errno.EINVAL)
    return data
