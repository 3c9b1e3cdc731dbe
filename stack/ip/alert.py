"""Router alert (RFC 2113): packets on their way through us that ask every router to look.

Listeners are raw sockets with IP_ROUTER_ALERT. A packet for others that carries the option goes to those of its
protocol instead of on: they are the router's program (RSVP, multicast routing), and send on what they want to.
Fragments are put together first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from stack.wire.ipv4 import FRAGMENT_MASK, HEADER_LENGTH

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IpPacket

_END: Final = 0
_NOP: Final = 1
_ALERT: Final = 148


class AlertListener(Protocol):
    """A raw socket's protocol half."""

    proto: int
    bind_ifindex: int

    def alerted(self, packet: IpPacket) -> None:
        """A packet for somebody else."""
        ...


class AlertTable:
    """The listeners of one namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._listeners: list[AlertListener] = []

    def __contains__(self, listener: AlertListener) -> bool:
        return listener in self._listeners

    def listen(self, listener: AlertListener) -> None:
        self._listeners.append(listener)

    def leave(self, listener: AlertListener) -> None:
        self._listeners.remove(listener)

    def takes(self, packet: IpPacket) -> bool:
        """Was `packet`, about to be passed on, for listeners? Whoever wants it has it then."""
        index = packet.iface.index
        wanted = [each for each in self._listeners if each.proto == packet.proto and each.bind_ifindex in (0, index)]
        if not wanted or not _asks(bytes(packet.header)[HEADER_LENGTH:]):
            return False
        header = packet.header
        if (header[6] << 8 | header[7]) & FRAGMENT_MASK:
            whole = self._ip.input4.whole(
                packet.iface, packet.frame, packet.kind, packet.header_length, packet.total_length
            )
            if whole is None:
                return True
            packet = whole
        for each in wanted:
            each.alerted(packet)
        return True


def _asks(options: bytes) -> bool:
    """Is there a router alert with value 0, "routers shall examine the packet", among the options?"""
    at = 0
    while at < len(options) and options[at] != _END:
        if options[at] == _NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2:
            return False
        if options[at] == _ALERT:
            return length == 4 and not any(options[at + 2 : at + 4])
        at += length
    return False
