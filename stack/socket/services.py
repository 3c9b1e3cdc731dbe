"""Names of services and protocols, the usual ones without the host's /etc/services and /etc/protocols.

A minimal system has neither file, and what a Stack answers should not depend on it. Other names are looked up there.
"""

from __future__ import annotations

import socket as _kernel
from typing import Final

#: Ports by name, IANA's register; "tcp", "udp" or both.
_BOTH: Final = "tcp udp"
_SERVICES: Final[dict[str, tuple[int, str]]] = {
    "echo": (7, _BOTH),
    "discard": (9, _BOTH),
    "daytime": (13, _BOTH),
    "chargen": (19, _BOTH),
    "ftp-data": (20, "tcp"),
    "ftp": (21, "tcp"),
    "ssh": (22, "tcp"),
    "telnet": (23, "tcp"),
    "smtp": (25, "tcp"),
    "time": (37, _BOTH),
    "whois": (43, "tcp"),
    "domain": (53, _BOTH),
    "bootps": (67, "udp"),
    "bootpc": (68, "udp"),
    "tftp": (69, "udp"),
    "gopher": (70, "tcp"),
    "finger": (79, "tcp"),
    "http": (80, "tcp"),
    "kerberos": (88, _BOTH),
    "pop3": (110, "tcp"),
    "sunrpc": (111, _BOTH),
    "auth": (113, "tcp"),
    "nntp": (119, "tcp"),
    "ntp": (123, "udp"),
    "imap2": (143, "tcp"),
    "snmp": (161, _BOTH),
    "snmp-trap": (162, _BOTH),
    "bgp": (179, "tcp"),
    "irc": (194, _BOTH),
    "ldap": (389, _BOTH),
    "https": (443, _BOTH),
    "submissions": (465, "tcp"),
    "syslog": (514, "udp"),
    "submission": (587, "tcp"),
    "ldaps": (636, _BOTH),
    "domain-s": (853, _BOTH),
    "rsync": (873, "tcp"),
    "ftps": (990, "tcp"),
    "imaps": (993, "tcp"),
    "pop3s": (995, "tcp"),
    "socks": (1080, "tcp"),
    "mqtt": (1883, "tcp"),
    "nfs": (2049, _BOTH),
    "mysql": (3306, "tcp"),
    "ms-wbt-server": (3389, "tcp"),
    "sip": (5060, _BOTH),
    "xmpp-client": (5222, "tcp"),
    "mdns": (5353, "udp"),
    "postgresql": (5432, "tcp"),
    "amqp": (5672, _BOTH),
    "http-alt": (8080, _BOTH),
}
_ALIASES: Final = {"www": "http", "mail": "smtp", "imap": "imap2", "pop-3": "pop3", "nameserver": "domain"}
_BY_PORT: Final = {(port, way): name for name, (port, ways) in _SERVICES.items() for way in ways.split()}
#: Numbers by name, IANA's register.
_PROTOCOLS: Final = {
    "ip": 0,
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "tcp": 6,
    "egp": 8,
    "udp": 17,
    "ipv6": 41,
    "ipv6-route": 43,
    "ipv6-frag": 44,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "ipv6-nonxt": 59,
    "ipv6-opts": 60,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udplite": 136,
}


def port_of(service: str, protocol: str | None = None) -> int:
    """As `socket.getservbyname`. Raises OSError."""
    port, ways = _SERVICES.get(_ALIASES.get(service, service), (0, ""))
    if port and (protocol is None or protocol in ways.split()):
        return port
    return _by_name(service) if protocol is None else _by_name(service, protocol)


def service_at(port: int, protocol: str | None = None) -> str:
    """As `socket.getservbyport`. Raises OSError, OverflowError."""
    if not 0 <= port <= 0xFFFF:
        raise OverflowError("getservbyport: port must be 0-65535.")
    for way in ("tcp", "udp") if protocol is None else (protocol,):
        name = _BY_PORT.get((port, way))
        if name is not None:
            return name
    return _by_port(port) if protocol is None else _by_port(port, protocol)


def protocol(name: str) -> int:
    """As `socket.getprotobyname`. Raises OSError."""
    number = _PROTOCOLS.get(name)
    return _protocol(name) if number is None else number


_by_name: Final = _kernel.getservbyname
_by_port: Final = _kernel.getservbyport
_protocol: Final = _kernel.getprotobyname
