"""`StreamEndpoint`: bytes in order, in pieces that carry files and identities (rows UNX-09, 10, 12, 17, CTRL-03, 05).

Theory of operation
-------------------
A stream's queue is the peer's writes, longer ones in pieces of 36544 bytes. A read takes bytes across pieces, but stops

* after a piece that carried files: they belong to bytes up to there (CTRL-03);
* before a piece of another sender, while the receiver is told identities (CTRL-05);
* before the urgent byte, if it has taken anything.

The urgent byte is a piece of its own, pointed at by `urgent`. Read by MSG_OOB it stays in the queue, empty, as the
mark; an ordinary read that begins at an unread one drops it (or takes it, with SO_OOBINLINE) and goes on. That, and the
order of checks, is Linux's `unix_stream_read_generic` and `manage_oob` since 6.11.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from stack.errors import NetError
from stack.unix.endpoint import SHUT_RECEIVING, SHUT_SENDING, SNDBUF, TELLS, Endpoint, State
from stack.unix.reading import Reading
from stack.unix.truesize import STREAM_HEAD, stream_chunk

if TYPE_CHECKING:
    from stack.unix.control import Identity, Packet, Rights
    from stack.unix.names import AbstractNames
    from stack.unix.space import UnixSpace

SOCK_STREAM: Final = 1


class StreamEndpoint(Endpoint):
    """SOCK_STREAM."""

    kind: ClassVar[int] = SOCK_STREAM
    streaming: ClassVar[bool] = True

    def __init__(self, space: UnixSpace, names: AbstractNames, sndbuf: int = SNDBUF) -> None:
        super().__init__(space, names, sndbuf)
        self.urgent: Packet | None = None
        self.marks = 0  #: packets of the queue that are or were urgent
        self.inline = False  #: SO_OOBINLINE

    # -- sending ------------------------------------------------------------------------------------------------------

    def write(
        self,
        data: bytes | memoryview,
        identity: Identity | None = None,
        rights: Rights | None = None,
        *,
        urgent: bool = False,
    ) -> int | None:
        """Bytes taken, None if there is no room for one; `rights` go with the first. `urgent`: the last byte is.

        Raises NetError: ENOTCONN, EPIPE, EPERM, the pending error.
        """
        peer = self.peer
        if peer is None:
            raise NetError(errno.ENOTCONN)
        if self.shut & SHUT_SENDING:
            raise NetError(errno.EPIPE)
        length = len(data) - urgent
        if length <= STREAM_HEAD and not urgent:  # most of them
            if not length:
                return 0
            if self.charged >= self.sndbuf:
                if self.error:
                    raise NetError(self.take_error())
                return None
            if peer.shut & SHUT_RECEIVING:
                raise NetError(errno.EPIPE)
            self.deliver(data, peer, identity, rights)
            return length
        return self._write_pieces(data, length, identity, rights, urgent=urgent)

    def _write_pieces(
        self, data: bytes | memoryview, length: int, identity: Identity | None, rights: Rights | None, *, urgent: bool
    ) -> int | None:
        peer = self.peer
        assert peer is not None
        chunk = stream_chunk(self.sndbuf)
        whole = memoryview(data)
        sent = 0
        while sent < length or urgent:
            if self.error and not sent:
                raise NetError(self.take_error())
            if self.charged >= self.sndbuf:
                return sent or None
            if peer.shut & SHUT_RECEIVING:
                raise NetError(errno.EPIPE)
            last = sent == length
            piece = whole[sent : sent + 1] if last else whole[sent : min(sent + chunk, length)]
            packet = self.deliver(piece, peer, identity, rights)
            rights = None
            sent += len(piece)
            if last:
                assert isinstance(peer, StreamEndpoint)
                peer.urgent = packet
                peer.marks += 1
                peer.changed()
                break
        return sent

    # -- receiving ----------------------------------------------------------------------------------------------------

    def read(self, size: int) -> bytes | None:
        """As `advance` of a plain Reading, quicker. None: nothing there yet."""
        queue = self.queue
        if queue and not self.marks and not self.passing & TELLS:
            packet = queue[0]
            data = packet.data
            if not packet.used and packet.rights is None and 0 < size <= len(data):
                if size == len(data):
                    queue.popleft()
                    packet.source.discharge(packet)
                    if type(data) is bytes:
                        if self.peek_offset > 0:
                            self._peeked_less(size)
                        return data
                else:
                    packet.used = size
                if self.peek_offset > 0:
                    self._peeked_less(size)
                return bytes(data[:size])
        reading = Reading(size)
        if not self.advance(reading):
            return None
        if reading.rights is not None:
            reading.rights.close()
        return reading.data()

    def _peeked_less(self, taken: int) -> None:
        if self.peek_offset > 0:
            self.peek_offset = max(self.peek_offset - taken, 0)

    def advance(self, reading: Reading) -> bool:
        """Take what there is. False: less than the target, and no end in sight.

        Raises NetError: EINVAL unless connected, the pending error if there is nothing to read.
        """
        if self.state is not State.ESTABLISHED:
            raise NetError(errno.EINVAL)
        if reading.peek:
            return self._peek(reading)
        queue = self.queue
        while True:
            packet = self._next(reading)
            if packet is None:
                if reading.copied and (queue or reading.copied >= reading.target):
                    return True
                return self._nothing(reading)
            if not self._same_sender(packet, reading):
                return True
            self._note(packet, reading)
            missing = reading.size - reading.copied
            data, used = packet.data, packet.used
            chunk = min(len(data) - used, missing)
            if chunk:
                reading.parts.append(data if chunk == len(data) else memoryview(data)[used : used + chunk])
            reading.copied += chunk
            packet.used = used + chunk
            self._peeked_less(chunk)
            if packet.rights is not None:
                reading.rights = self.take_rights(packet, peek=False)
            if packet.used < len(data):
                return True
            queue.popleft()
            packet.source.discharge(packet)
            if reading.rights is not None or reading.copied >= reading.size:
                return True

    def _next(self, reading: Reading) -> Packet | None:
        """The packet to read from: the first, but for what is urgent. None: nothing, or the mark."""
        queue = self.queue
        if not queue:
            return None
        packet = queue[0]
        if not self.marks:
            return packet
        if not packet.left:
            if reading.copied and (self.urgent is None or packet is self.urgent):
                return None
            queue.popleft()  # the mark is passed
            self.marks -= 1
            packet.source.discharge(packet)
            if not queue:
                return None
            packet = queue[0]
        if packet is not self.urgent:
            return packet
        if reading.copied:
            return None
        self.urgent = None
        self.marks -= 1
        if self.inline:
            return packet
        self.discard(queue.popleft())
        return queue[0] if queue else None

    def _peek(self, reading: Reading) -> bool:
        """As `advance`, leaving everything where it is; SO_PEEK_OFF says where to begin, and moves on.

        Linux does not look whether it has enough before it goes on to the next piece: files there are copied, too.
        """
        skip = max(self.peek_offset, 0)
        packets = tuple(self.queue)
        index = 0
        while True:
            index = self._past_urgent(packets, index, copied=reading.copied)
            if index >= len(packets):
                return self._nothing(reading)
            packet = packets[index]
            if skip >= packet.left:
                while index < len(packets) and skip >= packets[index].left:
                    skip -= packets[index].left
                    index += 1
                if index >= len(packets):
                    return self._nothing(reading)
                packet = packets[index]
            if not self._same_sender(packet, reading):
                return True
            self._note(packet, reading)
            start = packet.used + skip
            chunk = min(packet.left - skip, reading.size - reading.copied)
            skip = 0
            if chunk:
                reading.parts.append(memoryview(packet.data)[start : start + chunk])
            reading.copied += chunk
            if self.peek_offset >= 0:
                self.peek_offset += chunk
            if packet.rights is not None:
                reading.rights = self.take_rights(packet, peek=True)
                return True
            index += 1
            if index >= len(packets):
                return True

    def _past_urgent(self, packets: tuple[Packet, ...], index: int, *, copied: int) -> int:
        """Where a peek that has come to `index` goes on; the end if that is the mark."""
        if not self.marks or index >= len(packets):
            return index
        packet = packets[index]
        if not packet.left:
            if copied and (self.urgent is None or packet is self.urgent):
                return len(packets)
            index += 1
            if index >= len(packets):
                return index
        if packets[index] is not self.urgent:
            return index
        if copied:
            return len(packets)
        return index if self.inline else index + 1

    def _nothing(self, reading: Reading) -> bool:
        if reading.copied >= reading.target and reading.copied:
            return True
        if self.error:
            if reading.copied:
                self.error = 0
                return True
            raise NetError(self.take_error())
        return bool(self.shut & SHUT_RECEIVING)

    def _same_sender(self, packet: Packet, reading: Reading) -> bool:
        if reading.bound:
            return packet.identity == reading.identity
        if self.passing & TELLS:
            reading.bound = True
            reading.identity = packet.identity
        return True

    @staticmethod
    def _note(packet: Packet, reading: Reading) -> None:
        if reading.source is None:
            reading.source = packet.source

    def read_urgent(self, reading: Reading) -> None:
        """MSG_OOB. Raises NetError(EINVAL) without an urgent byte, or with SO_OOBINLINE."""
        if self.state is not State.ESTABLISHED:
            raise NetError(errno.EINVAL)
        packet = self.urgent
        if packet is None or self.inline:
            raise NetError(errno.EINVAL)
        reading.parts.append(memoryview(packet.data)[: reading.size])
        reading.copied = 1
        reading.oob = True
        if reading.peek:
            return
        self.urgent = None
        queue = self.queue
        index = queue.index(packet)
        if index and not queue[index - 1].left:  # the mark before it
            before = queue[index - 1]
            del queue[index - 1]
            self.marks -= 1
            before.source.discharge(before)
        packet.used = 1

    # -- about the queue ----------------------------------------------------------------------------------------------

    def at_mark(self) -> bool:
        """SIOCATMARK."""
        queue = self.queue
        if not queue:
            return False
        first = queue[0]
        if first is self.urgent:
            return True
        following = queue[1] if len(queue) > 1 else None
        return not first.left and (self.urgent is None or following is self.urgent)

    def unread(self) -> int:
        """SIOCINQ, bytes. Raises NetError(EINVAL) on a listener."""
        if self.state is State.LISTEN:
            raise NetError(errno.EINVAL)
        return sum(packet.left for packet in self.queue)

    def purge(self) -> None:
        super().purge()
        self.urgent = None
        self.marks = 0
