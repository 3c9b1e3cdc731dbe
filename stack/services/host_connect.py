"""A guest's request on its way to a server of the host: connected there first, answered then."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final

from stack.scheduler import NS_PER_S, Scheduler, Timer
from stack.services.host_address import HostAddress
from stack.services.host_sockets import HostSockets
from stack.vsock import VsockConnection, VsockState

#: For servers that do not answer at all. The guest's own patience (2 s by default in Linux) usually ends before.
CONNECT_TIMEOUT: Final = 10 * NS_PER_S


class HostConnect:
    """One non-blocking connect(). Ends with `on_connected(sock)` or `on_failed(error)`, an errno; 0: the guest left.

    `on_connected` is called at once where the kernel says at once how it went. The guest's request is neither
    answered nor refused here. Raises OSError when there is no socket to be had or it cannot be watched.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hosts: HostSockets,
        connection: VsockConnection,
        target: HostAddress,
        on_connected: Callable[[socket.socket], None],
        on_failed: Callable[[int], None],
    ) -> None:
        self._hosts = hosts
        self._connection = connection
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._timer: Timer | None = None
        self.done = False  #: one of the two was called
        self._sock = target.open()
        try:
            error = self._sock.connect_ex(target.address)
            if error in (0, errno.EINPROGRESS):
                hosts.add(self._sock, self)
        except OSError as failure:  # an address of a family the kernel does not take
            error = failure.errno or errno.EINVAL
        if error == errno.EINPROGRESS:
            connection.on_event = self._event
            self._timer = scheduler.timer(self._expired)
            self._timer.arm_in(CONNECT_TIMEOUT)
        elif error:
            self._fail(error)
        else:
            self._succeed()

    def hint(self, *, hung_up: bool) -> None:
        """`run` asks the kernel itself."""

    def run(self) -> bool:
        if self.done:
            return False
        if self._connection.state is VsockState.CLOSED:
            self._fail(0)
            return False
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(error)
        elif self._is_connected():
            self._succeed()
        return False

    def abandon(self) -> None:
        """Nothing is called any more, and the guest is refused."""
        self._finish()
        self._sock.close()
        self._connection.close(0)

    def _is_connected(self) -> bool:
        try:
            self._sock.getpeername()
        except OSError:
            return False
        return True

    def _event(self) -> None:
        self._hosts.mark(self)

    def _expired(self) -> None:
        self._fail(errno.ETIMEDOUT)

    def _succeed(self) -> None:
        self._finish(keep=True)
        self._on_connected(self._sock)

    def _fail(self, error: int) -> None:
        self._finish()
        self._sock.close()
        self._on_failed(error)

    def _finish(self, *, keep: bool = False) -> None:
        self.done = True
        self._connection.on_event = None
        if self._timer is not None:
            self._timer.cancel()
        if not keep:
            self._hosts.remove(self._sock, self)
