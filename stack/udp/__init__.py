"""UDP (RFC 768, RFC 8085 as far as a host goes; rows UDP-01..17).

`UdpLayer` is the protocol of one network namespace: demultiplexing, delivery, errors. `UdpEndpoint` is one socket's
half of it: what it is bound and connected to, how it sends, what waits for it.
"""

from __future__ import annotations

from stack.udp.datagram import OVERHEAD, Datagram
from stack.udp.endpoint import MAX_PAYLOAD4, MAX_PAYLOAD6, UdpEndpoint
from stack.udp.layer import UdpLayer
from stack.udp.sending import MAX_SEGMENTS, PLAIN, Discover, SendOptions, Settings

__all__ = [
    "MAX_PAYLOAD4",
    "MAX_PAYLOAD6",
    "MAX_SEGMENTS",
    "OVERHEAD",
    "PLAIN",
    "Datagram",
    "Discover",
    "SendOptions",
    "Settings",
    "UdpEndpoint",
    "UdpLayer",
]
