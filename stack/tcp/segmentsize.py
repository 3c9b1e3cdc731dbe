"""How long segments may be: what peer, path, user and device allow (RFC 9293 section 3.7.1, RFC 6691)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb

MSS_DEFAULT_V4: Final = 536  # bytes; RFC 9293 section 3.7.1, when the peer sent no MSS option
MSS_DEFAULT_V6: Final = 1220  # bytes; the same
MSS_MINIMUM: Final = 88  # bytes; Linux TCP_MIN_MSS: a peer's smaller MSS would cost more headers than data
TIMESTAMPS_LENGTH: Final = 12  # bytes of every header once agreed on


def largest_mtu(connection: Pcb) -> int:
    """Length of the longest packet that peer, path and user may allow."""
    options = connection.options
    most = min(connection.peer_mss, options.maxseg) if options.maxseg else connection.peer_mss
    return min(most + connection.ip_header + 20, connection.path_mtu)


def resegment(connection: Pcb) -> None:
    """MSS and superframe size anew, from the peer's MSS, the path's MTU and TCP_MAXSEG (RFC 6691)."""
    most = largest_mtu(connection)
    prober = connection.sender.prober
    if prober is not None:
        prober.high = min(prober.high, most)
        most = min(prober.low, most)
    most -= connection.overhead
    mss = max(most, MSS_MINIMUM - TIMESTAMPS_LENGTH)
    if connection.ip_options:
        connection.sender.set_mss(mss, mss)  # no device repeats them
        return
    _, largest = connection.layer.ip.offloads_for(connection.route)
    connection.sender.set_mss(mss, largest - 20 - (TIMESTAMPS_LENGTH if connection.timestamps else 0))
