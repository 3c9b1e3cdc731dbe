"""What becomes of packets whose next hop never answered: whoever sent them is told."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.link.device import TxFrame
from stack.wire import icmp, icmpv6, ipv4, ipv6
from stack.wire.ethernet import ETHERTYPE_IPV4
from stack.wire.ethernet import HEADER_LENGTH as ETHERNET_LENGTH

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.ip.layer import IpLayer

_ERROR_HOST_UNREACHABLE: Final = (icmp.UNREACHABLE, icmp.HOST_UNREACHABLE)
_ERROR_ADDRESS_UNREACHABLE: Final = (icmpv6.UNREACHABLE, icmpv6.ADDRESS_UNREACHABLE)


class Undelivered:
    """Of one namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip

    def tell(self, iface: Interface, frames: list[TxFrame]) -> None:
        """Packets whose next hop never answered: their transports are told as by a router (EHOSTUNREACH)."""
        ip = self._ip
        for frame in frames:
            whole = memoryview(b"".join(frame[0]))
            datagram = whole[ETHERNET_LENGTH:]
            ipv4_frame = whole[ETHERNET_LENGTH - 1] == ETHERTYPE_IPV4 & 0xFF
            if (datagram[0] >> 4 == 4) is not ipv4_frame:
                continue  # a header that a raw socket made up
            if ipv4_frame:
                _, _, _, _, fragment, _, proto, _, src, dst = ipv4.HEADER.unpack_from(datagram)
                payload = datagram[(datagram[0] & 0x0F) * 4 :]
                kind, code = _ERROR_HOST_UNREACHABLE
                first = not fragment & ipv4.OFFSET_MASK
            else:
                _, _, proto, _, src, dst = ipv6.HEADER.unpack_from(datagram)
                payload = datagram[ipv6.HEADER_LENGTH :]
                kind, code = _ERROR_ADDRESS_UNREACHABLE
                first = True
                if proto == ipv6.FRAGMENT_HEADER:
                    if len(payload) < ipv6.FRAGMENT_HEADER_LENGTH:
                        continue
                    header, payload = ipv6.parse_fragment(payload)
                    proto, first = header.next_header, not header.offset
            if not ip.is_own_unicast(src):
                self._tell_sender(iface, datagram, kind, code)
            elif first:
                ip.deliver_error(
                    IcmpError(
                        version=4 if len(src) == 4 else 6,
                        type=kind,
                        code=code,
                        errno=errno.EHOSTUNREACH,
                        hard=False,
                        mtu=0,
                        info=0,
                        src=src,
                        local=src,
                        remote=dst,
                        proto=proto,
                        payload=payload,
                    )
                )

    def _tell_sender(self, iface: Interface, datagram: memoryview, kind: int, code: int) -> None:
        """A packet passed on whose next hop never answered (RFC 1812 5.2.7.1, RFC 4861 7.2.2)."""
        if datagram[0] >> 4 == 4:
            _, tos, total, _, _, ttl, proto, _, src, dst = ipv4.HEADER.unpack_from(datagram)
            version, length, send = 4, (datagram[0] & 0x0F) * 4, self._ip.icmp4.send_error
        else:
            first, payload_length, proto, ttl, src, dst = ipv6.HEADER.unpack_from(datagram)
            version, length, send = 6, ipv6.HEADER_LENGTH, self._ip.icmp6.send_error
            tos, total = first >> 20 & 0xFF, length + payload_length
        payload = datagram[length:total]
        packet = IpPacket(
            version, src, dst, proto, ttl, tos, payload, True, 0, iface, datagram, 0, length, total, PacketKind.UNICAST
        )
        send(packet, kind, code)
