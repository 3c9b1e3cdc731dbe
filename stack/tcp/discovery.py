"""IP_MTU_DISCOVER and IPV6_MTU_DISCOVER of TCP: who may cut its segments, and what "packet too big" does to it.

As Linux: over IPv4 only IP_PMTUDISC_WANT and _DO forbid routers to cut (PROBE does not, other than with UDP). An ICMP
"fragmentation needed" always shortens the segments that follow, because the path's MTU is the whole node's knowledge;
what was too long is sent again at once only where discovery is on, else the retransmission timer sees to it. Over IPv6
nobody on the way cuts, and INTERFACE and OMIT do not believe ICMP at all (they are against forged ones).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.tcp.options import TcpOptions

# Linux <linux/in.h>, IP_PMTUDISC_*; those of <linux/in6.h> are numbered alike.
DONT: Final = 0
WANT: Final = 1
DO: Final = 2
PROBE: Final = 3
INTERFACE: Final = 4
OMIT: Final = 5


def dont_fragment(options: TcpOptions, remote: bytes) -> bool:
    """Whether segments to `remote` must not be cut (Linux ip_dont_fragment)."""
    return len(remote) != 4 or options.discover in (WANT, DO)


def believes_icmp(options: TcpOptions, remote: bytes) -> bool:
    """Whether "packet too big" is listened to at all."""
    return len(remote) == 4 or options.discover6 < INTERFACE


def resends(options: TcpOptions, remote: bytes) -> bool:
    """Whether what was too big goes out again at once, in smaller segments."""
    return len(remote) != 4 or options.discover in (WANT, DO, PROBE)
