"""Whose turn it is to be received into a guest's memory: forwarded streams that share a ring with too little room.

Theory of operation
-------------------
A stream alone takes whatever the ring has. Once anybody has found no room, the streams that wait stand in a line, and
are called when there is room again: each may take one share, then stands behind those whose last one is longer ago.
Whoever is first in line goes first whatever he wants, so that nobody waits for ever; behind him those go that have said
little lately, a little at a time, and so a shell answers while files are copied. A round that leaves room ends the
sharing. Who is called is only told so; whoever happens to run before it is his turn is sent back into the line, and the
line is called again at the end of the turn, so that one who does not come keeps nobody waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.vsock.connection import VsockConnection

SHARE_BYTES: Final = 64 << 10  # for each connection before it is the next one's turn
LITTLE: Final = 4 << 10  # bytes; who has no more than that to say goes first


class Turns:
    """The line of one guest's ring."""

    __slots__ = ("_called", "_dry", "_heavy", "_last", "_round", "_sharing", "_takes", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[VsockConnection, None] = {}  #: in line
        self._called: dict[VsockConnection, None] = {}  # may take, in this order, and have not asked yet
        self._last: dict[VsockConnection, int] = {}  # when each took something last, counted in takes
        self._takes = 0
        self._round = 0  # takes when the line was called
        self._heavy: set[VsockConnection] = set()  # took more than a little, and had more
        self._dry = False  # somebody found no room since the line was called
        self._sharing = False

    def limit(self, connection: VsockConnection, wanted: int) -> int:
        """Bytes it may take now, of those `wanted`; 0: it is not its turn."""
        called = self._called
        if called:
            first = next(iter(called)) is connection
            called.pop(connection, None)
            if not first:  # others were told before, but it happened to run before them
                return 0
        elif not self._sharing and not self.waiting:
            return wanted
        if self._last.get(connection, 0) > self._round:
            return 0
        if not self._sharing:
            return wanted
        return min(wanted, SHARE_BYTES if connection in self._heavy else LITTLE)

    def took(self, connection: VsockConnection, count: int) -> None:
        self._takes += 1
        self._last[connection] = self._takes
        if count >= LITTLE:
            self._heavy.add(connection)

    def said_all(self, connection: VsockConnection) -> None:
        """Its socket has no more at the moment."""
        self._heavy.discard(connection)

    def wait(self, connection: VsockConnection, *, dry: bool) -> None:
        """It stands in line. `dry`: because there was no room."""
        self.waiting[connection] = None
        self._dry |= dry

    def call(self) -> list[VsockConnection]:
        """There is room: the whole line, in the order in which it is to take; nobody waits afterwards."""
        last = self._last
        line = sorted(self.waiting, key=lambda connection: last.get(connection, 0))
        order = [*line[:1], *sorted(line[1:], key=self._heavy.__contains__)]
        self._sharing = self._dry and len(line) > 1
        self._dry = False
        self._called = dict.fromkeys(order)
        self.waiting.clear()
        self._round = self._takes
        return order

    def forget(self, connection: VsockConnection) -> None:
        """It ended."""
        self.waiting.pop(connection, None)
        self._called.pop(connection, None)
        self._last.pop(connection, None)
        self._heavy.discard(connection)
