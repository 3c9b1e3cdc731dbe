"""Who holds which local port: `PortTable`, one per transport, and `BoundPort`, a reference-counted hold (IF-06).

Theory of operation
-------------------
A `BoundPort` is one socket's claim on (address, port). Two claims on the same port get in each other's way if their
addresses overlap: equal, or one of them a wildcard that covers the other (:: covers IPv4 too unless v6only). Linux lets
overlapping claims coexist in two cases, and so do we (TCP-03, TCP-04, UDP-11):

* both have SO_REUSEADDR and neither is a listening socket;
* both have SO_REUSEPORT and the same owner.

Connections that came out of a listener `retain` its claim, so the port stays taken after the listener has closed, until
the last of them, TIME_WAIT included, has released it. Nobody listens then, and SO_REUSEADDR admits a new server.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Final

from stack.errors import NetError
from stack.scheduler import Randomness

#: net.ipv4.ip_local_port_range of Linux, both ends included (TCP-02).
EPHEMERAL_FIRST: Final = 32768
EPHEMERAL_LAST: Final = 60999
#: net.ipv4.ip_unprivileged_port_start.
UNPRIVILEGED_START: Final = 1024

ANY6: Final = bytes(16)


class BoundPort:
    """A hold on (``addr``, ``port``); all-zero ``addr`` means any. The last release frees the port."""

    __slots__ = ("_references", "_table", "addr", "ifindex", "listening", "owner", "port", "reuse_addr", "reuse_port",
                 "v6only")  # fmt: skip

    def __init__(
        self,
        table: PortTable,
        addr: bytes,
        port: int,
        *,
        reuse_addr: bool,
        reuse_port: bool,
        v6only: bool,
        listening: bool,
        owner: int,
        ifindex: int = 0,
    ) -> None:
        self._table = table
        self._references = 1
        self.addr = addr
        self.port = port
        self.reuse_addr = reuse_addr  #: live: SO_REUSEADDR set after bind takes effect (TCP-03)
        self.reuse_port = reuse_port
        self.v6only = v6only
        self.listening = listening
        self.ifindex = ifindex  #: live: SO_BINDTODEVICE; claims on different interfaces do not meet
        self.owner = owner  #: uid of the socket, for SO_REUSEPORT

    @property
    def released(self) -> bool:
        return self._references == 0

    def retain(self) -> BoundPort:
        """One more user of this claim (an accepted connection, a TIME_WAIT); pair with `release`."""
        assert self._references, "retain after the last release"
        self._references += 1
        return self

    def release(self) -> None:
        """One user less. Releasing more often than retained changes nothing."""
        if self._references:
            self._references -= 1
            if not self._references:
                self._table._forget(self)  # noqa: SLF001 - the table and its claims are one thing

    def listen(self) -> None:
        """Become a listening claim. Raises NetError(EADDRINUSE) if somebody overlapping listens already."""
        if not self.listening:
            self._table.check(self)
            self.listening = True

    def stop_listening(self) -> None:
        """The listener closed; its connections may still hold the claim."""
        self.listening = False

    def __repr__(self) -> str:
        return f"BoundPort({self.addr.hex()}, {self.port}, references={self._references})"


class PortTable:
    """The claims of one protocol in one network namespace."""

    def __init__(self, rng: Randomness, *, is_local: Callable[[bytes], bool] | None = None) -> None:
        self._rng = rng
        self._is_local = is_local
        self._claims: dict[int, list[BoundPort]] = {}
        self.ephemeral_first = EPHEMERAL_FIRST
        self.ephemeral_last = EPHEMERAL_LAST

    def bind(
        self,
        addr: bytes,
        port: int,
        *,
        reuse_addr: bool = False,
        reuse_port: bool = False,
        v6only: bool = False,
        listening: bool = False,
        owner: int = 0,
        privileged: bool = True,
        freebind: bool = False,
        ifindex: int = 0,
        span: tuple[int, int] | None = None,
    ) -> BoundPort:
        """Claim `port` (0: a free ephemeral one, of `span` if given) on `addr` (4 or 16 bytes, all zero: any).

        `privileged` is whether the caller may take ports below 1024; `freebind` admits addresses that are not ours.
        Raises NetError: EADDRNOTAVAIL (no such address here), EACCES (privileged port), EADDRINUSE (taken, or no
        ephemeral port left; connect() reports that as EADDRNOTAVAIL).
        """
        if not freebind and any(addr) and self._is_local is not None and not self._is_local(addr):
            raise NetError(errno.EADDRNOTAVAIL)
        if port and port < UNPRIVILEGED_START and not privileged:
            raise NetError(errno.EACCES)
        claim = BoundPort(
            self,
            addr,
            port,
            reuse_addr=reuse_addr,
            reuse_port=reuse_port,
            v6only=v6only,
            listening=listening,
            owner=owner,
            ifindex=ifindex,
        )
        if port:
            self.check(claim)
        else:
            claim.port = self._ephemeral(claim, span or (self.ephemeral_first, self.ephemeral_last))
        self._claims.setdefault(claim.port, []).append(claim)
        return claim

    def check(self, claim: BoundPort) -> None:
        """Raise NetError(EADDRINUSE) if `claim` cannot stand beside the others on its port."""
        for other in self._claims.get(claim.port, ()):
            if other is claim or not overlap(claim, other):
                continue
            if claim.reuse_port and other.reuse_port and claim.owner == other.owner:
                continue
            # Of several sharers the first may listen; the others, and later binders, then find it listening.
            if claim.reuse_addr and other.reuse_addr and not other.listening:
                continue
            raise NetError(errno.EADDRINUSE)

    def claims(self, port: int) -> tuple[BoundPort, ...]:
        """All claims on `port`, oldest first."""
        return tuple(self._claims.get(port, ()))

    def __iter__(self) -> Iterator[BoundPort]:
        for claims in self._claims.values():
            yield from claims

    def _ephemeral(self, claim: BoundPort, span: tuple[int, int]) -> int:
        """A port nobody claims, from a random start (RFC 6056 algorithm 1: random, then linear)."""
        first, last = span
        count = last - first + 1
        start = self._rng.randrange(0, count)
        for step in range(count):
            port = first + (start + step) % count
            if port not in self._claims:
                return port
        # Nothing wholly free: a port whose claims do not overlap ours will do.
        for step in range(count):
            port = first + (start + step) % count
            if not any(overlap(claim, other) for other in self._claims[port]):
                return port
        raise NetError(errno.EADDRINUSE, f"no free port in {first}..{last}")

    def _forget(self, claim: BoundPort) -> None:
        claims = self._claims[claim.port]
        claims.remove(claim)
        if not claims:
            del self._claims[claim.port]


def overlap(one: BoundPort, other: BoundPort) -> bool:
    """Could a packet be for either of the two addresses?"""
    if one.ifindex != other.ifindex and one.ifindex and other.ifindex:
        return False
    if len(one.addr) != len(other.addr):
        six = one if len(one.addr) == 16 else other
        return six.addr == ANY6 and not six.v6only  # only a dual-stack wildcard reaches into IPv4
    return one.addr == other.addr or not any(one.addr) or not any(other.addr)
