"""UDP sockets (rows UDP-01..17): the socket object; its phases are `datagram_unbound` and `datagram_bound`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from stack.errors import NetError
from stack.ip.listening import Listening
from stack.socket.base import AGAIN, Socket
from stack.socket.families import AF_INET
from stack.socket.ip import IPPROTO_UDP, SOCK_DGRAM
from stack.socket.ip.address import address_in, address_out, flow_of, scope_of
from stack.socket.ip.datagram_bound import DatagramBound
from stack.socket.ip.datagram_options import DATAGRAM6_OPTIONS, DATAGRAM_OPTIONS
from stack.socket.ip.datagram_unbound import DatagramUnbound
from stack.socket.message import MSG_DONTWAIT, Message
from stack.socket.options import OptionTable, OptionValues
from stack.socket.poll import HUP, IN, RDHUP, RDNORM

if TYPE_CHECKING:
    from stack.socket.base import Again, Host, Timeout

_READ: Final = 0
_WRITE: Final = 1

#: Address, port, the interface a link-local address is on (0: none is named), flow label.
DatagramAddress: TypeAlias = tuple[bytes, int, int, int]


class DatagramSocket(Socket):
    """socket(AF_INET or AF_INET6, SOCK_DGRAM)."""

    options_table: ClassVar[OptionTable] = DATAGRAM_OPTIONS

    def __init__(self, host: Host, family: int) -> None:
        super().__init__(host, SOCK_DGRAM, IPPROTO_UDP)
        if family != AF_INET:
            self.options = OptionValues(DATAGRAM6_OPTIONS)
        self.family = family
        self.groups: Listening | None = None  #: see `listening`
        self.deaf = False  #: our receiving side is shut down
        self.mute = False  #: our sending side is shut down
        self.phase = DatagramUnbound(self)

    @property
    def listening(self) -> Listening:
        """The multicast groups joined, bound or not; they are left with the socket."""
        if self.groups is None:
            self.groups = Listening(self.host.netns.ip)
            if isinstance(self.phase, DatagramBound):
                self.phase.endpoint.groups = self.groups
        return self.groups

    def address_in(self, address: object) -> DatagramAddress:
        target, port = address_in(self.host, self.family, address)
        if self.family == AF_INET:
            return target, port, 0, 0
        return target, port, scope_of(self.host, address), flow_of(address)

    def address_out(self, address: tuple[bytes, int] | tuple[bytes, int, int] | DatagramAddress) -> object:
        scope = address[2] if len(address) > 2 else 0
        return address_out(self.family, address[:2], scope, address[3] if len(address) > 3 else 0)

    def is_bound(self) -> bool:
        return isinstance(self.phase, DatagramBound)

    def path_mtu(self) -> int:
        """IP_MTU: of the route to the peer, bytes. Raises NetError(ENOTCONN)."""
        phase = self.phase
        if not isinstance(phase, DatagramBound) or phase.endpoint.remote is None:
            raise NetError(errno.ENOTCONN)
        ip = self.host.netns.ip
        return ip.mtu_for(ip.route(phase.endpoint.remote[0]))

    def shut(self, how: int) -> None:
        """Shut one side or both; poll shows it."""
        self.deaf = self.deaf or how != _WRITE
        self.mute = self.mute or how != _READ
        self.pollee.notify()

    def shut_bits(self) -> int:
        """What that means for poll."""
        if not self.deaf:
            return 0
        return IN | RDNORM | RDHUP | (HUP if self.mute else 0)

    def nothing(self, flags: int) -> Message | Again:
        """What a receive finds when nothing waits."""
        return Message(b"") if self.deaf and not flags & MSG_DONTWAIT else AGAIN

    def uncork(self) -> None:
        """Send what UDP_CORK or MSG_MORE collected."""
        if isinstance(self.phase, DatagramBound):
            self.phase.endpoint.uncork()

    def connect(self, address: object, timeout: Timeout) -> None:
        """Never waits: an EAGAIN is one for want of a port, see `DatagramUnbound`."""
        self.call(self._connect, self.address_in(address))

    # A call that may not wait does not notice that the receiving side is shut down (UDP-10): the phase is told which
    # calls those are.

    def recv(self, size: int, flags: int, timeout: Timeout) -> bytes:
        if flags:
            return super().recv(size, flags | MSG_DONTWAIT if timeout == 0 else flags, timeout)
        return self.block_on(IN, timeout, self._recv, size, MSG_DONTWAIT if timeout == 0 else 0)

    def recv_into(self, target: memoryview, flags: int, timeout: Timeout) -> int:
        if not flags:
            data = self.block_on(IN, timeout, self._recv, len(target), MSG_DONTWAIT if timeout == 0 else 0)
            size = len(data)
            target[:size] = data
            return size
        message = self.receive(len(target), flags, timeout)
        target[: len(message.data)] = message.data
        return len(message.data)

    def receive(self, size: int, flags: int, timeout: Timeout, room: int = 0) -> Message:
        return super().receive(size, flags | MSG_DONTWAIT if timeout == 0 else flags, timeout, room)

    def recv_all(self, size: int, flags: int, timeout: Timeout) -> bytes:
        """MSG_WAITALL changes nothing for datagrams."""
        return self.block_on(IN, timeout, self._once, size, flags)

    def _once(self, size: int, flags: int) -> bytes | Again:
        return self.phase.recv(size, flags)
