"""Files on their way through Unix sockets, and those that can never arrive (rows CTRL-02, SEC-09).

Theory of operation
-------------------
A socket may be sent through a socket. If its sender then closes it, the message is all that keeps it open; and if that
message is in the socket's own queue, or in that of another socket in the same position, nobody can ever receive it.
Counting holders does not free such a circle, so `collect` looks for it whenever a Unix socket is closed while others
are on their way:

* a *candidate* is a socket all of whose holders are messages;
* a candidate lives if one of those messages is in the queue of a socket that is no candidate, or of one that lives;
* the rest is garbage: the files in its queues are closed.

Embryos, connections nobody has accepted yet, belong to their listener: their queues count as its own.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.unix.control import Rights
    from stack.unix.endpoint import Endpoint


class InFlight:
    """All files in messages of one Stack's Unix sockets."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  #: RLIMIT_NOFILE: files a user without privileges may have on their way
        self._by_user: dict[int, int] = {}
        self._endpoints: dict[Endpoint, int] = {}
        self._rights: dict[Rights, None] = {}

    def of_user(self, uid: int) -> int:
        """Files on their way."""
        return self._by_user.get(uid, 0)

    def copies(self, endpoint: Endpoint) -> int:
        """Messages that hold this socket."""
        return self._endpoints.get(endpoint, 0)

    def check(self, uid: int, *, privileged: bool) -> None:
        """Raises NetError(ETOOMANYREFS) once there are more than the limit; Linux looks before it counts."""
        if not privileged and self.of_user(uid) > self.limit:
            raise NetError(errno.ETOOMANYREFS)

    def depart(self, rights: Rights) -> None:
        """A message is queued."""
        self._rights[rights] = None
        self._by_user[rights.uid] = self.of_user(rights.uid) + len(rights.files)
        for file in rights.files:
            endpoint = file.endpoint
            if endpoint is not None:
                self._endpoints[endpoint] = self.copies(endpoint) + 1

    def arrive(self, rights: Rights) -> None:
        """A message is taken out of its queue."""
        if rights not in self._rights:
            return  # the Stack is closed
        del self._rights[rights]
        left = self._by_user[rights.uid] - len(rights.files)
        if left:
            self._by_user[rights.uid] = left
        else:
            del self._by_user[rights.uid]
        for file in rights.files:
            endpoint = file.endpoint
            if endpoint is None:
                continue
            if self._endpoints[endpoint] == 1:
                del self._endpoints[endpoint]
            else:
                self._endpoints[endpoint] -= 1

    @property
    def has_sockets(self) -> bool:
        return bool(self._endpoints)

    def collect(self) -> int:
        """Close what cannot arrive any more; answers how many sockets that concerned."""
        candidates = {each for each, count in self._endpoints.items() if each.holders() == count}
        if not candidates:
            return 0
        carried = {each: self._carried(each, candidates) for each in candidates}
        inside: dict[Endpoint, int] = {}
        for found in carried.values():
            for each in found:
                inside[each] = inside.get(each, 0) + 1
        alive = [each for each in candidates if inside.get(each, 0) < self._endpoints[each]]
        while alive:
            each = alive.pop()
            if each in candidates:
                candidates.remove(each)
                alive += carried[each]
        doomed: list[Rights] = []
        for each in candidates:
            for queue in each.queues():
                for packet in queue:
                    if packet.rights is not None:
                        doomed.append(packet.rights)
                        self.arrive(packet.rights)
                        packet.rights = None
        for rights in doomed:
            rights.close()
        return len(candidates)

    @staticmethod
    def _carried(endpoint: Endpoint, candidates: set[Endpoint]) -> list[Endpoint]:
        """The candidates that messages in the queues of `endpoint` hold, once for each message."""
        return [
            file.endpoint
            for queue in endpoint.queues()
            for packet in queue
            if packet.rights is not None
            for file in packet.rights.files
            if file.endpoint in candidates and file.endpoint is not None
        ]

    def close(self) -> None:
        """The Stack is closed: nothing arrives any more."""
        doomed = tuple(self._rights)
        self._rights.clear()
        self._by_user.clear()
        self._endpoints.clear()
        for rights in doomed:
            rights.close()
