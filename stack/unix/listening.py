"""Listening, connecting and pairs (rows UNX-06..UNX-08, UNX-16, CTRL-07, CTRL-08).

A connection is complete when `connect` returns: its other end, the *embryo*, waits in the listener's backlog, and takes
bytes, until somebody accepts it. The backlog holds one more than was asked for.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from stack.errors import NetError
from stack.unix.endpoint import SHUT_RECEIVING, PeerIdentity, State

if TYPE_CHECKING:
    from stack.credentials import Credentials
    from stack.unix.endpoint import Endpoint

E = TypeVar("E", bound="Endpoint")


def listen(endpoint: Endpoint, backlog: int, who: Credentials) -> None:
    """Raises NetError(EINVAL) without a name, or when connected. Again: another backlog, and another identity."""
    if not endpoint.address or endpoint.state is State.ESTABLISHED:
        raise NetError(errno.EINVAL)
    endpoint.queue_limit = min(backlog, endpoint.space.somaxconn)
    endpoint.state = State.LISTEN
    endpoint.peer_identity = PeerIdentity.of(who)
    if endpoint.embryos is None:
        endpoint.embryos = deque()
    endpoint.changed()


def connect(endpoint: Endpoint, address: bytes, who: Credentials) -> Endpoint | None:
    """None: connected. Otherwise the listener whose backlog is full: try again when it has changed.

    Raises NetError: what `Endpoint.find` raises, ECONNREFUSED if nobody listens, EISCONN, EINVAL on a listener.
    """
    endpoint.autobind_if_telling()
    listener = endpoint.find(address, who)
    if listener.state is not State.LISTEN or listener.shut & SHUT_RECEIVING:
        raise NetError(errno.ECONNREFUSED)
    if listener.full:
        return listener
    if endpoint.state is not State.CLOSE:
        raise NetError(errno.EISCONN if endpoint.state is State.ESTABLISHED else errno.EINVAL)
    embryo = listener.sibling()
    embryo.embryo = True
    embryo.address = listener.address
    embryo.passing = listener.passing
    _join(endpoint, embryo)
    embryo.peer_identity = PeerIdentity.of(who)
    endpoint.peer_identity = listener.peer_identity
    assert listener.embryos is not None
    listener.embryos.append(embryo)
    listener.changed()
    endpoint.changed()
    return None


def accept(listener: E) -> E | None:
    """The next connection, or None. Raises NetError(EINVAL) unless listening, or the pending error."""
    if listener.state is not State.LISTEN:
        raise NetError(errno.EINVAL)
    embryos = listener.embryos
    if not embryos:
        return None
    child = embryos.popleft()
    child.embryo = False
    listener.changed()
    assert isinstance(child, type(listener))
    return child


def pair(one: Endpoint, other: Endpoint, who: Credentials) -> None:
    """socketpair: both ends are of `who`."""
    _join(one, other)
    one.peer_identity = other.peer_identity = PeerIdentity.of(who)


def _join(one: Endpoint, other: Endpoint) -> None:
    one.peer, other.peer = other, one
    one.state = other.state = State.ESTABLISHED
