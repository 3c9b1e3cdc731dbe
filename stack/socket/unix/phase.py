"""What Unix sockets do in every phase."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from stack.errors import NetError
from stack.socket.message import Ancillary, Message
from stack.socket.phase import AGAIN, Again, Phase
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP, RDNORM, WRNORM
from stack.socket.unix.control import NOTHING, Attached, attach, told
from stack.unix.endpoint import SHUT_BOTH, SHUT_RECEIVING, Endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import Buffer
    from stack.socket.unix.socket import UnixSocket
    from stack.unix.control import Identity, Rights

E = TypeVar("E", bound=Endpoint)

#: What shutdown's `how` closes, in bits of `Endpoint.shut`.
_SHUT: Final = (1, 2, 3)


class UnixPhase(Phase, Generic[E]):
    """Base of all: names, shutdown, errors and readiness are the endpoint's, whatever the phase."""

    __slots__ = ("endpoint", "socket")
    sends_nothing: ClassVar[bool] = True  #: an empty message is one, and takes files along

    def __init__(self, socket: UnixSocket[Any], endpoint: E) -> None:
        self.socket = socket
        self.endpoint = endpoint

    @property
    def final(self) -> bool:  # type: ignore[override]  # a hang-up is for good once nothing can be sent or received
        return self.endpoint.shut == SHUT_BOTH

    def bind(self, address: bytes) -> None:
        self.endpoint.bind(address, self.socket.host.credentials)

    def listen(self, backlog: int) -> None:
        raise NetError(errno.EINVAL)

    def accept(self) -> tuple[UnixSocket[Any], bytes] | Again:
        raise NetError(errno.EINVAL)

    def send(self, data: Buffer, flags: int, address: bytes | None) -> int | Again:
        return self.transmit(data, flags, address, NOTHING)

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: bytes | None
    ) -> int | Again:
        attached = attach(ancillary, self.socket)
        sent: int | Again = AGAIN
        try:
            sent = self.transmit(data, flags, address, attached)
        finally:
            if sent is AGAIN or (not sent and not self.sends_nothing):
                attached.close()
        return sent

    def transmit(self, data: Buffer, flags: int, address: bytes | None, attached: Attached) -> int | Again:
        """As `send`, with what is attached, which is the endpoint's once bytes are taken."""
        raise NetError(errno.ENOTCONN)

    def receive(self, size: int, flags: int, room: int = 0) -> Message | Again:
        """With as many control messages as `room` bytes hold."""
        raise NetError(errno.EOPNOTSUPP)

    def message(
        self,
        data: bytes,
        source: Endpoint | None,
        identity: Identity | None,
        rights: Rights | None,
        flags: int,
        room: int,
    ) -> Message:
        """What a receive call answers; the files are the user's now."""
        address = source.address if source is not None and source.address else None
        if rights is None and not self.socket.endpoint.tells:
            return Message(data, address, 0, len(data))
        ancillary, out = told(self.socket, identity, rights, room, flags)
        return Message(data, address, out, len(data), ancillary)

    def shutdown(self, how: int) -> None:
        self.endpoint.shutdown(_SHUT[how])

    def local_address(self) -> bytes:
        return self.endpoint.address

    def peer_address(self) -> bytes:
        peer = self.endpoint.peer
        if peer is None:
            raise NetError(errno.ENOTCONN)
        return peer.address

    def take_error(self) -> int:
        return self.endpoint.take_error()

    def put_error(self, error: int) -> None:
        self.endpoint.error = error

    def memory(self) -> tuple[int, int, int]:
        """(received, being sent, drops) for SO_MEMINFO: what is received is charged to its sender."""
        return 0, self.endpoint.charged, 0

    def option_changed(self, level: int, name: int) -> None:
        from stack.socket.unix.options import changed

        changed(self.socket, level, name)

    def close(self) -> None:
        self.endpoint.close()

    def readiness(self) -> int:
        """The bits that every phase has (rows UNX-14, UDG-06)."""
        endpoint = self.endpoint
        bits = ERR if endpoint.error else 0
        shut = endpoint.shut
        if shut & SHUT_RECEIVING:
            bits |= IN | RDNORM | RDHUP
            if shut == SHUT_BOTH:
                bits |= HUP
        if endpoint.queue:
            bits |= IN | RDNORM
        if endpoint.writable:
            bits |= OUT | WRNORM
        return bits
