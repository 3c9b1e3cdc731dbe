"""A TCP socket before anything: unbound, bound, or with a refused connect behind it (rows TCP-01, 07)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.ip.binding import any_address, bind, connect_source
from stack.socket.ip.options import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_OPTIONS,
    IP_UNICAST_IF,
    IPPROTO_IP,
    IPPROTO_IPV6,
    port_range,
    unicast_interface,
)
from stack.socket.ip.options6 import IPV6_UNICAST_IF, prefers_temporary
from stack.socket.ip.scope import bind_to_link
from stack.socket.ip.stream_options import reuse
from stack.socket.message import MSG_ERRQUEUE, MSG_OOB, Message
from stack.socket.options_device import bound_interface
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP, RDNORM, WRNORM
from stack.wire.ipoptions import first_hop

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort
    from stack.link.device import Buffer
    from stack.socket.ip.address import IpAddress
    from stack.socket.ip.scope import ScopedAddress
    from stack.socket.ip.stream import StreamSocket


class StreamInit(Phase):
    """`refused`: a connect has failed and connect() has not been told so yet; `error`: its errno until read.

    `before` is what a socket shows that has given up the port the kernel chose for it, or has not got one yet
    (IP_BIND_ADDRESS_NO_PORT); the address it keeps.
    """

    refuses = True
    __slots__ = ("before", "bound", "error", "refused", "socket")

    def __init__(
        self,
        socket: StreamSocket,
        bound: BoundPort | None = None,
        *,
        refused: bool = False,
        error: int = 0,
        before: IpAddress | None = None,
    ) -> None:
        self.socket = socket
        self.bound = bound
        self.before = (any_address(socket), 0) if before is None else before
        self.refused = refused
        self.error = error

    def bind(self, address: ScopedAddress) -> None:
        if self.bound is not None or self.refused:
            raise NetError(errno.EINVAL)  # row CORE-19
        bind_to_link(self.socket, address[0], address[2])
        bound = bind(self.socket, self.socket.host.netns.tcp.ports, address[:2])
        if address[1] or not self.socket.options.value(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT):
            self.bound = bound
        else:  # claimed and given back: an address that cannot be had is told now
            bound.release()
            self.before = address[0], 0
        self.socket.chose_port = address[1] != 0
        self.socket.chose_address = any(address[0])

    def connect(self, address: ScopedAddress, fastopen: Buffer | None = None) -> Again | None:
        """`fastopen`: data for the SYN, or b"" if only a cookie is wanted."""
        from stack.socket.ip.stream_connecting import StreamConnecting
        from stack.socket.ip.stream_fastopen import StreamDeferred
        from stack.socket.ip.stream_repair import connect_repaired

        if self.refused:  # the failure nobody was told about, or only SO_ERROR was (row TCP-07)
            self.refused = False
            raise NetError(self.take_error() or errno.ECONNABORTED)
        socket = self.socket
        if not any(address[0]) and first_hop(bytes(socket.options.value(IPPROTO_IP, IP_OPTIONS))):
            raise NetError(errno.EINVAL)  # a source route to nowhere
        bind_to_link(socket, address[0], address[2], connecting=True)
        source, remote = connect_source(socket, self.bound.addr if self.bound else self.before[0], address[:2])
        oif = bound_interface(socket) or _unicast_interface(socket, remote[0])
        if socket.repair.on:
            connect_repaired(socket, self.bound, source, remote, oif)
            return None
        tcp, options = socket.host.netns.tcp, socket.tcp_options(remote[0])
        if source is None and len(remote[0]) == 16:
            preferred = prefers_temporary(socket)
            source = socket.host.netns.ip.preferred_source(remote[0], preferred, oif=oif, mark=options.mark)
        deferred = False
        if fastopen is None and socket.fastopen_connect:
            fastopen = b""
            deferred = tcp.fastopen.ready(remote[0], no_cookie=options.fastopen_no_cookie)
        connection = tcp.connect(
            self.bound,
            source,
            remote,
            options=options,
            oif=oif,
            fastopen=fastopen,
            hold=deferred,
            iss=socket.repair.write_seq or None,
            span=port_range(socket),
        )
        if deferred:
            socket.phase = StreamDeferred(socket, connection, self.bound)
            return None
        socket.phase = StreamConnecting(socket, connection, self.bound)
        return AGAIN

    def connecting(self) -> None:
        """A blocking connect is told how it failed: the socket is as good as new."""
        self.refused = False
        raise NetError(self.take_error() or errno.ECONNABORTED)

    def listen(self, backlog: int) -> None:
        from stack.socket.ip.stream_listen import StreamListen

        if self.refused:
            raise NetError(errno.EINVAL)
        socket = self.socket
        tcp = socket.host.netns.tcp
        if self.bound is None:  # Linux binds to any address and a free port (row TCP-13)
            self.bound = bind(socket, tcp.ports, (self.before[0], 0))
        listener = tcp.listen(self.bound, StreamListen.clamp(backlog), options=socket.tcp_options())
        socket.phase = StreamListen(socket, listener, self.bound)

    def accept(self) -> Again:
        raise NetError(errno.EINVAL)

    def send(self, data: Buffer, flags: int, address: IpAddress | None) -> int:
        raise NetError(self.take_error() or errno.EPIPE)

    def recv(self, size: int, flags: int) -> bytes | Again:
        if flags & MSG_ERRQUEUE:
            return AGAIN
        if flags & MSG_OOB:
            raise NetError(errno.EINVAL)
        error = self.take_error()
        if error:
            raise NetError(error)
        if self.refused:
            return b""
        raise NetError(errno.ENOTCONN)

    def receive(self, size: int, flags: int) -> Message | Again:
        data = self.recv(size, flags)
        return AGAIN if data is AGAIN else Message(data)

    def shutdown(self, how: int) -> None:
        raise NetError(errno.ENOTCONN)

    def local_address(self) -> IpAddress:
        if self.bound is None:
            return self.before
        return self.bound.addr, self.bound.port

    def take_error(self) -> int:
        error, self.error = self.error, 0
        return error

    def poll(self) -> int:
        bits = OUT | WRNORM | HUP
        if self.refused:
            bits |= IN | RDNORM | RDHUP
        return bits | ERR if self.error else bits

    def option_changed(self, level: int, name: int) -> None:
        if self.bound is not None:
            reuse(self.socket, self.bound)

    def close(self) -> None:
        if self.bound is not None:
            self.bound.release()


def _unicast_interface(socket: StreamSocket, remote: bytes) -> int:
    if len(remote) == 4:
        return unicast_interface(socket, IPPROTO_IP, IP_UNICAST_IF)
    return unicast_interface(socket, IPPROTO_IPV6, IPV6_UNICAST_IF)
