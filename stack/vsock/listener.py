"""A host port that guests connect to: the accept queue (rows VS-05, VS-11)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.vsock.connection import buffer_size
from stack.wire.vsock import CID_ANY, CID_HOST, TYPE_STREAM

if TYPE_CHECKING:
    from stack.vsock.connection import VsockConnection
    from stack.vsock.engine import VsockEngine
    from stack.vsock.ports import BoundPort

SOMAXCONN: Final = 4096  # Linux net.core.somaxconn


class VsockListener:
    """Made by `VsockEngine.listen`. `on_event` is called when a connection became ready to be accepted.

    A vsock connection is complete for its guest as soon as it is in the queue: there is no third step of a handshake
    that could be held back, so a full queue refuses with RST.
    """

    def __init__(
        self,
        engine: VsockEngine,
        bound: BoundPort,
        backlog: int,
        *,
        buffer: int,
        kind: int = TYPE_STREAM,
        cid: int = CID_ANY,
    ) -> None:
        self.local = (CID_HOST, bound.port)
        self.kind = kind  #: of connections accepted, as on the wire
        self.cid = cid  #: connections to this CID of ours are accepted; CID_ANY: to any
        self.backlog = backlog  #: may be set at any time
        self.buffer = buffer_size(buffer)  #: receive buffer of new connections, bytes
        self.on_event: Callable[[], None] | None = None
        self.closed = False
        self.refused = 0  #: requests that met a full queue
        self._engine = engine
        self._bound = bound
        self._queue: deque[VsockConnection] = deque()

    def __repr__(self) -> str:
        return f"VsockListener({self.local[1]}, {self.ready} ready)"

    def set_buffer(self, size: int) -> None:
        """Receive buffer of connections from now on, bytes."""
        self.buffer = buffer_size(size)

    @property
    def ready(self) -> int:
        """Connections that accept() would give."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """backlog + 1 connections wait; negative or huge backlogs mean SOMAXCONN."""
        backlog = self.backlog
        return len(self._queue) > (backlog if 0 <= backlog <= SOMAXCONN else SOMAXCONN)

    def add(self, connection: VsockConnection) -> None:
        """A guest connected. Called by its port."""
        self._queue.append(connection)
        if self.on_event is not None:
            self.on_event()

    def accept(self) -> VsockConnection | None:
        """The oldest connection waiting (it may have ended meanwhile), None without one."""
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        """Connections not accepted yet are reset. The port is released. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.on_event = None
        self._engine.unlisten(self)
        self._bound.release()
        while self._queue:
            self._queue.popleft().close(0)
