"""`Socket`: what all families share.

Theory of operation
-------------------
A `Socket` is the open file description of a kernel: it may be shared (dup), it has options, a `Pollee` and exactly one
*phase*. A phase object owns what is valid at that stage and nothing else: an unbound socket has no port to forget to
release, a listening one no send buffer. Operations are delegated to the phase; the base `Phase` answers EOPNOTSUPP for
whatever a family lacks (row CORE-01), so a family writes only what it has. A phase ends by `socket.phase = Next(...)`.

Operations of a phase are *attempts*: they run under the Network's lock, never wait, and answer `AGAIN` if they would
have to. All waiting is in `Socket.block_on` (row CORE-08): attempt, wait for the poll bits that promise progress,
attempt again, until done or due. Python's timeout and the kernel's SO_RCVTIMEO/SO_SNDTIMEO differ only in the error
raised at the end. Below, errors are `NetError`; `block_on` and `call` are the socket edge, where they become `OSError`.

Internal addresses are the family's own plain tuples ((bytes, port) for IP, (cid, port) for vsock); `address_in` and
`address_out` translate from and to what Python users pass and get.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Self, TypeVar

from stack.errors import NetError
from stack.link.device import Buffer
from stack.socket.cmsg import fit
from stack.socket.descriptors import forget
from stack.socket.message import (
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    MSG_NOSIGNAL,
    MSG_PEEK,
    MSG_TRUNC,
    MSG_WAITALL,
    Ancillary,
    Message,
)
from stack.socket.mirror import End, Mirror
from stack.socket.options import INT_MAX, OptionTable, OptionValues, get_option, set_option
from stack.socket.phase import AGAIN, CLOSED, Address, Again, Closed, Host, Phase, Timeout, Waiting
from stack.socket.poll import ERR, HUP, IN, OUT, Pollee

__all__ = ["AGAIN", "CLOSED", "Address", "Again", "Closed", "Host", "Phase", "Socket", "Timeout", "Waiting", "os_error"]

_STREAM: Final = 1  # SOCK_STREAM
_DATAGRAM_FAMILIES: Final = (2, 10, 17)  # AF_INET, AF_INET6, AF_PACKET: what FIONREAD knows besides streams

T = TypeVar("T")


class Socket:
    """One open socket of a Stack, without Python's descriptor on top (that is `stack.socket.api`).

    Subclasses set `family`, `options_table`, make the first phase and translate addresses.
    """

    family: int
    options_table: ClassVar[OptionTable]

    def __init__(self, host: Host, kind: int, protocol: int, phase: Phase | None = None, *, held: bool = True) -> None:
        """`kind` is SOCK_STREAM and so on; without `phase` the subclass sets one before anything else happens.

        `held`: its network namespace lives while the socket does.
        """
        self.host = host
        self.type = kind
        self.protocol = protocol
        self.waiting = host.waiting
        self.options = OptionValues(self.options_table)
        self.phase: Phase = phase if phase is not None else CLOSED
        self.pollee = Pollee(self._bits, host.waiting.marks)
        self.receive_timeout: Timeout = None  #: SO_RCVTIMEO, ns
        self.send_timeout: Timeout = None  #: SO_SNDTIMEO, ns
        self.low_water_max = INT_MAX  #: largest SO_RCVLOWAT, bytes
        self.mirror: Mirror | None = None  #: what shows this socket's readiness in descriptors, if it has any
        self._holders = 1
        self._hold = host.netns.hold() if held else None

    # -- for the family ---------------------------------------------------------------------------------------------

    def address_in(self, address: object) -> Address:
        """A Python user's address as the internal one. Raises TypeError, OverflowError, OSError as `socket` does."""
        raise NotImplementedError

    def address_out(self, address: Address) -> object:
        """An internal address as Python users get it."""
        raise NotImplementedError

    def pair_with(self, other: Self) -> None:
        """Lock held, both fresh: connect them to each other (socketpair). Raises NetError(EOPNOTSUPP)."""
        raise NetError(errno.EOPNOTSUPP)

    # -- the edge -----------------------------------------------------------------------------------------------------

    def call(self, attempt: Callable[..., T], *args: Any) -> T:
        """Run something that never waits, under the lock; NetError becomes OSError."""
        try:
            if self.mirror is not None:
                args = (attempt, args)
                attempt = self._mirrored
            return self.waiting.call(attempt, args)
        except NetError as error:
            raise os_error(error) from None

    def _mirrored(self, attempt: Callable[..., T], args: tuple[Any, ...]) -> T:
        """An attempt on a socket with a mirror: what it took away must not show there any more."""
        try:
            return attempt(*args)
        finally:
            self.pollee.refresh()

    def block_on(self, events: int, timeout: Timeout, attempt: Callable[..., T | Again], *args: Any) -> T:
        """See `wait`."""
        return self.wait(events, timeout, attempt, args)

    def wait(self, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]) -> T:
        """Attempt until it is not AGAIN any more, waiting for `events` in between (row CORE-08).

        `timeout` is in ns. 0: one attempt, then BlockingIOError(EAGAIN). Positive: TimeoutError once due. None: the
        socket's own SO_RCVTIMEO or SO_SNDTIMEO decides, whose end is BlockingIOError(EAGAIN).
        """
        limit = timeout
        if timeout is None:
            limit = self.send_timeout if events & OUT else self.receive_timeout
        if self.mirror is not None:
            args = (attempt, args)
            attempt = self._mirrored
        try:
            result = self.waiting.block_on(self.pollee, events, limit, attempt, args)
        except NetError as error:
            raise os_error(error) from None
        if result is not AGAIN:
            return result
        if timeout:
            raise TimeoutError("timed out")
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    # -- operations ---------------------------------------------------------------------------------------------------

    def bind(self, address: object) -> None:
        self.call(self._bind, self.address_in(address))

    def _bind(self, address: Address) -> None:
        self.phase.bind(address)

    def listen(self, backlog: int) -> None:
        self.call(self._listen, backlog)

    def _listen(self, backlog: int) -> None:
        self.phase.listen(backlog)
        self.pollee.notify()

    def connect(self, address: object, timeout: Timeout) -> None:
        """Connect, or raise OSError; EINPROGRESS when `timeout` is 0 and it is not done at once (rows TCP-05, 06)."""
        inner = self.address_in(address)
        if timeout == 0:
            if self.call(self._connect, inner) is AGAIN:
                raise in_progress()
            return
        # With a time-out Python connects without blocking, polls, and asks SO_ERROR: the kernel, and so the phase,
        # does not know that connect() has been told how it went.
        follow = self._outcome if timeout else self._connecting
        try:
            self.block_on(OUT, timeout, self._connect_on, [inner], follow)
        except BlockingIOError:  # SO_SNDTIMEO
            raise in_progress() from None

    def _connect(self, address: Address) -> Again | None:
        return self.phase.connect(address)

    def _connect_on(self, fresh: list[Address], follow: Callable[[], Again | None]) -> Again | None:
        return self.phase.connect(fresh.pop()) if fresh else follow()

    def _connecting(self) -> Again | None:
        return self.phase.connecting()

    def _outcome(self) -> Again | None:
        if not self.phase.poll() & (OUT | ERR | HUP):
            return AGAIN
        error = self.phase.take_error()
        if error:
            raise NetError(error)
        return None

    def accept(self, timeout: Timeout) -> tuple[Socket, object]:
        """The next connection and its peer's address."""
        child, address = self.block_on(IN, timeout, self._accept)
        return child, child.address_out(address)

    def _accept(self) -> tuple[Socket, Address] | Again:
        return self.phase.accept()

    def send(self, data: Buffer, flags: int, timeout: Timeout) -> int:
        """Send what there is room for; returns the bytes taken."""
        try:
            return self.block_on(OUT, _patience(flags, timeout) if flags else timeout, self._send, data, flags, None)
        except BrokenPipeError:
            self._broken_pipe(flags)
            raise

    def send_to(self, data: Buffer, flags: int, address: object, timeout: Timeout) -> int:
        inner = None if address is None else self.address_in(address)
        try:
            return self.block_on(OUT, _patience(flags, timeout), self._send, data, flags, inner)
        except BrokenPipeError:
            self._broken_pipe(flags)
            raise

    def _send(self, data: Buffer, flags: int, address: Address | None) -> int | Again:
        return self.phase.send(data, flags, address)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: object, timeout: Timeout
    ) -> int:
        """As `send_to`, with control messages (sendmsg)."""
        inner = None if address is None else self.address_in(address)
        try:
            return self.block_on(OUT, _patience(flags, timeout), self._send_message, data, ancillary, flags, inner)
        except BrokenPipeError:
            self._broken_pipe(flags)
            raise

    def _send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: Address | None
    ) -> int | Again:
        return self.phase.send_message(data, ancillary, flags, address)

    def send_all(self, data: Buffer, flags: int, timeout: Timeout) -> None:
        """Send everything, or raise. A positive `timeout` is for the whole, not for each part."""
        try:
            self.block_on(OUT, _patience(flags, timeout) if flags else timeout, self._send_rest, [data], flags)
        except BrokenPipeError:
            self._broken_pipe(flags)
            raise

    def _send_rest(self, rest: list[Buffer], flags: int) -> Again | None:
        """`rest` is a box with what is not sent yet, so that one deadline covers many attempts."""
        while True:
            data = rest[0]
            taken = self.phase.send(data, flags, None)
            if taken is AGAIN:
                return AGAIN
            if taken == len(data):
                return None
            rest[0] = memoryview(data)[taken:]

    def _broken_pipe(self, flags: int) -> None:
        """SIGPIPE would be sent now (row CORE-17); Python programs ignore it, who wants to know sets the hook."""
        hook = self.host.on_sigpipe
        if hook is not None and not flags & MSG_NOSIGNAL and self.type == _STREAM:
            hook()

    def recv(self, size: int, flags: int, timeout: Timeout) -> bytes:
        if not flags:
            return self.block_on(IN, timeout, self._recv, size, 0)
        timeout = _patience(flags, timeout)
        if flags & MSG_WAITALL and not flags & MSG_PEEK and size:
            return self.recv_all(size, flags, timeout)
        return self.block_on(IN, timeout, self._recv, size, flags)

    def _recv(self, size: int, flags: int) -> bytes | Again:
        return self.phase.recv(size, flags)

    def recv_all(self, size: int, flags: int, timeout: Timeout) -> bytes:
        """MSG_WAITALL: all of `size`, or what there was before the end, an error or the timeout."""
        parts: list[bytes] = []
        try:
            self.block_on(IN, timeout, self._recv_all, parts, size, flags)
        except OSError:
            if not parts:
                raise
        return b"".join(parts)

    def _recv_all(self, parts: list[bytes], size: int, flags: int) -> Again | None:
        missing = size - sum(map(len, parts))
        while True:
            data = self.phase.recv(missing, flags)
            if data is AGAIN:
                return AGAIN
            parts.append(data)
            missing -= len(data)
            if not data or not missing:
                return None

    def recv_into(self, target: memoryview, flags: int, timeout: Timeout) -> int:
        """As `recv`, into a writable, contiguous "B" view; returns the bytes placed."""
        if flags:
            data = self.recv(len(target), flags, timeout)
            target[: len(data)] = data
            return len(data)
        return self.block_on(IN, timeout, self._recv_into, target)

    def _recv_into(self, target: memoryview) -> int | Again:
        return self.phase.recv_into(target, 0)

    def receive(self, size: int, flags: int, timeout: Timeout, room: int = 0) -> Message:
        """As `recv`, with address, flags and as much ancillary data as `room` bytes hold (recvfrom, recvmsg)."""
        timeout = _patience(flags, timeout)
        return self.block_on(IN, timeout, self.take_message, size, flags, room)

    def take_message(self, size: int, flags: int, room: int) -> Message | Again:
        """An attempt of `receive`, lock held."""
        message = self.phase.receive(size, flags)
        if message is not AGAIN:
            if message.ancillary:
                message.ancillary, cut = fit(message.ancillary, room)
                message.flags |= cut
            message.flags |= flags & MSG_CMSG_CLOEXEC
        return message

    def shutdown(self, how: int) -> None:
        """`how`: 0 no more receiving, 1 no more sending, 2 both (row CORE-12)."""
        self.call(self._shutdown, how)

    def _shutdown(self, how: int) -> None:
        if how not in (0, 1, 2) and type(self.phase).shutdown not in (Phase.shutdown, Closed.shutdown):
            raise NetError(errno.EINVAL)
        self.phase.shutdown(how)
        self.pollee.notify()

    def local_address(self) -> object:
        return self.address_out(self.call(self._local_address))

    def _local_address(self) -> Address:
        return self.phase.local_address()

    def peer_address(self) -> object:
        return self.address_out(self.call(self._peer_address))

    def _peer_address(self) -> Address:
        return self.phase.peer_address()

    def get_option(self, level: int, number: int, length: int | None) -> int | bytes:
        return self.call(self._get_option, level, number, length)

    def _get_option(self, level: int, number: int, length: int | None) -> int | bytes:
        if self.phase is CLOSED:
            raise NetError(errno.EBADF)
        return get_option(self, self.options, level, number, length)

    def set_option(self, level: int, number: int, value: int | Buffer) -> None:
        self.call(self._set_option, level, number, value)

    def _set_option(self, level: int, number: int, value: int | Buffer) -> None:
        if self.phase is CLOSED:
            raise NetError(errno.EBADF)
        set_option(self, self.options, level, number, value)
        self.phase.option_changed(level, number)

    def number_stamps(self, *, written: bool) -> None:
        """SOF_TIMESTAMPING_OPT_ID is about to be switched on, lock held: transmit time stamps are numbered from now on.

        Streams count bytes, `written`: those written from now on. Raises NetError(EINVAL) where there are none yet.
        """

    # What ioctl asks, lock held; families that have an answer say so.

    def input_queue(self) -> int:
        """SIOCINQ: of datagrams the first one's length, bytes. Raises NetError(ENOTTY)."""
        if not self._counts():
            raise NetError(errno.ENOTTY)
        if not self.phase.poll() & IN:
            return 0
        message = self.phase.receive(0, MSG_PEEK | MSG_TRUNC)
        return 0 if message is AGAIN else message.length

    def output_queue(self) -> int:
        """SIOCOUTQ, bytes: what datagrams are sent is gone. Raises NetError(ENOTTY)."""
        if not self._counts():
            raise NetError(errno.ENOTTY)
        return 0

    def _counts(self) -> bool:
        return self.family in _DATAGRAM_FAMILIES and self.type != _STREAM

    def unsent_queue(self) -> int:
        """SIOCOUTQNSD, bytes. Raises NetError(ENOTTY)."""
        raise NetError(errno.ENOTTY)

    def at_mark(self) -> bool:
        """SIOCATMARK. Raises NetError(ENOTTY)."""
        raise NetError(errno.ENOTTY)

    def poll(self) -> int:
        """The poll bits now."""
        return self.call(self._bits)

    def _bits(self) -> int:
        return self.phase.poll()

    # -- life ---------------------------------------------------------------------------------------------------------

    def share(self) -> Self:
        """One more holder (dup); each holder closes once."""
        self._holders += 1
        return self

    def make_mirror(self) -> Mirror:
        """Lock held: what descriptors of this socket follow its readiness by."""
        self.mirror = Mirror(self.pollee, self._final)
        return self.mirror

    def drop_mirror(self) -> None:
        """Lock held: nobody has a descriptor of this socket any more."""
        mirror, self.mirror = self.mirror, None
        if mirror is not None:
            forget(mirror)
            mirror.close()

    def _final(self) -> bool:
        return self.phase.final

    def close(self, end: End | None = None) -> None:
        """One holder lets go, of its descriptor too if it has one; the last one's close ends everything. Never raises.

        Threads blocked in this socket get EBADF, whatever SO_LINGER says is waited for.
        """
        try:
            self.waiting.call(self._let_go, (end,))
        except NetError:  # the Network is closed: what the phase held is gone already
            if end is not None:
                end.close()
            self.drop_mirror()
            self.phase = CLOSED

    def abandon(self, end: End | None) -> None:
        """As `close`, from a finaliser, which may interrupt a thread that holds the lock."""
        self.waiting.dispose(partial(self._let_go, end))

    def end(self) -> None:
        """As `close`, the lock held."""
        self._let_go(None)

    def _let_go(self, end: End | None) -> None:
        if end is not None:
            self.host.descriptors.let_go(self, end)
        self._holders -= 1
        if not self._holders:
            phase, self.phase = self.phase, CLOSED
            phase.close()
            self.pollee.notify()
            self.pollee.retire()
            self.drop_mirror()
            self.host.netns.let_go(self._hold)


def _patience(flags: int, timeout: Timeout) -> Timeout:
    """MSG_DONTWAIT makes a call that would wait for ever not wait; one with a time-out waits that long, because
    Python waits for readiness before it makes the call.
    """
    return 0 if timeout is None and flags & (MSG_DONTWAIT | MSG_ERRQUEUE) else timeout


def in_progress() -> BlockingIOError:
    return BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))


def os_error(error: NetError) -> OSError:
    """The OSError (of the right subclass) that Python users see for an internal error."""
    return OSError(error.errno, error.message)
