"""`UnixSocket`: what AF_UNIX sockets of all kinds have in common."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from stack.errors import NetError
from stack.socket.base import Socket, os_error
from stack.socket.message import MSG_CMSG_CLOEXEC, MSG_DONTWAIT, Message
from stack.socket.options import OptionTable
from stack.socket.phase import AGAIN, Again, Timeout
from stack.socket.poll import IN, OUT
from stack.socket.unix import AF_UNIX
from stack.socket.unix.address import address_in, address_out
from stack.socket.unix.options import UNIX_OPTIONS
from stack.socket.unix.phase import E, UnixPhase
from stack.socket.unix.vigil import Vigil
from stack.unix.control import Identity
from stack.unix.endpoint import SHUT_RECEIVING
from stack.unix.listening import pair

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.base import Host
    from stack.socket.mirror import End
    from stack.socket.phase import Phase
    from stack.unix.endpoint import Endpoint

T = TypeVar("T")


class UnixSocket(Socket, Generic[E]):
    """Base. `unconnected` is the errno of receiving without a connection (UNX-10)."""

    family = AF_UNIX
    options_table: ClassVar[OptionTable] = UNIX_OPTIONS
    unconnected: ClassVar[int]
    endpoint: E

    def __init__(self, host: Host, kind: int, protocol: int, endpoint: E) -> None:
        super().__init__(host, kind, protocol)
        self.endpoint = endpoint
        self.low_water = 1  #: SO_RCVLOWAT, bytes
        self.blocker: Endpoint | None = None  #: why the last attempt was AGAIN, if somebody else's is full
        endpoint.on_event = self.pollee.notify
        endpoint.identify = self._identify
        endpoint.holders = self._count_holders

    def _identify(self) -> Identity:
        who = self.host.credentials
        return Identity(who.pid, who.uid, who.gid)

    def _count_holders(self) -> int:
        return self._holders

    def _let_go(self, end: End | None) -> None:
        super()._let_go(end)
        if self._holders:
            self.host.unix.let_go()  # those left may all be messages

    # -- for the kinds ------------------------------------------------------------------------------------------------

    def connected(self) -> Phase:
        """The phase after connecting."""
        raise NotImplementedError

    def listening(self) -> Phase:
        """The phase after `listen`."""
        raise NetError(errno.EOPNOTSUPP)

    def refuse_send(self, data: Buffer, flags: int, address: bytes | None) -> None:
        """Sending without a connection: raise NetError unless it is for that reason alone."""

    def set_inline(self, inline: bool) -> None:
        """SO_OOBINLINE."""

    # -- addresses ----------------------------------------------------------------------------------------------------

    def address_in(self, address: object) -> bytes:
        return address_in(address)

    def address_out(self, address: bytes | None) -> str | bytes | None:
        return address_out(address)

    # -- connecting ---------------------------------------------------------------------------------------------------

    def pair_with(self, other: Self) -> None:
        pair(self.endpoint, other.endpoint, self.host.credentials)
        self.phase, other.phase = self.connected(), other.connected()

    def accepted(self, endpoint: Endpoint) -> UnixSocket[Any]:
        """The socket of a connection this listener has accepted; no option is inherited (CTRL-07 is the endpoint's)."""
        raise NotImplementedError

    def connect(self, address: object, timeout: Timeout) -> None:
        """There is nothing to wait for but room in a backlog, and only a call without any time-out does (UNX-07)."""
        self.persist(0, None if timeout is None else 0, self._connect, self.address_in(address))

    def accept(self, timeout: Timeout) -> tuple[Socket, object]:
        attempt = self._accept if timeout is not None else self._patient_accept
        child, address = self.block_on(IN, timeout, attempt)
        return child, child.address_out(address)

    def _patient_accept(self) -> tuple[Socket, Any] | Again:
        """After shutdown a call that may wait is told that it would be in vain (UNX-08)."""
        result = self.phase.accept()
        if result is AGAIN and self.endpoint.shut & SHUT_RECEIVING:
            raise NetError(errno.EINVAL)
        return result

    # -- waiting for room at somebody else's --------------------------------------------------------------------------

    def persist(self, flags: int, timeout: Timeout, attempt: Callable[..., T | Again], *args: Any) -> T:
        """As `block_on`, for what waits until another endpoint changes, which this socket's readiness does not show."""
        if timeout is None and flags & MSG_DONTWAIT:
            timeout = 0
        if timeout == 0 or (timeout is None and self.send_timeout == 0):
            return self.block_on(OUT, timeout, attempt, *args)
        try:
            result = self.call(attempt, *args)
        except NetError as error:
            raise os_error(error) from None
        if result is not AGAIN:
            return result
        vigil = Vigil(self.waiting.marks)
        try:
            result = self.waiting.block_on(
                vigil.pollee,
                OUT,
                self.send_timeout if timeout is None else timeout,
                self._vigilant,
                (vigil, attempt, args),
            )
        except NetError as error:
            raise os_error(error) from None
        finally:
            vigil.end()
        if result is not AGAIN:
            return result
        if timeout:
            raise TimeoutError("timed out")
        raise os_error(NetError(errno.EAGAIN))

    def _vigilant(self, vigil: Vigil, attempt: Callable[..., T | Again], args: tuple[Any, ...]) -> T | Again:
        vigil.stirred = False
        self.blocker = None
        result = attempt(*args)
        if result is AGAIN:
            vigil.watch(self.endpoint, self.blocker)
        elif self.mirror is not None:
            self.pollee.refresh()
        return result

    # -- receiving ----------------------------------------------------------------------------------------------------

    def take_message(self, size: int, flags: int, room: int) -> Message | Again:
        phase = self.phase
        message = phase.receive(size, flags, room) if isinstance(phase, UnixPhase) else phase.receive(size, flags)
        if message is not AGAIN:
            message.flags |= flags & MSG_CMSG_CLOEXEC
        return message

    # -- ioctl --------------------------------------------------------------------------------------------------------

    def output_queue(self) -> int:
        return self.endpoint.charged
