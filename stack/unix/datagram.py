"""`DatagramEndpoint`: Unix datagrams (rows UDG-01..UDG-08).

A datagram socket is connected to whom it likes, and to be sent to by anybody: unless it is connected itself, then only
its peer may. A receiver's queue is short; the sender who is its peer is not bound by that, all others wait.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from stack.errors import NetError
from stack.unix.endpoint import SHUT_RECEIVING, SNDBUF, Endpoint, State
from stack.unix.records import SOCK_DGRAM, RecordEndpoint

if TYPE_CHECKING:
    from stack.credentials import Credentials
    from stack.unix.control import Identity, Rights
    from stack.unix.names import AbstractNames
    from stack.unix.space import UnixSpace


class DatagramEndpoint(RecordEndpoint):
    """SOCK_DGRAM."""

    kind: ClassVar[int] = SOCK_DGRAM
    connected_kind: ClassVar[bool] = False

    def __init__(self, space: UnixSpace, names: AbstractNames, sndbuf: int = SNDBUF) -> None:
        super().__init__(space, names, sndbuf)
        #: Whose peer this is: they are told when there is room here.
        self.senders: dict[DatagramEndpoint, None] = {}

    # -- peers --------------------------------------------------------------------------------------------------------

    def accepts(self, sender: Endpoint) -> bool:
        """May `sender` send here?"""
        return self.peer is None or self.peer is sender

    def connect(self, address: bytes, who: Credentials) -> None:
        """Raises NetError: what `find` raises, and EPERM if that one is connected to somebody else (UDG-01)."""
        self.autobind_if_telling()
        other = self.find(address, who)
        assert isinstance(other, DatagramEndpoint)
        if not other.accepts(self):
            raise NetError(errno.EPERM)
        self.join(other)

    def join(self, other: DatagramEndpoint) -> None:
        """`other` is the peer from now on."""
        self.state = other.state = State.ESTABLISHED
        self._leave(other)
        self.peer = other
        other.senders[self] = None
        self.changed()

    def disconnect(self) -> None:
        """connect(AF_UNSPEC)."""
        if self.peer is not None:
            self.state = State.CLOSE
        self._leave(None)
        self.changed()

    def _leave(self, successor: DatagramEndpoint | None) -> None:
        """What the old peer sent is lost, and it is told if it was connected to us."""
        old, self.peer = self.peer, None
        if old is None:
            return
        assert isinstance(old, DatagramEndpoint)
        if old is successor:
            return
        old.senders.pop(self, None)
        self._disconnected(old)
        if old.peer is None:
            old.state = State.CLOSE

    def _disconnected(self, old: DatagramEndpoint) -> None:
        if not self.queue:
            return
        self.purge()
        self.taken()
        if not old.dead and old.peer is self:
            old.error = errno.ECONNRESET
            old.changed()

    # -- transfer -----------------------------------------------------------------------------------------------------

    def send(
        self,
        data: bytes | memoryview,
        receiver: DatagramEndpoint | None = None,
        identity: Identity | None = None,
        rights: Rights | None = None,
    ) -> int | None:
        """To `receiver`, or the peer. The length, or None: no room here, or there (see `waits_for`).

        Raises NetError: ENOTCONN, ECONNREFUSED (the peer is closed), EPERM, EPIPE.
        """
        other = self.peer if receiver is None else receiver
        if other is None:
            raise NetError(errno.ENOTCONN)
        assert isinstance(other, DatagramEndpoint)
        if not other.accepts(self):
            raise NetError(errno.EPERM)
        if other.dead:
            self.disconnect()
            raise NetError(errno.ECONNREFUSED)
        if other.shut & SHUT_RECEIVING:
            raise NetError(errno.EPIPE)
        if self.waits_for(other):
            return None
        self.deliver(data, other, identity, rights)
        return len(data)

    def waits_for(self, other: Endpoint) -> bool:
        """The queue there is full, and not of our peer's that has us for its own."""
        return other is not self and other.peer is not self and other.full

    @property
    def writable(self) -> bool:
        """Also whether the peer takes one more."""
        if (self.charged + 1) * 4 > self.sndbuf:
            return False
        peer = self.peer
        return peer is None or peer.dead or peer.peer is self or not peer.full

    def taken(self) -> None:
        """There is room for one more: tell those who wait for it."""
        for watcher in tuple(self.watchers):
            watcher()
        for sender in self.senders:
            if sender is not self.peer:
                sender.on_event()

    # -- ending -------------------------------------------------------------------------------------------------------

    def part(self, peer: Endpoint) -> None:
        """Whoever is connected to us finds out when it sends; `peer` is free of us."""
        assert isinstance(peer, DatagramEndpoint)
        peer.senders.pop(self, None)

    def drop_queue(self) -> None:
        super().drop_queue()
        for sender in self.senders:
            sender.on_event()
