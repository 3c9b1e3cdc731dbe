"""SOL_PACKET and what else a packet socket understands (packet(7)); the rings that need shared memory are not here."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.packet.sighting import VNET_HEADER
from stack.socket.filter import FILTER_OPTIONS, attached, filter_level
from stack.socket.options import INT_MAX, SOL_SOCKET, Kind, Option, OptionTable, Value
from stack.socket.options_device import SO_MARK
from stack.socket.options_socket import SO_NOFCS, SO_PRIORITY, SO_PROTOCOL, SO_RCVBUF, SO_REUSEPORT, socket_level

if TYPE_CHECKING:
    from stack.packet.membership import Wish
    from stack.socket.packet.socket import PacketSocket

SOL_PACKET: Final = 263  # Linux <linux/socket.h>
# Linux <linux/if_packet.h>.
PACKET_ADD_MEMBERSHIP: Final = 1
PACKET_DROP_MEMBERSHIP: Final = 2
PACKET_STATISTICS: Final = 6
PACKET_AUXDATA: Final = 8
PACKET_ORIGDEV: Final = 9
PACKET_VNET_HDR: Final = 15
PACKET_QDISC_BYPASS: Final = 20
PACKET_IGNORE_OUTGOING: Final = 23
PACKET_VNET_HDR_SZ: Final = 24

SOCK_RAW: Final = 3
#: struct packet_mreq: interface, kind, address length, address
_MREQ: Final = struct.Struct("=iHH8s")
_INT: Final = struct.Struct("@i")
_STATISTICS: Final = struct.Struct("=II")
#: struct virtio_net_hdr, and with the count of merged buffers.
_VNET_SIZES: Final = (0, VNET_HEADER.size, VNET_HEADER.size + 2)


def _row(number: int, name: str, kind: Kind = Kind.BOOL, **more: Any) -> Option:
    return Option(SOL_PACKET, number, name, kind, **more)


def _wish(value: bytes) -> Wish:
    """A struct packet_mreq. Raises NetError(EINVAL)."""
    if len(value) < _MREQ.size:
        raise NetError(errno.EINVAL)
    ifindex, kind, length, address = _MREQ.unpack_from(value)
    if length > len(address):
        raise NetError(errno.EINVAL)
    return ifindex, kind, address[:length]


def _add(socket: PacketSocket, value: Any) -> None:
    socket.memberships.add(_wish(value))


def _drop(socket: PacketSocket, value: Any) -> None:
    socket.memberships.drop(_wish(value))


def _statistics(socket: PacketSocket) -> bytes:
    return _STATISTICS.pack(*socket.endpoint.statistics())


def _exact_int(data: bytes) -> int:
    """Of some options Linux takes neither less nor more than an int. Raises NetError(EINVAL)."""
    if len(data) != _INT.size:
        raise NetError(errno.EINVAL)
    return int(_INT.unpack(data)[0])


def _set_bypass(socket: PacketSocket, data: bytes) -> None:
    """There is no queueing discipline to go round."""
    socket.options.store(SOL_PACKET, PACKET_QDISC_BYPASS, int(_exact_int(data) != 0))


def _set_ignore(socket: PacketSocket, data: bytes) -> None:
    value = _exact_int(data)
    if value not in (0, 1):
        raise NetError(errno.EINVAL)
    socket.options.store(SOL_PACKET, PACKET_IGNORE_OUTGOING, value)
    socket.endpoint.set_ignore_outgoing(bool(value))


def _headers_only(socket: PacketSocket, _: Value) -> None:
    if socket.type != SOCK_RAW:
        raise NetError(errno.EINVAL)


def _vnet_size(socket: PacketSocket, value: int) -> int:
    if value not in _VNET_SIZES:
        raise NetError(errno.EINVAL)
    return value


def _set_vnet(socket: PacketSocket, value: int) -> None:
    socket.endpoint.vnet_header = VNET_HEADER.size if value else 0


def _set_vnet_size(socket: PacketSocket, value: int) -> None:
    socket.endpoint.vnet_header = value


PACKET_OPTIONS: Final = OptionTable(
    [
        *(row for row in socket_level(without=(SO_REUSEPORT,)) if row.number != SO_PROTOCOL),
        Option(SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL", writable=False, get=lambda _: 0),  # as Linux: it is not kept
        *filter_level(),
        _row(PACKET_ADD_MEMBERSHIP, "PACKET_ADD_MEMBERSHIP", Kind.OPAQUE, readable=False, check=_add),
        _row(PACKET_DROP_MEMBERSHIP, "PACKET_DROP_MEMBERSHIP", Kind.OPAQUE, readable=False, check=_drop),
        _row(PACKET_STATISTICS, "PACKET_STATISTICS", Kind.OPAQUE, writable=False, get=_statistics),
        _row(PACKET_AUXDATA, "PACKET_AUXDATA"),
        _row(PACKET_ORIGDEV, "PACKET_ORIGDEV"),
        _row(
            PACKET_VNET_HDR,
            "PACKET_VNET_HDR",
            check=_headers_only,
            effect=_set_vnet,
            get=lambda socket: int(bool(socket.endpoint.vnet_header)),
        ),
        _row(PACKET_QDISC_BYPASS, "PACKET_QDISC_BYPASS", act=_set_bypass),
        _row(PACKET_IGNORE_OUTGOING, "PACKET_IGNORE_OUTGOING", act=_set_ignore),
        _row(
            PACKET_VNET_HDR_SZ,
            "PACKET_VNET_HDR_SZ",
            Kind.INT,
            low=0,
            high=INT_MAX,
            adjust=_vnet_size,
            check=_headers_only,
            effect=_set_vnet_size,
            get=lambda socket: socket.endpoint.vnet_header,
        ),
    ],
    unknown_level_get=errno.ENOPROTOOPT,
)


def apply(socket: PacketSocket, level: int, name: int) -> None:
    """Bring the endpoint up to what the socket has just been told."""
    endpoint, options = socket.endpoint, socket.options
    if (level, name) in FILTER_OPTIONS:
        endpoint.filter = attached(options)
    endpoint.receive_limit = options.value(SOL_SOCKET, SO_RCVBUF)
    endpoint.mark = options.value(SOL_SOCKET, SO_MARK)
    endpoint.priority = options.value(SOL_SOCKET, SO_PRIORITY)
    endpoint.no_fcs = bool(options.value(SOL_SOCKET, SO_NOFCS))
