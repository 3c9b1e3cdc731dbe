"""Records in queues: what datagram and seqpacket sockets receive (rows UNX-11, UDG-05), and how seqpacket sends."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from stack.errors import NetError
from stack.unix.endpoint import SHUT_RECEIVING, SHUT_SENDING, Endpoint, State
from stack.unix.truesize import RECORD_OVERHEAD

if TYPE_CHECKING:
    from stack.unix.control import Identity, Packet, Rights

SOCK_DGRAM: Final = 2
SOCK_SEQPACKET: Final = 5


class Record(NamedTuple):
    """What one receive call takes: `skip` bytes of `data` are passed over (SO_PEEK_OFF)."""

    data: bytes | memoryview
    skip: int
    source: Endpoint
    identity: Identity | None
    rights: Rights | None


class RecordEndpoint(Endpoint):
    """Base of those that keep records apart."""

    def check_length(self, length: int) -> None:
        """Raises NetError(EMSGSIZE)."""
        if length > self.sndbuf - RECORD_OVERHEAD:
            raise NetError(errno.EMSGSIZE)

    def admits(self) -> bool:
        """Is there room in the send buffer? Raises NetError: the pending error, EPIPE."""
        if self.error:
            raise NetError(self.take_error())
        if self.shut & SHUT_SENDING:
            raise NetError(errno.EPIPE)
        return self.charged < self.sndbuf

    def take(self, size: int, *, peek: bool = False) -> Record | None:
        """The next record, for a buffer of `size` bytes; None if there is none. Raises NetError: the pending error."""
        if self.error:
            raise NetError(self.take_error())
        queue = self.queue
        if not queue:
            return None
        if peek:
            return self._peek(size)
        packet = queue.popleft()
        length = len(packet.data)
        if self.peek_offset > 0:
            self.peek_offset = max(self.peek_offset - length, 0)
        rights = None if packet.rights is None else self.take_rights(packet, peek=False)
        packet.source.discharge(packet)
        self.taken()
        return Record(packet.data, 0, packet.source, packet.identity, rights)

    def _peek(self, size: int) -> Record | None:
        offset = self.peek_offset
        packet: Packet | None = None
        for each in self.queue:
            length = len(each.data)
            if offset >= length and offset >= 0 and (offset or each.peeked):
                offset -= length
                continue
            packet = each
            break
        if packet is None:
            return None
        if not packet.data:
            packet.peeked = True
        skip = max(offset, 0)
        if self.peek_offset >= 0:
            self.peek_offset += min(size, len(packet.data) - skip)
        return Record(packet.data, skip, packet.source, packet.identity, self.take_rights(packet, peek=True))

    def taken(self) -> None:
        """There is room for one more record."""

    def unread(self) -> int:
        """SIOCINQ, bytes: of the first record."""
        return len(self.queue[0].data) if self.queue else 0


class SeqpacketEndpoint(RecordEndpoint):
    """SOCK_SEQPACKET: connected as a stream."""

    kind: ClassVar[int] = SOCK_SEQPACKET

    def check_connected(self) -> None:
        """Raises NetError: the pending error, ENOTCONN."""
        if self.error:
            raise NetError(self.take_error())
        if self.state is not State.ESTABLISHED:
            raise NetError(errno.ENOTCONN)

    def send(
        self, data: bytes | memoryview, identity: Identity | None = None, rights: Rights | None = None
    ) -> int | None:
        """The record's length, or None if there is no room. Raises NetError: EPIPE, EMSGSIZE, EPERM.

        `check_connected` comes before.
        """
        peer = self.peer
        assert peer is not None
        self.autobind_if_telling()
        self.check_length(len(data))
        if not self.admits():
            return None
        if peer.shut & SHUT_RECEIVING:
            raise NetError(errno.EPIPE)
        self.deliver(data, peer, identity, rights)
        return len(data)

    def unread(self) -> int:
        """SIOCINQ, bytes: of all records. Raises NetError(EINVAL) on a listener."""
        if self.state is State.LISTEN:
            raise NetError(errno.EINVAL)
        return sum(len(packet.data) for packet in self.queue)
