"""Sockets of the host's kernel inside a Network: one `Source` for all of them, no thread for any.

Theory of operation
-------------------
Every socket is registered once, edge triggered, for both directions; what the kernel reports are hints that something
*may* go now, and whoever owns the socket tries until the kernel says EAGAIN. So a socket that nobody wants to read from
(its bytes have nowhere to go) costs nothing, and nothing has to be told to the kernel when that changes. The exception
is an owner that moves much: the kernel reports every piece that its peer writes, and room with every piece that the
peer of a Unix socket reads, and each report wakes us; so an owner may say which of them it waits for (`heed`).

Owners are `Task`s: a hint, or `mark` from anywhere, makes a task ready; `service` runs each ready task once, for a
bounded share of work, and those that have more to do again next turn. A hint that was fetched together with one whose
task closed the socket never reaches another socket that got the same number meanwhile.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Final, Protocol

#: Hints taken from the kernel at a time.
MAX_EVENTS: Final = 256
_NEITHER: Final = select.EPOLLRDHUP | select.EPOLLET
_ANY: Final = _NEITHER | select.EPOLLIN | select.EPOLLOUT


class Task(Protocol):
    """Something with work on a socket."""

    def hint(self, *, hung_up: bool) -> None:
        """Reading or writing may succeed now. `hung_up`: the peer is gone in both directions."""
        ...

    def run(self) -> bool:
        """A bounded share of work; True if there is more. Never waits, never raises."""
        ...


class HostSockets:
    """Attach it to the Network. Lock held by the caller, always."""

    def __init__(self) -> None:
        self.on_ready: Callable[[], None] | None = None
        self._epoll = select.epoll()
        self._tasks: dict[int, Task] = {}
        self._fresh: set[int] = set()  # registered while hints are being handed out
        self._ready: dict[Task, None] = {}
        self.busy = 0  #: tasks that share this turn

    def __len__(self) -> int:
        """Sockets registered."""
        return len(self._tasks)

    def add(self, sock: socket.socket, task: Task) -> None:
        """Hints for `sock` go to `task`. Raises OSError (ENOSPC, ENOMEM) when the kernel watches no more."""
        fd = sock.fileno()
        self._epoll.register(fd, _ANY)
        self._tasks[fd] = task
        self._fresh.add(fd)

    def remove(self, sock: socket.socket, task: Task) -> None:
        """Call it before the socket is closed. `task` is not run any more. Unknown sockets are no error."""
        self._ready.pop(task, None)
        fd = sock.fileno()
        if fd >= 0 and self._tasks.get(fd) is task:
            del self._tasks[fd]
            self._epoll.unregister(fd)

    def hand_over(self, sock: socket.socket, task: Task) -> None:
        """Hints for `sock`, registered already, go to `task` from now on; those the former owner got come again."""
        fd = sock.fileno()
        self._ready.pop(self._tasks[fd], None)
        self._tasks[fd] = task
        self._epoll.modify(fd, _ANY)
        self.mark(task)

    def heed(self, sock: socket.socket, *, data: bool, room: bool) -> None:
        """Which hints are wanted beside those about the end; what is the case already is hinted at once."""
        self._epoll.modify(sock.fileno(), _NEITHER | (select.EPOLLIN if data else 0) | (select.EPOLLOUT if room else 0))

    def mark(self, task: Task) -> None:
        """`task` has something to do."""
        if not self._ready and self.on_ready is not None:
            self.on_ready()
        self._ready[task] = None

    def close(self) -> None:
        """The sockets stay their owners'. Idempotent."""
        self._tasks.clear()
        self._ready.clear()
        self._epoll.close()

    # -- Source -------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._epoll.closed else self._epoll.fileno()

    def suppress(self) -> None:
        """The descriptor tells nothing that `service` does not take away."""

    def arm(self) -> bool:
        return bool(self._ready)

    def service(self, budget: int) -> int:
        """Take hints, then run what is ready; each task once."""
        if self._epoll.closed:
            return 0
        self._fresh.clear()
        events = self._epoll.poll(0, min(budget, MAX_EVENTS))
        for fd, bits in events:
            task = self._tasks.get(fd)
            if task is not None and fd not in self._fresh:
                task.hint(hung_up=bool(bits & (select.EPOLLHUP | select.EPOLLERR)))
                self._ready[task] = None
        ready = self._ready
        batch = tuple(ready)
        self.busy = len(batch)
        for task in batch:
            if task in ready:  # an earlier one may have ended it
                del ready[task]
                if task.run():
                    self.mark(task)
        return len(events) + len(batch)
