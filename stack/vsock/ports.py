"""The host's vsock ports: which are taken, and by how many (rows VS-03, IF-06)."""

from __future__ import annotations

import errno
from typing import Final

from stack.errors import NetError
from stack.scheduler import Randomness
from stack.wire.vsock import LAST_RESERVED_PORT, PORT_ANY

FIRST_EPHEMERAL: Final = LAST_RESERVED_PORT + 1


class BoundPort:
    """One holder's port. `retain` makes another holder; the port is free again after as many `release`."""

    __slots__ = ("_holders", "_table", "port")

    def __init__(self, table: PortTable, port: int) -> None:
        self._table = table
        self._holders = 1
        self.port = port

    def retain(self) -> BoundPort:
        self._holders += 1
        return self

    def release(self) -> None:
        """One holder less. Releasing more often than held changes nothing."""
        if self._holders:
            self._holders -= 1
            if not self._holders:
                self._table.free(self.port)


class PortTable:
    """Ports 0..2**32-2; PORT_ANY stands for "choose one"."""

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng
        self._taken: set[int] = set()
        self._next = 0  # 0: no ephemeral port was chosen yet

    def __contains__(self, port: int) -> bool:
        return port in self._taken

    def bind(self, port: int, *, privileged: bool = True) -> BoundPort:
        """Take `port`, or a free one for PORT_ANY. Raises NetError: EADDRINUSE; EACCES below 1024 without privilege."""
        if port == PORT_ANY:
            port = self._ephemeral()
        elif port <= LAST_RESERVED_PORT and not privileged:
            raise NetError(errno.EACCES, f"vsock port {port} is reserved for privileged users")
        elif port in self._taken:
            raise NetError(errno.EADDRINUSE, f"vsock port {port} is in use")
        self._taken.add(port)
        return BoundPort(self, port)

    def free(self, port: int) -> None:
        """Called by the last holder's `release`."""
        self._taken.discard(port)

    def _ephemeral(self) -> int:
        """Linux: a random start at first, then one after the other."""
        if not self._next:
            self._next = self._rng.randrange(FIRST_EPHEMERAL, PORT_ANY)
        for _ in range(len(self._taken) + 1):
            port = self._next
            self._next = port + 1 if port + 1 < PORT_ANY else FIRST_EPHEMERAL
            if port not in self._taken:
                return port
        raise NetError(errno.EADDRNOTAVAIL, "no vsock port is free")
