"""What a vsock connection is and how it looks from outside: its state, what can be read and written, its credit.

`stack.vsock.connection` moves it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Final

from stack.vsock.credit import Credit
from stack.vsock.queue import ByteQueue
from stack.wire.vsock import SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, Op

if TYPE_CHECKING:
    from stack.scheduler import Timer
    from stack.vsock.guest import GuestPort
    from stack.vsock.ports import BoundPort

_REQUEST: Final = int(Op.REQUEST)

#: What `VsockConnection.receive_from` answers instead of a number of bytes.
NOT_DIRECTLY: Final = -1
NO_ROOM: Final = -2


class VsockState(Enum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSING = "closing"  #: closed here, waiting for the peer's RST
    CLOSED = "closed"


class ConnectionStatus:
    """Base of `VsockConnection`: its attributes, and what is computed from them alone."""

    __slots__ = (
        "__weakref__",
        "_bound",
        "_credit_due",
        "_credit_request_due",
        "_credit_requested",
        "_greeting",
        "_incoming",
        "_orphan",
        "_outgoing",
        "_owes_reset",
        "_passive",
        "_peer_shutdown",
        "_port",
        "_reserved",
        "_shutdown",
        "_shutdown_due",
        "_timer",
        "credit",
        "error",
        "local",
        "on_event",
        "remote",
        "state",
        "wanted",
    )

    kind: ClassVar[int] = TYPE_STREAM

    def __init__(
        self,
        port: GuestPort,
        local: tuple[int, int],
        remote: tuple[int, int],
        *,
        buffer: int,
        bound: BoundPort | None = None,
    ) -> None:
        """`local`, `remote`: (CID, port) of this end and of the guest's."""
        self.local = local
        self.remote = remote
        self.state = VsockState.CONNECTING
        self.error = 0  #: errno pending, 0 for none; see `take_error`
        self.on_event: Callable[[], None] | None = None
        self.credit = Credit(buffer)
        self.wanted = 1  #: SO_RCVLOWAT: bytes a reader waits for at least
        self._port = port
        self._bound = bound
        self._incoming = ByteQueue()
        self._outgoing = ByteQueue()
        self._greeting = 0  # REQUEST or RESPONSE, while due
        self._shutdown = 0  # SHUTDOWN bits we have sent or are to send
        self._shutdown_due = False
        self._peer_shutdown = 0
        self._credit_due = False
        self._credit_request_due = False
        self._credit_requested = False  # asked for, no answer yet
        self._owes_reset = False  # the peer shut both directions and waits for our RST
        self._orphan = False
        self._passive = False  # the peer's request waits for our answer
        self._reserved = buffer  # bytes of the engine's memory
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        name, local, remote = type(self).__name__, self.local, self.remote
        return f"{name}({local[0]}:{local[1]} - {remote[0]}:{remote[1]}, {self.state.value})"

    # -- how it is ------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self.state is VsockState.CONNECTED

    @property
    def readable(self) -> int:
        """Bytes that read() would give now. What arrived before the end stays readable."""
        return len(self._incoming)

    @property
    def has_data(self) -> bool:
        """Something can be read."""
        return len(self._incoming) > 0

    @property
    def closed(self) -> bool:
        """Over; what was received may still be read."""
        return self.state is VsockState.CLOSED

    @property
    def eof(self) -> bool:
        """After `readable` more bytes the stream ends: the peer's shutdown, shutdown_read(), or CLOSED."""
        return (
            self._peer_shutdown & SHUTDOWN_SEND != 0
            or self._shutdown & SHUTDOWN_RECEIVE != 0
            or self.state in (VsockState.CLOSING, VsockState.CLOSED)
        )

    @property
    def can_write(self) -> bool:
        """Whether write() is allowed at all, with or without credit (else: EPIPE)."""
        return (
            self.state is VsockState.CONNECTED
            and not self._shutdown & SHUTDOWN_SEND
            and not self._peer_shutdown & SHUTDOWN_RECEIVE
        )

    @property
    def writable(self) -> int:
        """Bytes that write() would take now: the peer's credit."""
        return self.credit.free if self.can_write else 0

    @property
    def rcvbuf(self) -> int:
        """Receive buffer in force, bytes."""
        return self.credit.buffer

    @property
    def sndbuf(self) -> int:
        """Most that can be under way at a time, bytes."""
        return min(self.credit.buffer, self.credit.peer_buffer)

    @property
    def pending(self) -> int:
        """Bytes written that were not handed to the transport yet."""
        return len(self._outgoing)

    @property
    def unannounced(self) -> bool:
        """The guest has not heard of this connection: our REQUEST has not left."""
        return self._greeting == _REQUEST

    @property
    def unacknowledged(self) -> int:
        """Bytes written that the peer's user has not consumed yet, as far as the peer told."""
        return self.credit.sent - self.credit.peer_consumed
