"""Who gets copies of the packets of one protocol besides the protocol itself: the registry behind raw sockets.

Theory of operation
-------------------
While somebody listens to a protocol, a `_Front` stands in its handler's place: it offers each packet to the listeners
and then hands it to the handler as if nothing had happened. Of a superframe they are offered what it was cut into. A
protocol nobody listens to has its handler in its place and pays nothing. A protocol without a handler is known as
long as a listener takes its packets: its sender is told of an unknown protocol only if none does (RFC 1122 3.2.2.1, as
Linux).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stack.ip.superframe import packets_of
from stack.wire.ipv6 import HEADER_LENGTH, walk_extensions

if TYPE_CHECKING:
    from stack.ip.layer import IpLayer
    from stack.ip.packet import IcmpError, IpPacket, PacketHandler


class RawListener(Protocol):
    """A raw socket's protocol half."""

    def offer(self, packet: IpPacket) -> bool:
        """A packet for us, whole; whether it is one the listener is there for, even if there is no room for it."""
        ...

    def failed(self, error: IcmpError) -> None:
        """An error about a packet of the protocol; not necessarily the listener's."""
        ...


class _Front:
    def __init__(self, ip: IpLayer, version: int, handler: PacketHandler | None) -> None:
        self._ip = ip
        self._version = version
        self.handler = handler
        self.listeners: list[RawListener] = []

    def receive(self, packet: IpPacket) -> None:
        taken = False
        for each in packets_of(packet):
            for listener in tuple(self.listeners):
                taken = listener.offer(each) or taken
        if self.handler is not None:
            self.handler(packet)
        elif taken:
            return
        elif self._version == 4:
            self._ip.input4.unknown_protocol(packet)
        else:
            pointer = 6
            if packet.header_length > HEADER_LENGTH:
                header = packet.header
                pointer = HEADER_LENGTH + walk_extensions(header[6], packet.datagram[HEADER_LENGTH:]).pointer
            self._ip.input6.unknown_protocol(packet, pointer)


class RawTable:
    """The listeners of one namespace."""

    def __init__(self, ip: IpLayer) -> None:
        self._ip = ip
        self._fronts: dict[tuple[int, int], _Front] = {}

    def listen(self, version: int, proto: int, listener: RawListener) -> None:
        """Have packets of protocol `proto` of IP `version` (4 or 6), and errors about such, offered to `listener`."""
        front = self._fronts.get((version, proto))
        if front is None:
            handlers = self._handlers(version)
            front = self._fronts[version, proto] = _Front(self._ip, version, handlers.get(proto))
            handlers[proto] = front.receive
        front.listeners.append(listener)

    def leave(self, version: int, proto: int, listener: RawListener) -> None:
        """The opposite."""
        front = self._fronts[version, proto]
        front.listeners.remove(listener)
        if not front.listeners:
            del self._fronts[version, proto]
            handlers = self._handlers(version)
            if front.handler is None:
                del handlers[proto]
            else:
                handlers[proto] = front.handler

    def place(self, proto: int, handler: PacketHandler) -> None:
        """`handler` is the one of `proto` from now on, for both versions, behind whoever listens."""
        for version in (4, 6):
            front = self._fronts.get((version, proto))
            if front is None:
                self._handlers(version)[proto] = handler
            else:
                front.handler = handler

    def failed(self, error: IcmpError) -> None:
        """An error about a packet of ours."""
        front = self._fronts.get((error.version, error.proto))
        if front is not None:
            for listener in tuple(front.listeners):
                listener.failed(error)

    def __len__(self) -> int:
        """Protocols listened to."""
        return len(self._fronts)

    def _handlers(self, version: int) -> dict[int, PacketHandler]:
        return self._ip.handlers4 if version == 4 else self._ip.handlers6
