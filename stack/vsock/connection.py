"""One vsock connection between this host and a guest: its states, its two directions, its end.

`VsockConnection` is a stream; `stack.vsock.seqpacket` adds message boundaries to it.

Theory of operation
-------------------
Three things move a connection: packets (`packet`), its user's calls, and its timer. None of them transmits: they set
what is *due* - a request, data, a shutdown, a credit update - and mark the connection at its guest's port, which calls
`emit` at the end of the turn. Whatever packet leaves carries the current credit numbers, so an update is sent alone
only if nothing else left.

`write` takes no more than the peer's credit allows, so everything taken counts as sent, and a shutdown queued behind it
is a promise that can be kept: there is no unsent tail to lose.

The end, as Linux does it (rows VS-07, VS-08, VS-13):

* The peer's SHUTDOWN bits accumulate. "Will not send" is our end of stream, "will not receive" makes writing EPIPE.
  With both, the connection leaves the tables at once, and a RST answers as soon as nothing is unread.
* A RST ends a connected stream like that too, without error: what was received stays readable.
* Our `close` sends what was taken and SHUTDOWN(3), then waits up to 8 s for the RST; a RST of ours ends the wait. It
  never overtakes what was taken: while some of that waits for a guest that is paused or out of buffers, so do we.
  (Linux forgets the socket after 8 s, but its RST queues behind the data too. To a guest a RST is the end of a stream,
  so nobody would miss what was left out in front of it.)
* What a correct peer never sends - more than was granted, counts that cannot be true, a second REQUEST - resets the
  connection: RST to the peer, ECONNRESET to the user.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.vsock.queue import COALESCE
from stack.vsock.status import NOT_DIRECTLY, ConnectionStatus, VsockState
from stack.vsock.transport import Buffer, VsockTx
from stack.wire.vsock import MAX_PAYLOAD, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, Op

if TYPE_CHECKING:
    from stack.scheduler import Timer

CLOSE_TIMEOUT: Final = 8 * NS_PER_S  # Linux VSOCK_CLOSE_TIMEOUT
CONNECT_TIMEOUT: Final = 2 * NS_PER_S  # Linux VSOCK_DEFAULT_CONNECT_TIMEOUT
DEFAULT_BUFFER: Final = 256 << 10  # bytes; Linux VIRTIO_VSOCK_DEFAULT_BUF_SIZE
#: What one connection may ask for at most: more brings nothing, and the total is bounded too (`VsockEngine`).
LARGEST_BUFFER: Final = 16 << 20
_NO_DATA: Final = b""

# Plain ints: an enum attribute look-up for each packet costs more than the comparison.
_REQUEST, _RESPONSE, _RST, _SHUTDOWN, _RW = map(int, (Op.REQUEST, Op.RESPONSE, Op.RST, Op.SHUTDOWN, Op.RW))
_CREDIT_UPDATE, _CREDIT_REQUEST = map(int, (Op.CREDIT_UPDATE, Op.CREDIT_REQUEST))


def buffer_size(wanted: int) -> int:
    """The receive buffer a connection gets that asks for `wanted` bytes."""
    return min(wanted, LARGEST_BUFFER)


class VsockConnection(ConnectionStatus):
    """One stream. The same surface as `stack.tcp.Connection`.

    Lock held by the caller; nothing waits. `on_event` is called, possibly several times a turn, after readiness may
    have changed; it must only set flags or wake waiters.
    """

    __slots__ = ()

    def take_error(self) -> int:
        """The pending errno, which is 0 afterwards."""
        error, self.error = self.error, 0
        return error

    @property
    def unsent(self) -> bool:
        """Something written has not reached the guest's memory yet (SO_LINGER waits for that)."""
        return bool(self._outgoing) or self._port.holds(self)

    @property
    def unsent_bytes(self) -> int:
        """How much of what was written has not reached the guest's memory yet."""
        return len(self._outgoing) + self._port.held_bytes(self)

    def tell_when_sent(self) -> None:
        """Call `on_event` once nothing is `unsent`."""
        self._port.tell_when_sent(self)

    # -- the user's calls -----------------------------------------------------------------------------------------

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, b"" when none are there (see `eof`)."""
        data = self._incoming.read(limit)
        if data:
            self._consumed(len(data))
        return data

    def read_into(self, target: memoryview) -> int:
        """As read(), into a writable "B" view; returns the bytes placed."""
        count = self._incoming.read_into(target)
        if count:
            self._consumed(count)
        return count

    def discard(self, limit: int) -> int:
        """As read() without the bytes; returns how many went."""
        count = self._incoming.discard(limit)
        if count:
            self._consumed(count)
        return count

    def take(self, limit: int) -> Buffer:
        """As read(), uncopied and perhaps less: what lies together."""
        data = self._incoming.take(limit)
        self._consumed(len(data))
        return data

    def compact(self, slabs: Container[int]) -> None:
        """What is still unread of these (by id) keeps its own memory alive from now on, not all that came with it."""
        self._incoming.compact(slabs)

    def forget_received(self) -> None:
        """Nobody is going to read what is there."""
        self._consumed(self._incoming.discard(len(self._incoming)))

    def use_sink(self, fd: int) -> None:
        """What arrives next may go straight to the socket `fd`, from guest memory, if nothing waits to be read.

        Ends by itself as soon as the socket takes less than all or fails; then, and when the peer's credit has changed,
        `on_event` is called.
        """
        if self.state is VsockState.CONNECTED and not self._incoming and self.kind == TYPE_STREAM:
            self._port.sinks[self] = fd

    def send_on(self, transport: Any, fd: int, enough: int) -> tuple[int, int]:
        """The transport's next packet is for this stream, which has a sink: (packets taken, bytes)."""
        credit = self.credit
        # Something came the usual way meanwhile and goes first; or the peer said that there would be no more, or we do
        # not want any.
        if self._incoming or self.eof:
            del self._port.sinks[self]
            return 0, 0
        try:
            packets, size, rest, buf_alloc, fwd_cnt = transport.send_on(fd, credit.edge - credit.received, enough)
        except OSError:
            del self._port.sinks[self]
            self.notify()
            return 0, 0
        if not packets:
            return 0, 0
        credit.received += size + len(rest)
        room = credit.free
        if not credit.hear(buf_alloc, fwd_cnt):
            self._violated("it claims to have consumed more than was sent")
            return packets, size
        if self._credit_requested and credit.free:
            self._credit_requested = False
        self._consumed(size)
        if rest:
            del self._port.sinks[self]
            self._incoming.append(rest)
        if rest or credit.free != room:
            self.notify()
        return packets, size

    def peek(self, limit: int, offset: int = 0) -> bytes:
        """As read() from `offset` on, but the bytes stay."""
        return self._incoming.peek(limit, offset)

    def views(self, pieces: int) -> list[Buffer]:
        """What read() would give, uncopied, `pieces` pieces at most. Say with `discard` how much was used, at once."""
        return self._incoming.views(pieces)

    def write(self, data: Buffer) -> int:
        """Take as much of `data` as the peer's credit allows; returns the bytes taken (0: none).

        Exact `bytes` of 4 KiB and more are kept, anything else is copied. Raises NetError: EPIPE when the stream
        cannot be written to (any more), ENOTCONN before it is connected.
        """
        self._check_writable()
        length = len(data)
        free = self.credit.free
        if free < length:
            self.ask_credit()
            data = memoryview(data)[:free]
            length = free
        if length:
            if type(data) is not bytes and length >= COALESCE:
                data = bytes(data)
            self._outgoing.append(data)
            self.credit.sent += length
            self._port.mark(self)
        return length

    def receive_from(self, fd: int, limit: int) -> int:
        """As `write`, of up to `limit` bytes that the socket `fd` has now, straight into the guest's memory.

        Returns the bytes moved; 0 at the end of the socket's stream; NOT_DIRECTLY if they must be written after all
        (something written before has not left, or the transport cannot); NO_ROOM if the guest has no buffers now:
        `on_event` is called when it may have. Raises OSError as recv(2) does, and NetError as `write`.
        """
        self._check_writable()
        limit = min(limit, self.credit.free)
        if self._outgoing or self._greeting or self.kind != TYPE_STREAM or not limit:
            return NOT_DIRECTLY
        credit, local, remote = self.credit, self.local, self.remote
        header = (local[0], remote[0], local[1], remote[1], self.kind, _RW, 0, *credit.numbers, _NO_DATA)
        count = self._port.receive_from(self, header, fd, limit)
        if count > 0:
            credit.sent += count
            credit.tell()  # only now has the peer been told
            self._credit_due = False
        return count

    def _check_writable(self) -> None:
        if not self.can_write:
            raise NetError(errno.ENOTCONN if self.state is VsockState.CONNECTING else errno.EPIPE)

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A timer for whoever uses this connection."""
        return self._port.scheduler.timer(callback)

    def ask_credit(self) -> None:
        """Somebody wants to write and the peer takes nothing: have it say when it does."""
        if not self.credit.free and self.can_write:
            self._request_credit()

    def _request_credit(self) -> None:
        if not self._credit_requested:
            self._credit_requested = self._credit_request_due = True
            self._port.mark(self)

    def keep_waiting(self) -> None:
        """The peer's request is known, the answer to it is not yet: `answer` or `abort`."""
        self._passive = True

    def answer(self) -> None:
        """Accept a peer's request that was kept waiting (see `stack.vsock.acceptor`)."""
        self._passive = False
        self.start(_RESPONSE, None)

    def set_buffer(self, size: int) -> None:
        """Change the receive buffer to `size` bytes, or what the engine's memory still allows; the peer is told."""
        if self.state is VsockState.CLOSED:
            return
        self._reserved += self._port.engine.reserve_up_to(buffer_size(size) - self._reserved)
        self.credit.buffer = self._reserved
        if self.state is VsockState.CONNECTED:
            self._credit_due = True
            self._port.mark(self)

    def set_wanted(self, size: int) -> None:
        """Bytes a reader waits for at least (SO_RCVLOWAT): the peer is told when it may not send that much yet."""
        self.wanted = size
        self._consumed(0)

    def shutdown_read(self) -> None:
        """`eof` from now on; the peer is told that we will not receive."""
        self._shut(SHUTDOWN_RECEIVE)

    def shutdown_write(self) -> None:
        """The end of our stream, after everything written. Idempotent."""
        self._shut(SHUTDOWN_SEND)

    def close(self, linger: int | None = None) -> None:
        """The user lets go: SHUTDOWN for both directions after everything written; `linger` == 0 is `abort`.

        The connection ends by itself. A peer that announced its end before gets its RST.
        """
        self.on_event = None
        self._orphan = True
        self._port.sinks.pop(self, None)
        if linger == 0 or self.state is VsockState.CONNECTING:
            self.abort()
        elif self.state is VsockState.CONNECTED:
            self._shut(SHUTDOWN_BOTH)
            self.state = VsockState.CLOSING
            self._incoming.clear()
            self._arm(CLOSE_TIMEOUT)
        elif self.state is VsockState.CLOSED:
            self._drained()

    def abort(self) -> None:
        """RST now, if the peer may still think that there is a connection. Idempotent."""
        if self.state is VsockState.CLOSED:
            self._drained()
            return
        if self._greeting != _REQUEST:
            # Linux leaves a request that was given up to be reset when it is answered; telling now frees the guest's
            # half at once.
            self._port.reset(self)
        self._end()

    def _shut(self, bits: int) -> None:
        if self.state is VsockState.CONNECTED and self._shutdown | bits != self._shutdown:
            self._shutdown |= bits
            self._shutdown_due = True
            self._port.mark(self)

    def _consumed(self, count: int) -> None:
        if self.credit.consume(count, self.wanted) and self.state is VsockState.CONNECTED:
            self._credit_due = True
            self._port.mark(self)
        if self.state is VsockState.CLOSED and not self._incoming:
            self._drained()

    # -- packets --------------------------------------------------------------------------------------------------

    def start(self, greeting: int, timeout: int | None) -> None:
        """Begin: REQUEST with a time limit (ns), or RESPONSE, which makes it connected."""
        self._greeting = greeting
        if greeting == _RESPONSE:
            self.state = VsockState.CONNECTED
        if timeout is not None:
            self._arm(timeout)
        self._port.mark(self)

    def packet(self, op: int, flags: int, buf_alloc: int, fwd_cnt: int, payload: memoryview) -> None:
        """A packet of this connection arrived."""
        if op == _RST:
            self._reset_by_peer()
            return
        if not self.credit.hear(buf_alloc, fwd_cnt):
            self._violated("it claims to have consumed more than was sent")
            return
        if self._credit_requested and self.credit.free:
            self._credit_requested = False
        state = self.state
        if state is VsockState.CONNECTED:
            if op == _RW:
                self._data(payload, flags)
                return
            if op == _CREDIT_REQUEST:
                self._credit_due = True
                self._port.mark(self)
            elif op == _SHUTDOWN:
                self._peer_shut(flags)
            elif op != _CREDIT_UPDATE:
                self._violated("it sent a packet that has no place in a connected stream")
                return
            self.notify()
        elif state is VsockState.CONNECTING:
            self._answered(op)
        else:
            self._peer_shutdown |= flags & SHUTDOWN_BOTH if op == _SHUTDOWN else 0
            if op == _REQUEST or self._peer_shutdown == SHUTDOWN_BOTH:
                # Both sides want the end, or the guest uses its port for something new already.
                self._port.reset(self)
                self._end()

    def _answered(self, op: int) -> None:
        if op != _RESPONSE or self._passive:
            self._violated("it answered a request with neither RESPONSE nor RST", errno.EPROTO)
            return
        if self._timer is not None:
            self._timer.cancel()
        self.state = VsockState.CONNECTED
        self.notify()

    def _data(self, payload: memoryview, flags: int) -> None:  # noqa: ARG002 - a stream's data has no flags
        length = len(payload)
        if length:
            if not self.credit.receive(length):
                self._violated("it sent more than it was granted")
                return
            self._incoming.append(payload)
            if length >= COALESCE:
                self._port.fed.append((self, id(payload.obj)))
        self.notify()

    def _peer_shut(self, flags: int) -> None:
        self._peer_shutdown |= flags & SHUTDOWN_BOTH
        if self._peer_shutdown == SHUTDOWN_BOTH:
            # It leaves the tables now, so that the guest can use its port again; what was received stays readable.
            self._owes_reset = True
            self._end(forget_received=False)

    def _drained(self) -> None:
        """CLOSED, and nothing is unread or ever will be read: the last duties."""
        if self._orphan:
            self._incoming.clear()
        if self._incoming:
            return
        if self._owes_reset:
            self._owes_reset = False
            self._port.reset(self, unless_reused=True)
        self._port.engine.release(self._reserved)
        self._reserved = 0

    def _reset_by_peer(self) -> None:
        if self.state is VsockState.CONNECTING:
            self.error = errno.ECONNRESET
        self._end(forget_received=False)

    def _violated(self, why: str, error: int = errno.ECONNRESET) -> None:
        self._port.drops.count(f"violation: {why}")
        self.error = error
        self._port.reset(self)
        self._end(forget_received=False)

    def fail(self, error: int) -> None:
        """The guest is gone or has forgotten: end with `error`, without a word."""
        self.error = error
        self._end(forget_received=False)

    def _end(self, *, forget_received: bool = True) -> None:
        """CLOSED: out of the tables, nothing due."""
        self.state = VsockState.CLOSED
        self._outgoing.clear()
        if forget_received:
            self._incoming.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._port.forget(self)
        if self._bound is not None:
            self._bound.release()
        self._drained()
        self.notify()

    # -- leaving --------------------------------------------------------------------------------------------------

    def emit(self, burst: list[VsockTx], limit: int) -> bool:
        """Append what is due, at most `limit` bytes of data; False if more is left. Not called once it is CLOSED."""
        begun = len(burst)
        if self._greeting:
            burst.append(self._packet(self._greeting))
            self._greeting = 0
        if self._outgoing and not self._emit_data(burst, limit):
            return False
        if self._shutdown_due:
            self._shutdown_due = False
            burst.append(self._packet(_SHUTDOWN, self._shutdown))
        if self._credit_request_due:
            self._credit_request_due = False
            burst.append(self._packet(_CREDIT_REQUEST))
        if self._credit_due and len(burst) == begun:
            burst.append(self._packet(_CREDIT_UPDATE))
        self._credit_due = False
        return True

    def _emit_data(self, burst: list[VsockTx], limit: int) -> bool:
        outgoing = self._outgoing
        while outgoing:
            if limit <= 0:
                return False
            payload = outgoing.take(min(limit, MAX_PAYLOAD))
            limit -= len(payload)
            burst.append(self._packet(_RW, 0, payload))
        return True

    def _packet(self, op: int, flags: int = 0, payload: Buffer = _NO_DATA) -> VsockTx:
        buf_alloc, fwd_cnt = self.credit.tell()
        local, remote = self.local, self.remote
        return (local[0], remote[0], local[1], remote[1], self.kind, op, flags, buf_alloc, fwd_cnt, payload)

    # -- the rest -------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        if self.on_event is not None:
            self.on_event()

    def _arm(self, delay: int) -> None:
        if self._timer is None:
            self._timer = self._port.scheduler.timer(self._expired)
        self._timer.arm_in(delay)

    def _expired(self) -> None:
        """The answer to our REQUEST, or the RST that ends our close, did not come."""
        if self.state is VsockState.CONNECTING:
            self.error = errno.ETIMEDOUT
        elif self.unsent:
            # The guest is paused, or has had no buffers: what was taken is delivered however long that lasts. It is no
            # more than the guest granted, and ends with the guest.
            self._arm(CLOSE_TIMEOUT)
            return
        self._port.reset(self)
        self._end()
