"""TCP_MD5SIG and TCP_MD5SIG_EXT: the keys a socket signs its segments with (RFC 2385, section 2.3 row 14).

A key is set for one peer, or with TCP_MD5SIG_EXT for the peers of a prefix; an empty key takes it away again. It is
in force at once, for connections that exist as for those to come.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.socket.families import AF_INET
from stack.socket.options import Kind, Option
from stack.tcp.signatures import KEY_MAX, Keys

if TYPE_CHECKING:
    from stack.socket.ip.stream import StreamSocket

_IPPROTO_TCP: Final = 6
# Linux <linux/tcp.h>.
TCP_MD5SIG: Final = 14
TCP_MD5SIG_EXT: Final = 32
#: struct tcp_md5sig: a sockaddr_storage, flags, bits of the address that count, length of the key, interface, key
_MD5SIG: Final = struct.Struct("@128sBBHi80s")
_FLAG_PREFIX: Final = 1
_FLAG_IFINDEX: Final = 2
_FAMILY: Final = struct.Struct("@H")
_MAPPED: Final = bytes(10) + b"\xff\xff"


def _set(socket: StreamSocket, data: bytes) -> None:
    _change(socket, data, extended=False)


def _set_extended(socket: StreamSocket, data: bytes) -> None:
    _change(socket, data, extended=True)


def _change(socket: StreamSocket, data: bytes, *, extended: bool) -> None:
    """Raises NetError: EINVAL for what is no address of the socket's family, prefix or key; ENOENT: no such key."""
    if len(data) < _MD5SIG.size:
        raise NetError(errno.EINVAL)
    place, flags, bits, length, _, key = _MD5SIG.unpack_from(data)
    if _FAMILY.unpack_from(place)[0] != socket.family:
        raise NetError(errno.EINVAL)
    address = place[4:8] if socket.family == AF_INET else place[8:24]
    if address.startswith(_MAPPED):
        address = address[12:]
    width = 8 * len(address)
    if not (extended and flags & _FLAG_PREFIX):
        bits = width
    elif bits > width:
        raise NetError(errno.EINVAL)
    if extended and flags & _FLAG_IFINDEX:
        raise NetError(errno.EINVAL)  # that is for the devices of VRFs, which there are none of
    if length > KEY_MAX:
        raise NetError(errno.EINVAL)
    keys = socket.keys or Keys()
    if length:
        keys.set(address, bits, key[:length])
        socket.keys = keys
        socket.host.netns.tcp.signatures.install()
    elif not keys.remove(address, bits):
        raise NetError(errno.ENOENT)
    socket.host.netns.tcp.signatures.changed()


def _row(number: int, name: str, act: Any) -> Option:
    return Option(_IPPROTO_TCP, number, name, Kind.OPAQUE, readable=False, act=act)


SIGNATURE_ROWS: Final = (
    _row(TCP_MD5SIG, "TCP_MD5SIG", _set),
    _row(TCP_MD5SIG_EXT, "TCP_MD5SIG_EXT", _set_extended),
)
