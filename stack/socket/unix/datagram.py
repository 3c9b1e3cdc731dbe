"""AF_UNIX datagram sockets (rows UDG-01..UDG-08)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.message import MSG_DONTWAIT, MSG_OOB, MSG_PEEK, Ancillary, Message
from stack.socket.phase import AGAIN, Again, Timeout
from stack.socket.poll import IN
from stack.socket.unix.phase import UnixPhase
from stack.socket.unix.records import RecordSocket, received
from stack.unix.datagram import DatagramEndpoint
from stack.unix.endpoint import SHUT_RECEIVING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import Buffer
    from stack.socket.base import Host
    from stack.socket.unix.control import Attached


class UnixDatagram(UnixPhase[DatagramEndpoint]):
    """The only phase: a name and a peer can be had at any time, and lost."""

    __slots__ = ()

    def connect(self, address: bytes) -> None:
        self.endpoint.connect(address, self.socket.host.credentials)

    def disconnect(self) -> None:
        self.endpoint.disconnect()

    def listen(self, backlog: int) -> None:
        raise NetError(errno.EOPNOTSUPP)

    def accept(self) -> Again:
        raise NetError(errno.EOPNOTSUPP)

    def transmit(self, data: Buffer, flags: int, address: bytes | None, attached: Attached) -> int | Again:
        endpoint = self.endpoint
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if address is not None and not address:
            raise NetError(errno.EINVAL)
        endpoint.autobind_if_telling()
        endpoint.check_length(len(data))
        if not endpoint.admits():
            return AGAIN
        receiver = None
        if address is not None:
            found = endpoint.find(address, self.socket.host.credentials)
            assert isinstance(found, DatagramEndpoint)
            receiver = found
        content = data if type(data) is bytes else bytes(data)
        taken = endpoint.send(content, receiver, attached.identity, attached.rights)
        if taken is None:
            self.socket.blocker = receiver or endpoint.peer
            return AGAIN
        return taken

    def receive(self, size: int, flags: int, room: int = 0) -> Message | Again:
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        record = self.endpoint.take(size, peek=bool(flags & MSG_PEEK))
        if record is None:
            return AGAIN
        return received(self, record, size, flags, room)

    def poll(self) -> int:
        return self.readiness()


class UnixDatagramSocket(RecordSocket[DatagramEndpoint]):
    """socket(AF_UNIX, SOCK_DGRAM), or SOCK_RAW."""

    unconnected = errno.ENOTCONN

    def __init__(self, host: Host, kind: int, protocol: int) -> None:
        """`kind` is what the user asked for; both are one, SO_TYPE says SOCK_DGRAM."""
        super().__init__(host, kind, protocol, DatagramEndpoint(host.unix, host.netns.abstract))
        self.phase = UnixDatagram(self, self.endpoint)

    def connected(self) -> UnixDatagram:
        return UnixDatagram(self, self.endpoint)

    # -- sending: a receiver's queue may be full, which poll does not show --------------------------------------------

    def send(self, data: Buffer, flags: int, timeout: Timeout) -> int:
        return self.persist(flags, timeout, self._send, data, flags, None)

    def send_to(self, data: Buffer, flags: int, address: object, timeout: Timeout) -> int:
        inner = None if address is None else self.address_in(address)
        return self.persist(flags, timeout, self._send, data, flags, inner)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: object, timeout: Timeout
    ) -> int:
        inner = None if address is None else self.address_in(address)
        return self.persist(flags, timeout, self._send_message, data, ancillary, flags, inner)

    # -- receiving: after shutdown a call that may wait finds the end, one that may not EAGAIN (UDG-05) ---------------

    def recv(self, size: int, flags: int, timeout: Timeout) -> bytes:
        if timeout is None and not flags & MSG_DONTWAIT:
            return self.block_on(IN, None, self._patient_recv, size, flags)
        return super().recv(size, flags, timeout)

    def receive(self, size: int, flags: int, timeout: Timeout, room: int = 0) -> Message:
        if timeout is None and not flags & MSG_DONTWAIT:
            return self.block_on(IN, None, self._patient_receive, size, flags, room)
        return super().receive(size, flags, timeout, room)

    def _patient_recv(self, size: int, flags: int) -> bytes | Again:
        data = self.phase.recv(size, flags)
        return b"" if data is AGAIN and self.endpoint.shut & SHUT_RECEIVING else data

    def _patient_receive(self, size: int, flags: int, room: int) -> Message | Again:
        message = self.take_message(size, flags, room)
        return Message(b"") if message is AGAIN and self.endpoint.shut & SHUT_RECEIVING else message
