"""A UDP socket with a port, connected or not (rows UDP-02..15; flags of section 1.3)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.ip.listening import is_group
from stack.socket.base import AGAIN, Again, Phase
from stack.socket.families import AF_INET
from stack.socket.ip.asked import take
from stack.socket.ip.binding import connect_source
from stack.socket.ip.datagram_options import apply
from stack.socket.ip.failed import take_failure
from stack.socket.ip.options import IPPROTO_IPV6
from stack.socket.ip.options6 import IPV6_FLOWINFO_SEND, IPV6_PATHMTU, path_mtu_info
from stack.socket.ip.options_udp import IPPROTO_UDP, UDP_CORK
from stack.socket.ip.received import report, reporters
from stack.socket.ip.scope import bind_to_link, scoped
from stack.socket.ip.transmitted import Transmitted
from stack.socket.message import (
    MSG_CONFIRM,
    MSG_DONTROUTE,
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    MSG_MORE,
    MSG_OOB,
    MSG_PEEK,
    MSG_PROBE,
    MSG_TRUNC,
    MSG_ZEROCOPY,
    Ancillary,
    Message,
    Received,
)
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import SO_TIMESTAMPING, SO_TIMESTAMPING_NEW, bound_interface
from stack.socket.options_socket import SO_PEEK_OFF, SO_SELECT_ERR_QUEUE
from stack.socket.poll import ERR, IN, OUT, PRI, RDNORM, WRNORM
from stack.udp import SendOptions
from stack.udp.runs import longest_run, send_run
from stack.udp.sending import CongestedError
from stack.wire.ipoptions import first_hop
from stack.wire.ipv6 import is_link_local

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.ip.datagram import DatagramAddress, DatagramSocket
    from stack.socket.phase import Prepared
    from stack.udp import Datagram, UdpEndpoint

#: Flags of a send that change what is sent, or how.
_SPECIAL: Final = MSG_CONFIRM | MSG_DONTROUTE | MSG_MORE | MSG_OOB | MSG_PROBE | MSG_ZEROCOPY


class DatagramBound(Phase):
    """See above."""

    __slots__ = (
        "_corking",
        "_flow_labels",
        "_peeking",
        "_reporters",
        "_transmitted",
        "deaf",
        "endpoint",
        "mute",
        "socket",
    )

    def __init__(self, socket: DatagramSocket, endpoint: UdpEndpoint) -> None:
        self.socket = socket
        self.endpoint = endpoint
        self._transmitted = Transmitted(socket, endpoint)
        endpoint.groups = socket.groups
        endpoint.on_event = socket.pollee.notify
        self._apply()

    def _apply(self) -> None:
        apply(self.socket, self.endpoint)
        self._reporters = reporters(self.socket)
        value = self.socket.options.value
        self._flow_labels = self.socket.family != AF_INET and bool(value(IPPROTO_IPV6, IPV6_FLOWINFO_SEND))
        self._corking = bool(self.socket.options.value(IPPROTO_UDP, UDP_CORK))
        self._peeking = self._peek_offset() >= 0

    def bind(self, address: DatagramAddress) -> None:
        raise NetError(errno.EINVAL)  # row CORE-19

    def connect(self, address: DatagramAddress) -> None:
        _, remote = connect_source(self.socket, None, address[:2])
        scope = address[2] or bound_interface(self.socket)
        if is_group(remote[0]):
            scope = scope or self.endpoint.v6.multicast_ifindex
        bind_to_link(self.socket, remote[0], scope, connecting=True)
        self._apply()
        self.endpoint.connect(*remote, flow=address[3] if self._flow_labels else 0)

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(self, data: Buffer, flags: int, address: DatagramAddress | None) -> int | Again:
        return self.send_message(data, (), flags, address)

    def _is_ipv4(self, address: DatagramAddress | None) -> bool:
        target = address or self.endpoint.remote
        return self.socket.family == AF_INET if target is None else len(target[0]) == 4

    def send_message(
        self, data: Buffer, ancillary: Sequence[Ancillary], flags: int, address: DatagramAddress | None
    ) -> int | Again:
        endpoint = self.endpoint
        if flags & MSG_OOB and self._is_ipv4(address):
            raise NetError(errno.EOPNOTSUPP)  # row UDP-12; Linux looks at it for IPv4 only
        if address is None and endpoint.remote is None and not endpoint.corked:
            raise NetError(errno.EDESTADDRREQ)  # before what is pending or shut, as on Linux
        if endpoint.error:
            raise NetError(endpoint.take_error())
        if self.socket.mute:
            raise NetError(errno.EPIPE)
        target = None
        if address is not None:
            _, target = connect_source(self.socket, None, address[:2])
            if target[0] != address[0] and first_hop(endpoint.v4.options):
                raise NetError(errno.EINVAL)  # a source route to nowhere
        data = data if type(data) is bytes else bytes(data)
        try:
            if not ancillary and not flags & _SPECIAL and not self._corking and not self._transmitted.wanted:
                if target is None:
                    return endpoint.send(data)
                assert address is not None
                if not address[2] and not address[3]:
                    return endpoint.send(data, target)
            return self._send_specially(data, ancillary, flags, address, target)
        except CongestedError:
            return AGAIN

    def send_several(self, messages: Sequence[Prepared], first: int, flags: int) -> list[int] | None:
        endpoint = self.endpoint
        if flags & _SPECIAL or self._corking or self._transmitted.wanted or endpoint.error or self.socket.mute:
            return None
        data, ancillary, address = messages[first]
        if ancillary or (address is not None and (address[2] or address[3])):
            return []
        target = None if address is None else connect_source(self.socket, None, address[:2])[1]
        size = len(data)
        most = longest_run(endpoint, size, target)
        if not most:
            return None
        run: list[bytes] = []
        for data, ancillary, whom in islice(messages, first, first + most):
            if not data or len(data) > size or ancillary or whom != address:
                break
            run.append(bytes(data))
            if len(data) < size:
                break
        if len(run) < 2:
            return []
        try:
            send_run(endpoint, run, target)
        except CongestedError:
            return []
        return [len(data) for data in run]

    def _send_specially(
        self,
        data: bytes,
        ancillary: Sequence[Ancillary],
        flags: int,
        address: DatagramAddress | None,
        target: tuple[bytes, int] | None,
    ) -> int:
        endpoint = self.endpoint
        how = SendOptions(
            more=bool(flags & MSG_MORE) or self._corking,
            direct=bool(flags & MSG_DONTROUTE),
            confirm=bool(flags & MSG_CONFIRM),
        )
        if address is not None:
            how.oif, how.flow = address[2], address[3] & 0xFFFFF if self._flow_labels else 0
        else:
            how.flow = endpoint.flow
        remote = target or endpoint.remote
        stamps = -1
        if ancillary and not endpoint.corked:
            version = 4 if remote is not None and len(remote[0]) == 4 else 6
            stamps = take(self.socket, ancillary, how, version=version)
        if flags & MSG_PROBE:
            endpoint.check(target, how)
            return len(data)
        sent = endpoint.send(data, target, how)
        if self._transmitted.wanted or stamps > 0 or flags & MSG_ZEROCOPY:
            self._transmitted.note(data, remote, stamps, zero_copy=bool(flags & MSG_ZEROCOPY), more=how.more)
        return sent

    # -- receiving ----------------------------------------------------------------------------------------------------

    # A call is plain when there is no more to it than to take what is next.

    def recv(self, size: int, flags: int) -> bytes | Again:
        endpoint = self.endpoint
        if flags & ~MSG_DONTWAIT or self._peeking or endpoint.error or endpoint.too_long is not None:
            return super().recv(size, flags)
        data = endpoint.recv_data()
        if data is None:
            nothing = self.socket.nothing(flags)
            return AGAIN if nothing is AGAIN else nothing.data
        return data if len(data) <= size else data[:size]

    def receive_several(self, most: int, size: int, flags: int) -> list[Received]:
        endpoint = self.endpoint
        if flags & ~MSG_DONTWAIT or self._peeking or endpoint.error or endpoint.too_long is not None or self._reporters:
            return []
        taken = endpoint.recv_several(most)
        if taken is None:
            return []
        datagram, run = taken
        address = self.socket.address_out(_sender(datagram))
        if len(run[0]) <= size:  # the first is the longest
            return [(data, [], 0, address) for data in run]
        return [(data[:size], [], MSG_TRUNC if len(data) > size else 0, address) for data in run]

    def receive(self, size: int, flags: int) -> Message | Again:
        endpoint = self.endpoint
        if flags & MSG_ERRQUEUE:
            failure = take_failure(self.socket, endpoint.errors, size, flags)
            if failure is not AGAIN and not flags & MSG_PEEK:
                endpoint.error_taken()
            return failure
        if endpoint.too_long is not None:
            return self._path_mtu()
        if endpoint.error:
            raise NetError(endpoint.take_error())
        if flags & MSG_PEEK:
            return self._peek(size, flags)
        datagram = endpoint.recv()
        if datagram is None:
            return self.socket.nothing(flags)
        offset = self._peek_offset()
        if offset > 0:
            self.socket.options.store(SOL_SOCKET, SO_PEEK_OFF, max(offset - len(datagram.data), 0))
        return self._message(datagram, size, 0)

    def _path_mtu(self) -> Message:
        """RFC 3542 11.3: an empty message tells once what the path takes (IPV6_RECVPATHMTU)."""
        assert self.endpoint.too_long is not None
        address, mtu = self.endpoint.too_long
        self.endpoint.too_long = None
        return Message(b"", (address, 0), 0, 0, [(IPPROTO_IPV6, IPV6_PATHMTU, path_mtu_info(address, mtu))])

    def _peek(self, size: int, flags: int) -> Message | Again:
        offset = self._peek_offset()
        found = self.endpoint.peek_at(max(offset, 0))
        if found is None:
            return self.socket.nothing(flags)
        message = self._message(*found[:1], size, found[1])
        if offset >= 0:
            self.socket.options.store(SOL_SOCKET, SO_PEEK_OFF, offset + len(message.data))
        return message

    def _peek_offset(self) -> int:
        return int(self.socket.options.value(SOL_SOCKET, SO_PEEK_OFF))

    def _message(self, datagram: Datagram, size: int, skip: int) -> Message:
        data = datagram.data
        length = len(data)
        flags = 0
        if skip or length - skip > size:
            data = data[skip : skip + size]
            flags = MSG_TRUNC if length - skip > size else 0
        message = Message(data, _sender(datagram), flags, length)
        if self._reporters:
            message.ancillary = report(self._reporters, datagram)
        return message

    # -- the rest -----------------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        self.socket.shut(how)
        if self.endpoint.remote is None:
            raise NetError(errno.ENOTCONN)  # as on Linux, it is done and an error all the same

    def local_address(self) -> tuple[bytes, int, int]:
        return scoped(self.socket, self.endpoint.local)

    def peer_address(self) -> DatagramAddress:
        remote = self.endpoint.remote
        if remote is None or not remote[1]:  # as Linux: connected to port 0 is connected to nobody
            raise NetError(errno.ENOTCONN)
        return *scoped(self.socket, remote), self.endpoint.flow if self._flow_labels else 0

    def take_error(self) -> int:
        return self.endpoint.take_error()

    def put_error(self, error: int) -> None:
        self.endpoint.error = error
        self.socket.pollee.notify()

    def memory(self) -> tuple[int, int, int]:
        endpoint = self.endpoint
        return endpoint.queued_bytes, 0, endpoint.lost

    def option_changed(self, level: int, name: int) -> None:
        self._apply()
        if level == SOL_SOCKET and name in (SO_TIMESTAMPING, SO_TIMESTAMPING_NEW):
            self._transmitted.flags_changed()

    def poll(self) -> int:
        endpoint = self.endpoint
        bits = self.socket.shut_bits()
        if not endpoint.congested:
            bits |= OUT | WRNORM
        if endpoint.pending:
            bits |= IN | RDNORM
        if endpoint.error:
            bits |= ERR
        if endpoint.errors:
            bits |= ERR
            if self.socket.options.value(SOL_SOCKET, SO_SELECT_ERR_QUEUE):
                bits |= PRI
        return bits

    def close(self) -> None:
        self.endpoint.on_event = None
        self.endpoint.close()


def _sender(datagram: Datagram) -> tuple[bytes, int] | tuple[bytes, int, int]:
    """Who sent it; with the interface it came in through if the address says nothing without."""
    src = datagram.src
    if len(src[0]) == 16 and is_link_local(src[0]):
        return (*src, datagram.ifindex)
    return src
