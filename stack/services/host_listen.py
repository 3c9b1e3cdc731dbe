"""A listener of the host's kernel as a task: connections come in as long as there is room for them."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from stack.scheduler import NS_PER_MS, Scheduler
from stack.services.host_address import HostAddress
from stack.services.host_sockets import HostSockets

#: Connections accepted at a time.
ACCEPTS: Final = 16
#: How long a listener rests when descriptors or memory are used up: trying again at once would only burn the CPU.
BACK_OFF: Final = 200 * NS_PER_MS

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_LOG: Final = logging.getLogger(__name__)


class HostListener:
    """Calls `on_accept(sock)` with each connection, non-blocking. While `has_room()` is false they wait in the kernel's
    queue: call `resume` when there may be room again. Raises OSError if the address cannot be listened on.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hosts: HostSockets,
        where: HostAddress,
        on_accept: Callable[[socket.socket], None],
        has_room: Callable[[], bool],
    ) -> None:
        self.where = where
        self.exhausted = 0  #: times the process had no descriptor for a connection
        self._hosts = hosts
        self._on_accept = on_accept
        self._has_room = has_room
        self._resting = scheduler.timer(self.resume)
        self._sock = where.listen()
        self._file = _identity(where.path)
        try:
            hosts.add(self._sock, self)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> object:
        """What the kernel bound it to: with port 0, the one it chose."""
        return self._sock.getsockname()

    def hint(self, *, hung_up: bool) -> None:
        """`run` asks the kernel itself."""

    def run(self) -> bool:
        if self._resting.armed:
            return False
        for _ in range(ACCEPTS):
            if not self._has_room():
                return False
            try:
                sock, _ = self._sock.accept()
            except OSError as error:
                return self._refused(error.errno or errno.EINVAL)
            sock.setblocking(False)
            self._on_accept(sock)
        return True

    def _refused(self, error: int) -> bool:
        """True: try the next one."""
        if error in _EXHAUSTED:
            if not self.exhausted:
                _LOG.warning("%s: %s; connections wait", self.where, os.strerror(error))
            self.exhausted += 1
            self._resting.arm_in(BACK_OFF)
            return False
        return error != errno.EAGAIN  # accept(2): errors already pending on the new connection come up here

    def resume(self) -> None:
        """There may be room again."""
        if self._sock.fileno() >= 0:
            self._hosts.mark(self)

    def close(self) -> None:
        """A socket file of ours is removed. Idempotent."""
        self._resting.cancel()
        self._hosts.remove(self._sock, self)
        self._sock.close()
        path = self.where.path
        if path is not None and self._file is not None and _identity(path) == self._file:
            with suppress(FileNotFoundError):
                os.unlink(path)
        self._file = None


def _identity(path: str | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
