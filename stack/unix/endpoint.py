"""`Endpoint`: what all Unix sockets are below the socket room: `struct unix_sock`, sans-IO.

An endpoint has a name, a peer, a queue of received packets and the account of what it has sent and nobody has read yet.
There is no network in between: to send is to put a packet into the peer's queue, which is charged to the sender's
buffer until it is read (`stack.unix.truesize`). Nothing waits; who would have to gets None.

Readiness is pushed as everywhere in the stack: `on_event` says that it may have changed. Beyond it, `watchers` hear of
every change of an endpoint: threads that wait for room at somebody else's.
"""

from __future__ import annotations

import errno
import stat
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Self

from stack.errors import NetError
from stack.unix.address import UNNAMED, is_abstract
from stack.unix.control import Identity, Packet
from stack.unix.inode import MAY_WRITE
from stack.unix.truesize import record_truesize, stream_truesize

if TYPE_CHECKING:
    from stack.credentials import Credentials
    from stack.unix.control import Rights
    from stack.unix.inode import Inode
    from stack.unix.names import AbstractNames
    from stack.unix.space import UnixSpace

#: net.core.wmem_default: the send buffer, bytes of memory.
SNDBUF: Final = 212992
#: Bits of `shut`, as Linux's RCV_SHUTDOWN and SEND_SHUTDOWN.
SHUT_RECEIVING: Final = 1
SHUT_SENDING: Final = 2
SHUT_BOTH: Final = 3

#: Bits of `passing`: what a receiver wants to be told with each message, and whether it takes files.
PASS_IDENTITY: Final = 1
PASS_PIDFD: Final = 2
PASS_RIGHTS: Final = 4
TELLS: Final = PASS_IDENTITY | PASS_PIDFD


class State(Enum):
    """Linux keeps TCP's names for these."""

    CLOSE = "close"
    ESTABLISHED = "established"
    LISTEN = "listen"


class PeerIdentity(NamedTuple):
    """SO_PEERCRED and SO_PEERGROUPS: who connected, or listened (row CTRL-08)."""

    identity: Identity
    groups: tuple[int, ...]

    @classmethod
    def of(cls, who: Credentials) -> PeerIdentity:
        return cls(Identity(who.pid, who.uid, who.gid), who.groups)


def _nobody() -> None:
    """Nobody wants to know."""


