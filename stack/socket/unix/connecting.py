"""Unconnected and listening sockets of the kinds that connect: streams and seqpacket (rows UNX-06..UNX-10)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar

from stack.errors import NetError
from stack.socket.phase import AGAIN, Again
from stack.socket.poll import ERR, HUP, IN, RDHUP, RDNORM
from stack.socket.unix.phase import E, UnixPhase
from stack.unix.endpoint import SHUT_BOTH, SHUT_RECEIVING
from stack.unix.listening import accept, connect, listen

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.message import Message
    from stack.socket.unix.control import Attached
    from stack.socket.unix.socket import UnixSocket


class UnixInit(UnixPhase[E]):
    """Neither connected nor listening; with a name or without."""

    __slots__ = ()

    def connect(self, address: bytes) -> Again | None:
        socket = self.socket
        full = connect(self.endpoint, address, socket.host.credentials)
        if full is not None:
            socket.blocker = full
            return AGAIN
        socket.phase = socket.connected()
        return None

    def listen(self, backlog: int) -> None:
        socket = self.socket
        listen(self.endpoint, backlog, socket.host.credentials)
        socket.phase = socket.listening()

    def transmit(self, data: Buffer, flags: int, address: bytes | None, attached: Attached) -> int | Again:
        self.socket.refuse_send(data, flags, address)
        raise NetError(errno.ENOTCONN)

    def receive(self, size: int, flags: int, room: int = 0) -> Message | Again:
        raise NetError(self.socket.unconnected)

    def poll(self) -> int:
        return self.readiness() | HUP


class UnixConnected(UnixPhase[E]):
    """Until it is closed, whatever the peer does."""

    __slots__ = ()

    def connect(self, address: bytes) -> Again | None:
        """EISCONN; but Linux looks at the other end first."""
        self.socket.blocker = connect(self.endpoint, address, self.socket.host.credentials)
        return AGAIN


class UnixListen(UnixPhase[E]):
    """Its name is given, its queue is of connections."""

    __slots__ = ()
    listening: ClassVar[bool] = True

    def connect(self, address: bytes) -> Again | None:
        """EINVAL; but Linux looks at the other end first."""
        self.socket.blocker = connect(self.endpoint, address, self.socket.host.credentials)
        return AGAIN

    def listen(self, backlog: int) -> None:
        listen(self.endpoint, backlog, self.socket.host.credentials)

    def accept(self) -> tuple[UnixSocket[Any], bytes] | Again:
        child = accept(self.endpoint)
        if child is None:
            return AGAIN
        sock = self.socket.accepted(child)
        return sock, sock.phase.peer_address()

    def transmit(self, data: Buffer, flags: int, address: bytes | None, attached: Attached) -> int | Again:
        self.socket.refuse_send(data, flags, address)
        raise NetError(errno.ENOTCONN)

    def receive(self, size: int, flags: int, room: int = 0) -> Message | Again:
        raise NetError(self.socket.unconnected)

    def poll(self) -> int:
        endpoint = self.endpoint
        bits = ERR if endpoint.error else 0
        shut = endpoint.shut
        if shut & SHUT_RECEIVING:
            bits |= IN | RDNORM | RDHUP
            if shut == SHUT_BOTH:
                bits |= HUP
        if endpoint.embryos:
            bits |= IN | RDNORM
        return bits
