"""The control thread: waits for front-ends and lets sessions answer them. The only file of this room that waits.

Theory of operation
-------------------
One daemon thread serves every listener and every connection of a `Server` from one epoll. It never takes the
Network's lock; what it does to a ring it does under that ring's gate. QEMU holds its big lock while it waits for an
answer, so nothing here may take longer than a burst of the data path plus the work of one message.

A device has one front-end at a time, and a connection claims it with its first whole message, not by connecting: a
health check that connects and goes away, or sits there, takes nobody's place. Whoever speaks while another session is
alive is refused: logged, closed, and the first one never notices. "Alive" is looked at then and there, so a QEMU
restarted within the same instant gets in although the old connection's end is still unread. A refused QEMU tries again
at once and for ever (its vhost-user netdev does so at start-up, thousands of times a second), so a repeated refusal
is kept waiting for a second and not logged again.

Whatever goes wrong on a connection ends that connection: one log line, descriptors closed, rings stopped, memory
unmapped, and the device waits for the next front-end (QEMU's `reconnect=`). Listeners that run into the descriptor
limit are left alone for a moment instead of spinning.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakKeyDictionary

from .address import BoundSocket, ListenError, bind_abstract, bind_path, take_listener
from .connection import Connection, Disconnected
from .message import ProtocolError
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .device import Device
    from .ring_control import RingCounters

__all__ = ["ListenError", "Listening", "RingStats", "Server", "ServerStats"]

logger = logging.getLogger(__name__)

#: Messages of one connection handled before others get their turn. A start of a two-pair card takes about 40.
_MESSAGES_PER_TURN: Final = 64
#: Connections of one device that may sit there without having said anything.
_MAX_SILENT: Final = 16
#: How long a listener rests after accept() ran out of descriptors, in seconds.
_ACCEPT_PAUSE: Final = 1.0

#: How long a front-end that is refused again and again is left without an answer, in seconds.
_REFUSAL_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class RingStats:
    """What happened on one ring of one device."""

    device: str  #: its name
    index: int  #: of the ring; on a card, even ones are to the guest, odd ones from it
    counters: RingCounters


@dataclass(slots=True)
class ServerStats:
    """Counters since the server was made."""

    accepted: int = 0  #: connections taken (listened for or adopted)
    refused: int = 0  #: turned away: device busy, wrong peer, too many silent ones
    broken: int = 0  #: ended because the front-end broke the protocol or died in the middle of a message
    closed: int = 0  #: ended in order, or by us
    messages: int = 0  #: requests handled
    slowest_ns: int = 0  #: longest time one request took from read to answered, in nanoseconds
    rings: tuple[RingStats, ...] = ()  #: those of the devices that have a front-end now


class Listening:
    """An address a device can be reached at."""

    def __init__(self, server: Server, entry: _Listener) -> None:
        self._server = server
        self._entry = entry

    @property
    def address(self) -> str:
        """The socket's path; an abstract name starts with ``@``."""
        return self._entry.bound.address

    def close(self) -> None:
        """Stop listening and take the socket file away. The connection it has brought lives on. Idempotent."""
        self._server._call(lambda: self._server._close_listener(self._entry))  # noqa: SLF001 - same file, one unit


class _Listener:
    """A listening socket in the control thread's books."""

    def __init__(
        self,
        device: Device,
        bound: BoundSocket,
        unlink_when_connected: bool,
        accept_peer: Callable[[int, int, int], bool] | None,
    ) -> None:
        self.device = device
        self.bound = bound
        self.fd = bound.sock.fileno()
        self.unlink_when_connected = unlink_when_connected
        self.accept_peer = accept_peer


class _Channel:
    """A connection in the control thread's books; `session` is None until it has claimed the device."""

    def __init__(self, device: Device, sock: socket.socket, listener: _Listener | None) -> None:
        self.device = device
        self.connection = Connection(sock)
        self.fd = sock.fileno()
        self.listener = listener
        self.session: Session | None = None
        self.pid = 0
        self.held_until = 0.0  # when a refused one will be closed; 0: it is not held


