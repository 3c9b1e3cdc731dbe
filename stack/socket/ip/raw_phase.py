"""What raw and ping sockets do alike once they exist: receiving, errors, shutting down, poll bits."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.ip.listening import is_group
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.ip.address import MAPPED
from stack.socket.ip.binding import LOOPBACK4, LOOPBACK6
from stack.socket.ip.scope import ScopedAddress, bind_to_link, scoped
from stack.socket.message import MSG_DONTWAIT, MSG_ERRQUEUE, MSG_OOB, MSG_PEEK, MSG_TRUNC, Message
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP, RDNORM, WRNORM
from stack.wire.ipoptions import first_hop
from stack.wire.ipv6 import is_link_local

if TYPE_CHECKING:
    from stack.raw import IpEndpoint
    from stack.socket.ip.raw import IpMessageSocket
    from stack.udp import SendOptions

_READ: Final = 0
_WRITE: Final = 1


class IpMessagePhase(Phase):
    """`endpoint` is the socket's for its whole life."""

    __slots__ = ("deaf", "mute", "socket")

    def __init__(self, socket: IpMessageSocket) -> None:
        self.socket = socket
        self.deaf = False  #: our receiving side is shut down
        self.mute = False  #: our sending side is shut down

    @property
    def endpoint(self) -> IpEndpoint:
        return self.socket.endpoint

    def destination(self, address: ScopedAddress) -> ScopedAddress:
        """Whom an address stands for: "any" is this host; a mapped one is an IPv6 address like others."""
        target, port, scope = address
        endpoint = self.endpoint
        if len(target) != len(endpoint.any):
            target = MAPPED + target
        if not any(target):
            target = LOOPBACK4 if endpoint.version == 4 else LOOPBACK6
        return target, port, scope

    def check_end(self, address: ScopedAddress | None, how: SendOptions) -> None:
        """Raises NetError(EINVAL) for a source route that ends nowhere."""
        if address is not None and not any(address[0]):
            settings = self.endpoint.v4
            if self.endpoint.version == 4 and first_hop(settings.options if how.options is None else how.options):
                raise NetError(errno.EINVAL)

    def connect(self, address: ScopedAddress) -> None:
        endpoint = self.endpoint
        if len(address[0]) < len(endpoint.any):
            # As on Linux, a mapped address can be connected to, if IPv4 has a way there; nothing can be sent to it.
            source = self.socket.host.netns.ip.route(address[0]).src
            endpoint.remote, endpoint.connected_from = (MAPPED + address[0], address[1]), MAPPED + source
            return
        target, port, scope = self.destination(address)
        bind_to_link(self.socket, target, scope or endpoint.v6.multicast_ifindex * is_group(target), connecting=True)
        self.socket.apply()
        endpoint.connect(target, port)

    def receive(self, size: int, flags: int) -> Message | Again:
        endpoint = self.endpoint
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if flags & MSG_ERRQUEUE:
            return self.socket.failure(size, flags)
        if endpoint.error:
            raise NetError(endpoint.take_error())
        packet = endpoint.peek() if flags & MSG_PEEK else endpoint.recv()
        if packet is None:
            return Message(b"") if self.deaf and not flags & MSG_DONTWAIT else AGAIN
        data = packet.data
        length = len(data)
        scope = packet.ifindex if is_link_local(packet.src[0]) else 0
        message = Message(data[:size], (*packet.src, scope), MSG_TRUNC if length > size else 0, length)
        message.ancillary = self.socket.told(packet)
        return message

    def shutdown(self, how: int) -> None:
        """Without a peer it is an error, and done all the same, as on Linux."""
        self.deaf = self.deaf or how != _WRITE
        self.mute = self.mute or how != _READ
        if self.endpoint.remote is None:
            raise NetError(errno.ENOTCONN)

    def peer_address(self) -> ScopedAddress:
        remote = self.endpoint.remote
        if remote is None:
            raise NetError(errno.ENOTCONN)
        return scoped(self.socket, remote)

    def take_error(self) -> int:
        return self.endpoint.take_error()

    def put_error(self, error: int) -> None:
        self.endpoint.error = error

    def memory(self) -> tuple[int, int, int]:
        return self.endpoint.queued_bytes, 0, self.endpoint.lost

    def option_changed(self, level: int, name: int) -> None:
        self.socket.apply()

    def poll(self) -> int:
        endpoint = self.endpoint
        bits = OUT | WRNORM
        if endpoint.pending or self.deaf:
            bits |= IN | RDNORM
        if self.deaf:
            bits |= RDHUP
            if self.mute:
                bits |= HUP
        if endpoint.error or endpoint.errors:
            bits |= ERR
        return bits

    def close(self) -> None:
        self.endpoint.close()
