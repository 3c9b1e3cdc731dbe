"""The one phase of a raw socket: it receives from the beginning, and is bound and connected at will (raw(7))."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.raw.raw import IPPROTO_RAW
from stack.socket.ip.options import IP_FREEBIND, IPPROTO_IP
from stack.socket.ip.raw_phase import IpMessagePhase
from stack.socket.ip.scope import ScopedAddress, bind_to_link, scoped
from stack.socket.message import MSG_OOB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import Buffer
    from stack.raw import RawEndpoint
    from stack.socket.base import Again
    from stack.socket.ip.raw import RawSocket
    from stack.socket.message import Ancillary

_LAST_PROTOCOL = 255


class RawOpen(IpMessagePhase):
    """See above."""

    __slots__ = ()
    socket: RawSocket

    @property
    def endpoint(self) -> RawEndpoint:
        return self.socket.endpoint

    def bind(self, address: ScopedAddress) -> None:
        """Of the address only its host counts."""
        bind_to_link(self.socket, address[0], address[2])
        self.socket.apply()
        self.endpoint.bind(address[0], freebind=bool(self.socket.options.value(IPPROTO_IP, IP_FREEBIND)))

    def send(self, data: Buffer, flags: int, address: ScopedAddress | None) -> int | Again:
        return self.send_message(data, (), flags, address)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: ScopedAddress | None
    ) -> int | Again:
        endpoint = self.endpoint
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if endpoint.header_included:  # only there Linux looks at errors and at what was shut down
            if endpoint.error:
                raise NetError(endpoint.take_error())
            if self.mute:
                raise NetError(errno.EPIPE)
        target, port, oif = (None, 0, 0) if address is None else self.destination(address)
        proto = self._protocol(port) if endpoint.version == 6 and address is not None else 0
        how = self.socket.sending(ancillary, flags, oif)
        self.check_end(address, how)
        return endpoint.send(bytes(data), target, how, proto=proto)

    def _protocol(self, port: int) -> int:
        """Over IPv6 the port of an address names the protocol. Raises NetError(EINVAL) for another than ours."""
        own = self.endpoint.proto
        if port and port != own and own != IPPROTO_RAW:
            raise NetError(errno.EINVAL)
        if port > _LAST_PROTOCOL:
            raise NetError(errno.EINVAL)
        return port or own

    def local_address(self) -> ScopedAddress:
        """As on Linux the protocol stands where ports stand elsewhere."""
        return scoped(self.socket, (self.endpoint.local_address, self.endpoint.proto))
