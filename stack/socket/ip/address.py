"""Addresses of AF_INET and AF_INET6 sockets: Python's tuples outside, (bytes, port) inside.

Inside, a v4-mapped IPv6 address (::ffff:a.b.c.d) is its four bytes: a dual-stack socket is an IPv4 socket as far as
everything below is concerned, and only its user sees the mapping.
"""

from __future__ import annotations

import errno
import os
import socket as _kernel
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from stack.socket.families import AF_INET

if TYPE_CHECKING:
    from stack.socket.base import Host

#: Address and port.
IpAddress: TypeAlias = tuple[bytes, int]

ANY4: Final = bytes(4)
ANY6: Final = bytes(16)
MAPPED: Final = bytes(10) + b"\xff\xff"


def address_in(host: Host, family: int, address: object) -> IpAddress:
    """(host, port) or, for IPv6, (host, port, flowinfo, scope). Raises what `socket` raises: TypeError, OverflowError,
    gaierror.
    """
    name = "AF_INET" if family == AF_INET else "AF_INET6"
    if not isinstance(address, tuple):
        raise TypeError(f"{name} address must be tuple, not {type(address).__name__}")
    if not (len(address) == 2 or (family != AF_INET and 2 <= len(address) <= 4)):
        shape = "(host, port)" if family == AF_INET else "(host, port[, flowinfo[, scopeid]])"
        raise TypeError(f"{name} address must be a tuple {shape}")
    node = _text(address[0])
    port, flow = _integer(address[1]), _integer(address[2]) if len(address) > 2 else 0
    if not -0x80000000 <= port <= 0x7FFFFFFF:
        raise OverflowError("port must be 0-65535.")
    raw = _node(host, family, node)  # CPython resolves the name before it looks at the numbers
    if not 0 <= port <= 0xFFFF:
        raise OverflowError("port must be 0-65535.")
    if not 0 <= flow <= 0xFFFFF:
        raise OverflowError("flowinfo must be 0-1048575.")
    return raw, port


def address_out(family: int, address: IpAddress, scope: int = 0, flow: int = 0) -> tuple[Any, ...]:
    """What Python users get: (text, port), or (text, port, flow, scope) on an IPv6 socket."""
    raw, port = address
    if family == AF_INET:
        return _kernel.inet_ntop(_kernel.AF_INET, raw), port
    if len(raw) == 4:
        raw = ANY6 if raw == ANY4 else MAPPED + raw
    return _kernel.inet_ntop(_kernel.AF_INET6, raw), port, flow, scope


def scope_of(host: Host, address: object) -> int:
    """The interface that an IPv6 address names: its fourth element, or the zone behind "%"; 0 if there is neither."""
    if not isinstance(address, tuple):
        return 0
    if len(address) == 4 and address[3]:
        return _integer(address[3]) & 0xFFFFFFFF  # a C unsigned int, which CPython cuts
    node = address[0]
    zone = node.partition("%")[2] if isinstance(node, str) else ""
    if zone.isdigit():
        return int(zone)
    interfaces = host.netns.ip.interfaces.values()
    return next((iface.index for iface in interfaces if iface.name == zone), 0) if zone else 0


def flow_of(address: object) -> int:
    """The flow label of an IPv6 address tuple, in the low 20 bits of its third element."""
    return _integer(address[2]) if isinstance(address, tuple) and len(address) > 2 else 0


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"'{type(value).__name__}' object cannot be interpreted as an integer")
    return int(value)


def _text(node: object) -> str:
    if isinstance(node, (bytes, bytearray)):
        node = node.decode("ascii", "surrogateescape")
    elif isinstance(node, str) and not node.isascii():
        try:
            node = node.encode("idna").decode("ascii")
        except UnicodeError:
            raise TypeError("encoding of hostname failed") from None
    if not isinstance(node, str):
        raise TypeError(f"str, bytes or bytearray expected, not {type(node).__name__}")
    if "\0" in node:
        raise TypeError("host name must not contain null character")
    return node


def _node(host: Host, family: int, node: str) -> bytes:
    if not node:
        return ANY4 if family == AF_INET else ANY6
    if node == "<broadcast>" and family != AF_INET:
        raise OSError("address family mismatched")
    raw = _numeric(family, node)
    if raw is None:
        from stack.socket.resolve import resolve

        raw = resolve(host, node, family)
    return raw[12:] if len(raw) == 16 and raw.startswith(MAPPED) else raw


def _numeric(family: int, node: str) -> bytes | None:
    try:
        if family == AF_INET:
            return b"\xff\xff\xff\xff" if node == "<broadcast>" else _kernel.inet_pton(_kernel.AF_INET, node)
        return _kernel.inet_pton(_kernel.AF_INET6, node.split("%", 1)[0])
    except (OSError, UnicodeError):  # text that is none
        return None


def unsupported_family() -> OSError:
    return OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
