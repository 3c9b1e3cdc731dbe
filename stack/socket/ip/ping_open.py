"""The phase of a ping socket: its identifier is its port, taken by bind, or by the first connect or send (icmp(7))."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.ip.raw_phase import IpMessagePhase
from stack.socket.ip.scope import ScopedAddress, bind_to_link, scoped
from stack.socket.message import MSG_ERRQUEUE, MSG_OOB
from stack.socket.phase import AGAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import Buffer
    from stack.raw import PingEndpoint
    from stack.socket.base import Again
    from stack.socket.ip.raw import PingSocket
    from stack.socket.message import Ancillary, Message


class PingOpen(IpMessagePhase):
    """See above."""

    __slots__ = ()
    socket: PingSocket

    @property
    def endpoint(self) -> PingEndpoint:
        return self.socket.endpoint

    def bind(self, address: ScopedAddress) -> None:
        if len(address[0]) != len(self.endpoint.any):
            raise NetError(errno.EINVAL)
        bind_to_link(self.socket, address[0], address[2])
        self.socket.apply()
        self.endpoint.bind(address[0], address[1])

    def _bind(self) -> None:
        if not self.endpoint.ident:
            self.endpoint.bind(self.endpoint.any)

    def connect(self, address: ScopedAddress) -> None:
        self._bind()
        if len(address[0]) != len(self.endpoint.any):
            raise NetError(errno.ENETUNREACH)
        super().connect(address)

    def send(self, data: Buffer, flags: int, address: ScopedAddress | None) -> int | Again:
        return self.send_message(data, (), flags, address)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: ScopedAddress | None
    ) -> int | Again:
        endpoint = self.endpoint
        self._bind()  # an identifier is taken even if the send then fails
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        target, _, oif = (None, 0, 0) if address is None else self.destination(address)
        if endpoint.error:
            raise NetError(endpoint.take_error())
        if self.mute:
            raise NetError(errno.EPIPE)
        if address is not None and endpoint.version == 6 and not any(address[0]):
            raise NetError(errno.ENETUNREACH)  # "::" is this host to every socket but this one: ping_v6_sendmsg
        how = self.socket.sending(ancillary, flags, oif)
        self.check_end(address, how)
        return endpoint.send(bytes(data), target, how)

    def receive(self, size: int, flags: int) -> Message | Again:
        message = super().receive(size, flags)
        if message is not AGAIN and not flags & MSG_ERRQUEUE:
            message.length = len(message.data)  # MSG_TRUNC does not tell the true length, as on Linux
        return message

    def destination(self, address: ScopedAddress) -> ScopedAddress:
        if len(address[0]) != len(self.endpoint.any):
            raise NetError(errno.EINVAL)
        return super().destination(address)

    def local_address(self) -> ScopedAddress:
        return scoped(self.socket, (self.endpoint.local_address, self.endpoint.ident))
