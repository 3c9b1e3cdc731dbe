"""`UnixSpace`: what the Unix sockets of one Stack share: the tree of paths, limits, and files on their way.

Abstract names are not here: they are of network namespaces (row UNX-05). Paths are not: a socket is found by its path
from every network namespace, as on Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.unix.inflight import InFlight
from stack.unix.tree import FileTree

if TYPE_CHECKING:
    from stack.scheduler import Scheduler

#: net.unix.max_dgram_qlen: datagrams a socket queues before unrelated senders wait; one more fits (row UDG-04).
MAX_DGRAM_QLEN: Final = 10
#: net.core.somaxconn: the longest backlog.
SOMAXCONN: Final = 4096
#: RLIMIT_NOFILE as most systems have it for users.
NOFILE: Final = 1024


class UnixSpace:
    """`max_dgram_qlen`, `somaxconn` and `in_flight.limit` may be changed; they count from then on."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.tree = FileTree()
        self.in_flight = InFlight(NOFILE)
        self.max_dgram_qlen = MAX_DGRAM_QLEN
        self.somaxconn = SOMAXCONN

    def let_go(self) -> None:
        """A holder of a Unix socket let go: look for garbage at the end of the turn."""
        if self.in_flight.has_sockets:
            self.scheduler.defer(self._collect)

    def close(self) -> None:
        """The Stack is closed."""
        self.in_flight.close()

    def _collect(self) -> None:
        self.in_flight.collect()
