"""Names to addresses and back, for one Stack: no name server is asked, nothing outside the Network is looked at.

A Stack knows numbers, "localhost", its own name, the names of the Network's other stacks (their addresses that are not
loopback or link-local), and what is in `Stack.hosts`.
"""

from __future__ import annotations

import operator
import socket as _kernel
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeAlias

from stack.socket import services
from stack.socket.families import AF_INET, AF_INET6
from stack.socket.transports import transports
from stack.wire.ipv6 import is_link_local

if TYPE_CHECKING:
    from stack.socket.base import Host

AddressInfo: TypeAlias = tuple[Any, Any, int, str, tuple[Any, ...]]

_LOOPBACK: Final = {AF_INET: "127.0.0.1", AF_INET6: "::1"}
_ANY: Final = {AF_INET: "0.0.0.0", AF_INET6: "::"}  # noqa: S104 - what getaddrinfo answers


_MAPPED: Final = "::ffff:"
_LINK_GROUPS: Final = (b"\xff\x01", b"\xff\x02")  # of the interface, of the link
_FLOW_MAX: Final = 0xFFFFF  # 20 bits of a flow label
_NAMEINFO_FLAGS: Final = 0xFF  # glibc's, with those about international names
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_UNSIGNED_MAX: Final = _U64 if sys.version_info < (3, 13) else _U32


def name_of(name: str | bytes) -> str:
    """A host name as functions of `socket` take it: text is encoded by IDNA. Raises TypeError, UnicodeError."""
    if isinstance(name, str):
        return name if name.isascii() else name.encode("idna").decode("ascii")
    if isinstance(name, (bytes, bytearray)):
        return name.decode("ascii", "surrogateescape")
    raise TypeError(f"str, bytes or bytearray expected, not {type(name).__name__}")


def encoded(name: str | bytes) -> str:
    """As `name_of`, for functions that encode every text. Raises TypeError, UnicodeError (a label's length)."""
    return name_of(name.encode("idna") if isinstance(name, str) else name)


def unsigned(number: SupportsIndex) -> int:
    """A C unsigned int, before CPython 3.13 cut from an unsigned long. Raises TypeError, OverflowError."""
    value = operator.index(number)
    if not 0 <= value <= _UNSIGNED_MAX:
        raise OverflowError("can't convert negative value to unsigned int")
    return value & _U32


def resolve(host: Host, name: str, family: int) -> bytes:
    """One address (4 or 16 bytes) of `name` in `family`. Raises socket.gaierror."""
    for found_family, text in lookup(host, name, family):
        if found_family == family:
            return _kernel.inet_pton(family, text)
    raise _unknown(name)


def lookup(host: Host, name: str, family: int = 0, *, numeric: bool = False) -> list[tuple[int, str]]:
    """(family, address text) of every address of `name`, IPv4 first, restricted to `family` if not 0."""
    literal = _literal(name)
    if literal and "%" in name and (family != AF_INET or literal[0] == AF_INET):
        zone_of(host, name)
    if literal and family == AF_INET and literal[1].startswith(_MAPPED):
        literal = AF_INET, literal[1].removeprefix(_MAPPED)  # asked as an IPv4 address, it is one
    found = [literal] if literal else [] if numeric else _named(host, name.rstrip(".").lower())
    chosen = [(f, text) for f, text in found if family in (0, f)]
    if not chosen:
        if found:
            raise _kernel.gaierror(_kernel.EAI_ADDRFAMILY, "Address family for hostname not supported")
        raise _unknown(name)
    return chosen


def reverse(host: Host, text: str) -> str | None:
    """The name an address (as text) belongs to."""
    if text in _LOOPBACK.values():
        return "localhost"
    for name, addresses in host.names().items():
        if text in addresses:
            return name
    return None


def getaddrinfo(
    host: Host,
    node: str | bytes | None,
    port: str | bytes | int | None,
    family: int = 0,
    kind: int = 0,
    protocol: int = 0,
    flags: int = 0,
) -> list[AddressInfo]:
    """As `socket.getaddrinfo`, with the same results for the same question. Raises socket.gaierror."""
    if not isinstance(node, (str, bytes, bytearray, type(None))):
        raise TypeError("getaddrinfo() argument 1 must be string or None")
    if not isinstance(port, (int, str, bytes, type(None))):
        raise OSError("Int or String expected")
    if family not in (0, AF_INET, AF_INET6):
        raise _kernel.gaierror(_kernel.EAI_FAMILY, "ai_family not supported")
    ways = transports(port, kind, protocol, flags, named=node is not None)
    zone = 0
    if node is None:
        texts = _ANY if flags & _kernel.AI_PASSIVE else _LOOPBACK
        order = (AF_INET, AF_INET6) if flags & _kernel.AI_PASSIVE else (AF_INET6, AF_INET)
        found = [(f, texts[f]) for f in order if family in (0, f)]
    else:
        name = encoded(node).partition("\0")[0]  # as a C string
        found = _asked(host, name, family, flags)
        if "%" in name:
            zone = zone_of(host, name)
    canonical = str(node) if flags & _kernel.AI_CANONNAME and node is not None else ""
    return [
        (
            _kernel.AddressFamily(f),
            t,
            p,
            canonical,
            (text, number) if f == AF_INET else (text, number, 0, zone),
        )
        for f, text in found
        for t, p, number in ways
    ]