class _Refusals:
    """What one device's unwelcome front-ends were told last."""

    def __init__(self) -> None:
        self.last = -_REFUSAL_PAUSE
        self.logged_pid = 0


class Server:
    """Serves vhost-user devices to front-ends. A context manager; methods may be called from any thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._stats = ServerStats()
        self._listeners: dict[int, _Listener] = {}
        self._resting: list[_Listener] = []  # out of the epoll until `_rest_until`, or until a connection ends
        self._rest_until = 0.0
        self._channels: dict[int, _Channel] = {}
        self._held: deque[_Channel] = deque()  # refused, in the order of `held_until`
        self._refusals: WeakKeyDictionary[Device, _Refusals] = WeakKeyDictionary()
        self._commands: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()  # guards `_commands` against the end of the thread
        self._running = True
        self._thread = threading.Thread(target=self._run, name="vhost-user control", daemon=True)
        self._thread.start()

    # -- any thread -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def listen(
        self,
        device: Device,
        *,
        path: str | os.PathLike[str] | None = None,
        abstract: str | None = None,
        listener: socket.socket | int | None = None,
        unlink_when_connected: bool = False,
        accept_peer: Callable[[int, int, int], bool] | None = None,
    ) -> Listening:
        """Wait for front-ends of `device` at exactly one of: a socket file, an abstract name, a listening socket.

        A listening socket is owned by the server from here on. `unlink_when_connected` takes the file away as soon as
        a front-end has claimed the device, so that nothing is left behind however this process ends.
        `accept_peer(pid, uid, gid)` may turn peers away; it runs on the control thread. Raises `ListenError`.
        """
        if (path is not None) + (abstract is not None) + (listener is not None) != 1:
            raise TypeError("listen() takes exactly one of path, abstract and listener")
        if path is not None:
            bound = bind_path(path)
        elif abstract is not None:
            bound = bind_abstract(abstract)
        else:
            assert listener is not None
            bound = take_listener(listener)
        entry = _Listener(device, bound, unlink_when_connected, accept_peer)
        self._call(lambda: self._add_listener(entry))
        return Listening(self, entry)

    def adopt(self, device: Device, connection: socket.socket | int) -> None:
        """Serve `device` on a socket that is connected to a front-end already. The server owns it from here on."""
        sock = connection if isinstance(connection, socket.socket) else socket.socket(fileno=connection)
        self._call(lambda: self._add_channel(device, sock, None))

    def stats(self) -> ServerStats:
        """A copy of the counters, those of the rings with it."""
        devices = dict.fromkeys(channel.device for channel in tuple(self._channels.values()) if channel.session)
        rings = [RingStats(device.name, ring.index, ring.counters) for device in devices for ring in device.rings]
        return replace(self._stats, rings=tuple(rings))

    def close(self) -> None:
        """End every connection and every listener, and the control thread. Devices stay their owners'. Idempotent."""
        with self._lock:
            running, self._running = self._running, False
        if running:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)

    def _call(self, command: Callable[[], None]) -> None:
        """Run `command` on the control thread and wait until it is done; at once if we are it, or it is gone."""
        done = threading.Event()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                command()
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
                failure.append(error)
            done.set()

        if threading.current_thread() is self._thread:
            run()
        else:
            with self._lock:
                alive = self._running
                if alive:
                    self._commands.append(run)
                    os.eventfd_write(self._wake, 1)
            if not alive:
                self._thread.join()
                run()
            done.wait()
        if failure:
            raise failure[0]

    # -- control thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._running:
                events = self._epoll.poll(self._timeout())
                # Connections first: the end of an old one must be seen before its successor is accepted.
                for fd, _ in events:
                    channel = self._channels.get(fd)
                    if channel is not None:
                        self._serve(channel)
                for fd, _ in events:
                    if fd == self._wake:
                        os.eventfd_read(self._wake)
                    listener = self._listeners.get(fd)
                    if listener is not None:
                        self._accept(listener)
                self._run_commands()
                self._look_at_the_clock()
        finally:
            with self._lock:
                self._running = False
            self._run_commands()
            for channel in list(self._channels.values()):
                self._end(channel, "the server was closed")
            for listener in [*self._listeners.values(), *self._resting]:
                self._close_listener(listener)
            self._epoll.close()

    def _timeout(self) -> float:
        """Seconds until somebody's pause is over; -1 when nobody pauses."""
        due = [self._rest_until] if self._resting else []
        if self._held:
            due.append(self._held[0].held_until)
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def _look_at_the_clock(self) -> None:
        if not self._held and not self._resting:
            return
        now = time.monotonic()
        while self._held and now >= self._held[0].held_until:
            self._forget(self._held.popleft())
        if self._resting and now >= self._rest_until:
            self._wake_listeners()

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _add_listener(self, entry: _Listener) -> None:
        if not self._running or entry.device.closed:
            entry.bound.close()
            raise ListenError("the server or the device is closed")
        entry.device.on_closed = lambda: self._call(lambda: self._drop_device(entry.device))
        self._listeners[entry.fd] = entry
        self._epoll.register(entry.fd, select.EPOLLIN)

    def _close_listener(self, entry: _Listener) -> None:
        if self._listeners.pop(entry.fd, None) is not None:
            self._epoll.unregister(entry.fd)
        elif entry in self._resting:
            self._resting.remove(entry)
        entry.fd = -1
        entry.bound.close()

    def _wake_listeners(self) -> None:
        while self._resting:
            entry = self._resting.pop()
            self._listeners[entry.fd] = entry
            self._epoll.register(entry.fd, select.EPOLLIN)

    def _accept(self, entry: _Listener) -> None:
        try:
            sock, _ = entry.bound.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # EMFILE, ENFILE, ENOMEM: the listener stays readable, so rest instead of spinning
            logger.warning("%s: cannot accept a front-end for now: %s", entry.device.name, error.strerror)
            del self._listeners[entry.fd]
            self._epoll.unregister(entry.fd)
            self._resting.append(entry)
            self._rest_until = time.monotonic() + _ACCEPT_PAUSE
            return
        try:
            self._add_channel(entry.device, sock, entry)
        except Exception:  # a peer check that failed must not take the control thread with it
            logger.exception("%s: internal error while accepting a front-end", entry.device.name)

    def _add_channel(self, device: Device, sock: socket.socket, listener: _Listener | None) -> None:
        channel = _Channel(device, sock, listener)
        try:
            if not self._running or device.closed:
                raise ListenError("the server or the device is closed")
            self._stats.accepted += 1
            channel.pid, uid, gid = channel.connection.peer()
            silent = [other for other in self._channels.values() if other.device is device and other.session is None]
            if listener is not None and listener.accept_peer and not listener.accept_peer(channel.pid, uid, gid):
                self._refuse(channel, f"process {channel.pid} of user {uid} is not the expected one")
                return
            if len(silent) >= _MAX_SILENT:
                self._refuse(channel, f"{len(silent)} connections wait already without having said anything")
                return
            device.on_closed = lambda: self._call(lambda: self._drop_device(device))
            device.on_hang_up = lambda reason: self._hang_up(device, reason)
            self._channels[channel.fd] = channel
            self._epoll.register(channel.fd, select.EPOLLIN)
        except BaseException:
            self._forget(channel)
            raise

    def _serve(self, channel: _Channel) -> None:
        """Handle what has arrived on a connection, a bounded amount of it."""
        for _ in range(_MESSAGES_PER_TURN):
            try:
                if not self._serve_one(channel):
                    return
            except ProtocolError as error:
                self._end(channel, str(error), broken=True)
                return
            except Disconnected as error:
                self._end(channel, str(error), broken=error.truncated)
                return
            except Exception:  # a bug of ours on one connection must not take the others with it
                logger.exception("%s: internal error while serving a front-end", channel.device.name)
                self._end(channel, "internal error", broken=True)
                return

    def _serve_one(self, channel: _Channel) -> bool:
        """One message. False when there is none, or when the connection has been dealt with for good."""
        message = channel.connection.receive()
        if message is None:
            return False
        start = time.perf_counter_ns()
        try:
            if channel.session is None and not self._claim(channel):
                return False
            assert channel.session is not None
            with channel.device.control_lock:
                if channel.device.closed:
                    raise Disconnected("the device was closed")
                reply = channel.session.handle(message.request, message.flags, message.payload, message.fds)
        finally:
            message.close()
        if reply is not None:
            channel.connection.send(reply)
        self._stats.messages += 1
        self._stats.slowest_ns = max(self._stats.slowest_ns, time.perf_counter_ns() - start)
        return True

    def _claim(self, channel: _Channel) -> bool:
        """Make `channel` the device's one front-end, if there is none. Otherwise it is refused."""
        device = channel.device
        for other in list(self._channels.values()):
            if other.device is device and other.session is not None:
                self._serve(other)  # perhaps its end is just waiting to be read
        with device.control_lock:
            if not device.connected and not device.closed:
                channel.session = Session(device)
        if channel.session is None:
            self._refuse_busy(channel)
            return False
        self._refusals.pop(device, None)
        logger.info("%s: front-end connected (process %d)", device.name, channel.pid)
        if channel.listener is not None and channel.listener.unlink_when_connected:
            channel.listener.bound.unlink()
        return True

    def _refuse_busy(self, channel: _Channel) -> None:
        told = self._refusals.setdefault(channel.device, _Refusals())
        now = time.monotonic()
        again, told.last = now - told.last < _REFUSAL_PAUSE, now
        if not again:
            self._refuse(channel, "the device is busy with another front-end", log=channel.pid != told.logged_pid)
            told.logged_pid = channel.pid
            return
        self._stats.refused += 1
        self._epoll.unregister(channel.fd)  # what else it says is not heard; it still counts as silent
        channel.held_until = now + _REFUSAL_PAUSE
        self._held.append(channel)

    def _refuse(self, channel: _Channel, reason: str, *, log: bool = True) -> None:
        if log:
            logger.warning("%s: front-end (process %d) refused: %s", channel.device.name, channel.pid, reason)
        self._stats.refused += 1
        self._forget(channel)

    def _end(self, channel: _Channel, reason: str, *, broken: bool = False) -> None:
        """End one connection; everything it held is released before this returns."""
        level = logging.WARNING if broken else logging.INFO
        logger.log(level, "%s: front-end (process %d) disconnected: %s", channel.device.name, channel.pid, reason)
        if broken:
            self._stats.broken += 1
        else:
            self._stats.closed += 1
        self._forget(channel)

    def _forget(self, channel: _Channel) -> None:
        if self._channels.pop(channel.fd, None) is not None and not channel.held_until:
            self._epoll.unregister(channel.fd)
        if channel in self._held:
            self._held.remove(channel)
        session, channel.session = channel.session, None
        if session is not None:
            with channel.device.control_lock:
                session.close()
        channel.connection.close()
        self._rest_until = 0.0  # descriptors came back: a listener that ran out of them may go on

    def _hang_up(self, device: Device, reason: str) -> bool:
        """End the connection of the device's front-end; any thread. False: it has none."""
        ended: list[_Channel] = []

        def end() -> None:
            for channel in list(self._channels.values()):
                if channel.device is device and channel.session is not None:
                    self._end(channel, reason)
                    ended.append(channel)

        self._call(end)
        return bool(ended)

    def _drop_device(self, device: Device) -> None:
        for channel in list(self._channels.values()):
            if channel.device is device:
                self._end(channel, "the device was closed")
        for listener in [*self._listeners.values(), *self._resting]:
            if listener.device is device:
                self._close_listener(listener)
