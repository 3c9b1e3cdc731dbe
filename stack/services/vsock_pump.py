"""One vsock stream joined to one socket of the host: bytes, their end, and back-pressure, both ways.

Theory of operation
-------------------
**Guest to host.** As long as the socket takes all, what the guest sends goes to it by one system call of the ring code
straight from the guest's buffers (`VsockConnection.use_sink`). What the socket does not take is copied into slabs, by
the ring code, for the guest's ring is emptied whoever is slow; the stream's queue holds views of them, and one
`sendmsg` takes all of a turn's: no byte is touched in Python. What waits there shrinks the stream's credit until the
guest waits too.

**Host to guest.** As much is received as the guest granted, by one system call of the ring code straight into the
guest's buffers (`VsockConnection.receive_from`); where that cannot be, in pieces which the ring code scatters. Without
credit or room nothing is read, and the host's program waits in its own kernel's buffer. So memory is bounded by the
stream's receive buffer one way and the guest's credit, which the stream caps, the other.

**Ends.** Each direction ends by itself. The guest's end of stream becomes SHUT_WR behind the last byte, the host's
becomes SHUTDOWN; a host that will not read any more is told to the guest as "will not receive", and the other way
round. Both ended, both are closed. A stream that failed (its guest was reset, it broke the rules) closes the socket
abruptly: TCP peers see RST. A socket that failed resets the stream.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final

from stack.scheduler import NS_PER_MS
from stack.services.host_sockets import HostSockets
from stack.vsock import VsockConnection, VsockState
from stack.vsock.status import NO_ROOM, NOT_DIRECTLY

#: Bytes one stream moves before it is the next one's turn, out of its queue and straight into the guest's buffers. The
#: latter touches no cache of ours, and mostly ends with the ring, whose room is shared out apart (`stack.vsock.turns`);
#: streams that have something at the same time divide it, so that the guest reads the one while we write the next.
SHARE: Final = 512 << 10
SHARE_TO_GUEST: Final = 1 << 20
#: Bytes received at a time: several packets, and a buffer the allocator does not have to clear.
PIECE: Final = 256 << 10
#: Bytes taken from the guest before it is told: half of what a Linux guest keeps under way by default.
REPORT: Final = 128 << 10
#: Bytes a Unix socket is to hold for a program that is a little behind: what goes straight from the guest's buffers to
#: the socket needs no copy of ours. The kernel doubles it, to allow for its own costs, and grants no more than
#: net.core.wmem_max; its default is 208 KiB, a fifth of what a guest may send ahead.
SOCKET_BUFFER: Final = 512 << 10
#: Guests tell of room by themselves as they read, and soon; asking each time costs both sides a packet and an interrupt
#: (a thousand for each gigabyte). After so long (ns) without a word one that only answers is asked.
ASK_AFTER: Final = 5 * NS_PER_MS
#: Pieces in one sendmsg; IOV_MAX is 1024.
PIECES: Final = 64

_ABRUPT: Final = struct.pack("ii", 1, 0)  # struct linger: on, no time


class Pump:
    """Moves bytes from its making on. `on_end(pump)` is called once, after both sides are closed.

    `sock` is connected, non-blocking and registered with `hosts`; `early` was received from it already.
    """

    __slots__ = (
        "_asking",
        "_can_read",
        "_can_write",
        "_deaf",
        "_early",
        "_ended",
        "_heeds_data",
        "_heeds_room",
        "_hosts",
        "_mute",
        "_on_end",
        "_said_deaf",
        "_said_mute",
        "_sock",
        "connection",
    )

    def __init__(
        self,
        hosts: HostSockets,
        connection: VsockConnection,
        sock: socket.socket,
        *,
        on_end: Callable[[Pump], None],
        early: bytes = b"",
    ) -> None:
        self.connection = connection
        self._hosts = hosts
        self._sock = sock
        self._early = early
        self._on_end = on_end
        self._can_read = self._can_write = True  # until EAGAIN
        self._heeds_data = self._heeds_room = True  # hints about them are wanted
        self._mute = False  # the host's program will not send any more
        self._deaf = False  # the host's program will not receive any more
        self._said_mute = False  # the host's program knows that the guest will not send any more
        self._said_deaf = False  # ... that the guest will not receive any more
        self._ended = False
        self._asking = connection.timer(self._ask)
        # The guest hears of room before it runs out: it goes on sending while we go on writing.
        connection.set_wanted(max(1, connection.rcvbuf - REPORT))
        connection.on_event = self._event
        if sock.family == socket.AF_UNIX:  # TCP finds its own measure
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        hosts.hand_over(sock, self)

    def _event(self) -> None:
        self._hosts.mark(self)

    def hint(self, *, hung_up: bool) -> None:
        self._can_read = self._can_write = True
        if hung_up:
            self._deaf = True

    def run(self) -> bool:
        """Both directions, a share each. True: there is more."""
        if self._ended:
            return False
        try:
            more = self._to_host()
            more |= self._to_guest()
        except OSError:
            self.abort()
            return False
        self._look_for_the_end()
        return more and not self._ended

    def abort(self) -> None:
        """RST to the guest, and the socket closed abruptly. Idempotent."""
        if not self._ended:
            self.connection.on_event = None
            self.connection.close(0)
            self._close(abrupt=True)

    def _to_host(self) -> bool:
        connection = self.connection
        moved = 0
        while connection.readable:
            if self._deaf:
                connection.discard(connection.readable)
                break
            if not self._can_write:
                return False
            if moved >= SHARE:
                return True
            try:
                sent = self._sock.sendmsg(connection.views(PIECES))
            except BlockingIOError:
                self._can_write = False
                self._heed(data=self._heeds_data, room=True)
                return False
            except BrokenPipeError:
                self._deaf = True
                continue
            connection.discard(sent)
            moved += sent
        if self._deaf:
            connection.shutdown_read()
        elif connection.eof and not self._said_mute and connection.state is not VsockState.CLOSED:
            self._said_mute = True
            _shut(self._sock, socket.SHUT_WR)
        elif self._can_write:
            self._heed(data=self._heeds_data, room=False)
            connection.use_sink(self._sock.fileno())
        return False

    def _stalled(self) -> bool:
        """The guest takes nothing: what the host's program writes meanwhile need not wake us. We look afterwards."""
        self._can_read = True
        self._heed(data=False, room=self._heeds_room)
        return False

    def _heed(self, *, data: bool, room: bool) -> None:
        if data is not self._heeds_data or room is not self._heeds_room:
            self._heeds_data, self._heeds_room = data, room
            self._hosts.heed(self._sock, data=data, room=room)

    def _to_guest(self) -> bool:
        connection = self.connection
        moved, share = 0, max(PIECE, SHARE_TO_GUEST // (self._hosts.busy or 1))
        while not self._mute:
            if not connection.can_write:
                if not self._said_deaf and connection.state is not VsockState.CLOSED:
                    self._said_deaf = True
                    _shut(self._sock, socket.SHUT_RD)
                return False
            room = connection.writable
            if not room:
                if not self._asking.armed:
                    self._asking.arm_in(ASK_AFTER)
                return self._stalled()
            self._asking.cancel()
            if self._early:
                self._early = self._early[connection.write(self._early) :]
                continue
            if not self._can_read:
                return False
            if moved >= share:
                return True
            try:
                count = connection.receive_from(self._sock.fileno(), share - moved)
                if count == NOT_DIRECTLY:
                    data = self._sock.recv(min(room, PIECE))
                    count = connection.write(data) if data else 0
            except BlockingIOError:
                self._can_read = False
                self._heed(data=True, room=self._heeds_room)
                return False
            if count == NO_ROOM:
                return self._stalled()
            moved += count
            if not count:
                self._mute = True
                connection.shutdown_write()
        return False

    def _ask(self) -> None:
        """The guest had no room for us a while ago."""
        self.connection.ask_credit()

    def _look_for_the_end(self) -> None:
        connection = self.connection
        if connection.readable:
            return
        if connection.state is VsockState.CLOSED:
            connection.on_event = None
            failed = connection.take_error() != 0
            connection.close()
            self._close(abrupt=failed)
        elif (self._mute or not connection.can_write) and (self._said_mute or self._deaf):
            connection.on_event = None
            connection.close()
            self._close()

    def _close(self, *, abrupt: bool = False) -> None:
        self._ended = True
        self._asking.cancel()
        self._hosts.remove(self._sock, self)
        close_socket(self._sock, abrupt=abrupt)
        self._on_end(self)


def close_socket(sock: socket.socket, *, abrupt: bool = False) -> None:
    """Close it; `abrupt`: a TCP peer gets RST."""
    if abrupt and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPT)
    sock.close()


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:  # ENOTCONN: the peer has gone meanwhile, which is seen when reading
        return
