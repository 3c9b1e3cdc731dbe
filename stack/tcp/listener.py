"""A port that accepts connections: SYN queue and accept queue."""

from __future__ import annotations

from collections.abc import Callable

from stack.tcp.connection import Connection
from stack.tcp.options import TcpOptions


class Listener:
    local: tuple[bytes, int]
    options: TcpOptions  #: copied to each new connection
    backlog: int  #: may be set at any time; backlog + 1 connections wait in the accept queue at most
    on_event: Callable[[], None] | None

    @property
    def ready(self) -> int:
        """Connections that accept() would give."""
        raise NotImplementedError

    def accept(self) -> Connection | None:
        """The oldest connection waiting, None without one."""
        raise NotImplementedError

    def close(self) -> None:
        """Connections not accepted yet are reset. The port is released. Idempotent."""
        raise NotImplementedError