class Endpoint:
    """Base of `StreamEndpoint`, `SeqpacketEndpoint` and `DatagramEndpoint`. Methods raise NetError."""

    kind: ClassVar[int]  #: SOCK_STREAM and so on; abstract names are apart by it
    streaming: ClassVar[bool] = False
    connected_kind: ClassVar[bool] = True  #: peers belong together, to their ends

    def __init__(self, space: UnixSpace, names: AbstractNames, sndbuf: int = SNDBUF) -> None:
        self.space = space
        self.names = names  #: abstract names of the socket's network namespace
        self.address = UNNAMED
        self._inode: Inode | None = None
        self._owns_name = False
        self.state = State.CLOSE
        self.peer: Endpoint | None = None
        self.dead = False
        self.shut = 0
        self.error = 0  #: pending errno
        self.queue: deque[Packet] = deque()
        self.queue_limit = space.max_dgram_qlen  #: packets beyond which senders wait; a listener's backlog
        self.sndbuf = sndbuf  #: bytes of memory, as Linux counts it
        self.charged = 0  #: what is sent and not read yet
        self.peek_offset = -1  #: SO_PEEK_OFF
        self.passing = PASS_RIGHTS
        self.embryo = False  #: connected, not accepted yet
        self.embryos: deque[Endpoint] | None = None  #: of a listener
        self.peer_identity: PeerIdentity | None = None
        self.on_event: Callable[[], None] = _nobody
        self.watchers: dict[Callable[[], None], None] = {}
        #: Who sends through this one now; and how many holders its open socket has.
        self.identify: Callable[[], Identity] | None = None
        self.holders: Callable[[], int] = int

    # -- readiness ----------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Readiness may have changed, here."""
        self.on_event()
        if self.watchers:
            for watcher in tuple(self.watchers):
                watcher()

    @property
    def writable(self) -> bool:
        """Linux's rule: three quarters of the buffer are free (it counts from one)."""
        return (self.charged + 1) * 4 <= self.sndbuf

    @property
    def full(self) -> bool:
        """No more fits, for those who have to wait: connectors, unrelated senders of datagrams."""
        return len(self.queue if self.embryos is None else self.embryos) > self.queue_limit

    def discharge(self, packet: Packet) -> None:
        """A packet this endpoint sent is read, or thrown away."""
        self.charged -= packet.truesize
        if (self.charged + 1) * 4 <= self.sndbuf:
            self.on_event()
        if self.watchers:
            for watcher in tuple(self.watchers):
                watcher()

    def queues(self) -> Iterable[deque[Packet]]:
        """Those in which files wait for whoever has this socket."""
        yield self.queue
        for embryo in self.embryos or ():
            yield embryo.queue

    def sibling(self) -> Self:
        """A fresh one of the same kind and namespace, with the default buffer."""
        return type(self)(self.space, self.names)

    def take_error(self) -> int:
        error, self.error = self.error, 0
        return error

    # -- names --------------------------------------------------------------------------------------------------------

    def bind(self, address: bytes, who: Credentials) -> None:
        """Take a name; the empty one is a free abstract one (rows UNX-02..UNX-04).

        Raises NetError: EADDRINUSE, EINVAL if it has another one already, ENOSPC, and what the tree of paths answers.
        """
        if not address:
            self.autobind()
        elif is_abstract(address):
            if self.address:
                raise NetError(errno.EINVAL)
            self.names.bind(self.kind, address, self)
            self.address, self._owns_name = address, True
        else:
            self._bind_path(address, who)

    def _bind_path(self, path: bytes, who: Credentials) -> None:
        tree = self.space.tree
        try:
            inode = tree.make(path, stat.S_IFSOCK | 0o777, who)
        except NetError as error:
            if error.errno == errno.EEXIST:
                raise NetError(errno.EADDRINUSE) from None
            raise
        if self.address:  # Linux, too, makes the node before it looks
            tree.remove(path, who)
            raise NetError(errno.EINVAL)
        inode.endpoint = self
        self._inode = inode
        self.address = path

    def autobind(self) -> None:
        """Five hexadecimal digits, unless it has a name."""
        if not self.address:
            self.address = self.names.autobind(self.kind, self)
            self._owns_name = True

    @property
    def tells(self) -> bool:
        """Its user wants to be told who sends."""
        return bool(self.passing & TELLS)

    def autobind_if_telling(self) -> None:
        """Who wants identities is to have an address of its own (row UDG-08)."""
        if self.passing & TELLS:
            self.autobind()

    def find(self, address: bytes, who: Credentials) -> Endpoint:
        """Who has this name, among those of our type. Raises NetError: ECONNREFUSED, EPROTOTYPE, EINVAL, EACCES...

        As on Linux the type is a part of an abstract name, while a path is of one socket, whatever its type (UNX-07).
        """
        if not address:
            raise NetError(errno.EINVAL)
        found: Endpoint | None
        if is_abstract(address):
            found = self.names.find(self.kind, address)
        else:
            inode = self.space.tree.find(address, who)
            if not inode.permits(who, MAY_WRITE):
                raise NetError(errno.EACCES)
            found = inode.endpoint
            if found is not None and found.kind != self.kind:
                raise NetError(errno.EPROTOTYPE)
        if found is None:
            raise NetError(errno.ECONNREFUSED)
        return found

    # -- sending ------------------------------------------------------------------------------------------------------

    def deliver(
        self, data: bytes | memoryview, receiver: Endpoint, identity: Identity | None, rights: Rights | None
    ) -> Packet:
        """Queue one packet at `receiver`'s, which has room. Raises NetError(EPERM) if it takes no files."""
        if rights is not None and not receiver.passing & PASS_RIGHTS:
            raise NetError(errno.EPERM)
        if identity is None and ((self.passing | receiver.passing) & TELLS or receiver.embryo):
            identity = None if self.identify is None else self.identify()
        truesize = (stream_truesize if self.streaming else record_truesize)(len(data))
        packet = Packet(data, truesize, self, identity, rights)
        self.charged += truesize
        if rights is not None:
            self.space.in_flight.depart(rights)
        receiver.queue.append(packet)
        receiver.changed()
        return packet

    def discard(self, packet: Packet) -> None:
        """A packet of our queue was taken out unread."""
        packet.source.discharge(packet)
        rights, packet.rights = packet.rights, None
        if rights is not None:
            self.space.in_flight.arrive(rights)
            rights.close()

    def purge(self) -> None:
        """Throw away what is queued."""
        queue = self.queue
        while queue:
            self.discard(queue.popleft())

    def take_rights(self, packet: Packet, *, peek: bool) -> Rights | None:
        """The files of a packet that is being received: now the receiver's, or copies."""
        rights = packet.rights
        if rights is None:
            return None
        if peek:
            return rights.copy()
        packet.rights = None
        self.space.in_flight.arrive(rights)
        return rights

    # -- ending -------------------------------------------------------------------------------------------------------

    def shutdown(self, bits: int) -> None:
        """In every state (row UNX-13). The ends of a connection see each other's."""
        self.shut |= bits
        peer = self.peer
        if peer is not None and self.connected_kind:
            peer.shut |= (SHUT_SENDING if bits & SHUT_RECEIVING else 0) | (SHUT_RECEIVING if bits & SHUT_SENDING else 0)
            peer.changed()
        self.changed()

    def has_unread(self) -> bool:
        """Whether the peer is to learn that something was lost. Linux passes over an empty first packet, whether that
        is the mark of an urgent byte or an empty record.
        """
        queue = self.queue
        return len(queue) > 1 or (bool(queue) and queue[0].left > 0)

    def close(self) -> None:
        """Let go of the name, tell the peer, throw away what is queued. Idempotent."""
        if self.dead:
            return
        self.dead = True
        self.shut = SHUT_BOTH
        self.state = State.CLOSE
        self._release_name()
        peer, self.peer = self.peer, None
        if peer is not None:
            self.part(peer)
        self.drop_queue()
        self.changed()
        self.watchers.clear()
        self.on_event = _nobody
        self.space.let_go()

    def part(self, peer: Endpoint) -> None:
        """We are closed: `peer` has nobody to talk to any more (rows UNX-09, UNX-10)."""
        peer.shut = SHUT_BOTH
        if self.embryo or self.has_unread():
            peer.error = errno.ECONNRESET
        peer.changed()

    def drop_queue(self) -> None:
        embryos, self.embryos = self.embryos, None
        for embryo in embryos or ():
            embryo.close()
        self.purge()

    def _release_name(self) -> None:
        if self._inode is not None:
            self._inode.endpoint = None
            self._inode = None
        elif self._owns_name:
            self.names.release(self.kind, self.address)
            self._owns_name = False
