"""IPPROTO_UDP: the options of UDP sockets, as measured (section 2.4 of the socket semantics)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.socket.options import Kind, Option, Value

if TYPE_CHECKING:
    from stack.socket.base import Socket

IPPROTO_UDP: Final = 17

# Linux <linux/udp.h>.
UDP_CORK: Final = 1
UDP_ENCAP: Final = 100
UDP_NO_CHECK6_TX: Final = 101
UDP_NO_CHECK6_RX: Final = 102
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104

_ENCAPSULATIONS: Final = (0, 2, 3)  # none, ESP in UDP (RFC 3948), L2TP: what is in them is for the user to unwrap


def udp_rows() -> list[Option]:
    """The rows."""

    def row(number: int, name: str, kind: Kind = Kind.BOOL, **more: Any) -> Option:
        return Option(IPPROTO_UDP, number, name, kind, **more)

    return [
        row(UDP_CORK, "UDP_CORK", effect=_cork),
        row(UDP_ENCAP, "UDP_ENCAP", Kind.INT, check=_encapsulation),
        row(UDP_NO_CHECK6_TX, "UDP_NO_CHECK6_TX"),
        row(UDP_NO_CHECK6_RX, "UDP_NO_CHECK6_RX"),
        row(UDP_SEGMENT, "UDP_SEGMENT", Kind.INT, low=0, high=0xFFFF),
        row(UDP_GRO, "UDP_GRO"),
    ]


def _cork(socket: Any, value: int) -> None:
    """Taking the cork out sends what was collected."""
    if not value:
        socket.uncork()


def _encapsulation(socket: Socket, value: Value) -> None:
    if value not in _ENCAPSULATIONS:
        raise NetError(errno.ENOPROTOOPT)
