"""Which echo identifiers sockets hold: the registry behind ping sockets (Linux net/ipv4/ping.c).

An echo request that a ping socket sends carries the socket's identifier, and replies to it come back to that socket
alone: pinging needs no privilege. Identifiers are shared by IPv4 and IPv6. Several sockets may hold one if all allow
it (SO_REUSEADDR, which such sockets have set from the start); the youngest that fits gets the reply.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Protocol

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.ip.packet import IcmpError, IpPacket
    from stack.scheduler import Randomness

MAX_IDENTIFIER: Final = 0xFFFF
#: Groups whose members may ping, both ends included. Linux's default is nobody; systemd sets it to everybody.
EVERYBODY: Final = (0, 0x7FFFFFFF)


class Pinger(Protocol):
    """A ping socket's protocol half."""

    reuse: bool  #: SO_REUSEADDR

    def offer(self, packet: IpPacket) -> bool:
        """A reply with its identifier: True if it is for this socket."""
        ...

    def failed(self, error: IcmpError) -> bool:
        """An error about a request with its identifier: True if it is for this socket."""
        ...


class PingTable:
    """The identifiers in use in one namespace."""

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng
        self._held: dict[int, list[Pinger]] = {}
        self._last = -1  # drawn with the first one
        #: net.ipv4.ping_group_range: both ends included.
        self.group_range = EVERYBODY

    def may(self, groups: tuple[int, ...]) -> bool:
        """May a member of `groups` ping?"""
        low, high = self.group_range
        return any(low <= group <= high for group in groups)

    def hold(self, pinger: Pinger, ident: int) -> int:
        """Take `ident`, 0 for one nobody has; returns it. Raises NetError(EADDRINUSE)."""
        if not ident:
            ident = self._free()
        elif not all(each.reuse and pinger.reuse for each in self._held.get(ident, ())):
            raise NetError(errno.EADDRINUSE)
        self._held.setdefault(ident, []).insert(0, pinger)
        return ident

    def release(self, pinger: Pinger, ident: int) -> None:
        holders = self._held[ident]
        holders.remove(pinger)
        if not holders:
            del self._held[ident]

    def replied(self, packet: IpPacket, ident: int) -> bool:
        """An echo reply arrived: False if nobody waits for it."""
        return any(each.offer(packet) for each in tuple(self._held.get(ident, ())))

    def failed(self, error: IcmpError, ident: int) -> bool:
        """An echo request of ours failed: False if no socket sent it."""
        return any(each.failed(error) for each in tuple(self._held.get(ident, ())))

    def __len__(self) -> int:
        """Identifiers in use."""
        return len(self._held)

    def _free(self) -> int:
        if self._last < 0:
            self._last = self._rng.randrange(0, MAX_IDENTIFIER)
        for step in range(1, MAX_IDENTIFIER + 1):
            ident = (self._last + step - 1) % MAX_IDENTIFIER + 1
            if ident not in self._held:
                self._last = ident
                return ident
        raise NetError(errno.EADDRINUSE)
