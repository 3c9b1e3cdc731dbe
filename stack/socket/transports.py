"""What getaddrinfo answers besides addresses: types, protocols and port numbers, for a service.

The interpreter's own function is asked about a numeric address. So what is wrong with a port, a flag or a combination
is said as CPython and the system's libc say it, and no name server hears of it. Only names of services are looked up
here, in `stack.socket.services`, because a minimal system has no /etc/services.
"""

from __future__ import annotations

import socket as _kernel
from contextlib import suppress
from typing import Any, Final

from stack.socket import services
from stack.socket.families import AF_INET

_ask: Final = vars(_kernel)["_socket"].getaddrinfo
_ANY_ADDRESS: Final = "127.0.0.1"  # whose answer is looked at for everything but the address
_OF_THE_HOST: Final = int(_kernel.AI_ADDRCONFIG)  # would ask for the host's interfaces
_WITH_SERVICES: Final = {6: "tcp", 17: "udp", 132: "sctp"}

#: (type, protocol, port)
Transport = tuple[Any, int, int]


def transports(port: str | bytes | int | None, kind: int, protocol: int, flags: int, *, named: bool) -> list[Transport]:
    """In the order getaddrinfo(3) gives them; `named` if it was asked about a host. Raises as `socket.getaddrinfo`."""
    flags = flags & ~_OF_THE_HOST | _kernel.AI_NUMERICHOST
    name = None if flags & _kernel.AI_NUMERICSERV else _name(port)

    def ask(service: str | bytes | int | None) -> list[Transport]:
        found = _ask(_ANY_ADDRESS if named else None, service, AF_INET, kind, protocol, flags)
        return [(each[1], each[2], each[4][1]) for each in found]

    if name is None:
        return ask(port)
    found = []
    for type_, number, _ in ask("0"):
        with suppress(OSError):
            if number in _WITH_SERVICES:
                found.append((type_, number, services.port_of(name, _WITH_SERVICES[number])))
    if not found:
        raise _kernel.gaierror(_kernel.EAI_SERVICE, "Servname not supported for ai_socktype")
    return found


def _name(port: object) -> str | None:
    """Of a service, if it is one."""
    text = port.decode("ascii", "replace") if isinstance(port, bytes) else port
    if not isinstance(text, str):
        return None
    text = text.partition("\0")[0].strip()  # as a C string
    return text if text and not text.lstrip("+-").isdecimal() else None
