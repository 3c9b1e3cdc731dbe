"""Link-local addresses: on which link they are, and that a socket is bound to its interface then (RFC 4007, RFC 3493).

As on Linux a socket that binds or connects to such an address works through that interface only, as if
SO_BINDTODEVICE had said so, and shows it there.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, TypeAlias

from stack.errors import NetError
from stack.socket.options import SOL_SOCKET
from stack.socket.options_device import SO_BINDTOIFINDEX, bound_interface
from stack.wire.ipv6 import is_link_local

if TYPE_CHECKING:
    from stack.socket.base import Socket
    from stack.socket.ip.address import IpAddress

#: Address, port, and the interface a link-local address is on (0: none is named).
ScopedAddress: TypeAlias = tuple[bytes, int, int]

_INTERFACE_GROUPS: Final = 1  # scope nibble of a group address: of the interface, of the link
_LINK_GROUPS: Final = 2


def needs_link(address: bytes) -> bool:
    """Does it mean something on one link only?"""
    if len(address) != 16:
        return False
    return is_link_local(address) or (address[0] == 0xFF and address[1] & 0x0F in (_INTERFACE_GROUPS, _LINK_GROUPS))


def bind_to_link(socket: Socket, address: bytes, scope: int, *, connecting: bool = False) -> None:
    """The socket is about to bind or connect to `address`, said to be on interface `scope`.

    Raises NetError: EINVAL (no link named, or a peer on another than the socket is bound to), ENODEV.
    """
    if not needs_link(address):
        return
    bound = bound_interface(socket)
    if scope and scope != bound:
        if connecting and bound:
            raise NetError(errno.EINVAL)
        if scope not in socket.host.netns.ip.interfaces:
            raise NetError(errno.ENODEV)
        socket.options.store(SOL_SOCKET, SO_BINDTOIFINDEX, scope)
    elif not scope and not bound:
        raise NetError(errno.EINVAL)


def scoped(socket: Socket, address: IpAddress) -> ScopedAddress:
    """`address` with the link it is on."""
    return (*address, bound_interface(socket) if needs_link(address[0]) else 0)
