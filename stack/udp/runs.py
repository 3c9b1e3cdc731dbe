"""Datagrams that leave together: one superframe instead, where a device cuts it and nobody in between can tell.

What sendmmsg sends to one peer in one call is often of one size. A device with USO (a card whose driver took it, our
own loopback) gets such a run as UDP_SEGMENT would have made it: the same datagrams, one walk through the stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.ip.route import RouteKind
from stack.udp.datagram import MAX_COALESCED, MAX_PIECES
from stack.udp.sending import SendOptions
from stack.wire.udp import HEADER_LENGTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.udp.endpoint import UdpEndpoint

_ONE_RECEIVER: Final = (RouteKind.UNICAST, RouteKind.LOCAL)


def longest_run(endpoint: UdpEndpoint, size: int, dst: tuple[bytes, int] | None) -> int:
    """How many datagrams of `size` bytes to `dst` (None: the peer) may leave as one superframe; 0: they may not."""
    remote = dst or endpoint.remote
    if remote is None or endpoint.segment or endpoint.corked or endpoint.closed:
        return 0
    settings = endpoint.settings(remote[0])
    if settings.options or settings.extension is not None or settings.longest:
        return 0
    if endpoint.no_checksum or endpoint.no_checksum6:
        return 0
    try:
        route = endpoint.find_route(remote[0])
    except NetError:
        return 0
    iface = route.iface
    header = HEADER_LENGTH + (20 if len(remote[0]) == 4 else 40)
    if not iface.uso or iface.taps or route.kind not in _ONE_RECEIVER or size + header > route.mtu:
        return 0
    return min(MAX_PIECES, MAX_COALESCED // size) if size else 0


def send_run(endpoint: UdpEndpoint, run: Sequence[bytes], dst: tuple[bytes, int] | None) -> None:
    """Send datagrams, at most `longest_run`, the last perhaps shorter. Raises NetError as `UdpEndpoint.send`."""
    endpoint.send(b"".join(run), dst, SendOptions(segment=len(run[0]), flow=0 if dst else endpoint.flow))
