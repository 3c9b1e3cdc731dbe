"""One TCP connection as its user sees it."""

from __future__ import annotations

from collections.abc import Callable

from stack.link.device import Buffer
from stack.tcp.info import TcpInfo
from stack.tcp.options import TcpOptions
from stack.tcp.transitions import TcpState


class Connection:
    """One end of a connection (RFC 9293 section 3.3.1).

    Lock held by the caller; nothing waits. `on_event` is called, possibly several times a turn, after readiness may
    have changed; it must only set flags or wake waiters.
    """

    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    options: TcpOptions  #: live; call options_changed() after setting a field
    error: int  #: pending errno, 0 for none
    on_event: Callable[[], None] | None
    mss: int  #: payload bytes of a full-sized segment (after timestamps)
    rcvbuf: int  #: receive buffer in force, bytes
    sndbuf: int  #: send buffer in force, bytes

    @property
    def state(self) -> TcpState:
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """The handshake completed and the connection is not CLOSED."""
        raise NotImplementedError

    @property
    def readable(self) -> int:
        """Bytes that read() would give now. What arrived before a reset stays readable."""
        raise NotImplementedError

    @property
    def eof(self) -> bool:
        """The peer's FIN arrived in order, or shutdown_read() was called, or it is CLOSED: after `readable` bytes the stream ends."""
        raise NotImplementedError

    @property
    def writable(self) -> int:
        """Bytes that write() would take now; 0 unless the state allows sending."""
        raise NotImplementedError

    @property
    def unacknowledged(self) -> int:
        """Bytes written and not yet acknowledged by the peer (SIOCOUTQ)."""
        raise NotImplementedError

    def take_error(self) -> int:
        """The pending errno, which is 0 afterwards."""
        raise NotImplementedError

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, b"" when none are there (see `eof`)."""
        raise NotImplementedError

    def read_into(self, target: memoryview) -> int:
        """As read(), into a writable "B" view; returns the bytes placed."""
        raise NotImplementedError

    def peek(self, limit: int, offset: int = 0) -> bytes:
        """As read() from `offset` on, but the bytes stay."""
        raise NotImplementedError

    def discard(self, limit: int) -> int:
        """As read() without the bytes (MSG_TRUNC); returns how many went."""
        raise NotImplementedError

    def write(self, data: Buffer, *, more: bool = False) -> int:
        """Queue as much of `data` as there is room for; returns the bytes taken.

        Large `bytes` objects, and views of such, are kept and not copied; anything else is copied once.
        `more` (MSG_MORE): hold a last partial segment back as TCP_CORK does. Raises NetError(EPIPE) when the state
        does not allow sending.
        """
        raise NotImplementedError

    def options_changed(self) -> None:
        """Look at `options` again."""
        raise NotImplementedError

    def shutdown_read(self) -> None:
        """`eof` from now on (what still arrives stays readable, as on Linux)."""
        raise NotImplementedError

    def shutdown_write(self) -> None:
        """FIN after everything written. Idempotent."""
        raise NotImplementedError

    def close(self, linger: int | None = None) -> None:
        """The user lets go. Unread data or linger=0: RST. Otherwise FIN, and the rest happens without the user."""
        raise NotImplementedError

    def abort(self) -> None:
        """RST (where the state calls for one) and CLOSED."""
        raise NotImplementedError

    def info(self) -> TcpInfo:
        raise NotImplementedError
