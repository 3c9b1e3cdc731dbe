"""AF_UNIX seqpacket sockets: records over a connection (rows UNX-07..UNX-11)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError
from stack.socket.message import MSG_OOB, MSG_PEEK, Message
from stack.socket.phase import AGAIN, Again
from stack.socket.unix import SOCK_SEQPACKET
from stack.socket.unix.connecting import UnixConnected, UnixInit, UnixListen
from stack.socket.unix.records import RecordSocket, received
from stack.unix.endpoint import SHUT_RECEIVING
from stack.unix.records import SeqpacketEndpoint

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.base import Host
    from stack.socket.unix.control import Attached
    from stack.unix.endpoint import Endpoint


class SeqpacketConnected(UnixConnected[SeqpacketEndpoint]):
    """Until it is closed, whatever the peer does. An address given with a record means nothing."""

    __slots__ = ()

    def transmit(self, data: Buffer, flags: int, address: bytes | None, attached: Attached) -> int | Again:
        self.endpoint.check_connected()
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        content = data if type(data) is bytes else bytes(data)
        taken = self.endpoint.send(content, attached.identity, attached.rights)
        return AGAIN if taken is None else taken

    def receive(self, size: int, flags: int, room: int = 0) -> Message | Again:
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        record = self.endpoint.take(size, peek=bool(flags & MSG_PEEK))
        if record is None:
            return Message(b"") if self.endpoint.shut & SHUT_RECEIVING else AGAIN
        return received(self, record, size, flags, room)

    def poll(self) -> int:
        return self.readiness()


class UnixSeqpacketSocket(RecordSocket[SeqpacketEndpoint]):
    """socket(AF_UNIX, SOCK_SEQPACKET)."""

    unconnected = errno.ENOTCONN

    def __init__(self, host: Host, protocol: int, endpoint: SeqpacketEndpoint | None = None) -> None:
        super().__init__(host, SOCK_SEQPACKET, protocol, endpoint or SeqpacketEndpoint(host.unix, host.netns.abstract))
        self.phase = UnixInit(self, self.endpoint) if endpoint is None else SeqpacketConnected(self, endpoint)

    def accepted(self, endpoint: Endpoint) -> UnixSeqpacketSocket:
        assert isinstance(endpoint, SeqpacketEndpoint)
        return UnixSeqpacketSocket(self.host, self.protocol, endpoint)

    def connected(self) -> SeqpacketConnected:
        return SeqpacketConnected(self, self.endpoint)

    def listening(self) -> UnixListen[SeqpacketEndpoint]:
        return UnixListen(self, self.endpoint)

    def refuse_send(self, data: Buffer, flags: int, address: bytes | None) -> None:
        """ENOTCONN comes first."""
