"""`Phase`: what a socket can do at one stage of its life, and what sockets need of the Stack and Network around them.

See `stack.socket.base` for how phases, attempts and waiting play together.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NoReturn, Protocol, TypeAlias, TypeVar

from stack.errors import NetError
from stack.link.device import Buffer
from stack.socket.cmsg import refuse_unknown
from stack.socket.message import Ancillary, Message, Received
from stack.socket.poll import NVAL, Pollee

if TYPE_CHECKING:
    from stack.credentials import Credentials
    from stack.netns import NetNamespace
    from stack.socket.base import Socket
    from stack.socket.descriptors import Descriptors
    from stack.unix import UnixSpace
    from stack.vsock import VsockEngine

#: A family's internal address.
Address: TypeAlias = Any
#: A message to be sent: data, control messages, and to whom (None: the peer).
Prepared: TypeAlias = tuple[Buffer, Sequence[Ancillary], Address | None]
T = TypeVar("T")


class Again(Enum):
    """The type of `AGAIN`: an attempt that would have to wait."""

    AGAIN = 0


AGAIN: Final[Literal[Again.AGAIN]] = Again.AGAIN

#: How long a call may wait: nanoseconds, 0 for not at all, None for ever.
Timeout: TypeAlias = int | None


class Waiting(Protocol):
    """What sockets need of the Network they live in."""

    marks: list[Pollee]  #: pollees to settle at the end of the turn
    clock: Callable[[], int]  #: monotonic nanoseconds

    def call(self, attempt: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Run `attempt` under the lock at the present time, then send what it deferred and wake whom it concerns.

        Raises NetError(ENETDOWN) once the Network is closed, and whatever `attempt` raises.
        """
        ...

    def block_on(
        self, pollee: Pollee, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        """`call` again and again until it is not AGAIN, waiting for `events`, ERR or HUP of `pollee` in between.

        AGAIN is the answer when `timeout` is over.
        """
        ...

    def briefly(self, step: Callable[[Any, Any], bool], one: Any, two: Any) -> bool:
        """`call` of `step(one, two)`, which does all of something or nothing of it, if nobody has the lock now.

        False: nothing was done.
        """
        ...

    def attend(self) -> None:
        """From a thread that has just written a lot, and will write more: take in what has come, if that is due."""
        ...

    def dispose(self, close: Callable[[], None]) -> None:
        """From a finaliser: run `close` under the lock, as soon as it is free."""
        ...

    def start(self) -> None:
        """Somebody is going to wait without polling: see to it that a thread does."""
        ...


class Host(Protocol):
    """What sockets need of the Stack they belong to."""

    @property
    def netns(self) -> NetNamespace: ...
    @property
    def waiting(self) -> Waiting: ...
    @property
    def vsock(self) -> VsockEngine: ...
    @property
    def unix(self) -> UnixSpace: ...
    @property
    def credentials(self) -> Credentials:
        """Who the sockets act for."""
        ...

    @property
    def on_sigpipe(self) -> Callable[[], None] | None:
        """Called where Linux would send SIGPIPE to the writer."""
        ...

    @property
    def descriptors(self) -> Descriptors:
        """What integers that users have stand for."""
        ...

    @property
    def privileged(self) -> bool:
        """May take ports below 1024 (CAP_NET_BIND_SERVICE, row SEC-02)."""
        ...

    def has_process(self, pid: int) -> bool:
        """Does anybody with this process id act for the Stack?"""
        ...

    def names(self) -> dict[str, list[str]]:
        """Addresses, as text, by the host names this Stack knows, its own among them."""
        ...


class Phase:
    """One stage of a socket's life. Methods are attempts: lock held, no waiting, NetError for errors."""

    __slots__ = ()
    listening: ClassVar[bool] = False  #: SO_ACCEPTCONN
    final: ClassVar[bool] = False  #: a hang-up in this phase is for good
    refuses: ClassVar[bool] = False  #: `send` only says why not, before anybody looks at control messages

    def bind(self, address: Address) -> None:
        raise NetError(errno.EOPNOTSUPP)

    def connect(self, address: Address) -> Again | None:
        """Start connecting. None: connected at once; AGAIN: under way, `connecting` will tell."""
        raise NetError(errno.EOPNOTSUPP)

    def connecting(self) -> Again | None:
        """How a blocking connect under way is doing. None: connected; its failure is raised."""
        return None

    def listen(self, backlog: int) -> None:
        raise NetError(errno.EOPNOTSUPP)

    def accept(self) -> tuple[Socket, Address] | Again:
        raise NetError(errno.EOPNOTSUPP)

    def send(self, data: Buffer, flags: int, address: Address | None) -> int | Again:
        """Bytes taken, at least one unless `data` is empty or AGAIN."""
        raise NetError(errno.EOPNOTSUPP)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: Address | None
    ) -> int | Again:
        """As `send`, with control messages (see `stack.socket.cmsg`); here for families that have none."""
        if not self.refuses:
            refuse_unknown(ancillary)
        return self.send(data, flags, address)

    def send_several(self, messages: Sequence[Prepared], first: int, flags: int) -> list[int] | None:
        """Send a few of `messages` from the `first` on in one step, if that is cheaper than `send_message` for each.

        The bytes of each that was sent; [] if not these, None if none of `messages`.
        """
        return None

    def recv(self, size: int, flags: int) -> bytes | Again:
        """Up to `size` bytes; b"" at the end of a stream. The hot path of streams; others need only `receive`."""
        message = self.receive(size, flags)
        return message if message is AGAIN else message.data

    def recv_into(self, target: memoryview, flags: int) -> int | Again:
        """As `recv`, into a writable "B" view."""
        data = self.recv(len(target), flags)
        if data is AGAIN:
            return AGAIN
        target[: len(data)] = data
        return len(data)

    def receive(self, size: int, flags: int) -> Message | Again:
        """As `recv`, with the sender's address, flags and ancillary data."""
        raise NetError(errno.EOPNOTSUPP)

    def receive_several(self, most: int, size: int, flags: int) -> list[Received]:
        """Up to `most` messages at once, if that is cheaper than `receive` for each; else, and if none waits, none."""
        return []

    def shutdown(self, how: int) -> None:
        raise NetError(errno.EOPNOTSUPP)

    def local_address(self) -> Address:
        raise NetError(errno.EOPNOTSUPP)

    def peer_address(self) -> Address:
        raise NetError(errno.ENOTCONN)

    def poll(self) -> int:
        """The poll bits now, a pure function of this phase."""
        return 0

    def take_error(self) -> int:
        """SO_ERROR: the pending errno, cleared by asking."""
        return 0

    def memory(self) -> tuple[int, int, int]:
        """SO_MEMINFO: bytes charged for what waits to be received, and to be sent; messages dropped."""
        return 0, 0, 0

    def put_error(self, error: int) -> None:
        """Remember `error` (an errno) for `take_error` or the next call; for families that can."""

    def option_changed(self, level: int, name: int) -> None:
        """An option was set: pass it on to the protocol if it is of concern. Values are in `socket.options`."""

    def close(self) -> None:
        """Let go of everything. Called once; the socket is in phase `Closed` already. Must not raise."""


class Closed(Phase):
    """Nothing left: every operation is EBADF, as on a closed descriptor (row CORE-04)."""

    __slots__ = ()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NetError(errno.EBADF, "the socket is closed")

    bind = connect = connecting = listen = accept = send = send_message = recv = recv_into = receive = shutdown = (
        _refuse
    )
    local_address = peer_address = take_error = option_changed = _refuse

    def poll(self) -> int:
        return NVAL


CLOSED: Final = Closed()
