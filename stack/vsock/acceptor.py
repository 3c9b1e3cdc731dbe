"""Who takes a guest's connections to ports that nothing in the stack listens on: a gateway to the host's sockets.

A listener's connections are answered before anybody sees them. An acceptor's are not: whether there is a server behind
the port is only known after asking the host's kernel, and a guest's connect() should succeed or fail accordingly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stack.vsock.connection import VsockConnection


class Acceptor(Protocol):
    """Set as `GuestPort.acceptor`. Lock held by the caller; nothing waits."""

    @property
    def buffer(self) -> int:
        """Receive buffer of its next connection, bytes."""
        ...

    def requested(self, connection: VsockConnection) -> None:
        """The guest asks for `connection.local`, a stream: `answer` it, or `abort` it, now or later."""
        ...
