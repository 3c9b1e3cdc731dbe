"""The one phase of a packet socket: it receives as soon as it knows a protocol, and sends whenever told where to."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.packet.endpoint import PacketAddress, Received
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.cmsg import of_int
from stack.socket.ip.received import noted, stamping, time_stamps
from stack.socket.message import MSG_DONTWAIT, MSG_ERRQUEUE, MSG_PEEK, MSG_TRUNC, Ancillary, Message
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import RX_SOFTWARE, SO_MARK, SOFTWARE, stamp_flags, stamp_option
from stack.socket.options_socket import SO_PRIORITY, SO_RCVMARK, SO_RCVPRIORITY, SO_RXQ_OVFL
from stack.socket.packet.options import PACKET_AUXDATA, SOL_PACKET, apply
from stack.socket.poll import ERR, IN, OUT, RDNORM, WRNORM

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.packet.socket import PacketSocket

_SOFTWARE_STAMPS: Final = RX_SOFTWARE | SOFTWARE
_RECEIVE_FLAGS: Final = MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_ERRQUEUE
#: struct tpacket_auxdata: status, length, length kept, offsets of link and network header, VLAN TCI and TPID
_AUXDATA: Final = struct.Struct("=IIIHHHH")


class PacketOpen(Phase):
    __slots__ = ("endpoint", "socket")

    def __init__(self, socket: PacketSocket) -> None:
        self.socket = socket
        self.endpoint = socket.endpoint
        self.endpoint.on_event = socket.pollee.notify

    def bind(self, address: PacketAddress) -> None:
        """Again at will, elsewhere or for another protocol."""
        self.endpoint.bind(address[0], address[1])

    def send(self, data: Buffer, flags: int, address: PacketAddress | None) -> int | Again:
        return self.endpoint.send(bytes(data), address)

    def receive(self, size: int, flags: int) -> Message | Again:
        endpoint = self.endpoint
        if flags & ~_RECEIVE_FLAGS:
            raise NetError(errno.EINVAL)
        if flags & MSG_ERRQUEUE:
            raise NetError(errno.EAGAIN)  # it is always empty: nothing asks for time stamps of what is sent
        if endpoint.error:
            raise NetError(endpoint.take_error())
        if not endpoint.queue:
            return AGAIN
        if endpoint.vnet_header > size:
            endpoint.take()  # Linux takes the frame first
            raise NetError(errno.EINVAL)
        received = endpoint.queue[0] if flags & MSG_PEEK else endpoint.take()
        assert received is not None
        data = received.prefix + received.data
        message = Message(data[:size], received.address, MSG_TRUNC if len(data) > size else 0, len(data))
        message.ancillary = self._told(received)
        return message

    def _told(self, received: Received) -> list[Ancillary]:
        """Control messages: when it passed, how many were lost before, what the frame itself does not say."""
        socket = self.socket
        told = time_stamps(socket, received.stamp) if stamp_option(socket) else []
        if stamp_flags(socket) & _SOFTWARE_STAMPS == _SOFTWARE_STAMPS:
            told.append(stamping(socket, received.stamp))
        if received.lost and socket.options.value(SOL_SOCKET, SO_RXQ_OVFL):
            told.append(of_int(SOL_SOCKET, SO_RXQ_OVFL, received.lost))
        for asked, kind in ((SO_RCVMARK, SO_MARK), (SO_RCVPRIORITY, SO_PRIORITY)):
            if socket.options.value(SOL_SOCKET, asked):
                told.append(noted(kind, received.note))
        if socket.options.value(SOL_PACKET, PACKET_AUXDATA):
            told.append(_auxdata(received))
        return told

    def local_address(self) -> PacketAddress:
        endpoint = self.endpoint
        interface = self.socket.host.netns.ip.interfaces.get(endpoint.ifindex)
        if interface is None:
            return max(endpoint.ifindex, 0), endpoint.protocol, 0, 0, b""
        return endpoint.ifindex, endpoint.protocol, 0, interface.link_type, interface.mac

    def peer_address(self) -> PacketAddress:
        raise NetError(errno.EOPNOTSUPP)

    def take_error(self) -> int:
        return self.endpoint.take_error()

    def put_error(self, error: int) -> None:
        self.endpoint.error = error

    def memory(self) -> tuple[int, int, int]:
        return self.endpoint.charge, 0, self.endpoint.lost_ever

    def option_changed(self, level: int, name: int) -> None:
        apply(self.socket, level, name)

    def poll(self) -> int:
        bits = OUT | WRNORM
        if self.endpoint.queue:
            bits |= IN | RDNORM
        if self.endpoint.error:
            bits |= ERR
        return bits

    def close(self) -> None:
        self.socket.memberships.close()
        self.endpoint.close()


def _auxdata(received: Received) -> Ancillary:
    facts = _AUXDATA.pack(
        received.status, received.length, len(received.data), 0, received.network, received.vlan, received.vlan_tpid
    )
    return SOL_PACKET, PACKET_AUXDATA, facts
