"""What an AF_NETLINK socket does in either phase (rows NL-06..NL-10, NL-18)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.message import MSG_OOB, MSG_PEEK, MSG_TRUNC, Ancillary, Message
from stack.socket.netlink.endpoint import SOL_NETLINK, Datagram
from stack.socket.netlink.options import NETLINK_PKTINFO, SO_PASSCRED
from stack.socket.options import SOL_SOCKET
from stack.socket.options_socket import SO_RCVBUF, SO_RCVBUFFORCE, SO_SNDBUF
from stack.socket.poll import ERR, IN, OUT, RDNORM, WRNORM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import Buffer
    from stack.socket.netlink.socket import NetlinkAddress, NetlinkSocket

SCM_CREDENTIALS: Final = 2
#: Bytes of the send buffer that the kernel keeps for itself.
SEND_OVERHEAD: Final = 32
_PKTINFO: Final = struct.Struct("=I")
_UCRED: Final = struct.Struct("=iII")


def first_group(mask: int) -> int:
    """The number of a mask's lowest group; 0 for none."""
    return (mask & -mask).bit_length()


def mask_of(group: int) -> int:
    """The mask of one group; those above 32 have none."""
    return 1 << group - 1 if 1 <= group <= 32 else 0


class NetlinkPhase(Phase):
    """Sending binds an unbound socket, receiving does not."""

    __slots__ = ("socket",)

    def __init__(self, socket: NetlinkSocket) -> None:
        self.socket = socket

    def ensure_bound(self) -> None:
        """Take a port id if there is none yet."""

    def connect(self, address: NetlinkAddress) -> None:
        socket = self.socket
        port, groups = address
        if (port or groups) and not socket.table.protocol.anyone_sends and not socket.capable:
            raise NetError(errno.EPERM)
        self.ensure_bound()
        socket.endpoint.connected = True
        socket.endpoint.peer = port
        socket.peer_groups = mask_of(first_group(groups))

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: NetlinkAddress | None
    ) -> int | Again:
        """SCM_CREDENTIALS, which say what is true (row SEC-06), are all there is of level SOL_SOCKET."""
        for level, kind, content in ancillary:
            if level != SOL_SOCKET:
                continue
            if kind != SCM_CREDENTIALS or len(content) != _UCRED.size:
                raise NetError(errno.EINVAL)
            if _UCRED.unpack(content) != self.socket.credentials and not self.socket.capable:
                raise NetError(errno.EPERM)
        return self.send(data, flags, address)

    def send(self, data: Buffer, flags: int, address: NetlinkAddress | None) -> int | Again:
        socket = self.socket
        endpoint = socket.endpoint
        table = socket.table
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if not data:
            raise NetError(errno.ENODATA)
        if address is None:
            port, groups = endpoint.peer, socket.peer_groups
        else:
            port, groups = address
            if (port or groups) and not table.protocol.anyone_sends and not socket.capable:
                raise NetError(errno.EPERM)
        self.ensure_bound()
        if len(data) > socket.options.value(SOL_SOCKET, SO_SNDBUF) - SEND_OVERHEAD:
            raise NetError(errno.EMSGSIZE)
        group = first_group(groups)
        receiver = table.ports.get(port) if port else None
        if receiver is not None and receiver.full and not group:
            return AGAIN
        content = bytes(data)
        credentials = socket.credentials
        if group:
            table.multicast(group, content, pid=endpoint.port, credentials=credentials, without=endpoint, skip=port)
        if not port:
            if table.kernel is None:
                raise NetError(errno.ECONNREFUSED)
            table.kernel(endpoint, content, socket.capable)
        elif receiver is None or (receiver.connected and receiver.peer != endpoint.port):
            raise NetError(errno.ECONNREFUSED)
        else:
            receiver.deliver(Datagram(content, endpoint.port, group, credentials))
        return len(content)

    def receive(self, size: int, flags: int) -> Message | Again:
        endpoint = self.socket.endpoint
        if flags & MSG_OOB:
            raise NetError(errno.EOPNOTSUPP)
        if endpoint.error:
            raise NetError(endpoint.take_error())
        if not endpoint.queue:
            return AGAIN
        if flags & MSG_PEEK:
            datagram = endpoint.queue[0]
        else:
            endpoint.longest_read = max(endpoint.longest_read, size)
            taken = endpoint.take()
            assert taken is not None
            datagram = taken
        data = datagram.data
        out = MSG_TRUNC if len(data) > size else 0
        return Message(data[:size], (datagram.pid, mask_of(datagram.group)), out, len(data), self._ancillary(datagram))

    def _ancillary(self, datagram: Datagram) -> list[Ancillary]:
        """NETLINK_PKTINFO and SO_PASSCRED, in the kernel's order (rows NL-12, NL-13)."""
        socket = self.socket
        found: list[Ancillary] = []
        if socket.flag(NETLINK_PKTINFO):
            found.append((SOL_NETLINK, NETLINK_PKTINFO, _PKTINFO.pack(datagram.group)))
        if socket.options.value(SOL_SOCKET, SO_PASSCRED):
            found.append((SOL_SOCKET, SCM_CREDENTIALS, _UCRED.pack(*datagram.credentials)))
        return found

    def local_address(self) -> NetlinkAddress:
        endpoint = self.socket.endpoint
        return endpoint.port, sum(map(mask_of, endpoint.groups))

    def peer_address(self) -> NetlinkAddress:
        return self.socket.endpoint.peer, self.socket.peer_groups

    def poll(self) -> int:
        endpoint = self.socket.endpoint
        bits = OUT | WRNORM
        if endpoint.queue:
            bits |= IN | RDNORM
        if endpoint.error:
            bits |= ERR
        return bits

    def take_error(self) -> int:
        return self.socket.endpoint.take_error()

    def option_changed(self, level: int, name: int) -> None:
        if level == SOL_SOCKET and name in (SO_RCVBUF, SO_RCVBUFFORCE):
            self.socket.endpoint.limit = self.socket.options.value(SOL_SOCKET, SO_RCVBUF)

    def close(self) -> None:
        self.socket.endpoint.close()