def _asked(host: Host, name: str, family: int, flags: int) -> list[tuple[int, str]]:
    """As `lookup`, with IPv4 addresses mapped into IPv6 if they may be: for want of others, or all of them."""
    numeric = bool(flags & _kernel.AI_NUMERICHOST)
    if family != AF_INET6 or not flags & _kernel.AI_V4MAPPED:
        return lookup(host, name, family, numeric=numeric)
    found: list[tuple[int, str]] = []
    with suppress(_kernel.gaierror):
        found = lookup(host, name, AF_INET6, numeric=numeric)
    if not found or (flags & _kernel.AI_ALL and not _literal(name)):
        try:
            found += [(AF_INET6, _MAPPED + text) for _, text in lookup(host, name, AF_INET, numeric=numeric)]
        except _kernel.gaierror:
            if not found:
                raise
    return found


def getnameinfo(host: Host, address: Any, flags: int) -> tuple[str, str]:
    """As `socket.getnameinfo`."""
    if not isinstance(address, tuple):
        raise TypeError("getnameinfo() argument 1 must be a tuple")
    if not 2 <= len(address) <= 4:
        raise TypeError("getnameinfo(): illegal sockaddr argument")
    text, (port, flow, *_) = address[0], [*map(operator.index, address[1:]), 0]
    if not isinstance(text, str):
        raise TypeError(f"argument 1 must be str, not {type(text).__name__}")
    if not 0 <= flow <= _FLOW_MAX:
        raise OverflowError("getnameinfo(): flowinfo must be 0-1048575.")
    literal = _literal(text)
    if literal is None:
        raise _unknown(text)
    if port < 0:
        raise _kernel.gaierror(_kernel.EAI_SERVICE, "Servname not supported for ai_socktype")
    if literal[0] == AF_INET and len(address) != 2:
        raise OSError("IPv4 sockaddr must be 2 tuple")
    if flags & ~_NAMEINFO_FLAGS:
        raise _kernel.gaierror(_kernel.EAI_BADFLAGS, "Bad value for ai_flags")
    name = None if flags & _kernel.NI_NUMERICHOST else reverse(host, text)
    if name is None:
        if flags & _kernel.NI_NAMEREQD:
            raise _unknown(text)
        name = text
    service = str(port & 0xFFFF)
    if not flags & _kernel.NI_NUMERICSERV:
        with suppress(OSError):
            service = services.service_at(port & 0xFFFF, "udp" if flags & _kernel.NI_DGRAM else "tcp")
    return name, service


def zone_of(host: Host, name: str) -> int:
    """The interface that the zone behind "%" names: 0 without one. Raises socket.gaierror if there is no such.

    A name is for link-local addresses only, a number for all, as glibc has it.
    """
    address, percent, zone = name.partition("%")
    literal = _literal(address) if percent else None
    if literal is None:
        return 0
    if literal[0] == AF_INET6:
        raw = _kernel.inet_pton(AF_INET6, literal[1])
        if raw[:2] in _LINK_GROUPS or is_link_local(raw):
            for iface in host.netns.ip.interfaces.values():
                if iface.name == zone:
                    return iface.index
        if zone.isascii() and zone.isdigit() and int(zone) <= _U32:
            return int(zone)
    raise _unknown(name)


def _literal(name: str) -> tuple[int, str] | None:
    for family in (AF_INET, AF_INET6):
        try:
            return family, _kernel.inet_ntop(family, _kernel.inet_pton(family, name.split("%", 1)[0]))
        except (OSError, ValueError):
            continue
    try:  # the short forms, 127.1 and such
        return AF_INET, _kernel.inet_ntoa(_kernel.inet_aton(name))
    except (OSError, ValueError):
        return None


def _named(host: Host, name: str) -> list[tuple[int, str]]:
    if name in ("localhost", "ip6-localhost", "localhost.localdomain"):
        return [(AF_INET, "127.0.0.1"), (AF_INET6, "::1")]
    texts = host.names().get(name, ())
    literals = [literal for literal in map(_literal, texts) if literal]
    return sorted(literals, key=lambda each: each[0])


def _unknown(name: str) -> _kernel.gaierror:
    error = _kernel.gaierror(_kernel.EAI_NONAME, "Name or service not known")
    if name:
        error.add_note(f"{name!r} is no address and no name this Stack knows; see Stack.hosts")
    return error
