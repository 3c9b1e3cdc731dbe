"""A vsock socket before anything: unbound, bound, or with a failed connect behind it (rows VS-03, VS-04)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.message import MSG_ERRQUEUE, MSG_OOB
from stack.socket.poll import ERR, OUT, WRNORM
from stack.wire.vsock import CID_ANY, CID_HOST, CID_LOCAL, PORT_ANY

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.vsock.stream import VsockAddress, VsockSocket
    from stack.vsock.ports import BoundPort


class VsockInit(Phase):
    """`bound`: the port the user has bound; `error`: the errno of a failed connect, until read."""

    refuses = True
    __slots__ = ("bound", "cid", "error", "socket")

    def __init__(
        self, socket: VsockSocket, bound: BoundPort | None = None, cid: int = CID_ANY, *, error: int = 0
    ) -> None:
        self.socket = socket
        self.bound = bound
        self.cid = cid  #: as bound, for getsockname
        self.error = error

    def bind(self, address: VsockAddress) -> None:
        cid, port = address
        if self.bound is not None:
            raise NetError(errno.EINVAL)
        if cid not in (CID_ANY, CID_HOST, CID_LOCAL):
            raise NetError(errno.EADDRNOTAVAIL, f"this end is CID {CID_HOST} (and {CID_LOCAL}), not {cid}")
        host = self.socket.host
        self.bound = host.vsock.bind(port, privileged=host.privileged)
        self.cid = cid

    def connect(self, address: VsockAddress) -> Again:
        from stack.socket.vsock.connecting import VsockConnecting

        socket = self.socket
        self.error = 0  # a failure that nobody asked for is forgotten by trying again
        connection = socket.host.vsock.connect(
            *address,
            bound=self.bound,
            buffer=socket.buffer,
            timeout=socket.connect_timeout,
            kind=socket.wire_type,
        )
        socket.phase = VsockConnecting(socket, connection, self.bound, self.cid)
        return AGAIN

    def connecting(self) -> None:
        """Asked only after a connect that has failed."""
        raise NetError(self.take_error() or errno.ENOTCONN)

    def listen(self, backlog: int) -> None:
        from stack.socket.vsock.listen import VsockListen

        if self.bound is None:
            raise NetError(errno.EINVAL)  # unlike TCP: row VS-05
        socket = self.socket
        listener = socket.host.vsock.listen(
            self.bound.port, backlog, bound=self.bound, buffer=socket.buffer, kind=socket.wire_type, cid=self.cid
        )
        socket.phase = VsockListen(socket, listener, self.bound, self.cid)

    def accept(self) -> Again:
        raise NetError(errno.EINVAL)

    def send(self, data: Buffer, flags: int, address: VsockAddress | None) -> int:
        if flags & MSG_OOB or address is not None:
            raise NetError(errno.EOPNOTSUPP)
        raise NetError(errno.ENOTCONN)

    def recv(self, size: int, flags: int) -> Again:
        if flags & MSG_ERRQUEUE:
            return AGAIN
        raise NetError(errno.ENOTCONN)

    def receive(self, size: int, flags: int) -> Again:
        return self.recv(size, flags)

    def shutdown(self, how: int) -> None:
        raise NetError(errno.ENOTCONN)

    def local_address(self) -> VsockAddress:
        return self.cid, PORT_ANY if self.bound is None else self.bound.port

    def take_error(self) -> int:
        error, self.error = self.error, 0
        return error

    def poll(self) -> int:
        return OUT | WRNORM | (ERR if self.error else 0)

    def close(self) -> None:
        if self.bound is not None:
            self.bound.release()
