"""Readiness: the poll bits and `Pollee`, what a socket offers to those who wait for it (row CORE-09).

Theory of operation
-------------------
Whether a socket is ready is a pure function of its phase, asked for when somebody wants to know. What is pushed is
only *that it may have changed*: the protocol below calls `Pollee.notify`, as often as it likes, and the pollee goes on
the Network's list of marked pollees once. At the end of the turn, or of the socket call, the Network settles that list:
each pollee computes its bits once and tells its observers. A burst of forty segments costs one evaluation, a socket
nobody waits for costs one test of an empty list.

Everything here happens under the Network's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

# Linux <bits/poll.h> on x86 and every architecture but sparc and mips.
IN: Final = 0x0001
PRI: Final = 0x0002
OUT: Final = 0x0004
ERR: Final = 0x0008
HUP: Final = 0x0010
NVAL: Final = 0x0020
RDNORM: Final = 0x0040
WRNORM: Final = 0x0100
RDHUP: Final = 0x2000

#: The longest absence that counts, ns.
LONG_ABSENCE: Final = 2_000_000

#: Reported whether asked for or not (poll(2)).
ALWAYS: Final = ERR | HUP | NVAL


class Observer(Protocol):
    """Someone who wants to know when bits may have changed: a waiting thread, a mirrored descriptor."""

    def update(self, bits: int) -> None:
        """Lock held, at the end of a turn: these are the bits now. Must not wait nor touch sockets."""
        ...


class Pollee:
    """The readiness of one socket and those who watch it."""

    __slots__ = ("_marked", "_marks", "_observers", "absence", "bits", "fresh", "keeper", "left")

    def __init__(self, bits: Callable[[], int], marks: list[Pollee]) -> None:
        """`bits` computes the poll bits now; `marks` is the Network's list of pollees to settle."""
        self.bits = bits
        self._marks = marks
        self._observers: list[Observer] = []
        self._marked = False
        self.fresh = False  #: while it settles: something happened, besides the calls of users of this socket
        #: For the runner: when (ns) a thread last left with what it waited for here, and how long (ns) threads
        #: typically stay away before they wait here again.
        self.left = 0
        self.absence = 0
        self.keeper: Callable[[Pollee], None] | None = None  #: the runner, while it keeps the token for such a thread

    def notify(self) -> None:
        """Readiness may have changed."""
        if self._observers:
            self.fresh = True
            if not self._marked:
                self._marked = True
                self._marks.append(self)

    def refresh(self) -> None:
        """As `notify`, after a call of the socket's user: what it took away must not show any more."""
        if self._observers and not self._marked:
            self._marked = True
            self._marks.append(self)

    def observe(self, observer: Observer) -> None:
        """`observer` hears of every change from now on; pair with `forget`."""
        self._observers.append(observer)

    def forget(self, observer: Observer) -> None:
        """Undo one `observe`. Forgetting somebody unknown changes nothing."""
        if observer in self._observers:
            self._observers.remove(observer)

    def learn(self, away: int) -> None:
        """A thread came back after `away` ns. One long absence counts little: it is capped before it is averaged."""
        self.left = 0
        self.absence += (min(away, LONG_ABSENCE) - self.absence) >> 2

    def retire(self) -> None:
        """Nobody will wait here any more."""
        if self.keeper is not None:
            self.keeper(self)

    @property
    def observed(self) -> bool:
        return bool(self._observers)

    def settle(self) -> None:
        """Tell the observers; called by the Network at the end of a turn."""
        self._marked = False
        if self._observers:
            bits = self.bits()
            for observer in tuple(self._observers):
                observer.update(bits)
        self.fresh = False
