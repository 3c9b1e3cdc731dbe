"""`Endpoint`: one netlink socket as the tables see it: port id, groups, a bounded receive queue (rows NL-09, NL-10).

Theory of operation
-------------------
What is delivered is charged with its length and what the kernel's buffers cost on top. Once more is charged than the
limit, the next delivery is an *overrun*: the message is lost, the socket's error is ENOBUFS, and nothing more is
delivered until the reader has emptied the queue. The error is reported once, by the next receive; NETLINK_NO_ENOBUFS
suppresses both the error and the pause. A dump is a generator of datagrams that runs as fast as the reader reads: the
next one is made when less than half of the limit is charged.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from stack.socket.options_socket import BUFFER_DEFAULT

if TYPE_CHECKING:
    from stack.socket.netlink.tables import ProtocolTable
    from stack.socket.options import OptionValues

SOL_NETLINK: Final = 270
#: What Linux charges for one datagram besides its bytes: sk_buff, shared info, rounding (x86-64).
OVERHEAD: Final = 768
#: struct ucred of the kernel itself
KERNEL: Final = (0, 0, 0)


class Datagram(NamedTuple):
    """``group`` is the number it was multicast to, 0 for unicast; ``credentials`` the sender's (pid, uid, gid)."""

    data: bytes
    pid: int
    group: int
    credentials: tuple[int, int, int]


class Endpoint:
    """`table` is None once closed."""

    def __init__(self, table: ProtocolTable) -> None:
        self.table = table
        self.port = 0  #: port id; 0 while unbound
        self.groups: set[int] = set()  #: numbers
        self.peer = 0  #: port id of a connected endpoint's peer, and only it may send
        self.connected = False
        self.queue: deque[Datagram] = deque()
        self.charged = 0  #: bytes
        self.limit = BUFFER_DEFAULT  #: SO_RCVBUF, bytes
        self.error = 0
        self.congested = False
        self.no_enobufs = False
        self.drops = 0
        #: The dump under way: its datagrams, and with each whether it is the last.
        self.dump: Iterator[tuple[bytes, bool]] | None = None
        self.longest_read = 0  #: the largest buffer the reader offered, bytes
        self.on_event: Callable[[], None] | None = None
        #: The socket's options, which decide how requests are checked and answered.
        self.settings: OptionValues | None = None

    def flag(self, number: int) -> bool:
        """A boolean option of SOL_NETLINK."""
        return self.settings is not None and bool(self.settings.value(SOL_NETLINK, number))

    @property
    def full(self) -> bool:
        return self.congested or self.charged > self.limit

    def deliver(self, datagram: Datagram) -> bool:
        """Queue it, or overrun: False."""
        if self.full:
            self.overrun()
            return False
        self.queue.append(datagram)
        self.charged += len(datagram.data) + OVERHEAD
        self._event()
        return True

    def overrun(self) -> None:
        self.drops += 1
        if not self.no_enobufs and not self.congested:
            self.congested = True
            self.error = errno.ENOBUFS
            self._event()

    def take(self) -> Datagram | None:
        """The oldest datagram, and whatever follows of a dump is made."""
        if not self.queue:
            return None
        datagram = self.queue.popleft()
        self.charged -= len(datagram.data) + OVERHEAD
        if not self.queue:
            self.congested = False
        self.pump()
        return datagram

    def pump(self) -> None:
        """One more datagram of the dump, if there is one and the reader keeps up."""
        if self.dump is None or self.charged > self.limit // 2:
            return
        data, last = next(self.dump)
        if last:
            self.dump = None
        self.deliver(Datagram(data, 0, 0, KERNEL))

    def take_error(self) -> int:
        error, self.error = self.error, 0
        return error

    def close(self) -> None:
        self.dump = None
        self.queue.clear()
        self.on_event = None
        self.table.forget(self)

    def _event(self) -> None:
        if self.on_event is not None:
            self.on_event()
