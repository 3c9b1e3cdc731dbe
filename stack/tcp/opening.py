"""A short way through the handshake's end: the connection is made while its last ACK is under way.

Theory of operation
-------------------
What a `Request` keeps is little, so that a flood of SYNs costs little; the connection is made when the ACK comes, and
then the peer waits for it: its question follows at once. But between our SYN|ACK and that ACK passes a round trip, in
which there is often nothing to do. So once the SYN|ACK has left, an `Opening` makes the connection, as long as few
others are half open: a flood gains nothing by it. It is in no table, holds nothing, and nobody sees it. Beside it the
headers of the SYN are remembered as those of a flow (`stack.tcp.express`): if the ACK comes with the same ones and is
as it should be, it is taken in `answered`, with the result that `Request.segment` and `Listener.completed` have.

What the connection was made of may change until then: routes and addresses with the IP layer's generation, which the
flow is compared with; what the listener was told and the configuration are compared here. If anything has, or the ACK
is not like that, the connection is made anew by the long way.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.tcp.options import every_field
from stack.tcp.seqnum import HALF, MASK
from stack.tcp.states import STATES
from stack.tcp.transitions import TcpState

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.tcp.connection import Connection
    from stack.tcp.express import Express, Flow
    from stack.tcp.request import Request

#: No connection is made in advance while more than this are half open.
FEW: Final = 8
#: What of TcpConfig a new connection depends on.
_CONFIGURED: Final = attrgetter(
    *("timestamps", "window_scaling", "sack", "ecn", "rcvbuf", "rcvbuf_max", "sndbuf", "initial_window", "congestion"),
    "mtu_probing",
)


class Opening:
    """Of one half-open connection."""

    __slots__ = ("_configured", "_express", "_place", "_request", "_seen", "_told", "connection")

    def __init__(
        self, express: Express, request: Request, iface: Interface, head: bytes, word: int, place: bytes
    ) -> None:
        """`iface` to `place`: how its SYN came in, see `Flow`."""
        self._express = express
        self._request = request
        self._seen = iface, head, word
        self._place = place
        self._told: tuple[Any, ...] = ()
        self._configured: tuple[Any, ...] = ()
        self.connection: Connection | None = None  #: made in advance

    def prepare(self) -> None:
        """The SYN|ACK has left."""
        request = self._request
        layer = request.layer
        listener = request.listener
        options = listener.options
        if (
            request.opening is not self
            or len(layer.syn_queue) > FEW
            or request.retransmitted
            or request.ecn
            or request.ip_options
            or options.defer_accept
            or options.keys is not None
            or options.tx_delay
            or options.timed
        ):
            request.opening = None
            return
        try:
            route = layer.ip.route(request.key[0], src=request.key[1], mark=options.mark)
        except NetError:
            request.opening = None
            return
        connection = request.prepared(route)
        if connection.sender.pacer is not None:
            request.opening = None
            return
        self._told = every_field(options)
        self._configured = _CONFIGURED(layer.config)
        self.connection = connection
        iface, head, word = self._seen
        self._express.expect(iface, head, word, self._place, self, connection)

    def close(self) -> None:
        """The request is no more, or its connection is made another way."""
        self._request.opening = None
        if self.connection is not None:
            self._express.forget(self._place, self)

    def answered(self, flow: Flow, seq: int, ack: int, window: int, value: int, echo: int) -> bool:
        """The bare ACK that ends the handshake: `Request.segment`, `Listener.completed`. False: nothing was done."""
        request = self._request
        connection = self.connection
        listener = request.listener
        layer = request.layer
        options = listener.options
        if (
            connection is None
            or seq != (request.irs + 1) & MASK
            or ack != (request.iss + 1) & MASK
            or request.level
            or request.retransmitted
            or listener.full
            or every_field(options) != self._told
            or _CONFIGURED(layer.config) != self._configured
        ):
            return False
        now = connection.scheduler.now
        receiver = connection.receiver
        if request.stamped:
            if (value - request.ts_recent) & MASK >= HALF:
                return False
            if echo and (echo - request.first_stamp) & MASK > (request.last_stamp - request.first_stamp) & MASK:
                return False
            receiver.ts_recent = value
            receiver.ts_recent_at = now
        flow.opening = request.opening = None
        layer.syn_queue.drop(request)
        connection.bound = listener.bound.retain()
        layer.connections[request.key] = connection
        layer.stats.passive_opens += 1
        connection.came = flow.iface.index, flow.word >> 8, flow.head[15]
        connection.last_heard = receiver.mark_at = now
        receiver.segments += 1
        connection.state = TcpState.SYN_RECEIVED
        connection.ladder = STATES[TcpState.SYN_RECEIVED]
        sender = connection.sender
        sender.handshake_done(window, shift=sender.shift)
        connection.enter(TcpState.ESTABLISHED)
        layer.prove(request.key[0])
        listener.ready_to_accept(connection)
        return True
