"""The eleven states of RFC 9293 section 3.3.2 and the moves between them that exist.

`Connection.enter` refuses a move that is not in `MOVES`: a wrong ladder shows up as an exception in a test, not as a
connection that behaves oddly. Every state may also go to CLOSED (reset, time-out, abort).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class TcpState(IntEnum):
    """Numbered as in Linux's `tcp_states.h`, because TCP_INFO and netlink show these numbers."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECEIVED = 3
    FIN_WAIT_1 = 4
    FIN_WAIT_2 = 5
    TIME_WAIT = 6
    CLOSED = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


class IllegalTransitionError(AssertionError):
    """A state ladder asked for a move RFC 9293 figure 5 does not have: a fault in this package, never the peer's."""


_T = TcpState

#: RFC 9293 figure 5. LISTEN is not a state of a `Connection` here: a `Listener` makes connections in SYN-RECEIVED.
MOVES: Final[dict[TcpState, frozenset[TcpState]]] = {
    _T.CLOSED: frozenset({_T.SYN_SENT, _T.SYN_RECEIVED}),
    _T.SYN_SENT: frozenset({_T.SYN_RECEIVED, _T.ESTABLISHED, _T.CLOSED}),
    _T.SYN_RECEIVED: frozenset({_T.ESTABLISHED, _T.FIN_WAIT_1, _T.CLOSED}),
    _T.ESTABLISHED: frozenset({_T.FIN_WAIT_1, _T.CLOSE_WAIT, _T.CLOSED}),
    _T.FIN_WAIT_1: frozenset({_T.FIN_WAIT_2, _T.CLOSING, _T.TIME_WAIT, _T.CLOSED}),
    _T.FIN_WAIT_2: frozenset({_T.TIME_WAIT, _T.CLOSED}),
    _T.CLOSE_WAIT: frozenset({_T.LAST_ACK, _T.CLOSED}),
    _T.CLOSING: frozenset({_T.TIME_WAIT, _T.CLOSED}),
    _T.LAST_ACK: frozenset({_T.CLOSED}),
    _T.TIME_WAIT: frozenset({_T.CLOSED}),
    _T.LISTEN: frozenset(),
}
