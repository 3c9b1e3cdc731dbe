"""SOCK_SEQPACKET: a vsock connection whose bytes keep the boundaries of the messages they were sent in.

Theory of operation
-------------------
A message travels as one or more RW packets; the last one carries SEQ_EOM, and SEQ_EOR if its sender said MSG_EOR
(virtio 1.3 section 5.10.6.6.1). Credit counts bytes as on a stream, so bytes are kept as on a stream, and beside them
the length of each message. An incomplete message is kept apart: it counts against the credit, but nobody may read it,
and it is forgotten when the peer goes away in the middle of it.

A message is taken from the user whole or not at all, as soon as the peer's credit covers all of it. That moment comes
if the message is no larger than the peer's buffer, and ours: a larger one is EMSGSIZE, as on Linux. Linux sends a
message piece by piece as credit allows and may be stuck in the middle; a whole one never is. For the same reason a
buffer that was told to the peer does not shrink: its sender compares a message with it once, before the first piece.

Messages without bytes cost no credit. Linux never sends one, and neither do we (send of nothing is nothing); received
ones are kept, but not more of them than the buffer has bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Container
from typing import Any, ClassVar, Final

from stack.errors import NetError
from stack.vsock.connection import VsockConnection
from stack.vsock.queue import COALESCE, ByteQueue
from stack.vsock.transport import Buffer, VsockTx
from stack.wire.vsock import MAX_PAYLOAD, SEQ_EOM, SEQ_EOR, TYPE_SEQPACKET, Op

#: What a packet counts at least, bytes: a burst of tiny messages is bounded by their number.
PACKET_COST: Final = 512
_RW: Final = int(Op.RW)


class Lengths:
    """A queue of small ints in about a byte each (LEB128): a byte of message must not cost an object."""

    __slots__ = ("_bytes", "_count")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, value: int) -> None:
        data = self._bytes
        while value > 0x7F:
            data.append(value & 0x7F | 0x80)
            value >>= 7
        data.append(value)
        self._count += 1

    def first(self) -> int:
        """The oldest value; there must be one."""
        return self._decode()[0]

    def pop(self) -> int:
        """Take the oldest value; there must be one."""
        value, size = self._decode()
        del self._bytes[:size]
        self._count -= 1
        return value

    def _decode(self) -> tuple[int, int]:
        value = size = 0
        for byte in self._bytes:
            value |= (byte & 0x7F) << 7 * size
            size += 1
            if byte <= 0x7F:
                break
        return value, size


class SeqpacketConnection(VsockConnection):
    """One connection of messages. `read` and `write` are `receive_message` and `send_message` here."""

    __slots__ = ("_arrived", "_left", "_partial", "_queued", "_short")

    kind: ClassVar[int] = TYPE_SEQPACKET

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._arrived = Lengths()  # of whole messages: length * 2 + 1 at the end of a record
        self._partial = ByteQueue()  # the beginning of a message
        self._queued = Lengths()  # of messages to be sent, likewise
        self._left = 0  # bytes still to be sent of the first of them; 0: all
        self._short = 0  # the message that found too little credit last, bytes

    @property
    def messages(self) -> int:
        """Whole messages that wait to be read."""
        return len(self._arrived)

    @property
    def has_data(self) -> bool:
        return len(self._arrived) > 0

    @property
    def next_length(self) -> int:
        """Bytes of the oldest message; there must be one."""
        return self._arrived.first() >> 1

    @property
    def largest_message(self) -> int:
        """Bytes of the largest message that can be sent: more is EMSGSIZE."""
        return self.sndbuf

    @property
    def writable(self) -> int:
        """Credit, or 0 while it does not cover the message that was refused last."""
        if not self.can_write:
            return 0
        free = self.credit.free
        return free if free >= min(self._short, self.largest_message) else 0

    def send_message(self, data: Buffer, *, end_of_record: bool = False) -> bool:
        """Take the message; False while the peer has no room for all of it. A message of no bytes is not sent.

        Raises NetError: EMSGSIZE, EPIPE, ENOTCONN.
        """
        length = len(data)
        if not self.room_for(length):
            return False
        if length:
            if type(data) is not bytes and length >= COALESCE:
                data = bytes(data)
            self._outgoing.append(data)
            self._queued.append(length << 1 | end_of_record)
            self.credit.sent += length
            self._port.mark(self)
        return True

    def room_for(self, length: int) -> bool:
        """Whether a message of `length` bytes would be taken. If not the peer is asked for credit, and `writable` is 0
        until there is enough. Raises NetError as `send_message`.
        """
        self._check_writable()
        if length > self.largest_message:
            raise NetError(errno.EMSGSIZE, f"a message of {length} bytes: at most {self.largest_message} can be sent")
        if length > self.credit.free:
            self._short = length
            self._request_credit()
            return False
        self._short = 0
        return True

    def receive_message(self, limit: int, *, peek: bool = False) -> tuple[bytes, int, bool] | None:
        """The oldest message: (its first `limit` bytes, its length, whether it ends a record); None without one.

        It is gone afterwards, whatever of it was not wanted included, unless `peek`.
        """
        if not self._arrived:
            return None
        length, end = divmod(self._arrived.first(), 2)
        if peek:
            return self._incoming.peek(min(limit, length)), length, bool(end)
        self._arrived.pop()
        data = self._incoming.read(min(limit, length))
        self._incoming.discard(length - len(data))
        self._consumed(length)
        return data, length, bool(end)

    def compact(self, slabs: Container[int]) -> None:
        super().compact(slabs)
        self._partial.compact(slabs)

    def forget_received(self) -> None:
        self._arrived = Lengths()
        super().forget_received()

    def set_buffer(self, size: int) -> None:
        """As for a stream, but never less than the peer was told (see above)."""
        super().set_buffer(max(size, self.credit.buffer))

    def _data(self, payload: memoryview, flags: int) -> None:
        length = len(payload)
        if length and not self.credit.receive(length):
            self._violated("it sent more than it was granted")
            return
        partial = self._partial
        if length >= COALESCE:
            self._port.fed.append((self, id(payload.obj)))
        if not flags & SEQ_EOM:
            partial.append(payload)
            if self.credit.unreported:
                # A message may need the whole buffer, and nobody can read it before it is complete.
                self._credit_due = True
                self._port.mark(self)
            return
        if len(self._arrived) > max(self.credit.buffer, MAX_PAYLOAD):
            self._violated("it sent empty messages without end")
            return
        self._arrived.append((len(partial) + length) << 1 | (flags & SEQ_EOR != 0))
        while partial:
            self._incoming.append(partial.take(MAX_PAYLOAD))
        self._incoming.append(payload)
        self.notify()

    def _emit_data(self, burst: list[VsockTx], limit: int) -> bool:
        outgoing, queued = self._outgoing, self._queued
        while outgoing:
            if limit <= 0:
                return False
            length, end = divmod(queued.first(), 2)
            left = self._left or length
            payload = outgoing.take(min(left, MAX_PAYLOAD))  # a message lies in one piece: see ByteQueue.append
            left = self._left = left - len(payload)
            flags = 0
            if not left:
                queued.pop()
                flags = SEQ_EOM | (SEQ_EOR if end else 0)
            limit -= max(len(payload), PACKET_COST)
            burst.append(self._packet(_RW, flags, payload))
        return True

    def _end(self, *, forget_received: bool = True) -> None:
        self._partial.clear()
        self._queued, self._left = Lengths(), 0
        if forget_received:
            self._arrived = Lengths()
        super()._end(forget_received=forget_received)


#: What stands for a connection, by the wire's type.
CONNECTIONS: Final[dict[int, type[VsockConnection]]] = {
    VsockConnection.kind: VsockConnection,
    SeqpacketConnection.kind: SeqpacketConnection,
}
